"""Brings the loopback interface of a network namespace up, then becomes the given command.

Run as a program in a namespace without a network: `unshare --net python loopback.py COMMAND...`.
Ranks of one container meet on 127.0.0.1.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as _probe:
    _request = struct.pack("16sh14x", b"lo", 0)
    _, _flags = struct.unpack_from("16sh", fcntl.ioctl(_probe, _SIOCGIFFLAGS, _request))
    fcntl.ioctl(_probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _flags | _IFF_UP))
os.execvp(sys.argv[1], sys.argv[1:])
