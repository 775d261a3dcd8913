"""Pages that need nothing but themselves: no script, no fetch, light, dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from smoke_tests.bands import show_band
from smoke_tests.records import TIERS, Measure, Result
from tdstack.smoke.charts import heat_map, line_chart
from tdstack.smoke.summary import MARKS, summarize
from tdstack.smoke.text import clean
from tdstack.smoke.views import lines_over_m, matrices, others, show_labels

_TEMPLATES = Path(__file__).with_name("templates")


def run_page(result: Result) -> str:
    """Return one run as a page. Pure, apart from reading the templates."""
    return render(
        "run.html.j2",
        title=f"Smoke test of {result.run.host}",
        run=result.run,
        devices=show_devices(result.run.machine),
        summary=summarize(result),
        checks=[
            (tier, rows)
            for tier in TIERS
            if (rows := [check for check in result.checks if check.tier == tier])
        ],
        evidence=result.evidence,
        lines=[line_chart(view) for view in lines_over_m(result.measures)],
        maps=[heat_map(view) for view in matrices(result.measures)],
        others=others(result.measures),
        machine=list(flatten(result.run.machine)),
    )


def render(template: str, **values: Any) -> str:
    """Return a template's text; whatever is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters |= {
        "band": show_band,
        "css": lambda state: state.replace(" ", "-"),
        "labels": lambda labels: show_labels(labels.items()),
        "mark": lambda state: MARKS[state],
        "number": lambda value: f"{value:.4g}",
        "outcome": _outcome,
    }
    return environment.get_template(template).render(values)


def flatten(machine: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield names and texts of what is nested, ``a.b`` for what stands in ``a``; unknown: ``-``."""
    for key, value in machine.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif key == "devices" and isinstance(value, list):
            yield prefix + key, show_devices(machine) or "none"
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield prefix + key, "-" if value is None else text


def show_devices(machine: Mapping[str, Any]) -> str:
    """Return the GPUs in a line, equal ones counted; empty without any."""
    names = [str(name) for name in machine.get("devices") or []]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _outcome(measure: Measure) -> str:
    if measure.outcome == "unjudged":
        return "none"
    return f"{MARKS[measure.outcome]} {measure.outcome}: {show_band(measure)}"
