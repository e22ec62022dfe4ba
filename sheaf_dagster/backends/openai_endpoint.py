"""Rows answered by any server that speaks the OpenAI API."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.libraries import require
from sheaf_dagster.backends.language.bodies import body_of, key_of, response_of, seeded
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.backends.language.server_answers import checked_answer, filtered, skipped_fields
from sheaf_dagster.backends.language.vendor_batches import BatchLimits, VendorBatches
from sheaf_dagster.contracts import OPENAI_BATCH, TEXT
from sheaf_dagster.contracts.prompt_size import prompt_tokens
from sheaf_dagster.errors import BackendError, ServiceDownError, SheafError, SpecError

__all__ = ["OpenAIEndpointBackend"]

log = logging.getLogger(__name__)

_NAME = "openai_endpoint"
_TURNS_AWAY = frozenset({429, 502, 503, 504})
"""What a server says of itself, not of the row."""


class OpenAIEndpointBackend(ModelBackend):
    """Posts each line of the OpenAI batch form, and rows of the ``text`` contract, to a server.

    The server can be vLLM, SGLang, TEI, Ollama, a gateway or a vendor. The body is sent unchanged, and
    the server's reply is the answer, with derived ids and ``created`` 0. Many rows are in flight over
    connections that stay open. The official client retries a request if that may help (connections,
    stalls, 408, 409, 429, 5xx), after the time that ``Retry-After`` names.

    A request that the server refuses fails its row, with the server's status. An answer that can't be
    right also fails its row: an error with status 200, fewer choices or vectors than asked for, or
    JSON that is cut off. If an answer shows that a field had no effect (``logprobs``, a token limit,
    ``tool_choice``, ``response_format``), the row counts as ``ignored_field``, and a warning names the
    field. An answer that the server's filter has cut counts as ``clipped``.

    The job ends, and can be retried, if the server can't be reached, turns requests away after all
    retries (429, 502, 503, 504), or fails row after row. The next run continues where the job ended. A
    refused key, a redirect, and a server that doesn't know the address or model of any row (404) end
    the job, too.

    Args:
        base_url: Address of the API, as its clients use it: ``http://host:8000/v1``.
        model: Name of the model on the server. By default each row's own (``body.model``,
            ``model_name``).
        api_key: The key. Use ``EnvVar("NAME")``, or ``{"env": "NAME"}`` without Dagster; each worker
            reads it from its own environment.
        max_in_flight: Rows in progress at a time.
        requests_per_minute: Limit of each worker, evenly spread. Retries count.
        tokens_per_minute: Limit of each worker, by an estimate: four characters of text are a token,
            a picture is a thousand tokens, and an answer is as long as it may be.
        max_retries: Retries of a row.
        timeout_s: Seconds that one attempt may take.
        max_failures: Consecutive rows that may fail by the server's fault before the job ends.
        max_new_tokens: Length of an answer for rows that don't set it. By default the server's.
        temperature: Temperature for rows of the ``text`` contract that don't set it. By default the
            server's.
        top_p: The same for ``top_p``.
        top_k: The same for ``top_k``.
        seed: A row that draws and has no seed gets one that is made from this value and the row.
            Some servers ignore seeds.
        headers: Further headers. Values may be ``EnvVar``.
        submit: ``requests`` sends each row by itself. ``batch`` sends many rows together through the
            server's batch API, which vendors answer within a day at a lower price. Submitted rows
            are noted beside the finished parts: after a kill the next run waits for them, and
            submits nothing twice. Lines that come back unanswered are submitted again, alone.
        batch_rows: The most rows of one such batch.
        batch_bytes: The largest size of its file.
        batch_window: Time in which the batch must be answered, in the server's own notation.
        poll_s: Seconds between two checks whether it is answered.

    Raises:
        SpecError: ``base_url`` is not an HTTP address, or a limit is not positive.
        MissingDependencyError: At load: the client is not installed.
    """

    model_type = (TEXT, OPENAI_BATCH)
    tunables = frozenset(
        {
            "api_key",
            "batch_bytes",
            "batch_rows",
            "batch_window",
            "max_failures",
            "max_in_flight",
            "max_retries",
            "poll_s",
            "requests_per_minute",
            "submit",
            "timeout_s",
            "tokens_per_minute",
        }
    )

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        max_in_flight: int = 64,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_retries: int = 6,
        timeout_s: float = 600.0,
        max_failures: int = 10,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        headers: Mapping[str, str] | None = None,
        submit: Literal["requests", "batch"] = "requests",
        batch_rows: int = 50_000,
        batch_bytes: int = 100_000_000,
        batch_window: str = "24h",
        poll_s: float = 30.0,
    ) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise SpecError(
                f"base_url must be an address like http://host:8000/v1, got {base_url!r}"
            )
        for name, limit in {
            "max_in_flight": max_in_flight,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "timeout_s": timeout_s,
            "max_failures": max_failures,
            "batch_rows": batch_rows,
            "batch_bytes": batch_bytes,
            "poll_s": poll_s,
        }.items():
            if limit is not None and not limit > 0:
                raise SpecError(f"{name} must be greater than 0, got {limit}")
        if max_retries < 0:
            raise SpecError(f"max_retries must be 0 or more, got {max_retries}")
        if submit not in ("requests", "batch"):
            raise SpecError(f"submit must be 'requests' or 'batch', got {submit!r}")
        self._base_url = base_url.rstrip("/")
        self._server = address.netloc.rpartition("@")[2]
        self._model = model
        self._api_key = api_key
        # Rows of a batch that isn't full yet, or that is at the server, wait in flight.
        self.max_in_flight = max_in_flight if submit == "requests" else batch_rows
        self._limits = BatchLimits(batch_rows, batch_bytes, poll_s, batch_window, max_retries + 1)
        self._submits = submit
        self._requests_per_minute = requests_per_minute
        self._tokens_per_minute = tokens_per_minute
        self._max_retries = max_retries
        self._timeout_s = timeout_s
        self._max_failures = max_failures
        self._defaults = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
        }
        self._seed = seed
        self._headers = dict(headers or {})
        self._openai: Any = None
        self._client: Any = None
        self._batches: VendorBatches | None = None
        self._tokens: Any = None
        self._failures = self._not_found = self._answered = 0
        self._skipped: set[str] = set()
        self._in_flight = 0
        self._down: SheafError | None = None

    def load(self) -> None:
        self._openai, limiters = require(_NAME, "endpoint", "openai", "aiolimiter")
        self.run_async(self._start(limiters))

    async def _start(self, limiters: Any) -> None:
        if self._tokens_per_minute is not None:
            self._tokens = limiters.AsyncLimiter(self._tokens_per_minute, 60)
        hooks = []
        if self._requests_per_minute is not None:
            # Evenly spread: servers count by the second, too.
            period = max(1.0, 60 / self._requests_per_minute)
            requests = limiters.AsyncLimiter(self._requests_per_minute * period / 60, period)

            async def wait(_: Any) -> None:
                await requests.acquire()

            hooks.append(wait)  # called at each attempt
        self._client = self._openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key or "none",  # the client wants one; servers without keys don't
            max_retries=self._max_retries,
            timeout=self._timeout_s,
            default_headers=self._headers,
            http_client=self._openai.DefaultAsyncHttpxClient(
                event_hooks={"request": hooks, "response": [_stay]}
            ),
        )
        if self._submits == "batch":
            self._batches = VendorBatches(self._client, self._limits)

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            self.run_async(client.close())

    async def predict_async(self, request: Any) -> BaseModel:
        url, body = body_of(request, self._defaults)
        if self._seed is not None:
            body = seeded(url, body, request, self._seed)
        if self._model is not None:
            body["model"] = self._model
        self._in_flight += 1
        try:
            if self._batches is None:
                answer = await self._posted(url, body)
            else:
                said = await self._submitted(self._batches, key_of(request, url, body), url, body)
                answer = checked_answer(url, body, said)
            response = response_of(request, url, answer)
            skipped = skipped_fields(url, body, answer)
            if skipped:
                self._warn_of(skipped)
                response.deviates("ignored_field")
            return response.deviates("clipped") if filtered(answer) else response
        finally:
            self._in_flight -= 1
            if not self._in_flight:  # a later job may find the server up again
                self._down, self._failures, self._not_found = None, 0, 0

    async def _posted(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._tokens is not None:
            await self._tokens.acquire(min(_estimated_tokens(body), self._tokens.max_rate))
        if self._down is not None:
            raise self._down
        openai = self._openai
        try:
            answer = await self._client.post(self._address(url), body=body, cast_to=object)
        except openai.APITimeoutError as e:
            text = f"{self._server} didn't answer within {self._timeout_s:g} s, {self._attempts}"
            raise self._failed(RefusedError(text, 504, "Timeout")) from e
        except openai.APIConnectionError as e:
            cause = e.__cause__ or e
            raise self._is_down(f"can't be reached ({type(cause).__name__}: {cause})") from e
        except openai.APIStatusError as e:
            raise self._refused(e) from e
        except ValueError as e:  # what calls itself JSON and is none
            text = f"{self._server} gave an answer that is not JSON: {e}"
            raise self._failed(RefusedError(text, 502, "BadAnswer")) from e
        try:
            checked = checked_answer(url, body, answer)
        except RefusedError as e:
            raise (self._failed(e) if e.status_code >= 500 else e) from None
        self._failures = 0
        self._answered += 1
        return checked

    async def _submitted(
        self, batches: VendorBatches, key: str, url: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        if self._down is not None:
            raise self._down
        openai = self._openai
        try:
            return await batches.answer(key, url, body)
        except openai.APIConnectionError as e:
            cause = e.__cause__ or e
            raise self._is_down(f"can't be reached ({type(cause).__name__}: {cause})") from e
        except openai.APIStatusError as e:
            raise self._batch_refused(e) from e

    def _batch_refused(self, error: Any) -> SheafError:
        """What a server says of a batch as a whole is not a row's error."""
        found = self._refused(error)
        if isinstance(found, SheafError):
            return found
        if error.status_code >= 500 or error.status_code in (408, 409):
            return self._is_down(f"fails ({error.status_code}, {self._attempts}): {found}")
        return BackendError(
            f"{self._server} refuses a batch ({error.status_code}): {found}; if the server has no "
            'batch API, set submit="requests"'
        )

    @property
    def _attempts(self) -> str:
        return f"in {self._max_retries + 1} attempts" if self._max_retries else "in one attempt"

    def _address(self, url: str) -> str:
        """Clients leave ``/v1`` to their ``base_url``, which may have another path there."""
        path = urlsplit(self._base_url).path
        if path and url.startswith("/v1/"):
            return self._base_url + url.removeprefix("/v1")
        return self._base_url.removesuffix("/v1") + url

    def _refused(self, error: Any) -> Exception:
        status, said = error.status_code, error.body
        message = said.get("message") if isinstance(said, dict) else None
        # The client's own words hold the status alone where the server's have another form.
        message = str(message or error.response.text.strip()[:500] or error.message)
        if 300 <= status < 400:
            place = error.response.extensions.get(_REDIRECT, "another address")
            return BackendError(
                f"{self._server} redirects ({status}) to {place}; set base_url to where the API is"
            )
        # Later 403 is what some servers say of one row: a model or a text that isn't allowed.
        if status == 401 or (status == 403 and not self._answered):
            return BackendError(
                f"{self._server} refuses the key ({status}): {message}; check api_key"
            )
        if status == 402:
            return BackendError(f"{self._server} asks for payment ({status}): {message}")
        if status == 404 and not self._answered:
            self._not_found += 1
            if self._not_found >= self._max_failures:
                return BackendError(
                    f"{self._server} doesn't know the URL or the model of any of the first "
                    f"{self._not_found} rows (404): {message}; check base_url and model"
                )
        if status in _TURNS_AWAY:
            return self._is_down(f"turns requests away ({status}, {self._attempts}): {message}")
        kind = said.get("type") if isinstance(said, dict) else None
        refusal = RefusedError(message, status, str(kind or type(error).__name__))
        if status >= 500 or status in (408, 409):
            return self._failed(refusal)
        self._failures = 0
        return refusal

    def _failed(self, refusal: RefusedError) -> Exception:
        """Counts a failure that may be the row's or the server's own fault."""
        self._failures += 1
        if self._failures < self._max_failures:
            return refusal
        return self._is_down(f"failed on {self._failures} rows in succession: {refusal}")

    def _warn_of(self, skipped: list[str]) -> None:
        for name in sorted({*skipped} - self._skipped):
            log.warning(
                "%s gave an answer in which '%s' had no effect; such rows are counted as "
                "ignored_field",
                self._server,
                name,
            )
        self._skipped.update(skipped)

    def _is_down(self, what: str) -> SheafError:
        """Ends the job: rows that wait don't try, too."""
        if self._down is None:
            self._down = ServiceDownError(
                f"{self._server} {what}. Check the server, then run the job again: answered "
                "rows are kept"
            )
        return self._down


_REDIRECT = "sheaf_dagster.redirect"


async def _stay(response: Any) -> None:
    """Keeps the client from following a redirect by which a POST becomes a GET."""
    if response.status_code in (301, 302, 303):
        place = response.headers.get("location")
        if place is not None:
            del response.headers["location"]
            response.extensions[_REDIRECT] = place


def _estimated_tokens(body: Mapping[str, Any]) -> float:
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return prompt_tokens(body) + limit * (body.get("n") or 1) + 1
