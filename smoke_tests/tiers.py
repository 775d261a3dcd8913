"""The tiers, which of them this host can run, and on which ranks."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smoke_tests.checks.registry import Check
from smoke_tests.kinds import Kind
from smoke_tests.records import TIERS, Skip, Tier
from smoke_tests.report import installed_version

RANKS: Final = (1, 2, 4, 8)
_CPU_RANKS: Final = 4
_LAST_WITH_OLD_NUMPY: Final = (3, 6)
"""Interpreters of Triton up to this version end in a TypeError with numpy from 2.4 on."""


@dataclass(frozen=True)
class Setting:
    """One set of ranks of a tier."""

    tier: Tier
    kind: Kind
    world_size: int

    @property
    def id(self) -> str:
        """Return how the names of its checks begin."""
        kind = "" if self.kind == self.tier else f"-{self.kind}"
        return f"{self.tier}{kind}-w{self.world_size}"

    @property
    def one_gpu(self) -> bool:
        """Whether all of its ranks share one GPU."""
        return self.tier == "gpu"


@dataclass(frozen=True)
class Host:
    """What decides which tiers can run here.

    Attributes:
        packages: which of torch, numpy, triton and pytest are installed.
        gpus: how many torch sees.
        torch: its version, or empty.
        cubins: whether a bundle of cubins is installed or named.
        interpreter: why Triton's interpreter fails here; empty where it does not.
    """

    packages: frozenset[str]
    gpus: int
    torch: str
    cubins: bool
    interpreter: str = ""


@dataclass(frozen=True)
class Selection:
    """The tiers that run, and those that do not."""

    run: tuple[Tier, ...]
    skips: tuple[Skip, ...]
    impossible: str = ""
    """Why the tier that was asked for cannot run; empty where it can."""


def lacking(tier: Tier, host: Host) -> str:
    """Return why a tier cannot run on a host; empty if it can. Pure."""

    def absent(*names: str) -> str:
        missing = [name for name in names if name not in host.packages]
        return f"not installed: {', '.join(missing)}" if missing else ""

    if tier == "import":
        return ""
    if tier == "compile":
        return "" if host.cubins else absent("triton") and "no Triton, and no bundle of cubins"
    if tier == "cpu":
        return absent("torch", "triton", "numpy") or host.interpreter
    if tier == "multi-node":
        return "it is started on every node by a launcher: see docs/smoke-places.md"
    if why := absent("torch", "numpy"):
        return why
    least = 2 if tier == "multi-gpu" else 1
    if host.gpus >= least:
        return ""
    return f"torch {host.torch} sees {('no GPU', 'one GPU')[host.gpus]}"


def select(asked: str, host: Host) -> Selection:
    """Return what runs: the tier and those below it; nothing asked for is all that can. Pure."""
    wanted = TIERS[: TIERS.index(asked) + 1] if asked else TIERS
    reasons: Mapping[Tier, str] = {tier: lacking(tier, host) for tier in wanted}
    if asked and (why := reasons[asked]):  # type: ignore[index]
        return Selection((), (Skip(asked, why),), why)  # type: ignore[arg-type]
    return Selection(
        tuple(tier for tier, why in reasons.items() if not why),
        tuple(Skip(tier, why) for tier, why in reasons.items() if why),
    )


def this_host() -> Host:
    """Look at this host."""
    packages = frozenset(n for n in ("torch", "numpy", "triton") if importlib.util.find_spec(n))
    gpus = _gpus() if "torch" in packages else 0
    triton = installed_version("triton", "triton-dist") or ""
    fails = interpreter_fails(triton, installed_version("numpy") or "")
    return Host(packages, gpus, installed_version("torch") or "", _has_cubins(), fails)


def interpreter_fails(triton: str, numpy: str) -> str:
    """Return why an interpreter of Triton fails with a numpy, from versions; or nothing. Pure."""
    numbers = [re.match(r"(\d+)\.(\d+)", text) for text in (triton, numpy)]
    of_triton, of_numpy = ((int(n[1]), int(n[2])) if n else None for n in numbers)
    if not of_triton or not of_numpy or of_triton > _LAST_WITH_OLD_NUMPY or of_numpy < (2, 4):
        return ""
    return f"numpy {numpy}: the interpreter of Triton {triton} needs numpy < 2.4"


def _gpus() -> int:
    # Importing torch takes seconds; without a driver it would find none.
    if not any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")):
        return 0
    import torch

    return torch.cuda.device_count()


def host_archs() -> list[str]:
    """Return the architectures of this host's GPUs, as ``sm_90``."""
    count = _gpus()
    if not count:
        return []
    import torch

    found = (torch.cuda.get_device_capability(i) for i in range(count))
    return sorted({f"sm_{major}{minor}" for major, minor in found})


def _has_cubins() -> bool:
    try:
        from gemm_allreduce.bundle import installed_bundles, named_bundle

        return bool(named_bundle() or installed_bundles())
    except Exception:  # the tier import says what is wrong
        return False


def settings(tier: Tier, ranks: int) -> list[Setting]:
    """Return every set of ranks of a tier; `ranks` 0 takes its defaults.

    cpu: processes in Triton's interpreter. gpu: virtual ranks, and processes over NVSHMEM that
    share one GPU. multi-gpu: a process per GPU over NVSHMEM and over PyTorch's symmetric memory.
    """
    if tier == "cpu":
        return [Setting(tier, "cpu", ranks or _CPU_RANKS)]
    if tier == "gpu":
        virtual = [Setting(tier, "virtual", w) for w in ([ranks] if ranks else [1, 2, 4, 8])]
        shared = [Setting(tier, "nvshmem", w) for w in ([ranks] if ranks else [2, 4])]
        return virtual + shared
    if tier == "multi-gpu":
        count = ranks or max(w for w in RANKS if w <= max(1, _gpus()))
        # From the bottom up: `symmetric` has the checks of GPUs, driver and NCCL (layers.py).
        return [Setting(tier, "symmetric", count), Setting(tier, "nvshmem", count)]
    return []


def settings_of_checks(
    tier: Tier, ranks: int, checks: Sequence[Check]
) -> list[tuple[Setting, Check]]:
    """Return the checks on every set of ranks of a tier, set by set: ranks take long to start.

    Some have numbers of ranks of their own on CPUs, unless `ranks` says how many.
    """
    usual = settings(tier, ranks)
    if tier != "cpu" or ranks:
        return [(setting, check) for setting in usual for check in checks]
    own = {w for check in checks for w in check.interpreted_ranks}
    counts = dict.fromkeys([*(s.world_size for s in usual), *sorted(own)])
    return [
        (Setting(tier, "cpu", w), check)
        for w in counts
        for check in checks
        if w in (check.interpreted_ranks or [s.world_size for s in usual])
    ]
