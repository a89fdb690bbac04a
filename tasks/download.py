"""Fetches one file over HTTP, resumably: whole under its name or not at all."""

import errno
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

MAX_DOWNLOAD_BYTES = 4 << 30
"""No published file of weights or data is larger; a server that sends more is stopped."""

CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], None]
"""Told the bytes so far and the whole size, None where the server does not say."""


class BrokenOffError(ValueError):
    """The transfer ended early; the same call continues it."""


@dataclass(frozen=True)
class Expected:
    """What the publisher says of a file; proves it before it gets its name."""

    md5: str
    """In hexadecimal digits."""

    bytes: int | None = None
    """Exact size, where it is published."""


def download(
    url: str,
    target: Path,
    *,
    progress: Progress | None = None,
    expected: Expected | None = None,
    otherwise: str = (
        ": without a network, bring the file and use `segment-archive weights import`; otherwise the same command "
        "continues the download"
    ),
) -> None:
    """Fetch `url` to `target`; goes on where an earlier attempt stopped if the server still has the same file.

    Beside an unfinished `<target>.part` stands `<target>.tag`, the server's name for that version; without one the
    download begins anew, so that two versions are never joined. Where `expected` proves the whole, pieces of several
    mirrors are joined too. otherwise: end of the sentence about a server that cannot be reached, with the remedy.
    BrokenOffError where the transfer stops early, ValueError in one sentence when the server cannot be reached,
    refuses, sends too much or another file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.tag")
    told_url, _, version = tag.read_text().partition("\n") if tag.exists() else ("", "", "")
    resumable = partial.exists() and (expected is not None or (told_url == url and bool(version)))
    have = partial.stat().st_size if resumable else 0
    if expected is not None and expected.bytes is not None and have >= expected.bytes:
        have = have if have == expected.bytes else 0
    if not (have and expected is not None and have == expected.bytes):
        _transfer(url, partial, tag, have, version if told_url == url else "", progress, expected, otherwise)
    if expected is not None:
        found = _md5(partial)
        if found != expected.md5:
            partial.unlink()
            tag.unlink(missing_ok=True)
            joined = " (begun at another mirror or in an earlier session)" if have else ""
            raise ValueError(
                f"{url} gave a file with md5 {found}{joined}, {expected.md5} was published: damaged or exchanged; "
                "it was thrown away."
            )
    partial.rename(target)
    tag.unlink(missing_ok=True)


def _transfer(
    url: str,
    partial: Path,
    tag: Path,
    have: int,
    version: str,
    progress: Progress | None,
    expected: Expected | None,
    otherwise: str,
) -> None:
    """Append to `partial` from byte `have` on, or begin it anew where the server cannot or may not continue."""
    request = urllib.request.Request(url, headers={"User-Agent": "segment-archive"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version:
            request.add_header("If-Range", version)
    total: int | None = None
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            continued = response.status == 206
            if continued and not _continues(response.headers, have, version):
                # Another part than was asked for, or of another version: nothing of this answer can be used
                partial.unlink(missing_ok=True)
                tag.unlink(missing_ok=True)
                if not have:
                    raise ValueError(f"{url} answers with a part of the file, though the whole was asked for.")
                return _transfer(url, partial, tag, 0, "", progress, expected, otherwise)
            if not continued:
                have = 0
            _write_tag(tag, url, response.headers)
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else None
            have = _receive(url, response, partial, have, total, progress, expected)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            # The partial file is not a beginning of what the server has now.
            partial.unlink()
            return _transfer(url, partial, tag, 0, "", progress, expected, otherwise)
        raise ValueError(f"{url} was refused: {error.code} {error.reason}.") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ValueError(
                f"The disk of {partial.parent} is full after {have} bytes: make room and run again."
            ) from None
        reason = getattr(error, "reason", error)
        raise BrokenOffError(f"{url} could not be fetched ({reason}){otherwise}.") from error
    if total is not None and have < total:
        raise BrokenOffError(f"{url} stopped after {have} of {total} bytes; the same command continues.")
    return None


def _receive(
    url: str,
    response: Any,
    partial: Path,
    have: int,
    total: int | None,
    progress: Progress | None,
    expected: Expected | None,
) -> int:
    wanted = expected.bytes if expected is not None else None
    first = response.read(CHUNK_BYTES)
    if have == 0 and first.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{url} answers with a web page instead of the file: the host has moved or closed it.")
    if wanted is not None and total is not None and total != wanted:
        raise ValueError(f"{url} has {total} bytes, {wanted} were published: it is another file.")
    with partial.open("ab" if have else "wb") as file:
        chunk = first
        while chunk:
            have += len(chunk)
            if have > (wanted or MAX_DOWNLOAD_BYTES):
                file.close()
                partial.unlink()
                raise ValueError(f"{url} is larger than {wanted or MAX_DOWNLOAD_BYTES} bytes; it was stopped there.")
            file.write(chunk)
            if progress is not None:
                progress(have, total)
            chunk = response.read(CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())
    return have


def _continues(headers: Message, have: int, version: str) -> bool:
    """Whether a 206 begins at the byte that was asked for, in the version that was asked for."""
    now = _version(headers)
    return headers.get("Content-Range", "").startswith(f"bytes {have}-") and (not version or not now or now == version)


def _version(headers: Message) -> str:
    # A weak ETag may stand for different bytes and is of no use for a range.
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _write_tag(tag: Path, url: str, headers: Message) -> None:
    tag.write_text(f"{url}\n{_version(headers)}")


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
