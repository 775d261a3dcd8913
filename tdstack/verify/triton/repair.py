"""What has to go so that one Triton is left. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .fork import LABEL, NAMES, PACKAGES
from .judge import Judgement, Verdict
from .ownership import Claim, SiteState


@dataclass(frozen=True)
class Unrepairable:
    """Why nothing is done, and what a person should do."""

    why: str
    remedy: str


def foreign(state: SiteState) -> Unrepairable | None:
    """Return the refusal when a distribution that is no Triton owns files of Triton."""
    for claim in state.claims:
        if claim.owner.name not in NAMES:
            return Unrepairable(
                f"{claim.owner.label} owns {len(claim.files)} files below triton/",
                f"uninstall it first (pip uninstall {claim.owner.name}); what it needs of them "
                "is not known here",
            )
    return None


def removals(state: SiteState, keep: Claim | None) -> list[Path]:
    """Return the paths that must go so that only `keep` is left, or nothing of Triton at all.

    Whole folders where everything in them goes. Distributions that are no Triton keep their
    files; call foreign() first.
    """
    kept = frozenset(f.path for f in keep.owner.files) if keep else frozenset()
    gone: dict[Path, None] = {}
    if keep is None:
        gone |= dict.fromkeys(p for package in PACKAGES if _there(p := state.site / package))
    else:
        gone |= dict.fromkeys(sorted(state.leftovers))
        for package in PACKAGES:
            folder = state.site / package
            if folder.is_dir() and not any(folder in p.parents for p in kept):
                gone[folder] = None
    claimants = [c.owner for c in state.claims]
    for dist in state.related:
        if keep and dist.info == keep.owner.info:
            continue
        matching = keep is not None and LABEL in dist.version and dist.version == keep.owner.version
        if dist not in claimants and not dist.editable and matching:
            continue  # the alias of what stays
        for file in dist.files:
            if file.path not in kept and _there(file.path):
                gone[file.path] = None
        gone[dist.info] = None
    folders = [p for p in gone if p.is_dir() and not p.is_symlink()]
    return [p for p in gone if not any(f in p.parents for f in folders)]


def mendable_alone(judgement: Judgement) -> bool:
    """Return whether removing what is too much is enough: the right Triton is whole."""
    keeper = judgement.keeper
    if judgement.verdict is not Verdict.BROKEN or keeper is None:
        return False
    return keeper.owner.name == "triton" and LABEL in keeper.owner.version


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
