"""A few threads for transfers, which an interrupted verb does not wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
COUNT = 4


class Workers:
    """Runs calls in the order in which they came; a context manager.

    The threads are daemons: an interrupt must not wait for a server that fell silent, as the
    standard library's pool would. On leaving, calls that have not begun are dropped.
    """

    def __init__(self, count: int = COUNT) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `function` called; its result or error is the future's."""
        future: Future[T] = Future()

        def call() -> None:
            if self._over.is_set():
                future.set_exception(CancelledError())
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(call)
        return future

    def stopped(self) -> bool:
        """Return whether it is over: a call that takes long asks now and then."""
        return self._over.is_set()

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for _ in self._threads:
            self._calls.put(None)
        if kind is None or issubclass(kind, Exception):
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        while call := self._calls.get():
            call()
