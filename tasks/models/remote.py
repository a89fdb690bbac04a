"""Models by URI: a model directory in a bucket is brought into the user's cache, once for each version of it; those of
the Hugging Face hub into its own cache."""

import contextlib
import hashlib
import re
import shutil
import uuid
from pathlib import Path

from segcore import extras
from segcore.datasets.seen_images import SEEN_FILE
from segcore.models import checkpoint, hf_folder, python_model
from segcore.models.checkpoint import CARD_FILE, ONNX_FILE, WEIGHTS_FILE, LoadedModel
from tasks import processes, storage
from tasks.errors import JobError


def local_model(name_or_uri: str) -> str:
    """What `segcore.models.checkpoint` can read: a name or path as it is; of a URI, the path of a copy on this machine.

    "hf:org/name" or "hf:org/name@revision" is a model of the Hugging Face hub, from its cache on this machine where it
    is there. Raises JobError for a URI with no model directory.
    """
    if python_model.is_name(name_or_uri):
        processes.allow_pandas()
        return name_or_uri
    if name_or_uri.startswith("hf:"):
        return _from_hub(name_or_uri)
    if "://" not in name_or_uri:
        return name_or_uri
    place = storage.locate(name_or_uri)
    if place.protocol == "file":
        return place.path
    weights = place.name if place.name.endswith((".onnx", ".safetensors")) else ""
    if weights:
        place = storage.locate(name_or_uri.rpartition("/")[0])
    with storage.explained(place):
        whole = not weights  # A folder
        weights = weights or (ONNX_FILE if storage.exists(place / ONNX_FILE) else WEIGHTS_FILE)
        try:
            if whole and storage.exists(place / hf_folder.CONFIG) and not storage.exists(place / CARD_FILE):
                names = [file.path for file in storage.list_files(place) if hf_folder.is_part(file.path)]
            else:
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


_HUB_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_HUB_FILES = ["config.json", "preprocessor_config.json", "model.safetensors.index.json", "*.safetensors"]


def _from_hub(name: str) -> str:
    found = _HUB_NAME.fullmatch(name)
    if found is None or ".." in name:
        raise JobError(f"{name} names no model of Hugging Face: it is hf:org/name, or hf:org/name@revision.")
    if not extras.is_here("huggingface_hub"):
        raise JobError(extras.sentence("transformers", name))
    from huggingface_hub import snapshot_download

    def fetched(only_here: bool) -> str:
        return str(
            snapshot_download(found[1], revision=found[2], allow_patterns=_HUB_FILES, local_files_only=only_here)
        )

    # What is here is taken without a question to the hub, so that a run goes on with what it began with
    with contextlib.suppress(Exception):
        here = Path(fetched(only_here=True))
        if (here / "config.json").is_file() and any(here.glob("*.safetensors")):
            return str(here)
    try:
        return fetched(only_here=False)
    except Exception as error:  # Of its HTTP client, of the system, its own
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
        raise JobError(
            f"{name} is not in Hugging Face's cache on this machine, and the hub did not give it ({reason}): check "
            f"name and network, or give the path of a folder with the model."
        ) from None


def load_model(name_or_uri: str) -> LoadedModel:
    """The model of a name, a path or a URI. Raises JobError where it cannot be used."""
    try:
        return checkpoint.load(local_model(name_or_uri))
    except ValueError as error:
        raise JobError(str(error)) from None
