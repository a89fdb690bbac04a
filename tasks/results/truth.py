"""True masks of the images of a gallery, from a folder of mask files or a prepared dataset.

Masks are matched with images by identity: the path without its ending, else the file's name alone where it is unique.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from segcore.images.masks import decode_mask
from tasks import storage
from tasks.errors import JobError
from tasks.parquet_files import read_parquet
from tasks.storage import Location

_MASK_ENDINGS = (".png", ".PNG")
_SUFFIX = re.compile(r"[-_.](mask|label|labels|gt)$", re.IGNORECASE)
"""What annotation tools put behind the name of the photograph."""


class Truth:
    """The true masks of some images. Reading is safe in several threads."""

    def __init__(self, place: str, ids: Sequence[str], classes: Mapping[int, str]) -> None:
        """place: folder of PNG masks whose values are labels, or a dataset. classes: names of the run's labels.

        Raises JobError where there is no such folder, where its classes are others, or where no image has a mask.
        """
        self._folder = storage.locate(place)
        self._files: dict[str, Location] = {}
        self._stored: dict[str, bytes] = {}
        with storage.explained(self._folder):
            paths = [file.path for file in storage.list_files(self._folder)]
            tables = [path for path in paths if path.endswith(".parquet")]
            if tables:
                self._require_classes(paths, classes)
                self._read_tables(tables, frozenset(ids))
            else:
                masks = _by_name(path for path in paths if path.endswith(_MASK_ENDINGS))
                for image_id in ids:
                    key, name = _keys(image_id)
                    found = masks.get(key) or masks.get(name)
                    if found:
                        self._files[image_id] = self._folder / found
        self.images = len(self._files) + len(self._stored)
        """Images that have a true mask."""
        if not self.images:
            raise JobError(
                f"{place} has a mask for none of the {len(ids)} images: masks are PNG files named as the images, or a "
                "prepared dataset with the same ids."
            )

    def read(self, image_id: str) -> np.ndarray | None:
        """(H, W) uint8 labels, 255 where nobody says; None where there is no mask, or it cannot be read."""
        try:
            if image_id in self._stored:
                return decode_mask(self._stored[image_id])
            if image_id in self._files:
                return decode_mask(storage.read_bytes(self._files[image_id]))
        except (OSError, ValueError):  # The gallery goes on without this one
            return None
        return None

    def _require_classes(self, paths: list[str], classes: Mapping[int, str]) -> None:
        """A prepared dataset says what its labels mean; a folder of masks does not."""
        if "manifest.json" not in paths:
            return
        named = dict(enumerate(json.loads(storage.read_bytes(self._folder / "manifest.json")).get("classes") or ()))
        for label, name in classes.items():
            if named and named.get(label) != name:
                raise JobError(
                    f"Label {label} is {name} in the run and {named.get(label, 'nothing')} in {self._folder.uri}: "
                    "give masks of the same classes."
                )

    def _read_tables(self, tables: Iterable[str], wanted: frozenset[str]) -> None:
        by_key = {key: image_id for image_id in wanted for key in _keys(image_id)}
        for path in tables:
            table = read_parquet(self._folder / path, "prepare the dataset again", ["id", "mask"])
            for row_id, mask in zip(table["id"].to_pylist(), table["mask"], strict=True):
                key, name = _keys(row_id)
                image_id = by_key.get(key) or by_key.get(name)
                if image_id is not None:
                    self._stored[image_id] = mask.as_py()


def _keys(path: str) -> tuple[str, str]:
    """Path without its ending, and name alone."""
    plain = PurePosixPath(unicodedata.normalize("NFC", path.rpartition("!/")[2]))
    stem = _SUFFIX.sub("", plain.stem)
    return str(plain.with_name(stem)), stem


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """Paths by both of their keys; a name alone only where one file has it."""
    found: dict[str, str] = {}
    named: dict[str, list[str]] = {}
    for path in paths:
        key, name = _keys(path)
        found[key] = path
        named.setdefault(name, []).append(path)
    return {name: paths[0] for name, paths in named.items() if len(paths) == 1} | found
