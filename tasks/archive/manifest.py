"""What the archive holds: the append-only list of its images, cut into fixed parts that are never cut anew.

The manifest is a folder of Parquet segments `<sequence>-<digest>.parquet`, each written once. A listing adds segments
with what no segment lists yet. There is no lock. Two listings at the same time write equal segments (same name, same
bytes) where the source has not changed between them, and otherwise overlap; whoever reads applies one rule:

    An image belongs to the first segment, in the order of names, that lists it; where a refresh lists it again,
    to the last refresh.

Rows of an image in the parts of other segments do not count, and the finish of a run drops them from its masks.
"""

import hashlib
import io
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import storage
from tasks.ahead import ahead
from tasks.archive.entries import DIGEST_BYTES, Entry, decode_path, with_digest, without_mark
from tasks.parquet_files import whole_parquet
from tasks.storage import Location

SEGMENT_IMAGES = 65_536
"""Images of one segment at most: what a listing and a planner hold at a time."""

PART_IMAGES = 64
"""Images of one part at most: the unit that flows through the pipeline and is committed as a whole."""

REMEDY = "bring it back from a copy, or give the job another output"
"""What to do about a damaged segment, as the end of a sentence."""

_SMALLEST_PART_IMAGES = 2
_PARTS_OF_A_SMALL_ARCHIVE = 64

SCHEMA = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("path", pa.binary(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("version", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("fragment", pa.string(), nullable=False),
    ]
)
"""One row per listed image; the fields are those of `Entry`, and the part that it is in."""


def entries_of(rows: pa.Table) -> tuple[Entry, ...]:
    """What rows of segments list, those of versions before fragments included."""
    columns = [rows[name].to_pylist() for name in SCHEMA.names[1:] if name in rows.column_names]
    return tuple(Entry(*values) for values in zip(*columns, strict=True))


@dataclass(frozen=True)
class Segment:
    """One file of the manifest."""

    name: str
    """File name without its ending; names sort in the order in which segments came to be."""

    is_refresh: bool
    """Whether it lists images again because they were replaced."""


@dataclass(frozen=True)
class Part:
    """A fixed piece of the manifest."""

    name: str
    """`<segment>-<number>`, unique in the archive."""

    segment: str

    num_listed: int
    """Images that were listed in it."""

    _rows: pa.Table
    _owned: np.ndarray

    def count(self, start: int = 0, end: int | None = None) -> int:
        """Images among the listed ones from start to end that belong to it; a refresh or a rival owns the others."""
        return int(self._owned[start:end].sum())

    def listed_ids(self, start: int = 0, end: int | None = None) -> list[str]:
        """Identities of all listed images from start to end, whoever owns them now."""
        end = self.num_listed if end is None else end
        ids: list[str] = self._rows["image_id"].slice(start, end - start).to_pylist()
        return ids

    def image_ids(self, start: int = 0, end: int | None = None) -> list[str]:
        """Identities of `entries`."""
        end = self.num_listed if end is None else end
        ids = self._rows["image_id"].slice(start, end - start)
        owned: list[str] = ids.filter(pa.array(self._owned[start:end])).to_pylist()
        return owned

    def entries(self, start: int = 0, end: int | None = None) -> tuple[Entry, ...]:
        """The images among the listed ones from start to end that belong to it."""
        end = self.num_listed if end is None else end
        rows = self._rows.slice(start, end - start).filter(pa.array(self._owned[start:end]))
        return entries_of(rows)


class Manifest:
    """The segments of one archive as they stand when it is loaded.

    Memory: 36 bytes an image (identity and version as hashes); entries are read segment by segment.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        files = [f"{name}.parquet" for name in segment_names(folder)]
        self.segments: list[Segment] = []
        hashes, versions, counts = [], [], []
        for name, (table, refresh) in zip(files, ahead(self._read_versions, files, 4, 4), strict=True):
            self.segments.append(Segment(name.removesuffix(".parquet"), refresh))
            hashes.append(_hash_ids(table["image_id"].to_pylist()))
            versions.append(_hash_versions(table["size"].to_pylist(), table["version"].to_pylist()))
            counts.append(table.num_rows)
        self._ids = np.concatenate(hashes) if hashes else np.empty((0, 2), np.uint64)  # (images, 2)
        self._versions = np.concatenate(versions) if versions else np.empty(0, np.uint64)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def num_images(self) -> int:
        """Distinct images."""
        return int(self.owned.sum())

    @cached_property
    def owned(self) -> np.ndarray:
        """(listed rows,) bool: whether the row is the one that its image belongs to."""
        ids = self._ids[self._order]
        repeats = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))
        owned = np.ones(len(self._ids), dtype=bool)
        if len(repeats):
            refresh = np.array([s.is_refresh for s in self.segments])
            segment_of = np.repeat(np.arange(len(self.segments)), np.diff(self._starts))
            starts = repeats[np.concatenate([[True], np.diff(repeats) > 1])]
            for start in starts:
                end = start + 1
                while end < len(ids) and (ids[end] == ids[start]).all():
                    end += 1
                rows = np.sort(self._order[start:end])  # In the order of segments
                refreshed = rows[refresh[segment_of[rows]]]
                owned[rows] = False
                owned[refreshed[-1] if len(refreshed) else rows[0]] = True
        return owned

    @cached_property
    def _order(self) -> np.ndarray:
        return np.lexsort((np.arange(len(self._ids)), self._ids[:, 1], self._ids[:, 0]))

    @cached_property
    def _owned_sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = self._order[self.owned[self._order]]
        return self._ids[order, 0], self._ids[order, 1], self._versions[order]

    def compare(self, entries: list[Entry]) -> tuple[np.ndarray, np.ndarray]:
        """For each entry: is its image listed, and if so, is it listed with another version. Two (n,) bool arrays."""
        known = np.zeros(len(entries), dtype=bool)
        changed = np.zeros(len(entries), dtype=bool)
        high, low, versions = self._owned_sorted
        if not len(high) or not entries:
            return known, changed
        asked = _hash_ids([e.image_id for e in entries])
        sizes = [e.size for e in entries]
        asked_versions = _hash_versions(sizes, [e.version for e in entries])
        earlier = _hash_versions(sizes, [without_mark(e.version) for e in entries])
        first = np.searchsorted(high, asked[:, 0])
        for i, at in enumerate(first):
            while at < len(high) and high[at] == asked[i, 0]:
                if low[at] == asked[i, 1]:
                    known[i] = True
                    changed[i] = versions[at] not in (asked_versions[i], earlier[i])
                    break
                at += 1  # Two identities that share 64 bits of their hash
        return known, changed

    def parquet_files(self) -> dict[bytes, bool]:
        """Each Parquet file whose rows are listed, as `Entry.path`: whether by an id column, or else by row number."""
        found: dict[bytes, bool] = {}
        for segment in self.segments:
            table, _ = self._read(f"{segment.name}.parquet", ["image_id", "kind", "path", "position"])
            rows = table.filter(pc.equal(table["kind"], "parquet"))
            number = pc.struct_field(pc.extract_regex(rows["image_id"], r"!/row (?P<row>[0-9]+)$"), "row")
            named = pc.fill_null(pc.not_equal(number, rows["position"].cast(pa.string())), True)
            files = pa.table({"path": rows["path"], "named": named}).group_by("path").aggregate([("named", "any")])
            for path, by_ids in zip(files["path"].to_pylist(), files["named_any"].to_pylist(), strict=True):
                found[path] = found.get(path, False) or by_ids
        return found

    def parts(self, leave_out: Collection[str] = ()) -> Iterator[Part]:
        """Every part with what belongs to it, segment by segment, in the order of names.

        leave_out: names of segments that need not be read.
        """
        for index, segment in enumerate(self.segments):
            if segment.name in leave_out:
                continue
            table, _ = self._read(f"{segment.name}.parquet")
            owned = self.owned[self._starts[index] : self._starts[index + 1]]
            numbers = table["part"].to_numpy()
            cuts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
            for start, end in itertools.pairwise(cuts):
                rows = table.slice(start, end - start)
                yield Part(
                    f"{segment.name}-{numbers[start]:04d}", segment.name, int(end - start), rows, owned[start:end]
                )

    def _read_versions(self, name: str) -> tuple[pa.Table, bool]:
        return self._read(name, ["image_id", "size", "version"])

    def _read(self, name: str, columns: list[str] | None = None) -> tuple[pa.Table, bool]:
        data = storage.read_bytes(self.folder / name)
        with whole_parquet(self.folder / name, REMEDY):
            table = pq.ParquetFile(pa.BufferReader(data)).read(columns)
        return table, table.schema.metadata.get(b"refresh") == b"1"


def segment_names(folder: Location) -> list[str]:
    """Names of the segments of a manifest's folder, in order."""
    files = (file.path for file in storage.list_files(folder))
    return sorted(path.removesuffix(".parquet") for path in files if path.endswith(".parquet"))


@dataclass
class Listing:
    """What one pass over the source found."""

    added: int = 0
    """Images that no segment listed."""

    changed: int = 0
    """Images listed with another version."""

    refreshed: int = 0
    """Changed images that were listed again, to be done again."""


def extend(
    manifest: Manifest, entries: Iterator[Entry], *, refresh_changed: bool = False, limit: int | None = None
) -> Listing:
    """Write segments with the images of a source that the manifest does not list yet.

    refresh_changed: list replaced images again.
    limit: list no more images than this in total.
    The manifest object itself stays as it was; load it anew to see the new segments.
    """
    listing = Listing()
    sequence = 1 + max((int(s.name.partition("-")[0]) for s in manifest.segments), default=0)
    room = None if limit is None else max(0, limit - manifest.num_images)
    fresh: list[Entry] = []
    again: list[Entry] = []
    while batch := list(itertools.islice(entries, SEGMENT_IMAGES)):
        known, changed = manifest.compare(batch)
        for i in np.flatnonzero(changed):  # Young when it was listed, and old by now: its bytes tell
            changed[i] = _changed_since_young(manifest, batch[i])
        new = [entry for entry, is_known in zip(batch, known, strict=True) if not is_known]
        if room is not None:
            new, room = new[:room], room - len(new[:room])
        listing.added += len(new)
        listing.changed += int(changed.sum())
        fresh += new
        if refresh_changed:
            replaced = [entry for entry, is_changed in zip(batch, changed, strict=True) if is_changed]
            listing.refreshed += len(replaced)
            again += replaced
        while len(fresh) >= SEGMENT_IMAGES:
            sequence = _write_segment(manifest.folder, sequence, fresh[:SEGMENT_IMAGES], refresh=False)
            fresh = fresh[SEGMENT_IMAGES:]
        while len(again) >= SEGMENT_IMAGES:
            sequence = _write_segment(manifest.folder, sequence, again[:SEGMENT_IMAGES], refresh=True)
            again = again[SEGMENT_IMAGES:]
        if room == 0 and not manifest.num_images:
            break
    if fresh:
        sequence = _write_segment(manifest.folder, sequence, fresh, refresh=False)
    if again:
        _write_segment(manifest.folder, sequence, again, refresh=True)
    return listing


def _changed_since_young(manifest: Manifest, entry: Entry) -> bool:
    is_local = without_mark(entry.version) != entry.version
    if entry.kind != "file" or not is_local or (entry.size or 0) > DIGEST_BYTES:
        return True
    try:
        data = storage.read_bytes(Location("file", decode_path(entry.path)))
    except OSError:
        return True
    return bool(manifest.compare([with_digest(entry, data)])[1][0])


def part_size(num_images: int) -> int:
    """Images of a part in a segment of this many: 64, less in a small archive, so that its stages overlap too."""
    return int(np.clip(-(-num_images // _PARTS_OF_A_SMALL_ARCHIVE), _SMALLEST_PART_IMAGES, PART_IMAGES))


def _write_segment(folder: Location, sequence: int, entries: list[Entry], *, refresh: bool) -> int:
    size = part_size(len(entries))
    columns: dict[str, list[Any]] = {name: [getattr(e, name) for e in entries] for name in SCHEMA.names[1:]}
    columns["part"] = [row // size for row in range(len(entries))]
    schema = SCHEMA.with_metadata({"refresh": "1" if refresh else "0", "version": "1"})
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer, compression="zstd")
    # Named by content: two listings that found the same write the same file
    digest = hashlib.sha256(repr((refresh, [(e.image_id, e.size, e.version) for e in entries])).encode()).hexdigest()
    storage.write_whole(folder / f"{sequence:06d}-{digest[:8]}.parquet", buffer.getvalue())
    return sequence + 1


def _hash_ids(ids: list[str]) -> np.ndarray:
    """(n, 2) uint64: 128 bits of each identity, so that no two of 10^8 images meet."""
    joined = b"".join(hashlib.blake2b(i.encode("utf-8"), digest_size=16).digest() for i in ids)
    return np.frombuffer(joined, dtype=np.uint64).reshape(-1, 2)


def _hash_versions(sizes: list[int | None], versions: list[str]) -> np.ndarray:
    """(n,) uint64."""
    pairs = zip(sizes, versions, strict=True)
    joined = b"".join(hashlib.blake2b(f"{s}|{v}".encode(), digest_size=8).digest() for s, v in pairs)
    return np.frombuffer(joined, dtype=np.uint64)
