"""Models by URI: a model directory in a bucket is brought into the user's cache, once for each version of it."""

import contextlib
import hashlib
import shutil
import uuid

from segcore.datasets.seen_images import SEEN_FILE
from segcore.models import checkpoint
from segcore.models.checkpoint import CARD_FILE, ONNX_FILE, WEIGHTS_FILE, LoadedModel
from tasks import storage
from tasks.errors import JobError


def local_model(name_or_uri: str) -> str:
    """What `segcore.models.checkpoint` can read: a name or path as it is; of a URI, the path of a copy on this machine.

    Raises JobError for a URI with no model directory.
    """
    if "://" not in name_or_uri:
        return name_or_uri
    place = storage.locate(name_or_uri)
    if place.protocol == "file":
        return place.path
    weights = place.name if place.name.endswith((".onnx", ".safetensors")) else ""
    if weights:
        place = storage.locate(name_or_uri.rpartition("/")[0])
    with storage.explained(place):
        weights = weights or (ONNX_FILE if storage.exists(place / ONNX_FILE) else WEIGHTS_FILE)
        try:
            names = [weights, CARD_FILE, *([SEEN_FILE] if storage.exists(place / SEEN_FILE) else [])]
            versions = [storage.stat(place / name).version for name in names]
        except FileNotFoundError:
            raise JobError(f"There is no model at {place.uri}: expected {weights} and {CARD_FILE} below it.") from None
        key = hashlib.sha256("\n".join([place.uri, weights, *versions]).encode()).hexdigest()[:20]
        folder = checkpoint.cache_directory().parent / "remote" / key
        if not folder.is_dir():
            unfinished = folder.with_name(f".{key}.{uuid.uuid4().hex}.unfinished")
            unfinished.mkdir(parents=True)
            try:
                for name in names:
                    (unfinished / name).write_bytes(storage.read_bytes(place / name))
                with contextlib.suppress(OSError):  # Another process has brought it meanwhile
                    unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return str(folder if weights in (WEIGHTS_FILE, ONNX_FILE) else folder / weights)


def load_model(name_or_uri: str) -> LoadedModel:
    """The model of a name, a path or a URI. Raises JobError where it cannot be used."""
    try:
        return checkpoint.load(local_model(name_or_uri))
    except ValueError as error:
        raise JobError(str(error)) from None
