"""What the dataset doctor found, as a table for a person at a terminal."""

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segcore.pair_check import ADVICE, Level
from segcore.voc import IGNORE_LABEL
from tasks.datasets.check import Examined, Reported, label_counts

_WIDTH_WITHOUT_TERMINAL = 160
_BAR = 20
_STYLE = {Level.ERROR: "bold red", Level.WARNING: "yellow", Level.NOTE: "dim"}


def console() -> Console:
    """Standard output, as wide as the terminal; wide enough for the table where it is none."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=_WIDTH_WITHOUT_TERMINAL)


def print_findings(findings: Sequence[Reported], console: Console, shown: int = 3) -> None:
    """One table, worst first; of each kind of finding no more than `shown` files."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name, ratio in (("finding", 3), ("file", 4), ("facts", 4), ("remedy", 5)):
        table.add_column(name, overflow="fold", ratio=ratio)
    for kind, group in groupby(findings, key=lambda found: found.kind):
        found, advice = list(group), ADVICE[kind]
        level = Text(advice.level.name.lower(), _STYLE[advice.level])
        for number, one in enumerate(found[:shown]):
            first = number == 0
            title = f"{kind} ({len(found):,})" if len(found) > 1 else str(kind)
            remedy = Text(advice.remedy if first else "")
            table.add_row(
                level if first else "", Text(title if first else ""), Text(one.file), Text(one.detail), remedy
            )
        if len(found) > shown:
            table.add_row("", "", Text(f"and {len(found) - shown:,} more"), "", "")
    console.print(table)


def print_classes(examined: Examined, console: Console) -> None:
    """How often each class is to be seen."""
    classes = examined.layout.label_set.classes
    pixels, present = label_counts(examined, list(examined.checks))
    counted = pixels[: len(classes)].sum()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("label", justify="right")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("pixels", justify="right")
    table.add_column("share of labelled pixels")
    for label, name in enumerate(classes):
        share = pixels[label] / max(1, counted)
        bar = f"{share:6.2%} {'#' * round(_BAR * share)}"
        table.add_row(str(label), Text(name), f"{present[label]:,}", f"{pixels[label]:,}", bar)
    void = pixels[IGNORE_LABEL]
    table.add_row(str(IGNORE_LABEL), "void", f"{present[IGNORE_LABEL]:,}", f"{void:,}", "")
    console.print(table)
    console.print(f"Void is {void / max(1, pixels.sum()):.2%} of all pixels.", highlight=False)


def verdict(examined: Examined) -> str:
    """The check in a sentence or two."""
    layout = examined.layout
    lists = ", ".join(f"{name} {len(ids):,}" for name, ids in layout.lists.items())
    head = f"{layout.name}: {len(examined.checks):,} pairs read, {len(layout.label_set.classes)} classes of "
    head += f"{layout.label_set.origin}; {lists}."
    levels = [found.level for found in examined.findings]
    if not levels:
        return f"{head} Nothing is wrong."
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    notes = len(levels) - errors - warnings
    return f"{head} {errors:,} errors, {warnings:,} warnings, {notes:,} notes."
