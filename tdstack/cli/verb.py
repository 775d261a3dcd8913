"""What makes a task of a function: errors become messages and exit codes, options are shared."""

from __future__ import annotations

import errno
import functools
import inspect
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from tdstack import console
from tdstack.errors import HostError, TdstackError
from tdstack.fork.model import ForkSource
from tdstack.stack import Request
from tdstack.workspace import Workspace

HELP = {
    "cuda": "CUDA line: 12.4, 12.6, 12.8, 12.9, 13.0 (experimental)",
    "triton": "distributed (default) or stock",
    "torch": "cuda (default), cpu or none",
    "platform": "linux/amd64 or linux/arm64",
    "arch": "compile kernels for this GPU architecture, such as sm_90; repeatable (default: all)",
    "python": "Python of the image (default: the base's)",
    "base": "rootfs (default), rootfs:SUITE, or an image as REF@sha256:...",
    "cpython": "a stand-alone CPython to be the image's Python: FILE, or FILE#sha256=HEX",
    "wheel": "a Triton-distributed wheel: FILE, or URL#sha256=HEX",
    "wheelhouse": "a folder or file that may supply any pinned file",
    "incomplete": "take a Triton-distributed wheel that lacks packages its own code imports",
    "prefix": "the folder of a Python environment, such as a venv",
    "engine": "auto (default), buildah or docker",
    "output": "also write the image to this file, as an OCI archive",
    "with_": "an optional layer: sglang (no CUDA line can hold it yet, and this says why)",
    "registry": "HOST[:PORT]/PATH of the images (default: $TDSTACK_REGISTRY)",
    "key": "public key(s) that must have signed: FILE[:FILE...] (default: $TDSTACK_KEY)",
    "identity": "who must have signed without a key: e-mail or URI, with --issuer",
    "issuer": "the URL of who vouches for --identity",
    "json": "machine-readable result on stdout",
    "dry": "no side effects",
}
REPEATABLE = ("arch", "merge", "compare", "keep", "with_")


@dataclass(frozen=True)
class Asked:
    """The image that a verb is asked about, not resolved yet, and where files come from.

    A verb with a parameter `asked` has the options of `asked_of` in its place.
    """

    workspace: Workspace
    request: Request
    source: ForkSource


def asked_of(
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
) -> Asked:
    """Return what the options ask for.

    Raises: UsageError, IntegrityError as Workspace.here and Workspace.request do.
    """
    workspace = Workspace.here(wheelhouse)
    request = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    return Asked(workspace, workspace.request(request, cpython), ForkSource(wheel, incomplete))


ASKED = inspect.signature(asked_of).parameters


def verb(function: Callable[..., None]) -> Any:
    """Make a task of `function`: errors become messages and exit codes."""

    @functools.wraps(function)
    def wrapped(c: Context, *args: Any, **kwargs: Any) -> None:
        if "dry" in kwargs:
            kwargs["dry"] = kwargs["dry"] or bool(c.config.run.dry)
        tidy_up_when_ended()
        try:
            if asks:
                kwargs["asked"] = asked_of(**{name: kwargs.pop(name) for name in ASKED})
            function(c, *args, **kwargs)
        except TdstackError as error:
            end_with(error, error, kwargs)
        except OSError as error:
            # Disks fill up and rights are missing wherever files are written.
            full = error.errno == errno.ENOSPC
            shown = HostError(
                "the disk is full" if full else "a file cannot be read or written",
                where=str(error.filename or ""),
                got=error.strerror or str(error),
                remedy="free some space and run the verb again; it resumes" if full else "",
            )
            end_with(shown, error, kwargs)
        except KeyboardInterrupt as error:
            console.say("interrupted; run the verb again, it resumes")
            raise Exit(code=130) from error

    given = dict(inspect.signature(function).parameters)
    context = given.pop("c")
    if asks := given.pop("asked", None) is not None:
        given = {**ASKED, **given}  # in this order: Invoke gives out short options by it
    # Only an argument without a default is taken from its place.
    named = ["ref"] if "ref" in given and named_after(function.__name__) else []
    given |= {name: given[name].replace(default=None) for name in named}
    wrapped.__signature__ = inspect.Signature([context, *given.values()])  # type: ignore[attr-defined]
    return task(
        help={name: HELP[name] for name in given if name in HELP} | getattr(function, "helps", {}),
        iterable=[name for name in given if name in REPEATABLE],
        # None: Invoke takes every argument without a default from its place.
        positional=named or None,
    )(wrapped)


def named_after(word: str) -> bool:
    """Return whether the command line names something right after the verb `word`.

    Invoke has no positional argument that may be left out: it is one when it is there.
    """
    following = sys.argv[sys.argv.index(word) + 1 :] if word in sys.argv else []
    return bool(following) and not following[0].startswith("-")


def tidy_up_when_ended() -> None:
    """Make an end from outside (a scheduler's, a closed terminal) what a Ctrl-C is.

    Without this it would leave containers that go on, and what they write to.
    """

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one, and means it
            signal.signal(number, interrupt)


def end_with(error: TdstackError, cause: BaseException, options: dict[str, Any]) -> NoReturn:
    """End the verb with the error's message, as JSON too when asked, and its exit code."""
    console.show_error(error)
    if options.get("json"):
        console.emit_json(error.as_dict())
    raise Exit(code=int(error.code)) from cause


def helps(**texts: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Attach help for options that only one verb has."""

    def attach(function: Callable[..., None]) -> Callable[..., None]:
        function.helps = texts  # type: ignore[attr-defined]
        return function

    return attach
