#!/usr/bin/env bash
# The cluster's image as an enroot file on this node, by digest: scripts/enroot/import.sh --help.
# No root is needed. Run again it makes nothing; interrupted it leaves nothing (docs/slurm.md).
set -euo pipefail

lib=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../lib" && pwd)
# shellcheck source=scripts/lib/make_image.sh
. "$lib/make_image.sh"

make_file() {
  command -v enroot >/dev/null || die 3 "enroot is missing on this host" PATH \
    "install it, or use Apptainer (scripts/apptainer) or a prefix (docs/slurm.md)"
  # A digest where enroot expects a tag: the one form that its versions 3 and 4 both read.
  # enroot compares each layer with its digest. Its cache of layers is enroot's own.
  enroot import --output "$1" "docker://$image_host#$image_path:sha256:$image_hex" >&2
}

# enroot writes the labels of an image as comments into /etc/rc.
lock_slice() {
  command -v unsquashfs >/dev/null \
    || die 3 "unsquashfs is missing on this host" PATH "install squashfs-tools 4.5 or later"
  unsquashfs -cat "$1" etc/rc | sed -n 's/^# io\.tdstack\.lock-slice //p'
}

make_image sqsh "$@"
