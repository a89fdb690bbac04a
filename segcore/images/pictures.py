"""Pictures for people: image, mask and overlay side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segcore.images.masks import resize_labels
from segcore.voc import palette

_PANEL_HEIGHT_PX = 240
_CAPTION_HEIGHT_PX = 26
_GAP_PX = 6
_CELL_PX = (320, 240)
_SHEET_COLUMNS = 3


CLEAR_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""RGB of Okabe and Ito, "Color Universal Design" (2008): told apart with every common form of colour blindness, and
seen on dark photographs as well as on light ones."""


Colours = Sequence[Sequence[int]]
"""RGB by label; empty: those of `clear_palette`."""


def clear_palette(num_colours: int = 256, own: Colours = ()) -> np.ndarray:
    """Colour of each label for pictures that people look at; masks are stored with VOC's (`segcore.voc.palette`).

    num_colours: 256, or more where labels have 16 bits: there 255 is no void. own: of the first labels, where a model's
        card has them.
    Returns (num_colours, 3) uint8, RGB: black for label 0, then `CLEAR_COLOURS` by label, darker and lighter ones when
    they are used up, in another order each time; (224, 224, 192) for void.
    """
    colours = palette(num_colours)
    for label in range(1, num_colours if num_colours > 256 else 255):
        turn, place = divmod(label - 1, len(CLEAR_COLOURS))
        colour = np.array(CLEAR_COLOURS[(place + 3 * turn) % len(CLEAR_COLOURS)], np.float32)
        towards, share = ((0, 0.0), (0, 0.3), (255, 0.4))[turn % 3]
        colours[label] = np.rint(colour * (1 - share) + towards * share).astype(np.uint8)
    if len(own):
        colours[: len(own)] = own
    return colours


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55, own: Colours = ()) -> np.ndarray:
    """Image (H, W, 3) uint8 RGB with each non-background label (H, W) laid over it in its clear colour, or its own."""
    colours = clear_palette(max(256, len(own), int(labels.max(initial=0)) + 1), own)[labels].astype(np.float32)
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
        panels = (image, clear_palette()[labels], overlay(image, labels))
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


def contact_sheet(cells: list[tuple[np.ndarray, np.ndarray, str]], own: Colours = ()) -> Image.Image:
    """One picture with an overlay and a caption per image, three in a line.

    cells: as the rows of `side_by_side`; at least one. own: as in `overlay`.
    """
    font = ImageFont.load_default(size=14)
    width, height = _CELL_PX
    columns = min(_SHEET_COLUMNS, len(cells))
    step_x, step_y = width + 2 * _GAP_PX, height + _CAPTION_HEIGHT_PX + 2 * _GAP_PX
    size = (columns * step_x + 2 * _GAP_PX, -(-len(cells) // columns) * step_y + 2 * _GAP_PX)
    sheet = Image.new("RGB", size, (24, 24, 23))
    draw = ImageDraw.Draw(sheet)
    for number, (image, labels, caption) in enumerate(cells):
        x, y = (number % columns) * step_x + 2 * _GAP_PX, (number // columns) * step_y + 2 * _GAP_PX
        scale = min(width / image.shape[1], height / image.shape[0])
        shown = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        picture = overlay(image, resize_labels(labels, image.shape[1], image.shape[0]), own=own)
        scaled = Image.fromarray(picture).resize(shown, Image.Resampling.LANCZOS)
        sheet.paste(scaled, (x + (width - shown[0]) // 2, y + (height - shown[1]) // 2))
        while font.getlength(caption) > width and len(caption) > 4:
            caption = f"{caption[:-4]}..."
        draw.text((x, y + height + 4), caption, fill=(236, 235, 231), font=font)
    return sheet
