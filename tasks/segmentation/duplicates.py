"""Which images of a source are copies of others, over the whole manifest: saved again, resized, or a RAW and its JPEG.

    looks/source=<source id>/<reading>/blocks/<segment>-<number>.parquet   what some images look like
    looks/source=<source id>/<reading>/<segment>.parquet                   which images of a segment are copies

Blocks are made in parallel and each written once; then a segment is decided, as a function of the segments before it,
and written once: the first to write decides for every session. So what is a copy never changes, whatever is listed
later, and a job that was killed goes on with the blocks that are there.
"""

import collections
import contextlib
import functools
import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.datasets import near_duplicates
from segcore.images.errors import ImageError
from segcore.predictor import PredictParams
from tasks import engines, progress, storage
from tasks.archive.entries import Entry
from tasks.archive.entry_bytes import read_entries
from tasks.archive.manifest import Manifest, Part
from tasks.archive.output import Output
from tasks.archive.seals import digest
from tasks.parquet_files import read_parquet
from tasks.results.reading import Results
from tasks.storage import Location
from tasks.stream.isolation import Apart, ImageLimits
from tasks.stream.looks import Look, Looker, harmless_file
from tasks.stream.units import Copy

_BLOCK_PARTS = 8
_BLOCKS_OF_A_SMALL_SEGMENT = 16
_READERS = 8

_REMEDY = "remove it, and run the archive job again"

_BLOCK = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("look", pa.uint64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)
"""One row an image; look is 0 for what cannot be read or is too flat: it is nobody's copy."""

_DECIDED = _BLOCK.append(pa.field("original", pa.string())).append(pa.field("original_version", pa.string()))


class Original(NamedTuple):
    """What an image is a copy of."""

    image_id: str
    version: str
    """Of its bytes, when both were compared."""

    width: int
    height: int
    """Of the copy, in px, upright."""


@dataclass(frozen=True)
class Duplicates:
    """The images of a manifest that are copies."""

    of: dict[str, dict[str, Original]]
    """By segment, then by identity: a refresh may list an image again as something else."""

    def among(self, part: Part, start: int, end: int) -> dict[str, Original]:
        """The copies among the listed images of a part from start to end, whoever owns them now."""
        copies = self.of.get(part.segment)
        if not copies:
            return {}
        return {image_id: copies[image_id] for image_id in part.listed_ids(start, end) if image_id in copies}


def place_of(output: Output, source: str, params: PredictParams) -> Location:
    """Where it is kept. source: `source_id`."""
    compared = [near_duplicates.VERSION, near_duplicates.MAX_DISTANCE, near_duplicates.SAME_ASPECT]
    return output.looks_folder(source, digest([*compared, asdict(params.reading), params.max_pixels]))


def load(folder: Location) -> Duplicates:
    """What is decided. folder: of `place_of`."""
    names = sorted(file.path for file in storage.list_files(folder) if "/" not in file.path)
    with ThreadPoolExecutor(_READERS) as pool:
        tables = pool.map(lambda name: read_parquet(folder / name, _REMEDY), names)
        decided = zip(names, tables, strict=True)
        return Duplicates({name.removesuffix(".parquet"): _copies(table) for name, table in decided})


def _copies(table: pa.Table) -> dict[str, Original]:
    copies = table.filter(pc.is_valid(table["original"]))
    columns = [copies[name].to_pylist() for name in ("image_id", "original", "original_version", "width", "height")]
    return {image_id: Original(*of) for image_id, *of in zip(*columns, strict=True)}


def find(manifest: Manifest, source: Location, folder: Location, params: PredictParams, limits: ImageLimits) -> None:
    """Look at every image that nobody has looked at, and decide which are copies. folder: of `place_of`."""
    decided = {file.path.removesuffix(".parquet") for file in storage.list_files(folder) if "/" not in file.path}
    if all(segment.name in decided for segment in manifest.segments):
        return
    looked = {file.path for file in storage.list_files(folder / "blocks")}
    known = _Known()
    parts = manifest.parts(leave_out=decided)
    missing = itertools.groupby(parts, key=lambda part: part.segment)
    left = sum(part.count() for part in manifest.parts(leave_out=decided))
    with progress.measured("comparing", left) as report:
        done = 0
        for segment in manifest.segments:
            if segment.name not in decided:
                _, its = next(missing)
                blocks = _blocks(list(its))
                names = [f"{segment.name}-{number:04d}.parquet" for number in range(len(blocks))]
                pieces = [(n, b) for n, b in zip(names, blocks, strict=True) if n not in looked]
                for count in engines.spread(look_at, pieces, source, folder / "blocks", params, limits):
                    done += count
                    report(done)
                tables = [read_parquet(folder / "blocks" / name, _REMEDY) for name in names]
                _decide(folder / f"{segment.name}.parquet", pa.concat_tables(tables), known, segment.is_refresh)
            known.add(read_parquet(folder / f"{segment.name}.parquet", _REMEDY), segment.is_refresh)


def _blocks(parts: Sequence[Part]) -> list[tuple[Entry, ...]]:
    step = int(np.clip(len(parts) // _BLOCKS_OF_A_SMALL_SEGMENT, 1, _BLOCK_PARTS))
    entries = [part.entries() for part in parts]
    return [tuple(itertools.chain(*entries[start : start + step])) for start in range(0, len(parts), step)]


def look_at(
    piece: tuple[str, tuple[Entry, ...]], source: Location, folder: Location, params: PredictParams, limits: ImageLimits
) -> int:
    """Write what the images of a block look like; how many there are. An image that does harm is nobody's copy."""
    name, entries = piece
    rows = []
    make = functools.partial(Looker, params.max_pixels, params.reading)
    with Apart(make, "comparing", limits, ("look", harmless_file())) as apart:
        for entry, data in read_entries(source, entries):
            look = Look(0, 0, 0)
            if not isinstance(data, ImageError):
                with contextlib.suppress(ImageError):  # It will be an error row
                    look = apart("look", data)
            rows.append((entry.image_id, entry.version, *look))
    storage.write_once(folder / name, _file(rows, _BLOCK))
    return len(rows)


class _Known:
    """Images that are no copies, of the segments until now."""

    def __init__(self) -> None:
        self.looks, self.aspects = np.empty(0, np.uint64), np.empty(0, np.float64)
        self.ids: list[str] = []
        self.versions: list[str] = []

    def forget(self, ids: set[str]) -> None:
        """Count these no more."""
        kept = np.array([image_id not in ids for image_id in self.ids], bool)
        self.looks, self.aspects = self.looks[kept], self.aspects[kept]
        self.ids = list(itertools.compress(self.ids, kept))
        self.versions = list(itertools.compress(self.versions, kept))

    def add(self, table: pa.Table, is_refresh: bool) -> None:
        """Those of a segment that was decided."""
        if is_refresh:
            self.forget(set(table["image_id"].to_pylist()))
        table = table.filter(pc.is_null(table["original"]))
        looks = table["look"].to_numpy()
        table = table.filter(pa.array(looks != 0))
        self.looks = np.concatenate([self.looks, looks[looks != 0]])
        self.aspects = np.concatenate([self.aspects, _aspects(table)])
        self.ids += table["image_id"].to_pylist()
        self.versions += table["version"].to_pylist()


def _decide(place: Location, table: pa.Table, known: _Known, is_refresh: bool) -> None:
    """Write which images of a segment are copies; of several that are alike, the largest is the original."""
    pixels = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
    table = table.take(pa.array(np.argsort(-pixels, kind="stable")))
    ids, versions = table["image_id"].to_pylist(), table["version"].to_pylist()
    if is_refresh:  # What its images were is nobody's original any more
        known.forget(set(ids))
    found = near_duplicates.originals(table["look"].to_numpy(), _aspects(table), known.looks, known.aspects)
    many = len(known.ids)
    names = [None if k < 0 else known.ids[k] if k < many else ids[k - many] for k in found.tolist()]
    of = [None if k < 0 else known.versions[k] if k < many else versions[k - many] for k in found.tolist()]
    table = table.append_column(_DECIDED.field("original"), pa.array(names, pa.string()))
    table = table.append_column(_DECIDED.field("original_version"), pa.array(of, pa.string()))
    buffer = io.BytesIO()
    pq.write_table(table.cast(_DECIDED), buffer, compression="zstd")
    storage.write_once(place, buffer.getvalue())


def _aspects(table: pa.Table) -> np.ndarray:
    """Width / height of each image, 1 where nothing is known of it."""
    width, height = table["width"].to_numpy(), table["height"].to_numpy()
    return np.where(height > 0, width / np.maximum(height, 1), 1.0)


def _file(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> bytes:
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[]] * len(schema)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def with_rows(
    output: Output, run_id: str, units: Sequence[tuple[str, dict[Entry, Original]]]
) -> Iterator[tuple[str, tuple[Entry, ...], tuple[Copy, ...]]]:
    """Units of copies with the rows of their originals: name, images that must be scored after all, and the copies.

    A copy whose original has no mask, or was replaced since both were compared, is scored. A unit with an original that
    has no row yet is left out.
    """
    wanted = {original.image_id for _, copies in units for original in copies.values()}
    results = Results(output, run_id, output.record(run_id), tuple(output.files(run_id)))
    files: dict[str, int] = {}
    for number, file in enumerate(results.files):
        for table in Results.read_file(file, ["image_id"]):
            files |= {image_id: number for image_id in table["image_id"].to_pylist() if image_id in wanted}
    for name, copies in units:
        if any(original.image_id not in files for original in copies.values()):
            continue
        asked = collections.defaultdict(set)
        for original in copies.values():
            asked[files[original.image_id]].add(original.image_id)
        rows: dict[str, dict[str, Any]] = {}
        for number, ids in asked.items():
            chosen = pa.array(sorted(ids), pa.string())
            for table in Results.read_file(results.files[number], _COLUMNS):
                found = table.filter(pc.is_in(table["image_id"], chosen))
                rows |= {row["image_id"]: row for row in found.to_pylist()}
        usable = {
            entry: rows[original.image_id]
            for entry, original in copies.items()
            if rows[original.image_id]["error_kind"] is None
            and rows[original.image_id]["source_etag"] == original.version
        }
        yield (
            name,
            tuple(entry for entry in copies if entry not in usable),
            tuple(Copy(entry, copies[entry].width, copies[entry].height, row) for entry, row in usable.items()),
        )


_COLUMNS = [
    *("image_id", "source_etag", "error_kind", "mask", "mask_before_crf", "mask_width", "mask_height", "classes"),
    *("confidence", "entropy", "changed_by_crf", "device"),
]
