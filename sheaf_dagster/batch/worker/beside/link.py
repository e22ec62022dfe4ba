"""Objects between two processes of one machine; large arrays go as they are, without a copy."""

from __future__ import annotations

import io
import pickle
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Link", "as_sent", "pickled", "pickled_within", "unpickled"]

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

        data = _dumped(message, stays_inside)
        if data is None:
            large.clear()
            data = _dumped_by_value(message)
        self.send_pickled(data, large)

    def send_pickled(self, data: bytes, large: list[memoryview] | None = None) -> None:
        """Sends an object that is pickled already, with its large buffers."""
        large = large or []
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
        return pickle.loads(data, buffers=large)  # noqa: S301  (from our own process)

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
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def pickled(what: Any) -> bytes:
    """Something for a process that doesn't have this one's ``__main__``.

    Raises:
        Exception: It can't be pickled.
    """
    data = _dumped(what)
    return _dumped_by_value(what) if data is None else data


def _dumped(
    what: Any, stays_inside: Callable[[pickle.PickleBuffer], bool] | None = None
) -> bytes | None:
    """An object whose classes are in modules; None of another."""
    try:
        data = pickle.dumps(what, 5, buffer_callback=stays_inside)
    except Exception:  # a class that was made in a function, say
        return None
    return None if b"__main__" in data else data


def _dumped_by_value(what: Any) -> bytes:
    from ray import cloudpickle

    return cloudpickle.dumps(what, 5)  # type: ignore[no-any-return]


def pickled_within(what: Any, most: int) -> bytes | None:
    """As ``pickled``, of something that may hold very much; None where it takes more.

    Raises:
        Exception: It can't be pickled.
    """
    file = _Limited(most)
    try:
        pickle.Pickler(file, 5).dump(what)
        data = None if b"__main__" in file.getvalue() else file.getvalue()
    except _TooMuchError:
        return None
    except Exception:  # a class that was made in a function, say
        data = None
    data = _dumped_by_value(what) if data is None else data
    return data if len(data) <= most else None


class _TooMuchError(Exception):
    pass


class _Limited(io.BytesIO):
    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise _TooMuchError
        return super().write(data)


def unpickled(data: bytes) -> Any:
    """What was pickled by ``pickled``, here or in the other process."""
    return pickle.loads(data)  # noqa: S301  (from our own process)


def as_sent(what: Any) -> Any:
    """Something as another process would get it.

    Raises:
        Exception: It can't be sent.
    """
    return unpickled(pickled(what))
