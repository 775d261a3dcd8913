#!/usr/bin/env bash
# From a fresh Debian or Ubuntu host to a working checkout, and on to a verb if one is given:
#
#   scripts/bootstrap.sh              .venv with everything pinned; a container engine if none works
#   scripts/bootstrap.sh VERB ...     the same, then `invoke VERB ...`
#
# TDSTACK_TOOLS=node: what a cluster's node needs and no more, from requirements-node.lock; no
# engine or other package is installed, as that is the business of who manages the node.
#
# Safe to run again: what is there is left alone. Exit code 3: something is missing on this
# host that this script may not or cannot install; the message says what to do.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# Resolved: where .venv is a link, the programs in it must name what it points to.
venv=$(realpath -m -- "$root/.venv")
case ${TDSTACK_TOOLS:-all} in
  node) lock="$root/requirements-node.lock" ;;
  *) lock="$root/requirements.lock" ;;
esac
readonly root venv lock

say() { printf 'bootstrap: %s\n' "$*" >&2; }

die() {
  printf 'bootstrap: error: %s\n  remedy: %s\n' "$1" "$2" >&2
  exit 3
}

is_debian() {
  [[ -r /etc/os-release ]] && grep -qE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release
}

install_packages() {
  say "installing from the distribution: $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# A Python that the project supports; 3.11 first, as it is the one of the default base.
find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 /usr/bin/python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

has_venv() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

ensure_python() {
  python=$(find_python)
  if [[ -n $python ]] && has_venv "$python"; then return; fi
  if is_debian && ((EUID == 0)); then
    install_packages python3 python3-venv
    python=$(find_python)
  fi
  if [[ -z $python ]] || ! has_venv "$python"; then
    die "no Python 3.11 to 3.13 with venv on this host" \
      "install one (Debian, Ubuntu: apt-get install python3 python3-venv) and run this again"
  fi
}

ensure_venv() {
  local stamp wanted
  stamp="$venv/.requirements.sha256"
  wanted=$(sha256sum "$lock" | cut -d' ' -f1)
  if [[ -x $venv/bin/invoke && -r $stamp && $(<"$stamp") == "$wanted" ]]; then
    say ".venv is up to date"
    return
  fi
  say "creating .venv with $("$python" --version) from ${lock##*/}"
  # A .venv left half-made by an interruption is cheaper to make anew than to trust.
  "$python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --require-hashes --requirement "$lock" \
    || die "the pinned tools could not be installed" \
      "check the proxy and index settings that 'pip config list' shows"
  printf '%s' "$wanted" >"$stamp"
}

# The kernels' tests need torch. A CPU build is on no default index, so it may be out of reach.
ensure_torch() {
  local file="$root/requirements-torch.lock"
  "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' \
    && return
  say "installing CPU torch from requirements-torch.lock"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --require-hashes --requirement "$file" 2>/dev/null \
    || say "torch 2.13.0+cpu for Python 3.11 is out of reach: tests that need it will be skipped" \
      "(add an index or a folder that has it to pip's configuration)"
}

# Whole models are checked with transformers, 24 MB, where torch is.
ensure_models() {
  local file="$root/requirements-models.lock"
  "$venv/bin/python" -c '
import importlib.util as u, sys
sys.exit(bool(u.find_spec("torch")) and not (u.find_spec("transformers") and u.find_spec("accelerate")))
' && return
  say "installing transformers from requirements-models.lock"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --require-hashes --requirement "$file" 2>/dev/null \
    || say "transformers is out of reach: checks of whole models will be left out" \
      "(look at the index that 'pip config list' shows)"
}

# The tests look at the reports' pages in a browser; Debian has one without a window, 64 MB.
ensure_browser() {
  local program
  for program in chromium-headless-shell chromium chromium-browser google-chrome; do
    if command -v "$program" >/dev/null; then return; fi
  done
  if ! is_debian || ((EUID != 0)); then
    say "no Chromium: tests of the reports' pages will be skipped (Debian: chromium-headless-shell)"
    return
  fi
  (install_packages chromium-headless-shell fonts-dejavu-core) \
    || say "this distribution has no chromium-headless-shell: tests of pages will be skipped"
}

# The tests run jobs on a Slurm of their own, and look into squashfs files, 13 MB.
ensure_slurm() {
  local -a packages=()
  PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null || packages+=(slurm-wlm munge)
  command -v mksquashfs >/dev/null || packages+=(squashfs-tools)
  if ((${#packages[@]} == 0)); then return; fi
  if ! is_debian || ((EUID != 0)); then
    say "no Slurm: its tests will be skipped (as root on Debian: apt-get install ${packages[*]})"
    return
  fi
  (install_packages "${packages[@]}") \
    || say "this distribution has no ${packages[*]}: tests of Slurm will be skipped"
}

# The tests of Ansible log in to hosts of their own: network namespaces with an sshd each.
ensure_ssh() {
  local -a packages=()
  PATH=$PATH:/usr/sbin command -v sshd >/dev/null || packages+=(openssh-server)
  command -v ssh >/dev/null || packages+=(openssh-client)
  PATH=$PATH:/usr/sbin command -v ip >/dev/null || packages+=(iproute2)
  command -v gpg >/dev/null || packages+=(gpg gpg-agent)
  if ((${#packages[@]} == 0)); then return; fi
  if ! is_debian || ((EUID != 0)); then
    say "no sshd: its tests will be skipped (as root on Debian: apt-get install ${packages[*]})"
    return
  fi
  (install_packages "${packages[@]}") \
    || say "this distribution has no ${packages[*]}: tests over ssh will be skipped"
}

engine_works() {
  buildah images --quiet >/dev/null 2>&1 || docker version >/dev/null 2>&1
}

ensure_engine() {
  local -a packages=()
  if engine_works; then
    say "a container engine works"
  else
    packages+=(buildah crun)
  fi
  command -v mmdebstrap >/dev/null || packages+=(mmdebstrap)
  # The tests drive both engines, each with a store of its own.
  if [[ ${1:-} == test ]]; then
    command -v buildah >/dev/null || packages+=(buildah crun)
    command -v dockerd >/dev/null || packages+=(docker.io)
    # And registries on loopback, with and without a password, which another client logs in to.
    command -v docker-registry >/dev/null || packages+=(docker-registry)
    command -v htpasswd >/dev/null || packages+=(apache2-utils)
    command -v skopeo >/dev/null || packages+=(skopeo)
    # kubectl reads the manifests of a cluster.
    command -v kubectl >/dev/null || packages+=(kubernetes-client)
    # A prefix is loaded as an environment module, by Lmod and by environment-modules, which the
    # tests unpack themselves, as the two packages exclude each other.
    [[ -r /usr/share/lmod/lmod/init/bash ]] || packages+=(lmod)
    command -v tclsh >/dev/null || packages+=(tcl)
    command -v zsh >/dev/null || packages+=(zsh)
    # Signatures are checked with a tool that is not ours.
    command -v openssl >/dev/null || packages+=(openssl)
  fi
  command -v git >/dev/null || packages+=(git)
  if ((${#packages[@]} == 0)); then return; fi
  if ! is_debian; then
    say "this is neither Debian nor Ubuntu; install yourself: ${packages[*]}"
  elif ((EUID != 0)); then
    say "not root; images need these packages (sudo apt-get install ${packages[*]} uidmap)"
  else
    install_packages "${packages[@]}"
    engine_works || say "buildah is installed but cannot open its storage; see docs/build.md"
  fi
}

main() {
  ensure_python
  ensure_venv
  if [[ ${TDSTACK_TOOLS:-all} != node ]]; then ensure_engine "${1:-}"; fi
  case ${1:-} in lint | smoke | test) ensure_torch ;; esac
  case ${1:-} in smoke | test) ensure_models ;; esac
  if [[ ${1:-} == test ]]; then
    ensure_browser
    ensure_slurm
    ensure_ssh
  fi
  if (($# > 0)); then
    cd -- "$root"
    exec "$venv/bin/invoke" "$@"
  fi
  say "ready: .venv/bin/invoke --list"
}

main "$@"
