"""Headless Chromium, driven over a pair of pipes: enough to look at a page and take its picture.

The protocol needs no more than JSON with a zero byte behind it. A library for it would bring a
browser driver of 165 MB, for one test file.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PROGRAMS: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LIMIT_S: Final = 60.0


def find_browser() -> str | None:
    """Return the path of a Chromium, if this host has one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page:
    """A browser's only tab. ``problems`` are what its console warns of, and what it fetched."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into = out, into
        self._rest = b""
        self._count = 0
        self._session = ""
        self.problems: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, width: int, dark: bool = False) -> None:
        """Load a file at a width in CSS pixels, as on a screen with light or dark colours."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self._loaded = False
        self._call("Page.navigate", url=file.resolve().as_uri())
        deadline = time.monotonic() + LIMIT_S
        while not self._loaded:
            self._take(deadline)

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression gives, as JSON has it."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        options = {"format": "png", "captureBeyondViewport": True}
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", **options)["data"]))

    def print_media(self) -> None:
        """Show the page with the style that it is printed with."""
        self._call("Emulation.setEmulatedMedia", media="print")

    def pdf(self) -> bytes:
        """Return the page as it is printed."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=True)["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._into, data) :]
        deadline = time.monotonic() + LIMIT_S
        while (answer := self._take(deadline)).get("id") != self._count:
            pass
        if "error" in answer:
            raise ValueError(f"{method}: {answer['error']}")
        result = answer["result"]
        assert isinstance(result, dict)
        return result

    def _take(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise TimeoutError(f"the browser said nothing for {LIMIT_S} s")
            if not (data := os.read(self._out, 1 << 20)):
                raise ConnectionError("the browser ended")
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        assert isinstance(message, dict)
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "about:", "data:")):
                self.problems.append(f"fetched {url}")


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Run a Chromium with a profile of its own; end it and all that it started afterwards."""
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        options += ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage"]
        # Chromium refuses root its sandbox. The pages are our own files, without scripts.
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        # It wants the pipes as descriptors 3 and 4.
        script = f'exec "$@" 3<&{commands_out} 4>&{answers_in}'
        process = subprocess.Popen(
            ["bash", "-c", script, "browser", program, *options, "about:blank"],
            pass_fds=(commands_out, answers_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        try:
            yield Page(answers_out, commands_in)
        finally:
            os.close(commands_in)  # the browser's processes end with their pipe
            os.close(answers_out)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
