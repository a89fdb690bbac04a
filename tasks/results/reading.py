"""One run of an output, for reading: its rows, its masks, one image by its identity.

    results = open_results("s3://bucket/masks")
    for image_id, labels in results.masks(): ...
    labels = results.mask("2007/07/dog.jpg")
    table = results.to_pandas()

Which files it is made of, `tasks/archive/output.py` says. Knows nothing of Ray, Prefect or torch until they are asked
for. Questions in SQL are `query.py`.
"""

import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.images.label_tiff import LabelTiff
from segcore.images.masks import decode_mask
from tasks import storage
from tasks.ahead import ahead
from tasks.archive.output import MaskFile, Output, is_finished
from tasks.archive.schema import ROWS, conform
from tasks.archive.stored_content import StoredContent
from tasks.errors import JobError
from tasks.parquet_files import whole_parquet
from tasks.storage_client import arrow_filesystem

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow.dataset as ds
    import ray.data
    import torch

_READERS = 8

_WHOLE_FILE_BYTES = 64 * 2**20  # Larger files are read row group by row group

REMEDY = "remove it and run the archive job again, which does just its images anew"
"""What to do about a mask file that is damaged."""

MASK_COLUMNS = ("mask", "mask_before_crf")

FACTS = [name for name in ROWS.names if name not in MASK_COLUMNS]
"""Every column but the masks: what a question needs, in a few hundred bytes an image."""


@dataclass(frozen=True)
class Piece:
    """What of a run is worked on at a time: a file, or a row group of a large one."""

    file: MaskFile
    group: int | None
    """None: all of the file."""

    rows: int


def open_results(output: str, run: str | None = None) -> "Results":
    """A run of an output: the one that finished last, or the one named (its id, or an unmistakable beginning of it).

    Raises JobError where there is none, or where none has finished and none is named.
    """
    place = Output.at(output)
    with storage.explained(place.place):
        record, look = place.choose_files(run)
        files = place.files(record["run_id"], look)
    if not files:
        raise JobError(f"Run {record['run_id']} of {output} has no rows yet; its status is {record.get('status')}.")
    return Results(place, record["run_id"], record, tuple(files))


@dataclass(frozen=True)
class _Footer:
    """What the end of a file says of its row groups."""

    rows: tuple[int, ...]
    lowest: tuple[str | None, ...]
    highest: tuple[str | None, ...]

    def groups_with(self, image_id: str) -> list[int]:
        """Row groups that may hold an image, by their statistics; all of them where there are none."""
        ranges = enumerate(zip(self.lowest, self.highest, strict=True))
        return [g for g, (low, high) in ranges if low is None or high is None or low <= image_id <= high]


@dataclass(frozen=True)
class Results:
    """One run, opened. The list of its files is that of the moment of opening."""

    output: Output
    run_id: str
    record: dict[str, Any]
    """Its run record, `tasks/archive/runs.py`."""

    files: tuple[MaskFile, ...]
    _footers: dict[int, _Footer] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether every image of the archive was proved to have its one row."""
        return is_finished(self.record)

    @cached_property
    def dataset(self) -> "ds.Dataset":
        """The run as an Arrow dataset: filters and columns are pushed down to row groups and column chunks."""
        paths = [file.place.path for file in self.files]
        import pyarrow.dataset as ds  # Brings pandas: not before somebody asks

        return ds.dataset(paths, schema=ROWS, format="parquet", filesystem=arrow_filesystem(self.output.place))

    @cached_property
    def num_rows(self) -> int:
        """Images, error rows included: of a finished run as they were proved, else from the files' footers."""
        if self.is_finished and isinstance(self.record.get("images"), int):
            return int(self.record["images"])
        with self._naming_the_damaged():
            return int(self.dataset.count_rows())

    def __len__(self) -> int:
        return self.num_rows

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in the order of the files, streamed: a table for each file, or row group where files are large.

        columns: those of `tasks/archive/schema.py`; None: every column but the masks.
        """
        wanted = _known(columns)
        yield from ahead(lambda piece: _read(piece[0], wanted, piece[1]), self._pieces(), _READERS, _READERS)

    @staticmethod
    def read_file(file: MaskFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of one file, a table for each piece that is read at a time."""
        wanted = _known(columns)
        for group in _groups(file):
            yield _read(file, wanted, group)

    @cached_property
    def pieces(self) -> list[Piece]:
        """The run in pieces of some thousand rows at most, in the order of the files; reads their footers."""
        found = []
        with ThreadPoolExecutor(_READERS) as pool:
            for file, footer in zip(self.files, pool.map(self._footer, range(len(self.files))), strict=True):
                many = len(footer.rows) > 1
                groups = enumerate(footer.rows) if many else [(None, sum(footer.rows))]
                found += [Piece(file, group, rows) for group, rows in groups]
        return found

    @staticmethod
    def read_piece(piece: Piece, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one piece."""
        return _read(piece.file, _known(columns), piece.group)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row as a dictionary, streamed."""
        for table in self.tables(columns):
            yield from table.to_pylist()

    def masks(self, *, before_crf: bool = False) -> Iterator[tuple[str, np.ndarray]]:
        """Identity and label map (H, W) uint8 of every image that has a mask, streamed.

        before_crf: the mask before the CRF, where the run kept it.
        """
        column = "mask_before_crf" if before_crf else "mask"
        beside = [] if before_crf else ["mask_file"]
        for table in self.tables(["image_id", column, *beside]):
            for row in table.to_pylist():
                if (labels := self.labels_of(row | {"mask": row[column]})) is not None:
                    yield row["image_id"], labels

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.masks()

    def row(self, image_id: str, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """The row of one image, found by the statistics of the files rather than by reading them.

        Reads a handful of footers where the source was listed in the order of names, all of them once at worst.
        Raises JobError where the run has no such image.
        """
        wanted = _known(columns)
        with storage.explained(self.output.place):
            for number in self._files_with(image_id):
                for group in self._footer(number).groups_with(image_id):
                    row = _look(self.files[number], group, image_id, wanted)
                    if row is not None:
                        return row
        raise JobError(f"Run {self.run_id} has no image {image_id!r}: identities are paths relative to the source.")

    def mask(self, image_id: str, *, before_crf: bool = False) -> np.ndarray:
        """Label map (H, W) uint8 of one image. Raises JobError where it has none, with the reason."""
        column = "mask_before_crf" if before_crf else "mask"
        row = self.row(image_id, [column, "mask_file", "error_kind", "error"])
        if row["error_kind"] is not None:
            raise JobError(f"{image_id} has no mask: {row['error']} ({row['error_kind']}).")
        labels = self.labels_of(row | {"image_id": image_id, "mask": row[column]}, beside=not before_crf)
        if labels is None:
            raise JobError(f"Run {self.run_id} kept no masks before the CRF; --keep-mask-before-crf keeps them.")
        return labels

    def labels_of(self, row: Mapping[str, Any], *, small: bool = False, beside: bool = True) -> np.ndarray | None:
        """Label map (H, W) uint8 or uint16 of a row with image_id, mask and mask_file; None where it has none.

        small: of a mask beside its row its small copy, of 2048 px at most. beside: False leaves those out. Raises
        JobError for a mask that is damaged or gone, or of more pixels than are held at once.
        """
        if row["mask"] is not None:
            return self._labels(row["image_id"], row["mask"])
        place = self.output.label_file(row) if beside else None
        if place is None:
            return None
        try:
            file = LabelTiff(StoredContent.of(place))
            return file.overview() if small else file.read()
        except FileNotFoundError:
            raise JobError(
                f"The mask of {row['image_id']!r} is gone ({place.uri}): run the archive job again."
            ) from None
        except ValueError as error:
            raise JobError(f"The mask of {row['image_id']!r} cannot be read from {place.uri}: {error}.") from None

    def rows_of(self, image_ids: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of many images, in the order of the files; reads the other columns only where they stand."""
        wanted = _known(columns)
        ids = pa.array(image_ids, pa.string())
        with self._naming_the_damaged():
            places = self.dataset.to_table(columns=["image_id", "__filename"], filter=pc.field("image_id").isin(ids))
        held: dict[str, list[str]] = collections.defaultdict(list)
        for image_id, path in zip(*(column.to_pylist() for column in places.columns), strict=True):
            held[path].append(image_id)
        extra = [] if "image_id" in wanted else ["image_id"]
        for file in self.files:
            if not (here := held.get(file.place.path)):
                continue
            asked = pa.array(here, pa.string())
            for group in _groups(file):
                # Of a large file, only the row groups that hold one of them
                if (
                    group is not None
                    and not pc.any(pc.is_in(_read(file, ["image_id"], group)["image_id"], asked)).as_py()
                ):
                    continue
                table = _read(file, [*wanted, *extra], group)
                for row in table.filter(pc.is_in(table["image_id"], asked)).to_pylist():
                    yield {name: row[name] for name in wanted}

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole run as one table; by default every column but the masks."""
        with self._naming_the_damaged():
            return self.dataset.to_table(columns=_known(columns))

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pandas.DataFrame":
        """The whole run as a pandas frame; by default every column but the masks."""
        frame: pandas.DataFrame = self.to_arrow(columns).to_pandas()
        return frame

    def to_polars(self, columns: Sequence[str] | None = None) -> "polars.DataFrame":
        """The whole run as a Polars frame; by default every column but the masks. Needs the package polars."""
        try:
            import polars
        except ImportError:
            raise JobError("Polars is not installed here: pip install polars.") from None
        frame = polars.from_arrow(self.to_arrow(columns))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_ray(self, columns: Sequence[str] | None = None) -> "ray.data.Dataset":
        """The run as a Ray Data dataset, read lazily on the cluster; masks are PNG bytes for `segcore.images.masks`."""
        import ray.data

        paths = [file.place.path for file in self.files]
        rows = ray.data.read_parquet(paths, filesystem=arrow_filesystem(self.output.place), partitioning=None)
        return rows.select_columns(_known(columns))

    def to_torch(self) -> "MaskDataset":
        """A map-style torch dataset of (identity, label map (H, W) uint8) over the images that have a mask."""
        return MaskDataset(self)

    def _labels(self, image_id: str, data: bytes) -> np.ndarray:
        try:
            return decode_mask(data)
        except Exception as error:  # Pillow raises whatever a damaged PNG makes it trip over
            holding = [self.files[k].place.uri for k in self._files_with(image_id)]
            raise JobError(
                f"The mask of {image_id!r} is damaged ({error or type(error).__name__}); of {' or '.join(holding)}: "
                f"{REMEDY}."
            ) from None

    @contextlib.contextmanager
    def _naming_the_damaged(self) -> Iterator[None]:
        """Arrow's datasets do not say which file it was: on a failure, look at one after another."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError):
            for file in self.files:
                for group in _groups(file):
                    _read(file, FACTS, group)
            raise

    def _pieces(self) -> Iterator[tuple[MaskFile, int | None]]:
        return itertools.chain.from_iterable(((file, group) for group in _groups(file)) for file in self.files)

    def _footer(self, number: int) -> _Footer:
        if number not in self._footers:
            self._footers[number] = _read_footer(self.files[number])
        return self._footers[number]

    def _files_with(self, image_id: str) -> Iterator[int]:
        """Files that may hold an image, by their statistics, the likeliest first."""
        # Sources are listed in the order of names, so files are mostly sorted and bisecting finds one in a few steps;
        # where they are not, it finds nothing, and every footer is asked
        tried = set()
        low, high = 0, len(self.files)
        while low < high:
            middle = (low + high) // 2
            footer = self._footer(middle)
            first = min((value for value in footer.lowest if value is not None), default=None)
            if first is None or footer.groups_with(image_id):
                tried.add(middle)
                yield middle
                break
            low, high = (low, middle) if image_id < first else (middle + 1, high)
        with ThreadPoolExecutor(_READERS) as pool:
            for number, footer in enumerate(pool.map(self._footer, range(len(self.files)))):
                if number not in tried and footer.groups_with(image_id):
                    yield number


class MaskDataset:
    """Identity and label map (H, W) uint8 of every image with a mask, by number, in the order of the files.

    A map-style dataset to torch, which asks for nothing but its two methods; it travels to the workers of a DataLoader.
    Reading in order touches each piece once; a shuffled reader reads a file of some 64 masks, or a row group of a large
    one, for each item: shuffle within windows where storage is far.
    """

    def __init__(self, results: Results) -> None:
        self.results = Results(results.output, results.run_id, results.record, results.files)
        self.pieces = results.pieces
        self.image_ids: list[str] = []
        pieces, rows = [], []
        with ThreadPoolExecutor(_READERS) as pool:
            facts = pool.map(lambda piece: Results.read_piece(piece, ["image_id", "error_kind"]), self.pieces)
            for number, table in enumerate(facts):
                here = np.flatnonzero(table["error_kind"].is_null().to_numpy())
                self.image_ids += table["image_id"].take(pa.array(here)).to_pylist()
                pieces.append(np.full(len(here), number))
                rows.append(here)
        self._piece = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
        self._row = np.concatenate(rows) if rows else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> "tuple[str, torch.Tensor]":
        import torch

        table = _masks_of(self.pieces[self._piece[index]])
        row = table.slice(int(self._row[index]), 1).to_pylist()[0] | {"image_id": self.image_ids[index]}
        labels = self.results.labels_of(row)
        assert labels is not None, "only images with a mask are numbered"
        return self.image_ids[index], torch.from_numpy(labels)


@lru_cache(maxsize=2)
def _masks_of(piece: Piece) -> pa.Table:
    return Results.read_piece(piece, ["mask", "mask_file"])


def _known(columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return FACTS
    for name in columns:
        if name not in ROWS.names:
            raise JobError(f"There is no column {name!r}; there are {', '.join(ROWS.names)}.")
    return list(columns)


def _groups(file: MaskFile) -> list[int | None]:
    """What of a file is read at a time: all of it, or each row group of a large one."""
    if file.size <= _WHOLE_FILE_BYTES:
        return [None]
    with whole_parquet(file.place, REMEDY), _open(file) as opened:
        return list(range(pq.ParquetFile(opened).metadata.num_row_groups))


def _read(file: MaskFile, columns: list[str], group: int | None) -> pa.Table:
    nearly_all = group is None and bool(set(columns) & set(MASK_COLUMNS))
    # In one request where it is nearly all of the file
    with whole_parquet(file.place, REMEDY), _open(file, whole=nearly_all) as opened:
        parquet = pq.ParquetFile(opened)
        known = [name for name in columns if name in parquet.schema_arrow.names]
        table = parquet.read(known) if group is None else parquet.read_row_group(group, known)
        table.validate(full=True)
        return conform(table, columns)


def _open(file: MaskFile, *, whole: bool = False) -> Any:
    place = file.place
    try:
        if whole:
            return pa.BufferReader(storage.read_bytes(place, file.version))
        return storage.open_for_reading(place, sparse=True, version=file.version)
    except FileNotFoundError:
        raise JobError(
            f"{place.uri} is gone since the run was opened: it was compacted and expired, refreshed, or removed. Open "
            "it again."
        ) from None


def _read_footer(file: MaskFile) -> _Footer:
    with whole_parquet(file.place, REMEDY):
        return _footer_of(file)


def _footer_of(file: MaskFile) -> _Footer:
    with _open(file) as opened:
        metadata = pq.ParquetFile(opened).metadata
    rows, lowest, highest = [], [], []
    column = metadata.schema.names.index("image_id")  # A leaf before any nested column, so its own number
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        statistics = group.column(column).statistics
        known = statistics is not None and statistics.has_min_max
        rows.append(group.num_rows)
        lowest.append(statistics.min if known else None)
        highest.append(statistics.max if known else None)
    return _Footer(tuple(rows), tuple(lowest), tuple(highest))


def _look(file: MaskFile, group: int, image_id: str, columns: list[str]) -> dict[str, Any] | None:
    with whole_parquet(file.place, REMEDY), _open(file) as opened:
        parquet = pq.ParquetFile(opened)
        ids = parquet.read_row_group(group, ["image_id"])["image_id"].to_pylist()
        if image_id not in ids:
            return None
        known = [name for name in columns if name in parquet.schema_arrow.names]
        row = parquet.read_row_group(group, known).slice(ids.index(image_id), 1)
        found: dict[str, Any] = conform(row, columns).to_pylist()[0]
        return found
