"""The card of a model: what it is, what it saw, how it wants its pixels. JSON in and out, strictly; no torch."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field, fields
from typing import Any

from segcore import models
from segcore.models.preprocessing import Preprocessing
from segcore.voc import MOST_BYTE_CLASSES, MOST_CLASSES

FORMAT = 1
"""Version of the JSON form; a reader refuses a newer one."""

MAX_NAME_CHARACTERS = 500
"""Of a class, a variant, a split: they stand in tables, file names and on terminals."""

SPLITS = ("none", "unknown", "imagenet", "coco", "voc2012-train", "voc2012-train_aug", "voc2012-trainval",
          "voc2012-trainval_aug", "voc2012-val", "sbd-train")  # fmt: skip
"""Training splits that the project knows; a dataset of one's own is any other name."""


ONNX = "onnx"
"""Variant of a card whose network is an ONNX file rather than one of `segcore.models.NAMES`."""

HUGGING_FACE = "huggingface"
"""Variant of the card that is made of a folder of Hugging Face's layout (`hf_folder.py`)."""

PYTHON = "python"
"""Variant of the card of a torch module that a function made (`python_model.py`)."""

CONVENTIONS = ("caffe", "deeplab-pytorch", "semseg", "areas")
"""Whose arithmetic the views of an image are made and fused by (`scoring/tta.py`): DeepLab's and PSPNet's Caffe, with
corners aligned, as this project trains; kazuto1011/deeplab-pytorch; hszhao/semseg. "areas" is of networks
of others alone: pixels are areas (`align_corners=False`), sides are padded to multiples of the stride."""

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Characters that move a cursor or end a line, and halves of such


@dataclass(frozen=True)
class ModelCard:
    """Everything about a network but its weights."""

    variant: str
    """Name in `segcore.models.NAMES`, "onnx", "huggingface" or "python"."""

    classes: tuple[str, ...]
    """Class names by label, each once: 1 to 255 of them, of models of others to 65,535."""

    preprocessing: Preprocessing
    """How uint8 RGB becomes the network's input."""

    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the variant's function beside the number of classes; JSON values. Of an ONNX file: `stride` in px,
    `output` (name of the scores), `probabilities` (whether they are that rather than logits), `parameters`, and the
    `name` that a person reads in outputs."""

    init: str = ""
    """Where the weights came from before training: "imagenet vgg16 (caffe)", "seeded, seed 0"."""

    training_split: str = "none"
    """What the weights were last trained on; "unknown" where nobody says. See `SPLITS`."""

    untrained: bool = False
    """The scores mean nothing; every output that shows the model says so."""

    commit: str = ""
    """Commit of this project that trained the weights, or the file or URL that they were imported from."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Measured numbers by name, such as {"voc2012-val/miou_percent": 68.7}."""

    notes: str = ""
    """Anything else a reader should know: licence, what was left out in an import."""

    convention: str = "caffe"
    """One of `CONVENTIONS`: that of the source of the weights."""

    colours: tuple[tuple[int, int, int], ...] = ()
    """RGB of each class in pictures for people and in exports; empty: ours. Masks have VOC's palette always."""

    def __post_init__(self) -> None:
        if self.variant in (ONNX, PYTHON):
            _check_onnx_options(self.options)
        elif self.variant != HUGGING_FACE:
            models.variant(self.variant)
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention is one of {', '.join(CONVENTIONS)}, got {_shown(self.convention)}.")
        if self._is_of_others != (self.convention == "areas") and self.convention != "caffe":
            raise ValueError(f"the convention {self.convention} is not one of {self.variant} models.")
        most = MOST_CLASSES if self._is_of_others else MOST_BYTE_CLASSES
        if not 1 <= len(self.classes) <= most or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"A card names 1 to {most} classes, each once; got {len(self.classes)}.")
        for text in (*self.classes, self.shown_name, self.init, self.training_split, self.commit, *self.metrics):
            if len(text) > MAX_NAME_CHARACTERS or any(unicodedata.category(c) in _CONTROLS for c in text):
                raise ValueError(f"{_shown(text)} is no name: it is too long, or would do things to a terminal.")
        if self.colours and len(self.colours) != len(self.classes):
            raise ValueError(f"A card has a colour for each of its {len(self.classes)} classes, or none.")
        if not all(isinstance(value, int | float) and abs(value) < 1e300 for value in self.metrics.values()):
            raise ValueError("The metrics of a card are finite numbers.")

    @property
    def _is_of_others(self) -> bool:
        """Whether the network is none of `segcore.models.NAMES`."""
        return self.variant in (ONNX, HUGGING_FACE, PYTHON)

    @property
    def parameters(self) -> int:
        """Parameters of the network: what it costs, roughly."""
        if self._is_of_others:
            return int(self.options.get("parameters", 0))
        return models.variant(self.variant).parameters

    @property
    def shown_name(self) -> str:
        name = str(self.options.get("name", self.variant)) if self._is_of_others else self.variant
        return f"{name} (untrained)" if self.untrained else name

    @property
    def saw_voc_val(self) -> bool:
        """Whether scoring this model on VOC 2012 val would score it on what it learnt by heart."""
        return any(_contains(seen, "voc2012val") for seen in trained_splits(self.training_split))

    def check_scoring_on(self, dataset: str) -> None:
        """ValueError when the model was trained on `dataset` (such as "voc2012-val"): the score would be worthless.

        Names are compared without case and separators: "VOC2012 val" is "voc2012-val".
        """
        if any(_contains(seen, plain_name(dataset)) for seen in trained_splits(self.training_split)):
            raise ValueError(
                f"{self.shown_name} was trained on {self.training_split}, which contains {dataset}; "
                f"a score there would say nothing, so choose another model or another split."
            )

    def deciding(self) -> dict[str, Any]:
        """What in the card decides the output, as JSON values."""
        return {
            "variant": self.variant,
            "options": {key: value for key, value in self.options.items() if not self._is_of_others or key != "name"},
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            # Runs of cards that were written before there was a choice keep their name
            **({} if self.convention == "caffe" else {"convention": self.convention}),
        }

    def to_json(self) -> str:
        value = {"format": FORMAT} | {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if not self.colours:  # Programs of before know no such entry
            del value["colours"]
        return json.dumps(value | {"preprocessing": self.preprocessing.to_json()}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, content: str | bytes, where: str = "The card") -> ModelCard:
        """Strict reading: ValueError naming `where` and the culprit for every unknown, missing or wrong entry."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {str(error)[:200]}.") from None
        try:
            return cls(**_checked(value))
        except ValueError as error:
            raise ValueError(f"{where} is no model card: {error}") from None


def _check_onnx_options(options: dict[str, Any]) -> None:
    if unknown := sorted(options.keys() - {"name", "stride", "output", "probabilities", "parameters"}):
        raise ValueError(
            f"options of an ONNX model are name, stride, output, probabilities, parameters; got {_shown(unknown)}."
        )
    stride, parameters = options.get("stride", 32), options.get("parameters", 0)
    if type(stride) is not int or not 1 <= stride <= 256:
        raise ValueError(f"stride must be a whole number of px in [1, 256], got {_shown(stride)}.")
    if type(parameters) is not int or not 0 <= parameters < 1 << 40:
        raise ValueError(f"parameters must be a whole number, got {_shown(parameters)}.")
    if not all(isinstance(options.get(key, ""), str) for key in ("name", "output")):
        raise ValueError("name and output of an ONNX model are texts.")
    if not isinstance(options.get("probabilities", False), bool):
        raise ValueError("probabilities must be true or false.")


def plain_name(name: str) -> str:
    """Name of a dataset or split to compare with others: without case and separators, VOC 2012 by one of its names.

    "voc2012val" for "VOC2012-val", "voc2012 val", "pascal_voc/val" and "VOC12 val".
    """
    plain = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())
    return re.sub(r"^(pascal)?voc(2012|12|(?!\d))", "voc2012", plain)


def trained_splits(training_split: str) -> list[str]:
    """Plain names of all that a card says a model saw: "mine-train after voc2012-trainval" is two, "a + b" is too."""
    return [plain for part in re.split(r"(?i)\bafter\b|[+,;&]", training_split) if (plain := plain_name(part))]


def _contains(seen: str, scored: str) -> bool:
    """Whether the images of one split contain those of another, as far as their plain names tell."""
    if seen == scored:
        return True
    if scored.startswith("voc2012val"):
        return seen.startswith("sbd") or (seen.startswith("voc2012") and "val" in seen)  # SBD has images of VOC's val
    dataset, both, part = seen.partition("trainval")
    return both != "" and part in ("", "aug") and scored in (f"{dataset}train", f"{dataset}val")


def _checked(value: Any) -> dict[str, Any]:
    entries = _object(value, "the card")
    if entries.pop("format", None) != FORMAT:
        raise ValueError(f"format is not {FORMAT}; it was written by another version of the project.")
    _expect_keys(entries, "the card", required={"variant", "classes", "preprocessing"},
                 known={entry.name for entry in fields(ModelCard)})  # fmt: skip
    for key in ("variant", "init", "training_split", "commit", "notes", "convention"):
        if not isinstance(entries.get(key, ""), str):
            raise ValueError(f"{key} must be a string, got {_shown(entries[key])}.")
    if len(entries["variant"]) > MAX_NAME_CHARACTERS:
        raise ValueError(f"variant names no model: {_shown(entries['variant'])}.")
    if not isinstance(entries.get("untrained", False), bool):
        raise ValueError(f"untrained must be true or false, got {_shown(entries['untrained'])}.")
    for key in ("options", "metrics"):
        if key in entries:
            _object(entries[key], key)
    classes = entries["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError("classes must be a list of names.")
    preprocessing = _object(entries["preprocessing"], "preprocessing")
    _expect_keys(preprocessing, "preprocessing", required={"colour_order", "mean", "std"},
                 known={"colour_order", "mean", "std"})  # fmt: skip
    colours = entries.get("colours", [])
    if not isinstance(colours, list) or not all(_is_colour(colour) for colour in colours):
        raise ValueError("colours must be a list of [red, green, blue], each from 0 to 255.")
    return entries | {
        "classes": tuple(classes),
        "colours": tuple(map(tuple, colours)),
        "preprocessing": Preprocessing(
            preprocessing["colour_order"],
            _three(preprocessing["mean"], "mean"),
            _three(preprocessing["std"], "std"),
        ),
    }


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(value).__name__}.")
    return value


def _expect_keys(value: dict[str, Any], name: str, *, required: set[str], known: set[str]) -> None:
    if missing := sorted(required - value.keys()):
        raise ValueError(f"{name} lacks {', '.join(missing)}.")
    if unknown := sorted(value.keys() - known):
        raise ValueError(f"{name} has unknown entries: {', '.join(map(_shown, unknown[:5]))}.")


def _three(value: Any, name: str) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3 or not all(type(number) in (int, float) for number in value):
        raise ValueError(f"preprocessing {name} must be a list of three numbers, got {_shown(value)}.")
    if not all(-1e6 < number < 1e6 for number in value):  # Whole numbers of JSON may be too large for a float
        raise ValueError(f"preprocessing {name} must be three numbers in [0, 255], got {_shown(value)}.")
    return (float(value[0]), float(value[1]), float(value[2]))


def _shown(value: Any) -> str:
    """A value that somebody else wrote, short and harmless in a message."""
    text = repr(value[:100] if isinstance(value, str | list) else value)
    return text if len(text) <= 120 else f"{text[:120]}..."
