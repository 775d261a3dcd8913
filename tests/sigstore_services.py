"""A sigstore in small, on loopback: identity of a CI job, Fulcio with its CT log, Rekor.

It signs with keys of its own what the real services sign with theirs, in the same formats: RFC 6962
for the certificates' log, Rekor's API v1, signed notes for checkpoints. So both the library's
signing and its verification run whole; what stays untested is the real services.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

GITHUB = "https://token.actions.githubusercontent.com"
WORKFLOW = "example/stack/.github/workflows/publish.yml@refs/tags/v1"
ISSUER_V1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Key:
    """A P-256 key, and the id that logs give it."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        public = self.private.public_key()
        self.der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(self.der).digest()

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data, ec.ECDSA(hashes.SHA256()))

    def instance(self, url: str) -> dict[str, object]:
        """Return how a trust root names a log with this key."""
        public = {
            "rawBytes": encoded(self.der),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": {"start": "2020-01-01T00:00:00Z"},
        }
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": public,
            "logId": {"keyId": encoded(self.id)},
        }


@dataclass
class Sigstore:
    """The services. `fault` makes one of them fail; `signed` counts entries of the log."""

    url: str = ""
    workflow: str = WORKFLOW
    fault: str = ""
    signed: int = 0
    lifetime_s: int = 600
    code: str = "a-code"
    ca: Key = field(default_factory=Key)
    ct: Key = field(default_factory=Key)
    rekor: Key = field(default_factory=Key)
    released: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
        public, now = self.ca.private.public_key(), datetime.now(UTC)
        self.root = (
            x509.CertificateBuilder(name, name, public, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.ca.private, hashes.SHA256())
        )

    def config(self) -> dict[str, object]:
        """Return a ClientTrustConfig (sigstore/protobuf-specs)."""

        def service(path: str = "") -> list[dict[str, object]]:
            valid = {"start": "2020-01-01T00:00:00Z"}
            one = {"url": f"{self.url}{path}", "majorApiVersion": 1, "operator": "loopback"}
            return [{**one, "validFor": valid}]

        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self.rekor.instance(self.url)],
            "ctlogs": [self.ct.instance(self.url)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "loopback", "commonName": "loopback"},
                    "uri": self.url,
                    "certChain": {
                        "certificates": [
                            {"rawBytes": encoded(self.root.public_bytes(Encoding.DER))}
                        ]
                    },
                    "validFor": {"start": "2020-01-01T00:00:00Z"},
                }
            ],
            "timestampAuthorities": [],
        }
        services = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service(),
            "oidcUrls": service("/oidc"),
            "rekorTlogUrls": service(),
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [],
            "tsaConfig": {"selector": "ANY"},
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": root,
            "signingConfig": services,
        }

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the variables of a CI job that has an identity and uses these services."""
        file = folder / "sigstore.json"
        file.write_text(json.dumps(self.config()))
        return {
            "TDSTACK_SIGSTORE_CONFIG": str(file),
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/token",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-job",
        }

    def token(self) -> str:
        """Return a token like those of GitHub's; only the real Fulcio checks its signature."""
        now = int(time.time())
        claims = {
            "iss": GITHUB,
            "sub": "repo:example/stack:ref:refs/tags/v1",
            "aud": "sigstore",
            "iat": now,
            "exp": now + 300,
            "job_workflow_ref": self.workflow,
        }
        parts = ({"alg": "HS256", "typ": "JWT"}, claims)
        head = ".".join(base64.urlsafe_b64encode(canonical(p)).decode().rstrip("=") for p in parts)
        return f"{head}.c2lnbmF0dXJl"

    def certify(self, token: str, request: bytes) -> dict[str, object]:
        """Answer like Fulcio: a certificate that a CT log has signed for."""
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        name = x509.UniformResourceIdentifier(f"https://github.com/{claims['job_workflow_ref']}")
        issued = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.private.public_key())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(asked.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=5))
            .not_valid_after(now + timedelta(seconds=self.lifetime_s))
            .add_extension(usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(issued, critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(ISSUER_V1, claims["iss"].encode()), critical=False
            )
        )
        bare = builder.sign(self.ca.private, hashes.SHA256()).tbs_certificate_bytes
        stamps = x509.UnrecognizedExtension(SCT_LIST, self._stamps(bare))
        leaf = builder.add_extension(stamps, critical=False).sign(self.ca.private, hashes.SHA256())
        chain = [c.public_bytes(Encoding.PEM).decode() for c in (leaf, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _stamps(self, bare: bytes) -> bytes:
        """Return the list of the one SCT of a certificate (RFC 6962, 3.2 and 3.3)."""
        stamp = int(time.time() * 1000)
        entry = self.ca.id + len(bare).to_bytes(3, "big") + bare
        signature = self.ct.sign(struct.pack("!BBQH", 0, 0, stamp, 1) + entry + b"\0\0")
        one = b"\0" + self.ct.id + struct.pack("!QHBBH", stamp, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        return bytes([0x04, len(listed)]) + listed  # a DER OCTET STRING of less than 128 bytes

    def log(self, proposed: Mapping[str, Any]) -> dict[str, object]:
        """Answer like Rekor: the entry, its time, and that it is the second one of the log."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        if self.fault == "other entry":
            payload += b" "

        def sha256(data: bytes) -> dict[str, str]:
            return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}

        signatures = [
            {"signature": s["sig"], "verifier": verifier}
            for s, verifier in zip(envelope["signatures"], content["verifiers"], strict=True)
        ]
        spec = {
            "envelopeHash": sha256(content["envelope"].encode()),
            "payloadHash": sha256(payload),
            "signatures": signatures,
        }
        body = canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        first, leaf = (hashlib.sha256(b"\0" + data).digest() for data in (b"the first", body))
        root = hashlib.sha256(b"\1" + first + leaf).digest()
        note = f"loopback - 1\n2\n{encoded(root)}\n"
        signed = encoded(self.rekor.id[:4] + self.rekor.sign(note.encode()))
        entry: dict[str, object] = {
            "body": encoded(body),
            "integratedTime": int(time.time()),
            "logID": self.rekor.id.hex(),
            "logIndex": 1,
        }
        promise = encoded(self.rekor.sign(canonical(entry)))
        proof = {
            "logIndex": 1,
            "treeSize": 2,
            "rootHash": root.hex(),
            "hashes": [first.hex()],
            "checkpoint": f"{note}\n\u2014 loopback {signed}\n",
        }
        told = {"signedEntryTimestamp": promise, "inclusionProof": proof}
        self.signed += 1
        return {"00" * 40: {**entry, "verification": told}}


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def sigstore_services() -> Iterator[Sigstore]:
    """Run all of it on one port of loopback."""
    held = Sigstore()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path == "/oidc/.well-known/openid-configuration":
                names = ("authorization_endpoint", "token_endpoint")
                self.answer(200, {name: f"{held.url}/oidc/{name}" for name in names})
            elif self.headers["Authorization"] == "bearer of-the-job" and held.fault != "token":
                self.answer(200, {"value": held.token()})
            else:
                self.answer(403, {"message": "not this job"})

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/oidc/token_endpoint":
                right = parse_qs(data.decode()).get("code") == [held.code]
                told = {"access_token": held.token()} if right else {"error": "not this code"}
                self.answer(200, told)
                return
            body = json.loads(data)
            service = "rekor" if "/log/entries" in self.path else "fulcio"
            if held.fault == "silence":
                held.released.wait(30)
            if held.fault in (service, "silence"):
                self.answer(503, {"code": 503, "message": f"{service} rests"})
            elif held.fault == f"{service} nonsense":
                self.answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": []}}})
            elif service == "rekor":
                self.answer(201, held.log(body))
            else:
                token = self.headers["Authorization"].removeprefix("Bearer ")
                request = base64.b64decode(body["certificateSigningRequest"])
                self.answer(201, held.certify(token, request))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
