# shellcheck shell=bash
# The health check of a node, for prolog.sh, epilog.sh and healthcheck.sh: ask the doctor, and drain
# the node if it says that something is broken or missing (docs/slurm.md#health-checks).
#
# A prolog that fails or hangs takes a node away, so this script is careful: a doctor that does not
# answer, or answers with something else than a report, is told to the log and drains nothing; all of
# it ends within TDSTACK_HEALTH_LIMIT_S; Slurm is asked only where there is something to change.

# shellcheck source=scripts/slurm/health_settings.sh
. "${BASH_SOURCE[0]%/*}/health_settings.sh"
# shellcheck source=scripts/slurm/node_state.sh
. "$health_root/scripts/slurm/node_state.sh"

# Slurm gives a prolog neither PATH nor a locale.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
# By this code health_main tells a bad node from a check that broke.
readonly BAD_NODE=10
# What ask_doctor finds.
verdict='' reason=''

health_log() {
  local line="tdstack $health_name on $node: $*"
  logger --tag tdstack-health -- "$line" 2>/dev/null || true
  # slurmd's own log gets the output of a prolog that fails.
  printf '%s\n' "$line" >&2
  [[ -z ${TDSTACK_HEALTH_LOG:-} ]] \
    || printf '%s %s\n' "$(date -u +%FT%TZ)" "$line" >>"$TDSTACK_HEALTH_LOG" || true
}

# within SECONDS COMMAND... : its exit code, 124 if it took longer. One that cannot even be killed,
# as it waits for a broken device, is left behind.
within() {
  local seconds=$1 begin=$SECONDS code=0 child i
  shift
  timeout --kill-after=1 "$seconds" "$@" &
  child=$!
  for ((i = 0; i < (seconds + 2) * 10; i++)); do
    kill -0 "$child" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$child" 2>/dev/null; then return 124; fi
  wait "$child" || code=$?
  # 137 is also that of one who had to be killed, which timeout does not call late.
  if ((code == 137 && SECONDS - begin >= seconds)); then code=124; fi
  return "$code"
}

# remaining MOST : seconds until the limit, at most MOST, at least 1.
remaining() {
  local left=$((health_limit - SECONDS))
  printf '%s' "$((left < 1 ? 1 : left < $1 ? left : $1))"
}

# Where the node is used for other partitions, only jobs of those that are named count.
concerns_job() {
  [[ -z ${TDSTACK_HEALTH_PARTITIONS:-} || -z ${SLURM_JOB_PARTITION:-} ]] \
    || [[ ,$TDSTACK_HEALTH_PARTITIONS, == *,$SLURM_JOB_PARTITION,* ]]
}

# ask_once : ask_doctor, but one at a time: Slurm starts a health check whether or not the last one
# has ended, and a prolog for each job. One that had to wait takes the answer to a question that was
# asked after it came. verdict is busy for a health check that is not needed.
ask_once() {
  local came=${EPOCHREALTIME/[.,]/} began=0 lock=$health_state/$node.lock answer
  exec {health_lock}>>"$lock"
  if ! flock --nonblock "$health_lock"; then
    if [[ $health_name == healthcheck ]]; then
      verdict=busy
      return
    fi
    # A doctor that cannot even be killed holds the lock on: only the first one waits for it.
    if ! flock --timeout 1 "$health_lock"; then
      read -r began <"$lock" || began=$came
      if ((came - began > health_limit * 1000000)) \
        || ! flock --timeout "$((health_limit - 11))" "$health_lock"; then
        verdict=broken reason="a check of $(((came - began) / 1000000)) s ago has not ended"
        return
      fi
    fi
  fi
  answer=$health_state/$node.verdict
  if [[ -r $answer ]] && read -r began verdict reason <"$answer" && ((began >= came)); then
    return
  fi
  began=${EPOCHREALTIME/[.,]/}
  printf '%s\n' "$began" >"$lock"
  ask_doctor
  printf '%s\n' "$began $verdict $reason" >"$health_work/answer"
  mv -f -- "$health_work/answer" "$answer"
}

# ask_doctor : set verdict to keep, drain or broken, and reason.
ask_doctor() {
  local code=0 doctor=(-m tdstack.doctor --json) report=$health_work/report.json judge limit
  [[ -z ${TDSTACK_HEALTH_CUDA:-} ]] || doctor+=(--cuda "$TDSTACK_HEALTH_CUDA")
  [[ -z ${TDSTACK_HEALTH_PREFIX:-} ]] || doctor+=(--prefix "$TDSTACK_HEALTH_PREFIX")
  judge=(-m tdstack.slurm_health --only "${TDSTACK_HEALTH_ONLY:-}"
    --ignore "${TDSTACK_HEALTH_IGNORE:-}")
  # A clean environment: what a job's user has in theirs must not reach root's Python.
  local clean=(env -i "PATH=$PATH" LC_ALL=C.UTF-8 HOME=/root PYTHONDONTWRITEBYTECODE=1)
  cd "$health_root" || return 1
  # Slurm needs up to 10 s of the limit.
  limit=$((health_limit - 10 - SECONDS))
  ((limit >= 5)) || limit=5
  within "$limit" "${clean[@]}" "$health_python" "${doctor[@]}" \
    >"$report" 2>"$health_work/stderr" </dev/null || code=$?
  if ((code == 124)); then
    verdict=broken reason="the doctor took longer than $limit s"
    return
  fi
  within "$(remaining 10)" "${clean[@]}" "$health_python" "${judge[@]}" --code "$code" "$report" \
    >"$health_work/verdict" 2>>"$health_work/stderr" </dev/null || true
  read -r verdict reason <"$health_work/verdict" || true
  mv -f -- "$report" "$health_state/$node.json"
  [[ ${verdict:-} =~ ^(keep|drain|broken)$ ]] || {
    verdict=broken
    reason="the doctor's report could not be judged: $(tail -n 1 -- "$health_work/stderr")"
  }
}

# health_script NAME : the whole of prolog.sh and its like. Slurm drains a node whose prolog fails, so
# it fails for a bad node alone, whatever else goes wrong in the subshell.
health_script() {
  local code=0
  health_name=$1
  node=$(uname -n)
  node=${SLURMD_NODENAME:-${node%%.*}}
  if ! read_settings; then
    health_log "not checked: $health_problem"
    exit 0
  fi
  (health_main) || code=$?
  case $code in
    0) ;;
    "$BAD_NODE") [[ $health_name != prolog ]] || exit 1 ;;
    *) health_log "not checked: the check itself ended with $code" ;;
  esac
  exit 0
}

# health_main : BAD_NODE, 0, or what went wrong with the check.
health_main() {
  concerns_job || return 0
  ask_once
  case $verdict in
    busy) ;;
    keep) undrain_ours ;;
    broken) health_log "not checked: $reason" ;;
    drain)
      if [[ ${TDSTACK_HEALTH_DRAIN:-yes} != yes ]]; then
        health_log "would drain: $reason"
        return 0
      fi
      drain_for "$reason"
      return "$BAD_NODE"
      ;;
  esac
}
