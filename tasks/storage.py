"""Every URI of the project: local folders, `s3://` and any other fsspec protocol, read and written in one way.

What is written appears whole or not at all, and uploads are checked. How a store is reached, and which faults are tried
again, is in `storage_client.py`; what the bytes mean is left to others.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import stat as statistics
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn

from tasks.errors import InterruptedJobError, JobError
from tasks.location import Location as Location
from tasks.location import StoredFile as StoredFile
from tasks.storage_client import filesystem, patient_filesystem, retried
from tasks.storage_faults import endpoint, explain, is_refused_as_there, may_pass

_STEADY_TRIES = 3

_ONE_PUT_BYTES = 64 * 2**20  # s3fs sends larger objects in parts

TEMPORARY_PREFIX = ".tmp-"
"""Start of the name of a file that is still being written; never read, removed when an hour old."""

FOLDER = "SEGMENT_ARCHIVE_FOLDER"
"""Environment variable of workers on a cluster: the driver's folder."""

_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"(probe-)?[0-9a-f]{32}")


def locate(uri: str) -> Location:
    """Location of what a person typed: a path, `file://...`, `s3://bucket/prefix` or another fsspec URI.

    Raises JobError for an empty text or an unknown protocol.
    """
    if not uri.strip():
        raise JobError("An empty text names no place; give a folder or a URI such as s3://bucket/prefix.")
    protocol, separator, rest = uri.partition("://")
    if not separator:
        # In a worker that stands in a folder of its own, a relative path means what it means to the driver
        return Location("file", os.path.abspath(Path(os.environ.get(FOLDER, ""), Path(uri).expanduser())))  # noqa: PTH100
    if protocol in ("file", "local"):
        return Location("file", os.path.abspath(rest or "/"))  # noqa: PTH100
    if "@" in rest.partition("/")[0]:
        raise JobError("A URI must not carry a user or password: it would stand in every row. Use the environment.")
    if protocol in ("s3", "s3a"):
        if not rest.strip("/"):
            raise JobError(f"{uri} names no bucket; write s3://bucket/prefix.")
        return Location("s3", rest.rstrip("/"))
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise JobError(f"Cannot use {uri}: {error}") from None
    return Location(protocol, rest.rstrip("/"))


def web_address(location: Location) -> str:
    """What a browser opens: `file://`, or an object at its endpoint (readable only where it is public)."""
    path = urllib.parse.quote(location.path, safe="/=")
    if location.protocol == "file":
        return f"file://{path}"
    if location.protocol != "s3":
        return location.uri
    if address := endpoint():
        return f"{re.sub(r'//[^/@]*@', '//', address).rstrip('/')}/{path}"
    bucket, _, key = path.partition("/")
    return f"https://{bucket}.s3.amazonaws.com/{key}"


class ReplacedError(FileNotFoundError):
    """What is under a name by now is another file than the one that was meant."""


def read_bytes(location: Location, version: str = "") -> bytes:
    """Contents of one file. version: raise ReplacedError where it is there in another one."""
    if version and location.protocol == "file":
        with open_for_reading(location, version=version) as opened:
            return bytes(opened.read())
    if version and location.protocol == "s3":
        data, now = retried(lambda: _read_object(location))
        _require_version(location, now, version)
        return data
    if location.protocol == "file":
        return Path(location.path).read_bytes()
    return retried(lambda: bytes(filesystem(location).cat_file(location.path)))


def read_versioned(location: Location) -> tuple[bytes, str]:
    """Contents of one file, and the version that they are of, whatever replaces it meanwhile; locally with its mark.

    Raises OSError for a file that changes faster than it can be read.
    """
    for _ in range(_STEADY_TRIES):
        if location.protocol == "s3":
            data, version = retried(lambda: _read_object(location))
            # Where the etag is the MD5 of the bytes there is nothing to ask for. Other stores than Amazon's may answer
            # with the etag of one object and the bytes of the next
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if digest == version or stat(location).version == version:
                return data, version
        elif location.protocol == "file":
            if not statistics.S_ISREG(Path(location.path).stat().st_mode):  # Opening a pipe would wait for ever
                raise OSError(f"{location.path} is no file")
            with Path(location.path).open("rb") as file:  # One that is put in its place is another file
                before = os.fstat(file.fileno())
                data = file.read()
                after = os.fstat(file.fileno())
            if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(data)):
                return data, f"{after.st_mtime_ns}-{_mark(after)}"
        else:
            version = stat(location).version
            data = read_bytes(location)
            if stat(location).version == version:
                return data, version
    raise OSError(f"{location.uri} is being written to: it changed while it was read, {_STEADY_TRIES} times")


def read_range(location: Location, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` of one file; fewer where it ends before."""
    if location.protocol == "file":
        with Path(location.path).open("rb") as file:
            file.seek(offset)
            return file.read(length)
    return retried(lambda: bytes(filesystem(location).cat_file(location.path, start=offset, end=offset + length)))


def open_for_reading(location: Location, *, sparse: bool = False, version: str = "") -> Any:
    """A seekable binary file.

    sparse: a few ranges of it will be read, so nothing is fetched ahead. version: raise ReplacedError where it is there
    in another one.
    """
    if location.protocol == "file":
        opened: Any = Path(location.path).open("rb")  # noqa: SIM115, whoever asked closes it
        now = str(os.fstat(opened.fileno()).st_mtime_ns)
    else:
        options = {"cache_type": "none"} if sparse else {}
        opened = retried(lambda: patient_filesystem(location).open(location.path, "rb", **options))
        now = _version(getattr(opened, "details", None) or {}) if location.protocol == "s3" else ""
    try:
        _require_version(location, now, version)
    except ReplacedError:
        opened.close()
        raise
    return opened


def _require_version(location: Location, now: str, version: str) -> None:
    if version and now and now != version:
        raise ReplacedError(errno.ENOENT, "another file is there by now", location.uri)


def write_whole(location: Location, data: bytes, *, durable: bool = True, content_type: str | None = None) -> None:
    """Write one file so that it appears whole under its final name or not at all; an older one is replaced.

    Local: written beside, fsync, renamed, folder fsync. Object storage: one PUT or a completed multipart upload, whose
    size is compared with what was sent, and its digest by the store itself where it went in one piece.
    durable: False leaves out the fsyncs, for what can be made again.
    content_type: what a bucket tells a browser that the file is.
    """
    if location.protocol != "file":
        retried(lambda: _upload(location, data, content_type))
        return
    _put_file(Path(location.path), [data], durable=durable)


def write_once(location: Location, data: bytes) -> bool:
    """The same for one file that nobody has written yet; False where there is one, which stays as it is.

    Of two at the same time one wins where `one_winner` holds; elsewhere the name is asked for just before.
    """
    if not one_winner(Location(location.protocol, location.path.rpartition("/")[0])):
        if exists(location):
            return False
        write_whole(location, data)
        return True
    try:
        if location.protocol == "file":
            _put_file(Path(location.path), [data], once=True)
        else:
            retried(lambda: _upload(location, data, once=True))
    except FileExistsError:
        if location.protocol == "file":  # Who wrote it may have died before the name was durable
            _sync_folder(Path(location.path).parent)
        return False
    return True


def one_winner(folder: Location) -> bool:
    """Whether of two that write one name below a folder at the same time the second is refused.

    Tried once in each process, since stores do not say, and some accept the condition and ignore it.
    """
    if folder.protocol not in ("file", "s3"):
        return False
    store = None if folder.protocol == "file" else filesystem(folder)
    return _has_one_winner(
        store, folder.protocol, folder.path if store is None else folder.path.partition("/")[0], folder
    )


@functools.lru_cache(maxsize=64)
def _has_one_winner(store: object, protocol: str, root: str, folder: Location) -> bool:
    probe = folder / f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
    write_whole(probe, b"segment-archive tries whether this is refused the second time\n", durable=False)
    try:
        if protocol == "file":
            _put_file(Path(probe.path), [b"second"], durable=False, once=True)
        else:
            retried(lambda: _upload(probe, b"second", once=True))
    except FileExistsError:
        return True
    except Exception as error:
        if protocol != "file" and may_pass(error):
            raise
        return False  # It knows no such condition, or no hard links
    finally:
        remove(probe)
    return False


def make_durable(folder: Location, root: Location) -> None:
    """Make the names in a folder, and of the folders above it up to a root, survive a power cut, whoever wrote them."""
    if folder.protocol == "file" and Path(folder.path).exists():
        place = Path(folder.path)
        _sync_folder(place)
        while str(place) not in (root.path, "/"):
            place = place.parent
            _sync_folder(place)


def write_stream(location: Location, chunks: Iterable[bytes]) -> None:
    """Write one file of any length, chunk by chunk; like `write_whole` it appears whole or not at all."""
    if location.protocol != "file":
        file = patient_filesystem(location).open(location.path, "wb")
        try:
            for chunk in chunks:
                file.write(chunk)
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
            file.closed = True  # Closing would complete the upload
            raise
        file.close()
        return
    _put_file(Path(location.path), chunks)


def remove(location: Location) -> None:
    """Remove one file; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if location.protocol == "file":
            Path(location.path).unlink()
        else:
            retried(lambda: filesystem(location).rm_file(location.path))


def remove_folder(location: Location) -> None:
    """Remove everything below a folder or prefix; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if location.protocol == "file":
            shutil.rmtree(location.path)
        else:
            retried(lambda: filesystem(location).rm(location.path, recursive=True))


def exists(location: Location) -> bool:
    """Whether a file (or, on a disk, a folder) stands under exactly this name."""
    if location.protocol == "file":
        return Path(location.path).exists()
    try:
        retried(lambda: filesystem(location).info(location.path, refresh=True))
    except FileNotFoundError:
        return False
    return True


def is_file(location: Location) -> bool:
    """Whether a file, not a folder or a prefix, stands under this name."""
    if location.protocol == "file":
        return Path(location.path).is_file()
    try:
        info = retried(lambda: filesystem(location).info(location.path, refresh=True))
    except FileNotFoundError:
        return False
    return bool(info.get("type") == "file" and not location.path.endswith("/"))


def stat(location: Location) -> StoredFile:
    """Size and version of one file. Raises FileNotFoundError."""
    if location.protocol == "file":
        status = Path(location.path).stat()
        return StoredFile(location.name, status.st_size, str(status.st_mtime_ns), mark=_mark(status))
    info = retried(lambda: filesystem(location).info(location.path, refresh=True))
    return StoredFile(location.name, int(info.get("size") or 0), _version(info))


def list_files(folder: Location, *, problems: bool = False) -> Iterator[StoredFile]:
    """Every file below a folder or prefix, streamed in the order of names; hidden ones (leading dot) left out.

    Links are followed; a folder that contains itself is entered once. A folder that does not exist is empty.
    problems: list pipes, sockets and devices under their names too, and folders that cannot be opened, as what has a
    problem; otherwise the former are left out and the latter raise.
    """
    if folder.protocol == "file":
        yield from _walk_local(Path(folder.path), "", frozenset(), problems)
    elif folder.protocol == "s3":
        yield from _list_s3(folder)
    else:
        yield from _walk_generic(folder)


@contextlib.contextmanager
def explained(location: Location) -> Iterator[None]:
    """Within, what storage raises becomes a JobError of one sentence about this location.

    An InterruptedJobError where the fault may pass, though it has outlasted all tries.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        origin = type(error).__module__.partition(".")[0]
        if isinstance(error, OSError) or origin in ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs"):
            kind = InterruptedJobError if may_pass(error) else JobError
            raise kind(explain(error, location)) from None
        raise


def require_writable(folder: Location) -> None:
    """Prove that files can be written below a folder or prefix. Raises JobError with one sentence where not."""
    probe = folder / f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
    try:
        write_whole(probe, b"segment-archive checks that it can write here\n")
        remove(probe)
    except Exception as error:
        if isinstance(error, (NotADirectoryError, FileExistsError)):
            raise JobError(f"Cannot write to {folder.uri}: a file stands where a folder is needed.") from None
        reason = explain(error, folder)
        raise JobError(f"Cannot write the output. {reason}") from None


def sweep_temporary(folder: Location, older_than_s: float = 3600.0) -> None:
    """Remove what killed writers left below a local folder; object stores keep no half-written objects."""
    if folder.protocol != "file":
        return
    now = time.time()
    for left in Path(folder.path).rglob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if _TEMPORARY.fullmatch(left.name) and now - left.stat().st_mtime > older_than_s:
                left.unlink()


def answers(folder: Location) -> bool:
    """Whether a source can still be read at all: tells an image's own fault from an outage."""
    try:
        return is_file(folder) or next(list_files(folder), None) is not None
    except Exception:
        return False


def _read_object(location: Location) -> tuple[bytes, str]:
    """One GET: the bytes, and the etag of the same answer."""
    store = filesystem(location)
    bucket, _, key = location.path.partition("/")

    answer = store.call_s3("get_object", Bucket=bucket, Key=key)

    async def read() -> bytes:
        async with answer["Body"] as body:
            return bytes(await body.read())

    return fsspec.asyn.sync(store.loop, read), _version(answer)


class _NotAsSentError(OSError):
    """What the store holds is not what was sent."""


def _upload(location: Location, data: bytes, content_type: str | None = None, *, once: bool = False) -> None:
    """once: raise FileExistsError where there is an object under this name."""
    store = filesystem(location)
    options: dict[str, str] = {}
    if content_type and location.protocol == "s3":
        options["ContentType"] = content_type
    if location.protocol == "s3" and len(data) < _ONE_PUT_BYTES:
        # The store itself compares: an etag need not be a digest, least of all where objects are encrypted
        options["ContentMD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    if once:
        options["mode"] = "create"
    try:
        store.pipe_file(location.path, data, **options)
    except Exception as error:
        if once and is_refused_as_there(error):
            raise FileExistsError(location.uri) from None
        raise
    info = store.info(location.path, **({"refresh": True} if location.protocol == "s3" else {}))
    if int(info.get("size") or 0) != len(data):
        raise _NotAsSentError(f"{location.uri} has {info.get('size')} bytes after {len(data)} were sent")


def _put_file(target: Path, chunks: Iterable[bytes], *, durable: bool = True, once: bool = False) -> None:
    """Write a file beside its place, then put it there. once: raise FileExistsError where there is one."""
    _make_folder(target.parent, durable=durable)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if once:
            os.link(temporary, target)
            temporary.unlink()
        else:
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(target.parent)  # Makes the new name itself survive a power cut


def _make_folder(folder: Path, *, durable: bool) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _make_name_durable.cache_clear()  # One that was removed is made again
    if durable:
        _make_name_durable(str(folder))


@functools.lru_cache(maxsize=1024)
def _make_name_durable(folder: str) -> None:
    """Make the name of a folder survive a power cut, and those of the folders above it, once a process.

    That a folder is there says nothing: another process may have made it a moment ago, or for a file that need not
    last.
    """
    for place in Path(folder).parents:
        with contextlib.suppress(PermissionError):  # Somebody else's, in which no folder of ours is a new name
            _sync_folder(place)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _mark(status: os.stat_result) -> str:
    return hashlib.blake2b(f"{status.st_ino} {status.st_ctime_ns}".encode(), digest_size=4).hexdigest()


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "LastModified", "mtime", "created"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""


def _walk_local(
    folder: Path, prefix: str, ancestors: frozenset[tuple[int, int]], problems: bool
) -> Iterator[StoredFile]:
    try:
        status = folder.stat()
    except FileNotFoundError:
        return
    if (status.st_dev, status.st_ino) in ancestors:
        return
    ancestors |= {(status.st_dev, status.st_ino)}
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        if not problems or not prefix:
            raise
        yield StoredFile(prefix.rstrip("/"), 0, "", f"the folder cannot be opened: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder, status = entry.is_dir(), entry.stat()
        except OSError as error:  # A link to nowhere: still a name in the archive
            reason = f"the name cannot be followed: {error.strerror}"
            if entry.is_symlink():
                reason = (
                    f"the link leads to {os.fsencode(Path(entry.path).readlink()).decode(errors='backslashreplace')!r}"
                )
                reason += ", which cannot be opened: " + (error.strerror or type(error).__name__)
            yield StoredFile(prefix + entry.name, 0, "", reason)
            continue
        if is_folder:
            yield from _walk_local(Path(entry.path), f"{prefix}{entry.name}/", ancestors, problems)
            continue
        if not statistics.S_ISREG(status.st_mode):
            if problems:  # No files of an archive; reading one may never end
                yield StoredFile(prefix + entry.name, 0, "", "it is a pipe, a socket or a device, and no file")
            continue
        yield StoredFile(prefix + entry.name, status.st_size, str(status.st_mtime_ns), mark=_mark(status))


def _list_s3(folder: Location) -> Iterator[StoredFile]:
    bucket, _, key = folder.path.partition("/")
    prefix = f"{key.rstrip('/')}/" if key else ""
    token: dict[str, str] = {}
    while True:
        # The file system is asked for each time, since it may have been made anew with other credentials
        page = retried(lambda: filesystem(folder).call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token))  # noqa: B023
        for item in page.get("Contents", ()):
            path = item["Key"][len(prefix) :]
            if path and not path.endswith("/") and not any(part.startswith(".") for part in path.split("/")):
                yield StoredFile(path, int(item["Size"]), str(item.get("ETag", "")).strip('"'))
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _walk_generic(folder: Location) -> Iterator[StoredFile]:
    try:
        children = retried(lambda: filesystem(folder).ls(folder.path, detail=True))
    except FileNotFoundError:
        return
    for info in sorted(children, key=lambda i: i["name"]):
        name = str(info["name"]).rstrip("/").rpartition("/")[2]
        if name.startswith("."):
            continue
        if info["type"] == "directory":
            for inner in _walk_generic(folder / name):
                yield StoredFile(f"{name}/{inner.path}", inner.size, inner.version)
        else:
            yield StoredFile(name, int(info.get("size") or 0), _version(info))
