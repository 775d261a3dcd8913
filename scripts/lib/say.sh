# shellcheck shell=bash
# Words for people, on stderr, and errors in the form that every verb has (docs/exit-codes.md).

program=${program:-${0##*/}}

say() { printf '%s: %s\n' "$program" "$*" >&2; }

# die CODE WHAT [WHERE [REMEDY]]
die() {
  printf 'error: %s\n' "$2" >&2
  [[ -z ${3:-} ]] || printf '  where: %s\n' "$3" >&2
  [[ -z ${4:-} ]] || printf '  remedy: %s\n' "$4" >&2
  exit "$1"
}

# The value of an option, or exit code 2: option_value --out "$@"
option_value() {
  (($# >= 3)) || die 2 "$1 needs a value" "$1"
  printf '%s' "$3"
}
