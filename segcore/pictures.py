"""Pictures for people: image, mask and overlay side by side."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segcore.images import resize_labels
from segcore.voc import palette

_PANEL_HEIGHT_PX = 240
_CAPTION_HEIGHT_PX = 26
_GAP_PX = 6


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Image (H, W, 3) uint8 RGB with each non-background label (H, W) uint8 laid over it in its palette colour."""
    colours = palette()[labels].astype(np.float32)
    share = np.where(labels[..., None] > 0, opacity, 0.0).astype(np.float32)
    blended: np.ndarray = np.rint(image * (1 - share) + colours * share)
    return blended.astype(np.uint8)


def side_by_side(rows: list[tuple[np.ndarray, np.ndarray, str]]) -> Image.Image:
    """One picture with a line per image: the photograph, its mask, both together, and a caption.

    rows: image (H, W, 3) uint8 RGB, labels (H', W') uint8 (scaled to the image by nearest), caption.
    """
    font = ImageFont.load_default(size=15)
    lines = []
    for image, labels, caption in rows:
        labels = resize_labels(labels, image.shape[1], image.shape[0])
        panels = (image, palette()[labels], overlay(image, labels))
        width = max(1, round(image.shape[1] * _PANEL_HEIGHT_PX / image.shape[0]))
        line = Image.new("RGB", (3 * width + 2 * _GAP_PX, _PANEL_HEIGHT_PX + _CAPTION_HEIGHT_PX), "white")
        for column, panel in enumerate(panels):
            scaled = Image.fromarray(panel).resize((width, _PANEL_HEIGHT_PX), Image.Resampling.LANCZOS)
            line.paste(scaled, (column * (width + _GAP_PX), 0))
        ImageDraw.Draw(line).text((4, _PANEL_HEIGHT_PX + 4), caption, fill="black", font=font)
        lines.append(line)
    sheet = Image.new("RGB", (max(line.width for line in lines), sum(line.height + _GAP_PX for line in lines)), "white")
    y = 0
    for line in lines:
        sheet.paste(line, (0, y))
        y += line.height + _GAP_PX
    return sheet
