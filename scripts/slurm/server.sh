# shellcheck shell=bash
# Ports and health of a server on this node, with nothing but the shell and /proc.

# free_port NUMBER : print a port that nobody listens on, below the kernel's range for outgoing
# connections; NUMBER makes neighbours begin at different places. 1 if there is none.
free_port() {
  local taken port i
  # Field 2 is ADDRESS:PORT in hex, field 4 the state; 0A is LISTEN.
  taken=$(awk '$4 == "0A" { sub(/.*:/, "", $2); print $2 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
  for ((i = 0; i < 10000; i++)); do
    port=$((20000 + ($1 * 17 + i) % 10000))
    if ! grep -qix "$(printf '%04X' "$port")" <<<"$taken"; then
      printf '%s' "$port"
      return
    fi
  done
  return 1
}

# answers HOST PORT : 0 if GET /health says 200 within 5 s.
answers() {
  # shellcheck disable=SC2016  # for the inner shell, which timeout can end
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "GET /health HTTP/1.0\r\nHost: $1\r\n\r\n" >&3 \
    && read -r _ status _ <&3 && [[ $status == 200 ]]' answers "$1" "$2" 2>/dev/null
}

# local_address LISTEN : where this node itself reaches it.
local_address() {
  case $1 in
    0.0.0.0) printf 127.0.0.1 ;;
    ::) printf ::1 ;;
    *) printf '%s' "$1" ;;
  esac
}

# reachable_as LISTEN : the host in the address for clients.
reachable_as() {
  case $1 in
    0.0.0.0 | ::) printf '%s' "${SLURMD_NODENAME:-$(uname -n)}" ;;
    *:*) printf '[%s]' "$1" ;;
    *) printf '%s' "$1" ;;
  esac
}

# wait_for_health PID LISTEN PORT SECONDS : 0 it answers; 1 its step's srun, PID, ended; 2 the job is
# stopping; 6 the time is over.
wait_for_health() {
  local pid=$1 address begin=$SECONDS
  shift
  address=$(local_address "$1")
  while :; do
    [[ -z ${stopping:-} ]] || return 2
    kill -0 "$pid" 2>/dev/null || return 1
    if answers "$address" "$2"; then return 0; fi
    ((SECONDS - begin < $3)) || return 6
    sleep 1
  done
}
