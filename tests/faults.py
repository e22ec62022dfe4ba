"""An HTTP proxy that stands between a client and an object store and makes trouble."""

from __future__ import annotations

import http.client
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tests.loopback import Handler, Loopback

KINDS = ("500", "503", "reset", "lost answer", "stall", "truncated", "error in a 200")

_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message></Error>'
_BODIES = {
    "500": (500, _ERROR.format("InternalError", "We encountered an internal error.")),
    "503": (503, _ERROR.format("SlowDown", "Please reduce your request rate.")),
    "expired": (400, _ERROR.format("ExpiredToken", "The provided token has expired.")),
    "501": (501, _ERROR.format("NotImplemented", "A header implies what is not implemented.")),
    "error in a 200": (200, _ERROR.format("InternalError", "We encountered an internal error.")),
}


@dataclass
class Faults:
    """Which requests fail, and how: some at random, or those that ``picks`` name."""

    seed: int = 0
    rate: float = 0.0
    kinds: tuple[str, ...] = KINDS
    picks: tuple[str, ...] = ()
    """Regular expressions over ``METHOD /path?query``; such requests fail with ``kinds[0]``."""
    times: int | None = None
    """How many requests fail of each pick."""
    stall_seconds: float = 3.0
    meanwhile: Callable[[], object] = lambda: None
    """What others do at that moment: before a request that is "raced" is carried out, and after
    one whose answer is lost."""
    conditions: Literal["heeded", "ignored", "refused", "refused on DELETE"] = "heeded"
    """What the store makes of ``If-Match`` and ``If-None-Match``."""
    change: Callable[[str, bytes], bytes] = lambda _, body: body
    """What the store makes of its answer to ``METHOD /path?query``."""
    seen: Counter = field(default_factory=Counter)
    hit: Counter = field(default_factory=Counter)
    requests: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def kind_for(self, request: str) -> str | None:
        with self._lock:
            self.requests += 1
            kind = self._picked(request)
            if not self.picks and self._random.random() < self.rate:
                kind = self._random.choice(self.kinds)
            # S3 says 200 and an error only where an answer may take long to come.
            if kind == "error in a 200" and not re.match(r"POST .*uploadId=", request):
                kind = "500"
            if kind is not None:
                self.seen[kind] += 1
            return kind

    def _picked(self, request: str) -> str | None:
        for pick in self.picks:
            if re.search(pick, request) and (self.times is None or self.hit[pick] < self.times):
                self.hit[pick] += 1
                return self.kinds[0]
        return None


class FaultyProxy:
    """Forwards to ``endpoint`` from a port of its own, with the faults of the day."""

    def __init__(self, endpoint: str) -> None:
        self.faults = Faults()
        self._stopped = threading.Event()
        outer, parts = self, urlsplit(endpoint)

        class Forwarding(Handler):
            def _handle(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                faults = outer.faults
                kind = faults.kind_for(f"{self.command} {self.path}")
                if kind == "reset":
                    self.rfile.read(length // 2)
                    self.reset()
                    return
                body = self.rfile.read(length)
                if kind == "stall":
                    outer._stopped.wait(faults.stall_seconds)
                    self.reset()
                    return
                conditional = set(self.headers) & {"If-Match", "If-None-Match"}
                refused = ("refused", f"refused on {self.command}")
                if conditional and faults.conditions in refused:
                    kind = "501"
                if kind in _BODIES:
                    status, text = _BODIES[kind]
                    self._answer(status, [], text.encode())
                    return
                if kind == "raced":
                    faults.meanwhile()
                upstream = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
                try:
                    upstream.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        if not (faults.conditions == "ignored" and name in conditional):
                            upstream.putheader(name, value)
                    upstream.endheaders(body)
                    answer = upstream.getresponse()
                    data = answer.read()
                    headers = answer.getheaders()
                    length = int(answer.getheader("Content-Length") or len(data))
                finally:
                    upstream.close()
                if kind == "lost answer":
                    faults.meanwhile()
                    self.reset()
                    return
                changed = faults.change(f"{self.command} {self.path}", data)
                if changed != data:
                    data, length = changed, len(changed)
                self._answer(answer.status, headers, data, length, cut=kind == "truncated")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

            def _answer(self, status, headers, data, length=None, cut=False) -> None:
                self.send_response_only(status)
                dropped = ("content-length", "transfer-encoding", "connection")
                for name, value in headers:
                    if name.lower() not in dropped:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) if length is None else length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.wfile.flush()
                    self.close_connection = True

        self._server = Loopback(Forwarding)
        self.endpoint = self._server.url

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop()
