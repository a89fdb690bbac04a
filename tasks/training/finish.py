"""What comes out of a training: metrics, curves, the model, the report."""

import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from segcore import models
from segcore.datasets.seen_images import SEEN_FILE, SeenImages
from segcore.learning.recipes import TrainRecipe
from segcore.models import checkpoint
from segcore.models.card import ModelCard
from tasks import storage
from tasks.datasets.shards import looks_of
from tasks.models.remote import local_model
from tasks.parquet_files import read_parquet
from tasks.storage import Location
from tasks.training import checkpoints
from tasks.training.resolved import ResolvedTraining, read_record, write_record


class TrainReport(BaseModel, frozen=True):
    """What came of a training."""

    output: str
    """Where everything is."""

    model: str
    """URI of the model directory."""

    variant: str
    """Which network it is."""

    steps: int
    """Of the whole training."""

    steps_now: int
    """Of this session; 0 when it was finished before."""

    resumed_from: int
    """Step that this session began with."""

    seconds: float
    """Of this session."""

    images_per_s: float
    """Of this session, in steps; 0 where there was none."""

    device_busy: float
    """Share of the time of the steps that was not spent waiting for data, 0 to 1."""

    loss: float
    """Mean over the last steps, at most 100."""

    mean_iou: float | None
    """Of the last validation, 0 to 1, over the classes that its images hold: of a subset, no score of the split."""

    best_mean_iou: float | None
    """Of the best validation."""

    restarts: int
    """How often workers were started again in this session."""


def finish(resolved: ResolvedTraining) -> dict[str, Any]:
    """Write metrics, curves and model, then the record, which says that it is finished; returns the record."""
    output, recipe = resolved.output, resolved.recipe
    rows = _all_rows(output)
    table = pa.concat_tables(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_whole(output / "metrics.parquet", sink.getvalue().to_pybytes())
    storage.write_whole(output / "curves.png", draw_curves(table, recipe, resolved.manifest.classes))
    state = checkpoints.read_checkpoint(output, recipe.iterations)
    network = models.build(recipe.model, len(resolved.card.classes), **dict(recipe.options))
    network.load_state_dict(state["trainer"]["average"] or state["trainer"]["network"])
    found = _measured(table, resolved)
    job = resolved.job
    digest = resolved.manifest.split(job.split).digest
    notes = (
        f"Trained by {recipe.iterations} steps of {recipe.batch_size} images, seed {recipe.seed}; the recipe stands in "
        f"training.json beside the checkpoints. Data: {resolved.manifest.name}, split {job.split}, digest {digest}."
    )
    card = replace(
        resolved.card,
        metrics={f"{_validated_on(resolved)}/{name}": value for name, value in found.items()},
        notes=notes,
    )
    _save_model(output / "model", network, card, training_images(resolved))
    record = read_record(output) | {
        "status": "finished",
        "metrics": found,
        "mean_iou": next((v for v in reversed(table.column("mean_iou").to_pylist()) if v is not None), None),
        "loss": _last_loss(table),
        "best": state["progress"],
    }
    write_record(output, record)
    return record


def training_images(resolved: ResolvedTraining) -> SeenImages:
    """Digests of all images that the model saw: those of its split, and those of the model that it began with."""
    job = resolved.job
    _, looks = looks_of(storage.locate(job.dataset), resolved.manifest.split(job.split))
    seen = SeenImages.of(looks)
    if job.initial is not None:
        initial = local_model(job.initial)
        trained_on = checkpoint.describe(initial)[0].training_split
        before = checkpoint.seen_images(initial)
        if before is not None:
            seen |= before
        elif trained_on not in ("none", "imagenet"):
            seen |= SeenImages.none(trained_on)
    return seen


def _save_model(place: Location, network: Any, card: ModelCard, seen: SeenImages) -> None:
    """A model directory; in a bucket the card is put last."""
    if place.protocol == "file":
        checkpoint.save(place.path, network, card, seen=seen, replace=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "model", network, card, seen=seen)
        for name in (checkpoint.WEIGHTS_FILE, SEEN_FILE, checkpoint.CARD_FILE):
            storage.write_whole(place / name, (Path(folder) / "model" / name).read_bytes())


def _all_rows(output: Location) -> list[pa.Table]:
    """Rows of every step, once: parts that a killed session left beside those of a later one are of equal steps."""
    tables, seen = [], 0
    for file in storage.list_files(output / "metrics"):
        table = read_parquet(output / "metrics" / file.path, "remove it, and the curves go without its steps")
        steps = table.column("step").to_pylist()
        table = table.slice(sum(step < seen for step in steps))
        if table.num_rows:
            seen = steps[-1] + 1
            tables.append(table)
    return tables


def _measured(table: pa.Table, resolved: ResolvedTraining) -> dict[str, float]:
    validated = [row for row in table.select(["mean_iou", "iou"]).to_pylist() if row["mean_iou"] is not None]
    if not validated:
        return {}
    last = validated[-1]
    per_class = {
        f"iou_percent/{name}": 100 * value
        for name, value in zip(resolved.manifest.classes, last["iou"], strict=True)
        if value is not None
    }
    return {"miou_percent": 100 * last["mean_iou"], **per_class}


def _validated_on(resolved: ResolvedTraining) -> str:
    """Name of the images that validation saw: no subset passes for the split."""
    job = resolved.job
    name = f"{resolved.manifest.name}-{job.validation_split}"
    whole = job.validation_images >= resolved.manifest.split(job.validation_split).images
    return name if whole else f"{name}-first-{job.validation_images}"


def _last_loss(table: pa.Table) -> float:
    losses = table.column("loss").to_pylist()[-100:]
    return float(sum(losses) / len(losses))


def make_report(
    resolved: ResolvedTraining, record: dict[str, Any], *, start: int, seconds: float, restarts: int
) -> TrainReport:
    """The report of a finished training.

    record: as `finish` gave it. start: step that this session began with. seconds, restarts: of this session.
    """
    recipe, output = resolved.recipe, resolved.output
    table = read_parquet(output / "metrics.parquet", "bring it back from a copy, or train into another output")
    now = table.slice(start).select(["seconds", "seconds_data"]).to_pylist()
    spent = sum(row["seconds"] for row in now)
    best = record["best"]["best_mean_iou"]
    return TrainReport(
        output=resolved.job.output,
        model=(output / "model").uri,
        variant=recipe.model,
        steps=recipe.iterations,
        steps_now=recipe.iterations - start,
        resumed_from=start,
        seconds=seconds,
        images_per_s=len(now) * recipe.batch_size / spent if spent else 0.0,
        device_busy=1 - sum(row["seconds_data"] for row in now) / spent if spent else 0.0,
        loss=record["loss"],
        mean_iou=record["mean_iou"],
        best_mean_iou=best if best >= 0 else None,
        restarts=restarts,
    )


_SHOWN_CLASSES = 7


def draw_curves(metrics: pa.Table, recipe: TrainRecipe, classes: list[str]) -> bytes:
    """PNG of the rows of `metrics.parquet`: loss, learning rates, IoU of the validations."""
    from matplotlib.figure import Figure

    rows = metrics.to_pylist()
    steps = np.array([row["step"] for row in rows])
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(f"{recipe.model}: {len(rows)} steps of {recipe.batch_size} images")
    loss_axis, rate_axis, iou_axis = figure.subplots(1, 3)

    loss = np.array([row["loss"] for row in rows])
    window = max(1, len(rows) // 100)
    loss_axis.plot(steps, loss, color="lightsteelblue", linewidth=0.7, label="each step")
    if window > 1:
        smooth = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        loss_axis.plot(steps[window - 1 :], smooth, color="navy", label=f"mean of {window}")
    wide = loss.min() > 0 and loss.max() > 10 * loss.min()
    loss_axis.set(xlabel="step", ylabel="loss", yscale="log" if wide else "linear")
    loss_axis.legend()

    for label in dict(rows[0]["learning_rates"]):
        rate_axis.plot(steps, [dict(row["learning_rates"])[label] for row in rows], label=label)
    rate_axis.set(xlabel="step", ylabel="learning rate", yscale="log" if recipe.schedule.kind == "step" else "linear")
    rate_axis.legend()

    validated = [row for row in rows if row["mean_iou"] is not None]
    if validated:
        at = [row["step"] + 1 for row in validated]
        iou = np.array([row["iou"] for row in validated], dtype=np.float64) * 100  # (validations, C)
        held = np.flatnonzero(~np.isnan(iou[-1]))
        best = held[np.argsort(-iou[-1][held], kind="stable")][:_SHOWN_CLASSES]
        for label in best:
            iou_axis.plot(at, iou[:, label], marker=".", linewidth=0.8, label=classes[label])
        iou_axis.plot(at, [100 * row["mean_iou"] for row in validated], "k.-", linewidth=2, label="mean")
        iou_axis.legend(fontsize="small")
    else:
        iou_axis.text(0.5, 0.5, "no validation", ha="center", transform=iou_axis.transAxes)
    iou_axis.set(xlabel="step", ylabel="IoU, %", ylim=(0, 100))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()
