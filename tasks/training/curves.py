"""One picture of a training: loss, learning rates, IoU of the validations."""

import io

import numpy as np
import pyarrow as pa

from segcore.recipes import TrainRecipe

_SHOWN_CLASSES = 7


def draw(metrics: pa.Table, recipe: TrainRecipe, classes: list[str]) -> bytes:
    """PNG of the rows of `metrics.parquet`."""
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
