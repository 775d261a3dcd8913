"""Which Triton an environment has, why that is right or wrong, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..environment import Environment
from ..finding import Finding, failed, passed
from ..installed import Distribution
from .constraints import check_constraints, constraints_path
from .fork import LABEL
from .judge import Judgement, Problem, Verdict, judge, shadows
from .ownership import SiteState, look
from .repair import foreign, mendable_alone
from .swap import pending

WHERE = """
import importlib.util
spec = importlib.util.find_spec("triton")
print("" if spec is None else spec.origin or list(spec.submodule_search_locations)[0])
"""


@dataclass(frozen=True)
class Diagnosis:
    """An environment's Triton: the folder that counts, its judgement, and what was expected."""

    environment: Environment
    state: SiteState
    others: tuple[SiteState, ...]
    judgement: Judgement
    expected: str
    origin: str

    @property
    def right(self) -> bool:
        """Return whether it is what was expected, and will stay."""
        return self.judgement.verdict.value == self.expected and not self.strays

    @property
    def strays(self) -> tuple[Problem, ...]:
        """Return what makes `import triton` reach another place than the folder that counts."""
        if not self.origin or _within(Path(self.origin), self.state.site):
            return ()
        text = f"import triton reaches {self.origin}, not the Triton of {self.state.site}"
        return (Problem(text),)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Return everything that is wrong, the judgement's reasons first."""
        return (*self.judgement.problems, *self.strays)


def diagnose(
    environment: Environment, expected: str = "", installed: Sequence[Distribution] | None = None
) -> Diagnosis:
    """Look at the Triton of an environment. Imports nothing of it.

    `expected` is distributed or stock; empty: distributed if there is any trace of it.
    """
    states = [look(s, _of(s, installed)) for s in environment.sites]
    state = shadows(states) or states[0]
    judgement = judge(state)
    return Diagnosis(
        environment,
        state,
        tuple(s for s in states if s is not state and not s.empty),
        judgement,
        expected or _meant(states, environment),
        environment.run(WHERE).out.strip(),
    )


def check_triton(diagnosis: Diagnosis, fresh: str = "") -> Iterator[Finding]:
    """One finding with the verdict, and one for each thing that is wrong.

    `fresh` is the remedy where the whole environment is easily had anew: that of an image.
    """
    judgement, expected = diagnosis.judgement, diagnosis.expected
    remedy = fresh or remedy_of(diagnosis)
    if pending(diagnosis.state.site):
        text = "an install was interrupted; its journal is there"
        yield failed("triton swap", text, "tdstack-verify --fix puts the old state back")
    for other in diagnosis.others:
        # A venv that sees the system's packages: its own come first.
        yield passed("triton elsewhere", f"{judge(other).verdict} in {other.site}; not reached")
    if diagnosis.right and judgement.keeper:
        owner = judgement.keeper.owner.label
        yield passed("triton", f"{judgement.verdict}: {owner} owns every file of Triton, alone")
    elif diagnosis.right:
        yield passed("triton", "there is none in this environment, and nothing that says otherwise")
    else:
        found = judgement.verdict.value
        text = f"{found}, where {expected} is expected" if found != expected else found
        yield failed("triton", text, remedy)
    for problem in diagnosis.problems:
        code = 4 if problem.damaged else 1
        yield failed("triton files", problem.what, remedy, code, problem.symptom)
    if judgement.verdict is Verdict.DISTRIBUTED and judgement.keeper:
        yield from check_constraints(diagnosis.environment, judgement.keeper.owner.version)


def remedy_of(diagnosis: Diagnosis) -> str:
    """Return what mends the environment."""
    refusal = foreign(diagnosis.state)
    if refusal:
        return refusal.remedy
    if diagnosis.expected == "stock":
        return (
            "python -m pip uninstall -y triton triton_dist, remove what is left of "
            f"{diagnosis.state.site}/triton, then python -m pip install triton"
        )
    if mendable_alone(diagnosis.judgement):
        return "tdstack-verify --fix removes what does not belong there"
    keeper = diagnosis.judgement.keeper
    if keeper and diagnosis.judgement.library == "distributed":
        return "tdstack-verify --fix puts the same files in under the name `triton`"
    return "tdstack-verify --fix --wheel FILE puts Triton-distributed back, alone"


def _of(site: Path, installed: Sequence[Distribution] | None) -> list[Distribution] | None:
    return None if installed is None else [d for d in installed if d.info.parent == site]


def _meant(states: Sequence[SiteState], environment: Environment) -> str:
    if constraints_path(environment.prefix).exists():
        return "distributed"
    for state in states:
        forked = any(d.name == "triton-dist" or LABEL in d.version for d in state.related)
        if forked or state.library == "distributed" or "triton_dist" in state.folders:
            return "distributed"
    return "absent" if all(s.empty for s in states) else "stock"


def _within(path: Path, folder: Path) -> bool:
    return folder in path.parents
