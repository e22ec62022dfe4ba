"""Whether a cluster answers, within a time: ``ray.init`` waits minutes for one that is gone."""

from __future__ import annotations

import os
import socket
import time

from sheaf_dagster.errors import ClusterError

__all__ = ["require_answer"]

_BETWEEN_TRIES_SECONDS = 0.25

# What an HTTP/2 client says first (RFC 9113, 3.4): a preface, and settings of which there are none.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HEADER_BYTES = 9
_SETTINGS = 4


def require_answer(address: str, within_s: float, named: str | None = None) -> None:
    """Returns once a gRPC server, such as Ray's, has answered at an address.

    Args:
        address: ``host:port``.
        within_s: How long to go on trying (seconds): a head may be starting.
        named: What the user calls it, for the message.

    Raises:
        ClusterError: None has; the last try's reason is given.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # ray.init says what is wrong with it
    deadline = time.monotonic() + within_s
    while True:
        left = deadline - time.monotonic()
        reason = _reason_for_silence(host.strip("[]"), int(port), max(left, 0.05))
        if reason is None:
            return
        if time.monotonic() + _BETWEEN_TRIES_SECONDS >= deadline:
            raise ClusterError(
                f"Ray at {named or address} can't be reached: {reason} (tried for {within_s:g} s, "
                "connect_timeout_s); check the address and that the cluster is up"
            )
        time.sleep(_BETWEEN_TRIES_SECONDS)


def _reason_for_silence(host: str, port: int, within_s: float) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=within_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return None  # it has a greeting of its own
            connection.sendall(_HELLO)
            said = b""
            while len(said) < _HEADER_BYTES:
                more = connection.recv(_HEADER_BYTES - len(said))
                if not more:
                    break
                said += more
    except TimeoutError:
        return "nothing answers there"
    except OSError as e:
        return (e.strerror or str(e)).lower()
    if len(said) == _HEADER_BYTES and said[3] == _SETTINGS:
        return None
    return "something other than Ray answers there (give the GCS address, by default port 6379)"
