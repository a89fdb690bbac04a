"""Whether the images of a split are images that a model was trained on: by name, by digest, by looks.

OUTPUT/images/<digest of the split>-<version of the hash>.parquet    digests of the images of a split, made once
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segcore.datasets import near_duplicates
from segcore.datasets.seen_images import Looks
from segcore.models import checkpoint
from segcore.models.card import ModelCard, plain_name, trained_splits
from tasks import storage
from tasks.datasets.shards import DatasetManifest, Split, looks_of
from tasks.errors import JobError
from tasks.models.remote import local_model
from tasks.parquet_files import read_parquet, write_parquet
from tasks.storage import Location

_EXAMPLES = 5


class RefusedError(JobError):
    """The model must not be scored on these images, since it learnt them by heart."""


@dataclass(frozen=True)
class Unseen:
    """What is known of the images of a split as training images of a model that is not refused."""

    sentence: str
    """For a person."""

    certain: bool = False
    """Whether none of the images was seen, not even in another size or mirrored, as far as digests tell."""

    similar: int = 0
    """Images that look like a training image, mirrored ones among them."""

    mirrored: int = 0
    """Images that look like the mirror image of one."""


def require_unseen(uri: str, manifest: DatasetManifest, split: str, dataset: Location, output: Location) -> Unseen:
    """Compare the images of a split with those that a model was trained on.

    uri: of the model. manifest, dataset: what the split is of, and where. output: of the evaluation.
    Raises RefusedError where images of the split were training images: by the names in the card, or because a file is
    the same.
    """
    try:
        card = checkpoint.describe(local_model(uri))[0]
        seen = checkpoint.seen_images(local_model(uri))
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    refuse_by_name(card, manifest, split)
    if seen is None and (card.untrained or card.training_split == "none"):
        return Unseen(f"{card.shown_name} was trained on no images.", certain=True)
    scored = f"{manifest.name}-{split}"
    if seen is None:
        return Unseen(
            f"That {card.shown_name} was trained on images of {scored} cannot be excluded: it has no digests of its "
            f"training images. Its card says that it was trained on: {card.training_split}."
        )
    ids, looks = _looks(dataset, manifest.split(split), output)
    overlap = seen.overlap(looks)
    if overlap.copies:
        names = [ids[k] for k in overlap.copies]
        raise RefusedError(
            f"{card.shown_name} was trained on {len(names)} of the {len(ids)} images of {scored}, the very files: "
            f"{_some(names)}; a score there would say nothing."
        )
    before = f" That it saw others of them before cannot be excluded: {seen.unknown}." if seen.unknown else ""
    similar = sorted(overlap.similar + overlap.mirrored)
    if similar:
        names = [f"{ids[k]} (mirrored)" if k in set(overlap.mirrored) else ids[k] for k in similar]
        return Unseen(
            f"{len(similar)} of the {len(ids)} images of {scored} look like training images of {card.shown_name}, "
            f"{len(overlap.mirrored)} of them mirrored: {_some(names)}. Look at them: if they are the same "
            f"photographs, the score is too high.{before}",
            similar=len(similar),
            mirrored=len(overlap.mirrored),
        )
    return Unseen(
        f"None of the {len(ids)} images of {scored} is one of the {len(seen.digests):,} training images of "
        f"{card.shown_name}, nor looks like one, as it is or mirrored.{before}",
        certain=not seen.unknown,
    )


def refuse_by_name(card: ModelCard, manifest: DatasetManifest, split: str) -> None:
    """Raise RefusedError, with the line of the card, where it says that a model was trained on images of this split."""
    line = f'its card says "training_split": "{card.training_split}"'
    try:
        card.check_scoring_on(f"{manifest.name}-{split}")
    except ValueError as error:
        raise RefusedError(f"{str(error).rstrip('.')} ({line}).") from None
    scored = {file.path for file in manifest.splits[split].files}
    for name, other in manifest.splits.items():
        if plain_name(f"{manifest.name}-{name}") not in trained_splits(card.training_split):
            continue
        if scored & {file.path for file in other.files}:
            raise RefusedError(
                f"{card.shown_name} was trained on {card.training_split}, which shares images with "
                f"{manifest.name}-{split} ({line}); a score there would say nothing."
            )


def seen_digest(uri: str) -> str:
    """Digest of the list of a model's training images: another list is another night. "" where there is none."""
    try:
        seen = checkpoint.seen_images(local_model(uri))
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from None
    return "" if seen is None else hashlib.sha256(seen.to_bytes()).hexdigest()


def _looks(dataset: Location, split: Split, output: Location) -> tuple[list[str], Looks]:
    """Digests of the images of a split: from where an earlier evaluation left them, or from the shards."""
    place = output / "images" / f"{split.digest[:16]}-{near_duplicates.VERSION}.parquet"
    with storage.explained(place):
        if storage.exists(place):
            table = read_parquet(place, "remove it and evaluate again")
            return table.column("id").to_pylist(), Looks(
                table.column("file").to_numpy().astype(np.uint64), table.column("looks").to_numpy().astype(np.uint64)
            )
    ids, looks = looks_of(dataset, split)
    write_parquet(place, pa.table({"id": ids, "file": looks.digests, "looks": looks.fingerprints}))
    return ids, looks


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more
