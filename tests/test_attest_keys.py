"""Keys, envelopes and payloads: known vectors, other people's tools, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tdstack.attest import dsse, signature
from tdstack.attest.keys import (
    PublicKey,
    Signer,
    load_public,
    load_signer,
    public_keys_of,
    signer_of,
)
from tdstack.errors import IntegrityError, TdstackError, UsageError
from tests import attested

DIGEST = f"sha256:{'a' * 64}"
# RFC 8032, section 7.1, tests 1 to 3: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail("openssl is missing, and CI must not skip it")
        pytest.skip("openssl is not installed")
    command = ["openssl", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def written(path: Path, signer: Ed25519PrivateKey | Any, mode: int = 0o600) -> Path:
    path.write_bytes(signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(mode)
    return path


@pytest.fixture
def made_by_openssl(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private and a public key file, made as the documentation says."""
    private, public = tmp_path / "KEY.pem", tmp_path / "KEY.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", str(private))
    openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
    private.chmod(0o600)
    return private, public


@pytest.mark.parametrize(("secret", "public", "message", "signed"), RFC_8032)
def test_vectors_of_rfc_8032(secret: str, public: str, message: str, signed: str) -> None:
    signer = Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert signer.public.raw.hex() == public
    assert signer.sign(bytes.fromhex(message)).hex() == signed
    assert signer.public.verifies(bytes.fromhex(signed), bytes.fromhex(message))
    assert not signer.public.verifies(bytes.fromhex(signed), b"another")
    assert not signer.public.verifies(b"short", bytes.fromhex(message))


def test_keys_of_openssl(made_by_openssl: tuple[Path, Path]) -> None:
    private, public = made_by_openssl
    signer, key = load_signer(private), load_public(public)
    assert signer.public == key
    der = openssl("pkey", "-pubin", "-in", str(public), "-outform", "DER")
    assert key.fingerprint == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_openssl_verifies_an_images_signature(
    made_by_openssl: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = made_by_openssl
    signed = signature.sign("reg.example:5000/team/tdstack", DIGEST, load_signer(private))
    assert_openssl_verifies(public, signed.payload, signed.signature, tmp_path)


def test_openssl_verifies_an_envelope(made_by_openssl: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = made_by_openssl
    envelope = json.loads(dsse.seal("application/vnd.in-toto+json", b"{}", load_signer(private)))
    message = b"DSSEv1 28 application/vnd.in-toto+json 2 {}"
    assert_openssl_verifies(
        public, message, base64.b64decode(envelope["signatures"][0]["sig"]), tmp_path
    )


def assert_openssl_verifies(public: Path, message: bytes, signed: bytes, folder: Path) -> None:
    (folder / "message").write_bytes(message)
    (folder / "signature").write_bytes(signed)
    check = ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public)]
    check += ["-in", str(folder / "message"), "-sigfile", str(folder / "signature")]
    assert b"Verified Successfully" in openssl(*check)
    (folder / "message").write_bytes(message + b" ")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*check)


def test_an_encrypted_key(
    made_by_openssl: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = made_by_openssl
    locked = tmp_path / "locked.pem"
    secret = "a secret of a test"
    command = ["pkcs8", "-topk8", "-v2", "aes256", "-passout", f"pass:{secret}"]
    openssl(*command, "-in", str(private), "-out", str(locked))
    monkeypatch.delenv("TDSTACK_SIGN_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin", (tmp_path / "KEY.pem").open())  # no terminal
    with pytest.raises(UsageError, match="no terminal to ask"):
        load_signer(locked)
    monkeypatch.setenv("TDSTACK_SIGN_PASSPHRASE", "wrong")
    with pytest.raises(UsageError, match="the passphrase is wrong") as caught:
        load_signer(locked)
    assert "wrong'" not in str(caught.value)
    monkeypatch.setenv("TDSTACK_SIGN_PASSPHRASE", secret)
    assert load_signer(locked).public == load_public(public)


def test_a_terminal_is_asked(
    made_by_openssl: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = made_by_openssl
    locked = tmp_path / "locked.pem"
    openssl("pkcs8", "-topk8", "-passout", "pass:x", "-in", str(private), "-out", str(locked))
    monkeypatch.delenv("TDSTACK_SIGN_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda *_, **__: "x")
    assert load_signer(locked).public == load_public(public)


def test_a_signer_cannot_be_printed(made_by_openssl: tuple[Path, Path]) -> None:
    signer = load_signer(made_by_openssl[0])
    secret = signer._key.private_bytes_raw()
    assert secret.hex() not in repr(signer) + str(vars(signer.public))
    assert signer.public.fingerprint in repr(signer)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_key_that_others_can_read_is_warned_of(
    mode: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_signer(written(tmp_path / "KEY.pem", Ed25519PrivateKey.generate(), mode))
    assert ("can be read by others" in capsys.readouterr().err) == (mode == 0o644)


def wrong_files(folder: Path) -> dict[str, Path]:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = Ed25519PrivateKey.generate()
    files = {"private": written(folder / "private", key)}
    texts = {
        "public": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "empty": b"",
        "text": b"a key\n",
        "large": b"-----BEGIN PUBLIC KEY-----\n" * 9999,
        "cut": b"-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n",
        "cut private": b"-----BEGIN PRIVATE KEY-----\nMCow\n-----END PRIVATE KEY-----\n",
        "cosign": b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\neyJ\n-----END\n",
    }
    for name, text in texts.items():
        files[name] = folder / name
        files[name].write_bytes(text)
    curve = ec.generate_private_key(ec.SECP256R1())
    files["p256"] = written(folder / "p256", curve)
    files["p256 public"] = folder / "p256.pub"
    files["p256 public"].write_bytes(
        curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return files


@pytest.mark.parametrize(
    ("name", "load", "words"),
    [
        ("absent", load_signer, "cannot be read"),
        ("public", load_signer, "it cannot sign"),
        ("empty", load_signer, "no key"),
        ("text", load_signer, "no key"),
        ("large", load_signer, "no key"),
        ("cut private", load_signer, "no private key"),
        ("cosign", load_signer, "cosign's own key format"),
        ("p256", load_signer, "only ed25519"),
        ("absent", load_public, "cannot be read"),
        ("private", load_public, "the public one only"),
        ("text", load_public, "no key"),
        ("cut", load_public, "no public key"),
        ("p256 public", load_public, "only ed25519"),
    ],
)
def test_files_that_are_no_such_key(name: str, load: Any, words: str, tmp_path: Path) -> None:
    path = wrong_files(tmp_path).get(name, tmp_path / "absent")
    with pytest.raises(UsageError, match=words) as caught:
        load(path)
    assert str(path) in caught.value.where


def test_keys_from_options_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        raw = attested.signer_of(number)._key
        written(tmp_path / f"{number}.pem", raw)
        (tmp_path / f"{number}.pub").write_bytes(
            raw.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
    one, two = (attested.signer_of(n).public for n in (1, 2))
    monkeypatch.delenv("TDSTACK_KEY", raising=False)
    monkeypatch.delenv("TDSTACK_SIGN", raising=False)
    assert public_keys_of("") == ()
    assert signer_of("") is None
    monkeypatch.setenv("TDSTACK_KEY", f"{tmp_path}/1.pub:{tmp_path}/2.pub")
    monkeypatch.setenv("TDSTACK_SIGN", f"{tmp_path}/2.pem")
    assert public_keys_of("") == (one, two)
    assert public_keys_of(f"{tmp_path}/2.pub") == (two,)
    found = signer_of("")
    assert found is not None
    assert found.public == two
    named = signer_of(f"{tmp_path}/1.pem")
    assert named is not None
    assert named.public == one


def test_pae_of_the_specification() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == expected
    assert dsse.pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "  # lengths are those of the bytes


KIND = "application/vnd.in-toto+json"


def test_an_envelope_opens_for_its_key_alone() -> None:
    signer, other = attested.signer_of(1), attested.signer_of(2)
    envelope = dsse.seal(KIND, b'{"x": 1}', signer)
    assert envelope == dsse.seal(KIND, b'{"x": 1}', signer)
    keys = [other.public, signer.public]
    assert dsse.open_envelope(envelope, KIND, keys, "here") == (b'{"x": 1}', signer.public)
    with pytest.raises(IntegrityError, match="foreign key") as caught:
        dsse.open_envelope(envelope, KIND, [other.public], "here")
    assert signer.public.fingerprint in caught.value.got
    assert other.public.fingerprint in caught.value.expected


def test_either_base64_is_read() -> None:
    signer = attested.signer_of(1)
    envelope = json.loads(dsse.seal(KIND, b"\xff\xfe\xfd???>>>", signer))
    assert set(envelope["payload"]) & set("+/")
    envelope["payload"] = envelope["payload"].replace("+", "-").replace("/", "_")
    data = json.dumps(envelope).encode()
    assert dsse.open_envelope(data, KIND, [signer.public], "here")[0] == b"\xff\xfe\xfd???>>>"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.update(payload=base64.b64encode(b"other").decode()), "were altered"),
        (lambda e: e.update(payloadType="text/plain"), "something else"),
        (lambda e: e.update(payload="!!!"), "no DSSE envelope"),
        (lambda e: e.update(signatures=3), "no DSSE envelope"),
        (lambda e: e["signatures"][0].pop("sig"), "no DSSE envelope"),
        (lambda e: e.update(signatures=[]), "foreign key"),
        (lambda e: e.update(signatures=[{"sig": "AAAA"}]), "foreign key"),
        # The key that an envelope names is a hint: a true signature under another's name holds,
        # so only a false one is left to be refused.
        (lambda e: e["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()), "altered"),
    ],
)
def test_envelopes_that_were_changed(change: Any, words: str) -> None:
    signer = attested.signer_of(1)
    envelope = json.loads(dsse.seal(KIND, b"{}", signer))
    change(envelope)
    with pytest.raises(IntegrityError, match=words):
        dsse.open_envelope(json.dumps(envelope).encode(), KIND, [signer.public], "here")


def test_what_is_no_envelope() -> None:
    for data in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(IntegrityError, match="no DSSE envelope"):
            dsse.open_envelope(data, KIND, [attested.signer_of(1).public], "here")


def test_the_payload_is_cosigns() -> None:
    payload = signature.payload_for("reg.example:5000/team/tdstack", DIGEST)
    assert json.loads(payload) == {
        "critical": {
            "identity": {"docker-reference": "reg.example:5000/team/tdstack"},
            "image": {"docker-manifest-digest": DIGEST},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    assert signature.tag_of(DIGEST) == f"sha256-{'a' * 64}.sig"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"critical": {}}',
        signature.payload_for("r", DIGEST).replace(b"container image", b"something else"),
        b'{"critical": {"type": "cosign container image signature", '
        b'"image": {"docker-manifest-digest": 1}}}',
    ],
)
def test_payloads_that_are_not_for_an_image(payload: bytes) -> None:
    with pytest.raises(TdstackError, match="signed payload"):
        signature.Signature(payload, b"").signed_digest("here")


def test_public_keys_are_equal_by_their_bytes() -> None:
    raw = attested.signer_of(1).public.raw
    assert PublicKey(raw, "one place") == PublicKey(raw, "another")
