"""Semantic models of `transformers` in a folder of Hugging Face's layout: what is read of it, and what is refused.

Read are config.json, preprocessor_config.json and safetensors files, by their names in the folder itself. The network's
class is one of `NETWORKS`, never one that the folder names; no code and no pickle is loaded. Only `build` needs torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from segcore import extras
from segcore.models.card import HUGGING_FACE, ModelCard
from segcore.models.preprocessing import IMAGENET_RGB, Preprocessing
from segcore.models.safetensors_header import header_of, read_header

if TYPE_CHECKING:
    from torch import nn

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

NETWORKS = {
    "beit": ("BeitForSemanticSegmentation", "Beit"),
    "data2vec-vision": ("Data2VecVisionForSemanticSegmentation", "Beit"),
    "dpt": ("DPTForSemanticSegmentation", "DPT"),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2Former"),
    "maskformer": ("MaskFormerForInstanceSegmentation", "MaskFormer"),
    "mobilenet_v2": ("MobileNetV2ForSemanticSegmentation", "MobileNetV2"),
    "mobilevit": ("MobileViTForSemanticSegmentation", "MobileViT"),
    "mobilevitv2": ("MobileViTV2ForSemanticSegmentation", "MobileViT"),
    "segformer": ("SegformerForSemanticSegmentation", "Segformer"),
    "upernet": ("UperNetForSemanticSegmentation", "Segformer"),
}
"""By `model_type`: the class of the network, and the image processor that it has where the folder names none."""

OF_QUERIES = ("mask2former", "maskformer")
"""Their scores are probabilities of masks, weighed by those of their classes."""

_MAX_JSON_BYTES = 8 << 20
_MAX_FILES = 200
_MAX_INPUT_PX = 8192
_MAX_LAYERS = 2000
_MAX_NUMBER = 10_000_000
"""Of a configuration: sizes beyond it are no network's."""

_LAYERS = ("depths", "num_hidden_layers", "encoder_layers", "decoder_layers", "num_encoder_blocks")


@dataclass(frozen=True)
class HfFolder:
    """A folder that was looked at."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]

    weights: tuple[str, ...]
    """Names of the safetensors files."""

    card: ModelCard

    @property
    def files(self) -> tuple[str, ...]:
        """All that is read."""
        return (CONFIG, PREPROCESSOR, *([INDEX] if self.weights != (WEIGHTS,) else []), *self.weights)


def is_one(folder: Path) -> bool:
    """Whether a folder is laid out as Hugging Face does; one with a card of ours is not."""
    return (folder / CONFIG).is_file() and not (folder / "card.json").exists()


def is_part(name: str) -> bool:
    """Whether a file may be one of those that are read, by its path in the folder."""
    return "/" not in name and (name in (CONFIG, PREPROCESSOR, INDEX) or name.endswith(".safetensors"))


def look(folder: Path) -> HfFolder:
    """What a folder holds. ValueError in one sentence for everything that is missing, unknown or refused."""
    config, preprocessor = _read_json(folder, CONFIG), _read_json(folder, PREPROCESSOR)
    weights = _weights(folder)
    parameters = sum(math.prod(shape) for name in weights for shape in header_of(folder / name).values())
    return HfFolder(config, preprocessor, weights, _card(folder, config, preprocessor, parameters))


def digest_parts(folder: Path, found: HfFolder) -> str:
    """SHA-256 in hexadecimal digits over weights, configuration and preprocessing."""
    whole = hashlib.sha256()
    for value in (found.config, found.preprocessor):
        deciding = {key: entry for key, entry in value.items() if key not in ("transformers_version", "_name_or_path")}
        whole.update(json.dumps(deciding, sort_keys=True, separators=(",", ":")).encode())
    for name in found.weights:
        with (folder / name).open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def build(folder: Path, found: HfFolder) -> nn.Module:
    """The network with its weights, in eval mode.

    ValueError in one sentence: weights that do not fit the configuration, a configuration that its class does not
    take, packages that are missing.
    """
    for package in ("torch", "transformers"):
        if not extras.is_here(package):
            raise ValueError(extras.sentence(package, found.card.shown_name))
    import transformers
    from safetensors.torch import load
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network = getattr(transformers, NETWORKS[found.config["model_type"]][0])
    tensors: dict[str, Any] = {}
    for name in found.weights:
        content = (folder / name).read_bytes()
        read_header(folder / name, content)
        try:
            tensors |= load(content)
        except Exception as error:  # Its own kind
            raise ValueError(
                f"{folder / name} is not a readable safetensors file: {_short(error)}; bring it anew."
            ) from None
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{folder} cannot be used: {name[:200]} has values that are not finite; bring it anew.")
    try:
        config = network.config_class.from_dict(found.config)
        # Of tensors that are here and a configuration that was looked at: nothing else is read or fetched
        module, report = network.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, dtype="float32"
        )
    except Exception as error:  # Values of a configuration are anybody's
        raise ValueError(f"{folder} holds a model that transformers cannot build: {_short(error)}.") from None
    if missing := sorted([*report["missing_keys"], *report["mismatched_keys"]], key=str):
        raise ValueError(f"The weights of {folder} do not fit its {CONFIG}: {_short(missing[:5])} are missing.")
    eval_module: nn.Module = module.eval()
    return eval_module


def processor(found: HfFolder) -> Any:
    """The image processor of `transformers` on Pillow, as the folder configures it. ValueError where it cannot be."""
    import transformers

    stem = _processor_stem(found.config, found.preprocessor)
    try:
        return getattr(transformers, f"{stem}ImageProcessorPil").from_dict(dict(found.preprocessor))
    except Exception as error:
        raise ValueError(
            f"The {PREPROCESSOR} of {found.card.shown_name} is not one that works: {_short(error)}."
        ) from None


def _card(folder: Path, config: Mapping[str, Any], preprocessor: Mapping[str, Any], parameters: int) -> ModelCard:
    kind = config.get("model_type")
    known = ", ".join(NETWORKS)
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise ValueError(f"{folder} holds a model of the type {str(kind)[:60]!r}; the semantic ones are {known}.")
    architectures = config.get("architectures") or [NETWORKS[kind][0]]
    if NETWORKS[kind][0] not in architectures:
        raise ValueError(
            f"{folder} holds {str(architectures)[:100]}, not {NETWORKS[kind][0]}: it gives no classes of pixels."
        )
    for path, value in _entries(config):
        if path[-1] == "auto_map":
            raise ValueError(f"{folder} asks for code of its own (auto_map), which is never run: take a model without.")
        if path[-1] == "quantization_config":
            raise ValueError(f"{folder} holds quantised weights, which are not read: take the model in float32.")
        if path[-1] in _LAYERS and any(n > _MAX_LAYERS for n in _numbers(value)):
            raise ValueError(
                f"{folder} asks for {_short(value)} layers ({'.'.join(map(str, path))}); that is no model."
            )
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            told = f"{folder} has {str(path[-1])[:60]} = {str(value)[:30]} in its {CONFIG}"
            raise ValueError(f"{told}; that is no model.")
        # The unused backbone of MaskFormer's decoder may be any
        if (path == ("backbone_config", "model_type") and str(value).startswith("timm")) or (
            path == ("use_timm_backbone",) and value is True
        ):
            raise ValueError(f"{folder} has a backbone of timm, which is not read: take a model without.")
    for path, value in _entries(preprocessor):
        if path[-1] == "auto_map":
            raise ValueError(f"{folder} asks for code of its own (auto_map), which is never run: take a model without.")
        if "size" in str(path[0]) and any(abs(n) > _MAX_INPUT_PX for n in _numbers(value)):
            raise ValueError(
                f"{folder} scales pictures to {_short(value)} px ({PREPROCESSOR}), more than {_MAX_INPUT_PX}."
            )
    _processor_stem(config, preprocessor)
    labels = config.get("id2label")
    if not isinstance(labels, dict) or not labels or {str(n) for n in range(len(labels))} != labels.keys():
        raise ValueError(f"{folder / CONFIG} does not name its classes by label from 0 on (id2label): add the names.")
    classes: list[str] = []
    for number in range(len(labels)):
        name = str(labels[str(number)]) or f"class {number}"
        while name in classes:  # A name that stands there twice stays two classes
            name = f"{name} ({number})"
        classes.append(name)
    try:
        return ModelCard(
            variant=HUGGING_FACE,
            classes=tuple(classes),
            preprocessing=_shown_preprocessing(preprocessor),
            options={"name": _name_of(folder), "architecture": NETWORKS[kind][0], "parameters": parameters},
            training_split="unknown",
            convention="areas",
        )
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} cannot be used: {error}") from None


def _name_of(folder: Path) -> str:
    """ "org/name" of a snapshot in Hugging Face's cache, else the folder's name."""
    place = folder.absolute()
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        return place.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return place.name


def _shown_preprocessing(preprocessor: Mapping[str, Any]) -> Preprocessing:
    """For a person who reads the card: what is done to pixels is the processor's business."""
    try:
        mean, std = ([255 * float(v) for v in preprocessor[key]] for key in ("image_mean", "image_std"))
        return Preprocessing("RGB", (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    except (KeyError, TypeError, ValueError, IndexError):
        return IMAGENET_RGB


def _processor_stem(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> str:
    stems = {stem for _, stem in NETWORKS.values()}
    asked = preprocessor.get("image_processor_type", preprocessor.get("feature_extractor_type"))
    if asked is None:
        return NETWORKS[config["model_type"]][1]
    for ending in ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"):
        if isinstance(asked, str) and asked.removesuffix(ending) in stems:
            return asked.removesuffix(ending)
    raise ValueError(f"The image processor {str(asked)[:60]!r} is not one of {', '.join(sorted(stems))}.")


def _weights(folder: Path) -> tuple[str, ...]:
    if (folder / WEIGHTS).is_file():
        return (WEIGHTS,)
    if (folder / INDEX).is_file():
        places = _read_json(folder, INDEX).get("weight_map")
        names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
        for name in names:
            if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
                raise ValueError(
                    f"{folder / INDEX} names {name[:100]!r}, which is no safetensors file of its own folder."
                )
            if not (folder / name).is_file():
                raise ValueError(f"{folder} lacks {name}, which its {INDEX} names: bring it too.")
        if not 1 <= len(names) <= _MAX_FILES:
            raise ValueError(f"{folder / INDEX} names {len(names)} files of weights; 1 to {_MAX_FILES} are read.")
        return tuple(names)
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if others:
        raise ValueError(
            f"{folder} holds its weights as a pickle ({others[0][:100]}), which is not read, since it may run code: "
            "save it anew with model.save_pretrained(FOLDER), which writes safetensors."
        )
    raise ValueError(f"{folder} holds no {WEIGHTS}: bring it too.")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        with (folder / name).open("rb") as file:
            content = file.read(_MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {name}, as a model of Hugging Face does: bring it too.") from None
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{folder / name} is larger than {_MAX_JSON_BYTES} bytes; that is no configuration.")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / name} is not JSON: {str(error)[:200]}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{folder / name} is no JSON object.")
    return value


def _entries(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every entry of nested objects and lists, with the path to it."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key), entry
            yield from _entries(entry, (*path, key))


def _numbers(value: Any) -> list[float]:
    flat = [value, *(entry for _, entry in _entries(value))]
    return [entry for entry in flat if isinstance(entry, int | float) and not isinstance(entry, bool)]


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:300].rstrip(".")
