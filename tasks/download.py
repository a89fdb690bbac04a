"""Fetches one file over HTTP, resumably: whole under its name or not at all."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path

MAX_DOWNLOAD_BYTES = 4 << 30
"""No published file of weights is larger; a server that sends more is stopped."""

CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], None]
"""Told the bytes so far and the whole size, None where the server does not say."""


def download(url: str, target: Path, *, progress: Progress | None = None) -> None:
    """Fetch `url` to `target`; goes on where an earlier attempt stopped if the server still has the same file.

    Beside an unfinished `<target>.part` stands `<target>.tag`, the server's name for that version; without one the
    download begins anew, so that two versions are never joined. ValueError in one sentence when the server cannot be
    reached, refuses, sends too much or stops early.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.tag")
    have = partial.stat().st_size if partial.exists() and tag.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "segment-archive"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            begins_at = response.headers.get("Content-Range", "")
            continued = response.status == 206 and begins_at.startswith(f"bytes {have}-")
            if not continued:
                have = 0
                _write_tag(tag, response.headers)
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else None
            with partial.open("ab" if continued else "wb") as file:
                while chunk := response.read(CHUNK_BYTES):
                    have += len(chunk)
                    if have > MAX_DOWNLOAD_BYTES:
                        partial.unlink()
                        raise ValueError(f"{url} is larger than {MAX_DOWNLOAD_BYTES} bytes; it was stopped there.")
                    file.write(chunk)
                    if progress is not None:
                        progress(have, total)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            # The partial file is not a beginning of what the server has now.
            partial.unlink()
            return download(url, target, progress=progress)
        raise ValueError(f"{url} was refused: {error.code} {error.reason}.") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"{url} could not be fetched ({reason}): without a network, bring the file and use "
            f"`segment-archive weights import`; otherwise the same command continues the download."
        ) from error
    if total is not None and have < total:
        raise ValueError(f"{url} stopped after {have} of {total} bytes; the same command continues.")
    partial.rename(target)
    tag.unlink(missing_ok=True)
    return None


def _write_tag(tag: Path, headers: Message) -> None:
    # A weak ETag may stand for different bytes and is of no use for a range.
    etag = headers.get("ETag", "")
    name = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if name:
        tag.write_text(name)
    else:
        tag.unlink(missing_ok=True)
