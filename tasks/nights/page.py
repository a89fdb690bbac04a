"""The page of a night: one self-contained HTML file with its charts and pictures, which stand beside it too."""

import base64
import functools
import html
import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from segcore import charts, evaluation
from segcore.evaluation import Figure
from segcore.models.published import PUBLISHED_CLASS_IOU, VOC_IMAGES, published
from segcore.voc import CLASSES
from tasks import storage
from tasks.evaluation.counts import Counts, read_counts
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.figures import BOOTSTRAP_SAMPLES, LEAST_IMAGES, compared_names, in_percent, mean_iou_over
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.metrics import read_metrics
from tasks.nights.pictures import WORST, lost_picture, worst_picture
from tasks.nights.record import ModelNight, Night
from tasks.nights.sheet import conditions, is_of_same_images, sheet_cells, sheet_of
from tasks.storage import Location

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#111}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}td,th{border:1px solid #bbb;padding:.25rem .6rem;
text-align:left}img{max-width:100%}figure{margin:1rem 0}figcaption{color:#444;font-size:14px}
.alarm{border-left:6px solid #D55E00;padding:.5rem 1rem;background:#fff3ea}
.quiet{border-left:6px solid #009E73;padding:.5rem 1rem;background:#eefaf5}"""


_OVER = """<p>In brackets 95 % bootstrap intervals over images. All means of this page are over one set of classes:
those in the truth, and those that any model predicts though no image holds them; these count as 0 for every model, as
in the VOC development kit.</p>"""


def write_page(output: Location, night: Night, dataset: str) -> str:
    """Write the page of a night, and its pictures; returns the URI of the page. dataset: URI of what it was on."""
    page = _Page()
    past = _history(output, night)
    if past:
        page.show("history", charts.history(past, f"Mean IoU by night, {night.dataset}"), "Bars are 95 % intervals.")
    measured: list[tuple[Evaluation, str, list[str], Any]] = []
    over = compared_names(read_record(output, evaluation_id) for evaluation_id in night.evaluations)
    for evaluation_id in night.evaluations:
        record = read_record(output, evaluation_id)
        of = evaluation_of(record)
        counts = read_counts(output, of)
        measured += [(of, stage, counts.ids, counts.of(stage)) for stage in of.stages]
        _add_evaluation(page, record, of, counts, over)
        page.show(
            f"{_file_name(of)}-worst",
            worst_picture(output, of, counts, dataset),
            f"The {min(WORST, len(counts.ids))} worst images by their share of right pixels; void is white.",
        )
    page.sections.append(_differences(measured))
    for number, alarm in enumerate(night.alarms):
        picture = lost_picture(output, night, alarm, dataset)
        if picture is not None:
            page.show(f"alarm-{number}", picture, f"{alarm.sentence}: the images that lost the most")
    whole = _whole(output, night, page.sections)
    folder = output / "reports" / night.run
    for file, data in page.pictures.items():
        storage.write_whole(folder / file, data)
    storage.write_whole(folder / "report.html", whole.encode())
    return (folder / "report.html").uri


@dataclass
class _Page:
    """What a page is made of, while it grows."""

    sections: list[str] = field(default_factory=list)
    """HTML, one below the other."""

    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG by file name."""

    def show(self, name: str, data: bytes, told: str) -> None:
        """Add a PNG with what is told of it."""
        self.pictures[f"{name}.png"] = data
        encoded = base64.b64encode(data).decode()
        self.sections.append(
            f'<figure><img alt="{html.escape(told)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{html.escape(told)}</figcaption></figure>"
        )


def _add_evaluation(page: _Page, record: dict[str, Any], of: Evaluation, counts: Counts, over: set[str]) -> None:
    """Figures of an evaluation, its charts, and what was taken for what."""
    name, title = _file_name(of), f"{of.model}, {of.protocol}"
    subject = f"{title}: {of.images} images of {of.dataset}"
    page.sections.append(f"<h2>{html.escape(title)}</h2>{_facts(record, of, over)}")
    bars = {stage: {c: _class_figure(v) for c, v in record["figures"][stage]["iou"].items()} for stage in of.stages}
    page.show(
        f"{name}-classes",
        charts.class_bars(bars, f"IoU by class, {subject}", _paper_classes(of)),
        f"IoU of each class; in brackets the images that hold it. Bars are 95 % intervals over images; below "
        f"{LEAST_IMAGES} images there is none. "
        f"Absent from truth and every prediction, and part of no mean: "
        f"{', '.join(name for name in of.classes if name not in over) or 'none'}.",
    )
    for measure, told in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        curves = {
            stage: [Figure(**f) for f in record["figures"][stage]["trimap"][measure]]
            for stage in of.stages
            if measure in record["figures"][stage]["trimap"]
        }
        if curves:
            around = "void borders" if of.around == "void" else "borders of classes"
            page.show(
                f"{name}-trimap-{measure}",
                charts.trimap_curves(curves, f"Trimap, {subject}", told),
                f"{told} within so many px of the {around}; bands are 95 % intervals.",
            )
    stage = of.stages[-1]
    summed = counts.confusion[stage].sum(axis=0)
    page.show(
        f"{name}-confusion",
        charts.confusion_picture(summed, of.classes, f"Confusion {stage}, {subject}"),
        "Each row is 100 % of the pixels of a true class; numbers from 1 % on.",
    )
    page.sections.append(_mistakes(summed, of.classes))


def _file_name(of: Evaluation) -> str:
    """Beginning of the names of an evaluation's pictures."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{of.model}-{of.protocol}")


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
    """Source and IoU by class of the paper, in percent, where it printed them."""
    if of.variant not in PUBLISHED_CLASS_IOU or of.classes != CLASSES:
        return None
    told, numbers = PUBLISHED_CLASS_IOU[of.variant]
    return told, dict(zip(CLASSES[1:], numbers, strict=True))


def _facts(record: dict[str, Any], of: Evaluation, over: set[str]) -> str:
    """What was measured under which conditions, and what the paper says."""
    rows = []
    for stage in of.stages:
        metrics = record["figures"][stage]
        accuracies = (in_percent(metrics[name]) for name in ("pixel_accuracy", "class_accuracy"))
        rows.append([stage, in_percent(mean_iou_over(metrics, over)), *accuracies])
    paper = published(of.variant)
    told = f"<p>{html.escape(conditions(record, of, of.stages[-1], len(over)))}. Commit {html.escape(of.commit)}.</p>"
    if paper is not None:
        numbers = [f"{n:.2f} {s}" for s, n in (("without CRF", paper.mean_iou), ("with CRF", paper.with_crf)) if n]
        same = is_of_same_images(record, of, paper)
        about = "the same images" if same else "OTHER images, so not comparable"
        told += (
            f"<p>Paper: {', '.join(numbers)} ({html.escape(paper.source)}), on VOC 2012 {paper.split}, "
            f"{VOC_IMAGES[paper.split]} images: {about}.</p>"
        )
    head = ("", "mean IoU, %", "pixel accuracy, %", "class accuracy, %")
    return told + _table(head, rows) + _OVER


def _mistakes(confusion: Any, classes: tuple[str, ...]) -> str:
    """The most frequent confusions of two classes."""
    rows = [
        [f"{classes[t]} taken for {classes[p]}", f"{100 * share:.1f} % of {classes[t]} pixels", f"{pixels:,}"]
        for t, p, share, pixels in evaluation.confusions(confusion)
    ]
    return "<h3>Confusions by name</h3>" + _table(("", "share", "pixels"), rows)


def _differences(measured: list[tuple[Evaluation, str, list[str], Any]]) -> str:
    """Every two models of the night that were measured alike, compared in pairs on the same images."""
    rows = []
    for (a, stage, ids, first), (b, other_stage, other_ids, second) in itertools.combinations(measured, 2):
        if (a.protocol, stage, ids) != (b.protocol, other_stage, other_ids) or a.model == b.model:
            continue
        weights = evaluation.resampling(len(first), BOOTSTRAP_SAMPLES, seed=0)
        cells = [f"{b.model} minus {a.model}", f"{a.protocol}, {stage}"]
        over = evaluation.compared_classes(first.sum(axis=0), second.sum(axis=0))
        for measure in (functools.partial(evaluation.mean_iou, over=over), evaluation.pixel_accuracy):
            f = evaluation.paired_difference(first, second, measure, weights)
            cells.append(f"{100 * f.value:+.2f} ({100 * f.low:+.2f} to {100 * f.high:+.2f})")
        rows.append(cells)
    if not rows:
        return ""
    told = "<p>In brackets 95 % intervals of each difference alone, from one resampling of the images for both.</p>"
    head = ("", "", "mean IoU, points", "pixel accuracy, points")
    return "<h2>Models against each other</h2>" + _table(head, rows) + told


def _whole(output: Location, night: Night, sections: list[str]) -> str:
    """The page around its sections: what a person is told first, and the sheet at the end."""
    kind = "alarm" if night.alarms else "quiet"
    # The record of this night is written last, so the sheet is made from the night itself
    sheet = [sheet_cells(row) for row in sorted(sheet_of(output, night.evaluations), key=lambda row: row.ours is None)]
    failed = [[m.model, m.failure or m.refused or ""] for m in night.models if m.failure or m.refused]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Night {night.run}</title>'
        f"<style>{_STYLE}</style><h1>{'Alarm' if night.alarms else 'A quiet night'}: {html.escape(night.dataset)}</h1>"
        f'<p class="{kind}">{html.escape(night.sentence)}</p><p>Night {night.run}, {html.escape(night.time)}.</p>'
        + (_table(("model", "not evaluated because"), failed) if failed else "")
        + "".join(_training_images(model) for model in night.models)
        + "".join(sections)
        + f"<h2>Beside the papers</h2>{_table(tuple(sheet[0]), [list(cells.values()) for cells in sheet])}</html>\n"
    )


def _training_images(model: ModelNight) -> str:
    """Whether a model was scored on images that it was trained on, as far as that is known."""
    if not model.training_images:
        return ""
    kind = ' class="alarm"' if model.similar else ""
    return f"<p{kind}>{html.escape(model.model)}: {html.escape(model.training_images)}</p>"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
