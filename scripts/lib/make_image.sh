# shellcheck shell=bash
# What scripts/enroot/import.sh and scripts/apptainer/build.sh have in common: one image, by digest,
# becomes one file in a store. The caller has two functions:
#
#   make_file FILE     make the image's file there
#   lock_slice FILE    print the label io.tdstack.lock-slice of the image in it
#
# Only digests are taken. With --cluster the label must be the cluster file's: a registry that
# answers with another image than it was asked for is found out.

# shellcheck source=scripts/lib/cluster_env.sh
. "${BASH_SOURCE[0]%/*}/cluster_env.sh"
# shellcheck source=scripts/lib/image_store.sh
. "${BASH_SOURCE[0]%/*}/image_store.sh"

readonly DEFAULT_STORE=/var/lib/tdstack/images

image_usage() {
  cat >&2 <<USAGE
usage: $program (--cluster FILE | --image HOST[:PORT]/PATH@sha256:HEX) [options]
  --cluster FILE   the image of this cluster file
  --image REF      another image, such as one with a server in it; by digest too
  --store DIR      where files lie: TDSTACK_STORE, or $DEFAULT_STORE
  --keep N|all     how many older files stay beside it and those of DIR/keep (default: all)
  --check          make nothing: is the file there, and whole?
  --dry            say what would be done
${extra_usage:-}
The file's path is the last line of stdout. Exit codes: 0; 1 with --check, it is not there or not
whole; 2 usage; 3 a program or the right to write is missing; 4 it is another image; 5 it could not
be fetched.
USAGE
}

# Of --archive FILE, where the caller takes one.
archive=''

make_image() {
  local ending=$1 cluster='' image='' keep=all mode=make store=${TDSTACK_STORE:-$DEFAULT_STORE} file
  shift
  while (($#)); do
    case $1 in
      --cluster) cluster=$(option_value "$1" "$@") && shift ;;
      --image) image=$(option_value "$1" "$@") && shift ;;
      --store) store=$(option_value "$1" "$@") && shift ;;
      --keep) keep=$(option_value "$1" "$@") && shift ;;
      --archive)
        [[ -n ${takes_archive:-} ]] || die 2 "no such option: $1" "$program"
        # shellcheck disable=SC2034  # for the caller's make_file
        archive=$(option_value "$1" "$@") && shift
        ;;
      --check) mode=check ;;
      --dry) mode=dry ;;
      -h | --help) image_usage && return ;;
      *) die 2 "no such option: $1" "$program" "$program --help lists them" ;;
    esac
    shift
  done
  [[ $keep == all || $keep =~ ^[0-9]{1,4}$ ]] || die 2 "--keep takes a number, or all" "--keep $keep"
  wanted_image "$cluster" "$image"
  file=$(store_file "$store" "$image_hex" "$ending")
  case $mode in
    check)
      store_is_whole "$file" || die 1 "the image's file is not there, or not as it was made" \
        "$file" "run $program without --check"
      say "whole: $file"
      ;;
    dry) say "would $(store_is_whole "$file" && echo keep || echo make) $file" ;;
    make) have_file "$store" "$file" "$ending" "$keep" ;;
  esac
  printf '%s\n' "$file"
}

# wanted_image CLUSTER IMAGE : set image_* and, of a cluster file, TDSTACK_LOCK.
wanted_image() {
  [[ -n $1 && -z $2 || -z $1 && -n $2 ]] \
    || die 2 "which image?" "$program" "give either --cluster FILE or --image REF"
  unset TDSTACK_LOCK
  if [[ -n $1 ]]; then
    load_cluster_env "$1"
    platform_fits
  else
    split_image "$2" || die 2 "this image is not named by digest" "$2" \
      "HOST[:PORT]/PATH@sha256:HEX: a tag may name another image tomorrow"
  fi
}

platform_fits() {
  local machine
  machine=$(uname -m)
  case $TDSTACK_PLATFORM:$machine in
    linux/amd64:x86_64 | linux/arm64:aarch64) ;;
    *) die 3 "the cluster's image is for $TDSTACK_PLATFORM, this host is $machine" ;;
  esac
}

# have_file STORE FILE ENDING KEEP
have_file() {
  if store_is_whole "$2"; then
    say "there, and whole: $2"
  else
    store_lock "$1"
    # Another process may have made it while this one waited.
    store_is_whole "$2" || make_checked "$1" "$2"
  fi
  if [[ $4 != all ]]; then
    [[ -n ${store_lock_fd:-} ]] || store_lock "$1"
    store_prune "$1" "$3" "$4" "$image_hex"
  fi
}

make_checked() {
  local making label
  making=$(mktemp -d "$1/.making.XXXXXX")
  # shellcheck disable=SC2064  # the folder of now, not of later
  trap "rm -rf -- '$making'" EXIT
  say "making ${2##*/} from $image_host/$image_path"
  make_file "$making/${2##*/}" || die 5 "the image could not be made into a file" \
    "$image_host/$image_path@sha256:$image_hex" "what the program said stands above"
  [[ -s $making/${2##*/} ]] || die 5 "the program made no file, and said that it had" "$program"
  if [[ -n ${TDSTACK_LOCK:-} ]]; then
    label=$(lock_slice "$making/${2##*/}") || label=''
    [[ $label == "$TDSTACK_LOCK" ]] || die 4 "this is not the cluster file's image" \
      "$image_host/$image_path: io.tdstack.lock-slice is ${label:-not there}" \
      "expected $TDSTACK_LOCK; look at what the registry has under this digest"
  fi
  store_publish "$making/${2##*/}" "$2"
}
