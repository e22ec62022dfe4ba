"""A server that speaks the OpenAI API on loopback, with faults on request.

It answers a chat with its last message reversed. A message ``fault=429*2 …`` meets that fault at the
first two attempts; without ``*2`` at each.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.loopback import Handler, Loopback

__all__ = ["ApiServer"]

_FAULT = re.compile(r"fault=(\w+)(?:\*(\d+))?")


class ApiServer:
    """Runs from its construction to ``stop``.

    With ``upstream``, another server's address, it is the faults alone: what meets none is passed on,
    and answered as that server does.

    Attributes:
        bodies: What was posted and answered, in order of arrival.
        times: By text the times of its attempts.
        headers: Of the last request.
        connections: Connections that were opened.
        most_at_once: Requests that were under way together.
        says: Makes status, data and headers of an answer to a body, in place of all else.
        on_answer: Called with the number of requests answered so far, before each further one.
    """

    def __init__(self, port: int = 0, *, retry_after: str = "0.3", die_after: int | None = None):
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.times: dict[str, list[float]] = {}
        self.headers: dict[str, str] = {}
        self.connections = self.most_at_once = self._now = 0
        self.key: str | None = None
        self.retry_after, self.die_after = retry_after, die_after
        self.gate: threading.Barrier | None = None
        self.upstream: str | None = None
        self.says: Callable[[dict[str, Any]], tuple[int, bytes, dict[str, str]]] | None = None
        self.on_answer: Callable[[int], None] = lambda answered: None
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server = Loopback(self._handler(), port)
        self.port, self.url = self._server.port, f"{self._server.url}/v1"

    def stop(self) -> None:
        """Ends it; what stalls is let go."""
        self._released.set()
        self._server.stop()

    def _answer(self, handler: Any) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.headers = dict(handler.headers.items())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        if self.gate is not None:
            self.gate.wait(300)
        try:
            self._answer_body(handler, body)
        finally:
            with self._lock:
                self._now -= 1

    def _answer_body(self, handler: Any, body: dict[str, Any]) -> None:
        chat = "messages" in body
        text = (
            body["messages"][-1]["content"]
            if chat
            else str(body.get("prompt") or body.get("input"))
        )
        with self._lock:
            self.times.setdefault(text, []).append(time.monotonic())
            self._seen[text] += 1
            dead = self.die_after is not None and len(self.bodies) >= self.die_after
        if dead:
            return handler.reset()
        if self.says is not None:
            return self._send(handler, *self.says(body))
        if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
            return self._send(handler, 401, {"error": {"message": "wrong key", "type": "auth"}})
        found = _FAULT.search(text)
        if found and self._seen[text] <= int(found[2] or 10**9):
            return self._fault(handler, found[1])
        if self.upstream is not None:
            return self._pass_on(handler, body)
        with self._lock:
            self.bodies.append(body)
            self.paths.append(handler.path)
        said = text[::-1]
        choice = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        usage = {"prompt_tokens": len(text), "completion_tokens": len(said)}
        return self._send(
            handler,
            200,
            {
                "id": f"chatcmpl-{time.time_ns()}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model"),
                "choices": [{"index": 0, **choice, "finish_reason": "stop"}],
                "usage": {**usage, "total_tokens": 2 * len(text)},
            },
        )

    def _pass_on(self, handler: Any, body: dict[str, Any]) -> None:
        self.on_answer(len(self.bodies))
        asked = urllib.request.Request(
            f"{self.upstream}{handler.path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked) as answer:
                status, said = answer.status, json.load(answer)
        except urllib.error.HTTPError as e:
            status, said = e.code, json.load(e)
        except (OSError, http.client.HTTPException):
            return handler.reset()
        with self._lock:
            self.bodies.append(body)
        return self._send(handler, status, said)

    def _fault(self, handler: Any, kind: str) -> None:
        if kind == "reset":
            return handler.reset()
        if kind == "stall":
            self._released.wait(60)
            return handler.reset()
        if kind == "html":
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html")
            handler.send_header("Content-Length", "2")
            handler.end_headers()
            handler.wfile.write(b"<>")
            return None
        error = {"message": f"refused with {kind}", "type": f"kind_{kind}", "code": int(kind)}
        headers = {"Retry-After": self.retry_after} if kind == "429" else {}
        return self._send(handler, int(kind), {"error": error}, headers)

    def _send(self, handler: Any, status: int, body: Any, headers: Any = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _handler(self) -> type[Handler]:
        server = self

        class Counting(Handler):
            def setup(self) -> None:
                with server._lock:
                    server.connections += 1
                super().setup()

            def do_POST(self) -> None:  # noqa: N802
                server._answer(self)

        return Counting
