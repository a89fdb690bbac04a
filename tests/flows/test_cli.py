"""The console command in processes of its own: words, exit statuses, and no traceback."""

import os
import subprocess
import sys

import pytest

import flows.cli


@pytest.fixture
def command(tmp_path):
    def call(*arguments):
        environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "100"}
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
        )

    return call


def test_help_names_the_arguments(command):
    told = command("run", "--help")
    assert told.returncode == 0
    for word in ("SOURCE", "OUTPUT", "--model", "--no-crf", "--long-side", "--limit", "--refresh-changed"):
        assert word in told.stdout


def test_bad_options_are_refused_before_anything_starts(command, tmp_path):
    for options, words in [
        (("--long-side", "3"), "inference.long_side_px"),
        (("--precision", "fp8"), "inference.precision"),
        (("--limit", "0"), "limit"),
    ]:
        told = command("run", tmp_path, tmp_path / "out", *options)
        assert told.returncode == 2 and words in told.stderr
        assert "Traceback" not in told.stderr + told.stdout
        assert len(told.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_run_and_its_repetition_and_its_failure(command, photographs, tmp_path):
    (photographs / "broken.jpg").write_bytes(b"no photograph")
    first = command("run", photographs, tmp_path / "out", "--untrained")
    assert first.returncode == 0, first.stderr
    assert "7 images: 6 masks, 1 error" in first.stdout and "1 not_an_image" in first.stdout
    assert "(untrained)" in first.stdout
    again = command("run", photographs, tmp_path / "out", "--untrained")
    assert again.returncode == 0 and "Nothing to do: all 7 images" in again.stdout
    failed = command("run", tmp_path / "nowhere", tmp_path / "out", "--untrained")
    assert failed.returncode == 1 and "does not exist" in failed.stderr
    for told in (first, again, failed):
        assert "Traceback" not in told.stderr + told.stdout
    assert len(failed.stderr.strip().splitlines()) == 1


def test_a_prefect_server_that_is_not_there_is_named(command, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    told = command("run", photographs, tmp_path / "out", "--untrained")
    assert told.returncode == 1 and "PREFECT_API_URL=http://127.0.0.1:9/api" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_doctor_names_a_prefect_server_that_is_not_there(command, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    told = command("doctor")
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert "ILL Prefect: Nobody answers at PREFECT_API_URL=http://127.0.0.1:9/api" in told.stdout


def test_the_query_that_is_shown_can_be_asked(tmp_path):
    import duckdb

    from tasks.archive.schema import empty_row
    from tasks.segmentation.report import ArchiveReport, query
    from tasks.storage import locate
    from tasks.stream.pipeline import write_rows

    box = {"x0": 0, "y0": 0, "x1": 2, "y1": 1}
    classes = [{"index": 12, "name": "dog", "pixels": 2, "confidence": 0.5, "box": box}]
    row = empty_row() | {"image_id": "a", "run_id": "r", "uri": "a", "model": "m"}
    row |= {"mask_width": 2, "mask_height": 2, "classes": classes}
    write_rows(locate(str(tmp_path / "masks" / "run=r" / "part-0.parquet")), [row])
    assert duckdb.sql(query(ArchiveReport("r", str(tmp_path), "m"))).fetchall() == [("dog", 1, 0.5)]


def test_the_command_is_installed():
    assert callable(flows.cli.main)
