"""--fix: what can be mended safely, each as one swap that happens or does not."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..environment import Environment, ask
from .constraints import check_constraints, constraints_path, constraints_text, pip_conf_text
from .diagnosis import Diagnosis, diagnose, remedy_of
from .judge import Verdict, judge
from .ownership import Claim, SiteState, look
from .repair import foreign, mendable_alone, removals
from .swap import recover, staging, swap

Installer = Callable[[Diagnosis], str]


class MendError(Exception):
    """Nothing was changed; `remedy` is what a person should do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


def mend(environment: Environment, expected: str, installer: Installer | None) -> list[str]:
    """Make the environment's Triton what is expected; return what was done, in words.

    `installer` puts Triton-distributed in place of what is there and returns its label.
    Raises: MendError when that takes a person or a wheel; SwapError when files cannot be moved.
    In both cases the environment is as it was.
    """
    done = []
    for site in environment.sites:
        if recover(site):
            done.append(f"put back what an interrupted install had moved in {site}")
    diagnosis = diagnose(environment, expected)
    judgement, state = diagnosis.judgement, diagnosis.state
    if refusal := foreign(state):
        raise MendError(refusal.why, refusal.remedy)
    if judgement.verdict.value != diagnosis.expected:
        if _enough_to_remove(diagnosis):
            if state.site != environment.site:
                raise MendError(
                    f"the Triton that counts lies in {state.site}, outside this environment",
                    "mend that one: --prefix with its own folder",
                )
            assert judgement.keeper is not None
            done.append(_remove(state, judgement.keeper))
        elif diagnosis.expected == "distributed" and installer:
            done.append(f"installed {installer(diagnosis)} in place of what was there")
        else:
            raise MendError(
                f"the right files of {diagnosis.expected} Triton are not here", remedy_of(diagnosis)
            )
    done += _hold(environment, expected)
    after = diagnose(environment, expected)
    if after.strays:
        raise MendError(
            "; ".join(p.what for p in after.strays),
            "remove it there, or unset what makes Python look there; only the environment's own "
            "folder of packages is mended",
        )
    return done


def settings(environment: Environment, version: str, folder: Path) -> Mapping[Path, Path]:
    """Stage constraints and pip.conf in `folder`; return where each is to go."""
    path = constraints_path(environment.prefix)
    conf = environment.prefix / "pip.conf"
    (folder / "constraints.txt").write_text(constraints_text(version))
    present = conf.read_text() if conf.exists() else ""
    text = pip_conf_text(present, path, () if present else _inherited(environment))
    (folder / "pip.conf").write_text(text)
    return {path: folder / "constraints.txt", conf: folder / "pip.conf"}


def _enough_to_remove(diagnosis: Diagnosis) -> bool:
    keeper = diagnosis.judgement.keeper
    if diagnosis.expected == "stock":
        return keeper is not None and diagnosis.judgement.library == "stock"
    return mendable_alone(diagnosis.judgement)


def _remove(state: SiteState, keeper: Claim) -> str:
    outs = removals(state, keeper)

    def check() -> None:
        found = judge(look(state.site))
        if found.verdict not in (Verdict.DISTRIBUTED, Verdict.STOCK):
            why = "; ".join(p.what for p in found.problems)
            raise MendError(f"removing {len(outs)} files is not enough: {why}", "")

    with staging(state.site):
        swap(state.site, outs, {}, check)
    names = ", ".join(sorted(str(p).removeprefix(f"{state.site}/") for p in outs)[:4])
    return f"removed what does not belong to {keeper.owner.label}: {names}"


def _hold(environment: Environment, expected: str) -> list[str]:
    """Write constraints that are missing or of another Triton."""
    diagnosis = diagnose(environment, expected)
    keeper = diagnosis.judgement.keeper
    if diagnosis.judgement.verdict is not Verdict.DISTRIBUTED or keeper is None:
        return []
    version = keeper.owner.version
    if all(f.ok for f in check_constraints(environment, version)):
        return []
    site = diagnosis.state.site
    with staging(site) as folder:
        ins = settings(environment, version, folder)
        swap(site, [p for p in ins if p.exists()], ins)
    return [f"wrote the constraints that hold triton {version}"]


def _inherited(environment: Environment) -> tuple[str, ...]:
    answer = ask([str(environment.python), "-m", "pip", "config", "list"])
    found: dict[str, str] = {}
    for section, value in re.findall(
        r"(?m)^(install|global)\.constraint=(['\"].*['\"])$", answer.out
    ):
        try:
            found[section] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    return tuple(found.get("install", found.get("global", "")).split())
