"""A run as an Iceberg table: each row once, one chain of snapshots, whatever stopped the publisher."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pyiceberg", reason="the extra iceberg is not installed")

from pyiceberg.catalog import load_catalog

from flows.cli import app
from tasks.errors import JobError
from tasks.results import publish as publishing
from tasks.results.publish import CATALOGUE, PublishJob, publish
from tasks.results.reading import open_results
from tests.conftest import ROOT
from tests.console import invoke
from tests.outputs import error_row, small_rows, write_run
from tests.packages import installed


def catalogue_of(folder, name=CATALOGUE):
    return load_catalog(name, type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")


def table_of(folder, name="segment_archive.masks"):
    return catalogue_of(folder).load_table(name)


def chain(table):
    """Ids of the snapshots from the first to the current one; asserts that there are no others."""
    found, snapshot = [], table.current_snapshot()
    while snapshot is not None:
        found.append(snapshot.snapshot_id)
        parent = snapshot.parent_snapshot_id
        snapshot = None if parent is None else table.snapshot_by_id(parent)
    assert {s.snapshot_id for s in table.metadata.snapshots} == set(found)
    return found[::-1]


@pytest.fixture
def archive(tmp_path):
    """Writes an output of some rows and an error; seed: of the masks."""
    folder = tmp_path / "a [1]"

    def write(number, run_id="aaaa", seed=0, **record):
        rows = small_rows(folder / "photographs", num_images=number, seed=seed)
        write_run(str(folder / "out"), run_id, [*rows, error_row("z.txt", "/z.txt")], **record)
        return str(folder / "out")

    return write


def test_a_run_is_one_snapshot_and_every_column_comes_back(archive, tmp_path):
    output, lake = archive(12), tmp_path / "my lake"
    report = publish(PublishJob(output=output, catalog=str(lake)))
    assert (report.added, report.replaced, report.removed, report.rows) == (13, 0, 0, 13)
    table = table_of(lake)
    assert chain(table) == [report.snapshot_id]
    names = open_results(output).dataset.schema.names
    # PyIceberg reads a list that is null as an empty one
    wanted = {row["image_id"]: row | {"classes": row["classes"] or []} for row in open_results(output).rows(names)}
    found = {row["image_id"]: row for row in table.scan().to_arrow().to_pylist()}
    assert all(len(row.pop("row_digest")) == 32 for row in found.values()) and found == wanted
    again = publish(PublishJob(output=output, catalog=str(lake)))
    assert (again.added, again.unchanged, again.snapshot_id) == (0, 13, report.snapshot_id)
    assert again.told() == "Nothing to do: segment_archive.masks has all 13 rows of run aaaa."


def test_again_appends_what_is_new_and_replaces_what_has_changed(archive, tmp_path):
    lake = str(tmp_path / "lake")
    output = archive(10)
    first = publish(PublishJob(output=output, catalog=lake))
    rows = list(open_results(output).rows(open_results(output).dataset.schema.names))
    rows[3] |= {"confidence": 0.25}
    rows[4] |= {"mask": rows[7]["mask"]}
    more = small_rows(tmp_path / "more", num_images=14)[12:]
    write_run(output, "aaaa", [*rows[:8], rows[-1], *more])  # 008 and 009 are gone
    second = publish(PublishJob(output=output, catalog=lake))
    assert (second.added, second.replaced, second.removed, second.unchanged) == (2, 2, 2, 7)
    table = table_of(lake)
    assert chain(table)[0] == first.snapshot_id and chain(table)[-1] == second.snapshot_id
    found = table.scan().to_arrow().to_pylist()
    assert sorted(row["image_id"] for row in found) == [*(f"{n:03d}.jpg" for n in (*range(8), 12, 13)), "z.txt"]
    by_id = {row["image_id"]: row for row in found}
    assert by_id["003.jpg"]["confidence"] == 0.25 and by_id["004.jpg"]["mask"] == rows[7]["mask"]
    # Who read before reads what was there then
    assert table.scan(snapshot_id=first.snapshot_id).to_arrow().num_rows == 11
    only_new = archive(10)
    write_run(only_new, "aaaa", [*rows[:8], rows[-1], *more, error_row("y.txt", "/y.txt")])
    third = publish(PublishJob(output=only_new, catalog=lake))
    assert third.added == 1 and len(chain(table_of(lake))) == len(chain(table)) + 1


def test_runs_stand_beside_each_other_and_others_may_commit(archive, tmp_path):
    lake = str(tmp_path / "lake")
    output = archive(5)
    archive(5, "bbbb", seed=1, finished="2026-01-05T00:00:00+00:00")
    for run in ("aaaa", "bbbb"):
        assert publish(PublishJob(output=output, catalog=lake, run=run)).added == 6
    assert publish(PublishJob(output=output, catalog=lake, run="aaaa")).unchanged == 6
    table = table_of(lake)
    pairs = table.scan(selected_fields=("run_id", "image_id")).to_arrow().to_pylist()
    assert len({(row["run_id"], row["image_id"]) for row in pairs}) == len(pairs) == 12
    table.delete("image_id == '000.jpg' and run_id == 'aaaa'")
    report = publish(PublishJob(output=output, catalog=lake, run="aaaa"))
    assert (report.added, report.unchanged) == (1, 5)
    assert table_of(lake).scan().to_arrow().num_rows == 12


def test_a_publisher_that_stops_leaves_no_row(archive, tmp_path, monkeypatch):
    output, lake = archive(20), str(tmp_path / "lake")
    read = publishing._rows

    def stops(*arguments):
        yield next(read(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "_rows", stops)
        with pytest.raises(KeyboardInterrupt):
            publish(PublishJob(output=output, catalog=lake))
    assert table_of(lake).current_snapshot() is None
    assert publish(PublishJob(output=output, catalog=lake)).added == 21
    assert len(chain(table_of(lake))) == 1


def test_two_publishers_at_once_are_no_two_rows(archive, tmp_path, monkeypatch):
    output, lake = archive(6), str(tmp_path / "lake")
    publish(PublishJob(output=archive(5, "bbbb"), catalog=lake, run="bbbb"))
    read = publishing._rows

    def overtaken(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(publishing, "_rows", read)
            publish(PublishJob(output=output, catalog=lake, run="aaaa"))
        yield from read(*arguments)

    monkeypatch.setattr(publishing, "_rows", overtaken)
    with pytest.raises(JobError, match="Somebody else has committed to"):
        publish(PublishJob(output=output, catalog=lake, run="aaaa"))
    monkeypatch.setattr(publishing, "_rows", read)
    assert publish(PublishJob(output=output, catalog=lake, run="aaaa")).unchanged == 7
    assert table_of(lake).scan().to_arrow().num_rows == 13


def test_a_catalogue_of_the_configuration_is_taken_by_its_name(archive, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    settings = {"type": "sql", "uri": f"sqlite:///{tmp_path}/there/catalog.db", "warehouse": f"file://{tmp_path}/there"}
    (tmp_path / ".pyiceberg.yaml").write_text(
        "catalog:\n  team:\n" + "".join(f"    {k}: {v}\n" for k, v in settings.items())
    )
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    # In a process of its own, since PyIceberg reads its configuration when it is imported
    line = ["publish", archive(3), "--to", "iceberg", "team", "--table", "photos.masks"]
    told = subprocess.run([sys.executable, "-m", "flows.cli", *line], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0 and "4 rows added" in told.stdout, told
    table = catalogue_of(tmp_path / "there", "team").load_table("photos.masks")
    assert table.scan().to_arrow().num_rows == 4
    assert not (tmp_path / "team").exists()


def test_a_warehouse_in_a_bucket(archive, bucket, tmp_path):
    warehouse = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/catalog.db",
        "warehouse": f"s3://{bucket.name}/lake",
        "s3.endpoint": os.environ["AWS_ENDPOINT_URL"],
        "s3.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
        "s3.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "s3.region": "us-east-1",
        # Arrow's own client uploads without a length, which the test's server refuses
        "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
    }
    told = "catalog:\n  lake:\n" + "".join(f"    {name}: {value}\n" for name, value in warehouse.items())
    (tmp_path / ".pyiceberg.yaml").write_text(told)
    line = [sys.executable, "-m", "flows.cli", "publish", archive(5), "lake"]
    environment = os.environ | {"PYICEBERG_HOME": str(tmp_path)}
    for told in ("6 rows added", "Nothing to do"):
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0 and told in done.stdout, done
    table = load_catalog("lake", **warehouse).load_table("segment_archive.masks")
    assert table.scan().to_arrow().num_rows == 6 and list(bucket.folder.glob("lake/**/data/*.parquet"))


def test_mistakes_are_one_sentence(archive, tmp_path):
    output = archive(3)
    archive(2, "cccc", status="running", finished=None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    for options, words in [
        ((output, tmp_path / "mine"), "is no catalogue"),
        ((output, tmp_path / "lake", "--table", "masks"), "--table is NAMESPACE.NAME"),
        ((output, tmp_path / "lake", "--run", "cccc"), "is not finished"),
        ((output, "s3://bucket/lake"), "needs a local folder"),
        ((output, tmp_path / "what?"), "without ?, # and %"),
        ((tmp_path / "nothing", tmp_path / "lake"), "holds no run"),
        ((output, tmp_path / "lake", "--to", "delta"), "--to"),
    ]:
        told = invoke(app, "publish", *options)
        assert told.exit_code in (1, 2) and words in told.stderr, told
        assert told.stderr.count("\n") == 1 and not told.stdout
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    publish(PublishJob(output=output, catalog=str(tmp_path / "lake")))
    table = table_of(tmp_path / "lake")
    catalogue_of(tmp_path / "lake").create_table("segment_archive.other", schema=table.schema().select("uri"))
    told = invoke(app, "publish", output, tmp_path / "lake", "--table", "segment_archive.other")
    assert "is a table of something else" in told.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_and_one_more_run(archive, tmp_path):
    """Each row once and one chain, by PyIceberg, by DuckDB over its scan, and by DuckDB's own reader of Iceberg."""
    lake, chance = tmp_path / "lake", random.Random(0)
    program = (
        "import sys; from tasks.results.publish import *; publish(PublishJob(output=sys.argv[1], catalog=sys.argv[2]))"
    )

    def start(output):
        return subprocess.Popen([sys.executable, "-c", program, output, str(lake)], stderr=subprocess.PIPE)

    begun = time.monotonic()
    assert start(archive(30)).wait() == 0
    whole_s = time.monotonic() - begun
    killed = done = 0
    while killed < 20:
        # Some rows are new each time, and all others have changed
        process = start(archive(31 + killed + done, seed=killed + done))
        time.sleep(whole_s * chance.uniform(0.4, 1.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.returncode == 0:
            done += 1
        else:
            killed += 1
    output = archive(80, seed=99)
    assert start(output).wait() == 0
    wanted = {row["image_id"]: row["mask"] for row in open_results(output).rows(["image_id", "mask"])}
    table = table_of(lake)
    assert len(chain(table)) >= 2
    rows = table.scan(selected_fields=("image_id", "mask")).to_arrow().to_pylist()
    assert len(rows) == len(wanted) == 81 and {row["image_id"]: row["mask"] for row in rows} == wanted
    counted = "SELECT count(*), count(DISTINCT image_id) FROM"
    assert table.scan().to_duckdb("masks").execute(f"{counted} masks").fetchall() == [(81, 81)]
    print(f"{killed} killed, {done} that ended before it, {len(chain(table))} snapshots")
    packages = installed("duckdb==1.4.4", "duckdb-ext==0.1.2", "duckdb-ext-iceberg", "duckdb-ext-avro")
    script = (
        "import sys, duckdb; connection = duckdb.connect()\n"
        "for extension in sys.argv[2:]: connection.execute(f\"LOAD '{extension}'\")\n"
        f'print(connection.execute("{counted} iceberg_scan(\'" + sys.argv[1] + "\')").fetchall())'
    )
    extensions = sorted(map(str, Path(packages).glob("duckdb_ext/extensions/**/*.duckdb_extension")))
    told = subprocess.run(
        [sys.executable, "-c", script, table.metadata_location.removeprefix("file://"), *extensions],
        env={"PYTHONPATH": packages},
        capture_output=True,
        text=True,
    )
    assert told.stdout == "[(81, 81)]\n", told.stderr
