"""Models that a Python function makes: `module:function`, which returns a torch module and says what it is.

The module's code runs with all rights of the person who names it: the name comes from a command line or a job, never
from a file. Other code than the module's own file, and files that it reads, are not part of the digest.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segcore import extras
from segcore.models.card import PYTHON, ModelCard
from segcore.models.preprocessing import BY_RANGE, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")

ATTRIBUTES = ("classes", "preprocessing", "stride", "probabilities", "training_split")


def is_name(text: str) -> bool:
    """Whether a model's name is `module:function`; "hf:name" is not."""
    return _NAME.fullmatch(text) is not None and not text.startswith("hf:")


def load(name: str) -> tuple[nn.Module, ModelCard, str]:
    """Module in eval mode, card, and SHA-256 over its weights and the module's own file, in hexadecimal digits.

    The current folder is searched first. The torch module has as attributes `classes` (names by label) and
    `preprocessing` (a name of `segcore.models.preprocessing.BY_RANGE`, or a `Preprocessing`), and may have `stride` in
    px (32), `probabilities` (False) and `training_split`. It maps (1, 3, H, W) float32 to (1, C, h, w), or to a
    mapping with that under "out", or to an object with it as `logits`.
    ValueError in one sentence: no such module or function, what is missing of it, what it raised.
    """
    return _load(name, str(Path.cwd()))


@functools.lru_cache(maxsize=1)
def _load(name: str, folder: str) -> tuple[nn.Module, ModelCard, str]:
    found = _NAME.fullmatch(name)
    assert found is not None
    if not extras.is_here("torch"):
        raise ValueError(extras.sentence("torch", name))
    import torch
    from torch import nn

    sys.path.insert(0, folder)
    try:
        source = importlib.import_module(found[1])
        made = getattr(source, found[2])()
    except Exception as error:  # Code of anybody
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ValueError(f"{name} gave no model ({type(error).__name__}: {reason}): it is MODULE:FUNCTION.") from None
    finally:
        sys.path.remove(folder)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} returned {type(made).__name__}, not a torch.nn.Module.")
    file = getattr(source, "__file__", None)
    whole = hashlib.sha256(Path(file).read_bytes() if file else b"")
    for key, value in sorted(made.state_dict().items()):
        value = value.detach().cpu().contiguous()
        whole.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return made.float().eval().requires_grad_(False), _card(name, made), whole.hexdigest()


def scores_of(output: Any) -> Tensor:
    """The scores in what a module returned. ValueError for anything else."""
    import torch

    found = output.get("out") if isinstance(output, Mapping) and "out" in output else getattr(output, "logits", output)
    if not isinstance(found, torch.Tensor):
        told = f"The model returned {type(output).__name__}"
        raise ValueError(f'{told}: expected a tensor, one under "out" in a mapping, or one as .logits.')
    return found


def _card(name: str, made: nn.Module) -> ModelCard:
    given = {key: getattr(made, key) for key in ATTRIBUTES if hasattr(made, key)}
    classes, asked = given.get("classes"), given.get("preprocessing")
    preprocessing = BY_RANGE.get(asked) if isinstance(asked, str) else asked
    questions = []
    if not isinstance(classes, list | tuple) or not all(isinstance(entry, str) and entry for entry in classes):
        questions.append("its classes (classes = [names by label])")
    if not isinstance(preprocessing, Preprocessing):
        questions.append(f"what its pixels are (preprocessing = one of {', '.join(map(repr, BY_RANGE))})")
    if questions:
        raise ValueError(f"{name} does not say {', nor '.join(questions)}: give the torch module these attributes.")
    assert classes is not None and isinstance(preprocessing, Preprocessing)
    try:
        return ModelCard(
            variant=PYTHON,
            classes=tuple(classes),
            preprocessing=preprocessing,
            options={
                "name": name,
                "stride": given.get("stride", 32),
                "probabilities": given.get("probabilities", False),
                "parameters": sum(parameter.numel() for parameter in made.parameters()),
            },
            training_split=str(given.get("training_split", "unknown")),
            convention="areas",
        )
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}") from None
