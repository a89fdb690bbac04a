"""A file of published weights becomes a model of ours with its card: recognised, renamed, checked as a whole.

Files are read in `files.py`, layouts of names are in `sources.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segcore import models, voc
from segcore.models.card import ModelCard
from segcore.models.checkpoint import listed
from segcore.models.layers import Classifier
from segcore.weights.files import Tensors, checked_tensors, read_states
from segcore.weights.sources import CAFFE_PSPNET, SOURCES, Source, recognise
from segcore.weights.vgg_fc import convolutional, decimate, kept_filters


@dataclass
class Imported:
    """A model made from a foreign file."""

    module: nn.Module
    """In eval mode, float32."""

    card: ModelCard
    """Says where the weights came from; marked untrained when only the trunk did."""

    source: str
    """The layout that was recognised."""

    not_taken_over: list[str]
    """Layers of ours that keep a new initialisation."""


def import_weights(
    path: str | Path,
    variant: str,
    *,
    classes: Sequence[str] | None = None,
    training_split: str | None = None,
    as_init: bool = False,
) -> Imported:
    """Read `path` into a new network of `variant`.

    path: `.caffemodel`, `.safetensors`, or a PyTorch file with a state dict somewhere in it, under any wrappers' names.
        Of several that are known, a moving average is taken.
    classes: names by label; by default those of VOC for 21 classes, numbers otherwise.
    training_split: what the weights saw, where the person knows; a card says "unknown" otherwise.
    as_init: take the trunk only and give the network a new classifier (for COCO weights that VOC training starts from);
        ImageNet classifiers are always taken so. Such a model is marked as untrained.
    ValueError in one sentence: a file that cannot be read, a layout that is unknown or of another model, and *all*
    tensors that are missing, left over or of another shape.
    """
    path = Path(path)
    known = models.variant(variant)
    found = read_states(path)
    states = [state for state in found if any(source.marker in state.tensors for source in SOURCES)] or found
    state = max(states, key=lambda state: (state.is_average, len(state.tensors)))
    tensors = checked_tensors(path, state)
    try:
        source = recognise({name: value.shape for name, value in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    others = sorted({other.place or "the file itself" for other in states} - {state.place})
    chosen = f"Taken from {state.place}; {', '.join(others)} has weights too." if others else ""
    if not re.fullmatch(source.variants, variant):
        raise ValueError(f"{path} holds {source.name}, which cannot become {variant}; choose a model of that family.")
    only_init = as_init or source.kind == "imagenet"
    options: dict[str, Any] = {}
    if known.module.endswith("pspnet") and not only_init and not any(name.startswith("aux.") for name in tensors):
        options["auxiliary_at"] = None

    with torch.device("meta"):
        outline = models.build(variant, **options)
    num_classes = len(classes or voc.CLASSES) if only_init else _num_classes(outline, source, tensors, path)
    names = _class_names(num_classes, classes, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = models.build(variant, num_classes, **options)
    not_taken = _fill(module, source, tensors, path, only_init)
    layers = sorted({name.rpartition(".")[0] for name in not_taken})
    card = ModelCard(
        variant=variant,
        classes=names,
        preprocessing=source.preprocessing,
        options=options,
        init=f"{source.name}, {path.name}",
        training_split=training_split or ("imagenet" if source.kind == "imagenet" else "unknown"),
        untrained=only_init,
        convention="caffe" if only_init else source.convention,
        commit=path.name,
        notes=" ".join(filter(None, [source.remark, chosen, f"New layers: {', '.join(layers)}." if layers else ""])),
    )
    return Imported(module.eval(), card, source.name, layers)


def _find(source: Source, tensors: Tensors, ours: str, path: Path) -> str | None:
    for wanted in source.locate(ours):
        if "*" not in wanted:
            if wanted in tensors:
                return wanted
            continue
        pattern = re.escape(wanted).replace(r"\*", r"[A-Za-z0-9-]+")
        matches = [name for name in tensors if re.fullmatch(pattern, name)]
        if len(matches) > 1:
            raise ValueError(f"{path}: {ours} could be any of {', '.join(sorted(matches))}.")
        if matches:
            return matches[0]
    return None


def _num_classes(outline: nn.Module, source: Source, tensors: Tensors, path: Path) -> int:
    for name, part in outline.named_modules():
        if isinstance(part, Classifier):
            found = _find(source, tensors, f"{name}.weight", path)
            if found is not None:
                number = int(tensors[found].shape[0]) if tensors[found].ndim else 0
                if not 1 <= number <= 255:
                    raise ValueError(f"{path}: {found} tells {number} classes apart; a model has 1 to 255.")
                return number
    raise ValueError(
        f"{path} holds {source.name} without a classifier for this model; to start training from its trunk, "
        f"import it as initialisation (--as-init)."
    )


def _class_names(num_classes: int, classes: Sequence[str] | None, path: Path) -> tuple[str, ...]:
    if classes is not None:
        if len(classes) != num_classes:
            raise ValueError(f"{path} tells {num_classes} classes apart, but {len(classes)} names were given.")
        return tuple(classes)
    return voc.CLASSES if num_classes == len(voc.CLASSES) else tuple(f"class {label}" for label in range(num_classes))


def _fill(module: nn.Module, source: Source, tensors: Tensors, path: Path, only_init: bool) -> list[str]:
    """Copy what is found into `module`; names of tensors that keep their initialisation."""
    state = module.state_dict()
    used: set[str] = set()
    not_taken: list[str] = []
    problems: list[str] = []
    for ours, target in state.items():
        if ours.endswith("num_batches_tracked"):
            continue
        in_trunk = ours.startswith(("trunk.", "base.trunk."))
        found = _find(source, tensors, ours, path)
        if found is None:
            expected = source.locate(ours)
            if only_init and not (in_trunk and expected and not ours.startswith("trunk.stem.")):
                not_taken.append(ours)
            else:
                problems.append(f"{expected[0] if expected else ours} is missing")
            continue
        used.add(found)
        try:
            value = _transformed(source, ours, tensors[found], state)
        except (ValueError, IndexError):  # Of fewer dimensions, or of a size that cannot be divided
            value = f"a shape of {tensors[found].shape} cannot become {tuple(target.shape)}"
        if isinstance(value, str):
            problems.append(f"{found}: {value}")
        elif value.shape != tuple(target.shape):
            if only_init:
                not_taken.append(ours)
            else:
                problems.append(f"{found} has shape {value.shape} instead of {tuple(target.shape)}")
        else:
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    if not only_init:
        left_over = [name for name in sorted(tensors.keys() - used) if not re.fullmatch(source.ignored, name)]
        problems += [f"{name} has no place in the model" for name in left_over]
    taken_in_trunk = sum(name.startswith(("trunk.", "base.trunk.")) for name in state) - sum(
        name.startswith(("trunk.", "base.trunk.")) for name in not_taken
    )
    if only_init and not problems and taken_in_trunk == 0:
        problems.append("none of its tensors fits the trunk")
    if problems:
        raise ValueError(f"{path} ({source.name}) does not fit the model: {listed(problems)}.")
    return not_taken


def _transformed(source: Source, ours: str, value: np.ndarray, state: dict[str, torch.Tensor]) -> np.ndarray | str:
    """The source's tensor in our layout, or the reason why it has none."""
    if source is CAFFE_PSPNET and ours == "head.conv.conv.weight":
        return _pyramid_order(value)
    layer, _, leaf = ours.rpartition(".")
    if source.kind == "imagenet" and layer.endswith((".fc6", ".fc7")):
        try:
            return _fully_connected(layer, leaf, value, state)
        except ValueError as error:
            return str(error)
    return value


def _pyramid_order(weight: np.ndarray) -> np.ndarray:
    """Caffe concatenates the features with bins 6, 3, 2, 1; we, as semseg, with 1, 2, 3, 6."""
    features = weight.shape[1] // 2
    levels = np.split(weight[:, features:], 4, axis=1)
    return np.concatenate([weight[:, :features], *levels[::-1]], axis=1)


def _fully_connected(layer: str, leaf: str, value: np.ndarray, state: dict[str, torch.Tensor]) -> np.ndarray:
    width = state[f"{layer}.bias"].shape[0]
    kept = kept_filters(layer, value.shape[0], width) if value.shape[0] >= width else np.arange(value.shape[0])
    if leaf == "bias":
        return value[kept]
    target = state[f"{layer}.weight"].shape
    if layer.endswith("fc6"):
        return decimate(convolutional(value, target[1]), target[-1])[kept]
    inputs = kept_filters(f"{layer[:-1]}6", value.shape[1], target[1])
    return convolutional(value, value.shape[1])[kept][:, inputs]
