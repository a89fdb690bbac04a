"""A finished run as rows of an Iceberg table: one commit, however often and wherever it was stopped before.

The table holds a row for each run and image. What is published again is compared row by row: new rows are appended,
rows that have changed take the place of the old ones, and what is gone from the run is removed, in one commit of the
catalogue. A stop before that commit leaves files that no snapshot names, and no row.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from tasks import progress, storage
from tasks.archive.schema import ROWS
from tasks.errors import JobError, require_packages
from tasks.results.reading import Results, open_results

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table

CATALOGUE = "segment_archive"
"""Name of a catalogue in SQLite, by which its file tells it from others."""

_CATALOGUE = "catalog.db"
_DIGEST = "row_digest"
_PROPERTY = "segment-archive.published"
"""Of a snapshot: the run, and what its files were."""

_FILE_BYTES = 256 << 20
"""In memory, of what becomes one data file."""

_MOST_IN_A_FILTER = 1000


class PublishJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """What to publish, and where."""

    output: str
    """URI of the results."""

    catalog: str
    """Folder with a SQLite catalogue, which is made where there is none, or a name in PyIceberg's configuration."""

    to: Literal["iceberg"] = "iceberg"
    """iceberg: a table of Apache Iceberg."""

    table: str = "segment_archive.masks"
    """Namespace and name of the table; it is made where there is none, and holds any number of runs."""

    run: str | None = None
    """Run to publish; by default the one that finished last."""


@dataclass
class PublishReport:
    """What was done to the table."""

    run_id: str
    table: str
    location: str
    """Where the table's files are."""

    added: int = 0
    """Rows of images that the table did not have."""

    replaced: int = 0
    """Rows that have changed since they were published."""

    removed: int = 0
    """Rows of images that the run does not have any more."""

    unchanged: int = 0
    rows: int = 0
    """Of this run in the table now."""

    snapshot_id: int | None = None
    """The table's current snapshot."""

    seconds: float = 0.0

    def told(self) -> str:
        """One sentence."""
        if not (self.added or self.replaced or self.removed):
            return f"Nothing to do: {self.table} has all {self.rows:,} rows of run {self.run_id}."
        done = f"{self.added:,} rows added, {self.replaced:,} replaced, {self.removed:,} removed"
        return f"{done}: {self.table} has {self.rows:,} rows of run {self.run_id}."


@dataclass
class _Difference:
    """What of a run is not in the table as it is."""

    new: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    unchanged: int = 0


def publish(job: PublishJob) -> PublishReport:
    """Bring the table up to date with a finished run, in one commit.

    Raises JobError where the run is not finished, the catalogue cannot be reached, or somebody else has committed to
    the table meanwhile.
    """
    require_packages("Publishing to Iceberg", "iceberg", "pyiceberg", "sqlalchemy")
    from pyiceberg.exceptions import CommitFailedException

    start = time.monotonic()
    place = storage.locate(job.output)
    with storage.explained(place):
        results = open_results(job.output, job.run)
        if not results.is_finished:
            raise JobError(f"Run {results.run_id} is not finished: publish it when every image has its row.")
    with _explained(job):
        table = _table(_catalogue(job.catalog), job.table)
    report = PublishReport(results.run_id, job.table, table.location())
    try:
        with _explained(job):
            _bring_up_to_date(table, results, report)
    except CommitFailedException:
        raise JobError(f"Somebody else has committed to {job.table} meanwhile: publish again.") from None
    table.refresh()
    snapshot = table.current_snapshot()
    report.snapshot_id = None if snapshot is None else snapshot.snapshot_id
    report.seconds = time.monotonic() - start
    return report


def _bring_up_to_date(table: "Table", results: Results, report: PublishReport) -> None:
    from pyiceberg.expressions import EqualTo

    of_run = EqualTo("run_id", results.run_id)
    key = _key(results)
    if _is_published(table, key):
        report.rows = report.unchanged = results.num_rows
        return
    known = table.scan(row_filter=of_run, selected_fields=("image_id", _DIGEST)).to_arrow()
    held = dict(zip(known["image_id"].to_pylist(), known[_DIGEST].to_pylist(), strict=True))
    difference = _compared(results, held)
    report.added, report.replaced = len(difference.new), len(difference.changed)
    report.removed, report.unchanged = len(difference.gone), difference.unchanged
    report.rows = report.added + report.replaced + report.unchanged
    if not (difference.new or difference.changed or difference.gone):
        return
    properties = {_PROPERTY: key}
    with table.transaction() as transaction:
        for ids in _chunks(sorted(difference.changed | difference.gone)):
            transaction.delete(_of_images(of_run, ids), snapshot_properties=properties)
        wanted = difference.new | difference.changed
        if wanted:
            schema = _arrow_schema()
            rows = _rows(results, None if len(wanted) == report.rows else wanted, len(wanted))
            transaction.append(pa.RecordBatchReader.from_batches(schema, rows), snapshot_properties=properties)


def _is_published(table: "Table", key: str) -> bool:
    """Whether the run was published as it stands, and nobody but us has committed since."""
    snapshot = table.current_snapshot()
    while snapshot is not None and snapshot.summary is not None:
        published = snapshot.summary.additional_properties.get(_PROPERTY)
        if published == key:
            return True
        if published is None or published.partition(" ")[0] == key.partition(" ")[0]:
            return False
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else table.snapshot_by_id(parent)
    return False


def _compared(results: Results, held: dict[str, str]) -> _Difference:
    """held: digests of the rows in the table, by identity."""
    difference = _Difference()
    with storage.explained(results.output.place):
        if not held:
            for table in results.tables(["image_id"]):
                difference.new.update(table["image_id"].to_pylist())
            return difference
    left = dict(held)
    with storage.explained(results.output.place), progress.measured("comparing", results.num_rows) as tell:
        done = 0
        for table in results.tables(ROWS.names):
            for image_id, digest in zip(table["image_id"].to_pylist(), _digests(table), strict=True):
                before = left.pop(image_id, None)
                if before is None:
                    difference.new.add(image_id)
                elif before != digest:
                    difference.changed.add(image_id)
                else:
                    difference.unchanged += 1
            tell(done := done + table.num_rows)
    difference.gone = set(left)
    return difference


def _rows(results: Results, wanted: set[str] | None, total: int) -> Iterator[pa.RecordBatch]:
    """The rows that are written, with their digests; None: all."""
    schema = _arrow_schema()
    ids = None if wanted is None else pa.array(sorted(wanted), pa.string())
    with storage.explained(results.output.place), progress.measured("publishing", total) as tell:
        done = 0
        for table in results.tables(ROWS.names):
            if ids is not None:
                table = table.filter(pc.is_in(table["image_id"], ids))
            if table.num_rows:
                table = table.append_column(_DIGEST, pa.array(_digests(table), pa.string()))
                yield from table.cast(schema).combine_chunks().to_batches()
            tell(done := done + table.num_rows)


def _digests(table: pa.Table) -> list[str]:
    """Of every column of each row."""
    masks = [table[name].to_pylist() for name in ("mask", "mask_before_crf")]
    facts = table.drop_columns(["mask", "mask_before_crf"]).to_pylist()
    digests = []
    for row, *pictures in zip(facts, *masks, strict=True):
        digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode("utf-8", "surrogatepass"))
        for picture in pictures:
            digest.update(b"\0" if picture is None else b"\1" + picture)
        digests.append(digest.hexdigest()[:32])
    return digests


def _key(results: Results) -> str:
    """Names the run as it stands."""
    files = [(file.place.name, file.size, file.version) for file in results.files]
    return f"{results.run_id} {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}"


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _MOST_IN_A_FILTER):
        yield ids[start : start + _MOST_IN_A_FILTER]


def _of_images(of_run: "BooleanExpression", ids: list[str]) -> "BooleanExpression":
    from pyiceberg.expressions import And, In

    return And(of_run, In("image_id", ids))


# The table


def _arrow_schema() -> pa.Schema:
    """The columns of a run and the digest of the row, in types that Iceberg has."""
    fields = [_iceberg_field(ROWS.field(name)) for name in ROWS.names]
    about = {"doc": "of the other columns: says whether the row has changed"}
    return pa.schema([*fields, pa.field(_DIGEST, pa.string(), metadata=about)])


def _iceberg_field(field: pa.Field) -> pa.Field:
    described = (field.metadata or {}).get(b"description")
    return pa.field(field.name, _iceberg_type(field.type), field.nullable, described and {"doc": described})


def _iceberg_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([_iceberg_field(kind.field(k)) for k in range(kind.num_fields)])
    if pa.types.is_list(kind):
        return pa.list_(_iceberg_field(kind.value_field))
    if pa.types.is_integer(kind) and kind.bit_width < 32:  # Iceberg has no smaller ones, and none without a sign
        return pa.int32()
    return kind


def _catalogue(named: str) -> "Catalog":
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    if Config().get_catalog_config(named) is not None:
        return load_catalog(named)
    place = storage.locate(named)
    if place.protocol != "file":
        raise JobError(
            f"A catalogue in SQLite needs a local folder, which {named} is not: name a REST or Glue catalogue of "
            "PyIceberg's configuration (~/.pyiceberg.yaml), whose warehouse may be a bucket."
        )
    folder = Path(place.path).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / _CATALOGUE).is_file()):
        raise JobError(f"{folder} is no catalogue ({_CATALOGUE} is not in it) and not empty: give an empty folder.")
    if any(c in str(folder) for c in "?#%"):
        raise JobError(f"PyIceberg cannot write below {folder}: give a folder without ?, # and % in its path.")
    folder.mkdir(parents=True, exist_ok=True)
    return load_catalog(CATALOGUE, type="sql", uri=f"sqlite:///{folder / _CATALOGUE}", warehouse=f"file://{folder}")


def _table(catalogue: "Catalog", name: str) -> "Table":
    """The table, made where there is none, with every column of today."""
    namespace, _, last = name.rpartition(".")
    if not namespace or not last:
        raise JobError(f"--table is NAMESPACE.NAME, such as segment_archive.masks, not {name!r}.")
    catalogue.create_namespace_if_not_exists(namespace)
    schema = _arrow_schema()
    properties = {
        "write.target-file-size-bytes": str(_FILE_BYTES),
        "write.parquet.compression-codec": "zstd",
        # What is new was found by comparing with one snapshot: on another, the same rows could be there already
        "commit.retry.num-retries": "0",
    }
    table = catalogue.create_table_if_not_exists(name, schema=schema, properties=properties)
    there = {column.name for column in table.schema().fields}
    if not {"image_id", "run_id", _DIGEST} <= there:
        raise JobError(f"{name} is a table of something else: its columns are {', '.join(sorted(there))[:200]}.")
    if not there.issuperset(schema.names):
        with table.update_schema() as update:
            update.union_by_name(schema)
    return table


class _explained:  # noqa: N801 - reads as a word of the with statement
    """Within, what a catalogue raises becomes a JobError that names it; a lost race is left to the caller."""

    def __init__(self, job: PublishJob) -> None:
        self.job = job

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, JobError):
            return
        if type(error).__name__ == "CommitFailedException":
            return
        said = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise JobError(f"The catalogue {self.job.catalog} or its warehouse cannot be used: {said}.") from error
