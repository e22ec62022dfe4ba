"""A server on loopback, and handlers of its requests."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Handler", "Loopback"]


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, may reset them, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def reset(self) -> None:
        """Cuts the connection off."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):  # it was reset
            pass

    def log_message(self, *_: Any) -> None:
        pass


class Loopback(ThreadingHTTPServer):
    """Runs from its construction to ``stop``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Ends it."""
        self.shutdown()
        self.server_close()

    def handle_error(self, *about: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away
            super().handle_error(*about)

    def shutdown_request(self, request: Any) -> None:
        try:
            super().shutdown_request(request)
        except OSError:
            pass
