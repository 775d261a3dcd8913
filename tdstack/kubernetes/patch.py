"""From a node and a verdict to the patch of the node. Pure; standard library only.

A JSON merge patch (RFC 7386) replaces a list as a whole, so it carries the node's resourceVersion:
where somebody else taints the node meanwhile, the API server answers 409 and nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tdstack.kubernetes.verdict import Verdict

DOMAIN: Final = "tdstack.dev"
READY, LINE, IMAGE = f"{DOMAIN}/ready", f"{DOMAIN}/line", f"{DOMAIN}/image"
VERDICT, TAINTED = f"{DOMAIN}/verdict", f"{DOMAIN}/tainted"
UNFIT, EFFECT = f"{DOMAIN}/unfit", "NoSchedule"
SHORT: Final = 12
"""Digits of the image's digest in the label."""


@dataclass(frozen=True)
class Checked:
    """What was checked: the CUDA line as `cu124`, the image by digest; whether to taint."""

    line: str
    image: str
    taint: bool = True

    @property
    def digest(self) -> str:
        """Return the first digits of the image's digest, as the label has them."""
        return self.image.rpartition("sha256:")[2][:SHORT]


def patch_of(node: dict[str, Any], verdict: Verdict, checked: Checked) -> dict[str, Any] | None:
    """Return the merge patch that makes the node say the verdict; None where it does already.

    A taint is ours if its value is the one that our annotation records. Others of the same key stay
    as they are: a person who holds a node back keeps it held back.
    """
    metadata = node["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    taints = (node.get("spec") or {}).get("taints") or []
    mine = [taint for taint in taints if _is_ours(taint, annotations)]
    others = [taint for taint in taints if taint not in mine]
    ours = _taint(verdict, checked, mine, others)
    tainted = ours[0]["value"] if ours else None
    wanted_labels = {
        READY: "true" if verdict.state == "ready" else "false",
        LINE: checked.line,
        IMAGE: checked.digest,
    }
    wanted_annotations = {VERDICT: verdict.text or None, TAINTED: tainted}
    patch: dict[str, Any] = {}
    if changed := _changed(labels, wanted_labels):
        patch.setdefault("metadata", {})["labels"] = changed
    if changed := _changed(annotations, wanted_annotations):
        patch.setdefault("metadata", {})["annotations"] = changed
    if ours != mine:
        patch["spec"] = {"taints": others + ours}
    if not patch:
        return None
    patch.setdefault("metadata", {})["resourceVersion"] = metadata["resourceVersion"]
    return patch


def _taint(
    verdict: Verdict, checked: Checked, mine: list[Any], others: list[Any]
) -> list[dict[str, Any]]:
    if verdict.state == "ready" or not checked.taint:
        return []
    if verdict.state == "unknown":  # what a check that ran has found stays
        return mine
    if any(taint.get("key") == UNFIT and taint.get("effect") == EFFECT for taint in others):
        return []  # the API server takes one of a key and an effect, and that one is not ours
    return [{"key": UNFIT, "value": verdict.reason, "effect": EFFECT}]


def _is_ours(taint: dict[str, Any], annotations: dict[str, str]) -> bool:
    named = (taint.get("key"), taint.get("effect")) == (UNFIT, EFFECT)
    return named and taint.get("value", "") == annotations.get(TAINTED)


def _changed(
    has: dict[str, str], wanted: dict[str, str | None] | dict[str, str]
) -> dict[str, str | None]:
    return {name: value for name, value in wanted.items() if has.get(name) != value}
