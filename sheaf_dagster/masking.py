"""Credentials inside URIs, kept out of every text that people or files get to see.

Rows name files by URI, and a URI may carry a password, a signature or a token. Libraries quote
URIs in their errors, each in its own words, so the text of an error is masked as a whole.
"""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import unquote

__all__ = ["masked", "masked_error"]

_MASK = "***"

# The texts may be megabytes long, so each pattern starts at a fixed sign, or at the first of a run
# of them: nothing is looked at twice from two places.
_USER = re.compile(
    r"(?<=[a-z0-9+.-])://"
    # Up to the last "@", for passwords hold any sign; but "host:8080/a@b" is a port and a path,
    # and another "://" is another URI.
    r"(?:[^\s/?#@\"'<>:\[]*:(?!\d*[/?#])(?:(?!://)[^\s\"'<>])*|(?P<user>[^\s/?#@\"'<>:]+))@",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"[a-z0-9+.-]*$", re.IGNORECASE)
_USERS_THAT_ARE_PLACES = ("abfs", "wasb", "ssh", "sftp", "scp", "hdfs", "webhdfs", "smb")
"""Here a name without a password is a container or an account, and no secret."""

_SCHEME_CHARS = 32
"""More than the longest scheme of a URI has."""

_MOST_ENCODINGS = 8
"""A URI inside a URI inside a URI has three; a text that goes on is hidden as a whole."""

_SECRET_PARAMETER = re.compile(
    r"(?P<name>(?:[?&;#]|\\u0026|%3[bf]|%2[36])(?:"
    r"x-(?:amz|goog|oss|cos|ms|obs)-[\w.-]+"
    r"|(?:aws|google)accesskey(?:id)?|googleaccessid|ossaccesskeyid"
    r"|[\w.\-\[\]]*(?:token|secret|passw(?:or)?d|passphrase|pwd|signature|credentials?|api[_-]?key"
    r"|accesskey|jwt|session)"
    r"|(?:[\w.]+[_-])?(?:key|pass|auth|authorization|sas|sig|secret|key-pair-id)"
    r"|se)(?:=|%3d))[^\s&;#\"'<>]*",
    re.IGNORECASE,
)
"""What is signed or secret in the query or fragment of AWS's, Google's, Azure's and other URIs."""

_URI = re.compile(r"(?<![^\s\"'<>])[^\s\"'<>]*(?::|%3a)(?:/|%2f){2}[^\s\"'<>]*", re.IGNORECASE)


def masked(text: str) -> str:
    """The text with the credentials of each URI in it replaced by ``***``.

    User information is masked, and the values of parameters that sign, identify or grant; so are
    those of a URI that is percent-encoded inside another. All else stays.
    """
    if "@" not in text and "=" not in text and "%" not in text:
        return text
    text = _mask(text)
    return _URI.sub(_mask_encoded, text) if "%" in text else text


def _mask(text: str) -> str:
    return _SECRET_PARAMETER.sub(rf"\g<name>{_MASK}", _USER.sub(_mask_user, text))


def _mask_user(found: re.Match[str]) -> str:
    if found["user"]:
        before = found.string[max(0, found.start() - _SCHEME_CHARS) : found.start()]
        scheme = _SCHEME.search(before)
        if scheme and scheme[0].lower().startswith(_USERS_THAT_ARE_PLACES):
            return found[0]
    return f"://{_MASK}@"


def _mask_encoded(found: re.Match[str]) -> str:
    """A URI as it is, unless one of its percent-encoded forms tells a secret."""
    plain = found[0]
    for _ in range(_MOST_ENCODINGS):
        if (decoded := unquote(plain)) == plain:
            return found[0]
        # What was encoded, such as a space, must not end the value that it stands in.
        plain = re.sub(r"[\s\"'<>]", "_", decoded)
        if (hidden := _mask(plain)) != plain:
            return masked(hidden)
    return _MASK


def masked_error(error: BaseException) -> BaseException:
    """The error with no credentials in its text, its notes, its causes or their texts.

    Where its own text quotes some, another error stands for it: of the same class where that can
    be made of a text alone, else of one of the same name, with the same traceback.
    """
    return _masked_error(error, set())


def _masked_error(error: BaseException, seen: set[int]) -> BaseException:
    seen.add(id(error))
    text, cause, context = str(error), error.__cause__, error.__context__
    suppressed = error.__suppress_context__
    if cause is not None and id(cause) not in seen:
        cause = _masked_error(cause, seen)
    if context is not None and id(context) not in seen:
        context = _masked_error(context, seen)
    elif context is error.__cause__:
        context = cause
    clean = masked(text)
    made = error if clean == text else _like(error, clean)
    made.__cause__, made.__context__ = cause, context
    made.__suppress_context__ = suppressed  # which setting a cause has changed
    notes = getattr(error, "__notes__", ())
    if notes:
        made.__notes__ = [masked(str(note)) for note in notes]
    return made.with_traceback(error.__traceback__)


def _like(error: BaseException, text: str) -> BaseException:
    kind = type(error)
    with suppress(Exception):  # its constructor may ask for something else
        made = kind(text)
        if str(made) == text:
            return made
    named: type[Exception] = type(kind.__name__, (Exception,), {"__module__": kind.__module__})
    return named(text)
