"""The page of a night: one self-contained HTML file with its charts and pictures, which stand beside it too."""

import base64
import functools
import html
import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from segcore.images import masks
from segcore.images.decoding import decode
from segcore.metrics import charts, evaluation
from segcore.metrics.evaluation import Figure
from segcore.models.published import PUBLISHED_CLASS_IOU, VOC_IMAGES, published
from segcore.voc import CLASSES
from tasks import storage
from tasks.datasets.shards import RowGroup, read_index, read_manifest, read_row_group
from tasks.evaluation.counts import Counts, read_counts, read_masks
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.metrics import BOOTSTRAP_SAMPLES, LEAST_IMAGES, compared_names, in_percent, mean_iou_over
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.baselines import Alarm, ModelNight, Night, read_baseline
from tasks.nights.history import read_metrics
from tasks.nights.summary import (
    SheetRow,
    conditions,
    is_of_same_images,
    not_measured,
    sheet_columns,
    sheet_notes,
    sheet_of,
    unmeasured_words,
)
from tasks.storage import Location

WORST = 20
"""Images on a picture of the worst ones at most."""

_LOST = 6
_SHOWN_SIDE_PX = 320

_STYLE = """:root{color-scheme:light dark;
--paper:#fff;--ink:#111;--rule:#bbb;--soft:#444;--alarm:#fff3ea;--quiet:#eefaf5}
@media(prefers-color-scheme:dark){:root{
--paper:#121212;--ink:#eee;--rule:#555;--soft:#bbb;--alarm:#3a2416;--quiet:#12302a}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:64rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;font-size:14px;overflow-wrap:normal}
td,th{border:1px solid var(--rule);padding:.25rem .6rem;text-align:left}
img{max-width:100%;background:#fff}@media(max-width:46rem){figure img{max-width:44rem}}
figure{margin:1rem 0}figcaption,.note,li{color:var(--soft);font-size:14px}
.alarm{border-left:6px solid #D55E00;padding:.5rem 1rem;background:var(--alarm)}
.quiet{border-left:6px solid #009E73;padding:.5rem 1rem;background:var(--quiet)}"""


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
        image = f'<img alt="{html.escape(told)}" src="data:image/png;base64,{encoded}">'
        self.sections.append(f"<figure>{_wide('Picture', image)}<figcaption>{html.escape(told)}</figcaption></figure>")


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
    return "<h3>Confusions by name</h3>" + _table(("", "share", "pixels"), rows) if rows else ""


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
    sheet = _sheet(sheet_of(output, night.evaluations))
    failed = [[m.model, m.failure or m.refused or ""] for m in night.models if m.failure or m.refused]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Night {night.run}</title>"
        f"<style>{_STYLE}</style><h1>{'Alarm' if night.alarms else 'A quiet night'}: {html.escape(night.dataset)}</h1>"
        f'<p class="{kind}">{_with_code(night.sentence)}</p><p>Night {night.run}, {html.escape(night.time)}.</p>'
        + (_table(("model", "not evaluated because"), failed) if failed else "")
        + "".join(_training_images(model) for model in night.models)
        + "".join(sections)
        + f"<h2>Beside the papers</h2>{sheet}</html>\n"
    )


def _sheet(rows: list[SheetRow]) -> str:
    """Our numbers beside the papers': what was measured as a table, all other variants folded."""
    cells = [sheet_columns(row) for row in rows if row.ours is not None]
    told = _table(tuple(cells[0]), [list(cell.values()) for cell in cells]) if cells else ""
    told += "".join(f'<p class="note">{html.escape(note)}</p>' for note in sheet_notes(rows))
    others = not_measured(rows)
    if others:
        items = "".join(f"<li>{html.escape(other)}" for other in others)
        told += f"<details><summary>{unmeasured_words(len(others))}</summary><ul>{items}</ul></details>"
    return told


def _training_images(model: ModelNight) -> str:
    """Whether a model was scored on images that it was trained on, as far as that is known."""
    if not model.training_images:
        return ""
    kind = ' class="alarm"' if model.similar else ""
    return f"<p{kind}>{html.escape(model.model)}: {html.escape(model.training_images)}</p>"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return _wide("Table", f"<table><tr>{top}</tr>{body}</table>")


def _wide(label: str, inner: str) -> str:
    """What scrolls within itself where the screen is narrow, by keyboard too. inner: HTML."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{label}">{inner}</div>'


def _with_code(text: str) -> str:
    """HTML of a text with commands between backticks."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


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
    over = compared_names(read_record(output, evaluation_id) for evaluation_id in night.evaluations)
    for model in night.models:
        if model.failure or model.refused:
            lines.append(f"| {model.model} | {'failed' if model.failure else 'refused'} | | | |")
        for evaluation_id in model.evaluations:
            record = read_record(output, evaluation_id)
            of = evaluation_of(record)
            for stage in of.stages:
                f = record["figures"][stage]
                m = mean_iou_over(f, over)
                lines.append(
                    f"| {of.model} | {of.protocol}, {stage} | {100 * m['value']:.2f} | "
                    f"{100 * m['low']:.2f} to {100 * m['high']:.2f} | {100 * f['pixel_accuracy']['value']:.2f} |"
                )
    lines += ["", *(f"- {m.model}: {m.training_images}" for m in night.models if m.training_images)]
    if night.report:
        lines += ["", f"Report with pictures: `{night.report}`"]
    return "\n".join(lines) + "\n"


def worst_picture(output: Location, of: Evaluation, counts: Counts, dataset: str) -> bytes:
    """PNG of the images with the lowest share of right pixels in the last stage, `WORST` at most.

    counts: of that evaluation. dataset: URI of what it is on.
    """
    stage = of.stages[-1]
    worst = _worst_images(counts, stage, WORST)
    captions = {counts.ids[i]: f"{counts.ids[i]}: {100 * share:.1f} % of the pixels right" for i, share in worst}
    return _picture_of(output, dataset, of, captions, [(f"predicted {stage}", of, stage)])


def lost_picture(
    output: Location, night: Night, alarm: Alarm, dataset: str, *, jpeg: bool = False, num_shown: int = _LOST
) -> bytes | None:
    """The images that lost the most between baseline and now, for an alarm of kind "worse"; None for another one.

    dataset: URI of what the night was on. jpeg: a small JPEG instead of a PNG.
    """
    if alarm.kind != "worse":
        return None
    now, before = _both(output, night, alarm)
    first = alarm.differences[0]
    counts = (read_counts(output, before), read_counts(output, now))
    lost = _lost_images(*counts, first["stage"], first["label"], num_shown)
    if not lost:
        return None
    about = "pixels" if first["class"] is None else f"pixels of {first['class']}"
    captions = {counts[1].ids[i]: f"{counts[1].ids[i]}: {100 * change:+.1f} % right {about}" for i, change in lost}
    shown = [("baseline", before, first["stage"]), (f"now, {first['stage']}", now, first["stage"])]
    return _picture_of(output, dataset, now, captions, shown, jpeg=jpeg)


def _lost_images(
    before: Counts, after: Counts, stage: str, label: int | None, num_shown: int
) -> list[tuple[int, float]]:
    """The images that lost the most: index and change of the share of right pixels, worst first, only losses.

    label: of the class whose pixels are looked at, true or predicted; None for all.
    """

    def wrong(counts: Counts) -> Any:
        single = counts.of(stage)
        missed = single[..., 1] + single[..., 2] - 2 * single[..., 0]
        pixels = single[..., 1].sum(axis=-1).clip(min=1)
        return (missed[:, label] if label is not None else missed.sum(axis=-1) / 2) / pixels

    change = wrong(after) - wrong(before)
    order = change.argsort()[::-1][:num_shown]
    return [(int(i), -float(change[i])) for i in order if change[i] > 0]


def _worst_images(counts: Counts, stage: str, num_shown: int) -> list[tuple[int, float]]:
    """The images with the lowest share of right pixels: index and share, worst first."""
    share = evaluation.pixel_accuracy(counts.of(stage))
    order = share.argsort(kind="stable")[:num_shown]
    return [(int(i), float(share[i])) for i in order]


def _both(output: Location, night: Night, alarm: Alarm) -> tuple[Evaluation, Evaluation]:
    """What was evaluated tonight, and the baseline of it."""
    ids = next(model.evaluations for model in night.models if model.model == alarm.model)
    now = next(e for e in (evaluation_of(read_record(output, id)) for id in ids) if e.protocol == alarm.protocol)
    before = read_baseline(output, alarm.model)["evaluations"][alarm.protocol]
    return now, evaluation_of(read_record(output, before))


def _picture_of(
    output: Location,
    dataset: str,
    of: Evaluation,
    captions: dict[str, str],
    shown: list[tuple[str, Evaluation, str]],
    *,
    jpeg: bool = False,
) -> bytes:
    """Photograph, truth and predictions of some images of the dataset, in the order of the captions.

    captions: by identity. shown: what is told of each prediction, the evaluation and the stage that it is from.
    """
    predicted = [(told, read_masks(output, e, stage, list(captions))) for told, e, stage in shown]
    rows = _dataset_rows(storage.locate(dataset), of.split, set(captions))
    lines = []
    for image_id, caption in captions.items():
        image = decode(rows[image_id]["image"], _SHOWN_SIDE_PX).image
        maps = [("truth", masks.decode_mask(rows[image_id]["mask"]))]
        maps += [(told, masks.decode_mask(by_id[image_id])) for told, by_id in predicted]
        lines.append((caption, image, maps))
    return charts.image_sheet(lines, jpeg=jpeg)


def _dataset_rows(dataset: Location, split: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Rows of some images, reading the row groups that hold them and no others."""
    index = read_index(dataset, read_manifest(dataset).split(split)).to_pylist()
    found: dict[str, dict[str, Any]] = {}
    groups = {(row["path"], row["row_group"]) for row in index if row["id"] in ids}
    for path, number in sorted(groups):
        table = read_row_group(dataset, RowGroup(path, number, 0), ["id", "image", "mask"])
        for k, image_id in enumerate(table.column("id").to_pylist()):
            if image_id in ids:
                found[image_id] = {name: table.column(name)[k].as_py() for name in ("image", "mask")}
    return found
