from flows.cli import app
from flows.prefect_runs import compact_run
from tasks.results.reading import open_results
from tasks.results.sealing import CompactJob
from tests.console import invoke
from tests.outputs import error_row, write_run


def test_the_flow_compacts_and_says_why_it_does_not(prefect_server, tmp_path):
    rows = [error_row(f"{n:02d}.jpg", "x") for n in range(20)]
    write_run(str(tmp_path), "run0", rows, per_file=4)
    state = compact_run(CompactJob(output=str(tmp_path)), return_state=True)
    assert state.is_completed() and state.message.startswith("20 rows of run run0: 5 files are now 1")
    assert [row["image_id"] for row in open_results(str(tmp_path)).rows()] == [row["image_id"] for row in rows]
    again = compact_run(CompactJob(output=str(tmp_path)), return_state=True)
    assert again.message.startswith("Nothing to compact in run run0.")
    write_run(str(tmp_path / "other"), "run1", rows, status="running")
    refused = compact_run(CompactJob(output=str(tmp_path / "other"), run="run1"), return_state=True)
    assert refused.is_failed() and "is not finished" in refused.message


def test_the_console_records_its_run_where_there_is_a_server(prefect_server, tmp_path, monkeypatch):
    from prefect.client.orchestration import get_client

    def recorded():
        with get_client(sync_client=True) as client:
            return client.count_flow_runs()

    write_run(str(tmp_path), "run0", [error_row(f"{n:02d}.jpg", "x") for n in range(4)], per_file=1)
    before = recorded()
    done = invoke(app, "compact", tmp_path)
    assert done.exit_code == 0 and "4 rows of run run0" in done.stdout and recorded() == before + 1
    monkeypatch.delenv("PREFECT_API_URL")
    assert invoke(app, "compact", tmp_path).exit_code == 0 and recorded() == before + 1
