"""Files for environment modules: one in Tcl, which both programs read, one in Lua for Lmod. Pure.

The name is that of a version, so that a batch job keeps the one that it was written for; the
default is the version in use.
"""

from __future__ import annotations

from pathlib import Path

from tdstack.prefix.place import MODULE, Prefix
from tdstack.prefix.record import Record

TCL = """\
#%Module1.0
# Made by tdstack.
proc ModulesHelp {{ }} {{
    puts stderr {{{title}}}
    puts stderr {{Needs an NVIDIA driver {driver} or newer. Check it with: tdstack-verify}}
}}
module-whatis {{{title}}}
conflict {module}
set root {{{root}}}
if {{[module-info mode load] && ![file executable $root/bin/python]}} {{
    puts stderr "$root is not there: it was removed or moved, or is not mounted on this host"
    break
}}
prepend-path PATH $root/bin
{fixed}
if {{[info exists env(XDG_CACHE_HOME)]}} {{
    set cache $env(XDG_CACHE_HOME)
}} elseif {{[info exists env(HOME)]}} {{
    set cache $env(HOME)/.cache
}} else {{
    set cache /tmp/.cache
}}
{cached}
"""
# Where the user has named a folder, that one stays, also when the module is unloaded.
TCL_CACHED = """\
if {{![info exists env({name})] || $env({name}) eq "$cache/tdstack/{path}"}} {{
    setenv {name} $cache/tdstack/{path}
}}"""
LUA = """\
-- Made by tdstack.
help([[
{title}
Needs an NVIDIA driver {driver} or newer. Check it with: tdstack-verify
]])
whatis("{title}")
family("{module}")
local root = "{root}"
if mode() == "load" and not isFile(pathJoin(root, "bin", "python")) then
  LmodError(root .. " is not there: it was removed or moved, or is not mounted on this host")
end
prepend_path("PATH", pathJoin(root, "bin"))
{fixed}
local cache = os.getenv("XDG_CACHE_HOME") or ((os.getenv("HOME") or "/tmp") .. "/.cache")
{cached}
"""
LUA_CACHED = """\
if (os.getenv("{name}") or cache .. "/tdstack/{path}") == cache .. "/tdstack/{path}" then
  setenv("{name}", cache .. "/tdstack/{path}")
end"""


def default_module(prefix: Prefix, record: Record) -> dict[Path, str]:
    """Return the file that names the default in Tcl; Lmod's is a link.

    Lmod reads this one too, and its reader ends at a space in the path: then there is none, and
    users of the other program name a version.
    """
    if " " in str(prefix.root):
        return {}
    return {prefix.modules / ".version": f'#%Module1.0\nset ModulesVersion "{record.module}"\n'}


def module_files(prefix: Prefix, record: Record) -> dict[Path, str]:
    """Return path and text of both files of a version."""
    named = {
        "title": record.title,
        "driver": record.driver_floor,
        "module": MODULE,
        "root": prefix.versions / record.key,
    }
    fixed, cached = record.environment.items(), record.cached.items()
    tcl = TCL.format(
        fixed="\n".join(f"setenv {name} {{{value}}}" for name, value in fixed),
        cached="\n".join(TCL_CACHED.format(name=name, path=path) for name, path in cached),
        **named,
    )
    lua = LUA.format(
        fixed="\n".join(f'setenv("{name}", "{value}")' for name, value in fixed),
        cached="\n".join(LUA_CACHED.format(name=name, path=path) for name, path in cached),
        **named,
    )
    at = prefix.modules / record.module
    return {at: tcl, at.with_name(f"{at.name}.lua"): lua}
