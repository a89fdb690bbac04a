"""Questions to one run in SQL: DuckDB with views over exactly its files, and the usual questions ready made.

The views read nothing until they are asked, and then only the columns and row groups that the question needs.
"""

import difflib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import annotated_types
import pyarrow as pa
from pydantic import BaseModel

from tasks import storage
from tasks.errors import JobError
from tasks.results.reading import FACTS, REMEDY, Results, open_results

if TYPE_CHECKING:
    import duckdb  # A tenth of a second, which a run need not wait for: it makes exports and asks nothing

VIEWS = {
    "images": "one row per image: sizes, confidence, entropy, changed_by_crf, classes, error_kind, error",
    "objects": "one row per image and class in its mask: class, label, pixels, share (0..1), confidence, box",
    "errors": "one row per image without a mask: error_kind, error",
    "masks": "image_id, mask and mask_before_crf, PNG whose values are labels",
    "runs": "every run of the output; the other views read the one where chosen is true",
    "metrics": "what the sessions of the run measured: session, stage, name, value",
}
"""What can be asked, and what it holds."""

_SORTS = {
    "share": "share",
    "confidence": "confidence",
    "entropy": "entropy",
    "changed": "changed_by_crf",
    "annotate": "annotate",
    "id": "image_id",
}

ANNOTATE = (
    "(percent_rank() OVER (ORDER BY entropy) + percent_rank() OVER (ORDER BY confidence DESC)"
    " + percent_rank() OVER (ORDER BY changed_by_crf)) / 3"
)
"""How much an annotation of the image would teach, 0..1: the mean of its ranks by entropy, doubt and disagreement
between network and CRF. Ranks, since the three have different scales."""


class FindJob(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Which images to find."""

    classes: tuple[str, ...] = ()
    """Names of classes that must all be in the mask."""

    min_share: Annotated[float, annotated_types.Interval(ge=0, le=1)] | None = None
    """Least share of the mask that each of these classes has, 0..1."""

    max_share: Annotated[float, annotated_types.Interval(ge=0, le=1)] | None = None
    min_confidence: Annotated[float, annotated_types.Interval(ge=0, le=1)] | None = None
    """Least confidence of each of these classes; without classes, of the image."""

    max_confidence: Annotated[float, annotated_types.Interval(ge=0, le=1)] | None = None
    sort: Literal["share", "confidence", "entropy", "changed", "annotate", "id"] = "id"
    """What decides the order; the greatest first, identities from a to z."""

    ascending: bool = False
    """The smallest first."""

    limit: Annotated[int, annotated_types.Ge(1)] | None = None


@dataclass
class Answer:
    """Rows of a question, fetched as they are read, once."""

    connection: "duckdb.DuckDBPyConnection"
    """Whose last result they are."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [column[0] for column in self.connection.description or ()]

    def rows(self, batch_rows: int = 1000) -> Iterator[tuple[Any, ...]]:
        """Every row."""
        with _told_plainly():
            while rows := self.connection.fetchmany(batch_rows):
                yield from rows

    def arrow(self) -> pa.Table:
        """All rows as one table."""
        with _told_plainly(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Of one more copy of the rows
            return self.connection.to_arrow_table()


def connect(results: Results) -> "duckdb.DuckDBPyConnection":
    """A DuckDB connection in memory, with the views over one run."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    if results.output.place.protocol == "file":
        # An explicit list, since a pattern could take in the files of another run
        files = ", ".join(_text(_escape_pattern(file.place.path)) for file in results.files)
        source = f"read_parquet([{files}], hive_partitioning = false)"
    else:
        # Arrow fetches ranges of many objects at a time, where DuckDB would need an extension that it downloads
        connection.register("_stored_rows", results.dataset)
        source = "_stored_rows"
    # A run of an earlier version does not have the newest columns
    have = {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    facts = ", ".join(name if name in have else f"NULL::VARCHAR AS {name}" for name in FACTS)
    connection.execute(
        f"CREATE VIEW images AS SELECT {facts}, changed_by_crf AS disagreement, "
        f"CASE WHEN error_kind IS NULL THEN mask_width::BIGINT * mask_height END AS area FROM {source}"
    )
    connection.execute(
        "CREATE VIEW objects AS SELECT image_id, uri, object.name AS class, object.index AS label, "
        "object.pixels AS pixels, object.pixels / area AS share, object.confidence AS confidence, object.box AS box "
        "FROM (SELECT image_id, uri, mask_width::BIGINT * mask_height AS area, unnest(classes) AS object "
        f"FROM {source})"
    )
    connection.execute(
        "CREATE VIEW errors AS SELECT image_id, uri, source_size, error_kind, error "
        f"FROM {source} WHERE error_kind IS NOT NULL"
    )
    connection.execute(
        f"CREATE VIEW masks AS SELECT image_id, mask, mask_before_crf FROM {source} WHERE mask IS NOT NULL"
    )
    connection.register("runs", _runs_table(results))
    connection.register("metrics", _metrics_table(results))
    return connection


def ask(output: str, sql: str, run: str | None = None) -> Answer:
    """Answer a question to one run of an output. Raises JobError with DuckDB's own words where it has none."""
    place = storage.locate(output)
    with storage.explained(place), _told_plainly():
        connection = connect(open_results(output, run))
        return Answer(connection.execute(sql))


def find(output: str, job: FindJob, run: str | None = None) -> Answer:
    """The images that match, in the order asked for. Raises JobError for a class that the run does not have."""
    place = storage.locate(output)
    with storage.explained(place), _told_plainly():
        results = open_results(output, run)
        connection = connect(results)
        if job.classes:
            _require_classes(connection, results, job.classes)
        sql, parameters = _find_sql(job)
        return Answer(connection.execute(sql, parameters))


def views_told() -> str:
    """The views, a line each."""
    return "\n".join(f"  {name:<8} {what}" for name, what in VIEWS.items())


def _find_sql(job: FindJob) -> tuple[str, dict[str, Any]]:
    limits = {
        "share >= $min_share": ("min_share", job.min_share),
        "share <= $max_share": ("max_share", job.max_share),
        "confidence >= $min_confidence": ("min_confidence", job.min_confidence),
        "confidence <= $max_confidence": ("max_confidence", job.max_confidence),
    }
    wanted = {text: pair for text, pair in limits.items() if pair[1] is not None}
    parameters: dict[str, Any] = dict(wanted.values())
    # Ranks need every image at once, so they are taken over narrow rows, and only where they decide the order
    rank, ranked = (
        (f", {ANNOTATE} AS annotate", ", round(i.annotate, 4) AS annotate") if job.sort == "annotate" else ("", "")
    )
    images = f"SELECT image_id, confidence, entropy, changed_by_crf{rank} FROM images WHERE error_kind IS NULL"
    if job.classes:
        if len(set(job.classes)) == 1:  # An image has a class once, so there is nothing to gather
            parameters["classes"] = job.classes[0]
            conditions = " AND ".join(["class = $classes", *wanted])
            first = f"SELECT image_id, share, confidence AS class_confidence, box FROM objects WHERE {conditions}"
        else:
            parameters["classes"] = list(job.classes)
            conditions = " AND ".join(["list_contains($classes, class)", *wanted])
            found = "{'class': class, 'share': round(share, 4), 'confidence': round(confidence::DOUBLE, 4), 'box': box}"
            first = (
                "SELECT image_id, min(share) AS share, min(confidence) AS class_confidence, "
                f"list({found} ORDER BY share DESC) AS found "
                f"FROM objects WHERE {conditions} GROUP BY image_id HAVING count(*) = {len(set(job.classes))}"
            )
        if job.sort in ("share", "confidence", "id"):  # Nothing of the image itself is needed: half the reading
            columns = "image_id, round(share, 4) AS share, round(class_confidence::DOUBLE, 4) AS confidence"
            box = ", box" if len(set(job.classes)) == 1 else ", found"
            order = {"confidence": "class_confidence"}.get(job.sort, _SORTS[job.sort])
            return _ordered(f"SELECT {columns}{box} FROM ({first})", order, job), parameters
        columns = (
            "f.image_id, round(f.share, 4) AS share, round(f.class_confidence::DOUBLE, 4) AS confidence, "
            f"round(i.entropy::DOUBLE, 4) AS entropy, round(i.changed_by_crf::DOUBLE, 4) AS changed_by_crf{ranked}"
        )
        sql = f"SELECT {columns} FROM ({first}) AS f JOIN ({images}) AS i USING (image_id)"
        return _ordered(sql, f"i.{_SORTS[job.sort]}", job), parameters
    if job.sort == "share" or job.min_share is not None or job.max_share is not None:
        raise JobError("A share is that of a class: name one with --class.")
    conditions = " AND ".join(["true", *wanted])
    columns = (
        "i.image_id, round(i.confidence::DOUBLE, 4) AS confidence, round(i.entropy::DOUBLE, 4) AS entropy, "
        f"round(i.changed_by_crf::DOUBLE, 4) AS changed_by_crf{ranked}, "
        "array_to_string(list_transform(n.classes[:4], lambda c: "
        "c.name || ' ' || round(100 * c.pixels / n.area)::INT || '%'), ', ') AS classes"
    )
    chosen = _ordered(f"SELECT * FROM ({images}) WHERE {conditions}", _SORTS[job.sort], job)
    sql = f"SELECT {columns} FROM ({chosen}) AS i JOIN images AS n USING (image_id)"
    return _ordered(sql, f"i.{_SORTS[job.sort]}", job), parameters


def _ordered(sql: str, order: str, job: FindJob) -> str:
    ascending = job.ascending != (job.sort == "id")
    limit = f" LIMIT {job.limit}" if job.limit else ""
    return f"{sql} ORDER BY {order} {'ASC' if ascending else 'DESC'} NULLS LAST, image_id{limit}"


def _require_classes(connection: "duckdb.DuckDBPyConnection", results: Results, names: Sequence[str]) -> None:
    counted = results.record.get("classes") if results.is_finished else None
    if counted:  # Saves a pass over the rows
        counts = [(name, count["images"]) for name, count in counted.items()]
        counts.sort(key=lambda pair: (-pair[1], pair[0]))
    else:
        counts = connection.execute("SELECT class, count(*) FROM objects GROUP BY ALL ORDER BY 2 DESC, 1").fetchall()
    for name in names:
        if name not in dict(counts):
            there = ", ".join(f"{known} {count}" for known, count in counts[:40])
            near = difflib.get_close_matches(name.lower(), dict(counts), n=1)
            meant = f"did you mean {near[0]}? Images by class" if near else "images by class"
            raise JobError(f"No mask of this run holds {name!r}; {meant}: {there or 'none'}.")


def _runs_table(results: Results) -> pa.Table:
    rows = []
    for record in results.output.records():
        sessions = [s for s in record.get("sessions", []) if isinstance(s, dict)]
        job = record.get("job") if isinstance(record.get("job"), dict) else {}
        errors = record.get("errors") if isinstance(record.get("errors"), dict) else {}
        rows.append(
            {
                "run_id": record["run_id"],
                "chosen": record["run_id"] == results.run_id,
                "status": record.get("status"),
                "model": record.get("model"),
                "source": (job or {}).get("source"),
                "images": record.get("images"),
                "masks": record.get("masks"),
                "errors": sum((errors or {}).values()),
                "started": record.get("started"),
                "finished": record.get("finished"),
                "seconds": sum(float(s.get("seconds") or 0) for s in sessions),
                "record": json.dumps(record, ensure_ascii=False),
            }
        )
    texts = ("run_id", "status", "model", "source", "started", "finished", "record")
    numbers = ("images", "masks", "errors")
    types = {name: pa.string() for name in texts} | {name: pa.int64() for name in numbers}
    types |= {"chosen": pa.bool_(), "seconds": pa.float64()}
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, types[name]) for name in rows[0]]))


def _metrics_table(results: Results) -> pa.Table:
    rows = []
    for number, session in enumerate(results.record.get("sessions", []), start=1):
        for name, value in session.items():
            if isinstance(value, int | float):
                rows.append((number, "session", name, float(value)))
        for stage, values in (session.get("stages") or {}).items():
            rows += [(number, stage, name, float(value)) for name, value in values.items()]
    types = {"session": pa.int32(), "stage": pa.string(), "name": pa.string(), "value": pa.float64()}
    return pa.Table.from_pylist([dict(zip(types, row, strict=True)) for row in rows], schema=pa.schema(types))


class _told_plainly:  # noqa: N801 - reads as a word of the with statement
    """Within, what DuckDB raises becomes a JobError of its own first words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        import duckdb

        if isinstance(error, duckdb.Error):
            said = " ".join(line.strip() for line in str(error).partition("\n\n")[0].splitlines() if line.strip())
            if "/masks/run=" in said:  # It names the file that it cannot read, and does not know what to do
                raise JobError(f"A mask file is damaged: {said}: {REMEDY}.") from None
            names = ", ".join(VIEWS)
            raise JobError(f"DuckDB cannot answer: {said} (The views are {names}.)") from None


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _escape_pattern(path: str) -> str:
    """A path as a pattern that means just it."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)
