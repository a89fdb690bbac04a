"""Models as directories in a folder or bucket prefix: which there are.

What a model directory holds is `segcore.models.checkpoint`'s business.
"""

from dataclasses import dataclass
from pathlib import Path

from segcore import models
from segcore.models import python_model
from segcore.models.checkpoint import CARD_FILE, WEIGHTS_FILE
from tasks import storage
from tasks.errors import JobError

_A_MODEL = f"each with {WEIGHTS_FILE} and {CARD_FILE}, as `segment-archive train` writes OUTPUT/model"


@dataclass(frozen=True)
class RegisteredModel:
    """One model of a registry."""

    name: str
    """Of its directory, relative to the registry."""

    uri: str
    """Of its directory."""


def list_models(registry: str) -> list[RegisteredModel]:
    """The models of a registry, in the order of their names.

    registry: a folder or prefix of model directories, one model directory, or what `segment-archive run --model` takes
        that is no folder: a model's name, an ONNX file, hf:org/name, module:function. A directory with either of the
        two files of a model counts: one without the other is a broken model, not none.
    Raises JobError where there is none.
    """
    if (
        registry in models.NAMES
        or registry.startswith("hf:")
        or registry.endswith(".onnx")
        or python_model.is_name(registry)
    ):
        return [RegisteredModel(registry, registry)]
    place = storage.locate(registry)
    with storage.explained(place):
        if place.protocol == "file" and not Path(place.path).is_dir():
            raise JobError(f"The folder {place.path} does not exist: put model directories there, {_A_MODEL}.")
        folders = {
            file.path.rpartition("/")[0]
            for file in storage.list_files(place)
            if file.path.rpartition("/")[2] in (WEIGHTS_FILE, CARD_FILE)
        }
    if not folders:
        raise JobError(f"{place.uri} holds no model: put model directories there, {_A_MODEL}.")
    return [
        RegisteredModel(folder or place.name, (place / folder).uri if folder else place.uri)
        for folder in sorted(folders)
    ]
