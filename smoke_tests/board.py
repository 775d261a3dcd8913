"""What the ranks of a launch tell each other, beside their collectives: a c10d store.

The store outlives every rank, so what a dead one said last can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from smoke_tests.place import Place

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_PREFIX: Final = "smoke/"


class BoardLostError(RuntimeError):
    """The store does not answer: the agent on node 0 is gone, or the network to it."""


@dataclass(frozen=True)
class Failure:
    """Why a launch ends early: the first thing that any rank found; it ends all of them.

    ``ranks`` says what is known of those to blame, by rank; the others were waiting for them.
    """

    state: Literal["failed", "hung", "died"]
    step: int
    ranks: dict[int, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """6 for what ran past its time limit, 1 for the rest."""
        return 6 if self.state == "hung" else 1

    def as_dict(self) -> dict[str, Any]:
        """Return what `of` reads."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Failure:
        """Read what went through JSON."""
        ranks = {int(rank): str(text) for rank, text in data["ranks"].items()}
        return cls(data["state"], data["step"], ranks)


class Board:
    """A connection of its own to the store, for one thread: calls of one connection queue up."""

    def __init__(self, place: Place, limit_s: float) -> None:
        """Connect. Raises: BoardLostError when the store does not answer in time."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self.store: TCPStore
        try:
            self.store = TCPStore(
                place.address,
                place.port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=limit_s),
            )
        except RuntimeError as error:
            raise BoardLostError(str(error)) from error

    def post(self, key: str, value: Any) -> None:
        """Say something, for all to read. Raises: BoardLostError."""
        try:
            self.store.set(_PREFIX + key, json.dumps(value))
        except RuntimeError as error:
            raise BoardLostError(str(error)) from error

    def read(self, key: str) -> Any:
        """Return what was said, or None where nothing was. Raises: BoardLostError."""
        try:
            if not self.store.check([_PREFIX + key]):
                return None
            return json.loads(self.store.get(_PREFIX + key))
        except RuntimeError as error:
            raise BoardLostError(str(error)) from error

    def read_all(self, keys: Iterable[str]) -> list[Any]:
        """Return what was said under keys that all exist. Raises: BoardLostError."""
        try:
            return [json.loads(v) for v in self.store.multi_get([_PREFIX + k for k in keys])]
        except RuntimeError as error:
            raise BoardLostError(str(error)) from error

    def first(self, key: str, value: Any) -> Any:
        """Say something unless something was said; return what stands. Raises: BoardLostError."""
        try:
            stands = self.store.compare_set(_PREFIX + key, "", json.dumps(value))
            return json.loads(stands)
        except RuntimeError as error:
            raise BoardLostError(str(error)) from error

    def wait(self, keys: Iterable[str], limit_s: float) -> bool:
        """Wait until all were said; return whether they were. Raises: BoardLostError."""
        from torch.distributed import DistStoreError

        try:
            self.store.wait([_PREFIX + key for key in keys], timedelta(seconds=limit_s))
        except DistStoreError:  # the time is over
            return False
        except RuntimeError as error:
            raise BoardLostError(str(error)) from error
        return True
