"""Ports for servers that take a while until they listen."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Free ports that nobody is given meanwhile.

    They lie beside those that Ray's workers take (10002 to 19999) and those that the kernel gives
    to connections, and are drawn at random, as tests in other processes do.
    """
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = 20_000 + secrets.randbelow(12_000)
            s = stack.enter_context(socket.socket())
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found
