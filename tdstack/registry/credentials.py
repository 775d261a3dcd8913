"""Where credentials for a registry lie: the files and helpers of Docker, podman and buildah.

Formats: config.json of Docker, containers-auth.json(5), and the protocol of docker-credential-*
programs, which get the host on stdin and answer on stdout. A secret is never part of a command,
an error or a log.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdstack.errors import HostError
from tdstack.process import find, run

HELPER_LIMIT_S = 60.0
# What Docker Hub's credentials are filed under, since its first protocol.
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True)
class Credentials:
    """Who we are to a registry: a user and password, or an identity token for its token server."""

    user: str
    secret: str = field(repr=False)
    is_token: bool = False

    def basic(self) -> str:
        """Return the Authorization header for these (RFC 7617)."""
        both = f"{self.user}:{self.secret}".encode()
        return f"Basic {base64.b64encode(both).decode()}"


def credentials_for(host: str, path: str = "") -> Credentials | None:
    """Return the credentials for a repository of `host`, or None where no file has any.

    Raises: HostError for a file that is damaged, or a helper that is missing or fails.
    """
    for file in credential_files():
        if found := _in_file(file, host, path):
            return found
    return None


def credential_files() -> list[Path]:
    """Return the files that are read, the one that counts first at first.

    One that a variable names counts more than one at its usual place.
    """
    home = Path.home()
    found = []
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        found.append(Path(named))
    docker = os.environ.get("DOCKER_CONFIG")
    found.append((Path(docker) if docker else home / ".docker") / "config.json")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime) / "containers" / "auth.json")
    return [*found, home / ".config" / "containers" / "auth.json"]


def _in_file(file: Path, host: str, path: str) -> Credentials | None:
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _damaged(file, reason or "") from None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(file, "it is not JSON") from None
    if not isinstance(config, dict):
        raise _damaged(file, "it is not a JSON object")
    helpers, auths = _object(config, "credHelpers", file), _object(config, "auths", file)
    for name in _names(host, path):
        if helper := helpers.get(name):
            return _ask(str(helper), name, file)
    if store := config.get("credsStore"):
        filed = [key for key in auths if _filed(key) in _names(host, "")]
        for name in dict.fromkeys([*filed, _server(host)]):
            if found := _ask(str(store), name, file):
                return found
    by_name = {_filed(key): entry for key, entry in auths.items()}
    for name in _names(host, path):
        if found := _entry(by_name.get(name), file):
            return found
    return None


def _names(host: str, path: str) -> Iterator[str]:
    """Yield what credentials may be filed under, the most special one first."""
    parts = path.split("/") if path else []
    for end in range(len(parts), 0, -1):
        yield "/".join([host, *parts[:end]])
    yield host
    if host in _HUB:
        yield from (name for name in _HUB if name != host)


def _filed(key: str) -> str:
    """Return a key of `auths` without a scheme, and then without what follows the host."""
    _, scheme, rest = key.partition("://")
    if scheme:
        return rest.split("/")[0]
    # Docker's own key for its Hub; in containers-auth.json a path belongs to the name.
    return re.sub(r"/v[12]/?$", "", key).rstrip("/")


def _server(host: str) -> str:
    return "https://index.docker.io/v1/" if host in _HUB else host


def _entry(entry: object, file: Path) -> Credentials | None:
    if not isinstance(entry, dict):
        return None
    if token := entry.get("identitytoken"):
        return Credentials("<token>", str(token), is_token=True)
    if encoded := entry.get("auth"):
        try:
            user, colon, secret = base64.b64decode(str(encoded)).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise _damaged(file, "an `auth` is not base64 of user:password") from None
        return Credentials(user, secret.strip("\0"))
    if entry.get("username") and entry.get("password"):
        return Credentials(str(entry["username"]), str(entry["password"]))
    return None


def _ask(helper: str, server: str, file: Path) -> Credentials | None:
    """Ask docker-credential-HELPER; None where it has nothing for `server`."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):  # it becomes part of a program's name
        raise _damaged(file, "the name of a credential helper is malformed")
    program = f"docker-credential-{helper}"
    path = find(program, f"install it, or remove it from {file} and log in again")
    done = run([path, "get"], stdin=server, limit_s=HELPER_LIMIT_S)
    if done.returncode and "credentials not found" in done.stdout + done.stderr:
        return None
    # Neither of its outputs is repeated: either may hold the secret.
    failed = HostError(
        f"{program} did not give credentials",
        where=f"named in {file}",
        got=f"exit status {done.returncode}",
        remedy=f"log in again, or see what `echo {server} | {program} get` says",
    )
    if done.returncode:
        raise failed
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, TypeError, KeyError):
        raise failed from None
    return Credentials(user, secret, is_token=user == "<token>") if secret else None


def _object(config: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    value = config.get(name, {})
    if not isinstance(value, dict):
        raise _damaged(file, f"{name} is not an object")
    return value


def _damaged(file: Path, reason: str) -> HostError:
    return HostError(
        "the file of registry credentials cannot be used",
        where=str(file),
        got=reason,
        remedy="log in again with `docker login` or `buildah login`, or name another file in "
        "REGISTRY_AUTH_FILE",
    )
