"""JUnit XML of a run: a suite per tier. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from smoke_tests.bands import describe, explain, show_band
from smoke_tests.records import Check, Measure, RankState, Result
from tdstack.smoke.summary import TierSummary, summarize
from tdstack.smoke.text import clean


def junit(result: Result) -> str:
    """Return the run as JUnit XML.

    A tier that was skipped is a suite with one skipped case; a check that was left out is a skipped
    case too. Checks that hung or died are errors; those that failed, and measures outside their
    bands, are failures; measures without a band are not there. A run that was cut off, or failed
    with every check passed, has a suite ``run`` with an error.
    """
    summary = summarize(result)
    root = ET.Element("testsuites", name=clean(f"smoke {result.run.host}"))
    for tier in summary.tiers:
        _add_tier(root, result, tier)
    if summary.state == "cut off" or (summary.state == "failed" and not _has_fault(root)):
        suite = ET.SubElement(root, "testsuite", name="run")
        case = ET.SubElement(suite, "testcase", classname="run", name="verdict", time="0")
        ET.SubElement(case, "error", message=clean(summary.headline), type=summary.state)
    for suite in root:
        _count(suite)
    _count(root)
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, "unicode")}\n'


def say_ranks(ranks: tuple[RankState, ...]) -> str:
    """Return what ranks said, a paragraph each."""
    return "\n".join(
        f"rank {rank.rank} {rank.state}"
        + (f" at {rank.step!r}" if rank.step else "")
        + (f": {rank.detail}" if rank.detail else "")
        for rank in ranks
    )


def _add_tier(root: ET.Element, result: Result, tier: TierSummary) -> None:
    suite = ET.SubElement(root, "testsuite", name=tier.tier)
    for check in result.checks:
        if check.tier == tier.tier:
            _add_check(suite, check)
    for measure in result.measures:
        if measure.tier == tier.tier and measure.outcome != "unjudged":
            _add_measure(suite, measure)
    for left in result.left_out:
        if left.tier == tier.tier:
            name = clean(left.check)
            case = ET.SubElement(suite, "testcase", classname=left.tier, name=name, time="0")
            ET.SubElement(case, "skipped", message=clean(left.reason))
    if tier.state == "skipped":
        case = ET.SubElement(suite, "testcase", classname=tier.tier, name=tier.tier, time="0")
        ET.SubElement(case, "skipped", message=clean(tier.reason))


def _add_check(suite: ET.Element, check: Check) -> None:
    seconds = f"{check.seconds:.3f}"
    name = clean(check.name)
    case = ET.SubElement(suite, "testcase", classname=check.tier, name=name, time=seconds)
    if check.outcome == "passed":
        if check.detail:
            ET.SubElement(case, "system-out").text = clean(check.detail)
        return
    kind = "failure" if check.outcome == "failed" else "error"
    first = check.detail.strip().partition("\n")[0] or check.outcome
    fault = ET.SubElement(case, kind, message=clean(first), type=check.outcome)
    fault.text = clean("\n".join(filter(None, (check.detail, say_ranks(check.ranks)))))


def _add_measure(suite: ET.Element, measure: Measure) -> None:
    name = clean(f"{describe(measure)} in {show_band(measure)} {measure.unit}")
    case = ET.SubElement(suite, "testcase", classname=measure.tier, name=name, time="0")
    if measure.outcome == "failed":
        ET.SubElement(case, "failure", message=clean(explain(measure)), type="band")


def _has_fault(root: ET.Element) -> bool:
    return any(True for kind in ("failure", "error") for _ in root.iter(kind))


def _count(element: ET.Element) -> None:
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(case.find(kind) is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
