"""Says a verdict to the API server, for as long as that takes. Standard library only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tdstack.kubernetes.api import ApiError
from tdstack.kubernetes.patch import Checked, patch_of
from tdstack.kubernetes.verdict import Verdict

FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
CONFLICTS: Final = 5
"""Tries at once when somebody else changed the node meanwhile."""


class Nodes(Protocol):
    """What is needed of the API."""

    def get(self, name: str) -> dict[str, Any]:
        """Return a node; raises ApiError."""
        ...

    def patch(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Patch a node; raises ApiError."""
        ...


@dataclass
class Reporter:
    """Reports of one node; between tries it calls `wait` with seconds."""

    api: Nodes
    node: str
    checked: Checked
    say: Callable[[str], None]
    wait: Callable[[float], None] = time.sleep

    def report(self, verdict: Verdict, patience_s: float) -> bool:
        """Bring the verdict to the node; return whether it is there.

        What may pass is tried again, for `patience_s` seconds, with pauses that double. What
        another try cannot mend is said once. Nothing is raised: a pod that ended would only come
        again.
        """
        pause, waited = FIRST_S, 0.0
        while True:
            try:
                self._once(verdict)
                return True
            except ApiError as error:
                delay = max(error.wait_s, min(pause, LONGEST_S) * random.uniform(0.5, 1.0))
                if not error.passing or waited + delay > patience_s:
                    self.say(f"error: the verdict is not reported: {error}")
                    return False
                self.say(f"{error}; next try in {delay:.1f} s")
            waited += delay
            pause *= 2
            self.wait(delay)

    def _once(self, verdict: Verdict) -> None:
        for tries in range(CONFLICTS):
            patch = patch_of(self.api.get(self.node), verdict, self.checked)
            if patch is None:
                self.say(f"the node says so already: {verdict.state}")
                return
            try:
                self.api.patch(self.node, patch)
            except ApiError as error:
                if error.status != 409 or tries == CONFLICTS - 1:
                    raise
                continue
            self.say(f"reported: {verdict.state}")
            return
