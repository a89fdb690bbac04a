"""What a failing store means, told from codes, statuses and kinds of errors."""

import pytest

from tasks import storage, storage_faults
from tasks.errors import InterruptedJobError, JobError
from tasks.storage import locate


def client_error(code: str, status: int) -> Exception:
    """What s3fs makes of an answer of the store."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "GetObject"))


def test_no_credential_stands_in_an_explanation(s3_server, monkeypatch):
    place = locate("s3://no-such-bucket/x")
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_bytes(place)
    assert "testsecret" not in storage_faults.explain(caught.value, place)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:testsecret@127.0.0.1:9")
    told = storage_faults.explain(ConnectionRefusedError("no"), place)
    assert "127.0.0.1:9" in told and "testsecret" not in told


def test_an_outage_is_told_from_a_refusal(s3_server):
    from botocore.exceptions import NoCredentialsError, ReadTimeoutError

    place = locate("s3://anything/x")
    overload = client_error("SlowDown", 503), client_error("InternalError", 500)
    for outage in (*overload, ReadTimeoutError(endpoint_url="")):
        assert storage_faults.is_outage(outage) and storage_faults.may_pass(outage)
        with pytest.raises(InterruptedJobError, match="s3://anything/x does not work"), storage.explained(place):
            raise outage
    assert storage_faults.is_outage(client_error("ExpiredToken", 403))  # No image's fault
    for refusal in (client_error("AccessDenied", 403), NoCredentialsError(), client_error("ExpiredToken", 403)):
        assert not storage_faults.may_pass(refusal)
        with pytest.raises(JobError) as caught, storage.explained(place):
            raise refusal
        assert not isinstance(caught.value, InterruptedJobError)


def test_credentials_are_struck_out(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    told = storage_faults.scrub("bad wJalrXUtnFEMI/K7MDENG at http://user:pass@host/x and s3://bucket/a:b@c")
    assert told == "bad *** at http://host/x and s3://bucket/a:b@c"
