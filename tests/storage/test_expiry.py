"""Credentials whose time is over, as the libraries of the stores tell it; those that are wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage.failures import as_error

OF_AZURE = {
    "SAS": (403, "AuthenticationFailed", "Signature not valid in the specified time frame: Start"),
    "token": (
        401,
        "InvalidAuthenticationInfo",
        "Lifetime validation failed. The token is expired.",
    ),
    "secret": (401, None, "AADSTS7000222: The provided client secret keys for app are expired."),
    "assertion": (401, None, "AADSTS700024: Client assertion is not within its valid time range."),
    "sign-in": (400, None, "AADSTS700082: The refresh token has expired due to inactivity."),
    "wrong key": (403, "AuthenticationFailed", "The MAC signature is not the same as any computed"),
    "no right": (403, "AuthorizationPermissionMismatch", "This request is not authorized"),
}
OF_GOOGLE_SIGN_IN = {
    "grant": "invalid_grant: Token has been expired or revoked.",
    "clock": "invalid_grant: Invalid JWT: Token must be a short-lived token (60 minutes)",
    "session": "Reauthentication is needed. Please run `gcloud auth application-default login`",
    "bare token": "The credentials do not contain the necessary fields need to refresh the access token.",
    "no right": "Unable to acquire impersonated credentials: PERMISSION_DENIED",
}
OF_GOOGLE = {
    "token": (401, "Invalid Credentials"),
    "token in words": (401, "Request had invalid authentication credentials."),
    "nobody": (401, "Anonymous caller does not have storage.objects.get access"),
    "no right": (403, "x@y does not have storage.objects.get access"),
}
WRONG = ("wrong key", "no right", "nobody")


def is_taken_for_expired(cause: BaseException) -> bool:
    wrapped = ValueError("unable to connect to account")  # as adlfs does with some
    wrapped.__cause__ = cause
    error, again = (
        as_error(SinkError, "out.jsonl can't be written", e, {}, "") for e in (cause, wrapped)
    )
    says = "the credentials have expired" in str(error)
    assert bool(error.retryable) == says
    assert ("the credentials have expired" in str(again)) == says
    return says


@pytest.mark.parametrize("case", OF_AZURE)
def test_azures_words(case):
    exceptions = pytest.importorskip("azure.core.exceptions")
    status, code, text = OF_AZURE[case]
    response = SimpleNamespace(status_code=status, reason="Server failed", headers={})
    for cls in (exceptions.HttpResponseError, exceptions.ClientAuthenticationError):
        error = cls(message=f"ErrorCode:{code}\n{text}", response=response)
        error.error_code = code  # as its storage libraries set it

        assert is_taken_for_expired(error) == (case not in WRONG)


@pytest.mark.parametrize("case", OF_GOOGLE_SIGN_IN)
def test_the_words_of_googles_sign_in(case):
    exceptions = pytest.importorskip("google.auth.exceptions")

    error = exceptions.RefreshError(OF_GOOGLE_SIGN_IN[case], {"error": "x"})

    assert is_taken_for_expired(error) == (case not in WRONG)


@pytest.mark.parametrize("case", OF_GOOGLE)
def test_the_words_of_googles_storage(case):
    retry = pytest.importorskip("gcsfs.retry")
    status, text = OF_GOOGLE[case]
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of several classes)
        retry.validate_response(
            status, json.dumps({"error": {"code": status, "message": text}}), "p"
        )

    assert is_taken_for_expired(caught.value) == (case not in WRONG)
