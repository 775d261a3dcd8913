"""The host's clock: certificates, signatures and logs of several nodes rely on it."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.host import Host


def synchronised(host: Host) -> Answer | None:
    """Judge whether somebody sets the clock."""
    clock = host.facts.clock
    if clock.synchronised is None:
        return unknown(host, "clock.synchronised", "whether the clock is set is not known")
    evidence = f"set by {clock.source}" if clock.source else "no service was seen that sets it"
    if not clock.synchronised:
        return trouble("warning", "clock", "the clock is not synchronised", evidence)
    return ok("the clock is synchronised", evidence)


def offset(host: Host) -> Answer | None:
    """Judge how far the clock is off, by the kernel's own estimate."""
    clock, most = host.facts.clock, host.thresholds.limits.clock_offset_s
    if clock.offset_s is None or not clock.synchronised:
        return None
    evidence = f"{clock.offset_s:+.6f} s, at most {most:g} s expected"
    if abs(clock.offset_s) > most:
        return trouble("warning", "clock-offset", "the clock is off", evidence)
    return ok("the clock is right", evidence)


CHECKS = (
    Check("clock", "the clock is synchronised", synchronised),
    Check("clock-offset", "its offset is small", offset),
)
