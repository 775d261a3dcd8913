"""`pull`: the final image of a plan, proven to be what the lock says, under a build's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tdstack.console import Stopwatch
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError, UpstreamError
from tdstack.plan import LABEL, REPOSITORY, Plan
from tdstack.registry.reference import Reference, is_tag
from tdstack.ship.names import full_tag, of_one_line, rolling_tags
from tdstack.ship.remote import Remote, Source, check_layer
from tdstack.ship.rollback import Names
from tdstack.ship.take import Taker, Wanted
from tdstack.wheelhouse.store import Store

Findings = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class PullReport:
    """What a pull did. Sizes are in bytes, times in seconds.

    `source` is `local` where the engine had the image, else `registry`; `checks` counts what
    tdstack-verify looked at, none where the image was there already.
    """

    ref: str
    tags: tuple[str, ...]
    image_id: str
    digest: str
    engine: str
    source: str
    size: int
    fetched: int
    signed_by: str
    checks: int
    mismatches: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data."""
        times = {name: round(value, 2) for name, value in self.seconds.items()}
        return {**vars(self), "tags": list(self.tags), "mismatches": list(self.mismatches)} | {
            "seconds": times
        }


@dataclass
class Puller:
    """One pull of one plan. `verify` runs tdstack-verify in an image and returns its findings.

    With `force` an image that is not the lock's is taken, with a warning for each mismatch. With
    `dry` the registry's answers are checked, and no layer is fetched.
    """

    plan: Plan
    source: Source
    engine: Engine
    store: Store
    verify: Callable[[str], Findings]
    say: Callable[[str], None]
    warn: Callable[[str], None]
    force: bool = False
    dry: bool = False

    def __post_init__(self) -> None:
        self._watch = Stopwatch()
        self._mismatches: list[str] = []
        self._checks = 0

    def pull(self) -> PullReport:
        """Bring the image, check it, and give it its tags.

        Raises: UpstreamError when the registry cannot be read or lacks the image; IntegrityError
        when the image is not what digests, signature or lock say; CheckFailed when it does not
        work; HostError. Then the engine is as it was.
        """
        with self._watch.step("resolve"):
            final = self._final()
            ref, tags = self._names(final)
        fetched = 0
        held = self._held(final, ref, tags)
        if not held and not self.dry:
            taker = Taker(
                self.plan,
                self.engine,
                self.store,
                self.source.registry,
                self._complain,
                self.say,
                self._watch,
            )
            present, below = self._present(final)
            wanted = [*self._lower(final, present), Wanted(final, ref)]
            taker.take(wanted, below, lambda names: self._finish(names, ref, tags))
            fetched = taker.fetched
        return PullReport(
            ref=tags[0],
            tags=tags,
            image_id=final.config.id,
            digest=final.descriptor.digest,
            engine=self.engine.describe(),
            source="local" if held else "registry",
            size=sum(final.config.sizes.values()),
            fetched=fetched,
            signed_by=final.signed_by,
            checks=self._checks,
            mismatches=tuple(self._mismatches),
            seconds=self._watch.seconds,
        )

    def _final(self) -> Remote:
        tag = full_tag(self.plan)
        final = self.source.image(Reference(self.source.repository, tag))
        if final is None:
            final = self._other_image() if self.force else None
        if final is None:
            raise self._lacking()
        try:
            check_layer(final, self.plan, self.plan.final)
        except IntegrityError as error:
            self._complain(error)
            if not final.config.sizes:  # no image of ours: its layers' sizes are not known
                raise
        return final

    def _other_image(self) -> Remote | None:
        for tag in rolling_tags(self.plan)[:1]:
            if other := self.source.image(Reference(self.source.repository, tag)):
                self.warn(f"the registry lacks {full_tag(self.plan)}; taking what {tag} is there")
                return other
        return None

    def _lacking(self) -> UpstreamError:
        tags = self.source.registry.tags(self.source.repository)
        line = of_one_line(tags, self.plan)
        return UpstreamError(
            "the registry has no image of this lock",
            where=f"{self.source.repository}:{full_tag(self.plan)}",
            expected=f"key {self.plan.final.key[:12]}",
            got="of this line it has " + (", ".join(line) or "none"),
            remedy="run `invoke build --registry` and `invoke push`; or take the checkout whose "
            "versions.lock the image was built from",
        )

    def _complain(self, error: IntegrityError) -> None:
        if not self.force:
            raise error
        self._mismatches.append(f"{error.what}: expected {error.expected}, got {error.got}")
        self.warn(f"--force: {error.what}; expected {error.expected}; got {error.got}")

    def _names(self, final: Remote) -> tuple[str, tuple[str, ...]]:
        if final.config.labels.get(f"{LABEL}.key") == self.plan.final.key:
            return self.plan.final.ref, self.plan.final.tags
        # Another key's image must not be what a build takes for its own, nor what a tag that
        # contains a key means.
        labels = final.config.labels
        name = f"{labels.get(f'{LABEL}.layer', '')}:{labels.get(f'{LABEL}.key', '')[:20]}"
        layer, _, key = name.partition(":")
        own = f"{REPOSITORY}/{name}" if is_tag(layer) and is_tag(key) else ""
        if not own or layer != self.plan.final.name:
            raise IntegrityError(
                "the registry's image is not a final image of tdstack",
                where=str(final.reference),
                got=name,
            )
        return own, self.plan.final.tags[1:]

    def _held(self, final: Remote, ref: str, tags: Sequence[str]) -> bool:
        # Tags are given after the checks: without them a pull was killed before it was done.
        for name in (ref, *tags):
            stored = self.engine.image(name)
            if stored is None or stored.id != final.config.id:
                return False
        return True

    def _lower(self, final: Remote, present: int) -> list[Wanted]:
        if final.config.labels.get(f"{LABEL}.key") != self.plan.final.key:
            return []
        found = []
        for layer in self.plan.layers[present:-1]:
            if remote := self.source.layer(self.plan, layer):
                found.append(Wanted(remote, layer.ref))
        return found

    def _present(self, final: Remote) -> tuple[int, tuple[str, ...]]:
        """Return how many layers below the final one the engine has, and their diff ids."""
        lower = self.plan.layers[:-1]
        for count in range(len(lower), 0, -1):
            stored = self.engine.image(lower[count - 1].ref)
            if stored and final.config.diff_ids[: len(stored.diff_ids)] == stored.diff_ids:
                return count, stored.diff_ids
        return 0, ()

    def _finish(self, names: Names, ref: str, tags: Sequence[str]) -> None:
        self.say("  verifying in the image")
        with self._watch.step("verify"):
            self._checks = len(self.verify(ref))
        for tag in tags:
            names.about_to_give(tag)
            self.engine.tag(ref, tag)
