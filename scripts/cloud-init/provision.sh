#!/usr/bin/env bash
# From a fresh Debian or Ubuntu machine to a verdict, and on every later boot to the verdict again.
#
#   /etc/tdstack/cluster.env     which image (docs/cluster.md)
#   /etc/tdstack/provision.env   how; written by scripts/cloud-init/render
#   /var/lib/tdstack/verdict.json, doctor.json, smoke.json   what came of it
#
# What is there is left alone. Exit codes: 0 fit, 1 a check failed, 2 a setting is missing,
# 3 something is missing on this machine, 4 a file is not the one that was named, 5 out of reach.
set -euo pipefail

config=${TDSTACK_CONFIG:-/etc/tdstack}
state=${TDSTACK_STATE:-/var/lib/tdstack}
sources=${TDSTACK_SOURCES:-/opt/tdstack-checkout}
step=start message=""

say() { printf 'tdstack: %s\n' "$*" >&2; }

# The exit code, what happened, what to do.
die() {
  message="$2; $3"
  say "error: $2"
  say "  remedy: $3"
  exit "$1"
}

# Written last and whole, however this ends: a machine without it has no verdict.
conclude() {
  local code=$?
  # Each boot begins without a verdict, so this one is never an older one's.
  FIT=$([[ $code == 0 ]] && printf true || printf false) CODE=$code STEP=$step MESSAGE=$message \
    IMAGE=${TDSTACK_IMAGE:-} STATE=$state python3 - <<'PYTHON'
import json, os, pathlib, time

state = pathlib.Path(os.environ["STATE"])

def bad(name):
    try:
        findings = json.loads((state / f"{name}.json").read_text())["findings"]
        return [f["check"] for f in findings if f["severity"] in ("failure", "missing")]
    except (OSError, ValueError, KeyError, TypeError):
        return []

verdict = {
    "schema": 1,
    "fit": os.environ["FIT"] == "true",
    "exit_code": int(os.environ["CODE"]),
    "step": os.environ["STEP"],
    "message": os.environ["MESSAGE"],
    "failed": bad("doctor"),
    "image": os.environ["IMAGE"],
    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
}
draft = state / ".verdict.json"
draft.write_text(json.dumps(verdict, indent=2, sort_keys=True) + "\n")
draft.replace(state / "verdict.json")
PYTHON
  say "verdict: exit code $code at step $step; $state/verdict.json"
}

begin() {
  step=$1
  say "step $step"
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  [[ ! -s $config/apt.sources ]] \
    || install -m 644 "$config/apt.sources" /etc/apt/sources.list.d/tdstack.sources
  apt-get update -qq -o DPkg::Lock::Timeout=600 \
    || die 5 "the distribution's packages are out of reach" "check network, proxy and apt's sources"
  apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 "$@" >&2 \
    || die 5 "apt cannot install $*" \
      "name versions that its sources have; --apt-sources of render adds sources"
}

# Comma-separated NAME=VERSION; installs those that are not there in that version.
ensure_packages() {
  local -a wanted=() absent=()
  local package
  IFS=, read -ra wanted <<<"$1"
  for package in "${wanted[@]}"; do
    # shellcheck disable=SC2016  # dpkg-query's own syntax
    [[ $(dpkg-query -W -f '${Status} ${Version}' "${package%%=*}" 2>/dev/null) == \
      "install ok installed ${package#*=}" ]] || absent+=("$package")
  done
  ((${#absent[@]} == 0)) || install_packages "${absent[@]}"
}

has_gpu() {
  local device
  for device in /sys/bus/pci/devices/*; do
    if [[ -r $device/vendor && $(<"$device/vendor") == 0x10de && $(<"$device/class") == 0x03* ]]; then
      return 0
    fi
  done
  return 1
}

# Without packages to install, the machine's image is expected to have a driver; the doctor tells.
ensure_driver() {
  if [[ -z ${DRIVER_PACKAGES:-} ]] || ! has_gpu; then return; fi
  ensure_packages "$DRIVER_PACKAGES"
  if [[ -r /proc/driver/nvidia/version ]] || modprobe nvidia; then
    rm -f "$state/rebooted"
    return
  fi
  [[ ! -e $state/rebooted ]] || die 3 "the driver is installed and does not load, after a reboot too" \
    "look at dmesg; Secure Boot refuses modules that nobody signed"
  touch "$state/rebooted"
  message="restarted once for the new driver"
  systemctl reboot
  exit 3
}

ensure_engine() {
  [[ $WAY == image ]] || return 0
  [[ -z ${PACKAGES:-} ]] || ensure_packages "$PACKAGES"
  command -v docker >/dev/null || die 3 "this machine has no container engine" \
    "take an image of the machine that has Docker, or name it: --package docker.io=VERSION"
  if has_gpu && ! docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
    if command -v nvidia-ctk >/dev/null; then
      nvidia-ctk runtime configure --runtime=docker >&2
      systemctl restart docker
    fi
  fi
}

ensure_checkout() {
  checkout=$sources/${CHECKOUT_SHA256:0:16}
  if [[ ! -d $checkout ]]; then
    local work
    mkdir -p "$sources"
    rm -rf "$sources"/.new.*
    work=$(mktemp -d "$sources/.new.XXXXXX")
    python3 - "$CHECKOUT_URL" "$work/checkout.tar" <<'PYTHON' \
      || die 5 "the checkout cannot be fetched" "check the address and the machine's network"
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
    printf '%s  %s\n' "$CHECKOUT_SHA256" "$work/checkout.tar" | sha256sum --check --quiet >&2 \
      || die 4 "the checkout is not the one that was named" \
        "render again with the sha256 of the right file, and do not use this one"
    mkdir "$work/tree"
    tar -xf "$work/checkout.tar" -C "$work/tree" --no-same-owner
    # An archive of one folder, as most are, or of the tree itself.
    local -a top=("$work"/tree/*)
    [[ ${#top[@]} == 1 && -d ${top[0]} ]] || top=("$work/tree")
    [[ -x ${top[0]}/scripts/bootstrap.sh ]] || die 4 "the archive is no checkout of tdstack" \
      "make it with git archive"
    chmod 755 "${top[0]}"
    mv "${top[0]}" "$checkout"
    rm -rf "$work"
  fi
  cd "$checkout"
  scripts/bootstrap.sh >&2
  invoke=$checkout/.venv/bin/invoke
}

# Name of the report, then the verb. Its exit code ends this, after what it found is kept.
judged() {
  local name=$1 code=0
  shift
  "$invoke" "$@" --json >"$state/.$name.json" || code=$?
  mv "$state/.$name.json" "$state/$name.json"
  if ((code != 0)); then
    message="invoke $1 ended with $code; see $state/$name.json"
    exit "$code"
  fi
}

bring_image() {
  local -a options=(--cuda "$TDSTACK_CUDA" --triton "$TDSTACK_TRITON" --torch "$TDSTACK_TORCH")
  options+=(--platform "$TDSTACK_PLATFORM" --python "$TDSTACK_PYTHON" --engine docker)
  local arch
  # The tag names architectures where not all of the line's are in the image.
  while read -r arch; do
    options+=(--arch "$arch")
  done < <(grep -oE 'sm_[0-9]+[a-z]?' <<<"$TDSTACK_TAG" || true)
  [[ ! -s $config/key.pub ]] || options+=(--key "$config/key.pub")
  judged pull pull "${options[@]}" --registry "${TDSTACK_IMAGE%@*}" --cluster "$state/pulled.env"
  local pulled
  pulled=$(sed -n 's/^TDSTACK_IMAGE=//p' "$state/pulled.env")
  [[ $pulled == "$TDSTACK_IMAGE" ]] || die 4 "the registry has another image for this lock: $pulled" \
    "render user data from the cluster file that belongs to this checkout"
}

bring_prefix() {
  judged install install --cuda "$TDSTACK_CUDA" --triton "$TDSTACK_TRITON" \
    --torch "$TDSTACK_TORCH" --prefix "$PREFIX"
}

# The checks alone, so that kernels and Triton are the prefix's own and not the checkout's.
check_prefix() {
  local code=0
  rm -rf "$state/checks"
  mkdir "$state/checks"
  cp -r "$checkout/smoke_tests" "$state/checks/"
  cd "$state/checks"
  "$PREFIX/current/bin/python" -m smoke_tests.launch --nodes 1 --out "$state/smoke-report" >&2 \
    || code=$?
  cd "$checkout"
  if ((code != 0)); then
    message="the smoke checks ended with $code; see $state/smoke-report"
    exit "$code"
  fi
}

# Minutes, so once for an image; --smoke always repeats it at every boot.
check_stack() {
  if [[ $SMOKE == off || ($SMOKE == once && -e $state/smoked.$key) ]]; then return; fi
  rm -rf "$state/smoke-report"
  if [[ $WAY == image ]]; then
    judged smoke smoke --image "$TDSTACK_IMAGE" --engine docker --out "$state/smoke-report"
  else
    judged verify verify --prefix "$PREFIX"
    check_prefix
  fi
  touch "$state/smoked.$key"
}

main() {
  mkdir -p "$state"
  exec 9>"$state/lock"
  flock -n 9 || { say "another one is at work"; exit 3; }
  trap conclude EXIT
  trap 'message="told to end"; exit 143' TERM INT HUP
  rm -f "$state/verdict.json"
  begin settings
  local file
  for file in cluster.env provision.env; do
    [[ -r $config/$file ]] || die 2 "there is no $config/$file" "render the user data again"
    # shellcheck source=/dev/null
    . "$config/$file"
  done
  # A change of either is another machine to judge.
  key=$(cat "$config/cluster.env" "$config/provision.env" | sha256sum | cut -c1-16)
  begin driver
  ensure_driver
  begin engine
  ensure_engine
  begin checkout
  ensure_checkout
  begin "$WAY"
  "bring_$WAY"
  begin doctor
  judged doctor doctor --cuda "$TDSTACK_CUDA"
  begin smoke
  check_stack
  step=end
}

main "$@"
