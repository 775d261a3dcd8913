"""Names in an engine that are taken back when what follows fails."""

from __future__ import annotations

from types import TracebackType

from tdstack.engines.base import Engine


class Names:
    """Remembers what names meant before; a context manager that restores them after an error."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._before: dict[str, str] = {}

    def about_to_give(self, name: str) -> None:
        """Remember what `name` means now."""
        if name not in self._before:
            stored = self._engine.image(name)
            self._before[name] = stored.id if stored else ""

    def __enter__(self) -> Names:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        for name, image in reversed(self._before.items()):
            if image:
                self._engine.tag(image, name)
            else:
                self._engine.untag(name)
