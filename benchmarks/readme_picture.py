"""The README's picture, by the default model: `python -m benchmarks.readme_picture`, after a change of its weights.

One row for each photograph: as it is, its mask, both together; every cell is cut to 4:3 from the top.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import segcore
from segcore.images import pictures
from tasks.segmentation.archive_job import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("astronaut.jpg", "cat.jpg")
CELL_PX = (400, 300)
GAP_PX = 8


def main() -> None:
    model = segcore.load(DEFAULT_MODEL)
    width, height = CELL_PX
    sheet = Image.new("RGB", (3 * width + 2 * GAP_PX, len(NAMES) * (height + GAP_PX) - GAP_PX), (128, 128, 128))
    for row, name in enumerate(NAMES):
        result = model.segment(ROOT / "examples" / "photographs" / name)
        black = np.zeros_like(result.overlay())
        cells = (result.overlay(0), pictures.overlay(black, result.labels, 1), result.overlay())
        for column, cell in enumerate(cells):
            fitted = ImageOps.fit(Image.fromarray(cell), CELL_PX, Image.Resampling.LANCZOS, centering=(0.5, 0))
            sheet.paste(fitted, (column * (width + GAP_PX), row * (height + GAP_PX)))
    target = ROOT / "docs" / "example.jpg"
    sheet.save(target, quality=88, optimize=True)
    print(f"{target.relative_to(ROOT)}: {', '.join(NAMES)}, by {DEFAULT_MODEL}")


if __name__ == "__main__":
    main()
