"""Tensors out of published files: Caffe, safetensors, and whatever trainers write with `torch.save`.

No pickle is loaded other than with `weights_only=True`. What the names mean is in `sources.py`.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segcore.weights.caffe import read_caffemodel

Tensors = dict[str, np.ndarray]

MAX_FILE_BYTES = 4 << 30
"""Unpacked; no published file of weights is larger."""

_MAX_NAME_CHARACTERS = 300
_MAX_DEPTH = 6
_MAX_CONTAINERS = 10_000

_WRAPPERS = re.compile(
    r"((module|model|network|net|base|scale|_orig_mod|_forward_module|_module|ema|ema_model|model_ema|averaged_model"
    r"|module_ema|student|teacher|segmentor|wrapped|inner|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)
"""Names that trainers put in front: DataParallel, torch.compile, Lightning, FSDP, moving averages, in any order."""

_INNER_WRAPPERS = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_NO_WEIGHTS = re.compile(
    r"(.*\.)?(num_batches_tracked|n_averaged|total_ops|total_params)|(.*\.)?(criterion\w*|loss\w*|metrics?)(\..*)?"
)
"""Counters, losses' class weights, what profilers leave."""

_AVERAGE = re.compile(r"(^|[._])(ema|averaged|average|teacher|swa)([._]|$)")
_NO_MODEL = re.compile(r"optim|sched|scaler|grad|momentum|exp_avg|^args$|^config$|^hyper_parameters$")  # Containers


@dataclass(frozen=True)
class State:
    """A state dict that was found in a file."""

    place: str
    """Where in the file: keys of the containers and the wrappers of its names, "" for the file itself."""

    tensors: Mapping[str, torch.Tensor | np.ndarray]
    """By name without wrappers."""

    @property
    def is_average(self) -> bool:
        """Whether its place says that these are averaged weights, which evaluate better."""
        return _AVERAGE.search(self.place) is not None


def read_states(path: Path) -> list[State]:
    """Every state dict of a file, not yet checked; at least one. ValueError in one sentence."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    with path.open("rb") as file:
        _require_binary(path, file.read(4096))
    if path.suffix == ".caffemodel":
        tensors = read_caffemodel(path)
        # The shared copies of the network for the smaller scales of v2.
        return [State("", {name: value for name, value in tensors.items() if not re.search(r"res0(75|5)", name)})]
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    states = [state for keys, container in _containers(loaded) for state in _split(path, keys, container)]
    if not states:
        raise ValueError(f"{path} holds no state dict: expected tensors by name.")
    return states


def checked_tensors(path: Path, state: State) -> Tensors:
    """The tensors of a state dict as float32. ValueError for one that is not what its file says, or not finite."""
    tensors = {}
    for name, value in state.tensors.items():
        if isinstance(value, np.ndarray):
            tensors[name] = value
            continue
        _require_plain_tensor(value, f"{path}: {name}")
        array = value.detach().float().numpy()
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has values that are not finite.")
        tensors[name] = array
    return tensors


def _containers(loaded: Any) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Every dictionary in what a file holds that may hold a model, with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_CONTAINERS:
        keys, value = waiting.pop(0)
        if not isinstance(value, dict) or id(value) in seen:
            continue
        seen.add(id(value))
        yield keys, value
        if len(keys) < _MAX_DEPTH:
            waiting += [
                ((*keys, str(key)[:50]), inner)
                for key, inner in value.items()
                if isinstance(inner, dict) and not _NO_MODEL.search(str(key)[:50])
            ]


def _split(path: Path, keys: tuple[str, ...], container: dict[Any, Any]) -> Iterator[State]:
    """The state dicts of one dictionary: one for each run of wrappers in front of its names."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in container.items():
        if not isinstance(value, torch.Tensor):
            continue  # An epoch, a configuration: what else stands beside weights
        if not isinstance(name, str) or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
            raise ValueError(f"{path} holds no state dict: {repr(name)[:100]} names no tensor.")
        wrappers = match[0] if (match := _WRAPPERS.match(name)) else ""
        bare = _INNER_WRAPPERS.sub("", name[len(wrappers) :])
        if not _NO_WEIGHTS.fullmatch(bare):
            groups.setdefault(wrappers, {})[bare] = value
    for wrappers, tensors in groups.items():
        yield State(".".join([*keys, *wrappers.split(".")]).strip("."), tensors)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except Exception as error:  # Its own kind, and KeyError for numbers that torch does not have
        raise ValueError(f"{path} is not a readable safetensors file: {_first_line(error)}.") from error


def _read_torch(path: Path) -> Any:
    _require_torch_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a damaged pickle makes the reader trip over, or what it must not run
        # Its own words advise to load the file with trust, which is what it must not be
        wanted = re.search(r"GLOBAL ([\w.]{3,80})", str(error))
        if wanted is not None:
            raise ValueError(
                f"{path} is no PyTorch file of plain tensors: it asks for {wanted[1]}, and reading that could run "
                "code. Save the state dict alone where the file was made: "
                'torch.save(model.state_dict(), "weights.pth").'
            ) from None
        damaged = isinstance(error, pickle.UnpicklingError)
        reason = "a pickle that is damaged, or asks for more than tensors" if damaged else _first_line(error)
        raise ValueError(f"{path} is no PyTorch file of plain tensors, or is cut short ({reason}).") from None


_PACKED = {
    b"\x1f\x8b": "compressed by gzip; unpack it with gunzip",
    b"BZh": "compressed by bzip2; unpack it with bunzip2",
    b"\xfd7zXZ": "compressed by xz; unpack it with unxz",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x89HDF": "an HDF5 file, as Keras writes it; weights of PyTorch, Caffe or safetensors are read",
    b"\x93NUMPY": "a NumPy array; weights of PyTorch, Caffe or safetensors are read",
}


def _require_binary(path: Path, first: bytes) -> None:
    """ValueError for what downloads give in place of a file of weights."""
    if not first:
        raise ValueError(f"{path} is empty: fetch it again.")
    for magic, what in _PACKED.items():
        if first.startswith(magic):
            raise ValueError(f"{path} is {what}.")
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in the repository that it is from, or "
            "download the file itself."
        )
    if re.match(rb"<(!doctype|html|head|body|\?xml|!--)", text, re.IGNORECASE):
        raise ValueError(
            f"{path} is a web page, not weights: the host answered with a page, to sign in or to confirm the download. "
            "Fetch the file in a browser."
        )
    if text[:1] in (b"{", b"["):
        said = "a table of JSON"
        try:
            json.loads(path.read_bytes()[: 1 << 20])
        except (ValueError, RecursionError):
            return  # A brace is also how a pickle of some other protocol may begin
        if message := re.search(rb'"(?:message|error|detail)"\s*:\s*"([ -!#-~]{1,200})', first):
            said = f"JSON, an answer that says {message[1].decode()!r}"
        raise ValueError(f"{path} is {said}, not weights: look at what was downloaded, and fetch the file itself.")


def _require_torch_zip(path: Path) -> None:
    """ValueError for a zip that is a program, somebody's folder, or unpacks to more than it is."""
    if not zipfile.is_zipfile(path):
        return  # Of before 2020, or none at all: the pickle says
    try:
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
    except Exception as error:
        raise ValueError(f"{path} is no PyTorch file, or is cut short: {_first_line(error)}.") from None
    names = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript archive, a program and not a state dict. Where it is trusted: "
            'torch.save(torch.jit.load(FILE).state_dict(), "weights.pth").'
        )
    size = sum(member.file_size for member in members)
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    # torch stores tensors as they are, and nothing twice
    if size > min(MAX_FILE_BYTES, path.stat().st_size) or not stored:
        raise ValueError(f"{path} is no PyTorch file: it would unpack to {size} bytes, and torch does not compress.")
    if "data.pkl" not in names:
        some = ", ".join(repr(member.filename)[1:-1][:60] for member in members[:3])
        raise ValueError(f"{path} is a zip archive of other files ({some}), not a PyTorch file: unpack it.")


def _require_plain_tensor(value: torch.Tensor, where: str) -> None:
    """ValueError for a tensor that claims more numbers than are there, or is none of plain numbers."""
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.is_complex():
        raise ValueError(f"{where} is no tensor of plain numbers.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{where} claims a shape of {tuple(value.shape)[:8]}, more numbers than the file holds.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    line = text.splitlines()[0].partition(". ")[0][:200].rstrip(".") if text else type(error).__name__
    return line if line.isprintable() else repr(line)
