"""Weights on disk and what is known of them: `model.safetensors` beside `card.json`.

A card says what the network is, what it was trained on and how it wants its pixels. Importing this module, and
`digest_of`, need no torch, so that a finished job is recognised quickly. Foreign formats are read in `weights/`,
fetching is the business of `tasks/models/weights.py`. No pickle is read here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore import extras, models, names, voc
from segcore.datasets.seen_images import SEEN_FILE, SeenImages
from segcore.models import hf_folder, onnx_network, python_model
from segcore.models.card import ONNX, ModelCard
from segcore.models.hf_folder import HfFolder
from segcore.models.preprocessing import Preprocessing
from segcore.models.safetensors_header import read_header
from segcore.user_folder import user_folder

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LoadedModel", "ModelCard", "Preprocessing", "digest_of", "find", "load", "load_packed", "pack", "save"]

WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
CARD_FILE = "card.json"

# Written here and not in `models/untrained.py` so that a digest needs no torch; a test holds the two together.
UNTRAINED_VERSION = 1

_MAX_CARD_BYTES = 4 << 20
_MAX_PROBLEMS_CHARACTERS = 20_000

BUNDLED = Path(__file__).parent.parent / "weights_bundled"
"""Directory of models that ship with the package, one directory each; may be absent."""


@dataclass
class LoadedModel:
    """A network ready for evaluation with everything that says what it is."""

    given: nn.Module | Callable[[], nn.Module] | None
    """`module`, or what makes it once it is asked for; None of what torch does not compute."""

    card: ModelCard
    """What is known of it."""

    digest: str
    """SHA-256 in hexadecimal digits over the weights and whatever in the card decides the output."""

    name: str = field(default="")
    """What a person sees in outputs: the variant, with "(untrained)" where that is so."""

    tensors: dict[str, np.ndarray] | None = None
    """Of a network that ONNX Runtime can compute: the weights, float32."""

    onnx: bytes | None = None
    """Of a model that is an ONNX file: its content."""

    hf: HfFolder | None = None
    """Of a model in Hugging Face's layout: its configuration; `module` is a network of `transformers` then."""

    def __post_init__(self) -> None:
        self.name = self.name or self.card.shown_name

    @property
    def module(self) -> nn.Module:
        """The network in eval mode, float32, on the CPU. torch is imported for it."""
        from torch import nn

        if not isinstance(self.given, nn.Module):
            assert self.given is not None, "this model is not computed by torch"
            self.given = self.given()
        return self.given


def cache_directory() -> Path:
    """Where pulled and imported weights are kept: `weights` in the user's folder."""
    return user_folder() / "weights"


def load(name_or_path: str | Path, *, untrained: bool = False, seed: int = 0) -> LoadedModel:
    """The model of a name or of a path.

    name_or_path: one of `models.NAMES`, a model directory, its `.safetensors` or `.onnx` file with the card beside it,
        a folder of Hugging Face's layout, or `module:function`, whose code runs.
    untrained: build the named network with seeded weights instead; it is marked as untrained in every output.
    ValueError in one sentence: unknown name, no weights at hand, damaged file, names or shapes that do not fit (all
    of them), a card that does not make sense, a network that needs torch where it is not installed.
    """
    if untrained:
        if not extras.is_here("torch"):
            raise ValueError(extras.sentence("torch", "A model without trained weights"))
        import torch

        from segcore.models.untrained import initialise_untrained

        card = _untrained_card(name_or_path, seed)
        # Built on the meta device: the initialisation for training would take longer than the seeded one.
        with torch.device("meta"), _without_initialisation():
            module = models.build(card.variant, len(card.classes), **card.options)
        module = module.to_empty(device="cpu")
        initialise_untrained(module, seed, card.preprocessing.input_std)
        return LoadedModel(module.eval(), card, _untrained_digest(card, seed))

    if python_model.is_name(str(name_or_path)):
        module, card, content = python_model.load(str(name_or_path))
        return LoadedModel(module, card, _file_digest(content, card))
    weights = find(name_or_path)
    if weights.name == hf_folder.CONFIG:
        return _load_hf(weights.parent)
    return load_packed(pack(weights))


def _load_hf(folder: Path) -> LoadedModel:
    found = hf_folder.look(folder)
    digest = _file_digest(hf_folder.digest_parts(folder, found), found.card)
    return LoadedModel(hf_folder.build(folder, found), found.card, digest, hf=found)


@dataclass(frozen=True)
class PackedModel:
    """A model as bytes, for a machine that does not have its files."""

    weights: bytes
    """Content of the safetensors file."""

    card: bytes
    """Content of the card."""

    where: str
    """Path of the weights where they come from, for messages."""

    files: dict[str, bytes] | None = None
    """Of a folder of Hugging Face's layout: the content of each file that is read, by name; the others are empty."""


def pack(name_or_path: str | Path) -> PackedModel:
    """The files of a model with trained weights; the same ValueErrors as `load` for what is not there."""
    if python_model.is_name(str(name_or_path)):
        raise ValueError(
            f"{name_or_path} is code of this machine, which is not sent to others: run it with --engine local."
        )
    weights = find(name_or_path)
    if weights.name == hf_folder.CONFIG:
        names = hf_folder.look(weights.parent).files
        files = {name: (weights.parent / name).read_bytes() for name in names}
        return PackedModel(b"", b"", str(weights), files)
    return PackedModel(weights.read_bytes(), _card_bytes(weights), str(weights))


def load_packed(packed: PackedModel) -> LoadedModel:
    """The model of its bytes; the same ValueErrors as `load`."""
    weights = Path(packed.where)
    if packed.files is not None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / weights.parent.name
            place.mkdir()
            for name, whole in packed.files.items():
                (place / name).write_bytes(whole)
            return _load_hf(place)
    card = ModelCard.from_json(packed.card, where=str(weights.parent / CARD_FILE))
    content = hashlib.sha256(packed.weights).hexdigest()
    if (card.variant == ONNX) != (weights.suffix == ".onnx"):
        raise ValueError(f"{weights.parent / CARD_FILE} is the card of {card.variant!r}, which {weights.name} is not.")
    if card.variant == ONNX:
        from segcore.models import onnx_file

        onnx_file.check(packed.weights, str(weights))
        return LoadedModel(None, card, _file_digest(content, card), onnx=packed.weights)
    if not extras.is_here("torch"):
        return LoadedModel(None, card, _file_digest(content, card), tensors=_without_torch(packed, card))
    if onnx_network.takes(card):
        with contextlib.suppress(ValueError):  # torch says more of what is wrong
            tensors = _without_torch(packed, card)
            if onnx_network.fits(card, tensors):
                later = functools.partial(_by_torch, packed, card)
                return LoadedModel(later, card, _file_digest(content, card), tensors=tensors)
    return LoadedModel(_by_torch(packed, card), card, _file_digest(content, card))


def _by_torch(packed: PackedModel, card: ModelCard) -> nn.Module:
    """The network of a card with the weights of a file, in eval mode; the ValueErrors of `load`."""
    import torch

    weights = Path(packed.where)
    try:
        with torch.device("meta"), _without_initialisation():
            module = models.build(card.variant, len(card.classes), **card.options)
    except Exception as error:  # Options of a card are anybody's, and torch raises all kinds
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{weights.parent / CARD_FILE} asks for a network that cannot be built: {reason}") from error
    _check_tensors(weights, read_header(weights, packed.weights), module)
    from safetensors.torch import load as parse

    try:
        tensors = parse(packed.weights)
    except Exception as error:  # Its own kind, and KeyError for numbers that torch does not have
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{weights} is not a readable safetensors file: {reason}; bring it anew.") from error
    dtypes = {name: value.dtype for name, value in module.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point() != dtypes[name].is_floating_point or value.is_complex():
            raise ValueError(f"{weights} does not fit its card: {name} holds {value.dtype} instead of {dtypes[name]}.")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{weights} cannot be used: {name} has values that are not finite; bring it anew.")
    module.load_state_dict({name: value.to(dtypes[name]) for name, value in tensors.items()}, assign=True)
    return module.eval()


def _without_torch(packed: PackedModel, card: ModelCard) -> dict[str, np.ndarray]:
    """The tensors of the file as float32. ValueError: a network that ONNX Runtime is not given, a damaged file."""
    if not onnx_network.takes(card):
        raise ValueError(extras.sentence("torch", card.shown_name))
    shapes = read_header(Path(packed.where), packed.weights)
    start = 8 + int.from_bytes(packed.weights[:8], "little")
    header = json.loads(packed.weights[8:start])
    found = {}
    for name, shape in shapes.items():
        try:
            first, last = header[name]["data_offsets"]
            raw = packed.weights[start + first : start + last]
            kind = header[name]["dtype"]
            if kind == "I64" and not name.endswith(".num_batches_tracked"):
                raise ValueError(f"{name} holds whole numbers")
            if kind == "BF16":  # The upper half of a float32
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}[kind]).astype(
                    np.float32
                )
            found[name] = values.reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{packed.where} is not a readable safetensors file: {reason}; bring it anew.") from None
        if not np.isfinite(found[name]).all():
            raise ValueError(f"{packed.where} cannot be used: {name} has values that are not finite; bring it anew.")
    return found


def _without_initialisation() -> Any:
    """Within, layers are made without drawing their weights: on the meta device a draw imports torch's compiler first,
    which takes longer than everything else of a load."""
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    return Mode()


def digest_of(name_or_path: str | Path, *, untrained: bool = False, seed: int = 0) -> str:
    """The `digest` that `load` would give, without building the network; the same ValueErrors for what is not there."""
    if untrained:
        return _untrained_digest(_untrained_card(name_or_path, seed), seed)
    if python_model.is_name(str(name_or_path)):
        return load(name_or_path).digest
    weights = find(name_or_path)
    if weights.name == hf_folder.CONFIG:
        found = hf_folder.look(weights.parent)
        return _file_digest(hf_folder.digest_parts(weights.parent, found), found.card)
    with weights.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return _file_digest(content, _read_card(weights))


def describe(name_or_path: str | Path, *, untrained: bool = False, seed: int = 0) -> tuple[ModelCard, str]:
    """Card and digest of what `load` would give, without building the network; the same ValueErrors."""
    digest = digest_of(name_or_path, untrained=untrained, seed=seed)
    if python_model.is_name(str(name_or_path)) and not untrained:
        return load(name_or_path).card, digest
    return (_untrained_card(name_or_path, seed) if untrained else _read_card(find(name_or_path))), digest


def find(name_or_path: str | Path) -> Path:
    """The weights file that a name or path stands for: a path, then the bundled model, then the user's cache."""
    text = models.spelled(str(name_or_path))
    if text in models.NAMES:
        for directory in (BUNDLED / text, cache_directory() / text):
            if (directory / WEIGHTS_FILE).is_file():
                return directory / WEIGHTS_FILE
        raise ValueError(
            f"There are no weights for {text} here: use --untrained for a demonstration, bring some with "
            f"`segment-archive weights import FILE --model {text}` or `segment-archive weights pull`, "
            f"or give the path of a model directory."
        )
    path = Path(name_or_path)
    if path.is_dir() and hf_folder.is_one(path):
        return path / hf_folder.CONFIG
    if path.is_dir():
        path = path / (ONNX_FILE if (path / ONNX_FILE).is_file() else WEIGHTS_FILE)
    if path.is_file():
        return path
    cached = cache_directory() / text / WEIGHTS_FILE
    if os.sep not in text and cached.is_file():
        return cached
    if os.sep in text or path.suffix or len(path.parts) > 1:
        raise ValueError(
            f"There is no model at {path}: expected a directory with {WEIGHTS_FILE} or {ONNX_FILE}, and {CARD_FILE}."
        )
    here = [folder.parent.name for folder in cache_directory().glob(f"*/{WEIGHTS_FILE}")]
    names.known(text, [*models.NAMES, *here], "model", "segment-archive models")
    raise AssertionError("an unknown name that is known")


def seen_images(name_or_path: str | Path) -> SeenImages | None:
    """Digests of the images that a model was trained on; None where it has none. ValueError for a damaged file."""
    if python_model.is_name(str(name_or_path)):
        return None
    path = find(name_or_path).parent / SEEN_FILE
    return SeenImages.from_bytes(path.read_bytes(), str(path)) if path.is_file() else None


def save(
    directory: str | Path,
    module: nn.Module,
    card: ModelCard,
    *,
    seen: SeenImages | None = None,
    replace: bool = False,
) -> None:
    """Write a model directory; it appears whole under its name or not at all.

    seen: digests of the images that it was trained on, where they are known.
    replace: put it in the place of a directory that exists (for an instant neither is there); otherwise that is a
    ValueError, as are weights that are not finite.
    """
    import torch
    from safetensors.torch import save as serialise

    directory = Path(directory)
    if directory.exists() and not replace:
        raise ValueError(f"{directory} exists already; choose another place for the model or remove it first.")
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"The weights are not saved: {name} has values that are not finite.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.parent / f".{directory.name}.{uuid.uuid4().hex}.unfinished"
    unfinished.mkdir()
    try:
        _write(unfinished / WEIGHTS_FILE, serialise(tensors, metadata={"format": "pt"}))
        _write(unfinished / CARD_FILE, card.to_json().encode())
        if seen is not None:
            _write(unfinished / SEEN_FILE, seen.to_bytes())
        if directory.exists():
            old = unfinished.with_suffix(".old")
            directory.rename(old)
            unfinished.rename(directory)
            shutil.rmtree(old)
        else:
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _untrained_card(name: str | Path, seed: int) -> ModelCard:
    known = models.variant(str(name))
    return ModelCard(
        variant=models.spelled(str(name)),
        classes=voc.CLASSES,
        preprocessing=known.preprocessing,
        init=f"seeded, seed {seed}",
        training_split="none",
        untrained=True,
    )


def _untrained_digest(card: ModelCard, seed: int) -> str:
    return _digest({"untrained_version": UNTRAINED_VERSION, "seed": seed, **card.deciding()})


def _file_digest(content: str, card: ModelCard) -> str:
    return _digest({"weights_sha256": content, **card.deciding()})


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_card(weights: Path) -> ModelCard:
    if weights.name == hf_folder.CONFIG:
        return hf_folder.look(weights.parent).card
    return ModelCard.from_json(_card_bytes(weights), where=str(weights.parent / CARD_FILE))


def _card_bytes(weights: Path) -> bytes:
    path = weights.parent / CARD_FILE
    try:
        content = path.read_bytes()[: _MAX_CARD_BYTES + 1]
    except FileNotFoundError:
        told = f"{weights} has no {CARD_FILE} beside it, so nobody knows what network it is"
        if weights.suffix == ".onnx":
            told += f": `segment-archive models describe {weights}` writes one"
        raise ValueError(f"{told}.") from None
    if len(content) > _MAX_CARD_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_CARD_BYTES} bytes; that is no model card.")
    return content


def _check_tensors(path: Path, found: dict[str, tuple[int, ...]], module: nn.Module) -> None:
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    problems = mismatches(expected, found)
    if problems:
        raise ValueError(f"{path} does not fit its card: {listed(problems)}.")


def listed(problems: list[str]) -> str:
    """All of them in one line, but never megabytes of what a damaged file calls its tensors."""
    shown = [p if len(p) < 300 and p.isprintable() else repr(p[:300]) for p in problems]
    while len(shown) > 1 and sum(map(len, shown)) > _MAX_PROBLEMS_CHARACTERS:
        shown = shown[: len(shown) // 2]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more else "")


def mismatches(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    """Every difference between the tensors a network has and those of a file, one phrase each, sorted by name."""
    problems = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            problems.append(f"{name} is missing")
        elif name not in expected:
            problems.append(f"{name} is not part of the network")
        elif expected[name] != found[name]:
            problems.append(f"{name} has shape {found[name]} instead of {expected[name]}")
    return problems
