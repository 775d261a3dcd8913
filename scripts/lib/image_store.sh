# shellcheck shell=bash
# A folder of image files on a node, each named by the digest of the image that it was made from.
#
#   HEX.sqsh, HEX.sif   the file        HEX.sqsh.sha256   what its bytes were when it was made
#   keep                digests, one a line, that are never removed
#
# A file made by mksquashfs differs from node to node, so its own sha256 is recorded where it is
# made; the digest in its name says which image it is.

# shellcheck source=scripts/lib/say.sh
. "${BASH_SOURCE[0]%/*}/say.sh"

# store_file STORE HEX ENDING
store_file() { printf '%s/%s.%s' "$1" "$2" "$3"; }

# store_is_whole FILE : 0 if it is there with the bytes it had when it was made.
store_is_whole() {
  [[ -f $1 && -f $1.sha256 ]] && (cd "${1%/*}" && sha256sum --check --status "${1##*/}.sha256")
}

# store_lock STORE : one maker at a time, until this process ends. The kernel lets go of a lock
# whose holder was killed.
store_lock() {
  mkdir -p "$1" 2>/dev/null && [[ -w $1 ]] || die 3 "no files can be made there" "$1" \
    "name a folder that you may write to with --store, or let its owner run this"
  exec {store_lock_fd}>"$1/.lock"
  flock --nonblock "$store_lock_fd" || {
    say "waiting for another process that makes an image in $1"
    flock "$store_lock_fd"
  }
  # Under the lock, whatever is half-made was left by one that was killed.
  rm -rf -- "$1"/.making.*
}

# store_publish TEMPORARY FILE : give a finished file its name. Its hash comes first: a file with
# a name and without a hash is not whole, and is made again.
store_publish() {
  local sum
  sum=$(sha256sum <"$1")
  chmod 0644 "$1"
  sync "$1"
  printf '%s  %s\n' "${sum%% *}" "${2##*/}" >"$2.sha256"
  mv -f -- "$1" "$2"
}

# store_prune STORE ENDING KEEP HEX : of the files that are neither HEX nor in the keep list,
# leave the KEEP newest.
store_prune() {
  local store=$1 ending=$2 keep=$3 current=$4 file hex kept=0
  local -A listed=([$current]=1)
  if [[ -r $store/keep ]]; then
    while IFS= read -r hex; do
      hex=${hex##*sha256:}
      [[ -z $hex ]] || listed[$hex]=1
    done <"$store/keep"
  fi
  while IFS= read -r file; do
    hex=${file##*/}
    hex=${hex%."$ending"}
    [[ $hex =~ ^[0-9a-f]{64}$ && -z ${listed[$hex]:-} ]] || continue
    kept=$((kept + 1))
    ((kept > keep)) || continue
    say "removing ${file##*/}"
    rm -f -- "$file" "$file.sha256"
  done < <(find "$store" -maxdepth 1 -name "*.$ending" -printf '%T@ %p\n' | sort -rn | cut -d' ' -f2-)
}
