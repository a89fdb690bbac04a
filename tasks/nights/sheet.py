"""The sheet: our numbers beside the papers', variant by variant, never silently of other images."""

import io
from dataclasses import dataclass
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from segcore.models.published import VOC_IMAGES, Published, published
from segcore.models.variants import VARIANTS
from segcore.refinement import CrfParams
from tasks.errors import JobError
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.figures import compared_names, mean_iou_over
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.record import last_night
from tasks.storage import Location


@dataclass(frozen=True)
class SheetRow:
    """One variant in one way of measuring, ours beside the paper's. Percent."""

    variant: str
    model: str
    """Name in the registry; empty where nothing of the variant was measured."""

    stage: str
    ours: float | None
    low: float | None
    high: float | None
    paper: float | None
    source: str
    """Where the paper's number stands, and on which images."""

    same_images: bool
    """Whether both numbers are of the same images."""

    conditions: str
    """What ours was measured on, and how; or why there is none."""


def sheet(output: Location) -> list[SheetRow]:
    """Every variant: ours as of the latest night, beside the paper's. Raises JobError where there was no night."""
    night = last_night(output)
    if night is None:
        raise JobError(f"{output.uri} holds no night yet: run `segment-archive evaluate` first.")
    return sheet_of(output, [evaluation_id for model in night["models"] for evaluation_id in model["evaluations"]])


def sheet_of(output: Location, evaluations: list[str]) -> list[SheetRow]:
    """Every variant: ours where it is among some evaluations, beside the paper's."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for evaluation_id in evaluations:
        record = read_record(output, evaluation_id)
        if record:
            by_variant.setdefault(record["evaluation"]["variant"], []).append(record)
    over = compared_names(record for records in by_variant.values() for record in records)
    rows = []
    for variant in VARIANTS:
        paper = published(variant)
        told = "the papers print none"
        if paper is not None:
            told = f"{paper.source}: VOC 2012 {paper.split}, {VOC_IMAGES[paper.split]} images"
        numbers: dict[str, float | None] = {"without CRF": None, "with CRF": None}
        if paper is not None:
            numbers = {"without CRF": paper.mean_iou, "with CRF": paper.with_crf}
        measured = by_variant.get(variant, [])
        if not measured:
            shown = [stage for stage, number in numbers.items() if number is not None] or ["without CRF"]
            rows += [
                SheetRow(variant, "", s, None, None, None, numbers[s], told, False, "not measured: no weights at hand")
                for s in shown
            ]
        for record in measured:
            of = evaluation_of(record)
            same = paper is not None and is_of_same_images(record, of, paper)
            for stage in of.stages:
                figure = mean_iou_over(record["figures"][stage], over)
                rows.append(
                    SheetRow(
                        variant,
                        of.model,
                        stage,
                        100 * figure["value"],
                        100 * figure["low"],
                        100 * figure["high"],
                        numbers[stage],
                        told,
                        same,
                        conditions(record, of, stage, len(over)),
                    )
                )
    return rows


def is_of_same_images(record: dict[str, Any], of: Evaluation, paper: Published) -> bool:
    """Whether an evaluation is of just the images that a paper's number is of."""
    return of.dataset == f"voc2012-{paper.split}" and bool(record["images"] == VOC_IMAGES[paper.split])


def conditions(record: dict[str, Any], of: Evaluation, stage: str, num_classes: int) -> str:
    """What a metric was measured on, and how, in one line. num_classes: that the mean is over."""
    told = [f"{record['images']} images of {of.dataset}", f"mean over {num_classes} of {len(of.classes)} classes"]
    if of.protocol == "multi-scale" or of.inference.scales != (1.0,):
        told.append(f"scales {', '.join(f'{s:g}' for s in of.inference.scales)}")
    if of.inference.mirror:
        told.append("mirrored too")
    if stage == "with CRF":
        told.append(crf_words(of.crf))
    told.append(f"trained on {of.training_split}" if of.training_split != "unknown" else "nobody says what it saw")
    if "untrained" in of.shown_name:
        told.append("UNTRAINED weights")
    return ", ".join(told)


def crf_words(crf: CrfParams | None) -> str:
    """Parameters of a CRF in the order of the papers."""
    if crf is None:
        return "no CRF"
    values = (crf.bilateral_weight, crf.bilateral_xy_std_px, crf.bilateral_rgb_std, crf.gaussian_weight,
              crf.gaussian_xy_std_px)  # fmt: skip
    return "CRF " + "/".join(f"{v:g}" for v in values)


def sheet_cells(row: SheetRow) -> dict[str, str]:
    """A row as a person reads it, by the name of the column."""
    if row.ours is None:
        ours, interval = "not measured", ""
    else:
        ours, interval = f"{row.ours:.2f}", f"{row.low:.2f} to {row.high:.2f}"
    if row.paper is None:
        compared = "no number to compare with"
    elif row.ours is None:
        compared = ""
    else:
        compared = "same images" if row.same_images else "OTHER IMAGES: not comparable"
    return {
        "variant": row.variant,
        "model": row.model,
        "stage": row.stage,
        "ours, %": ours,
        "95 % interval": interval,
        "paper, %": "" if row.paper is None else f"{row.paper:.2f}",
        "paper's source": row.source,
        "comparison": compared,
        "conditions of ours": row.conditions,
    }


def sheet_markdown(rows: list[SheetRow]) -> str:
    """The sheet as a Markdown table."""
    cells = [sheet_cells(row) for row in rows]
    head = list(cells[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.values())} |" for cell in cells]
    return "\n".join(lines) + "\n"


def sheet_table(rows: list[SheetRow]) -> str:
    """The sheet as a table for a terminal."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    cells = [sheet_cells(row) for row in rows]
    table = Table(*cells[0], box=rich.box.ASCII2, show_lines=False)
    for cell in cells:
        table.add_row(*cell.values())
    with console.capture() as captured:
        console.print(table)
    return captured.get()
