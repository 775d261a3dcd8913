#!/usr/bin/env bash
# On a node, as root: is Slurm set up for the health check, and does the check work here? Changes
# nothing (docs/slurm.md#health-checks). Exit codes: 0; 1 something is not as it should be, each with
# a remedy; 3 Slurm does not answer.
set -uo pipefail

# shellcheck source=scripts/slurm/health.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/health.sh"

health_name=check
node=$(uname -n)
node=${SLURMD_NODENAME:-${node%%.*}}
wrong=0
ok() { printf 'ok    %s\n' "$*"; }
note() { printf 'note  %s\n      %s\n' "$1" "$2"; }
fail() {
  printf 'FAIL  %s\n      remedy: %s\n' "$1" "$2"
  wrong=1
}

# setting NAME : its value in slurm.conf, as slurmctld has it.
setting() { sed -n "s/^$1 *= *//p" <<<"$config"; }

# is_number_above VALUE LEAST : Slurm says 65534, or "unlimited", where there is no limit.
is_number_above() {
  if [[ ${1%% *} =~ ^[0-9]+$ ]]; then ((${1%% *} > $2)); else [[ $1 == *nlimited* ]]; fi
}

# runs_ours PROGRAMS SCRIPT : whether one of them is, links to or starts our script.
runs_ours() {
  local program
  for program in ${1//,/ }; do
    [[ -r $program ]] || continue
    if [[ $(readlink -f -- "$program") == */scripts/slurm/$2 ]] \
      || grep -q "scripts/slurm/$2" -- "$program"; then return 0; fi
  done
  return 1
}

if read_settings; then ok "settings, checkout and .venv can be used"; else
  fail "$health_problem" "see the table of settings in docs/slurm.md"
fi
config=$(within 10 scontrol show config 2>&1) || {
  printf 'error: %s\n  where: scontrol show config: %s\n' "Slurm does not answer" "$config" >&2
  exit 3
}

for pair in Prolog:prolog.sh Epilog:epilog.sh HealthCheckProgram:healthcheck.sh; do
  name=${pair%%:*} script=${pair##*:}
  if runs_ours "$(setting "$name")" "$script"; then ok "$name runs $script"; else
    fail "$name does not run $script: $(setting "$name")" \
      "in slurm.conf: $name=$health_root/scripts/slurm/$script"
  fi
done

for name in PrologEpilogTimeout PrologTimeout EpilogTimeout; do
  value=$(setting "$name")
  [[ -n $value ]] || continue
  if is_number_above "$value" "$((health_limit + 5))"; then ok "$name is $value"; else
    fail "$name is $value: a check may take $health_limit s" \
      "in slurm.conf: $name=$((health_limit * 2)), or a smaller TDSTACK_HEALTH_LIMIT_S"
  fi
done
if [[ $(setting PrologFlags) =~ Alloc|Contain|X11 ]]; then ok "the prolog runs at allocation"; else
  fail "the prolog runs with the first step, and a job may begin on a bad node" \
    "in slurm.conf: PrologFlags=Alloc"
fi
if [[ $(setting HealthCheckInterval) =~ ^0 ]]; then
  fail "the health check never runs" "in slurm.conf: HealthCheckInterval=300"
elif [[ $(setting HealthCheckNodeState) == *ANY* ]]; then ok "the health check sees all nodes"; else
  fail "the health check leaves out some nodes: $(setting HealthCheckNodeState)" \
    "in slurm.conf: HealthCheckNodeState=ANY, or no drained node is ever undrained"
fi
if [[ $(setting SchedulerParameters) == *nohold_on_prolog_fail* ]]; then
  ok "a job goes back to the queue when a prolog fails"
else
  note "a job is held when a prolog fails" \
    "SchedulerParameters=nohold_on_prolog_fail lets it run on other nodes"
fi

if [[ -z $health_problem ]]; then
  begin=$SECONDS
  ask_doctor
  case $verdict in
    keep) ok "the doctor would keep this node ($((SECONDS - begin)) s)" ;;
    drain) note "the doctor would drain this node ($((SECONDS - begin)) s)" "$reason" ;;
    *) fail "the doctor does not work here" "$reason" ;;
  esac
fi
exit "$wrong"
