import asyncio
from pathlib import Path

import pytest

from flows.prefect_runs import segment_archive
from tasks.segmentation.archive_job import ArchiveJob

pytestmark = pytest.mark.usefixtures("prefect_server", "local_engine")


def artifacts():
    from prefect.client.orchestration import get_client

    async def read():
        async with get_client() as client:
            return await client.read_artifacts()

    return {a.key or a.type: a for a in asyncio.run(read())}


def test_the_flow_ends_completed_with_counts_and_artifacts(photographs, tmp_path):
    (photographs / "broken.jpg").write_bytes(b"no photograph")
    job = ArchiveJob(source=str(photographs), output=str(tmp_path / "out"), untrained=True, crf=None)
    state = segment_archive(job, return_state=True)
    assert state.is_completed() and state.message == "7 images: 6 masks, 1 error"
    report = state.result()
    assert (report.images, report.masks, report.num_errors, report.done_now) == (7, 6, 1, 7)
    found = artifacts()
    assert "# 7 images: 6 masks, 1 error" in found["segment-archive-summary"].data
    assert "not_an_image | 1" in found["segment-archive-summary"].data
    assert "background" in found["segment-archive-classes"].data or "aeroplane" in found["segment-archive-classes"].data
    assert found["progress"].data == 100.0
    assert "/out/report/run=" in found["segment-archive-gallery"].data and Path(report.gallery).is_file()

    again = segment_archive(job, return_state=True)
    assert again.result().done_now == 0


def test_a_job_that_cannot_run_ends_failed_with_one_sentence(tmp_path):
    job = ArchiveJob(source=str(tmp_path / "nowhere"), output=str(tmp_path / "out"), untrained=True)
    state = segment_archive(job, return_state=True)
    assert state.is_failed()
    assert "nowhere does not exist" in state.message and "\n" not in state.message
