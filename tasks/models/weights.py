"""Weights of others on this machine: a catalogue, and the import into the user's cache.

What the files mean is in `segcore/weights/`, how they are fetched in `download.py`. Everything ends as a model
directory under `checkpoint.cache_directory()`, where `--model NAME` finds it.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import tomllib
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from segcore import extras, models
from segcore.images.decoding import decode
from segcore.images.errors import ImageError
from segcore.models import checkpoint
from segcore.models.card import ModelCard
from segcore.models.variants import VARIANTS
from segcore.scoring.inference import InferenceParams
from tasks import storage
from tasks.download import CHUNK_BYTES, MAX_DOWNLOAD_BYTES, Progress, download
from tasks.models.remote import local_model

CATALOGUE = Path(__file__).with_name("weights_catalogue.toml")


@dataclass(frozen=True)
class CatalogueEntry:
    """One published set of weights."""

    name: str
    """What `weights pull` takes, and afterwards `--model`."""

    variant: str
    """Model that it becomes."""

    url: str
    """Where the publisher has it."""

    licence: str
    """What the publisher states."""

    trained_on: str
    """Training split, as in a model's card."""

    read_in: str
    """Where this entry's facts were read."""

    verified: bool = False
    """Whether we have fetched and imported it ourselves."""

    member: str | None = None
    """File inside, for a zip archive."""

    as_init: bool = False
    """Take the trunk only."""

    manual: bool = False
    """The host asks a person to confirm, so that it cannot be fetched by a program."""

    sha256: str | None = None
    """Published hash in hexadecimal digits."""

    sha256_prefix: str | None = None
    """First digits of the hash, where the publisher puts them into the file's name."""

    md5: str | None = None
    """Published hash in hexadecimal digits."""

    score: str = ""
    """What its publisher measured."""


@dataclass(frozen=True)
class ModelRow:
    """One line of `segment-archive models`."""

    name: str
    """What `--model` takes."""

    parameters: int
    """At 21 classes, without auxiliary heads."""

    published: str
    """The paper's score, or what the card says."""

    weights: str
    """"none", "bundled", "cached", or what the card says of cached weights."""


def read_catalogue(path: Path = CATALOGUE) -> dict[str, CatalogueEntry]:
    """Entries by name; ValueError naming the entry that does not make sense."""
    entries = {}
    known = {field.name for field in fields(CatalogueEntry)}
    for name, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"{path.name}: {name} has unknown entries: {', '.join(unknown)}.")
        try:
            entries[name] = CatalogueEntry(name=name, **values)
        except TypeError as error:
            raise ValueError(f"{path.name}: {name} is incomplete: {error}.") from None
        models.variant(entries[name].variant)
    return entries


def catalogue_entry(name: str) -> CatalogueEntry:
    """The entry of a name; for an unknown one a ValueError that lists those of the same model, or all."""
    entries = read_catalogue()
    if name in entries:
        return entries[name]
    near = [entry for entry in entries if entry.startswith(name)] or list(entries)
    raise ValueError(f"The catalogue has no {name!r}; it has {', '.join(near)}.")


def import_weights(
    file: str | Path,
    model: str,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    training_split: str | None = None,
    as_init: bool = False,
    replace: bool = False,
) -> str:
    """Turn a published file into a model directory of the user's cache; a sentence about what was made.

    file: Caffe `.caffemodel`, PyTorch `.pth` or safetensors, whose layout is recognised. model: one of `models.NAMES`.
    name: what `--model` will find it under, the model's own name by default. The other arguments are those of
    `segcore.weights.importer.import_weights`. ValueError in one sentence for everything that is wrong with the file.
    """
    from segcore.weights.importer import import_weights as read

    name = _checked_name(name or model)
    directory = checkpoint.cache_directory() / name
    if directory.exists() and not replace:
        raise ValueError(f"There are weights under the name {name} already; choose another --name, or give --replace.")
    imported = read(file, model, classes=classes, training_split=training_split, as_init=as_init)
    checkpoint.save(directory, imported.module, imported.card, replace=replace)
    told = f"{Path(file).name} ({imported.source}) is now --model {name}."
    if imported.not_taken_over:
        told += f" New, untrained layers: {', '.join(imported.not_taken_over)}."
    if imported.card.untrained:
        told += " It initialises training; its masks mean nothing yet."
    return told


def export_weights(
    name_or_uri: str,
    file: str | Path,
    *,
    untrained: bool = False,
    replace: bool = False,
    int8: bool = False,
    calibration: str | None = None,
) -> str:
    """Write a model as an ONNX file and its card beside it, for `--model FILE`; a sentence about what was made.

    name_or_uri: as `--model`. int8: with convolutions of eight bits. calibration: URI of a folder of photographs that
        int8 is calibrated on, a hundred of them at most.
    ValueError in one sentence: a model that is not there, or is an ONNX file already; files that are there; a folder
    that is not; int8 without photographs.
    """
    path = Path(file)
    card_path = path.parent / checkpoint.CARD_FILE
    if path.suffix != ".onnx":
        raise ValueError(f"An ONNX file ends in .onnx, got {path.name}.")
    if not path.parent.is_dir():
        raise ValueError(f"The folder {path.parent} does not exist: make it first.")
    for there in (path, card_path):
        if there.exists() and not replace:
            raise ValueError(f"{there} is there already: choose a folder of its own for the model, or give --replace.")
    if not extras.is_here("torch"):
        raise ValueError(extras.sentence("torch", "The export"))
    from segcore.models.onnx_export import export

    if int8 != (calibration is not None):
        raise ValueError("--int8 and --calibration FOLDER go together: int8 is calibrated on photographs.")
    photographs = [] if calibration is None else _calibration(calibration)
    content, card = export(checkpoint.load(local_model(name_or_uri), untrained=untrained))
    told = ""
    if int8:
        content, agreement = _quantised(content, card, photographs)
        card = dataclasses.replace(card, options=card.options | {"name": f"{card.options['name']} int8"})
        told = f" {agreement:.2%} of the labels of {_COMPARED} of these photographs are those of float32."
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.write_bytes(content)
        card_path.write_text(card.to_json(), encoding="utf-8")
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    size = f"{len(content) / 1e6:.0f} MB"
    return f"{path} ({size}) and {card_path.name} are {card.shown_name} as ONNX; --model {path} takes it.{told}"


def _calibration(folder: str) -> list[np.ndarray]:
    """Photographs of a folder at working size, spread over it; those that cannot be read are passed over."""
    place = storage.locate(folder)
    found = []
    with storage.explained(place):
        files = [file for file in storage.list_files(place) if file.size <= _MOST_BYTES]
        for file in files[:: max(1, len(files) // _CALIBRATION)][:_CALIBRATION]:
            with contextlib.suppress(ImageError):
                found.append(decode(storage.read_bytes(place / file.path), InferenceParams().long_side_px).image)
    return found


def _quantised(content: bytes, card: ModelCard, photographs: list[np.ndarray]) -> tuple[bytes, float]:
    """The same ONNX file in int8, and the share of labels that stay the same."""
    from segcore.scoring.onnx_int8 import quantise
    from segcore.scoring.onnx_scorer import OnnxScorer

    models = [checkpoint.LoadedModel(None, card, "", onnx=content)]
    models.append(dataclasses.replace(models[0], onnx=quantise(models[0], photographs)))
    few = photographs[:_COMPARED]
    exact, coarse = (OnnxScorer(model, InferenceParams())(few) for model in models)
    same = [float((a.scores.argmax(0) == b.scores.argmax(0)).mean()) for a, b in zip(exact, coarse, strict=True)]
    assert models[1].onnx is not None
    return models[1].onnx, float(np.mean(same))


_CALIBRATION = 100
_MOST_BYTES = 64 << 20
_COMPARED = 8


def pull(
    name: str, *, replace: bool = False, progress: Progress | None = None, entry: CatalogueEntry | None = None
) -> str:
    """Fetch, check and import an entry of the catalogue; a sentence about what was made.

    Stops and goes on: what was fetched stays in the cache until the import is done. ValueError in one sentence when
    it is unknown, must be fetched by hand, cannot be reached, or is not what was published.
    """
    entry = entry or catalogue_entry(name)
    if entry.manual:
        raise ValueError(
            f"{name} cannot be fetched by a program: download {entry.url} in a browser, then run "
            f"`segment-archive weights import FILE --model {entry.variant} --name {name}"
            f" --training-split {entry.trained_on}`."
        )
    if (checkpoint.cache_directory() / name).exists() and not replace:
        return f"{name} is here already: --model {name}."
    downloads = checkpoint.cache_directory() / ".downloads"
    # One archive may serve several entries.
    key = hashlib.sha256(entry.url.encode()).hexdigest()[:16]
    file = downloads / f"{key}-{entry.url.rpartition('/')[2]}"
    if not file.is_file():
        download(entry.url, file, progress=progress)
    try:
        check_hashes(file, entry)
        source = _member(file, entry.member) if entry.member else file
    except ValueError:
        # A file that is not what was published must not be found again.
        file.unlink()
        raise
    told = import_weights(
        source,
        entry.variant,
        name=name,
        training_split=entry.trained_on,
        as_init=entry.as_init,
        replace=replace,
    )
    # An archive stays: the next entry may be in it too.
    source.unlink()
    if not (entry.sha256 or entry.sha256_prefix or entry.md5):
        told += " Its publisher gives no hash, so only its layout was checked."
    return told


def check_hashes(file: Path, entry: CatalogueEntry) -> None:
    """ValueError when the file is not what the publisher's hash says."""
    for kind, published in (("sha256", entry.sha256), ("sha256", entry.sha256_prefix), ("md5", entry.md5)):
        if published is None:
            continue
        with file.open("rb") as content:
            found = hashlib.file_digest(content, kind).hexdigest()
        if not found.startswith(published.lower()):
            raise ValueError(
                f"{entry.url} has {kind} {found}, but {published} was published; it was damaged or exchanged."
            )


def list_models() -> list[ModelRow]:
    """Every variant, then every set of weights in the cache that has a name of its own."""
    rows = []
    cached = _cached_cards()
    for name, variant in VARIANTS.items():
        bundled = (checkpoint.BUNDLED / name / checkpoint.WEIGHTS_FILE).is_file()
        at_hand = "bundled" if bundled else _said(cached[name]) if name in cached else "none"
        rows.append(ModelRow(name, variant.parameters, variant.published, at_hand))
    for name, card in cached.items():
        if name not in VARIANTS and card is not None:
            rows.append(ModelRow(name, card.parameters, "", _said(card)))
    return rows


def _cached_cards() -> dict[str, checkpoint.ModelCard | None]:
    """Cards of the cache by name; None for one that cannot be read."""
    cards: dict[str, checkpoint.ModelCard | None] = {}
    directory = checkpoint.cache_directory()
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if not path.name.startswith(".") and (path / checkpoint.WEIGHTS_FILE).is_file():
            try:
                cards[path.name] = checkpoint.ModelCard.from_json((path / checkpoint.CARD_FILE).read_bytes())
            except (ValueError, OSError):
                cards[path.name] = None
    return cards


def _said(card: checkpoint.ModelCard | None) -> str:
    if card is None:
        return "damaged"
    return f"initialisation ({card.training_split})" if card.untrained else f"trained on {card.training_split}"


def _checked_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"{name!r} cannot name weights: use letters, digits, '-' and '_'.")
    return name


def _member(archive: Path, member: str) -> Path:
    """One file out of a zip archive, beside it; found by its last component, whatever folder it is in."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [info for info in opened.infolist() if info.filename.rpartition("/")[2] == member]
            if len(names) != 1:
                raise ValueError(f"{archive.name} holds {len(names)} files named {member}, not one.")
            if names[0].file_size > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"{member} in {archive.name} would be larger than {MAX_DOWNLOAD_BYTES} bytes.")
            target = archive.with_name(f"{uuid.uuid4().hex}-{member}")
            with opened.open(names[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK_BYTES)
            return target
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive.name} is no zip archive, or is damaged: {error}.") from error
