"""The README's picture, by the default model: `python -m benchmarks.readme_picture`, after a change of its weights.

Photographs of `examples/` above, with their masks below; every cell is cut to one shape.
"""

from pathlib import Path

from PIL import Image, ImageOps

import segcore
from benchmarks.photographs import EXAMPLES
from tasks.segmentation.archive_job import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
CENTRES = {
    "cat.jpg": (0.4, 0.5),
    "cars.jpg": (0.6, 1.0),
    "aeroplane.jpg": (0.5, 0.5),
    "astronaut.jpg": (0.5, 0.0),
    "dog.jpg": (0.5, 0.2),
    "horse.jpg": (0.4, 0.5),
}
"""Where each photograph is cut from, as shares of what is cut off: left and above."""

CELL_PX = (270, 270)
GAP_PX = 6


def main() -> None:
    model = segcore.load(DEFAULT_MODEL)
    width, height = CELL_PX
    size = (len(CENTRES) * (width + GAP_PX) - GAP_PX, 2 * height + GAP_PX)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for column, (name, centre) in enumerate(CENTRES.items()):
        result = model.segment(EXAMPLES / name)
        for row, cell in enumerate((result.overlay(0), result.overlay())):
            fitted = ImageOps.fit(Image.fromarray(cell), CELL_PX, Image.Resampling.LANCZOS, centering=centre)
            sheet.paste(fitted, (column * (width + GAP_PX), row * (height + GAP_PX)))
    target = ROOT / "docs" / "example.jpg"
    sheet.save(target, quality=86, optimize=True)
    print(f"{target.relative_to(ROOT)}: {', '.join(CENTRES)}, by {DEFAULT_MODEL}")


if __name__ == "__main__":
    main()
