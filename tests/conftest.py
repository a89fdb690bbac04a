"""What several tests share: the real data, one Ray cluster, one S3 server, one Prefect server, small photographs."""

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before anything imports torch or Ray: the tests share two cores with the servers that they start
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")

ROOT = Path(__file__).resolve().parent.parent

SERVERS = ("ray_cluster", "prefect_server")
"""Fixtures that are dear to start: their tests are one group, so that each starts once, in one of two processes."""

SERVERS_GROUP = pytest.mark.xdist_group("servers")
"""For tests that ask for one of them while they run."""


@pytest.hookimpl(tryfirst=True)  # Before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups of tests for pytest-xdist; those whose time-outs are long begin first, so that none is left at the end."""
    group_of: dict[pytest.Item, str] = {}
    patience: dict[str, float] = {}
    for item in items:
        if (mark := item.get_closest_marker("xdist_group")) is None:
            servers = any(name in getattr(item, "fixturenames", ()) for name in SERVERS)
            mark = SERVERS_GROUP.mark if servers else pytest.mark.xdist_group(item.nodeid.partition("::")[0]).mark
            item.add_marker(pytest.mark.xdist_group(*mark.args))
        group_of[item] = mark.args[0]
        timeout = item.get_closest_marker("timeout")
        patience[mark.args[0]] = patience.get(mark.args[0], 0) + (timeout.args[0] if timeout else 1)
    items.sort(key=lambda item: -patience[group_of[item]])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a GPU are passed by where there is none, also by who asks for them alone."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def voc() -> Path:
    """Folder voc2012 of the real data; skips where it is absent."""
    data = Path(os.environ.get("SEGMENT_ARCHIVE_DATA", ROOT.parent / "shared" / "data")) / "voc2012"
    if not data.is_dir():
        pytest.skip(f"the real data is not at {data.parent}; set SEGMENT_ARCHIVE_DATA")
    return data


@pytest.fixture(scope="session")
def field(voc: Path) -> Path:
    """Folder of small inputs that other people's users reported; skips where the real data is absent."""
    return voc.parent / "field"


@pytest.fixture(scope="session")
def ray_cluster(s3_server: Path) -> Iterator[None]:
    """One local Ray cluster for all tests; after the S3 server, whose settings its workers inherit."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=400 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def local_engine(s3_server: Path) -> Iterator[None]:
    """One local engine for all tests, whose workers start once; after the S3 server, whose settings they inherit."""
    from tasks import engines

    with engines.opened("local"):
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server with a database of its own."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=280):
        os.environ["PREFECT_API_URL"] = str(PREFECT_API_URL.value())  # For commands in processes of their own
        yield
        del os.environ["PREFECT_API_URL"]


@pytest.fixture(autouse=True)
def _prefect_only_where_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of other tests run without the server, whichever tests came before in this process."""
    if "prefect_server" not in request.fixturenames:
        monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real S3 server; yields the folder whose sub-folders are its buckets."""
    root = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    assert rclone, "rclone is missing: install the project with its dev dependencies"
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", "testkey,testsecret"]
    # It caches folders, so buckets and objects are made through it; without that cache it locks up under this load
    server = subprocess.Popen([rclone, "serve", "s3", str(root), *address, "-q"], stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield root
    server.terminate()
    server.wait()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@dataclass
class Bucket:
    """A bucket of the S3 server, filled through it and looked at on the disk behind it."""

    name: str
    folder: Path

    def put(self, path: str, data: bytes) -> None:
        from tasks import storage

        storage.write_whole(storage.locate(f"s3://{self.name}/{path}"), data)


@pytest.fixture
def bucket(s3_server: Path) -> Bucket:
    """A fresh bucket."""
    from tasks import storage, storage_client

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    storage_client.filesystem(storage.locate(f"s3://{name}")).mkdir(name)
    return Bucket(name, s3_server / name)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six small photographs of two sizes in a folder with a sub-folder."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for number in range(6):
        size = (64, 48) if number % 2 else (49, 65)
        place = folder / "more" if number > 3 else folder
        photograph(number, size).save(place / f"photo-{number}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def small_output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output with two finished runs of 32 images, `bbbb22220000` the later, and one that never finished."""
    from tests.outputs import error_row, small_rows, write_run

    folder = tmp_path_factory.mktemp("small")
    output = str(folder / "out [1]")  # A name that a pattern would misread
    errors = [
        error_row("bad/empty.jpg", "/nowhere/empty.jpg", "empty", "the file is empty"),
        error_row("z.txt", "/z.txt"),
    ]
    first = small_rows(folder / "photographs", seed=1)
    second = small_rows(folder / "photographs", seed=2)
    second[:10] = first[:10]
    write_run(output, "aaaa11110000", first + errors)
    write_run(output, "bbbb22220000", second + errors, finished="2026-01-03T00:00:00+00:00")
    write_run(output, "cccc33330000", first[:8], status="running", finished=None)
    return output


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Debian's chromium; skips where it is missing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture (width, height) with smooth areas and edges, different for each seed."""
    width, height = size
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.zeros((height, width, 3), dtype=np.float64)
    for channel in range(3):
        pixels[..., channel] = 60 + 50 * random.random() + 40 * np.sin((x * random.random() + y) / 9)
    for _ in range(3):
        cy, cx, radius = random.random() * height, random.random() * width, 5 + random.random() * height / 4
        pixels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = random.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
