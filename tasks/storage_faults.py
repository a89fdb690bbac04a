"""What a failing store means: whether the same call may succeed later, and what a person is told of it."""

from __future__ import annotations

import errno
import os
import re

from tasks.location import Location

ATTEMPTS = 8
"""How often a call is made whose fault may pass."""

_PASSING_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
_PASSING_CODES |= {"InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed", "BadDigest"}
_PASSING_CODES |= {"ConditionalRequestConflict"}
_FULL_CODES = {"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "NoSpaceLeft"}
_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT}
_NOT_IMPLEMENTED = 501  # Of a condition or a call that this store does not know
_UNEXPLAINED_CODES = {"400", "403"}  # The answer to a HEAD has no body that could say why
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}

_SECRETS = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "PREFECT_API_KEY"}
_SECRETS |= {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "RAY_AUTH_TOKEN"}
_LEAST_SECRET = 4  # Characters; a shorter value would blank out ordinary words


def is_outage(error: BaseException) -> bool:
    """Whether it is the store or the way to it that fails, whatever was asked: credentials, overload, the network."""
    codes, status = _codes(error), _status(error)
    if is_full(error) or status == _NOT_IMPLEMENTED:
        return False
    if codes & (_PASSING_CODES | _EXPIRED_CODES) or (status is not None and (status >= 500 or status == 429)):
        return True
    if status is not None or type(error).__name__ == "ParamValidationError":
        return False  # The store has understood and refused
    remote = type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp")
    return remote or isinstance(error, (ConnectionError, TimeoutError)) or "Timeout" in type(error).__name__


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if _codes(error) & _EXPIRED_CODES or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return False
    if is_outage(error):
        return True
    kinds = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
    # A fault of which nothing is known is worth another try
    return isinstance(error, OSError) and _status(error) is None and not isinstance(error, kinds)


def credentials_may_have_expired(error: BaseException) -> bool:
    """Whether it is worth reading the credentials anew, and asking once more."""
    return bool(_codes(error) & (_EXPIRED_CODES | _UNEXPLAINED_CODES))


def is_full(error: BaseException) -> bool:
    """Whether there is no space left on a disk, in a bucket or within a quota."""
    return (isinstance(error, OSError) and error.errno in _FULL_ERRORS) or bool(_codes(error) & _FULL_CODES)


def is_refused_as_there(error: BaseException) -> bool:
    """Whether a write that was to be the first of its name was refused, since there is one."""
    return isinstance(error, FileExistsError) or "PreconditionFailed" in _codes(error) or _status(error) == 412


def explain(error: BaseException, location: Location) -> str:
    """One sentence for a person about a storage error, with the remedy where one is known; never a credential."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"):
        return (
            f"No credentials for {location.uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "in the environment."
        )
    if _codes(error) & _EXPIRED_CODES:
        return f"The credentials for {location.uri} have expired: renew them, and run the same command again."
    where = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else location.uri
    if is_full(error):
        return f"No space is left for {location.uri}: make room there, or raise the quota."
    if _codes(error) & _UNEXPLAINED_CODES:
        return (
            f"No permission for {where}, or the credentials have expired: renew them or check their rights, and run "
            "the same command again."
        )
    if isinstance(error, PermissionError):
        return f"No permission for {where}: check the rights of the folder or of the credentials."
    if isinstance(error, FileNotFoundError):
        return f"{where} does not exist: check its spelling, and that this machine can see it."
    if name in ("EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ConnectionRefusedError"):
        where = re.sub(r"//[^/@]*@", "//", endpoint() or "the default endpoint")
        return f"Cannot reach the object store at {where} for {location.uri}: is it running, is the address right?"
    text = scrub(str(error).splitlines()[0]) if str(error) else ""
    if location.protocol != "file" and may_pass(error):
        return (
            f"The storage of {location.uri} does not work ({text or name}), though it was asked {ATTEMPTS} times: run "
            "the same command again when it does."
        )
    return f"Cannot use {location.uri}: {name}{': ' + text if text else ''}"


def scrub(text: str) -> str:
    """The text without the credentials of this process's environment, and without user and password in a URI."""
    for name in _SECRETS:
        value = os.environ.get(name, "")
        if len(value) >= _LEAST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s:]*:[^/@\s]*@", "://", text)


def endpoint() -> str | None:
    """Address of the object store, where it is not Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _codes(error: BaseException) -> set[str]:
    """Codes of the store's answer, also where s3fs has made an OSError of it."""
    found: set[str] = set()
    cause: BaseException | None = error
    for _ in range(4):
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):
            found.add(str(answer.get("Error", {}).get("Code", "")))
        if cause is None or cause.__cause__ is None:
            break
        cause = cause.__cause__
    return found


def _status(error: BaseException) -> int | None:
    for cause in (error, error.__cause__):
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status is not None else None
    return None
