"""The commands about results as a person types them: in process, since each is a few calls."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import flows.cli
from tests.console import invoke


@pytest.fixture
def command():
    def call(*arguments):
        return invoke(flows.cli.app, *arguments)

    return call


def test_query_prints_tables_and_writes_files(command, small_output, tmp_path):
    told = command("query", small_output)
    assert told.exit_code == 0 and "Run bbbb22220000 (finished): 32 images" in told.stdout and "objects" in told.stdout
    sql = "SELECT class, count(*) AS images FROM objects GROUP BY ALL ORDER BY 2 DESC, 1"
    table = command("query", small_output, sql)
    assert table.exit_code == 0 and "background" in table.stdout and "30" in table.stdout
    as_csv = list(csv.DictReader(io.StringIO(command("query", small_output, sql, "--format", "csv").stdout)))
    as_json = json.loads(command("query", small_output, sql, "--format", "json").stdout)
    assert [(r["class"], int(r["images"])) for r in as_csv] == [(r["class"], r["images"]) for r in as_json]
    for ending in ("csv", "json", "parquet"):
        assert command("query", small_output, sql, "--to", tmp_path / f"a.{ending}").exit_code == 0
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == as_json == json.loads((tmp_path / "a.json").read_text())
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(as_json) + 1
    # Scripts cut lines at LF alone
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()
    assert "\r" not in command("query", small_output, sql, "--format", "csv").stdout
    assert "\r" not in command("find", small_output, "--class", "dog", "--format", "csv").stdout


def test_a_long_answer_is_cut_for_the_eye_and_whole_in_a_file(command, small_output, tmp_path):
    sql = "SELECT i.image_id, o.class FROM images i, objects o"
    told = command("query", small_output, sql)
    assert "The first 60 rows" in told.stdout
    assert "No rows." in command("query", small_output, "SELECT * FROM images WHERE false").stdout
    command("query", small_output, sql, "--to", tmp_path / "all.csv")
    assert len((tmp_path / "all.csv").read_text().splitlines()) > 2000


def test_mistakes_are_one_sentence(command, small_output, tmp_path):
    for arguments, words in [
        (("query", small_output, "SELECT nothing FROM images"), 'Referenced column "nothing" not found'),
        (("query", tmp_path, "SELECT 1"), "holds no run"),
        (
            ("query", small_output, "SELECT 1", "--format", "xml"),
            "json or parquet, not 'xml'",
        ),
        (("query", small_output, "SELECT 1", "--format", "parquet"), "name a file with --to"),
        (("query", small_output, "SELECT 1", "--to", tmp_path / "no" / "where.csv"), "Cannot write"),
        (("query", small_output, "SELECT 1", "--run", "nope"), "no run 'nope'"),
        (("find", small_output, "--class", "dgo"), "holds 'dgo'"),
        (("find", small_output, "--class", "dog", "--min-share", "7"), "--min-share: "),
        (("find", small_output, "--sort", "beauty"), "--sort"),
        (("report", small_output, "--images", "0"), "--images: "),
        (("report", small_output, "--where", "confidence >"), "DuckDB cannot answer"),
        (("export", small_output, tmp_path / "e", "--to", "gif"), "png, voc or yolo, not 'gif'"),
        (("diff", small_output, "aaaa", "aaaa"), "are the same run"),
    ]:
        told = command(*arguments)
        assert told.exit_code in (1, 2), arguments
        assert words in told.stderr and len(told.stderr.strip().splitlines()) == 1, told.stderr
        assert told.stdout == ""


def test_find_shows_the_images(command, small_output):
    told = command(
        "find", small_output, "--class", "tvmonitor", "--min-share", "0.001", "--sort", "share", "--limit", "2"
    )
    lines = [line for line in told.stdout.splitlines() if ".jpg" in line]
    assert told.exit_code == 0 and len(lines) == 2
    annotate = command("find", small_output, "--sort", "annotate", "--limit", "1", "--format", "csv").stdout
    assert annotate.splitlines()[0] == "image_id,confidence,entropy,changed_by_crf,annotate,classes"


def test_names_with_control_characters_do_not_reach_the_terminal(command, tmp_path):
    from tests.outputs import error_row, write_run

    write_run(str(tmp_path / "out"), "r", [error_row("\x1b[31mred\x07.jpg", "x")])
    told = command("query", tmp_path / "out", "SELECT image_id FROM images")
    assert "\\x1b[31mred\\x07.jpg" in told.stdout and "\x1b" not in told.stdout


def test_report_export_and_diff_say_where_things_are(command, small_output, tmp_path):
    made = command("report", small_output, "--to", tmp_path / "gallery", "--images", "9")
    assert made.exit_code == 0 and "9 of 32 images" in made.stdout
    assert Path(made.stdout.partition("Gallery: ")[2].splitlines()[0]).is_file()
    assert (tmp_path / "gallery" / "contact-sheet.png").is_file()
    exported = command("export", small_output, tmp_path / "coco", "--to", "coco")
    assert "regions of run bbbb22220000 as coco; 2 images have none." in exported.stdout
    again = command("export", small_output, tmp_path / "coco", "--to", "coco")
    assert again.exit_code == 0 and "Nothing to do" in again.stdout
    compared = command("diff", small_output, "aaaa", "bbbb", "--images", "3")
    assert compared.exit_code == 0 and "30 images in both runs" in compared.stdout
    assert Path(compared.stdout.partition("Gallery: ")[2].strip()).is_file()


def test_compact_says_what_it_did(command, tmp_path):
    from tests.outputs import error_row, write_run

    write_run(str(tmp_path), "run0", [error_row(f"{n:02d}", "x") for n in range(9)], per_file=2)
    told = command("compact", tmp_path)
    assert told.exit_code == 0 and "9 rows of run run0: 5 files are now 1," in told.stdout
    assert "5 small files that nobody needs any more are kept; --expire removes them 60 minutes after" in told.stdout
    told = command("compact", tmp_path, "--expire", "--grace-minutes", "0")
    assert "Nothing to compact in run run0.\n5 small files were removed." in told.stdout
    assert "9" in command("query", tmp_path, "SELECT count(*) FROM errors").stdout
    refused = command("compact", tmp_path, "--grace-minutes", "-1")
    assert refused.exit_code == 2 and "--grace-minutes: input should be greater" in refused.stderr
