"""Storage through a proxy that does on purpose what networks and object stores do by accident."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tasks import storage, storage_client
from tasks.errors import JobError
from tasks.storage import Location, locate
from tests.fault_proxy import FaultProxy

DATA = os.urandom(200_000)


@pytest.fixture
def proxy(bucket, monkeypatch) -> Iterator[FaultProxy]:
    """Between storage and the S3 server; waits between tries are a tenth, time-outs a second."""
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    sleep = time.sleep
    monkeypatch.setattr(storage_client.time, "sleep", lambda seconds: sleep(seconds / 10))
    with FaultProxy(port).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
        monkeypatch.setenv(storage_client.TIMEOUT, "1")
        storage_client.refresh()
        yield running
    monkeypatch.undo()
    storage_client.refresh()


@pytest.fixture
def place(bucket, proxy) -> Location:
    return locate(f"s3://{bucket.name}/place")


def lasts(proxy: FaultProxy, weather: str, seconds: float, call: Callable[[], object]) -> object:
    """The call in a weather that is over after so long, on a busy machine when it has struck."""
    before, patience = proxy.struck, time.monotonic() + 60

    def clears_up() -> None:
        while proxy.struck == before and time.monotonic() < patience:
            time.sleep(0.02)
        proxy.weather = "calm"

    proxy.weather = weather
    threading.Timer(seconds, clears_up).start()
    return call()


@pytest.mark.parametrize("weather", ["error", "slow-down", "reset", "silent"])
def test_what_passes_is_waited_for(proxy, place, weather):
    lasts(proxy, weather, 0.3, lambda: storage.write_whole(place / "a", DATA))
    assert lasts(proxy, weather, 0.3, lambda: storage.read_bytes(place / "a")) == DATA
    files = lasts(proxy, weather, 0.3, lambda: list(storage.list_files(place)))
    assert [(file.path, file.size) for file in files] == [("a", len(DATA))]
    assert lasts(proxy, weather, 0.3, lambda: storage.exists(place / "a")) is True
    assert proxy.struck >= 4


def test_half_an_upload_is_never_read(proxy, place, monkeypatch):
    storage.write_whole(place / "old", b"old")
    monkeypatch.setattr(storage_client, "ATTEMPTS", 2)
    proxy.weather = "cut-upload"
    for name in ("new", "old"):
        with pytest.raises(Exception):  # noqa: B017, whatever the network says
            storage.write_whole(place / name, DATA)
    proxy.weather = "calm"
    monkeypatch.setattr(storage_client, "ATTEMPTS", 8)
    assert not storage.exists(place / "new")
    assert storage.read_bytes(place / "old") == b"old"
    lasts(proxy, "cut-upload", 0.3, lambda: storage.write_whole(place / "new", DATA))
    assert storage.read_bytes(place / "new") == DATA


def test_half_an_answer_is_never_taken_for_whole(proxy, place):
    storage.write_whole(place / "a", DATA)
    assert lasts(proxy, "cut-download", 0.3, lambda: storage.read_bytes(place / "a")) == DATA
    assert lasts(proxy, "cut-download", 0.3, lambda: storage.read_range(place / "a", 9, 99_999)) == DATA[9:100_008]
    with storage.open_for_reading(place / "a") as opened:
        assert lasts(proxy, "cut-download", 0.3, opened.read) == DATA
    assert lasts(proxy, "trickle", 0.3, lambda: storage.read_range(place / "a", 0, 20_000)) == DATA[:20_000]
    assert proxy.struck >= 4


def test_a_bucket_that_becomes_read_only_is_told_in_one_sentence(proxy, place):
    storage.write_whole(place / "a", DATA)
    proxy.weather = "read-only"
    refused = pytest.raises(JobError, match=r"^No permission for s3://.*/place: check the rights")
    with refused as caught, storage.explained(place):
        storage.write_whole(place / "b", DATA)
    assert "\n" not in str(caught.value) and proxy.struck == 1  # What is refused is not asked again
    assert storage.read_bytes(place / "a") == DATA


def test_expired_credentials_are_read_anew_where_they_were_renewed(proxy, place, monkeypatch, tmp_path):
    storage.write_whole(place / "a", DATA)
    profile = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    profile.write_text("[default]\naws_access_key_id = oldkey\naws_secret_access_key = testsecret\n")
    storage_client.refresh()
    proxy.expired_key, proxy.weather = "oldkey", "expired"
    with pytest.raises(JobError, match="have expired: renew them"), storage.explained(place):
        storage.read_bytes(place / "a")
    with pytest.raises(JobError, match="or the credentials have expired"), storage.explained(place):
        storage.exists(place / "a")
    profile.write_text("[default]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n")
    assert storage.exists(place / "a") and storage.read_bytes(place / "a") == DATA
