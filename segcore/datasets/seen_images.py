"""Digests of the images that a model was trained on, beside its card, and whether it is scored on one of them.

Eight bytes an image for the file, eight for what it looks like: 170 KB for the 10,582 images of VOC's `train_aug`. The
images themselves cannot be told from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from segcore.datasets import near_duplicates
from segcore.datasets.near_duplicates import LOOK_SIDE_PX, close_pairs, fingerprint
from segcore.images.decoding import decode
from segcore.images.errors import ImageError

SEEN_FILE: Final = "training_images.safetensors"
"""Name of the file beside a card."""

MAX_BYTES: Final = 1 << 30
"""A larger file is refused: it would be of 67 million images."""

_FORMAT = "segment-archive training images 1"


@dataclass(frozen=True)
class Looks:
    """Digests of images, in the order of the images."""

    digests: NDArray[np.uint64]
    """(n,): the first eight bytes of the SHA-256 of each file."""

    fingerprints: NDArray[np.uint64]
    """(n,): `near_duplicates.fingerprint` of each; 0 where it has none."""


def look_at(files: Iterable[bytes]) -> Looks:
    """Digests of image files; one that does not decode has no fingerprint."""
    digests, fingerprints = [], []
    for data in files:
        digests.append(int.from_bytes(hashlib.sha256(data).digest()[:8], "big"))
        try:
            fingerprints.append(fingerprint(decode(data, LOOK_SIDE_PX).image) or 0)
        except ImageError:
            fingerprints.append(0)
    return Looks(np.array(digests, np.uint64), np.array(fingerprints, np.uint64))


@dataclass(frozen=True)
class Overlap:
    """Images that are among the training images of a model, by position."""

    copies: list[int]
    """The same file, byte by byte."""

    similar: list[int]
    """Another file that looks the same: saved again, in another size."""

    mirrored: list[int]
    """Another file that looks like the mirror image."""


@dataclass(frozen=True)
class SeenImages:
    """The training images of a model, sorted so that their order says nothing."""

    digests: NDArray[np.uint64]
    """(n,) ascending, each once."""

    fingerprints: NDArray[np.uint64]
    """(m,) ascending, each once; flat images have none."""

    unknown: str = ""
    """What the model saw before and nobody has digests of, such as "coco"; empty where these are all images."""

    @classmethod
    def of(cls, looks: Looks, unknown: str = "") -> SeenImages:
        """Of what was looked at."""
        return cls(np.unique(looks.digests), np.unique(looks.fingerprints[looks.fingerprints > 0]), unknown)

    @classmethod
    def none(cls, unknown: str = "") -> SeenImages:
        """Of no image that has a digest."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint64), unknown)

    def __or__(self, other: SeenImages) -> SeenImages:
        """What both saw: a training that went on from another model."""
        return SeenImages(
            np.union1d(self.digests, other.digests),
            np.union1d(self.fingerprints, other.fingerprints),
            ", ".join(dict.fromkeys(told for told in (self.unknown, other.unknown) if told)),
        )

    def overlap(self, looks: Looks) -> Overlap:
        """Which of some images were among the training images, each named once."""
        copies = np.flatnonzero(np.isin(looks.digests, self.digests))
        others = np.setdiff1d(np.flatnonzero(looks.fingerprints > 0), copies)
        ways: dict[int, bool] = {}
        for pair in close_pairs(looks.fingerprints[others], self.fingerprints):
            position = int(others[pair.first])
            ways[position] = ways.get(position, True) and pair.mirrored
        return Overlap(
            [int(k) for k in copies],
            [k for k, mirrored in ways.items() if not mirrored],
            [k for k, mirrored in ways.items() if mirrored],
        )

    def to_bytes(self) -> bytes:
        """As a file. The same images give the same bytes."""
        told = {"format": _FORMAT, "fingerprint": str(near_duplicates.VERSION), "unknown": self.unknown}
        # One entry: the order of several would differ from one writing to the next
        about = {"about": json.dumps(told, sort_keys=True)}
        return bytes(save({"digests": self.digests, "fingerprints": self.fingerprints}, metadata=about))

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "The file") -> SeenImages:
        """Read a file strictly. ValueError naming `where` for anything else."""
        wrong = ValueError(f"{where} is no list of training images: bring it anew, or remove it.")
        if len(content) > MAX_BYTES:
            raise wrong
        try:
            told, arrays = _metadata(content), load(content)
            digests, fingerprints = arrays["digests"], arrays["fingerprints"]
        except Exception:  # Its own kind, KeyError, or whatever JSON trips over
            raise wrong from None
        sound = all(a.dtype == np.uint64 and a.ndim == 1 and (np.diff(a) > 0).all() for a in (digests, fingerprints))
        if not sound or told["format"] != _FORMAT or len(told["unknown"]) > 500:
            raise wrong
        unknown = told["unknown"]
        if told["fingerprint"] != str(near_duplicates.VERSION):
            fingerprints = fingerprints[:0]  # Another hash compares with nothing of today
            unknown = ", ".join(filter(None, [unknown, "saved-again copies, whose hashes are of another version"]))
        return cls(digests, fingerprints, unknown if unknown.isprintable() else repr(unknown))


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    told = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"])
    return {name: str(told[name]) for name in ("format", "fingerprint", "unknown")}
