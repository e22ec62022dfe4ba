"""Secrets of URIs, options and arguments, which stay out of every text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sheaf_dagster.errors import SpecError
from sheaf_dagster.masking import masked

__all__ = [
    "check_no_credentials",
    "literal_secrets",
    "scrub",
    "secret_arguments",
    "with_secrets_hidden",
]

_SECRET_NAME = re.compile(
    r"key|secret|token|passw|passphrase|cred|sas|conn.*str|auth|signature", re.IGNORECASE
)
# Arguments of models have names of any kind, such as tokenizer, pad_token and text_key.
_SECRET_ARGUMENT = re.compile(
    r"key|token|(.*_)?(secret|password|passphrase|credentials?|connection_string|"
    r"(api|access|account|private|secret|secret_access)_key|(hf|hub|auth|access|api|session|sas)_token)",
    re.IGNORECASE,
)
_NO_SECRETS = frozenset({"signature_version"})
_SHORTEST_SECRET = 6
"""A shorter value may well be part of an innocent word, and protects nothing."""


def check_no_credentials(uri: str) -> None:
    """Refuses a URI that carries a password or a signature: URIs are shown in many places.

    Raises:
        SpecError: It does; the message leaves the secret out.
    """
    shown = masked(uri)
    if shown != uri and "://" in uri:
        raise SpecError(
            f"{shown}: the URI carries credentials, and URIs are shown in logs and metadata; "
            "give them through storage_options or the environment instead"
        )


def literal_secrets(options: Mapping[str, Any]) -> list[str]:
    """Names of the options that hold a secret itself, not the variable that it is in."""
    found = []
    for name, value in options.items():
        if isinstance(value, Mapping) and set(value) != {"env"}:
            found += literal_secrets(value)
        elif isinstance(value, str) and value and name not in _NO_SECRETS:
            found += [str(name)] if _SECRET_NAME.search(str(name)) else []
    return sorted(found)


def secret_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """Names of a model's arguments that hold a secret itself, not the variable that it is in."""
    found = []
    for name, value in arguments.items():
        if isinstance(value, Mapping) and set(value) != {"env"}:
            found += secret_arguments(value)
        elif _is_secret(name, value):
            found.append(str(name))
    return sorted(found)


def with_secrets_hidden(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A model's arguments as they may be shown."""
    return {
        name: with_secrets_hidden(value)
        if isinstance(value, Mapping)
        else "***"
        if _is_secret(name, value)
        else value
        for name, value in arguments.items()
    }


def _is_secret(name: object, value: object) -> bool:
    return isinstance(value, str) and bool(value and _SECRET_ARGUMENT.fullmatch(str(name)))


def scrub(text: str, options: Mapping[str, Any]) -> str:
    """The text with every secret of the options replaced."""
    for secret in sorted(set(_secrets(options)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(value: Any, named: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _secrets(below, named or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _secrets(below, named)
    elif named and isinstance(value, str) and len(value) >= _SHORTEST_SECRET:
        yield value
