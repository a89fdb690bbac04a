"""One picture of a run for a person: photographs, masks and both together, read back from its rows."""

import io
import itertools

import numpy as np

from segcore.images import ImageError, decode
from segcore.masks import decode_mask
from segcore.pictures import side_by_side
from tasks import storage
from tasks.archive.output import Output
from tasks.results.reading import Results
from tasks.storage import Location, locate

_SHOWN_SIDE_PX = 640


def contact_sheet(output: str, run_id: str, place: Location, num_images: int = 6) -> int:
    """Write a PNG with the first masks of a run beside their photographs, which must still be there.

    Returns how many images it shows; writes nothing where that is none.
    """
    shown: list[tuple[np.ndarray, np.ndarray, str]] = []
    columns = ["image_id", "uri", "mask", "classes", "model", "mask_width", "mask_height"]
    for file in Output.at(output).files(run_id):
        for row in itertools.chain.from_iterable(table.to_pylist() for table in Results.read_file(file, columns)):
            if row["mask"] is None or "!/" in row["uri"]:
                continue
            try:
                photograph = decode(storage.read_bytes(locate(row["uri"])), _SHOWN_SIDE_PX)
            except (OSError, ImageError):
                continue
            area = row["mask_width"] * row["mask_height"]
            found = ", ".join(f"{c['name']} {c['pixels'] / area:.0%}" for c in row["classes"][:3])
            caption = f"{row['image_id']}: {found}   [{row['model']}]"
            shown.append((photograph.image, decode_mask(row["mask"]), caption))
            if len(shown) == num_images:
                break
        if len(shown) == num_images:
            break
    if shown:
        buffer = io.BytesIO()
        side_by_side(shown).save(buffer, format="PNG")
        storage.write_whole(place, buffer.getvalue())
    return len(shown)
