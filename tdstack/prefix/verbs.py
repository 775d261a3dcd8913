"""What `invoke install --prefix` and `invoke uninstall` do, and print."""

from __future__ import annotations

from pathlib import Path

from tdstack.compiler.host import Host, Purpose, host_stack, refuse_wheel_of_stock
from tdstack.console import emit_json, megabytes, say, table, warn
from tdstack.errors import HostError
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock
from tdstack.plan import make_plan
from tdstack.prefix.install import Installed, install, rollback
from tdstack.prefix.place import Prefix
from tdstack.prefix.pythons import OTHERS, find_host
from tdstack.prefix.record import read_record
from tdstack.prefix.uninstall import Removed, uninstall
from tdstack.prefix.version import Target
from tdstack.stack import Request
from tdstack.workspace import Workspace

INSTALL = Purpose("install", "install", f"name another Python with --python; {OTHERS}")


def install_prefix(
    workspace: Workspace,
    named: str,
    request: Request,
    source: ForkSource,
    *,
    python: str,
    as_json: bool,
    dry: bool,
) -> Installed | None:
    """Install the layers of a CUDA line into a prefix, or say what that would do.

    Raises: UsageError, HostError, IntegrityError, UpstreamError, CheckFailed; the version that
    was in use is in use then.
    """
    prefix = Prefix.of(named)
    if prefix.is_ours:
        prefix.require_ours()
    refuse_wheel_of_stock(request, source)
    lock = load_lock(workspace.root)[0]
    host = find_host(lock, request, python)
    target = _target(workspace, lock, host, request, source)
    for note in target.plan.stack.notes:
        warn(note)
    if dry:
        _show_dry(workspace, prefix, target, as_json=as_json)
        return None
    done = install(workspace, prefix, target, say)
    _show(done, as_json=as_json)
    return done


def rollback_prefix(named: str, wanted: str, *, as_json: bool, dry: bool) -> Installed | None:
    """Switch a prefix to the version that was in use before, or to the one that is named.

    Raises: as rollback.
    """
    prefix = Prefix.of(named)
    _require_there(prefix)
    prefix.require_ours()
    if dry:
        key = wanted or prefix.named_by(prefix.previous) or "none"
        say(f"dry run: {prefix.current} would name version {key}")
        return None
    done = rollback(prefix, wanted)
    _show(done, as_json=as_json)
    return done


def uninstall_prefix(
    named: str, wanted: str, *, everything: bool, as_json: bool, dry: bool
) -> Removed:
    """Remove a version of a prefix, or all of it.

    Raises: as uninstall.
    """
    done = uninstall(Prefix.of(named), wanted, everything=everything, dry=dry)
    if as_json:
        emit_json(done.as_dict())
    verb = "dry run: would remove" if dry else "removed"
    if done.removed or done.changed:
        say(f"{verb} {len(done.removed)} versions from {done.prefix}: {', '.join(done.removed)}")
    else:
        say(f"there is nothing at {done.prefix}")
    if done.left:
        say(f"  not made by an install, and left: {', '.join(done.left)}")
    return done


def _target(
    workspace: Workspace,
    lock: Lock,
    host: Host,
    request: Request,
    source: ForkSource,
) -> Target:
    stack = host_stack(lock, host, request, lambda: workspace.fork(source, host.python), INSTALL)
    return Target.of(make_plan(stack, workspace.root), host)


def _require_there(prefix: Prefix) -> None:
    if not prefix.root.is_dir():
        raise HostError("no such prefix", where=f"--prefix {prefix.root}")


def _show_dry(workspace: Workspace, prefix: Prefix, target: Target, *, as_json: bool) -> None:
    plan = target.plan
    files = [p.file for p in plan.stack.all_packages() if p.file]
    absent = [f for f in files if not workspace.store.has(f)]
    there = target.key in prefix.version_keys()
    current = prefix.named_by(prefix.current)
    if as_json:
        emit_json(
            {
                "schema": 1,
                "prefix": str(prefix.root),
                "version": target.key,
                "key": target.key,
                "current": current,
                "changed": current != target.key,
                "made": not there,
                "python": plan.stack.python,
                "interpreter": str(target.host.interpreter),
                "fetch_files": len(absent),
                "fetch_bytes": sum(f.size for f in absent),
                "cubins": plan.cubins,
            }
        )
    say(f"dry run: version {target.key} of {prefix.root}, which has {current or 'none'} in use")
    say(f"  Python {plan.stack.python}: {target.host.interpreter}")
    if there:
        say("  it is there already")
        return
    say(f"  {len(absent)} of {len(files)} files to fetch, {megabytes(sum(f.size for f in absent))}")
    say(f"  {sum(plan.cubins.values())} cubins to compile: {', '.join(plan.cubins)}")


def _show(done: Installed, *, as_json: bool) -> None:
    prefix = Prefix(Path(done.prefix))
    rows = []
    for key in done.versions:
        record = read_record(prefix.versions / key)
        use = "in use" if key == done.version else "previous" if key == done.previous else ""
        rows.append([key, record.module if record else "?", record.title if record else "?", use])
    table(done.prefix, ["version", "module", "holds", ""], rows)
    for finding in done.findings:
        if finding["check"] == "jit" and "not on this host" in finding["detail"]:
            warn(finding["detail"])
    times = ", ".join(f"{name} {value:.1f} s" for name, value in done.seconds.items())
    if done.made:
        say(f"written {megabytes(done.written)}, linked {megabytes(done.linked)}; {times}")
    say(f"{'now' if done.changed else 'still'} in use: {prefix.current} -> {done.version}")
    if done.changed:
        say(f"  . {prefix.root}/activate")
    if as_json:
        emit_json(done.as_dict())
