"""Hostile files of models, datasets and results, each read as its owner reads it."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from segcore.annotations import yolo
from segcore.datasets.class_lists import decode_text
from segcore.datasets.label_set import classes_named
from segcore.datasets.sbd import decode_annotation
from segcore.images.errors import ImageError
from segcore.images.masks import decode_mask
from segcore.models import checkpoint
from segcore.voc import IGNORE_LABEL
from segcore.weights.importer import import_weights
from tasks.archive.entry_bytes import read_entries
from tasks.archive.output import MaskFile, Output
from tasks.archive.sources import Source, list_source
from tasks.datasets import drawings, shards
from tasks.datasets.unpack import unpack
from tasks.errors import JobError
from tasks.results.reading import Results
from tasks.storage import list_files, locate
from tests.hostile.file_bombs import MARK, bombs
from tests.hostile.mutants import mutant
from tests.hostile.sound_files import CLASSES, FOLDER, VARIANT, originals

BOMB_SHARE = 0.2
MAX_SENTENCE = 21_000
"""Characters; the longest names all tensors of a network."""


def make(number: int, seed: int) -> tuple[str, tuple[str, bytes]]:
    """Kind and content of a hostile file."""
    draw = random.Random(f"file {seed} {number}")
    by_kind = originals()
    kind = list(by_kind)[number % len(by_kind)]
    if draw.random() < BOMB_SHARE:
        return kind, (kind, draw.choice(bombs()[kind])())
    every = [data for group in by_kind.values() for data in group]
    own = by_kind[kind]
    return kind, (kind, mutant(draw, draw.choice(own), own if draw.random() < 0.8 else every))


def prepare() -> None:
    """Import and make everything once; sound files are read."""
    bombs()
    for kind, group in originals().items():
        for data in group:
            told = read((kind, data))
            assert told in ("read", "error rows"), told


def read(file: tuple[str, bytes]) -> str:
    """Read a file as its owner does; what came of it, or the fault."""
    kind, data = file
    name, reader = _READERS[kind]
    place = FOLDER / "read" / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    try:
        told = reader(place)
    except (JobError, ValueError) as error:
        said = str(error)
        told = "refused"
        if type(error) not in (JobError, ValueError):
            told = f"FAULT: {type(error).__name__}: {said[:200]}"
        elif "\n" in said or not said.isprintable() or len(said) > MAX_SENTENCE:
            told = f"FAULT: no sentence of one line: {said[:200]!r}"
        elif str(place.parent) not in said:
            told = f"FAULT: the file is not named: {said[:200]}"
    if MARK.exists():
        MARK.unlink()
        return "FAULT: something of the file was executed"
    return told


def _read_weights(place: Path) -> str:
    import_weights(place, VARIANT, classes=CLASSES, as_init=False)
    return "read"


def _read_model(place: Path) -> str:
    if place.name == "card.json":
        (place.parent / "model.safetensors").write_bytes(originals()["safetensors"][0])
        place = place.parent / "model.safetensors"
    else:
        (place.parent / "card.json").write_bytes(originals()["model card"][0])
    loaded = checkpoint.load(place)
    assert all(bool(torch.isfinite(value).all()) for value in loaded.module.state_dict().values())
    return "read"


def _read_annotation(place: Path) -> str:
    with naming(place):
        labels = decode_annotation(place.read_bytes())
    return "read" if labels.dtype == np.uint8 and labels.max() < 21 else f"FAULT: labels up to {labels.max()}"


def _read_source(place: Path) -> str:
    location = locate(str(place))
    entries = list(list_source(Source(location)))
    pa.array([entry.size for entry in entries], pa.int64())  # As the manifest stores them
    pa.array([entry.image_id for entry in entries], pa.string())
    if len({entry.image_id for entry in entries}) != len(entries):
        return "FAULT: an identity twice"
    outcomes = list(read_entries(location, entries))
    if len(outcomes) != len(entries):
        return f"FAULT: {len(entries)} entries, {len(outcomes)} outcomes"
    if not all(
        isinstance(outcome, bytes) or (isinstance(outcome, ImageError) and str(outcome)) for _, outcome in outcomes
    ):
        return "FAULT: an outcome that is neither bytes nor a reason"
    wrong = any(isinstance(outcome, ImageError) for _, outcome in outcomes) or not entries
    return "error rows" if wrong else "read"


def _read_archive(place: Path) -> str:
    target = FOLDER / "unpacked"
    before = {file for file in FOLDER.rglob("*") if target not in file.parents}
    try:
        unpack(place, target, lambda name: name if name.startswith("JPEGImages/") else None, key="k", title="t")
        return "read"
    finally:
        outside = {file for file in FOLDER.rglob("*") if target not in file.parents and file != target} - before
        links = [file for file in target.rglob("*") if file.is_symlink() or not (file.is_file() or file.is_dir())]
        for file in sorted(target.rglob("*"), reverse=True):
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            else:
                file.unlink()
        assert not outside and not links, f"unpacked elsewhere: {outside}, {links}"


def _read_shard(place: Path) -> str:
    root = locate(str(place.parent))
    split = shards.DatasetManifest.model_validate_json(originals()["dataset manifest"][0]).splits["train"]
    file = split.files[0].model_copy(update={"path": place.name})
    own = split.model_copy(update={"files": [file]})
    shards.read_index(root, own)
    for row in shards.iterate_rows(root, own):
        assert set(row) == set(shards.SHARD.names), row.keys()
    return "read"


def _read_manifest(place: Path) -> str:
    shards.read_manifest(locate(str(place.parent)))
    return "read"


def _read_masks(place: Path) -> str:
    location = locate(str(place.parent))
    [file] = [file for file in list_files(location) if file.path == place.name]
    results = Results(Output(location), "r", {}, (MaskFile(location / place.name, file.size, file.version),))
    assert len(results) >= 0 and results.to_arrow().num_rows >= 0
    for image_id, labels in results.masks():
        assert labels.ndim == 2 and isinstance(image_id, str | None)
    results.row("1.jpg") if any(row["image_id"] == "1.jpg" for row in results.rows(["image_id"])) else None
    return "read"


def _read_annotations(place: Path) -> str:
    drawn = drawings.of_file(locate(str(place)))
    with naming(place):
        named = drawn.label_set(classes_named(["background", *CLASSES[1:]], "the test"))
        for mask in drawn.masks([], named)[1]:
            assert set(np.unique(decode_mask(mask.file.read()))) <= {*range(1 + len(named.classes)), IGNORE_LABEL}
    return "read"


def _read_outlines(place: Path) -> str:
    with naming(place):
        found = yolo.read_outlines(decode_text(place.read_bytes()))
        assert all(region.mask.shape == (30, 40) for region in yolo.regions(found, CLASSES, 40, 30))
    return "read"


@contextlib.contextmanager
def naming(place: Path) -> Iterator[None]:
    """Within, a ValueError gets the name of the file, as whoever reads a dataset gives it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


_READERS: dict[str, tuple[str, Callable[[Path], str]]] = {
    ".pth": ("hostile.pth", _read_weights),
    ".caffemodel": ("hostile.caffemodel", _read_weights),
    "safetensors": ("model.safetensors", _read_model),
    "model card": ("card.json", _read_model),
    ".mat": ("cls.mat", _read_annotation),
    "tar shard": ("shard.tar", _read_source),
    "dataset archive": ("archive", _read_archive),
    "Parquet source": ("source.parquet", _read_source),
    "dataset shard": ("shard.parquet", _read_shard),
    "dataset manifest": ("manifest.json", _read_manifest),
    "mask file": ("part-0.parquet", _read_masks),
    "annotations, JSON": ("annotations.json", _read_annotations),
    "annotations, XML": ("annotations.xml", _read_annotations),
    "YOLO outlines": ("a.txt", _read_outlines),
}
