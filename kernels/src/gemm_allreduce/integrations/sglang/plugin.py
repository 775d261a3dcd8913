"""The entry point of group ``sglang.srt.plugins``: one hook, after a model is loaded.

SGLang logs and swallows every error of a plug-in, of each hook target apart, so that hooks which
need each other could be half applied. So there is one hook; it arms all or nothing; and what SGLang
swallowed is told again in one line that says what it means.
"""

from __future__ import annotations

import atexit
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .settings import SWITCH, Settings, SettingsError, settings_of

if TYPE_CHECKING:
    from .arm import Outcome
    from .counters import Counters

NAME: Final = "gemm_allreduce"
HOOK: Final = "sglang.srt.model_executor.model_runner.ModelRunner.initialize"
"""Runs when weights are in place and before the KV cache is sized: what the workspace takes is
missing from the free memory that SGLang then measures."""

_LOG: Final = logging.getLogger("gemm_allreduce")


@dataclass
class State:
    """What this process knows of the plug-in.

    Attributes:
        settings: of the environment; None where it is switched off.
        hooked: the hook ran at least once.
        outcome: of the last model.
        problem: why there is no hook, in words.
        counters: of this process; None where it is switched off.
    """

    settings: Settings | None = None
    hooked: bool = False
    outcome: Outcome | None = None
    problem: str = ""
    counters: Counters | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        outcome = self.outcome
        return {
            "switched_on": self.settings is not None,
            "problem": self.problem,
            "hooked": self.hooked,
            "armed": list(outcome.armed) if outcome else [],
            "declined": outcome.why_not if outcome else "",
            "symmetric_bytes": outcome.symmetric_bytes if outcome else 0,
            **(self.counters.as_dict() if self.counters else {"fused": {}, "native": {}}),
        }


STATE: Final = State()
"""The one of this process."""


def register() -> None:
    """Hook SGLang, if SGL_USE_TP_OVERLAP is 1; otherwise return at once. Raises nothing."""
    if os.environ.get(SWITCH) != "1" or STATE.counters is not None:
        return
    from .counters import Counters

    STATE.counters = Counters()
    try:
        STATE.settings = settings_of(os.environ)
        from .facts import resolve

        resolve(HOOK)
        registry: Any = resolve("sglang.srt.plugins.hook_registry.HookRegistry")
        hook_type: Any = resolve("sglang.srt.plugins.hook_registry.HookType")
        logging.getLogger("sglang.srt.plugins").addHandler(_Swallowed(logging.ERROR))
        registry.register(HOOK, after_initialize, hook_type.AFTER)
        atexit.register(_tell_counts)
    except SettingsError as error:
        _give_up(str(error))
    except Exception as error:  # SGLang would swallow it
        _give_up(f"{type(error).__name__}: {error}")


def after_initialize(_result: Any, runner: Any, *_args: Any, **_kwargs: Any) -> None:
    """Arm the model that a ModelRunner has loaded. SGLang's AFTER hook: the result stays.

    Raises: what `arm` raises; SGLang does not swallow it, the rank ends.
    """
    if (
        STATE.settings is None
        or STATE.counters is None
        or getattr(runner, "is_draft_worker", False)
    ):
        return
    from .arm import arm, sentence
    from .facts import resolve

    STATE.hooked = True
    STATE.outcome = arm(runner, STATE.settings, STATE.counters)
    parallel = resolve("sglang.srt.runtime_context.get_parallel")()
    level = logging.INFO if STATE.outcome.armed else logging.WARNING
    if parallel.tp_rank == 0:
        _LOG.log(level, "%s", sentence(STATE.outcome, parallel.tp_size))


class _Swallowed(logging.Handler):
    """Hears SGLang's log of plug-ins: an error that concerns the hook is told as what it means."""

    def emit(self, record: logging.LogRecord) -> None:
        told = record.args if isinstance(record.args, tuple) else (record.args,)
        if HOOK not in told and NAME not in told:
            return
        error = record.exc_info[1] if record.exc_info else None
        _give_up(f"SGLang swallowed: {record.getMessage()}: {type(error).__name__}: {error}")


def _give_up(problem: str) -> None:
    STATE.problem = problem
    _LOG.error("SGL_USE_TP_OVERLAP=1, but this process keeps the native path: %s", problem)


def _tell_counts() -> None:
    if STATE.counters is not None and STATE.outcome is not None and STATE.outcome.armed:
        _LOG.info("gemm_allreduce: %s", STATE.counters)
