"""Whether everything that a job needs is here: one line for each, in order or with the remedy."""

import contextlib
import importlib.metadata
import os
import platform
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from segcore import extras
from tasks import storage, storage_faults
from tasks.errors import JobError

_RAY_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    subject: str
    healthy: bool
    words: str
    """What was found, or what is wrong and what helps."""


def examine(output: str | None = None, *more: tuple[str, Callable[[], str]]) -> Iterator[Finding]:
    """Look at everything, one after another; what raises is a finding too.

    output: a folder or bucket prefix that a job is to write to; one small file is written there, read and removed.
    more: subjects that only the caller knows about, with their checks.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("device", _device),
        ("CRF engine", _engine),
        ("storage", lambda: _storage(output)),
        ("Ray", _ray),
        *more,
    ]
    for subject, check in checks:
        try:
            yield Finding(subject, True, check())
        except Exception as error:
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield Finding(subject, False, storage_faults.scrub(words))


def _versions() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 - the doctor is asked where something is wrong
        raise JobError(f"Python {platform.python_version()} is too old: install Python 3.11 or newer.")
    named = [f"Python {platform.python_version()}"]
    for package in ("segment-archive", "onnxruntime", "pyarrow", "torch", "ray", "prefect"):
        try:
            named.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            if package in extras.EXTRAS:  # One machine and the default model need none of them
                named.append(f"no {package}")
                continue
            raise JobError(f"{package} is not installed: run `make setup`, or pip install the project.") from None
    if "no prefect" in named:
        return ", ".join(named)
    fastapi = importlib.metadata.version("fastapi")
    if tuple(int(part) for part in fastapi.split(".")[:2]) >= (0, 140):
        raise JobError(f"fastapi {fastapi} breaks Prefect: pip install 'fastapi<0.140'.")
    return ", ".join(named)


def _device() -> str:
    from segcore.scoring import hardware
    from tasks.processes import usable_cpus

    if not extras.is_here("torch"):
        gpu = f" {extras.sentence('torch', 'The GPU')}" if hardware.shows_gpu() else ""
        return f"{usable_cpus()} CPUs with fp32, by ONNX Runtime.{gpu}".removesuffix(".")
    import torch

    from segcore.scoring.device import choose_device, choose_precision

    device = choose_device("auto")
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        return f"{', '.join(names)} with {precision}; {usable_cpus()} CPUs"
    if hardware.shows_gpu():
        raise JobError("There is a GPU, but torch does not see it: install the CUDA build of torch and the driver.")
    return f"no GPU; {usable_cpus()} CPUs with {precision}"


def _engine() -> str:
    from segcore.crf import dense_crf

    name = dense_crf.engine_name()
    if not name.startswith("native"):
        raise JobError(f"{name} is about ten times slower than ours: install g++ and python3-dev, then `make setup`.")
    return name


def _storage(output: str | None) -> str:
    if output is None:
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        where = f"S3 at {storage_faults.scrub(endpoint)}" if endpoint else "no AWS_ENDPOINT_URL"
        return f"not asked for a place; `segment-archive doctor OUTPUT` tries one ({where})"
    folder = storage.locate(output)
    storage.require_writable(folder)
    probe, content = folder / f"{storage.TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}", os.urandom(1 << 16)
    with storage.explained(folder):
        try:
            storage.write_whole(probe, content)
            if storage.read_bytes(probe) != content:
                raise JobError(f"{folder.uri} gives back other bytes than were written: do not use it.")
        finally:
            with contextlib.suppress(Exception):
                storage.remove(probe)
    return f"{folder.uri} takes, gives back and removes a file"


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        return "RAY_ADDRESS is not set: jobs run on this machine"
    from tasks import cluster

    host, _, port = address.rpartition(":")
    if port.isdigit():  # Ray itself would try for a minute
        try:
            socket.create_connection((host.rpartition("/")[2], int(port)), _RAY_PATIENCE_S).close()
        except OSError as error:
            raise JobError(f"Nobody answers at RAY_ADDRESS={address} ({error}): start the cluster.") from None
    with cluster.connected():
        cpus, gpus = cluster.total_resources()
    if cpus < 1:
        raise JobError(f"The cluster at {address} has no CPUs: add a node, or let the job ask for `cpus`.")
    return f"the cluster at {address} has {cpus:g} CPUs and {gpus:g} GPUs"
