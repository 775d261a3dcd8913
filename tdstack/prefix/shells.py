"""Files to be sourced by a POSIX shell: sh, dash, bash, zsh. Pure.

They use the names of venv's own `activate` (_OLD_VIRTUAL_PATH, _OLD_VIRTUAL_PS1, deactivate), so
that one environment takes the place of the other in either order.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tdstack.prefix.record import Record

SAVED = "_TDSTACK_OLD"
CACHE = '"${{XDG_CACHE_HOME:-${{HOME:-/tmp}}/.cache}}/tdstack/{path}"'
ACTIVATE = """\
# Made by tdstack; source it:  . {script}
# {title}
if [ ! -x {python} ]; then
  echo {gone} >&2
  (exit 1)
else
  if [ -n "${{_TDSTACK_ACTIVE:-}}" ]; then deactivate nondestructive; fi
  deactivate () {{
    if [ -n "${{_OLD_VIRTUAL_PATH+x}}" ]; then
      PATH=$_OLD_VIRTUAL_PATH
      export PATH
      unset _OLD_VIRTUAL_PATH
    fi
    if [ -n "${{_OLD_VIRTUAL_PS1+x}}" ]; then
      PS1=$_OLD_VIRTUAL_PS1
      export PS1
      unset _OLD_VIRTUAL_PS1
    fi
{restore}
    unset VIRTUAL_ENV VIRTUAL_ENV_PROMPT _TDSTACK_ACTIVE
    hash -r 2>/dev/null || true
    if [ "${{1:-}}" != nondestructive ]; then unset -f deactivate; fi
  }}
  # What venv's own activate keeps would be lost, and its environment stay on PATH.
  if [ -n "${{_OLD_VIRTUAL_PATH+x}}" ]; then
    PATH=$_OLD_VIRTUAL_PATH
    if [ -n "${{_OLD_VIRTUAL_PS1+x}}" ]; then PS1=$_OLD_VIRTUAL_PS1; fi
  fi
  _TDSTACK_ACTIVE=1
  _OLD_VIRTUAL_PATH=$PATH
  PATH={bin}:$PATH
  export PATH
{keep}
  VIRTUAL_ENV_PROMPT={name}
  export VIRTUAL_ENV_PROMPT
  if [ -z "${{VIRTUAL_ENV_DISABLE_PROMPT:-}}" ]; then
    _OLD_VIRTUAL_PS1=${{PS1:-}}
    PS1="({name}) ${{PS1:-}}"
    export PS1
  fi
  hash -r 2>/dev/null || true
fi
"""
RESTORE = """    if [ -n "${{{saved}_{name}+x}}" ]; then
      {name}=${saved}_{name}
      export {name}
    else
      unset {name}
    fi
    unset {saved}_{name}"""
KEEP = """  if [ -n "${{{name}+x}}" ]; then {saved}_{name}=${name}; fi
  {name}={value}
  export {name}"""
# Where the user has named a folder, that one stays.
KEEP_CACHED = """  if [ -n "${{{name}+x}}" ]; then {saved}_{name}=${name}; fi
  {name}=${{{name}:-{value}}}
  export {name}"""
CURRENT = """\
# Made by tdstack; source it:  . {script}
# The version that {current} names at that moment; an upgrade does not change a running shell.
if [ -r {activate} ]; then
  . {activate}
else
  echo {gone} >&2
  (exit 1)
fi
"""


def activate_version(version: Path, record: Record) -> str:
    """Return the script that makes a shell use one version; `deactivate` undoes it."""
    names = [n for n in (*record.environment, *record.cached) if n != "VIRTUAL_ENV"]
    keep = [KEEP.format(name="VIRTUAL_ENV", value=shlex.quote(str(version)), saved=SAVED)]
    keep[0] = "\n".join(keep[0].splitlines()[1:])  # deactivate unsets it, as venv's own does
    keep += [
        KEEP.format(name=name, value=shlex.quote(value), saved=SAVED)
        for name, value in record.environment.items()
        if name != "VIRTUAL_ENV"
    ]
    keep += [
        KEEP_CACHED.format(name=name, value=CACHE.format(path=path), saved=SAVED)
        for name, path in record.cached.items()
    ]
    return ACTIVATE.format(
        script=shlex.quote(str(version / "bin" / "activate")),
        title=record.title,
        python=shlex.quote(str(version / "bin" / "python")),
        gone=shlex.quote(_gone(version)),
        restore="\n".join(RESTORE.format(name=name, saved=SAVED) for name in names),
        bin=shlex.quote(str(version / "bin")),
        keep="\n".join(keep),
        name=record.module,
    )


def activate_current(prefix: Path) -> str:
    """Return the script that makes a shell use whatever version the prefix then uses."""
    return CURRENT.format(
        script=shlex.quote(str(prefix / "activate")),
        current=prefix / "current",
        activate=shlex.quote(str(prefix / "current" / "bin" / "activate")),
        gone=shlex.quote(_gone(prefix / "current")),
    )


def _gone(place: Path) -> str:
    return f"tdstack: {place} is not there: it was removed or moved, or is not mounted on this host"
