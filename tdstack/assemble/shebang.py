"""The first line of a script, for interpreters at any path."""

from __future__ import annotations

# What Linux reads of a first line (BINPRM_BUF_SIZE - 1, since 5.1; 127 before).
LONGEST = 127


def shebang(python: str, options: str = "") -> bytes:
    """Return the head of a Python script that `python` is to run, with an option of its own.

    The kernel splits a first line at spaces and cuts a long one off: then the shell starts
    Python, by lines that Python itself reads as a string (the way of pip and uv). Pure.
    """
    line = f"#!{python} {options}".rstrip()
    if " " not in python and len(line) <= LONGEST:
        return f"{line}\n".encode()
    words = f'"{python}" {options}'.rstrip()
    return f"#!/bin/sh\n'''exec' {words} \"$0\" \"$@\"\n' '''\n".encode()
