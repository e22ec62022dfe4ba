"""Objects between two processes of one machine; large arrays go as they are, without a copy."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from typing import Any

__all__ = ["Link"]

_LARGE_BYTES = 64 * 2**10
"""A buffer of this size goes by itself; smaller ones cost less within the message."""

_BUFFER_BYTES = 2**20
_LENGTH = struct.Struct("<Q")


class Link:
    """One end of a socket. One thread receives; any may send."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    def send(self, message: Any) -> None:
        """Sends an object.

        Raises:
            OSError: The other end is gone.
            Exception: It can't be pickled; nothing is sent then.
        """
        large: list[memoryview] = []

        def stays_inside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _LARGE_BYTES:
                return True
            large.append(raw)
            return False

        self._send(pickle.dumps(message, 5, buffer_callback=stays_inside), large)

    def send_raw(self, pickled: bytes) -> None:
        """Sends an object that is pickled already."""
        self._send(pickled, [])

    def _send(self, data: bytes, large: list[memoryview]) -> None:
        sizes = [len(data), *(raw.nbytes for raw in large)]
        head = b"".join(map(_LENGTH.pack, [len(sizes), *sizes]))
        with self._sending:
            self._socket.sendall(head + data)
            for raw in large:
                self._socket.sendall(raw)

    def receive(self) -> Any:
        """The next object; blocks until there is one.

        Raises:
            EOFError: The other end is gone.
        """
        (count,) = _LENGTH.unpack(self._read(_LENGTH.size))
        sizes = struct.unpack(f"<{count}Q", self._read(count * _LENGTH.size))
        data, *large = [self._read(size) for size in sizes]
        return pickle.loads(data, buffers=large)  # noqa: S301  (our own process)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            try:
                more = self._socket.recv_into(view[got:])
            except OSError:
                more = 0
            if not more:
                raise EOFError("the other process is gone")
            got += more
        return data

    def close(self) -> None:
        """Ends the connection, also for a thread that waits for a message."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
