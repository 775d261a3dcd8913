"""The checks of an image in a registry, in an order in which each may use what others found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tdstack.attest.bundles import Keyless
from tdstack.attest.check import check_sbom, check_statement, read_provenance, read_sbom
from tdstack.attest.contents import Contents, contents_of
from tdstack.attest.imageconfig import ImageConfig
from tdstack.attest.inside import Inside
from tdstack.attest.keys import PublicKey
from tdstack.attest.layerfiles import read_config, read_inside
from tdstack.attest.provenance import Statement
from tdstack.attest.recompute import check_labels, check_plan, check_sources, check_tag, plan_of
from tdstack.attest.report import ImageReport
from tdstack.attest.signatures import check_signature, signatures_of
from tdstack.console import megabytes
from tdstack.errors import CheckFailed, IntegrityError, UsageError
from tdstack.lock.io import load_lock
from tdstack.plan import Plan
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Reference
from tdstack.ship.resolve import resolve
from tdstack.workspace import Workspace

T = TypeVar("T")
BLOCK = 1 << 20


@dataclass(frozen=True)
class Options:
    """How to check: without `keys` and `keyless` nobody vouches; `deep` reads every layer."""

    keys: Sequence[PublicKey] = ()
    platform: str = "linux/amd64"
    deep: bool = False
    keyless: Keyless | None = None


def examine(
    workspace: Workspace, registry: Registry, reference: Reference, options: Options
) -> ImageReport:
    """Check everything about an image that can be checked.

    Raises: UpstreamError when the registry cannot be read, or has no such image; IntegrityError
    when not even its manifest can be read.
    """
    image, manifest = resolve(registry, reference, options.platform)
    report = ImageReport(str(reference), image.digest, options.platform)
    found = _Examination(workspace, registry, reference, options, image, manifest, report)
    found.run()
    return report


@dataclass
class _Examination:
    workspace: Workspace
    registry: Registry
    reference: Reference
    options: Options
    image: Descriptor
    manifest: ImageManifest
    report: ImageReport

    def run(self) -> None:
        """Run every check; what was found is in the report."""
        self._check("digest", self._blobs)
        self._signature()
        if self.options.keyless:
            self._keyless(self.options.keyless)
        config = self._check("configuration", self._config)
        if config is None:
            return
        if config.layer not in ("", "kernels"):
            self.report.skipped("contents", f"this is the {config.layer} layer, no final image")
            return
        inside = self._check("contents", self._inside)
        if inside is None:
            return
        self._check("labels", lambda: self._labels(config, inside))
        plan = self._check("plan", lambda: self._plan(inside))
        if plan is None:
            for name in ("lock", "tag"):
                self.report.skipped(name, "there is no plan to compare with")
        else:
            self._check("lock", lambda: self._lock(config, inside, plan))
            self._check("tag", lambda: self._tag(config, plan))
        self._attachments(config, inside, plan)

    def _check(self, name: str, check: Callable[[], tuple[str, T]]) -> T | None:
        try:
            detail, value = check()
        except (CheckFailed, IntegrityError) as error:
            self.report.failed(name, error)
            return None
        self.report.passed(name, detail)
        return value

    @property
    def _where(self) -> str:
        return f"{self.reference.repository}@{self.image.digest}"

    def _blobs(self) -> tuple[str, None]:
        repository, blobs = self.reference.repository, [self.manifest.config, *self.manifest.layers]
        for blob in {b.digest: b for b in blobs}.values():
            if self.options.deep:
                with self.registry.open_blob(repository, blob) as stream:
                    while stream.read(BLOCK):
                        pass
            elif not self.registry.has_blob(repository, blob.digest):
                raise IntegrityError(
                    "the registry lacks a part of the image",
                    where=self._where,
                    expected=blob.digest,
                    remedy="push the image again",
                )
        size = megabytes(sum(layer.size for layer in self.manifest.layers))
        how = "read by sha256" if self.options.deep else "there"
        return f"{self.image.digest}: {len(self.manifest.layers)} layers, {size}, all {how}", None

    def _signature(self) -> None:
        arguments = (self.registry, self.reference.repository, self.image)
        if keys := self.options.keys:

            def signed() -> tuple[str, str]:
                fingerprint = check_signature(*arguments, keys)
                return f"by {fingerprint}", fingerprint

            self.report.signed_by = self._check("signature", signed) or ""
            return
        claimed = [found.hint or "an unnamed key" for found in signatures_of(*arguments)]
        told = f"no --key; it claims to be signed by {', '.join(claimed)}" if claimed else ""
        self.report.skipped("signature", told or "no --key, and the image is not signed")

    def _keyless(self, keyless: Keyless) -> None:
        def signed() -> tuple[str, str]:
            identity = keyless.check(self.registry, self.reference.repository, self.image)
            return f"by {identity}", str(identity)

        self.report.signed_as = self._check("keyless", signed) or ""

    def _config(self) -> tuple[str, ImageConfig]:
        config = read_config(self.registry, self.reference.repository, self.manifest)
        if config.platform != self.options.platform:
            raise CheckFailed(
                "the image is for another platform",
                where=self._where,
                expected=self.options.platform,
                got=config.platform,
                remedy=f"ask for --platform {config.platform}",
            )
        return f"image id {self.manifest.config.sha256[:12]}, {config.platform}", config

    def _inside(self) -> tuple[str, Inside]:
        inside = read_inside(self.registry, self.reference.repository, self.manifest)
        slice_, kernels = inside.slice, inside.kernels
        return (
            f"CUDA {slice_.cuda}, Triton {slice_.triton}, torch {slice_.torch}, "
            f"{sum(kernels.cubins.values())} cubins by Triton {kernels.triton}, "
            f"ptxas {kernels.ptxas}",
            inside,
        )

    def _labels(self, config: ImageConfig, inside: Inside) -> tuple[str, None]:
        check_labels(config, inside, self._where)
        return "agree with the files in the image", None

    def _plan(self, inside: Inside) -> tuple[str, Plan]:
        try:
            plan = plan_of(inside.slice, load_lock(self.workspace.root)[0], self.workspace.root)
        except (UsageError, IntegrityError) as error:
            raise CheckFailed(
                "this checkout has no plan for such an image",
                where=self._where,
                got=f"{error.what} ({error.where})",
                expected=error.expected,
                remedy="check out the commit that it was built from",
            ) from error
        return f"made from this checkout: key {plan.final.key[:20]}", plan

    def _lock(self, config: ImageConfig, inside: Inside, plan: Plan) -> tuple[str, None]:
        check_plan(config, inside, plan, self._where)
        return f"lock slice {plan.lock_slice[:12]} and content key are this checkout's", None

    def _tag(self, config: ImageConfig, plan: Plan) -> tuple[str, None]:
        tag = self.reference.tag
        check_tag(tag, config, plan, self._where)
        return (f"{tag} is a name of this image" if tag else "named by its digest alone"), None

    def _attachments(self, config: ImageConfig, inside: Inside, plan: Plan | None) -> None:
        lock, lock_sha256 = load_lock(self.workspace.root)
        contents = contents_of(inside.slice, inside.kernels, lock.rootfs)
        ours = plan if plan and plan.final.key == config.key else None
        statement = self._check("provenance", lambda: self._provenance(contents, ours, lock_sha256))
        if statement is None:
            self.report.skipped("sbom", "the provenance says which one is true, and does not hold")
            return
        self._check("sbom", lambda: self._sbom(contents, statement))

    def _provenance(
        self, contents: Contents, plan: Plan | None, lock_sha256: str
    ) -> tuple[str, Statement]:
        statement, signed_by = read_provenance(
            self.registry, self.reference.repository, self.image, self.options.keys
        )
        check_statement(statement, self.image.digest, contents, self._where)
        if plan:
            check_sources(statement, plan, self._where)
        same = statement.lock == lock_sha256
        lock = "this versions.lock" if same else f"another versions.lock ({statement.lock[:12]})"
        signed = f"signed by {signed_by}" if signed_by else "signature not checked"
        engine = statement.engine or "an unknown engine"
        return f"{len(statement.packages)} materials, {lock}, {engine}; {signed}", statement

    def _sbom(self, contents: Contents, statement: Statement) -> tuple[str, None]:
        bill = read_sbom(self.registry, self.reference.repository, self.image, statement)
        count = check_sbom(bill, self.image.digest, contents, self._where)
        return f"{count} components, the provenance's, as the image's own slice says", None
