"""What people see of a night: one self-contained HTML page with its pictures, the artifact, and the sheet.

    OUTPUT/reports/<night>/report.html   everything, pictures included
    OUTPUT/reports/<night>/*.png         the pictures alone

The sheet puts our numbers beside the papers'. Numbers come from `tasks/nightly.py` and `tasks/evaluation.py`.
"""

import base64
import html
import io
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import rich.box
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from rich.console import Console
from rich.table import Table

from segcore import charts, evaluation, masks
from segcore.evaluation import Figure
from segcore.images import decode
from segcore.models.published import PUBLISHED_CLASS_IOU, VOC_IMAGES, published
from segcore.models.variants import VARIANTS
from segcore.refinement import CrfParams
from segcore.voc import CLASSES
from tasks import storage
from tasks.errors import JobError
from tasks.evaluation import (
    BOOTSTRAP_SAMPLES,
    LEAST_IMAGES,
    Evaluation,
    ReevaluateJob,
    evaluation_of,
    read_counts,
    read_masks,
    read_record,
)
from tasks.nightly import Alarm, Night, last_night, lost_images, read_baseline, read_metrics, worst_images
from tasks.shards import DatasetManifest, RowGroup, read_index, read_manifest, read_row_group
from tasks.storage import Location

_SHOWN_SIDE_PX = 320
_WORST = 20
_LOST = 6


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


@task(name="publish-night", cache_policy=NO_CACHE)
def publish_night(job: ReevaluateJob, night: Night) -> Night:
    """Write the report, and tell what was found as artifacts of the flow run."""
    output = storage.locate(job.output)
    if night.report is not None:
        write_report(output, night, job.dataset)
    if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
        create_markdown_artifact(
            markdown=markdown(output, night, job.dataset), key="segment-archive-night", description="What a night found"
        )
        evaluated = [evaluation_id for model in night.models for evaluation_id in model.evaluations]
        rows = [_sheet_cells(row) for row in sheet_of(output, evaluated)]
        create_table_artifact(table=rows, key="segment-archive-sheet", description="Our numbers beside the papers'")
    return night


def write_report(output: Location, night: Night, dataset: str) -> str:
    """Pictures and page of a night; returns the URI of the page."""
    folder = output / "reports" / night.run
    sections: list[str] = []
    pictures: dict[str, bytes] = {}
    manifest, place = read_manifest(storage.locate(dataset)), storage.locate(dataset)
    records = {id: read_record(output, id) for model in night.models for id in model.evaluations}

    def shown(name: str, data: bytes, told: str) -> None:
        pictures[f"{name}.png"] = data
        encoded = base64.b64encode(data).decode()
        sections.append(
            f'<figure><img alt="{html.escape(told)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{html.escape(told)}</figcaption></figure>"
        )

    measured: list[tuple[Evaluation, str, list[str], Any]] = []
    past = _history(output, night)
    if past:
        shown("history", charts.history(past, f"Mean IoU by night, {night.dataset}"), "Bars are 95 % intervals.")
    for record in records.values():
        of = evaluation_of(record)
        counts = read_counts(output, of)
        measured += [(of, stage, counts.ids, counts.of(stage)) for stage in of.stages]
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{of.model}-{of.protocol}")
        title = f"{of.model}, {of.protocol}"
        sections.append(f"<h2>{html.escape(title)}</h2>{_facts(record, of)}")
        bars = {stage: {c: _class_figure(v) for c, v in record["figures"][stage]["iou"].items()} for stage in of.stages}
        subject = f"{title}: {of.images} images of {of.dataset}"
        shown(
            f"{name}-classes",
            charts.class_bars(bars, f"IoU by class, {subject}", _paper_classes(of)),
            f"IoU of each class; in brackets the images that hold it. Bars are 95 % intervals over images; below "
            f"{LEAST_IMAGES} images there is none. "
            f"Absent, and part of no mean: {', '.join(record['figures'][of.stages[-1]]['absent']) or 'none'}.",
        )
        for measure, told in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
            curves = {
                stage: [Figure(**f) for f in record["figures"][stage]["trimap"][measure]]
                for stage in of.stages
                if measure in record["figures"][stage]["trimap"]
            }
            if curves:
                around = "void borders" if of.around == "void" else "borders of classes"
                shown(
                    f"{name}-trimap-{measure}",
                    charts.trimap_curves(curves, f"Trimap, {subject}", told),
                    f"{told} within so many px of the {around}; bands are 95 % intervals.",
                )
        stage = of.stages[-1]
        summed = counts.confusion[stage].sum(axis=0)
        shown(
            f"{name}-confusion",
            charts.confusion_picture(summed, of.classes, f"Confusion {stage}, {subject}"),
            "Each row is 100 % of the pixels of a true class; numbers from 1 % on.",
        )
        sections.append(_mistakes(summed, of.classes))
        worst = worst_images(counts, stage, _WORST)
        captions = {counts.ids[i]: f"{counts.ids[i]}: {100 * share:.1f} % of the pixels right" for i, share in worst}
        shown(
            f"{name}-worst",
            _images(output, place, manifest, of, captions, [(f"predicted {stage}", of, stage)]),
            f"The {len(worst)} worst images by their share of right pixels; void is white.",
        )
    sections.append(_differences(measured))
    for number, alarm in enumerate(night.alarms):
        picture = lost_picture(output, night, alarm, dataset)
        if picture is not None:
            shown(f"alarm-{number}", picture, f"{alarm.sentence}: the images that lost the most")
    page = _page(output, night, sections)
    for file, data in pictures.items():
        storage.write_whole(folder / file, data)
    storage.write_whole(folder / "report.html", page.encode())
    return (folder / "report.html").uri


def lost_picture(
    output: Location, night: Night, alarm: Alarm, dataset: str, *, jpeg: bool = False, num_shown: int = _LOST
) -> bytes | None:
    """The images that lost the most between baseline and now, for an alarm of kind "worse"; None for another one."""
    if alarm.kind != "worse":
        return None
    now, before = _both(output, night, alarm)
    first = alarm.differences[0]
    counts = (read_counts(output, before), read_counts(output, now))
    lost = lost_images(*counts, first["stage"], first["label"], num_shown)
    if not lost:
        return None
    about = "pixels" if first["class"] is None else f"pixels of {first['class']}"
    captions = {counts[1].ids[i]: f"{counts[1].ids[i]}: {100 * change:+.1f} % right {about}" for i, change in lost}
    shown = [("baseline", before, first["stage"]), (f"now, {first['stage']}", now, first["stage"])]
    place = storage.locate(dataset)
    return _images(output, place, read_manifest(place), now, captions, shown, jpeg=jpeg)


def markdown(output: Location, night: Night, dataset: str) -> str:
    """What a night found, for the page of the flow run."""
    lines = [f"# {'Alarm' if night.alarms else 'A quiet night'}", "", night.sentence, ""]
    for alarm in night.alarms:
        lines += [f"## {alarm.model}: {alarm.kind}", "", alarm.sentence, ""]
        if alarm.kind != "worse":
            continue
        lines += ["| figure | | before | now | change, points | interval |", "|---|---|---|---|---|---|"]
        for d in alarm.differences:
            before, now, low, high = (100 * d[name] for name in ("before", "now", "low", "high"))
            lines.append(
                f"| {d['figure']} | {d['stage']} | {before:.2f} | {now:.2f} | {now - before:+.2f} | "
                f"{low:+.2f} to {high:+.2f} |"
            )
        picture = lost_picture(output, night, alarm, dataset, jpeg=True, num_shown=3)
        if picture is not None:
            encoded = base64.b64encode(picture).decode()
            lines += ["", f"![The images that lost the most](data:image/jpeg;base64,{encoded})"]
        lines.append("")
    lines += ["| model | | mean IoU, % | 95 % interval | pixel accuracy, % |", "|---|---|---|---|---|"]
    for model in night.models:
        if model.failure or model.refused:
            lines.append(f"| {model.model} | {'failed' if model.failure else 'refused'} | | | |")
        for evaluation_id in model.evaluations:
            record = read_record(output, evaluation_id)
            of = evaluation_of(record)
            for stage in of.stages:
                f = record["figures"][stage]
                m = f["mean_iou"]
                lines.append(
                    f"| {of.model} | {of.protocol}, {stage} | {100 * m['value']:.2f} | "
                    f"{100 * m['low']:.2f} to {100 * m['high']:.2f} | {100 * f['pixel_accuracy']['value']:.2f} |"
                )
    if night.report:
        lines += ["", f"Report with pictures: `{night.report}`"]
    return "\n".join(lines) + "\n"


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
            same = (
                paper is not None
                and of.dataset == f"voc2012-{paper.split}"
                and record["images"] == VOC_IMAGES[paper.split]
            )
            for stage in of.stages:
                figure = record["figures"][stage]["mean_iou"]
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
                        conditions(record, of, stage),
                    )
                )
    return rows


def conditions(record: dict[str, Any], of: Evaluation, stage: str) -> str:
    """What a figure was measured on, and how, in one line."""
    present = len(record["figures"][stage]["iou"])
    told = [f"{record['images']} images of {of.dataset}", f"mean over {present} of {len(of.classes)} classes"]
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


def sheet_markdown(rows: list[SheetRow]) -> str:
    """The sheet as a Markdown table."""
    cells = [_sheet_cells(row) for row in rows]
    head = list(cells[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.values())} |" for cell in cells]
    return "\n".join(lines) + "\n"


def _sheet_cells(row: SheetRow) -> dict[str, str]:
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


def _history(output: Location, night: Night) -> dict[str, list[tuple[Any, Figure]]]:
    """Mean IoU of each model in its last stage over the nights on this dataset."""
    found: dict[str, list[tuple[Any, Figure]]] = {}
    rows = [row for row in read_metrics(output) if row["dataset"] == night.dataset]
    last = {(row["model"], row["protocol"]): row["stage"] for row in rows if row["stage"] == "with CRF"}
    for row in rows:
        name = (row["model"], row["protocol"])
        if row["stage"] == last.get(name, "without CRF"):
            label = f"{name[0]}, {name[1]}, {row['stage']}"
            found.setdefault(label, []).append((row["time"], Figure(row["value"], row["low"], row["high"])))
    return found


def _class_figure(stored: dict[str, Any]) -> tuple[Figure, int]:
    """Figure of a class, its ends NaN where there is no interval, and how many images hold it."""
    low, high = (math.nan if stored[end] is None else stored[end] for end in ("low", "high"))
    return Figure(stored["value"], low, high), stored["images"]


def _paper_classes(of: Evaluation) -> tuple[str, dict[str, float]] | None:
    if of.variant not in PUBLISHED_CLASS_IOU or of.classes != CLASSES:
        return None
    told, numbers = PUBLISHED_CLASS_IOU[of.variant]
    return told, dict(zip(CLASSES[1:], numbers, strict=True))


def _both(output: Location, night: Night, alarm: Alarm) -> tuple[Evaluation, Evaluation]:
    """What was evaluated tonight, and the baseline of it."""
    ids = next(model.evaluations for model in night.models if model.model == alarm.model)
    now = next(e for e in (evaluation_of(read_record(output, id)) for id in ids) if e.protocol == alarm.protocol)
    before = read_baseline(output, alarm.model)["evaluations"][alarm.protocol]
    return now, evaluation_of(read_record(output, before))


def _images(
    output: Location,
    dataset: Location,
    manifest: DatasetManifest,
    of: Evaluation,
    captions: dict[str, str],
    shown: list[tuple[str, Evaluation, str]],
    *,
    jpeg: bool = False,
) -> bytes:
    """Photograph, truth and predictions of some images of the dataset, in the order of the captions."""
    predicted = [(told, read_masks(output, e, stage, list(captions))) for told, e, stage in shown]
    rows = _dataset_rows(dataset, manifest, of.split, set(captions))
    lines = []
    for image_id, caption in captions.items():
        image = decode(rows[image_id]["image"], _SHOWN_SIDE_PX).image
        maps = [("truth", masks.decode_mask(rows[image_id]["mask"]))]
        maps += [(told, masks.decode_mask(by_id[image_id])) for told, by_id in predicted]
        lines.append((caption, image, maps))
    return charts.image_sheet(lines, jpeg=jpeg)


def _dataset_rows(dataset: Location, manifest: DatasetManifest, split: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Rows of some images, reading the row groups that hold them and no others."""
    index = read_index(dataset, manifest.split(split)).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    groups = {(row["path"], row["row_group"]) for row in index if row["id"] in ids}
    for path, number in sorted(groups):
        table = read_row_group(dataset, RowGroup(path, number, 0), ["id", "image", "mask"])
        for k, image_id in enumerate(table.column("id").to_pylist()):
            if image_id in ids:
                found[image_id] = {name: table.column(name)[k].as_py() for name in ("image", "mask")}
    return found


def _facts(record: dict[str, Any], of: Evaluation) -> str:
    rows = []
    for stage in of.stages:
        figures = record["figures"][stage]
        cells = [stage]
        for name in ("mean_iou", "pixel_accuracy", "class_accuracy"):
            f = figures[name]
            cells.append(f"{100 * f['value']:.2f} ({100 * f['low']:.2f} to {100 * f['high']:.2f})")
        rows.append(cells)
    paper = published(of.variant)
    told = f"<p>{html.escape(conditions(record, of, of.stages[-1]))}. Commit {html.escape(of.commit)}.</p>"
    if paper is not None:
        numbers = [f"{n:.2f} {s}" for s, n in (("without CRF", paper.mean_iou), ("with CRF", paper.with_crf)) if n]
        same = of.dataset == f"voc2012-{paper.split}" and record["images"] == VOC_IMAGES[paper.split]
        about = "the same images" if same else "OTHER images, so not comparable"
        told += (
            f"<p>Paper: {', '.join(numbers)} ({html.escape(paper.source)}), on VOC 2012 {paper.split}, "
            f"{VOC_IMAGES[paper.split]} images: {about}.</p>"
        )
    head = ("", "mean IoU, %", "pixel accuracy, %", "class accuracy, %")
    return told + _table(head, rows) + "<p>In brackets 95 % bootstrap intervals over images.</p>"


def _mistakes(confusion: Any, classes: tuple[str, ...]) -> str:
    rows = [
        [f"{classes[t]} taken for {classes[p]}", f"{100 * share:.1f} % of {classes[t]} pixels", f"{pixels:,}"]
        for t, p, share, pixels in evaluation.confusions(confusion)
    ]
    return "<h3>Confusions by name</h3>" + _table(("", "share", "pixels"), rows)


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _differences(measured: list[tuple[Evaluation, str, list[str], Any]]) -> str:
    """Every two models of the night that were measured alike, compared in pairs on the same images."""
    rows = []
    for (a, stage, ids, first), (b, other_stage, other_ids, second) in itertools.combinations(measured, 2):
        if (a.protocol, stage, ids) != (b.protocol, other_stage, other_ids) or a.model == b.model:
            continue
        weights = evaluation.resampling(len(first), BOOTSTRAP_SAMPLES, seed=0)
        cells = [f"{b.model} minus {a.model}", f"{a.protocol}, {stage}"]
        for measure in (evaluation.mean_iou, evaluation.pixel_accuracy):
            f = evaluation.paired_difference(first, second, measure, weights)
            cells.append(f"{100 * f.value:+.2f} ({100 * f.low:+.2f} to {100 * f.high:+.2f})")
        rows.append(cells)
    if not rows:
        return ""
    told = "<p>In brackets 95 % intervals of each difference alone, from the same draws of the images for both.</p>"
    head = ("", "", "mean IoU, points", "pixel accuracy, points")
    return "<h2>Models against each other</h2>" + _table(head, rows) + told


_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#111}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}td,th{border:1px solid #bbb;padding:.25rem .6rem;
text-align:left}img{max-width:100%}figure{margin:1rem 0}figcaption{color:#444;font-size:14px}
.alarm{border-left:6px solid #D55E00;padding:.5rem 1rem;background:#fff3ea}
.quiet{border-left:6px solid #009E73;padding:.5rem 1rem;background:#eefaf5}"""


def _page(output: Location, night: Night, sections: list[str]) -> str:
    kind = "alarm" if night.alarms else "quiet"
    # The record of this night is written last, so the sheet is made from the night itself
    evaluated = [evaluation_id for model in night.models for evaluation_id in model.evaluations]
    cells = [list(_sheet_cells(row).values()) for row in _measured_first(sheet_of(output, evaluated))]
    head = ("variant", "model", "stage", "ours, %", "95 % interval", "paper, %", "paper's source", "comparison",
            "conditions of ours")  # fmt: skip
    failed = [[m.model, m.failure or m.refused or ""] for m in night.models if m.failure or m.refused]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Night {night.run}</title>'
        f"<style>{_STYLE}</style><h1>{'Alarm' if night.alarms else 'A quiet night'}: {html.escape(night.dataset)}</h1>"
        f'<p class="{kind}">{html.escape(night.sentence)}</p><p>Night {night.run}, {html.escape(night.time)}.</p>'
        + (_table(("model", "not evaluated because"), failed) if failed else "")
        + "".join(sections)
        + f"<h2>Beside the papers</h2>{_table(head, cells)}</html>\n"
    )


def _measured_first(rows: list[SheetRow]) -> list[SheetRow]:
    return sorted(rows, key=lambda row: row.ours is None)


def summary(output: str) -> list[str]:
    """Lines for a terminal about the latest night: figures of every model, where the report is. Empty without one."""
    place = storage.locate(output)
    night = last_night(place)
    if night is None:
        return []
    lines = [f"Night {night['run']}: {night['images']} images of {night['dataset']}. In brackets 95 % intervals."]
    for model in night["models"]:
        if model["failure"] or model["refused"]:
            lines.append(f"  {model['model']}: {'failed' if model['failure'] else 'refused'}")
        for evaluation_id in model["evaluations"]:
            record = read_record(place, evaluation_id)
            of = evaluation_of(record)
            for stage in of.stages:
                f = record["figures"][stage]
                told = [
                    f"{name} {100 * f[key]['value']:.2f} ({100 * f[key]['low']:.2f} to {100 * f[key]['high']:.2f})"
                    for name, key in (("mean IoU", "mean_iou"), ("pixel accuracy", "pixel_accuracy"))
                ]
                lines.append(f"  {of.model} [{of.shown_name}], {of.protocol}, {stage}: {', '.join(told)}")
            absent = record["figures"][of.stages[-1]]["absent"]
            if absent:
                lines.append(f"    absent from truth and prediction, so part of no mean: {', '.join(absent)}")
    if night["report"]:
        lines.append(f"Report: {night['report']}")
    return lines


def sheet_table(rows: list[SheetRow]) -> str:
    """The sheet as a table for a terminal."""
    console = Console(width=200, file=io.StringIO(), color_system=None)
    cells = [_sheet_cells(row) for row in rows]
    table = Table(*cells[0], box=rich.box.ASCII2, show_lines=False)
    for cell in cells:
        table.add_row(*cell.values())
    with console.capture() as captured:
        console.print(table)
    return captured.get()
