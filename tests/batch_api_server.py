"""A server with a batch API on loopback: files, batches, and what may go wrong with them.

It answers a chat with its last message reversed. In a row's text ``fault=400`` is refused with that
status, ``fault=500*1`` fails so in the first batch that holds it, and ``fault=lost*1`` has no answer
there.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.loopback import Handler, Loopback

__all__ = ["BatchApiServer"]

_FAULT = re.compile(r"fault=(\w+)(?:\*(\d+))?")


class BatchApiServer:
    """Runs from its construction to ``stop``.

    Attributes:
        batches: Every batch that was created, with its lines, in order.
        looks: How often a batch is looked at before it ends.
        dies_at: Requests by method and path that are reset once they were carried out.
        lists: Whether it lists its batches.
        garbles: Changes the lines of an output file before it is stored.
        ends: How the first batch ends, in place of ``completed``; with ``errors``.
    """

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.looks = 2
        self.dies_at: re.Pattern[str] | None = None
        self.lists = True
        self.ends: str | None = None
        self.garbles: Callable[[list[str]], list[str]] = lambda lines: lines
        self.errors: list[dict[str, Any]] = []
        self._files: dict[str, bytes] = {}
        self._by_key: dict[str, dict[str, Any]] = {}
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        server = Loopback(self._handler())
        self.url, self.stop = f"{server.url}/v1", server.stop

    def texts(self, batch: int) -> list[str]:
        """The last messages of a batch's lines."""
        return [line["body"]["messages"][-1]["content"] for line in self.batches[batch]["lines"]]

    def _answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        match method, path.partition("?")[0].strip("/").split("/")[1:]:
            case "POST", ["files"]:
                boundary = re.search(r"boundary=(\S+)", headers["Content-Type"])
                assert boundary is not None
                parts = body.split(b"--" + boundary[1].encode())
                (data,) = [p.partition(b"\r\n\r\n")[2] for p in parts if b"filename=" in p]
                return 200, self._file(data.removesuffix(b"\r\n"))
            case "POST", ["batches"]:
                return 200, self._create(json.loads(body), headers.get("Idempotency-Key"))
            case "GET", ["batches"] if self.lists:
                found = [self._shown(b) for b in reversed(self.batches)]
                return 200, {"object": "list", "data": found, "has_more": False}
            case "GET", ["batches", id]:
                batch = next(b for b in self.batches if b["id"] == id)
                batch["looks"] += 1
                if batch["looks"] >= self.looks and batch["status"] == "in_progress":
                    self._end(batch)
                return 200, self._shown(batch)
            case "GET", ["files", id, "content"]:
                return 200, self._files[id]
        return 404, {"error": {"message": f"no {method} {path}", "type": "not_found"}}

    def _file(self, data: bytes) -> dict[str, Any]:
        id = f"file-{len(self._files)}"
        self._files[id] = data
        return {"id": id, "object": "file", "bytes": len(data), "purpose": "batch"}

    def _create(self, asked: dict[str, Any], key: str | None) -> dict[str, Any]:
        if key in self._by_key:
            return self._shown(self._by_key[key])
        data = self._files[asked["input_file_id"]]
        batch = {
            **asked,
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "status": "in_progress",
            "created_at": 0,
            "looks": 0,
            "lines": [json.loads(line) for line in data.splitlines()],
        }
        self.batches.append(batch)
        if key is not None:
            self._by_key[key] = batch
        return self._shown(batch)

    def _shown(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {name: v for name, v in batch.items() if name not in ("lines", "looks")}

    def _end(self, batch: dict[str, Any]) -> None:
        if self.ends and batch is self.batches[0]:
            batch["status"] = self.ends
            batch["errors"] = {"object": "list", "data": self.errors}
            if self.ends != "expired":
                return
        else:
            batch["status"] = "completed"
        answered, failed = [], []
        for line in reversed(batch["lines"]):  # a vendor's files have no order
            status = self._answered(line)
            if status is not None:
                (answered if status["response"]["status_code"] == 200 else failed).append(status)
        for name, lines in (("output_file_id", answered), ("error_file_id", failed)):
            if lines:
                written = [json.dumps(line) for line in lines]
                if name == "output_file_id":
                    written = self.garbles(written)
                batch[name] = self._file("\n".join(written).encode())["id"]

    def _answered(self, line: dict[str, Any]) -> dict[str, Any] | None:
        text = line["body"]["messages"][-1]["content"]
        self._seen[text] += 1
        found = _FAULT.search(text)
        status, said = 200, text[::-1]
        if found and self._seen[text] <= int(found[2] or 10**9):
            if found[1] == "lost":
                return None
            status = int(found[1])
        choice = {"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "content": said}}  # fmt: skip
        usage = {
            "prompt_tokens": len(text),
            "completion_tokens": len(said),
            "total_tokens": 2 * len(text),
        }
        body = {"id": "chatcmpl-x", "object": "chat.completion", "created": 5, "usage": usage,
                "model": line["body"].get("model"), "choices": [choice]}  # fmt: skip
        if status != 200:
            body = {"error": {"message": f"refused with {status}", "type": f"kind_{status}"}}
        return {
            "id": f"batch_req_{self._seen[text]}",
            "custom_id": line["custom_id"],
            "response": {"status_code": status, "request_id": "r", "body": body},
            "error": None,
        }

    def _handler(self) -> type[Handler]:
        server = self

        class Answering(Handler):
            def handle_one(self, method: str) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with server._lock:
                    status, said = server._answer(method, self.path, self.headers, body)
                if server.dies_at and server.dies_at.search(f"{method} {self.path}"):
                    self.reset()
                    return
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:  # noqa: N802
                self.handle_one("GET")

            def do_POST(self) -> None:  # noqa: N802
                self.handle_one("POST")

        return Answering
