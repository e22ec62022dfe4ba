"""What a server answered, held against what it was asked.

Servers that speak the OpenAI API differ in what they know of it. Some answer an error with status
200, some skip a field that they don't know. An answer that can't be the asked one is refused here; a
field that visibly had no effect is named. What leaves no trace in an answer can't be seen.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.contracts.openai_bodies import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES

__all__ = ["checked_answer", "filtered", "skipped_fields"]


def checked_answer(url: str, asked: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """The body of an answer, its parts in the order of what was asked.

    Vectors come in the form that was asked for, ``float`` or ``base64``.

    Args:
        url: Where the body was posted.
        asked: The body.
        answer: The body of the answer, of status 200.

    Raises:
        RefusedError: It is an error, it answers less or more than was asked, or it is no answer
            of that URL.
    """
    if not isinstance(answer, dict):
        raise _bad(f"the answer is not a JSON object: {str(answer)[:200]}")
    _raise_error(answer)
    made = dict(answer)
    if url in (CHAT, COMPLETIONS):
        wanted = _prompts(asked.get("prompt")) * int(asked.get("n") or 1)
        made["choices"] = _ordered(answer, "choices", wanted)
        for i, choice in enumerate(made["choices"]):
            _check_choice(url, choice, i)
    elif url == EMBEDDINGS:
        wanted = _prompts(asked.get("input")) if "messages" not in asked else 1
        data = _ordered(answer, "data", wanted)
        made["data"] = [_vector(asked, one, i) for i, one in enumerate(data)]
    elif url == RESPONSES:
        if answer.get("status", "completed") not in ("completed", "incomplete"):
            raise _bad(f"the answer isn't finished: its 'status' is {answer['status']!r}")
        if not isinstance(answer.get("output"), list):
            raise _bad("the answer has no list 'output'")
    elif url.endswith("/score"):
        _listed(answer, "data")
    else:
        _check_ranking(asked, _listed(answer, "results"))
    return made


def skipped_fields(url: str, asked: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Fields of a body that had no effect, as far as the answer shows.

    Args:
        url: Where the body was posted.
        asked: The body.
        answer: What ``checked_answer`` gave.
    """
    if url not in (CHAT, COMPLETIONS):
        return []
    choices = answer["choices"]
    found = []
    usage = answer.get("usage")
    used = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    for name in ("max_completion_tokens", "max_tokens"):
        limit = asked.get(name)
        if limit is not None and isinstance(used, int) and used > limit * len(choices):
            found.append(name)
    wants_logprobs = asked.get("logprobs") not in (None, False)
    if wants_logprobs and any(not choice.get("logprobs") for choice in choices):
        found.append("logprobs")
    if url == COMPLETIONS:
        return found
    choice = asked.get("tool_choice")
    if choice == "required" or isinstance(choice, Mapping):
        if any(not _calls(c["message"]) for c in choices):
            found.append("tool_choice")
    elif choice == "none" and any(_calls(c["message"]) for c in choices):
        found.append("tool_choice")
    form = asked.get("response_format")
    if isinstance(form, Mapping) and form.get("type") in ("json_object", "json_schema"):
        ended = [c["message"] for c in choices if c.get("finish_reason") == "stop"]
        if any(not _is_json(message) for message in ended):
            found.append("response_format")
    return found


def filtered(answer: Mapping[str, Any]) -> bool:
    """Whether the server left out a part of what the model said."""
    choices = answer.get("choices")
    if isinstance(choices, list):
        return any(choice.get("finish_reason") == "content_filter" for choice in choices)
    details = answer.get("incomplete_details")
    return isinstance(details, Mapping) and details.get("reason") == "content_filter"


def _raise_error(answer: Mapping[str, Any]) -> None:
    """Raises what an answer says of an error; ``error: null`` is none."""
    error = answer.get("error")
    if not error:
        if answer.get("object") == "error":  # the form of older servers
            raise _refusal(answer)
        return
    raise _refusal(error if isinstance(error, Mapping) else {"message": error})


def _refusal(error: Mapping[str, Any]) -> RefusedError:
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 502
    kind = error.get("type") or (code if isinstance(code, str) else None) or "Refused"
    return RefusedError(str(error.get("message") or error), status, str(kind))


def _bad(text: str) -> RefusedError:
    return RefusedError(text, 502, "BadAnswer")


def _prompts(given: Any) -> int:
    """How many prompts or texts a body lists; a list of tokens is one."""
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        return 1
    return len(given)


def _listed(answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    parts = answer.get(name)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise _bad(f"the answer has no list '{name}' of objects")
    if not parts:
        raise _bad(f"the answer's list '{name}' is empty")
    return parts


def _ordered(answer: Mapping[str, Any], name: str, wanted: int) -> list[dict[str, Any]]:
    """The parts of an answer in the order of their ``index``, where they have one."""
    parts = _listed(answer, name)
    if len(parts) != wanted:
        raise _bad(f"the answer's list '{name}' has length {len(parts)}; {wanted} was asked for")
    indices = [part.get("index") for part in parts]
    if all(index is None for index in indices):
        return parts
    by_index = {i: p for i, p in zip(indices, parts, strict=True) if isinstance(i, int)}
    if set(by_index) != set(range(wanted)):
        raise _bad(f"the answer's list '{name}' doesn't have each 'index' from 0 to {wanted - 1}")
    return [by_index[i] for i in range(wanted)]


def _check_choice(url: str, choice: Mapping[str, Any], i: int) -> None:
    if url == CHAT and not isinstance(choice.get("message"), Mapping):
        raise _bad(f"the answer's choice {i} has no 'message'")
    if url == COMPLETIONS and not isinstance(choice.get("text"), str):
        raise _bad(f"the answer's choice {i} has no 'text'")


def _vector(asked: Mapping[str, Any], part: Mapping[str, Any], i: int) -> dict[str, Any]:
    """A part of an answer, with its vector in the form that was asked for."""
    vector = part.get("embedding")
    if isinstance(vector, str):
        try:
            raw = base64.b64decode(vector, validate=True)
            values: Sequence[float] = struct.unpack(f"<{len(raw) // 4}f", raw)
        except (ValueError, struct.error) as e:
            raise _bad(f"embedding {i} of the answer is not base64 of floats: {e}") from e
    elif isinstance(vector, list) and vector and not isinstance(vector[0], list):
        values = vector
    else:
        # A pooling model that answers a vector a token has a form of its own.
        if isinstance(vector, list) and vector:
            return dict(part)
        raise _bad(f"the answer's part {i} has no 'embedding'")
    wanted = asked.get("dimensions")
    if wanted is not None and len(values) != wanted:
        raise _bad(
            f"embedding {i} has {len(values)} dimensions, and {wanted} were asked for; leave out "
            "'dimensions', or take a model that knows it"
        )
    form = asked.get("encoding_format") or "float"
    if form == "base64" and not isinstance(vector, str):
        packed = struct.pack(f"<{len(values)}f", *values)
        return {**part, "embedding": base64.b64encode(packed).decode()}
    if form == "float" and isinstance(vector, str):
        return {**part, "embedding": list(values)}
    return dict(part)


def _check_ranking(asked: Mapping[str, Any], results: list[dict[str, Any]]) -> None:
    documents = asked.get("documents")
    if not isinstance(documents, list):
        return
    wanted = min(len(documents), asked.get("top_n") or len(documents))
    indices = [result.get("index") for result in results]
    known = {i for i in indices if isinstance(i, int) and 0 <= i < len(documents)}
    if len(results) != wanted or len(known) != wanted:
        raise _bad(
            f"the answer ranks {len(known)} documents in {len(results)} results; {wanted} of "
            f"{len(documents)} were asked for"
        )


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _is_json(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if not isinstance(content, str):
        return bool(message.get("refusal")) or _calls(message)
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
