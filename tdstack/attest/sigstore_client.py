"""The one place that uses the package `sigstore`, which is an extra: requirements-keyless.lock."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509

from tdstack.attest.bundles import ASK, Keyless
from tdstack.attest.keyless import Identity, SignedStatement, identity_in, identity_of
from tdstack.console import say
from tdstack.errors import HostError, IntegrityError, TimeLimitError, UpstreamError, UsageError

T = TypeVar("T")
# A ClientTrustConfig (sigstore/protobuf-specs): services and trust root of a sigstore of one's own.
CONFIG_VARIABLE = "TDSTACK_SIGSTORE_CONFIG"
INSTALL = ".venv/bin/python -m pip install --no-deps --require-hashes -r requirements-keyless.lock"
# The library asks Fulcio and Rekor without a limit of its own.
SIGN_LIMIT_S = 120.0


def keyless_of(name: str, issuer: str) -> Keyless | None:
    """Return what --identity and --issuer ask for; None for neither.

    Raises: UsageError for one of them alone; HostError without the package or its trust root.
    """
    identity = identity_of(name, issuer)
    return Keyless(identity, SigstoreVerifier()) if identity else None


class SigstoreVerifier:
    """Verifies bundles without a network, by the trust root that the package brought or cached."""

    def __init__(self) -> None:
        """Raise HostError without package or trust root, UsageError for a wrong configuration."""
        _require()
        from sigstore.verify import Verifier

        self._verifier = Verifier(trusted_root=_trust(offline=True).trusted_root)

    def verify(self, bundle: bytes, identity: Identity, where: str) -> SignedStatement:
        """Return what a bundle holds, which this identity signed.

        Checked are the certificate and its log, the identity, the entry in the transparency log,
        the time, and the signature.
        Raises: IntegrityError.
        """
        from sigstore.models import Bundle

        try:
            parsed = Bundle.from_json(bundle)
            media_type, payload = self._verifier.verify_dsse(parsed, _Only(identity, where))
        except IntegrityError:
            raise
        except Exception as error:  # a stranger's file may trip the library in any way
            raise IntegrityError(
                "the keyless signature does not hold: it was altered, or is of another sigstore",
                where=where,
                expected=f"a signature of {identity}",
                got=f"{type(error).__name__}: {error}"[:300],
                remedy=f"{ASK}; if it is newer than the trust root, install a newer sigstore",
            ) from error
        return SignedStatement(str(media_type), bytes(payload))


class SigstoreSigner:
    """Signs as the identity of this CI job, or of who sits at the terminal."""

    def __init__(self) -> None:
        """Find out before anything is sent whether signing can succeed.

        Raises: HostError without the package, or where nobody can be asked who signs;
        UpstreamError when sigstore's services cannot be reached; UsageError.
        """
        _require()
        self._trust = _trust(offline=False)
        self._signer: Any = None
        self._told = False
        if _ambient_token() is None and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise _nobody()

    def sign(self, statement: bytes) -> bytes:
        """Return the bundle of the signed statement, which was verified.

        Raises: UpstreamError; HostError; TimeLimitError.
        """
        from sigstore.errors import Error
        from sigstore.models import Bundle
        from sigstore.verify import Verifier

        made: Any = self._made(statement)
        identity = identity_in(made.signing_certificate)
        bundle = str(made.to_json()).encode()
        try:
            verifier = Verifier(trusted_root=self._trust.trusted_root)
            verifier.verify_dsse(Bundle.from_json(bundle), _Only(identity, "--keyless"))
        except Error as error:
            raise UpstreamError(
                "sigstore's services gave a signature that does not hold",
                where="--keyless",
                got=f"{type(error).__name__}: {error}"[:300],
                remedy="nothing was attached; push again later, or sign with a key: --sign",
            ) from error
        if not self._told:
            say(f"signed as {identity.name}, issuer {identity.issuer}")
            self._told = True
        return bundle

    def _made(self, statement: bytes) -> Any:
        from sigstore.dsse import Statement
        from sigstore.sign import ExpiredCertificate

        subject = Statement(statement)
        with contextlib.suppress(ExpiredCertificate):
            if self._signer is not None:
                return _within(SIGN_LIMIT_S, lambda: self._signer.sign_dsse(subject))
        token = self._token()

        def certify_and_sign() -> Any:
            from sigstore.sign import Signer, SigningContext

            self._signer = Signer(token, SigningContext.from_trust_config(self._trust))
            return self._signer.sign_dsse(subject)

        return _within(SIGN_LIMIT_S, certify_and_sign)

    def _token(self) -> Any:
        from sigstore.oidc import IdentityError, IdentityToken, Issuer

        def ask() -> Any:
            # The library asks for the code on stdout, which may be a file of JSON.
            with contextlib.redirect_stdout(sys.stderr):
                return Issuer(self._trust.signing_config.get_oidc_url()).identity_token()

        try:
            # Asked for again: a push may take longer than a token is good for.
            token = _ambient_token()
            return IdentityToken(token) if token else _reaching(ask)
        except IdentityError as error:
            raise _away(error) from error
        except EOFError as error:  # the terminal gave no code
            raise _nobody() from error


class _Only:
    """A policy of the library that admits one identity, and says whose it is otherwise."""

    def __init__(self, identity: Identity, where: str) -> None:
        self._identity, self._where = identity, where

    def verify(self, cert: x509.Certificate) -> None:
        from sigstore.errors import VerificationError
        from sigstore.verify import policy

        wanted = self._identity
        try:
            policy.Identity(identity=wanted.name, issuer=wanted.issuer).verify(cert)
        except VerificationError as error:
            raise IntegrityError(
                "the image was signed by somebody else",
                where=self._where,
                expected=str(wanted),
                got=str(identity_in(cert)),
                remedy=ASK,
            ) from error


def _require() -> None:
    try:
        import sigstore.sign
        import sigstore.verify  # noqa: F401
    except ImportError as error:
        raise HostError(
            "keyless signatures need the package sigstore",
            where="--keyless, --identity",
            got=str(error),
            remedy=f"`{INSTALL}`; or use keys: --sign, --key",
        ) from error
    # It warns that it is used without a network, which is what is wanted here.
    logging.getLogger("sigstore").setLevel(logging.ERROR)


def _trust(*, offline: bool) -> Any:
    """Return services and trust root: the public ones, or those of $TDSTACK_SIGSTORE_CONFIG."""
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig
    from sigstore.verify import Verifier

    if not (path := os.environ.get(CONFIG_VARIABLE, "")):
        try:
            return _reaching(lambda: ClientTrustConfig.production(offline=offline))
        except (ValueError, Error) as error:
            raise HostError(
                "sigstore's trust root on this host is damaged",
                where="sigstore-python in the user's cache folder",
                got=f"{type(error).__name__}: {error}"[:300],
                remedy="remove that folder; the package brings one",
            ) from error
    try:
        config = ClientTrustConfig.from_json(Path(path).expanduser().read_text())
        # Looked at now, as the library would trip over a part that is missing only much later.
        Verifier(trusted_root=config.trusted_root)
        if not offline:
            config.signing_config.get_fulcio()
        return config
    except (OSError, ValueError, IndexError, Error) as error:
        raise UsageError(
            "the configuration of sigstore cannot be read",
            where=f"{CONFIG_VARIABLE}={path}",
            expected="a ClientTrustConfig in JSON",
            got=str(error)[:300],
        ) from error


def _ambient_token() -> str | None:
    """Return the identity token of this CI job; None where there is none to be had."""
    from id import GitHubOidcPermissionCredentialError
    from sigstore.oidc import IdentityError, detect_credential

    try:
        token = _reaching(detect_credential)
    except IdentityError as error:
        if isinstance(error.__cause__, GitHubOidcPermissionCredentialError):
            raise HostError(
                "this job may not ask for its identity",
                where="--keyless",
                remedy="give the job `permissions: id-token: write`",
            ) from error
        raise _away(error) from error
    return None if token is None else str(token)


def _reaching(ask: Callable[[], T]) -> T:
    """Return what a service answers; what fails on the way there becomes an UpstreamError."""
    import requests
    import urllib3
    from sigstore.errors import NetworkError, TUFError
    from sigstore.oidc import IssuerError

    broken = (requests.RequestException, urllib3.exceptions.HTTPError)
    try:
        return ask()
    except (NetworkError, TUFError, IssuerError, *broken) as error:
        raise _away(error) from error


def _within(limit_s: float, sign: Callable[[], T]) -> T:
    """Return what `sign` returns, if it does so in time."""
    from sigstore.sign import ExpiredCertificate

    made: list[T] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            made.append(_reaching(sign))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeLimitError(
            "sigstore's services do not answer",
            where="--keyless",
            expected=f"a signature within {limit_s:.0f} s",
            remedy="push again later, or sign with a key: --sign",
        )
    for error in failed:
        # The library's errors have no common base, and a service may answer with nonsense.
        known = isinstance(error, UpstreamError | ExpiredCertificate)
        raise error if known else _away(error)
    return made[0]


def _nobody() -> HostError:
    return HostError(
        "there is no identity to sign as",
        where="--keyless",
        expected="a CI job that may ask for its identity, or somebody at a terminal",
        remedy="in GitHub Actions give the job `permissions: id-token: write`; elsewhere sign at a "
        "terminal, or with a key: --sign",
    )


def _away(error: Exception) -> UpstreamError:
    cause = error.__cause__ or error.__context__
    told = [f"{type(e).__name__}: {e}" for e in (error, cause) if e is not None]
    return UpstreamError(
        "sigstore's services cannot be reached, or refuse",
        where="--keyless",
        got="; ".join(told)[:400],
        remedy="check the network and the proxy; without one sign with a key: --sign",
    )
