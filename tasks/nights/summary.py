"""A night on a terminal, and the sheet: our numbers beside the papers', never silently of other images."""

from dataclasses import dataclass
from typing import Any

from segcore.crf.dense_crf import CrfParams
from segcore.models.published import VOC_IMAGES, Published, published
from segcore.models.variants import VARIANTS
from tasks import storage
from tasks.errors import JobError
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.metrics import compared_names, in_percent, mean_iou_over
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.baselines import last_night
from tasks.storage import Location


def summary(output: str) -> list[str]:
    """Lines for a terminal about the latest night: figures of every model, where the report is. Empty without one."""
    place = storage.locate(output)
    night = last_night(place)
    if night is None:
        return []
    lines = [f"Night {night['run']}: {night['images']} images of {night['dataset']}. In brackets 95 % intervals."]
    evaluations = [evaluation_id for model in night["models"] for evaluation_id in model["evaluations"]]
    over = compared_names(read_record(place, evaluation_id) for evaluation_id in evaluations)
    for model in night["models"]:
        if model["failure"] or model["refused"]:
            lines.append(f"  {model['model']}: {'failed' if model['failure'] else 'refused'}")
        if model.get("training_images"):  # Nights of before have none
            lines.append(f"  {model['model']}: {model['training_images']}")
        for evaluation_id in model["evaluations"]:
            record = read_record(place, evaluation_id)
            of = evaluation_of(record)
            for stage in of.stages:
                figures = record["figures"][stage]
                told = f"mean IoU {in_percent(mean_iou_over(figures, over))}, "
                told += f"pixel accuracy {in_percent(figures['pixel_accuracy'])}"
                lines.append(f"  {of.model} [{of.shown_name}], {of.protocol}, {stage}: {told}")
            absent = [name for name in of.classes if name not in over]
            if absent:
                lines.append(f"    absent from truth and every prediction, so part of no mean: {', '.join(absent)}")
    if night["report"]:
        lines.append(f"Report: {night['report']}")
    return lines


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
    """Every variant beside the paper's number, first those that are among some evaluations, with ours."""
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
    return sorted(rows, key=lambda row: row.ours is None)


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


def sheet_columns(row: SheetRow) -> dict[str, str]:
    """A measured row as a person reads it, by the name of the column; what is longer stands in `sheet_notes`."""
    return {
        "model": row.model if row.model == row.variant else f"{row.model} [{row.variant}]",
        "stage": row.stage,
        "ours, %": "" if row.ours is None else f"{row.ours:.2f} ({row.low:.2f} to {row.high:.2f})",
        "paper, %": "" if row.paper is None else f"{row.paper:.2f}",
        "compared": "no number" if row.paper is None else "same images" if row.same_images else "OTHER IMAGES",
    }


def sheet_notes(rows: list[SheetRow]) -> list[str]:
    """What each measured model was measured on, and where the paper's number stands."""
    notes = []
    for model in dict.fromkeys(row.model for row in rows if row.ours is not None):
        of = [row for row in rows if row.model == model]
        notes += [f"{model}, {row.stage}: {row.conditions}." for row in of]
        notes.append(f"Paper: {of[0].source}." + ("" if of[0].same_images or of[0].paper is None else _OTHER))
    return list(dict.fromkeys(notes))


def not_measured(rows: list[SheetRow]) -> list[str]:
    """The variants of which nothing was measured, with the papers' numbers: "pspnet101: 82.60 (Table 4, ...)"."""
    numbers: dict[str, list[str]] = {}
    sources = {}
    for row in rows:
        if row.ours is None:
            numbers.setdefault(row.variant, [])
            sources[row.variant] = row.source
            if row.paper is not None:
                numbers[row.variant].append(f"{row.paper:.2f} {row.stage}")
    return [f"{name}: {', '.join(of)} ({sources[name]})" if of else name for name, of in numbers.items()]


def sheet_markdown(rows: list[SheetRow]) -> str:
    """The sheet as Markdown: what was measured as a table, all other variants folded."""
    cells = [sheet_columns(row) for row in rows if row.ours is not None]
    lines = []
    if cells:
        lines += [f"| {' | '.join(cells[0])} |", f"|{'---|' * len(cells[0])}"]
        lines += [f"| {' | '.join(cell.values())} |" for cell in cells]
        lines += ["", *(f"- {note}" for note in sheet_notes(rows)), ""]
    others = not_measured(rows)
    if others:
        lines += [f"<details><summary>{unmeasured_words(len(others))}</summary>", "", *(f"- {told}" for told in others)]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def sheet_lines(rows: list[SheetRow]) -> list[str]:
    """The sheet for a terminal of any width: what was measured, then the names of what was not."""
    cells = [sheet_columns(row) for row in rows if row.ours is not None]
    lines = []
    if cells:
        table = [list(cells[0]), *(list(cell.values()) for cell in cells)]
        widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        lines += [f"  {note}" for note in sheet_notes(rows)]
    names = dict.fromkeys(row.variant for row in rows if row.ours is None)
    if names:
        lines.append(f"{unmeasured_words(len(names))}: {', '.join(names)}.")
    return lines


_OTHER = " It is of other images: not comparable."


def unmeasured_words(count: int) -> str:
    """What is said of the variants without a measurement."""
    return f"{count} variants are not measured, since no weights of them were among the models"
