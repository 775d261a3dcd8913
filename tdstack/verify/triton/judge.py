"""From who owns which file to a verdict, in the words of those who meet the trouble. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..symptoms import known
from .fork import FORK_NAME, LABEL, LIBRARY, Library
from .ownership import Claim, SiteState, is_alias

# What users of such an environment read.
CLOBBERED = known("fork-clobbered").symptom
NAMESPACE = known("fork-namespace").symptom
STALE = known("fork-stale").symptom
NO_LIBRARY = known("fork-no-library").symptom
UNSEEN = known("fork-unseen").symptom


class Verdict(StrEnum):
    """What an environment's Triton is.

    ABSENT: there is none. STOCK, DISTRIBUTED: exactly one distribution owns every file, all of
    them are there with their bytes, and it will stay. UNPROTECTED: the fork is whole, but under
    a name that the next install replaces. BROKEN: anything else, even if it still works today.
    """

    ABSENT = "absent"
    STOCK = "stock"
    DISTRIBUTED = "distributed"
    UNPROTECTED = "unprotected"
    BROKEN = "broken"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `damaged` when bytes are not those that were installed."""

    what: str
    symptom: str = ""
    damaged: bool = False


@dataclass(frozen=True)
class Judgement:
    """The verdict, its reasons, and the claim that would be right if all else were gone.

    `library` is whose library is on disk.
    """

    verdict: Verdict
    library: Library
    problems: tuple[Problem, ...] = ()
    keeper: Claim | None = None


def judge(state: SiteState) -> Judgement:
    """Judge one folder of packages."""
    keeper = _keeper(state)
    problems = (*_tree_problems(state), *_claim_problems(state, keeper), *_metadata_problems(state))
    if state.empty and not problems:
        return Judgement(Verdict.ABSENT, state.library)
    if problems or keeper is None:
        found = problems or (Problem("nobody owns a whole Triton here"),)
        return Judgement(Verdict.BROKEN, state.library, found, keeper)
    if state.library == "stock":
        return Judgement(Verdict.STOCK, state.library, (), keeper)
    if _labelled(keeper):
        return Judgement(Verdict.DISTRIBUTED, state.library, (), keeper)
    weak = Problem(
        f"Triton-distributed is installed as {keeper.owner.label}; the next install that needs "
        "triton puts stock Triton over its files",
        UNSEEN if keeper.owner.name == FORK_NAME else "",
    )
    return Judgement(Verdict.UNPROTECTED, state.library, (weak,), keeper)


def shadows(states: Sequence[SiteState]) -> SiteState | None:
    """Return the state that `import triton` reaches: the first with a package, else a folder."""
    for state in states:
        if state.importable:
            return state
    return next((s for s in states if not s.empty), None)


def _labelled(claim: Claim) -> bool:
    return claim.owner.name == "triton" and LABEL in claim.owner.version


def _keeper(state: SiteState) -> Claim | None:
    """Return the whole claim that holds the library: the labelled fork first, stock last."""
    whole = [c for c in state.claims if c.whole and c.has_library]
    whole.sort(key=lambda c: (not _labelled(c), c.owner.name != FORK_NAME))
    return whole[0] if whole else None


def _tree_problems(state: SiteState) -> list[Problem]:
    problems = []
    if "triton" in state.folders and not state.importable:
        problems.append(
            Problem(
                f"{state.site / 'triton'} is left over without its __init__.py: an empty "
                "namespace package",
                NAMESPACE,
            )
        )
    elif state.importable and state.library == "none":
        problems.append(Problem(f"there is no {LIBRARY}", NO_LIBRARY))
    if state.leftovers:
        problems.append(Problem(f"no distribution owns {_shown(state, state.leftovers)}"))
    bare = [f for f in state.folders if not any((state.site / f) in p.parents for p in state.files)]
    if "triton_dist" in bare or "little_kernel" in bare:
        problems.append(Problem(f"empty folders are left over: {', '.join(bare)}"))
    return problems


def _claim_problems(state: SiteState, keeper: Claim | None) -> list[Problem]:
    problems = []
    for claim in state.claims:
        owner = claim.owner
        if owner.name == FORK_NAME and not claim.has_library:
            problems.append(
                Problem(
                    f"{owner.label} has no {LIBRARY}, yet it owns triton/: the package of that "
                    "name on the index, which breaks Triton",
                    CLOBBERED,
                )
            )
        elif _forked(claim) and state.library == "stock":
            problems.append(
                Problem(
                    f"stock Triton lies over {owner.label}: {len(claim.lost)} of its files are "
                    "gone or replaced",
                    CLOBBERED,
                    damaged=True,
                )
            )
        elif claim.lost:
            text = f"{len(claim.lost)} files of {owner.label} are gone or changed: "
            problems.append(Problem(text + _shown(state, frozenset(claim.lost)), damaged=True))
    if len(state.claims) > 1:
        names = " and ".join(c.owner.label for c in state.claims)
        shared = [p for p, claims in state.owned.items() if len(claims) > 1]
        problems.append(
            Problem(
                f"{names} own {len(shared)} files together: removing one takes the other's files"
                if shared
                else f"{names} both own files of Triton"
            )
        )
    if keeper and _labelled(keeper) and state.library == "stock":
        problems.append(Problem(f"{keeper.owner.label} holds stock Triton's library", CLOBBERED))
    return problems


def _forked(claim: Claim) -> bool:
    return (
        claim.has_library
        and bool(claim.lost)
        and (claim.owner.name == FORK_NAME or LABEL in claim.owner.version)
    )


def _metadata_problems(state: SiteState) -> list[Problem]:
    claimants = {c.owner.info for c in state.claims}
    problems = []
    for dist in state.related:
        if dist.editable:
            over = f"; {state.claims[0].owner.label} goes before it" if state.claims else ""
            problems.append(
                Problem(f"{dist.label} is an editable install from {dist.editable}{over}")
            )
        elif dist.info not in claimants and not is_alias(dist):
            problems.append(Problem(f"{dist.label} is metadata only: its files are not recorded"))
    alias = state.alias
    labelled = [c.owner.version for c in state.claims if _labelled(c)]
    if alias and alias.version not in labelled:
        problems.append(
            Problem(
                f"{alias.label} was installed here, and its triton {alias.version} is gone",
                CLOBBERED if state.library == "stock" else "",
            )
        )
    if state.stale_backends:
        names = ", ".join(state.stale_backends)
        problems.append(Problem(f"entry points name modules that are not there: {names}", STALE))
    return problems


def _shown(state: SiteState, paths: frozenset[Path]) -> str:
    names = sorted(str(p).removeprefix(f"{state.site}/") for p in paths)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
