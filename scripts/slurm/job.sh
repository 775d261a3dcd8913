# shellcheck shell=bash
# What the sbatch scripts have in common: options, the form in which the stack is there, steps, and
# a clean stop. A job's script is a copy in a spool folder, so it finds this file by TDSTACK_ROOT or
# by the folder of submission.
#
# shellcheck disable=SC2034  # much of what is set here is for those scripts

root=$(cd -- "${BASH_SOURCE[0]%/*}/../.." && pwd)
# shellcheck source=scripts/lib/cluster_env.sh
. "$root/scripts/lib/cluster_env.sh"

form='' prefix='' cluster='' image='' out='' python=''
store=${TDSTACK_STORE:-/var/lib/tdstack/images}
# What stands after --, for the program that the job runs.
rest=()
# How many arguments own_option took.
own_taken=1

# take_options ARGUMENT... : own_option of the script takes what is not known here, and fails for
# what it does not know either.
take_options() {
  local value
  while (($#)); do
    case $1 in
      --form | --prefix | --cluster | --image | --store | --out | --python)
        value=$(option_value "$1" "$@")
        printf -v "${1#--}" '%s' "$value"
        shift
        ;;
      --) shift && rest=("$@") && break ;;
      *)
        own_option "$@" || die 2 "no such option: $1" "$program" "what is for ${runs:-it} stands after --"
        shift "$own_taken"
        continue
        ;;
    esac
    shift
  done
  [[ -n ${SLURM_JOB_ID:-} ]] || die 2 "this is no job" "$program" "submit it with sbatch"
  out=$(realpath -m -- "${out:-$SLURM_JOB_NAME-$SLURM_JOB_ID}")
  [[ ! -e $out ]] || die 3 "there is something already" "$out" "name another folder with --out"
}

# What a form sets. srun_options: for every step in it; inside: what a command of it begins with.
srun_options=()
inside=()
verify=''

# use_form MOUNT... : make the stack ready on all nodes, in the form that was asked for. Each MOUNT
# is a folder of all nodes that a container sees too, at the same place.
use_form() {
  local default_python
  [[ -z $cluster || -z $image ]] || die 2 "--cluster and --image are two images" "$program"
  case $form in
    bare)
      [[ -n $prefix$python && -z $cluster$image ]] || die 2 "the form bare runs what is installed" \
        "--form bare" "give --prefix DIR or --python FILE, and no image"
      default_python=$prefix/current/bin/python
      verify=${prefix:+$prefix/current/bin/tdstack-verify}
      ;;
    apptainer | pyxis)
      [[ -n $cluster$image && -z $prefix ]] || die 2 "the form $form runs an image" "--form $form" \
        "give --cluster FILE (or --image REF), and no --prefix"
      default_python=/opt/tdstack/bin/python
      verify=${cluster:+/opt/tdstack/bin/tdstack-verify}
      if [[ -n $cluster ]]; then load_cluster_env "$cluster"; else
        split_image "$image" || die 2 "this image is not named by digest" "$image"
      fi
      "use_$form" "$@"
      ;;
    *) die 2 "no such form: ${form:-none}" --form "bare, apptainer or pyxis" ;;
  esac
  python=${python:-$default_python}
}

use_apptainer() {
  local mount
  make_on_every_node "$root/scripts/apptainer/build.sh"
  inside=(apptainer exec --nv --no-home --pwd /tmp)
  for mount in "$@"; do inside+=(--bind "$mount:$mount"); done
  inside+=("$store/$image_hex.sif")
}

use_pyxis() {
  local mount mounts=''
  srun --help 2>/dev/null | grep -q -- --container-image \
    || die 3 "srun does not know --container-image" "$(command -v srun)" \
      "install pyxis, or use --form apptainer or bare (docs/slurm.md)"
  make_on_every_node "$root/scripts/enroot/import.sh"
  for mount in "$@"; do mounts+=${mounts:+,}$mount:$mount; done
  srun_options=("--container-image=$store/$image_hex.sqsh" "--container-mounts=$mounts"
    --container-workdir=/tmp --no-container-mount-home)
}

# Where the image's file is there and whole, its script makes nothing.
make_on_every_node() {
  local which=(--image "$image") code=0
  [[ -z $cluster ]] || which=(--cluster "$(realpath -- "$cluster")")
  step --ntasks-per-node=1 --label -- "$1" "${which[@]}" --store "$store" >&2 || code=$?
  ((code == 0)) || die "$code" "a node could not get the image" "job $SLURM_JOB_ID" \
    "the lines above say why; each begins with the number of its task"
}

# in_stack OPTION OF SRUN... -- COMMAND... : set stack_line to the arguments of a step in the chosen
# form.
in_stack() {
  local options=()
  while [[ $1 != -- ]]; do options+=("$1") && shift; done
  shift
  stack_line=("${options[@]}" "${srun_options[@]}" -- "${inside[@]}" "$@")
}

# step OPTION OF SRUN... -- COMMAND... : run a step, and return the highest code of its tasks.
step() {
  begin_step "$@"
  wait_for_step
}

step_pid=''

# srun runs beside this script, so that a signal is heard at once.
begin_step() {
  # A task that fails is a finding of its node: the others go on.
  srun --kill-on-bad-exit=0 "$@" &
  step_pid=$!
}

wait_for_step() {
  local code
  while :; do
    wait "$step_pid" && code=0 || code=$?
    # A signal ends the wait, and not the step.
    kill -0 "$step_pid" 2>/dev/null || break
  done
  # The signal may have come with the end: the shell still knows how srun ended.
  wait "$step_pid" 2>/dev/null && code=0 || code=$?
  return "$code"
}

# What Slurm's signal before the time limit, which this script alone gets, means for the steps.
# Ending srun would kill them at once; this tells them.
stopping=''
stop_steps() {
  stopping=1
  say "asked to stop: telling the steps"
  scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || true
}
trap stop_steps TERM
