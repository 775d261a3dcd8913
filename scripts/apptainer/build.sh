#!/usr/bin/env bash
# The cluster's image as a SIF on this node, by digest: scripts/apptainer/build.sh --help.
# No root is needed. Run again it makes nothing; interrupted it leaves nothing (docs/slurm.md).
set -euo pipefail

lib=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../lib" && pwd)
# shellcheck source=scripts/lib/make_image.sh
. "$lib/make_image.sh"

# shellcheck disable=SC2034  # both are read by make_image
takes_archive=1 \
  extra_usage="  --archive FILE   an OCI archive that has the image, in place of the registry:
                   skopeo copy docker://HOST/PATH@sha256:HEX oci-archive:FILE"

make_file() {
  local source="docker://$image_host/$image_path@sha256:$image_hex"
  command -v apptainer >/dev/null || die 3 "apptainer is missing on this host" PATH \
    "install it, or use enroot (scripts/enroot) or a prefix (docs/slurm.md)"
  if [[ -n $archive ]]; then
    archive_has_image
    source="oci-archive:$archive"
  fi
  # apptainer compares the manifest and each layer with their digests. Neither of these two would
  # do with root's rights what a user's would not.
  apptainer build "$1" "$source" >&2
}

# An archive names its images in index.json, and apptainer takes the only one.
archive_has_image() {
  local digests sum
  [[ -r $archive ]] || die 2 "this archive is not there, or cannot be read" "$archive"
  digests=$(tar -xOf "$archive" index.json 2>/dev/null \
    | grep -oE '"digest"[[:space:]]*:[[:space:]]*"sha256:[0-9a-f]{64}"' | grep -oE '[0-9a-f]{64}') \
    || die 4 "this is no OCI archive: it has no index.json with a digest" "$archive"
  [[ $digests == "$image_hex" ]] || die 4 "the archive is of another image, or of several" \
    "$archive: ${digests//$'\n'/, }" "expected $image_hex and no other"
  sum=$(tar -xOf "$archive" "blobs/sha256/$image_hex" 2>/dev/null | sha256sum)
  [[ ${sum%% *} == "$image_hex" ]] || die 4 "the manifest in the archive is not its digest's" \
    "$archive: blobs/sha256/$image_hex"
}

lock_slice() {
  apptainer inspect --labels "$1" | sed -n 's/^io\.tdstack\.lock-slice: *//p'
}

make_image sif "$@"
