"""Ed25519 keys (RFC 8032) in the PEM files that `openssl genpkey -algorithm ed25519` writes."""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tdstack.console import warn
from tdstack.errors import UsageError

SIGN_VARIABLE = "TDSTACK_SIGN"
KEY_VARIABLE = "TDSTACK_KEY"
PASSPHRASE_VARIABLE = "TDSTACK_SIGN_PASSPHRASE"
MAKE = "openssl genpkey -algorithm ed25519 -out KEY.pem"
DERIVE = "openssl pkey -in KEY.pem -pubout -out KEY.pub"
# PEM files of a key are some hundred bytes; a wrong path may name an image.
LARGEST = 64_000


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with; `origin` says where it was read from."""

    raw: bytes
    origin: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """Return `sha256:<hex>` of the key as DER (SubjectPublicKeyInfo, RFC 8410)."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"sha256:{hashlib.sha256(der).hexdigest()}"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether `signature` is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Signer:
    """A private key. It can sign and name its public key; it cannot be printed."""

    def __init__(self, key: Ed25519PrivateKey, origin: str = "") -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw(), origin)

    def sign(self, message: bytes) -> bytes:
        """Return the signature over `message`, 64 bytes; equal messages give equal bytes."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Signer({self.public.fingerprint})"


def load_signer(path: Path | str) -> Signer:
    """Read a private key. An encrypted one needs $TDSTACK_SIGN_PASSPHRASE, or a terminal.

    Raises: UsageError for a file that cannot be read, is no ed25519 private key, or a wrong
    passphrase.
    """
    place = Path(path).expanduser()
    data = _pem(place, "--sign")
    where = f"--sign {path}"
    if b"PUBLIC KEY" in data:
        raise UsageError("that is a public key; it cannot sign", where=where, remedy=f"`{MAKE}`")
    if b"SIGSTORE PRIVATE KEY" in data or b"COSIGN PRIVATE KEY" in data:
        raise UsageError(
            "cosign's own key format is not read",
            where=where,
            expected="an ed25519 key in PKCS #8, as openssl writes it",
            remedy=f"`{MAKE}`; its signatures are what `cosign verify --key` reads",
        )
    passphrase = _passphrase(where) if b"ENCRYPTED" in data else None
    try:
        key = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        wrong = "the passphrase is wrong, or the key is damaged" if passphrase else ""
        raise UsageError(
            wrong or "that is no private key",
            where=where,
            expected="an ed25519 private key in PEM",
            remedy=f"set {PASSPHRASE_VARIABLE} to the key's passphrase" if passphrase else MAKE,
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(where, key)
    if place.stat().st_mode & 0o077:
        warn(f"{path} can be read by others than its owner; chmod 600 it")
    return Signer(key, str(path))


def load_public(path: Path | str) -> PublicKey:
    """Read a public key.

    Raises: UsageError for a file that cannot be read, or is no ed25519 public key.
    """
    data = _pem(Path(path).expanduser(), "--key")
    where = f"--key {path}"
    if b"PRIVATE KEY" in data:
        raise UsageError(
            "that is a private key; whoever checks needs the public one only",
            where=where,
            remedy=f"`{DERIVE}`",
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            "that is no public key",
            where=where,
            expected="an ed25519 public key in PEM",
            remedy=f"`{DERIVE}`",
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _other_kind(where, key)
    return PublicKey(key.public_bytes_raw(), str(path))


def signer_of(given: str) -> Signer | None:
    """Return the signer that --sign names, or $TDSTACK_SIGN; None for neither.

    Raises: UsageError as load_signer does.
    """
    path = given or os.environ.get(SIGN_VARIABLE, "")
    return load_signer(path) if path else None


def public_keys_of(given: str) -> tuple[PublicKey, ...]:
    """Return the keys that --key names, or $TDSTACK_KEY: files, with colons between them.

    A signature of any one of them is enough, so that a key can be replaced by its successor.
    Raises: UsageError as load_public does.
    """
    names = (given or os.environ.get(KEY_VARIABLE, "")).split(os.pathsep)
    return tuple(load_public(name) for name in names if name)


def _pem(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(
            "the key cannot be read", where=f"{option} {path}", got=error.strerror or str(error)
        ) from error
    if len(data) > LARGEST or b"-----BEGIN " not in data:
        raise UsageError("that is no key", where=f"{option} {path}", expected="a PEM file")
    return data


def _passphrase(where: str) -> bytes:
    if PASSPHRASE_VARIABLE in os.environ:
        return os.environ[PASSPHRASE_VARIABLE].encode()
    if sys.stdin.isatty():
        return getpass.getpass("passphrase of the signing key: ", stream=sys.stderr).encode()
    raise UsageError(
        "the key is encrypted, and there is no terminal to ask for its passphrase",
        where=where,
        remedy=f"set {PASSPHRASE_VARIABLE}",
    )


def _other_kind(where: str, key: object) -> UsageError:
    kind = type(key).__name__.lstrip("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    return UsageError(
        "only ed25519 keys sign images",
        where=where,
        expected="ed25519",
        got=kind,
        remedy=f"`{MAKE}`",
    )
