# shellcheck shell=bash
# Draining this node, and taking that back: only where nobody else has drained it, and only what was
# drained here. For health.sh, which has the functions health_log, within and remaining.
#
# $health_state/NODE.drained holds the reason that was given. A drain is ours only while Slurm says
# exactly this reason: an administrator, or a tool, that drains the node for another one keeps it.

node='' health_state='' health_work=''

reason_of_ours() { cat -- "$health_state/$node.drained" 2>/dev/null; }

# ask_slurm ARGUMENT... : scontrol's answer in slurm_said. By a file: a pipe would be waited for even
# where what writes to it cannot be ended.
ask_slurm() {
  local code=0
  within "$(remaining 5)" scontrol "$@" >"$health_work/slurm" 2>&1 </dev/null || code=$?
  slurm_said=$(<"$health_work/slurm")
  return "$code"
}

# node_now : set node_states, such as IDLE+DRAIN, and node_reason.
node_now() {
  if ! ask_slurm --oneliner show node "$node"; then
    health_log "Slurm does not say how this node is: ${slurm_said//$'\n'/;}"
    return 1
  fi
  node_states='' node_reason=''
  [[ $slurm_said =~ \ State=([^ ]+) ]] && node_states=${BASH_REMATCH[1]}
  # Slurm ends it with [USER@TIME].
  [[ $slurm_said =~ \ Reason=(.*)\ \[[^][]*\]([[:space:]]|$) ]] && node_reason=${BASH_REMATCH[1]}
  return 0
}

# drain_for REASON
drain_for() {
  node_now || return 0
  if [[ $node_states == *DRAIN* && -n $node_reason ]]; then
    if [[ $node_reason == "$1" ]]; then return 0; fi
    if [[ $node_reason != "$(reason_of_ours)" ]]; then
      health_log "bad, and drained by others ($node_reason): $1"
      return 0
    fi
  fi
  # First the file: without the drain it means nothing, the drain without it would stay.
  printf '%s\n' "$1" >"$health_state/$node.drained.new"
  mv -f -- "$health_state/$node.drained.new" "$health_state/$node.drained"
  if ask_slurm update "NodeName=$node" State=DRAIN "Reason=$1"; then
    health_log "drained: $1"
  else
    health_log "bad, and Slurm did not drain it (${slurm_said//$'\n'/;}): $1"
  fi
}

undrain_ours() {
  local ours
  ours=$(reason_of_ours) || return 0
  node_now || return 0
  if [[ $node_states == *DRAIN* && $node_reason == "$ours" ]]; then
    # UNDRAIN and not RESUME: a node that is down as well stays down.
    if ! ask_slurm update "NodeName=$node" State=UNDRAIN; then
      health_log "well again, and Slurm did not undrain it: ${slurm_said//$'\n'/;}"
      return 0
    fi
    health_log "undrained, as this is no more: $ours"
  else
    health_log "well again; it is not drained, or by others: ${node_reason:-no reason}"
  fi
  rm -f -- "$health_state/$node.drained"
}
