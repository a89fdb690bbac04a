"""What the console prints: tables, JSON, counters, and what an answer looks like in a file."""

import datetime
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tasks.words import counted

SHOWN_ROWS = 60
"""Rows of a table on the screen; a file holds all."""

Format = Literal["table", "csv", "json", "parquet"]


def print_json(value: Any) -> None:
    """Print a result for a script: dataclasses and pydantic models by their fields."""
    print(json.dumps(plain_data(value), indent=1, ensure_ascii=False, default=_json))


def plain_data(value: Any) -> Any:
    """Dictionaries, lists and scalars in the place of dataclasses and pydantic models."""
    import dataclasses

    if hasattr(value, "model_dump"):
        return plain_data(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_data(item) for item in value]
    return value


_READABLE = 12
"""Columns of the terminal below which a column of a table is not made narrower."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table as wide as the terminal, or 200 columns where there is none.

    Where that is too narrow, each row is a block of lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    console = Console(soft_wrap=False, highlight=False)
    if not console.is_terminal:
        console.width = int(os.environ.get("COLUMNS", 200))
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, (name, *column))) for name, column in zip(columns, zip(*cells, strict=True), strict=False)]
    if sum(min(width, _READABLE) + 3 for width in widths) > console.width:
        _print_blocks(columns, cells, console.width)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) for row in rows[:5]) and bool(rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(value) for value in row))
    console.print(table)


def _print_blocks(columns: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> None:
    """Each row as lines of name and value, for a terminal that is too narrow for a table."""
    import textwrap

    longest = max(map(len, columns))
    for row in rows:
        for name, value in zip(columns, row, strict=True):
            lines = textwrap.wrap(value, max(8, width - longest - 2), break_on_hyphens=False) or [""]
            print(f"{name:<{longest}}  {lines[0]}".rstrip())
            for line in lines[1:]:
                print(f"{'':<{longest}}  {line}")
        print()


def cell(value: Any) -> str:
    """A value for a person: bytes by their size, control characters of other people's names made visible."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, dict)):
        value = json.dumps(value, default=_json, ensure_ascii=False)
    return printable(str(value))


def printable(text: str) -> str:
    """Text without control characters: they are shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def address(path: str) -> str:
    """What a browser opens: file:// for a path of this machine."""
    return path if "://" in path else Path(path).resolve().as_uri()


def open_page(page: str) -> None:
    """Open an address in the browser; where there is none, say so."""
    import webbrowser

    if not webbrowser.open(page):
        print(f"No browser could be started here: open {page} where there is one.", file=sys.stderr)


def show_answer(answer: Any, format_: Format | None, to: str | None) -> None:
    """Print the rows of a query, or write them to a file, whose ending names the format."""
    from tasks.errors import JobError

    ending = Path(to).suffix.lstrip(".").lower() if to else None
    chosen = format_ or (ending if ending in ("csv", "json", "parquet") else "csv" if to else "table")
    if chosen == "parquet" and to:
        _write_parquet(answer, to)
    elif to:
        try:
            with Path(to).open("w", encoding="utf-8", newline="") as file:
                count = _write_text(answer, chosen, file)
        except OSError as error:
            raise JobError(f"Cannot write {to}: {error.strerror}.") from None
        print(f"{counted(count, 'row')} in {to}", file=sys.stderr)
    elif chosen == "table":
        rows = [row for _, row in zip(range(SHOWN_ROWS + 1), answer.rows(), strict=False)]
        print_table(answer.columns, rows[:SHOWN_ROWS])
        if len(rows) > SHOWN_ROWS:
            print(f"The first {SHOWN_ROWS} rows; --format csv or --to FILE has all.")
        elif not rows:
            print("No rows.")
    else:
        _write_text(answer, chosen, sys.stdout)
        sys.stdout.flush()


def _write_parquet(answer: Any, to: str) -> None:
    import io

    import pyarrow.parquet as pq

    from tasks import storage

    table = answer.arrow()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    place = storage.locate(to)
    with storage.explained(place):
        storage.write_whole(place, buffer.getvalue())
    print(f"{counted(table.num_rows, 'row')} in {to}", file=sys.stderr)


def _write_text(answer: Any, format_: str, file: Any) -> int:
    import csv

    count = 0
    if format_ == "csv":
        writer = csv.writer(file, lineterminator="\n")  # Scripts read lines
        writer.writerow(answer.columns)
        for row in answer.rows():
            writer.writerow([cell(value) if isinstance(value, (list, dict, bytes)) else value for value in row])
            count += 1
        return count
    file.write("[")
    for row in answer.rows():
        values = dict(zip(answer.columns, row, strict=True))
        file.write((",\n " if count else "\n ") + json.dumps(values, default=_json, ensure_ascii=False))
        count += 1
    file.write("\n]\n")
    return count


class Counter:
    """How far a command is, on standard error, where that is a terminal."""

    def __init__(self, what: str, quiet: bool = False) -> None:
        self.what, self.shown = what, False
        self.wanted = not quiet and sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        if self.wanted:
            self.shown = True
            print(f"\r{done} of {total} {self.what}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
