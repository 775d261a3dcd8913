# shellcheck shell=bash
# cluster.env (docs/cluster.md): the one file that says which image a cluster runs.

# shellcheck source=scripts/lib/settings.sh
. "${BASH_SOURCE[0]%/*}/settings.sh"

readonly CLUSTER_KEYS=(TDSTACK_IMAGE TDSTACK_TAG TDSTACK_CUDA TDSTACK_TRITON TDSTACK_TORCH
  TDSTACK_PYTHON TDSTACK_PLATFORM TDSTACK_LOCK TDSTACK_DRIVER TDSTACK_VERSION)

# load_cluster_env FILE : set and export all of its variables, or exit code 2.
load_cluster_env() {
  local key written="write it again with invoke push or invoke pull, and --cluster FILE"
  # What the caller's environment says must not fill in for a line that is missing.
  unset "${CLUSTER_KEYS[@]}"
  load_settings "$1" "${CLUSTER_KEYS[@]}"
  for key in "${CLUSTER_KEYS[@]}"; do
    [[ -n ${!key:-} ]] || die 2 "the cluster file lacks $key" "$1" "$written"
  done
  [[ $TDSTACK_CUDA =~ ^[0-9]{1,3}\.[0-9]{1,3}$ ]] \
    || die 2 "TDSTACK_CUDA is no CUDA line" "$1: $TDSTACK_CUDA" "$written"
  [[ $TDSTACK_LOCK =~ ^[0-9a-f]{64}$ ]] \
    || die 2 "TDSTACK_LOCK is no sha256" "$1: $TDSTACK_LOCK" "$written"
  split_image "$TDSTACK_IMAGE" || die 2 "TDSTACK_IMAGE is not HOST[:PORT]/PATH@sha256:HEX" \
    "$1: $TDSTACK_IMAGE" "$written"
}

# split_image REFERENCE : set image_host, image_path and image_hex; 1 if it is not by digest.
# shellcheck disable=SC2034  # for the scripts that source this file
split_image() {
  local host='[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]' path='[a-z0-9]+([._/-]+[a-z0-9]+)*'
  [[ $1 =~ ^(($host)(:[0-9]{1,5})?)/($path)@sha256:([0-9a-f]{64})$ ]] || return 1
  image_host=${BASH_REMATCH[1]}
  image_path=${BASH_REMATCH[4]}
  image_hex=${BASH_REMATCH[6]}
}
