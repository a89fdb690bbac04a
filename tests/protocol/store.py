"""Two stores in memory, each as unkind as the real ones may be: a bucket of an object store, and a disk.

    Bucket   stands in for s3fs. A request may be delayed, fail before its effect, or lose its answer after it; a
             listing comes in pages between which others write, and may be stale; an upload in parts that is not
             completed is nowhere. `conditional`: whether If-None-Match is honoured, ignored or refused.
    Disk     stands in for `os`, `Path` and `shutil` in tasks/storage.py. Names and bytes that no fsync has made durable
             may be there after a power cut or not, each by itself; a file's bytes may be there in part.

Every call comes to `Turns` first, where its caller may be delayed or killed. What anybody ever wrote is kept in `ever`.
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import fsspec.asyn
from botocore.exceptions import ClientError

from tasks.storage import TEMPORARY_PREFIX
from tests.protocol.turns import Turns

T = TypeVar("T")

_PAGE = 5  # Names of one page of a listing
_TICK_NS = 1_000_000_000  # Of the clock that files are dated by, as on old NFS servers
_STALE_S = 2.0


class Bucket:
    """All buckets of one object store, as s3fs shows them to `tasks.storage`."""

    def __init__(self, turns: Turns, objects: dict[str, bytes] | None = None) -> None:
        self.turns = turns
        self.objects: dict[str, bytes] = dict(objects or {})
        self.conditional = "honoured"
        self.stale = 0.0
        """Share of listings that show a bucket as it was."""

        self.ever: dict[str, set[bytes]] = {key: {data} for key, data in self.objects.items()}
        self.loop = fsspec.asyn.get_loop()
        self._past: list[tuple[float, dict[str, bytes]]] = []

    def put(self, key: str, data: bytes | None) -> None:
        """The effect of a request; None removes."""
        if self.stale:
            self._past = [(t, o) for t, o in self._past if t > self.turns.now - _STALE_S]
            self._past.append((self.turns.now, dict(self.objects)))
        if data is None:
            self.objects.pop(key, None)
            self.turns.removed[key] = self.turns.name
        else:
            self.objects[key] = data
            self.ever.setdefault(key, set()).add(data)
        self.turns.changed()

    def pipe_file(self, path: str, data: bytes, **options: Any) -> None:
        def effect() -> None:
            if options.get("mode") == "create" and self.conditional != "ignored":
                if self.conditional == "refused":
                    raise _refusal("NotImplemented", 501)
                if path in self.objects:
                    raise _refusal("PreconditionFailed", 412)
            self.put(path, bytes(data))

        self._request(f"PUT {path} ({len(data)} bytes)", effect, changes=True)

    def rm_file(self, path: str) -> None:
        self._request(f"DELETE {path}", lambda: self.put(path, None), changes=True)

    def rm(self, path: str, recursive: bool) -> None:
        found = self._request(f"LIST {path}", lambda: [k for k in sorted(self.objects) if k.startswith(f"{path}/")])
        if not found:
            raise FileNotFoundError(path)
        for key in found:
            self.rm_file(key)

    def info(self, path: str, refresh: bool = True) -> dict[str, Any]:
        data = self._request(f"HEAD {path}", lambda: self._get(path))
        return {"name": path, "type": "file", "size": len(data), "ETag": _etag(data)}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._request(f"GET {path}", lambda: self._get(path))[start:end]

    def open(self, path: str, mode: str, **options: Any) -> io.BytesIO:
        """s3fs reads every range with the etag that it found at first, so one object is read or none."""
        opened = io.BytesIO(self._request(f"GET {path}", lambda: self._get(path)))
        opened.details = {"ETag": _etag(opened.getvalue()), "size": len(opened.getvalue())}  # type: ignore[attr-defined]
        return opened

    def call_s3(self, method: str, **asked: str) -> Any:
        bucket = asked["Bucket"]
        if method == "get_object":
            place = f"{bucket}/{asked['Key']}"
            data = self._request(f"GET {place}", lambda: self._get(place))
            return {"Body": _Body(data), "ETag": _etag(data)}
        assert method == "list_objects_v2"
        prefix = f"{bucket}/{asked['Prefix']}"

        def page() -> list[tuple[str, bytes]]:
            shown = self.objects
            if self._past and self.turns.current is not None and self.turns.dice.random() < self.stale:
                shown = self.turns.dice.choice(self._past)[1]
                self.turns.note("the listing is stale")
            after = asked.get("ContinuationToken", "")
            keys = sorted(k for k in shown if k.startswith(prefix) and k > after)
            return [(key, shown[key]) for key in keys[: _PAGE + 1]]

        found = self._request(f"LIST {prefix}", page)
        contents = [{"Key": k.partition("/")[2], "Size": len(d), "ETag": _etag(d)} for k, d in found[:_PAGE]]
        more = len(found) > _PAGE
        return {"Contents": contents, "IsTruncated": more, "NextContinuationToken": found[_PAGE - 1][0] if more else ""}

    def _get(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def _request(self, what: str, effect: Callable[[], T], *, changes: bool = False) -> T:
        self.turns.call(what)
        failed = self.turns.fault()
        if failed and (not changes or self.turns.dice.random() < 0.5):
            self.turns.note(f"{what}: connection reset, nothing done")
            raise ConnectionResetError(what)
        answer = effect()
        if changes:
            self.turns.call(f"{what}: done, the answer is under way")
        if failed:
            raise ConnectionResetError(f"{what}: the answer was lost")
        return answer


@functools.lru_cache(4096)
def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _refusal(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


class _Body:
    """Of the answer to a GET."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aenter__(self) -> "_Body":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self) -> bytes:
        return self.data


@dataclass(eq=False)
class Inode:
    """A file, whatever its names."""

    number: int
    data: bytes = b""
    durable: bytes | None = None
    """What a power cut leaves; None: any beginning of the data."""

    mtime_ns: int = 0
    ctime_ns: int = 0


@dataclass(frozen=True)
class _Change:
    """A change of names in a folder that no fsync of the folder has made durable."""

    folder: str
    names: tuple[tuple[str, "Inode | None"], ...]
    """Path and what it is from now on; an Inode without number stands for a folder."""


class Disk:
    """A disk with the calls of `os` and `pathlib` that `tasks.storage` makes; paths are absolute."""

    def __init__(self, turns: Turns, files: dict[str, bytes] | None = None) -> None:
        self.turns = turns
        self.names: dict[str, Inode] = {"/": Inode(0)}
        self.durable: dict[str, Inode] = {}
        self.pending: list[_Change] = []
        self.ever: dict[str, set[bytes]] = {}
        self._handles: dict[int, Inode | str] = {}
        self._inodes = 0
        for path, data in (files or {}).items():
            for folder in reversed(_parents(path)):
                self.names.setdefault(folder, Inode(0))
            self.names[path] = self.inode(data)
            self.names[path].durable = data
            self.ever[path] = {data}
        self.durable = dict(self.names)

    @property
    def objects(self) -> dict[str, bytes]:
        """Bytes of the files, by path."""
        return {path: inode.data for path, inode in self.names.items() if inode.number}

    def inode(self, data: bytes = b"") -> Inode:
        self._inodes += 1
        return Inode(self._inodes, data, None, self._tick(), self._tick())

    def put(self, path: str, data: bytes) -> None:
        """Put another file in the place of one, durably: what somebody else does to the source."""
        inode = self.inode(data)
        inode.durable = data
        self.change(path.rpartition("/")[0], (path, inode))
        self.pending.pop()
        self.durable[path] = inode

    def overwrite(self, path: str, data: bytes) -> None:
        """The same in place: within a tick nothing but its bytes tells it from what was there."""
        if path not in self.names:
            self.put(path, data)
            return
        inode = self.names[path]
        inode.data = inode.durable = data
        inode.mtime_ns = inode.ctime_ns = self._tick()
        self.ever.setdefault(path, set()).add(data)
        self.turns.changed()

    def change(self, folder: str, *names: tuple[str, Inode | None]) -> None:
        """Change names of a folder at once."""
        for path, inode in names:
            if inode is None:
                self.names.pop(path, None)
                self.turns.removed[path] = self.turns.name
            else:
                self.names[path] = inode
                inode.ctime_ns = self._tick()
                if inode.number:
                    self.ever.setdefault(path, set()).add(inode.data)
        self.pending.append(_Change(folder, names))
        if not all(_is_temporary(path) for path, _ in names):
            self.turns.changed()

    def power_cut(self) -> None:
        """Every process ends; what no fsync has made durable is there or not."""
        self.turns.note("POWER CUT")
        self.turns.kill_all()
        dice = self.turns.dice
        survives = dice.choice((0.0, 0.5, 0.9))
        for change in self.pending:
            if dice.random() < survives:
                self._make_durable(change)
        self.pending.clear()
        reachable = {p for p in self.durable if all(folder in self.durable for folder in _parents(p))}
        self.names = {path: inode for path, inode in self.durable.items() if path in reachable}
        self.durable = dict(self.names)
        for inode in self.names.values():
            if inode.number and inode.durable is None:
                inode.data = inode.data[: dice.randrange(len(inode.data) + 1)]
            inode.durable = inode.data
        self.turns.changed()

    def _make_durable(self, change: _Change) -> None:
        for path, inode in change.names:
            if inode is None:
                self.durable.pop(path, None)
            else:
                self.durable[path] = inode

    def _tick(self) -> int:
        return int(self.turns.now * 1e9) // _TICK_NS * _TICK_NS

    def get(self, path: str) -> Inode:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.names[path]

    def handle(self, what: "Inode | str") -> int:
        number = 1000 + len(self._handles)
        self._handles[number] = what
        return number

    # What tasks.storage knows as `os`

    def fsync(self, handle: int) -> None:
        self.turns.call(f"fsync {self._handles[handle] if isinstance(self._handles[handle], str) else 'file'}")
        held = self._handles[handle]
        if isinstance(held, Inode):
            held.durable = held.data
            return
        for change in [c for c in self.pending if c.folder == held]:
            self._make_durable(change)
            self.pending.remove(change)

    def fstat(self, handle: int) -> os.stat_result:
        held = self._handles[handle]
        assert isinstance(held, Inode)
        return _status(held)

    def open(self, path: object, flags: int) -> int:
        return self.handle(str(path))

    def link(self, source: object, target: object) -> None:
        source, target = str(source), str(target)
        self.turns.call(f"link {target}")
        inode = self.get(source)
        if target in self.names:
            raise FileExistsError(errno.EEXIST, "File exists", target)
        self.change(target.rpartition("/")[0], (target, inode))
        self.turns.call(f"link {target}: done")

    def scandir(self, folder: object) -> Iterator[SimpleNamespace]:
        folder = str(folder)
        self.turns.call(f"scandir {folder}")
        self.get(folder)
        inside = [p for p in self.names if p.rpartition("/")[0] == folder and p != folder]
        return iter([_dir_entry(path, self.names[path]) for path in inside])

    def shown_as_os(self) -> SimpleNamespace:
        """The module `os`, with this disk's calls in it."""
        own = {name: getattr(self, name) for name in ("fsync", "fstat", "open", "link", "scandir")}
        return SimpleNamespace(**{**vars(os), **own, "close": lambda handle: None})

    def shown_as_path(self) -> Callable[..., "DiskPath"]:
        return lambda path, *more: DiskPath(self, "/".join([str(path), *more]))

    def shown_as_shutil(self) -> SimpleNamespace:
        def rmtree(path: str) -> None:
            self.get(path)
            for inner in sorted((p for p in self.names if p == path or p.startswith(f"{path}/")), reverse=True):
                DiskPath(self, inner).unlink()

        return SimpleNamespace(rmtree=rmtree)


@dataclass(frozen=True)
class DiskPath:
    """The part of `pathlib.Path` that `tasks.storage` uses."""

    disk: Disk
    path: str

    def __str__(self) -> str:
        return self.path

    def __truediv__(self, name: str) -> "DiskPath":
        return DiskPath(self.disk, f"{self.path}/{name}")

    @property
    def parent(self) -> "DiskPath":
        return DiskPath(self.disk, self.path.rpartition("/")[0] or "/")

    @property
    def parents(self) -> "list[DiskPath]":
        return [DiskPath(self.disk, path) for path in _parents(self.path)]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def _calls(self, what: str) -> None:
        self.disk.turns.call(f"{what} {self.path}")

    def exists(self) -> bool:
        self._calls("stat")
        return self.path in self.disk.names

    def is_dir(self) -> bool:
        return self.path in self.disk.names and not self.disk.names[self.path].number

    def is_file(self) -> bool:
        self._calls("stat")
        return self.path in self.disk.names and not self.is_dir()

    def stat(self) -> os.stat_result:
        return _status(self.disk.get(self.path))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        for folder in [*reversed(_parents(self.path)), self.path]:
            if folder not in self.disk.names:
                self.disk.turns.call(f"mkdir {folder}")
                if folder not in self.disk.names:
                    self.disk.change(folder.rpartition("/")[0] or "/", (folder, Inode(0)))

    def open(self, mode: str) -> "_Reading | _Writing":
        self._calls(f"open {mode}")
        if mode == "rb":
            return _Reading(self.disk, self.disk.get(self.path))
        if self.path not in self.disk.names:
            self.disk.change(self.parent.path, (self.path, self.disk.inode()))
        inode = self.disk.names[self.path]
        inode.data, inode.durable = b"", None
        return _Writing(self.disk, inode, self.path)

    def read_bytes(self) -> bytes:
        self._calls("read")
        return self.disk.get(self.path).data

    def replace(self, target: "DiskPath") -> None:
        self._calls(f"rename to {target.name}")
        inode = self.disk.get(self.path)
        self.disk.change(self.parent.path, (self.path, None), (target.path, inode))
        self._calls(f"rename to {target.name}: done")

    def unlink(self, missing_ok: bool = False) -> None:
        self._calls("unlink")
        if self.path in self.disk.names:
            self.disk.change(self.parent.path, (self.path, None))
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", self.path)

    def rglob(self, pattern: str) -> Iterator["DiskPath"]:
        start = pattern.rstrip("*")
        for path in list(self.disk.names):
            if path.startswith(f"{self.path}/") and path.rpartition("/")[2].startswith(start):
                yield DiskPath(self.disk, path)


class _Reading(io.BytesIO):
    """A file that was opened: what is put in its place is another file."""

    def __init__(self, disk: Disk, inode: Inode) -> None:
        super().__init__(inode.data)
        self._handle = disk.handle(inode)

    def fileno(self) -> int:
        return self._handle


class _Writing(contextlib.AbstractContextManager["_Writing"]):
    """A file that is written: others see what is there so far."""

    def __init__(self, disk: Disk, inode: Inode, path: str) -> None:
        self._disk, self._inode, self._path = disk, inode, path

    def write(self, data: bytes) -> None:
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            self._disk.turns.call(f"write {self._path}")
            self._inode.data += piece
            self._inode.durable, self._inode.mtime_ns = None, self._disk._tick()
            self._disk.ever.setdefault(self._path, set()).add(self._inode.data)
        if not _is_temporary(self._path):
            self._disk.turns.changed()

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return self._disk.handle(self._inode)

    def __exit__(self, *_: object) -> None:
        pass


def _is_temporary(path: str) -> bool:
    """Whether nobody who looks sees a file of this name."""
    return path.rpartition("/")[2].startswith(TEMPORARY_PREFIX)


def _parents(path: str) -> list[str]:
    """Folders that a path lies in, the nearest first."""
    found = []
    while path not in ("/", ""):
        path = path.rpartition("/")[0] or "/"
        found.append(path)
    return found


def _status(inode: Inode) -> os.stat_result:
    kind = stat.S_IFREG if inode.number else stat.S_IFDIR
    made = os.stat_result((kind, inode.number, 1, 1, 0, 0, len(inode.data), 0, 0, 0), {})
    return SimpleNamespace(  # type: ignore[return-value]
        st_mode=made.st_mode,
        st_ino=inode.number,
        st_dev=1,
        st_size=len(inode.data),
        st_mtime_ns=inode.mtime_ns,
        st_mtime=inode.mtime_ns / 1e9,
        st_ctime_ns=inode.ctime_ns,
    )


def _dir_entry(path: str, inode: Inode) -> SimpleNamespace:
    return SimpleNamespace(
        name=path.rpartition("/")[2],
        path=path,
        is_dir=lambda: not inode.number,
        stat=lambda: _status(inode),
        is_symlink=lambda: False,
    )
