"""Whether a wheel is the Triton-distributed that this stack can use: findings from facts. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from packaging.version import InvalidVersion, Version

from tdstack.errors import IntegrityError
from tdstack.fork.facts import WheelFacts, few
from tdstack.tags import numbers
from tdstack.verify.finding import Finding, failed, passed
from tdstack.verify.triton.fork import FINGERPRINT, FORK_NAME, LABEL, LIBRARY

REMEDIES = (
    "give its wheel with --wheel FILE or --wheel URL#sha256=HEX, put it into a folder named "
    "with --wheelhouse DIR, or build the control image with --triton stock"
)

OLD_TAGS = {"manylinux1_": (2, 5), "manylinux2010_": (2, 12), "manylinux2014_": (2, 17)}


@dataclass(frozen=True)
class Inspection:
    """A wheel's facts and what follows from them."""

    facts: WheelFacts
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Return the findings for which the wheel is not taken."""
        return tuple(f for f in self.findings if not f.ok)

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready data (docs/triton-distributed.md)."""
        facts = self.facts
        return {
            "schema": 1,
            "file": facts.file,
            "sha256": facts.sha256,
            "size": facts.size,
            "version": facts.version,
            "library": facts.library,
            "python": python_of(facts),
            "glibc": facts.needs.glibc if facts.needs else "",
            "glibcxx": facts.needs.glibcxx if facts.needs else "",
            "machine": facts.needs.machine if facts.needs else "",
            "tags": sorted(map(str, facts.tags)),
            "packages": list(facts.packages),
            "missing": [asdict(m) for m in facts.missing],
            "requires": list(facts.requires),
            "provenance": facts.provenance,
            "accepted": not self.refused,
            "findings": [asdict(f) for f in self.findings],
        }

    def require(self) -> None:
        """Raise IntegrityError with the worst finding, and all of them, unless it is taken."""
        if not self.refused:
            return
        first = self.refused[0]
        others = [f"{f.check}: {f.detail}" for f in self.refused[1:]]
        raise IntegrityError(
            f"{self.facts.file} {first.detail}",
            where=f"--wheel: {first.check}",
            expected=EXPECTED[first.check],
            got="; ".join(others) and "also " + "; ".join(others),
            remedy=first.remedy,
            details=self.as_dict(),
        )


EXPECTED = {
    "name": "distribution triton_dist or triton",
    "whole": "every compiled file whole, every byte as RECORD says, plain files inside the wheel",
    "fingerprint": f"{FINGERPRINT.decode()} in {LIBRARY}",
    "base": "the Triton that torch pins",
    "packages": "every package that its own code imports",
    "machine": "tags that name the machine that the library was compiled for",
    "python": "tags that name the Python that the library was compiled for",
    "label": f"a version with {LABEL} only from this toolkit's own relabelling",
}


def inspect(facts: WheelFacts, base_version: str, *, incomplete: bool = False) -> Inspection:
    """Judge a wheel. With `incomplete`, packages that its code lacks are noted, not refused."""
    findings = [*_name(facts), *_fingerprint(facts), *_whole(facts)]
    # Of a wheel that is something else altogether the rest would only distract.
    if facts.library == "distributed" and findings[0].ok:
        findings += [
            *_base(facts, base_version),
            *_python(facts),
            *_machine(facts),
            *_glibc(facts),
            *_packages(facts, incomplete),
            *_requires(facts),
        ]
    return Inspection(facts, tuple(findings))


def python_of(facts: WheelFacts) -> str:
    """Return the Python that the wheel is for, as `3.11`: the library's word before the tags'."""
    if facts.python:
        return facts.python
    tagged = {t.interpreter for t in facts.tags if re.fullmatch(r"cp3\d+", t.interpreter)}
    return f"3.{tagged.pop()[3:]}" if len(tagged) == 1 else ""


def _name(facts: WheelFacts) -> Iterator[Finding]:
    if facts.name not in ("triton", FORK_NAME):
        yield failed("name", "is not Triton-distributed by its name", REMEDIES, 4)
    elif facts.name != facts.metadata_name or not _same(facts.version, facts.metadata_version):
        text = f"is called {facts.metadata_name} {facts.metadata_version} in its metadata"
        yield failed("name", text, "give the file the name that it was built with", 4)
    else:
        yield passed("name", f"{facts.name} {facts.version}")


def _same(version: str, told: str) -> bool:
    try:
        return Version(version) == Version(told)
    except InvalidVersion:
        return False


def _fingerprint(facts: WheelFacts) -> Iterator[Finding]:
    if facts.library == "none":
        text = f"has no {LIBRARY}"
        if facts.name == FORK_NAME:
            text += ": Python files only, like the index's triton-dist 0.0.0, which breaks Triton"
        yield failed("fingerprint", text, REMEDIES, 4)
    elif facts.library == "stock":
        yield failed("fingerprint", "is stock Triton, not Triton-distributed", REMEDIES, 4)
    else:
        yield passed("fingerprint", f"{FINGERPRINT.decode()} is in {LIBRARY}")


def _whole(facts: WheelFacts) -> Iterator[Finding]:
    again = "get the file again, and compare its sha256 with its source's"
    if facts.broken:
        yield failed(
            "whole", f"holds compiled files that are cut short: {few(facts.broken)}", again, 4
        )
    elif facts.flaws:
        yield failed("whole", "; ".join(facts.flaws), again, 4)
    elif facts.mismatched:
        text = f"holds other bytes than its RECORD says: {few(facts.mismatched)}"
        yield failed("whole", text, again, 4)
    elif facts.unrecorded:
        yield passed("whole", f"RECORD does not name {few(facts.unrecorded)}; it will")
    else:
        yield passed("whole", "every file has the bytes that RECORD says")


def _base(facts: WheelFacts, base_version: str) -> Iterator[Finding]:
    if facts.base_version != base_version:
        text = f"is Triton {facts.base_version}, and torch pins {base_version}"
        yield failed("base", text, f"give a Triton-distributed that is built on {base_version}", 4)
    elif LABEL in facts.version and not facts.labelled:
        text = f"carries the label {LABEL}, but not the provenance that goes with it"
        yield failed("label", text, "give the wheel as it was built", 4)
    else:
        yield passed("base", f"Triton {base_version}, the one that torch pins")


def _python(facts: WheelFacts) -> Iterator[Finding]:
    tagged = {t.interpreter for t in facts.tags}
    wanted = f"cp{facts.python.replace('.', '')}"
    if facts.python and wanted not in tagged:
        text = f"is tagged {', '.join(sorted(tagged))}, but compiled for Python {facts.python}"
        yield failed("python", text, f"give a wheel whose tags are true, with {wanted}", 4)
    else:
        yield passed("python", f"for Python {python_of(facts) or 'of any version'}")


def _machine(facts: WheelFacts) -> Iterator[Finding]:
    if facts.needs is None:
        return
    machine, platforms = facts.needs.machine, sorted({t.platform for t in facts.tags})
    if any(p.endswith(f"_{machine}") for p in platforms):
        yield passed("machine", f"for {machine}")
    else:
        text = f"is tagged {', '.join(platforms)}, but compiled for {machine}"
        yield failed("machine", text, "give a wheel whose tags are true", 4)


def _glibc(facts: WheelFacts) -> Iterator[Finding]:
    if facts.needs is None:
        return
    promised = [p for t in facts.tags if (p := _promised(t.platform))]
    lowest = min(promised, default=())
    needs = facts.needs
    text = f"needs glibc {needs.glibc or 'of any version'}"
    if needs.glibcxx:
        text += f", GLIBCXX {needs.glibcxx}"
    if lowest and numbers(needs.glibc) > lowest:
        text += f"; its tag promises {'.'.join(map(str, lowest))} and lies"
    yield passed("glibc", text)


def _promised(platform: str) -> tuple[int, ...]:
    """Return the glibc that a platform tag promises to do with, as numbers (PEP 600)."""
    if match := re.match(r"manylinux_(\d+)_(\d+)_", platform):
        return int(match[1]), int(match[2])
    return next((glibc for old, glibc in OLD_TAGS.items() if platform.startswith(old)), ())


def _packages(facts: WheelFacts, incomplete: bool) -> Iterator[Finding]:
    needed = [m for m in facts.missing if m.needed]
    other = sorted({m.module for m in facts.missing if not m.needed})
    note = f"; not on the way of what the stack imports: {few(other)}" if other else ""
    if needed:
        first = needed[0]
        why = f", which {first.importer} imports" if first.importer else ""
        modules = sorted({m.module for m in needed})
        text = f"lacks {few(modules)}{why}"
        if incomplete:
            yield passed("packages", f"{text}; taken all the same, as --incomplete says{note}")
        else:
            yield failed(
                "packages",
                text + note,
                "build it with every package (setup.py lists them by hand), leave --wheel out to "
                "build the pinned commit with them, or take it as it is with --incomplete: "
                "`triton` itself works, `triton_dist` will not import",
                4,
            )
    else:
        yield passed("packages", ", ".join(facts.packages) + note)


def _requires(facts: WheelFacts) -> Iterator[Finding]:
    dropped = [r for r in facts.requires if of_the_builder(r)]
    if dropped:
        text = f"requirements of the machine that built it, left out: {', '.join(dropped)}"
        yield passed("requires", text)


def of_the_builder(requirement: str) -> bool:
    """Return whether a requirement is there only because the builder had nvidia-smi on PATH.

    setup.py of Triton-distributed adds the CUDA and NVSHMEM packages, in versions of its own, if
    and only if it finds that program; the stack's lock decides on these versions.
    """
    name = re.match(r"[\w.-]+", requirement)
    return bool(name and re.match(r"(nvidia|cuda|nvshmem4py)([-_.]|$)|cython$", name[0].lower()))
