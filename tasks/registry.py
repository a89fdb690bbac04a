"""Models as directories in a folder or bucket prefix: which there are, and a copy on this machine where one is needed.

What a model directory holds is `segcore.checkpoint`'s business.
"""

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from segcore import models
from segcore.checkpoint import CARD_FILE, WEIGHTS_FILE, cache_directory
from tasks import storage
from tasks.errors import JobError


@dataclass(frozen=True)
class RegisteredModel:
    """One model of a registry."""

    name: str
    """Of its directory, relative to the registry."""

    uri: str
    """Of its directory."""


def list_models(registry: str) -> list[RegisteredModel]:
    """The models of a registry, in the order of their names.

    registry: a folder or prefix of model directories, one model directory, or a model's name (its weights are looked
        for where `segment-archive run` finds them). A directory with either of the two files of a model counts: one
        without the other is a broken model, not none.
    Raises JobError where there is none.
    """
    if registry in models.NAMES:
        return [RegisteredModel(registry, registry)]
    place = storage.locate(registry)
    with storage.explained(place):
        if place.protocol == "file" and not Path(place.path).is_dir():
            raise JobError(f"There is no registry at {registry}: give a folder or bucket prefix of model directories.")
        folders = {
            file.path.rpartition("/")[0]
            for file in storage.list_files(place)
            if file.path.rpartition("/")[2] in (WEIGHTS_FILE, CARD_FILE)
        }
    if not folders:
        raise JobError(f"{registry} holds no model: a model is a directory with {WEIGHTS_FILE} and {CARD_FILE}.")
    return [
        RegisteredModel(folder or place.name, (place / folder).uri if folder else place.uri)
        for folder in sorted(folders)
    ]


def local_copy(model: str) -> str:
    """A path that `segcore.checkpoint` can read: the model itself, or a copy in the cache of one in a bucket.

    The copy is named by the versions of its files, so that a replaced model is fetched anew.
    Raises JobError where the model is not there.
    """
    if "://" not in model:
        return model
    place = storage.locate(model)
    if place.protocol == "file":
        return place.path
    with storage.explained(place):
        files = [place / name for name in (WEIGHTS_FILE, CARD_FILE)]
        versions = [(file.uri, storage.stat(file).version, storage.stat(file).size) for file in files]
        target = cache_directory().parent / "registry" / hashlib.sha256(repr(versions).encode()).hexdigest()[:20]
        if target.is_dir():
            return str(target)
        unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        unfinished.mkdir(parents=True)
        try:
            for file in files:
                (unfinished / file.name).write_bytes(storage.read_bytes(file))
            try:
                unfinished.rename(target)
            except OSError:
                if not target.is_dir():  # Another process of this machine was quicker
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return str(target)
