"""Calls of a store that are tried again, and credentials that are read anew."""

import pytest

from tasks import storage_client, storage_faults
from tasks.storage import locate
from tests.tasks.test_storage_faults import client_error


def failing_first(times: int, error: Exception):
    calls = []

    def call():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return call


def test_faults_that_may_pass_are_tried_again(monkeypatch):
    monkeypatch.setattr(storage_client.time, "sleep", lambda _: None)
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError("reset by peer")
        return "done"

    assert storage_client.retried(flaky) == "done" and len(calls) == 3
    from botocore.exceptions import EndpointConnectionError

    calls.clear()

    def unreachable():
        calls.append(1)
        raise EndpointConnectionError(endpoint_url="http://x")

    with pytest.raises(EndpointConnectionError):
        storage_client.retried(unreachable)
    assert len(calls) == storage_faults.ATTEMPTS
    with pytest.raises(FileNotFoundError):
        storage_client.retried(lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))

    def always():
        calls.append(1)
        raise TimeoutError

    calls.clear()
    with pytest.raises(TimeoutError):
        storage_client.retried(always)
    assert len(calls) == storage_faults.ATTEMPTS


def test_a_store_that_is_overloaded_is_asked_again_and_one_that_refuses_is_not(monkeypatch):
    monkeypatch.setattr(storage_client.time, "sleep", lambda _: None)
    for code, status in (("SlowDown", 503), ("InternalError", 500), ("RequestTimeout", 400), ("Throttling", 400)):
        assert storage_client.retried(failing_first(3, client_error(code, status))) == 4
    for code, status in (("AccessDenied", 403), ("NoSuchBucket", 404), ("InvalidBucketName", 400)):
        with pytest.raises(OSError):
            storage_client.retried(failing_first(1, client_error(code, status)))


def test_expired_credentials_are_read_anew_once(s3_server, monkeypatch):
    place = locate("s3://anything")
    old = storage_client.filesystem(place)
    assert storage_client.retried(failing_first(1, client_error("ExpiredToken", 400))) == 2
    assert storage_client.filesystem(place) is not old
    with pytest.raises(PermissionError) as caught:
        storage_client.retried(failing_first(9, client_error("ExpiredToken", 400)))
    assert "have expired: renew them" in storage_faults.explain(caught.value, place)


def test_a_refusal_without_a_reason_may_be_expired_credentials(s3_server):
    place = locate("s3://anything/x")
    old = storage_client.filesystem(place)
    assert storage_client.retried(failing_first(1, client_error("403", 403))) == 2  # What a HEAD is answered
    assert storage_client.filesystem(place) is not old
    with pytest.raises(PermissionError) as caught:
        storage_client.retried(failing_first(9, client_error("403", 403)))
    assert "or the credentials have expired" in storage_faults.explain(caught.value, place)
