"""A visit to the dataset doctor: what was found as a table and as a picture, for a person."""

import io
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segcore.datasets.pair_check import ADVICE, Level
from segcore.images.decoding import decode
from segcore.images.masks import decode_mask
from segcore.images.pictures import side_by_side
from segcore.voc import IGNORE_LABEL
from tasks import storage
from tasks.datasets import check as dataset_check
from tasks.datasets import folders, shards
from tasks.datasets import layout as dataset_layout
from tasks.datasets.check import Examined, Reported, label_counts
from tasks.datasets.layout import OwnData
from tasks.words import counted

_WIDTH_WITHOUT_TERMINAL = 160
_BAR = 20
_STYLE = {Level.ERROR: "bold red", Level.WARNING: "yellow", Level.NOTE: "dim"}
_GALLERY_PAIRS = 3
_GALLERY_SIDE_PX = 640


class Consultation:
    """One dataset that was examined; nothing is written into it but by `fix`."""

    def __init__(self, folder: str, given: OwnData | None = None) -> None:
        """Read every pair of a folder. Raises JobError where there is none."""
        self._arguments = (folder, given or OwnData())
        self.examined = self._examine()

    def fix(self) -> list[str]:
        """Mend what is safe, and look again; the files that were changed."""
        changed = dataset_check.fix(self.examined)
        if changed:
            self.examined = self._examine()
        return changed

    def write_report(self, place: str) -> None:
        """Write every finding as CSV."""
        storage.write_whole(storage.locate(place), dataset_check.findings_csv(self.examined.findings))

    def write_gallery(self, place: str) -> bool:
        """Write a picture of a few samples; False where no pair can be shown."""
        lists = {
            name: [i for i in ids if self.examined.checks[i].digest] for name, ids in self.examined.layout.lists.items()
        }
        picture = gallery(self.examined, {name: ids for name, ids in lists.items() if ids})
        if picture is not None:
            storage.write_whole(storage.locate(place), picture)
        return picture is not None

    def _examine(self) -> Examined:
        folder, given = self._arguments
        layout = folders.read_layout(storage.locate(folder), given)
        return dataset_check.examine(layout)


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
    head = f"{layout.name}: {counted(len(examined.checks), 'pair')} read, "
    head += f"{counted(len(layout.label_set.classes), 'class', 'classes')} of "
    head += f"{layout.label_set.origin}; {lists}."
    levels = [found.level for found in examined.findings]
    if not levels:
        return f"{head} Nothing is wrong."
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    notes = len(levels) - errors - warnings
    return f"{head} {counted(errors, 'error')}, {counted(warnings, 'warning')}, {counted(notes, 'note')}."


def gallery(examined: Examined, lists: dict[str, list[str]]) -> bytes | None:
    """A PNG with a few samples of the largest training list and of the smallest validation list; None without any."""
    by_size = sorted(lists, key=lambda name: len(lists[name]))
    training = [name for name in by_size if dataset_layout.is_training(name)][-1:]
    validation = [name for name in by_size if dataset_layout.is_validation(name)][:1]
    rows = []
    for name in [*training, *validation] or by_size[:1]:
        ids = shards.shard_order(lists[name])
        # Those with the most to see come first among the fair sample that the first images are
        shown = sorted(ids[:30], key=lambda i: -len(set(examined.checks[i].labels) - {0, IGNORE_LABEL}))
        for image_id in shown[:_GALLERY_PAIRS]:
            rows.append(_gallery_row(examined, image_id, name))
    if not rows:
        return None
    buffer = io.BytesIO()
    side_by_side(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def _gallery_row(examined: Examined, image_id: str, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    pair, check = examined.layout.pairs[image_id], examined.checks[image_id]
    assert pair.image is not None and pair.mask is not None
    image = decode(pair.image.read(), _GALLERY_SIDE_PX).image
    mask = pair.mask.read()
    label_set = examined.layout.label_set
    labels = decode_mask(mask if check.mask_is == "file" else dataset_check.mended_mask(pair, label_set))
    classes, area = label_set.classes, check.width * check.height
    named = [(p, classes[k]) for k, p in zip(check.labels, check.pixels, strict=True) if 0 < k < len(classes)]
    found = ", ".join(f"{name} {pixels / area:.0%}" for pixels, name in sorted(named, reverse=True)[:3])
    return image, labels, f"{image_id} ({split}): {found or 'background'}"
