"""Console commands about results: `segment-archive query`, `find`, `report`, `export`, `diff` and `compact`."""

import datetime
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from tasks.results.query import Answer

_SHOWN_ROWS = 60

Run = Annotated[str | None, typer.Option(help="Run to read; by default the one that finished last.")]
Format = Annotated[str | None, typer.Option("--format", help="table, csv, json or parquet.")]
To = Annotated[str | None, typer.Option("--to", help="File for the answer; its ending says the format.")]
Output = Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix that `segment-archive run` wrote.")]


def query(
    output: Output,
    sql: Annotated[str | None, typer.Argument(help="SQL over the views; without it, what can be asked.")] = None,
    run: Run = None,
    format_: Format = None,
    to: To = None,
) -> None:
    """Ask one run in SQL (DuckDB): views images, objects, errors, masks, runs, metrics."""
    from tasks.results import query as asking

    if sql is None:
        answer = _or_fail(
            lambda: asking.ask(output, "SELECT run_id, status, model, images FROM runs WHERE chosen", run)
        )
        [(run_id, status, model, images)] = answer.rows()
        print(f"Run {run_id} ({status}): {images} images by {model}. It can be asked:")
        print(asking.views_told())
        print(
            "For example: segment-archive query OUTPUT "
            '"SELECT class, count(*) FROM objects GROUP BY ALL ORDER BY 2 DESC"'
        )
        print('Columns of a view: segment-archive query OUTPUT "DESCRIBE objects"')
        return
    _show(lambda: asking.ask(output, sql, run), format_, to)


def find(
    output: Output,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Class that the mask holds; several times: all of them.")
    ] = None,
    min_share: Annotated[
        float | None, typer.Option(help="Least share of the image that the class has, 0 to 1.")
    ] = None,
    max_share: Annotated[float | None, typer.Option(help="Greatest share.")] = None,
    min_confidence: Annotated[float | None, typer.Option(help="Least confidence, 0 to 1.")] = None,
    max_confidence: Annotated[float | None, typer.Option(help="Greatest confidence.")] = None,
    sort: Annotated[
        str, typer.Option(help="share, confidence, entropy, changed, annotate (most worth it first) or id.")
    ] = "id",
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest first.")] = False,
    limit: Annotated[int | None, typer.Option(help="No more images than this.")] = None,
    run: Run = None,
    format_: Format = None,
    to: To = None,
) -> None:
    """Find images by class, share and confidence, without SQL. --sort annotate says what to annotate next."""
    from pydantic import ValidationError

    from tasks.results.query import FindJob
    from tasks.results.query import find as find_images

    try:
        job = FindJob(
            classes=tuple(classes or ()),
            min_share=min_share,
            max_share=max_share,
            min_confidence=min_confidence,
            max_confidence=max_confidence,
            sort=sort,  # type: ignore[arg-type]  # pydantic checks it
            ascending=ascending,
            limit=limit,
        )
    except ValidationError as error:
        _refuse(error)
    _show(lambda: find_images(output, job, run), format_, to)


def report(
    output: Output,
    images: Annotated[int, typer.Option(help="Images to show; 10,000 at most.")] = 1000,
    where: Annotated[str | None, typer.Option(help='Which, in SQL on the view images: "confidence < 0.6".')] = None,
    order: Annotated[str | None, typer.Option(help='Which first where there are more: "entropy DESC".')] = None,
    to: Annotated[str | None, typer.Option("--to", help="Folder; by default report/run=<run id> of OUTPUT.")] = None,
    run: Run = None,
) -> None:
    """Make a gallery to look at: static files that open from a disk or a bucket."""
    from pydantic import ValidationError

    from tasks.results.report import MOST_IMAGES, ReportJob, build_report

    try:
        job = ReportJob(output=output, run=run, to=to, images=images, where=where, order=order)
    except ValidationError as error:
        _refuse(error)
    with _Counter("images") as counter:
        made = _or_fail(lambda: build_report(job, counter))
    print(f"{made.shown} of {made.matching} images in {made.seconds:.1f} s.")
    if made.matching > made.shown and images > MOST_IMAGES:
        print(f"A gallery holds {MOST_IMAGES} at most; choose with --where and --order.")
    if made.photographs_missing:
        print(f"{made.photographs_missing} photographs could not be read any more; their masks are shown alone.")
    if made.sheet:
        print(f"Contact sheet: {made.sheet}")
    print(f"Gallery: {made.index}")
    if made.address != made.index:
        print(f"In a browser: {made.address}")


def export(
    output: Output,
    destination: Annotated[str, typer.Argument(help="Folder or prefix, empty or with an unfinished export.")],
    to: Annotated[str, typer.Option("--to", help="coco (RLE), png (a tree of masks) or voc (its folders).")],
    photographs: Annotated[bool, typer.Option("--photographs", help="Copy the photographs too (coco, voc).")] = False,
    run: Run = None,
) -> None:
    """Take a run into other tools. The same command goes on where it was ended."""
    from pydantic import ValidationError

    from tasks.results.export import ExportJob, export_run

    try:
        job = ExportJob(output=output, to=to, destination=destination, run=run, photographs=photographs)  # type: ignore[arg-type]
    except ValidationError as error:
        _refuse(error)
    with _Counter("images") as counter:
        done = _or_fail(lambda: export_run(job, counter))
    if done.done_before == done.masks:
        print("Nothing to do: the export is complete.")
    regions = f", {done.annotations} regions" if done.format == "coco" else ""
    print(f"{done.masks} masks{regions} of run {done.run_id} as {done.format}; {done.without_mask} images have none.")
    if photographs:
        print(f"{done.photographs} photographs copied, {done.photographs_missing} could not be read any more.")
    print(f"In {done.destination}")


def diff(
    output: Output,
    run_a: Annotated[str, typer.Argument(help="First run.")],
    run_b: Annotated[str, typer.Argument(help="Second run.")],
    images: Annotated[int, typer.Option(help="Changed images in the gallery; 10,000 at most.")] = 200,
) -> None:
    """Compare two runs: agreement per class, the images that changed most, a gallery of differences."""
    from tasks.results.report import build_diff_report

    with _Counter("images") as counter:
        told, gallery = _or_fail(lambda: build_diff_report(output, run_a, run_b, images=images, advance=counter))
    print(
        f"{told.images} images in both runs, {told.equal} equal in every pixel; {told.agreement:.2%} of the pixels "
        f"have the same label. {told.only_a} only in {told.run_a}, {told.only_b} only in {told.run_b}."
    )
    rows = [
        (name, None if c.agreement is None else round(c.agreement, 4), c.pixels_a, c.pixels_b)
        for name, c in told.classes.items()
    ]
    _print_table(["class", "agreement (IoU)", f"pixels {told.run_a}", f"pixels {told.run_b}"], rows)
    if told.changed_most:
        print("Changed most:")
        for image_id, share in told.changed_most[:8]:
            print(f"  {share:>7.2%} {_plain(image_id)}")
    print(f"Every image: {told.folder}/images.parquet")
    if gallery is not None:
        print(f"Gallery: {gallery.index}")


def compact(
    output: Output,
    run: Annotated[str | None, typer.Option(help="Run to compact; by default the one that finished last.")] = None,
    expire: Annotated[
        bool, typer.Option("--expire", help="Remove small files that large ones have stood for during the grace.")
    ] = False,
    grace_minutes: Annotated[
        float, typer.Option(help="How long small files stay for those who read them; 0 where nobody does.")
    ] = 60,
) -> None:
    """Put few large files in the place of many small ones; every reader honours them, and no mask is touched."""
    from flows import execution, jobs
    from tasks.results.compaction import CompactJob

    done = execution.run(
        jobs.compact_run, CompactJob(output=output, run=run, expire=expire, grace_minutes=grace_minutes)
    )
    print(done.told())
    print(f"In {done.folder}")


def mount(app: typer.Typer) -> None:
    """Add the commands to the console application."""
    for command in (query, find, report, export, diff, compact):
        app.command(command.__name__)(command)


def _show(ask: Any, format_: str | None, to: str | None) -> None:
    """Print an answer, or write it to a file."""
    formats = ("table", "csv", "json", "parquet")
    ending = Path(to).suffix.lstrip(".").lower() if to else None
    format_ = format_ or (ending if ending in formats else "csv" if to else "table")
    if format_ not in formats:
        _fail(f"There is no format {format_!r}; there are {', '.join(formats)}.")
    if format_ == "parquet" and not to:
        _fail("Parquet is not for a terminal: name a file with --to answer.parquet.")
    answer: Answer = _or_fail(ask)
    if format_ == "parquet":
        _or_fail(lambda: _write_parquet(answer, str(to)))
    elif to:
        try:
            with Path(to).open("w", encoding="utf-8", newline="") as file:
                count = _or_fail(lambda: _write_text(answer, format_, file))
        except OSError as error:
            _fail(f"Cannot write {to}: {error.strerror}.")
        print(f"{count} rows in {to}", file=sys.stderr)
    elif format_ == "table":
        rows = _or_fail(lambda: list(zip(range(_SHOWN_ROWS + 1), answer.rows(), strict=False)))
        _print_table(answer.columns, [row for _, row in rows[:_SHOWN_ROWS]])
        if len(rows) > _SHOWN_ROWS:
            print(f"The first {_SHOWN_ROWS} rows; --format csv or --to FILE has all.")
        elif not rows:
            print("No rows.")
    else:
        try:
            _or_fail(lambda: _write_text(answer, format_, sys.stdout))
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            sys.stderr.close()


def _write_parquet(answer: "Answer", to: str) -> None:
    import io

    import pyarrow.parquet as pq

    from tasks import storage

    table = answer.arrow()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    place = storage.locate(to)
    with storage.explained(place):
        storage.write_whole(place, buffer.getvalue())
    print(f"{table.num_rows} rows in {to}", file=sys.stderr)


def _write_text(answer: "Answer", format_: str, file: Any) -> int:
    import csv

    count = 0
    if format_ == "csv":
        writer = csv.writer(file, lineterminator="\n")  # Scripts read lines
        writer.writerow(answer.columns)
        for row in answer.rows():
            writer.writerow([_cell(value) if isinstance(value, (list, dict, bytes)) else value for value in row])
            count += 1
        return count
    file.write("[")
    for row in answer.rows():
        values = dict(zip(answer.columns, row, strict=True))
        file.write((",\n " if count else "\n ") + json.dumps(values, default=_json, ensure_ascii=False))
        count += 1
    file.write("\n]\n")
    return count


def _print_table(columns: list[str], rows: list[Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 200
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) for row in rows[:5]) and bool(rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    """A value for a person: bytes by their size, control characters of other people's names made visible."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, dict)):
        value = json.dumps(value, default=_json, ensure_ascii=False)
    return _plain(str(value))


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


class _Counter:
    """How far a command is, on standard error, where that is a terminal."""

    def __init__(self, what: str) -> None:
        self.what, self.shown = what, False

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            self.shown = True
            print(f"\r{done} of {total} {self.what}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "_Counter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _or_fail(call: Any) -> Any:
    from tasks.errors import JobError

    try:
        return call()
    except JobError as error:
        _fail(_plain(str(error)))


def _refuse(error: Any) -> NoReturn:
    first = error.errors()[0]
    _fail(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']} (given: {first['input']!r}).")


def _fail(sentence: str) -> NoReturn:
    print(f"segment-archive: {sentence}", file=sys.stderr)
    raise typer.Exit(1)
