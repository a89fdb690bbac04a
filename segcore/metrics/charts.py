"""Pictures of an evaluation: bars by class, trimap curves, the confusion matrix, history, images with their masks.

PNG bytes out. Readable in grey and by the colour-blind: series differ in shape, hatching or dashes as well as colour
(Okabe and Ito's), and every axis has its unit. What is drawn was measured elsewhere.
"""

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segcore.images.masks import resize_labels
from segcore.metrics.evaluation import Figure
from segcore.voc import IGNORE_LABEL, palette

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "++")
_MOST_ERROR_BARS = 20  # Nights of a history that are drawn with bars rather than bands
_MARKERS = "osD^vP"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 2)))

_PANEL_HEIGHT_PX = 200
_CAPTION_HEIGHT_PX = 24
_GAP_PX = 6


def class_bars(
    series: Mapping[str, Mapping[str, tuple[Figure, int]]],
    title: str,
    paper: tuple[str, Mapping[str, float]] | None = None,
) -> bytes:
    """IoU of each class with its interval, one bar a series; a tick beside it for the paper's number.

    series: by name, figures by class name, 0 to 1, with the images that hold the class; NaN ends are no interval.
    paper: what its numbers are of, and percent by class name.
    """
    names = list(dict.fromkeys(name for figures in series.values() for name in figures))
    canvas = Canvas(figsize=(max(6.0, 0.62 * len(names) + 2), 4.6), layout="constrained")
    axis = canvas.subplots()
    width = 0.8 / len(series)
    for k, (label, figures) in enumerate(series.items()):
        at = np.array([names.index(name) for name in figures]) + (k - (len(series) - 1) / 2) * width
        values = 100 * np.array([f.value for f, _ in figures.values()])
        errors = 100 * np.array([[f.value - f.low, f.high - f.value] for f, _ in figures.values()]).T.reshape(2, -1)
        errors = np.maximum(errors, 0)  # NaN stays, and is not drawn
        axis.bar(
            at,
            values,
            width,
            yerr=errors,
            label=label,
            color=_COLOURS[k % 6],
            hatch=_HATCHES[k % 6],
            edgecolor="black",
            linewidth=0.6,
            error_kw={"elinewidth": 1.1, "capsize": 2.5},
        )
    if paper is not None:
        told, numbers = paper
        at_names = [name for name in names if name in numbers]
        axis.plot(
            [names.index(name) for name in at_names],
            [numbers[name] for name in at_names],
            linestyle="none",
            marker="_",
            markersize=16,
            markeredgewidth=2.5,
            color="#D55E00",
            label=f"paper, other images: {told}",
        )
    held = {name: images for figures in series.values() for name, (_, images) in figures.items()}
    axis.set_xticks(range(len(names)), [f"{name} ({held[name]})" for name in names], rotation=45, ha="right")
    axis.set(ylabel="IoU, %", ylim=(0, 100), title=title)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    canvas.legend(loc="outside lower center", ncols=3 if paper is None else 1, frameon=False)
    return _png(canvas)


def trimap_curves(curves: Mapping[str, Sequence[Figure]], title: str, measure: str) -> bytes:
    """A measure inside trimaps of 1 px, 2 px and so on, with its interval as a band, one curve a series."""
    canvas = Canvas(figsize=(6.4, 4.4), layout="constrained")
    axis = canvas.subplots()
    for k, (label, figures) in enumerate(curves.items()):
        widths = np.arange(1, len(figures) + 1)
        values, low, high = (100 * np.array([getattr(f, end) for f in figures]) for end in ("value", "low", "high"))
        axis.fill_between(widths, low, high, color=_COLOURS[k % 6], alpha=0.15, linewidth=0)
        axis.plot(
            widths,
            values,
            color=_COLOURS[k % 6],
            linestyle=_DASHES[k % 6],
            marker=_MARKERS[k % 6],
            markevery=5,
            markersize=5,
            label=label,
        )
    axis.set(xlabel="width of the trimap, px", ylabel=f"{measure}, %", title=title, xlim=(1, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    return _png(canvas)


def confusion_picture(confusion: NDArray[Any], names: Sequence[str], title: str) -> bytes:
    """What each class of the truth (rows) was taken for (columns), in percent of its pixels; classes without are out.

    confusion: (C, C), summed over images. The cells from 1 % on carry their number.
    """
    kept = np.flatnonzero((confusion.sum(axis=0) > 0) | (confusion.sum(axis=1) > 0))
    chosen = confusion[np.ix_(kept, kept)].astype(np.float64)
    totals = chosen.sum(axis=1, keepdims=True)
    shares = np.divide(100 * chosen, totals, out=np.zeros_like(chosen), where=totals > 0)
    side = max(4.5, 0.42 * len(kept) + 2)
    canvas = Canvas(figsize=(side + 1, side), layout="constrained")
    axis = canvas.subplots()
    drawn = axis.imshow(shares, cmap="Greys", vmin=0, vmax=100)
    for y, x in np.argwhere(shares >= 0.95):
        axis.text(
            x,
            y,
            f"{shares[y, x]:.0f}",
            ha="center",
            va="center",
            size=7,
            color="white" if shares[y, x] > 50 else "black",
        )
    labels = [names[int(c)] for c in kept]
    axis.set_xticks(range(len(kept)), labels, rotation=90)
    axis.set_yticks(range(len(kept)), labels)
    axis.set(xlabel="taken for", ylabel="class of the truth", title=title)
    canvas.colorbar(drawn, ax=axis, label="% of the pixels of the true class", shrink=0.8)
    return _png(canvas)


def history(series: Mapping[str, Sequence[tuple[datetime, Figure]]], title: str) -> bytes:
    """Mean IoU over time with its interval, one line a model."""
    canvas = Canvas(figsize=(9, 4.2), layout="constrained")
    axis = canvas.subplots()
    nights = sorted({time for points in series.values() for time, _ in points})
    for k, (label, points) in enumerate(series.items()):
        at = [nights.index(time) + 0.08 * (k - (len(series) - 1) / 2) for time, _ in points]
        low, values, high = 100 * np.array([(min(f.low, f.value), f.value, max(f.high, f.value)) for _, f in points]).T
        style: dict[str, Any] = {"label": label, "color": _COLOURS[k % 6], "linestyle": _DASHES[k % 6]}
        if len(nights) <= _MOST_ERROR_BARS:
            axis.errorbar(at, values, yerr=[values - low, high - values], marker=_MARKERS[k % 6], capsize=3, **style)
        else:  # Bars would run into one another
            axis.fill_between(at, low, high, color=_COLOURS[k % 6], alpha=0.2, linewidth=0)
            axis.plot(at, values, marker=_MARKERS[k % 6], markevery=(k * 4, max(1, len(nights) // 8)), **style)
    # A night is a step, however long ago the last one was; of many nights a dozen are named
    shown = range(0, len(nights), -(-len(nights) // 12))
    days = len({time.date() for time in nights}) == len(nights)
    told = [f"{nights[n]:%Y-%m-%d}" if days else f"{nights[n]:%Y-%m-%d %H:%M}" for n in shown]
    axis.set_xticks(list(shown), told, rotation=30, ha="right")
    axis.set(xlabel="night (UTC)", ylabel="mean IoU, %", title=title, xlim=(-0.5, len(nights) - 0.5))
    axis.grid(alpha=0.3)
    canvas.legend(loc="outside upper center", frameon=False, ncols=2)
    return _png(canvas)


def image_sheet(
    lines: Sequence[tuple[str, NDArray[np.uint8], Sequence[tuple[str, NDArray[np.uint8]]]]], *, jpeg: bool = False
) -> bytes:
    """One picture with a line per image: the photograph and label maps beside it, a caption above each line.

    lines: caption, photograph (H, W, 3) uint8 RGB, and label maps (H', W') uint8 with their titles; 255 is white.
    """
    colours = palette()
    colours[IGNORE_LABEL] = 255
    font = ImageFont.load_default(size=14)
    drawn = []
    for caption, photograph, maps in lines:
        height, wide = photograph.shape[:2]
        width = max(1, round(wide * _PANEL_HEIGHT_PX / height))
        panels = [("photograph", photograph)]
        panels += [(told, colours[resize_labels(labels, wide, height)]) for told, labels in maps]
        line = Image.new(
            "RGB", (len(panels) * (width + _GAP_PX), _PANEL_HEIGHT_PX + 2 * _CAPTION_HEIGHT_PX + _GAP_PX), "white"
        )
        draw = ImageDraw.Draw(line)
        draw.text((4, 4), caption, fill="black", font=font)
        for column, (told, pixels) in enumerate(panels):
            left = column * (width + _GAP_PX)
            scaled = Image.fromarray(pixels).resize((width, _PANEL_HEIGHT_PX), Image.Resampling.LANCZOS)
            line.paste(scaled, (left, _CAPTION_HEIGHT_PX))
            draw.rectangle(
                (left, _CAPTION_HEIGHT_PX, left + width - 1, _CAPTION_HEIGHT_PX + _PANEL_HEIGHT_PX - 1), outline="black"
            )
            draw.text((left + 4, _CAPTION_HEIGHT_PX + _PANEL_HEIGHT_PX + 2), told, fill="black", font=font)
        text_width = int(draw.textlength(caption, font=font)) + 8
        if text_width > line.width:
            wider = Image.new("RGB", (text_width, line.height), "white")
            wider.paste(line)
            ImageDraw.Draw(wider).text((4, 4), caption, fill="black", font=font)
            line = wider
        drawn.append(line)
    sheet = Image.new("RGB", (max(line.width for line in drawn), sum(line.height for line in drawn)), "white")
    top = 0
    for line in drawn:
        sheet.paste(line, (0, top))
        top += line.height
    buffer = io.BytesIO()
    if jpeg:
        sheet.save(buffer, format="JPEG", quality=80)
    else:
        sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _png(canvas: Canvas) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
