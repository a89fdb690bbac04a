"""Pictures of single images of a night: the worst ones, and those that lost the most, with truth and predictions."""

from typing import Any

from segcore import charts, evaluation, masks
from segcore.images import decode
from tasks import storage
from tasks.datasets.shards import RowGroup, read_index, read_manifest, read_row_group
from tasks.evaluation.counts import Counts, read_counts, read_masks
from tasks.evaluation.evaluate import Evaluation
from tasks.evaluation.record import evaluation_of, read_record
from tasks.nights.baselines import read_baseline
from tasks.nights.record import Alarm, Night
from tasks.storage import Location

WORST = 20
"""Images on a picture of the worst ones at most."""

_LOST = 6
_SHOWN_SIDE_PX = 320


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
