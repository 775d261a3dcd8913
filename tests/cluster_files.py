"""A cluster file, and programs that stand in for enroot, Apptainer and pyxis.

None of the three is in Debian 12. Each stand-in takes the arguments that the real one takes, in the
form that its own source has, fails for others, and writes them down; what it makes is a real
squashfs file where the scripts look inside. They need nothing that a real one does not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

HEX: Final = hashlib.sha256(b"manifest").hexdigest()
LOCK: Final = hashlib.sha256(b"slice").hexdigest()
HOST: Final = "registry.example:5000"
IMAGE: Final = f"{HOST}/team/tdstack@sha256:{HEX}"
LINES: Final = {
    "TDSTACK_IMAGE": IMAGE,
    "TDSTACK_TAG": "cu124-py311-0123456789ab",
    "TDSTACK_CUDA": "12.4",
    "TDSTACK_TRITON": "distributed",
    "TDSTACK_TORCH": "cuda",
    "TDSTACK_PYTHON": "3.11",
    "TDSTACK_PLATFORM": "linux/amd64",
    "TDSTACK_LOCK": LOCK,
    "TDSTACK_DRIVER": "525.60.13",
    "TDSTACK_VERSION": "0.1.0",
}
# enroot 3 and 4: docker://[USER@][REGISTRY#]IMAGE[:TAG], TAG of [[:alnum:]._:-]. It refuses a file
# that exists, and writes the labels as comments into /etc/rc.
ENROOT: Final = r"""#!/usr/bin/env bash
set -euo pipefail
echo "$0 $*" >>"$STAND_IN_LOG"
[[ $1 == import && $2 == --output && $# == 4 ]] || { echo "usage" >&2; exit 1; }
[[ $4 =~ ^docker://([^#/@]+)#([[:lower:][:digit:]/._-]+):([[:alnum:]._:-]+)$ ]] \
  || { echo "[ERROR] Invalid image reference: $4" >&2; exit 1; }
[[ ! -e $3 ]] || { echo "[ERROR] File already exists: $3" >&2; exit 1; }
sleep "${STAND_IN_SLEEP:-0}"
[[ -z ${STAND_IN_FAILS:-} ]] || { echo "[ERROR] URL returned error code: 404" >&2; exit 1; }
work=$(mktemp -d)
mkdir "$work/etc"
printf '# io.tdstack.layer kernels\n# io.tdstack.lock-slice %s\n\nexec "$@"\n' "$STAND_IN_LOCK" \
  >"$work/etc/rc"
mksquashfs "$work" "$3" -no-progress -quiet >&2
rm -r "$work"
"""
# Apptainer 1.4, whose forms of `build`, `inspect --labels` and `exec` were tried.
APPTAINER: Final = r"""#!/usr/bin/env bash
set -euo pipefail
echo "$0 $*" >>"$STAND_IN_LOG"
case $1 in
  build)
    [[ $# == 3 && $2 == *.sif && ! -e $2 ]] || { echo "FATAL: usage" >&2; exit 1; }
    [[ $3 =~ ^docker://[^/]+/.+@sha256:[0-9a-f]{64}$ || $3 =~ ^oci-archive:/ ]] || exit 255
    sleep "${STAND_IN_SLEEP:-0}"
    [[ -z ${STAND_IN_FAILS:-} ]] || { echo "FATAL: manifest unknown" >&2; exit 255; }
    printf 'org.label-schema.build-arch: amd64\nio.tdstack.lock-slice: %s\n' "$STAND_IN_LOCK" >"$2"
    ;;
  inspect) [[ $2 == --labels && -f $3 ]] && cat "$3" ;;
  exec)
    shift
    while [[ $1 == --* ]]; do
      case $1 in
        --nv | --no-home) shift ;;
        --pwd) cd "$2" && shift 2 ;;
        --bind) [[ -e ${2%%:*} && ${2%%:*} == "${2##*:}" ]] && shift 2 ;;
        *) exit 255 ;;
      esac
    done
    [[ -f $1 && $1 == *.sif ]] || { echo "FATAL: no image $1" >&2; exit 255; }
    shift
    PYTHONPATH=${APPTAINERENV_PYTHONPATH:-} exec "$@"
    ;;
  *) exit 255 ;;
esac
"""
# pyxis adds options to srun; this takes them, and gives the others to Slurm's own srun.
SRUN: Final = r"""#!/usr/bin/env bash
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  echo "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"
  exec /usr/bin/srun --help
fi
options=()
while [[ $1 != -- ]]; do
  case $1 in
    --container-image=*.sqsh) [[ -f ${1#*=} ]] && echo "srun $1" >>"$STAND_IN_LOG" ;;
    --container-mounts=* | --container-workdir=* | --no-container-mount-home)
      echo "srun $1" >>"$STAND_IN_LOG" ;;
    --container-*) exit 1 ;;
    *) options+=("$1") ;;
  esac
  shift
done
exec /usr/bin/srun "${options[@]}" "$@"
"""


def cluster_file(path: Path, **changed: str | None) -> Path:
    """Write a cluster file; None leaves a line out."""
    lines = {**LINES, **changed}
    path.write_text("".join(f"{k}={v}\n" for k, v in lines.items() if v is not None))
    return path


class StandIns:
    """A folder of stand-ins, to be first on PATH, and what they were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in {"enroot": ENROOT, "apptainer": APPTAINER, "srun": SRUN}.items():
            folder.joinpath(name).write_text(text)
            folder.joinpath(name).chmod(0o755)

    def environment(self, path: str, lock: str = LOCK) -> dict[str, str]:
        """Return the variables that make programs find them."""
        log = str(self.folder / "log")
        return {"PATH": f"{self.folder}:{path}", "STAND_IN_LOG": log, "STAND_IN_LOCK": lock}

    def said(self) -> list[str]:
        """Return the command lines that they got, without the folder."""
        log = self.folder / "log"
        text = log.read_text() if log.exists() else ""
        return text.replace(f"{self.folder}/", "").splitlines()


def lacks_squashfs() -> bool:
    """Return whether what makes and reads squashfs files is missing; in CI that is a failure."""
    found = shutil.which("mksquashfs") and shutil.which("unsquashfs")
    return not found and "CI" not in os.environ
