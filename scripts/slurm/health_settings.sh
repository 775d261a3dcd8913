# shellcheck shell=bash
# Settings of a node's health check, for health.sh, and whether root may run what they name
# (docs/slurm.md#health-checks).
#
# shellcheck disable=SC2034  # health.sh reads what is set here

health_root=$(cd -- "${BASH_SOURCE[0]%/*}/../.." && pwd)
# shellcheck source=scripts/lib/cluster_env.sh
. "$health_root/scripts/lib/cluster_env.sh"

readonly HEALTH_KEYS=(TDSTACK_HEALTH_CLUSTER TDSTACK_HEALTH_CUDA TDSTACK_HEALTH_PREFIX
  TDSTACK_HEALTH_LIMIT_S TDSTACK_HEALTH_ONLY TDSTACK_HEALTH_IGNORE TDSTACK_HEALTH_PARTITIONS
  TDSTACK_HEALTH_DRAIN TDSTACK_HEALTH_STATE TDSTACK_HEALTH_LOG TDSTACK_HEALTH_PATH
  TDSTACK_HEALTH_PYTHON TDSTACK_HEALTH_SLURM_CONF)

# Why read_settings fails.
health_problem=''

# Root runs what lies there: nobody else may write to it.
check_owner() {
  local path owner mode
  ((EUID == 0)) || return 0
  for path in "$@"; do
    [[ -e $path ]] || continue
    read -r owner mode < <(stat -L -c '%u %a' -- "$path")
    if ((owner != 0)) || ((8#$mode & 8#022)); then
      health_problem="root runs what is in $path, and others may write to it"
      return 1
    fi
  done
}

# read_checked COMMAND... : of the functions that read a file and end their shell when it is wrong.
read_checked() {
  local wrong
  wrong=$("$@" 2>&1) || {
    health_problem="${wrong//$'\n'/;}"
    return 1
  }
  "$@"
}

read_settings() {
  local file=${TDSTACK_HEALTH_CONF:-/etc/tdstack/slurm-health.env}
  health_limit=30
  check_owner "$health_root" "$health_root/tdstack" "$health_root/.venv" "$file" || return 1
  if [[ -e $file ]]; then
    read_checked load_settings "$file" "${HEALTH_KEYS[@]}" || return 1
  fi
  if [[ -n ${TDSTACK_HEALTH_CLUSTER:-} && -z ${TDSTACK_HEALTH_CUDA:-} ]]; then
    check_owner "$TDSTACK_HEALTH_CLUSTER" || return 1
    read_checked load_cluster_env "$TDSTACK_HEALTH_CLUSTER" || return 1
    TDSTACK_HEALTH_CUDA=$TDSTACK_CUDA
  fi
  [[ -z ${TDSTACK_HEALTH_PATH:-} ]] || PATH=$TDSTACK_HEALTH_PATH:$PATH
  [[ -z ${TDSTACK_HEALTH_SLURM_CONF:-} ]] || export SLURM_CONF=$TDSTACK_HEALTH_SLURM_CONF
  health_python=${TDSTACK_HEALTH_PYTHON:-$health_root/.venv/bin/python}
  health_state=${TDSTACK_HEALTH_STATE:-/var/lib/tdstack/slurm}
  health_limit=${TDSTACK_HEALTH_LIMIT_S:-30}
  if [[ ! $health_limit =~ ^(1[5-9]|[2-9][0-9]|[1-9][0-9]{2,3})$ ]]; then
    health_problem="TDSTACK_HEALTH_LIMIT_S is no number of seconds from 15 on: $health_limit"
    return 1
  fi
  if [[ ! -x $health_python ]]; then
    health_problem="no Python at $health_python: run scripts/bootstrap.sh"
    return 1
  fi
  # What a check writes is its own: a prolog and a health check may run at the same time.
  if ! mkdir -p "$health_state" 2>/dev/null \
    || ! health_work=$(mktemp -d "$health_state/.check.XXXXXX" 2>/dev/null); then
    health_problem="cannot write to $health_state"
    return 1
  fi
  trap 'rm -rf -- "$health_work"' EXIT
}
