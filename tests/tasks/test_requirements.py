import pytest

from tasks.segmentation.requirements import examine


def test_all_is_well_and_nothing_is_left(bucket, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {finding.subject: finding for finding in examine(f"s3://{bucket.name}/here")}
    assert list(found) == ["versions", "device", "CRF engine", "storage", "Ray"]
    assert [finding for finding in found.values() if not finding.healthy] == []
    assert "takes, gives back and removes" in found["storage"].words
    assert [file for file in bucket.folder.rglob("*") if file.is_file()] == []


def test_what_is_ill_is_named_with_the_remedy(s3_server, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    ill = {finding.subject: finding.words for finding in examine("s3://no-such-bucket/x") if not finding.healthy}
    assert ill.keys() == {"storage", "Ray"}
    assert "RAY_ADDRESS=127.0.0.1:9" in ill["Ray"] and "start the cluster" in ill["Ray"]
    assert "s3://no-such-bucket/x does not exist" in ill["storage"]


@pytest.mark.parametrize("output", ["", "nonsense://x"])
def test_a_place_that_is_none(output):
    (storage,) = (finding for finding in examine(output) if finding.subject == "storage")
    assert not storage.healthy
