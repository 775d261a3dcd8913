# shellcheck shell=bash
# Files of KEY=VALUE lines, read without running them.
#
# They are not sourced: a file that came whole but wrong must end with the number of its line, and
# not with whatever a shell makes of it.

# shellcheck source=scripts/lib/say.sh
. "${BASH_SOURCE[0]%/*}/say.sh"

readonly SETTINGS_VALUE='[][A-Za-z0-9._:/@+,-]*'

# load_settings FILE KEY... : set and export each key that the file has; others are refused.
load_settings() {
  local file=$1 line number=0 key
  shift
  local -A known=() seen=()
  for key in "$@"; do known[$key]=1; done
  [[ -f $file && -r $file ]] || die 2 "this file is not there, or cannot be read" "$file"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    if [[ -z $line || $line == \#* ]]; then continue; fi
    if [[ ! $line =~ ^([A-Z_]+)=($SETTINGS_VALUE)$ ]]; then
      die 2 "this line is not KEY=VALUE with a plain value" "$file:$number" \
        "no spaces, quotes or signs that a shell expands"
    fi
    key=${BASH_REMATCH[1]}
    [[ -n ${known[$key]:-} ]] || die 2 "no such setting: $key" "$file:$number" "known: $*"
    [[ -z ${seen[$key]:-} ]] || die 2 "$key is there twice" "$file:$number"
    seen[$key]=1
    export "$key=${BASH_REMATCH[2]}"
  done <"$file"
}
