"""A submission to the VOC test server: the masks of an archive under the names, sizes and palette that it takes.

DESTINATION/results/VOC2012/Segmentation/comp6_test_cls/<id>.png
DESTINATION/comp6_test_cls.tar.gz    packed from the folder that holds results/; written last
"""

import contextlib
import gzip
import io
import tarfile

import numpy as np
from PIL import Image

from segcore.images.masks import decode_mask, encode_mask, resize_labels
from segcore.models.published import VOC_IMAGES
from segcore.voc import CLASSES, palette
from tasks import storage
from tasks.archive.output import Output
from tasks.errors import JobError
from tasks.results.reading import open_results
from tasks.storage import Location

_NAMED_AT_MOST = 5


def write_submission(archive: str, ids: str, destination: str, *, comp: int = 6, run_id: str | None = None) -> str:
    """Write, check and pack the masks of the listed images; returns what was done, in one sentence.

    archive: output of an archive job. ids: text file with one image identity a line. comp: 5 or 6, the competition.
    Raises JobError that names the culprits: images without a mask, sizes, palettes or labels that the server refuses.
    """
    if comp not in (5, 6):
        raise JobError(f"There is no competition {comp} of segmentation: 5 is VOC's data alone, 6 any other data too.")
    wanted = _read_ids(storage.locate(ids))
    found = _masks(storage.locate(archive), set(wanted), run_id)
    if missing := [name for name in wanted if name not in found]:
        raise JobError(
            f"{archive} has no mask of {len(missing)} of the {len(wanted)} images of {ids}: {_some(missing)}. Run the "
            "archive on the test images first."
        )
    name = f"comp{comp}_test_cls"
    folder = f"results/VOC2012/Segmentation/{name}"
    place = storage.locate(destination)
    storage.require_writable(place)
    packed = io.BytesIO()
    # Without times and names of users, so that the same masks give the same bytes
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for image_id in wanted:
            data = found[image_id]
            path = f"{folder}/{image_id}.png"
            storage.write_whole(place / path, data)
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    written = {file.path for file in storage.list_files(place / folder)}
    if strangers := sorted(written - {f"{image_id}.png" for image_id in wanted}):
        raise JobError(f"{(place / folder).uri} holds files of other images: {_some(strangers)}. Remove them.")
    storage.write_whole(place / f"{name}.tar.gz", packed.getvalue())
    return f"{len(wanted)} masks, checked, in {(place / f'{name}.tar.gz').uri} and {(place / folder).uri}/"


def doubts_about(ids: str) -> list[str]:
    """Why a list does not look like the test set of VOC 2012, as sentences for a person; empty for the test set.

    ids: as of `write_submission`. Lists of other splits are looked for in the folder of the list.
    """
    place = storage.locate(ids)
    wanted = set(_read_ids(place))
    doubts = []
    folder = storage.locate(place.uri.rpartition("/")[0] or ".")
    for split in ("train", "val", "trainval", "train_aug", "trainval_aug"):
        with contextlib.suppress(OSError, ValueError):  # No such list, or one that is none: nothing to say
            both = sorted(wanted & set(_read_ids(folder / f"{split}.txt")))
            if both:
                doubts.append(f"{len(both)} of the {len(wanted)} images are of {split}.txt beside it: {_some(both)}.")
    old = sorted(name for name in wanted if name.startswith("2007_"))
    if old and not doubts:  # Their masks were published with VOC 2007, so none of them is in a later test set
        doubts.append(f"{len(old)} images are of 2007, which VOC 2012 has in train and val alone: {_some(old)}.")
    if len(wanted) != VOC_IMAGES["test"]:
        doubts.append(f"It lists {len(wanted)} images, the test set of VOC 2012 has {VOC_IMAGES['test']}.")
    return doubts


def check_mask(image_id: str, data: bytes, width: int, height: int) -> None:
    """Raise JobError where the server would not take a mask.

    width, height: of the photograph, px.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.format != "PNG" or image.mode != "P":
            raise JobError(f"The mask of {image_id} is {image.format} {image.mode}, not a palette PNG.")
        if image.size != (width, height):
            raise JobError(
                f"The mask of {image_id} has {image.width} x {image.height} px, its photograph {width} x {height}."
            )
        colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
        labels = np.array(image)
    if labels.max() >= len(CLASSES):
        raise JobError(f"The mask of {image_id} has label {labels.max()}; VOC has 0 to {len(CLASSES) - 1}.")
    if not np.array_equal(colours[: len(CLASSES)], palette()[: len(CLASSES)]):
        raise JobError(f"The mask of {image_id} has another palette than VOC's.")


def _read_ids(place: Location) -> list[str]:
    with storage.explained(place):
        text = storage.read_bytes(place).decode(errors="replace")
    ids = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not ids:
        raise JobError(f"{place.uri} lists no images.")
    if bad := [name for name in ids if "/" in name or "\\" in name or name.startswith(".")]:
        raise JobError(f"{place.uri} is no list of images: {_some(bad)}.")
    if len(set(ids)) != len(ids):
        raise JobError(f"{place.uri} lists {_some(sorted(name for name in set(ids) if ids.count(name) > 1))} twice.")
    return ids


def _masks(archive: Location, wanted: set[str], run_id: str | None) -> dict[str, bytes]:
    """Checked masks of the wanted images, palette PNG by identity without its ending."""
    with storage.explained(archive):
        records = Output(archive).records()
    if not records:
        raise JobError(f"{archive.uri} holds no masks: is it the output of `segment-archive run`?")
    if run_id is None and len(records) > 1:
        told = _some([record["run_id"] for record in records])
        raise JobError(f"{archive.uri} holds {len(records)} runs, {told}: name one with --run.")
    results = open_results(archive.uri, run_id or records[0]["run_id"])
    found: dict[str, bytes] = {}
    for table in results.tables(["image_id", "mask", "width", "height"]):
        rows = table.to_pylist()
        for row in rows:
            image_id = row["image_id"].rpartition("/")[2].rpartition(".")[0] or row["image_id"]
            if image_id not in wanted or row["mask"] is None:
                continue
            if image_id in found:
                raise JobError(f"Run {results.run_id} holds {image_id} twice: archive the test images alone.")
            found[image_id] = _own_size(row["mask"], row["width"], row["height"])
            check_mask(image_id, found[image_id], row["width"], row["height"])
    return found


def _own_size(mask: bytes, width: int, height: int) -> bytes:
    """The mask at the size of its photograph: archives may hold them at the size that they were scored at."""
    labels = decode_mask(mask)
    return mask if labels.shape == (height, width) else encode_mask(resize_labels(labels, width, height))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more
