"""What holds for every command: an example in its page, status 2 for wrong usage, JSON for scripts, silence, pipes."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import app
from tests.console import invoke
from tests.datasets import make_dataset
from tests.flows.test_cli import COMMANDS, functions

FUNCTIONS = dict(functions())
ONLY_LISTS = {"find", "query", "estimate", "models", "presets", "weights list", "recipes", "completion"}
"""Their output is all that they do, so there is nothing to be quiet about."""


@pytest.mark.parametrize("name", [*COMMANDS, *(name for name in FUNCTIONS if " " in name)])
def test_its_page_has_an_example(name):
    page = invoke(app, *name.split(), "--help")
    assert page.exit_code == 0 and not page.stderr
    _, _, examples = page.stdout.partition("For example:")
    assert f"segment-archive {name}" in " ".join(examples.split())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_wrong_with_its_line_is_one_sentence_and_status_2(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    positions = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    needed = [p for p in positions if p.default is inspect.Parameter.empty]
    wrong = [["--no-such-option"], ["x"] * (len(positions) + 1), ["--json=maybe"]]
    wrong += [["x"] * (len(needed) - 1)] if needed else []
    for words in wrong:
        told = invoke(app, *name.split(), *words)
        assert told.exit_code == 2 and not told.stdout, (words, told)
        assert told.stderr.startswith("segment-archive: ") and told.stderr.count("\n") == 1
        assert "Traceback" not in told.stderr and f"`segment-archive {name} --help`" in told.stderr


def test_it_is_quiet_where_it_does_more_than_print():
    for name, function in FUNCTIONS.items():
        assert ("quiet" in inspect.signature(function).parameters) == (name not in ONLY_LISTS), name


def test_json_is_all_of_its_output_and_quiet_prints_nothing(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes((photographs / "photo-0.jpg").read_bytes())
    mine, out = make_dataset(tmp_path / "mine"), tmp_path / "out"
    few = ("--long-side", "65", "--no-crf")
    for line in [
        ("run", photographs, out, *few, "--engine", "local"),
        ("run", photographs, out, "--long-side", "97", "--no-crf", "--engine", "local"),
        ("show", "photo.jpg", "--to", "picture.png"),
        ("report", out),
        ("export", out, tmp_path / "coco", "--to", "coco"),
        ("export", out, tmp_path / "masks", "--to", "png"),
        ("import", out, tmp_path / "masks", "--from", "png", "--to", tmp_path / "corrected"),
        ("annotate", out, "--min-share", "0"),
        ("annotate", out, "--undo"),
        ("publish", out, tmp_path / "lake"),
        ("compact", out),
        ("prepare", tmp_path / "prepared", "--data", mine),
        ("prepare", "--check", mine),
        ("doctor",),
        ("clean",),
    ]:
        told = invoke(app, *line, "--json")
        assert told.exit_code == 0, (line, told)
        assert isinstance(json.loads(told.stdout), dict | list), line
        again = invoke(app, *line, "--quiet")
        assert again.exit_code == 0 and again.output == "", (line, again)
    runs = json.loads(invoke(app, "query", out, "SELECT run_id FROM runs", "--json").stdout)
    for line in [
        ("diff", out, *(row["run_id"] for row in runs)),
        ("query", out),
        ("find", out),
        ("find", out, "--class", "background", "--limit", "1"),
        ("estimate", photographs, *few, "--sample", "1"),
        *((name,) for name in ("models", "presets", "recipes")),
        ("weights", "list"),
    ]:
        told = invoke(app, *line, "--json")
        assert told.exit_code == 0 and json.loads(told.stdout), (line, told)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["weights", "list"], ["presets"]])
def test_a_reader_that_goes_away_is_no_fault(words):
    program = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.5); from flows.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    assert program.stderr.read() == b"" and program.wait(60) == 141


@pytest.mark.parametrize("columns", [30, 40, 80])
def test_an_answer_can_be_read_in_a_narrow_terminal(columns, small_output, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    told = invoke(app, "find", small_output).stdout
    [first] = json.loads(invoke(app, "find", small_output, "--limit", "1", "--json").stdout)
    assert max(map(len, told.splitlines())) <= columns
    for name in first:
        assert name in told  # None is broken in the middle
    assert Path(first["image_id"]).name in told


def test_a_web_address_is_shown_and_is_no_archive(tmp_path):
    from tasks.segmentation.show import picture_name

    for arguments in (("http://example.org/a.jpg",), ("https://example.org/a%20b.jpg", tmp_path / "out")):
        told = invoke(app, "run", *arguments)
        assert told.exit_code == 1 and f"segment-archive show {arguments[0]}." in told.stderr
    assert picture_name("https://example.org/a%20b.jpg?size=9") == "a b-overlay.png"
    assert picture_name("a%20b.jpg") == "a%20b-overlay.png"


def test_what_is_near_is_proposed_and_what_is_not_is_not():
    for words, there, absent in [
        (("run", "a", "--bogus"), "There is no option --bogus.", "mean"),
        (("run", "a", "--gpu", "1"), "Did you mean --gpus?", ""),
        (("run", "a", "--sacles", "1"), "Did you mean --scales?", ""),
        (("run", "a", "--crf-preset", "nonsense"), "--crf-preset: There is no CRF preset 'nonsense'", "--crf:"),
        (("run", "a", "--crf-preset", "dense_inference", "--crf-iterations", "0"), "--crf-iterations: ", "--crf:"),
        (("baseline", "out"), "There is no command baseline out; there is baseline accept.", "mean"),
        (("weights", "foo"), "there are weights import, weights pull, weights export and weights list.", "mean"),
    ]:
        told = invoke(app, *words)
        assert told.exit_code == 2 and there in told.stderr, told
        assert not absent or absent not in told.stderr
