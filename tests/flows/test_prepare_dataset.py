import asyncio

import pytest

from flows.prefect_runs import prepare_dataset
from tasks.datasets.prepare import DatasetJob
from tests.datasets import make_dataset


@pytest.mark.usefixtures("prefect_server")
def test_the_flow_ends_with_words_and_an_artifact(tmp_path):
    mine = make_dataset(tmp_path / "mine")
    job = DatasetJob(output=str(tmp_path / "out"), data=str(mine))
    state = prepare_dataset(job, return_state=True)
    assert state.is_completed() and state.message == "mine: train 6, val 2"
    assert state.result().written_now == 2
    from prefect.client.orchestration import get_client

    async def read():
        async with get_client() as client:
            return await client.read_artifacts()

    shown = [a.data for a in asyncio.run(read()) if a.key == "prepare-dataset" and str(tmp_path) in a.data]
    assert len(shown) == 1 and "# mine: train 6, val 2" in shown[0] and "| cat | 4 |" in shown[0]

    (mine / "JPEGImages/img-0.jpg").unlink()
    refused = prepare_dataset(job, return_state=True)
    assert refused.is_failed()
    assert "1 x listed without an image" in refused.message and "\n" not in refused.message
