"""A client of the Kubernetes API for a pod: read and patch one node. Standard library only.

The pod's credentials are files that the kubelet renews: each request reads them anew
(https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

CREDENTIALS: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MERGE_PATCH: Final = "application/merge-patch+json"
LIMIT_S: Final = 15.0
MAX_BYTES: Final = 16 << 20
PASSING: Final = (401, 408, 409, 429, 500, 502, 503, 504)
"""Statuses that another try may not meet: 401 while a token is being renewed."""
REMEDIES: Final = {
    401: "the API server does not take this pod's token; see that the service account is there",
    403: "allow the service account to get and patch nodes: render and apply node-check again",
    404: "the node is gone, or NODE_NAME is not its name",
}


class ApiError(Exception):
    """A request that did not succeed.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        passing: whether another try may succeed.
        wait_s: seconds that the server asks to wait before it, or 0.
    """

    def __init__(self, what: str, status: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.status = status
        self.passing = status in (0, *PASSING)
        self.wait_s = wait_s


@dataclass(frozen=True)
class NodeApi:
    """Nodes of the cluster whose API server is at `server`, such as https://10.96.0.1:443."""

    server: str
    credentials: Path = CREDENTIALS
    limit_s: float = LIMIT_S

    def get(self, name: str) -> dict[str, Any]:
        """Return a node.

        Raises: ApiError.
        """
        return self._ask("GET", name)

    def patch(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Apply a JSON merge patch to a node; return the node as it is then.

        Raises: ApiError; with status 409 where the node is not the patch's resourceVersion.
        """
        return self._ask("PATCH", name, json.dumps(patch).encode())

    def _ask(self, method: str, name: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.server}/api/v1/nodes/{quote(name, safe='')}", data=body, method=method
        )
        try:
            token = (self.credentials / "token").read_text().strip()
            context = ssl.create_default_context(cafile=str(self.credentials / "ca.crt"))
        except (OSError, ValueError) as error:
            raise ApiError(f"the pod's credentials cannot be read: {error}") from error
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Accept", "application/json")
        if body is not None:
            request.add_header("Content-Type", MERGE_PATCH)
        # The API server is in the cluster: proxies of the environment do not lead to it.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=context),
            _NoRedirect(),
        )
        where = f"{method} node {name}"
        try:
            with opener.open(request, timeout=self.limit_s) as answer:
                found = json.loads(answer.read(MAX_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(where, error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ApiError(f"{where}: no answer from {self.server}: {reason}") from error
        except ValueError as error:
            raise ApiError(f"{where}: the answer is no JSON: {error}") from error
        if not isinstance(found, dict) or "metadata" not in found:
            raise ApiError(f"{where}: the answer is no node")
        return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token elsewhere; the API server sends none."""

    def redirect_request(self, *_: object) -> None:
        return None


def _refused(where: str, error: urllib.error.HTTPError) -> ApiError:
    try:
        told = str(json.loads(error.read(MAX_BYTES)).get("message") or "")[:500]
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        told = ""
    after = error.headers.get("Retry-After") or ""
    remedy = REMEDIES.get(error.code, "")
    parts = [f"{where}: {error.code} {error.reason}", told, remedy]
    text = "; ".join(part for part in parts if part)
    return ApiError(text, error.code, float(after) if after.isdigit() else 0.0)
