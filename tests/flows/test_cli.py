"""The console command in processes of its own: words, exit statuses, and no traceback."""

import importlib
import inspect
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from cyclopts import App

import flows.cli
from flows import execution
from tasks.segmentation.archive_job import DEFAULT_MODEL
from tests.console import invoke
from tests.light import LIGHT, light_environment


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
        (("--long-side", "3"), "--long-side: "),
        (("--precision", "fp8"), "--precision"),
        (("--limit", "0"), "--limit: "),
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
    assert again.returncode == 0 and "Nothing to do: all of" in again.stdout
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
    from tasks.segmentation.outcome import ArchiveReport, query
    from tasks.storage import locate
    from tasks.stream.rows import write_rows

    box = {"x0": 0, "y0": 0, "x1": 2, "y1": 1}
    classes = [{"index": 12, "name": "dog", "pixels": 2, "confidence": 0.5, "box": box}]
    row = empty_row() | {"image_id": "a", "run_id": "r", "uri": "a", "model": "m"}
    row |= {"mask_width": 2, "mask_height": 2, "classes": classes}
    write_rows(locate(str(tmp_path / "masks" / "run=r" / "part-0.parquet")), [row])
    assert duckdb.sql(query(ArchiveReport("r", str(tmp_path), "m"))).fetchall() == [("dog", 1, 0.5)]


def test_the_command_is_installed():
    assert callable(flows.cli.main)


COMMANDS = {name: row for commands in flows.cli.COMMANDS.values() for name, row in commands.items()}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_a_page_with_an_example_and_its_exit_statuses(name):
    page = invoke(flows.cli.app, name, "-h")
    assert page.exit_code == 0 and page.stdout.startswith(f"Usage: segment-archive {name}")
    assert "Exit status: 0 done" in page.stdout


def test_the_list_of_commands_is_shown_without_importing_one():
    code = "import sys, flows.cli\nflows.cli.app(['--help'])\nprint(sorted(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "ray", "prefect", "pyarrow", "numpy", "duckdb", "tasks.segmentation.archive_job"):
        assert f"'{heavy}'" not in told.stdout
    for name in COMMANDS:
        assert f" {name} " in told.stdout


@pytest.mark.parametrize("name", ["run", "find", "train", "evaluate", "prepare", "export", "estimate"])
def test_the_page_of_a_command_imports_no_engine(name):
    code = f"import sys, flows.cli\nflows.cli.app(['{name}', '-h'])\nprint(sorted(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "ray", "prefect"):
        assert f"'{heavy}'" not in told.stdout


def test_wrong_usage_is_status_2_and_proposes_what_was_meant(tmp_path):
    for arguments, words in [
        (("rnu",), 'Did you mean "run"?'),
        (("run", tmp_path, "--modle", "x"), "Did you mean --model?"),
        (("run",), "SOURCE"),
        (("run", tmp_path, "--crf-preset", "deeplab_v2_resnet10"), "did you mean deeplab_v2_resnet101"),
        (("run", tmp_path, "--limit", "many"), "--limit"),
    ]:
        told = invoke(flows.cli.app, *arguments)
        assert told.exit_code == 2 and words in told.stderr, told
        assert len(told.stderr.splitlines()) == 1 and "--help`" in told.stderr


def test_wrong_usage_is_a_plain_sentence(tmp_path):
    (tmp_path / "out").mkdir()
    for arguments, words in [
        (("run", "a", "b", "--crf", "none"), "--crf takes no value: 'none' is one too many. To turn it off: --no-crf."),
        (("run", "a", "b", "--crf=none"), "--crf takes no value: 'none' is one too many. To turn it off: --no-crf."),
        (("run", "a", "b", "--no-crf", "true"), "--no-crf takes no value: 'true' is one too many."),
        (("run", "a", "b", "c"), "run takes SOURCE and OUTPUT: 'c' is one too many. A path with blanks needs quotes."),
        (("evaluate", "a", "b", "c", "d"), "evaluate takes MODELS, DATASET and OUTPUT: 'd' is one too many."),
        (("models", "a"), "models takes no arguments: 'a' is one too many."),
        (("run",), "SOURCE must be given."),
        (("export", "a", "b"), "--to must be given."),
        (("run", "a", "b", "--model"), "--model needs a value."),
        (("prepare", "--check"), "--check needs a value."),
        (("prepare", "mine", "--check"), "--check needs a value. Did you mean --check mine?"),
        (("run", "a", "b", "--model", "x", "--model", "y"), "--model is given twice: give it once."),
        (("run", "a", "b", "--limit", "many"), "--limit must be a whole number, not 'many'."),
        (("run", "a", "b", "--scales", "1,x"), "--scales must be a number, not 'x'."),
        (("run", "a", "b", "--engine", "spark"), "--engine must be auto, local or ray, not 'spark'."),
        (("run", "a", "b", "--engine", "lokal"), "not 'lokal'. Did you mean local?"),
        (("run", "a", "b", "--png=maybe"), "--png takes no value: 'maybe' is one too many."),
        (("estimate", "a", "--sample", "0"), "--sample must be at least 1, not 0."),
        (("run", "a", "b", "--workers", "3"), "There is no option --workers."),
        (("run", "a", "b", "--crf-presets", "x"), "There is no option --crf-presets. Did you mean --crf-preset?"),
        (
            ("evaluate", "--model", "x"),
            "There is no option --model: it is given by its place, evaluate MODELS DATASET OUTPUT.",
        ),
        (("weights", "import"), "FILE must be given. See `segment-archive weights import --help`."),
        (("weights", "imprt"), 'There is no command imprt. Did you mean "import"?'),
        (("run", "a", "b", "\x1b[31mc"), "'\\x1b[31mc' is one too many."),
    ]:
        told = invoke(flows.cli.app, *arguments)
        assert told.exit_code == 2 and words in told.stderr, (arguments, told.stderr)
        assert len(told.stderr.splitlines()) == 1 and "\x1b" not in told.stderr
        for jargon in ("Unused", "Token", "parameter", "convert", "Parsed"):
            assert jargon not in told.stderr


def test_run_and_estimate_have_the_same_defaults():
    for name in ("run", "estimate"):
        page = invoke(flows.cli.app, name, "-h").stdout
        for default in (f"[default: {DEFAULT_MODEL}]", "[default: 513]", "[default: max]"):
            assert default in " ".join(page.split()), (name, default)
    assert "--cpus" in invoke(flows.cli.app, "run", "-h").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_choices(shell):
    script = invoke(flows.cli.app, "completion", shell).stdout
    for word in ("segment-archive", "export", "crf-preset", "coco"):
        assert word in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, capture_output=True).returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
def test_bash_completes_models_by_the_script_and_paths_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "Installed" in invoke(flows.cli.app, "completion", "bash", "--install").stdout
    asked = """COMP_WORDS=(segment-archive run --model pspnet_l); COMP_CWORD=3
        _segment_archive segment-archive pspnet_l --model; echo ${COMPREPLY[*]}; complete -p segment-archive"""
    # Models are asked of the command itself
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    told = subprocess.run(
        ["bash", "-c", f'source "$HOME/.bashrc"; {asked}'], text=True, capture_output=True, check=True
    )
    models, how = told.stdout.splitlines()
    assert models.split() == ["pspnet_lite0", "pspnet_lite2"]
    assert "-o default" in how


def test_zsh_that_was_never_set_up_loads_its_completion_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZSH", raising=False)
    monkeypatch.delenv("ZSH_CUSTOM", raising=False)
    for _ in range(2):
        invoke(flows.cli.app, "completion", "zsh", "--install")
    start = (tmp_path / ".zshrc").read_text()
    assert start.splitlines()[-1] == "autoload -Uz compinit && compinit" and start.count("compinit") == 2
    (tmp_path / ".zshrc").write_text("autoload -Uz compinit; compinit\n")
    invoke(flows.cli.app, "completion", "zsh", "--install")
    assert (tmp_path / ".zshrc").read_text().count("compinit") == 2


def test_lists_as_tables_and_as_json():
    for name, there in [("presets", "deeplab_v2_resnet101"), ("models", "pspnet14"), ("recipes", "fast_pspnet18")]:
        assert there in invoke(flows.cli.app, name).stdout
        assert there in json.dumps(json.loads(invoke(flows.cli.app, name, "--json").stdout))


def test_clean_keeps_weights_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("weights", "remote", "datasets"):
        (tmp_path / "segment-archive" / name).mkdir(parents=True)
        (tmp_path / "segment-archive" / name / "file").write_bytes(b"x" * 1000)
    assert json.loads(invoke(flows.cli.app, "clean", "--dry-run", "--json").stdout)["bytes"].keys() == {
        "remote",
        "datasets",
    }
    assert (tmp_path / "segment-archive" / "remote").is_dir()
    assert invoke(flows.cli.app, "clean").exit_code == 0
    assert [path.name for path in (tmp_path / "segment-archive").iterdir()] == ["weights"]
    assert "Nothing to remove" in invoke(flows.cli.app, "clean").stdout
    assert invoke(flows.cli.app, "clean", "--weights").exit_code == 0
    assert not list((tmp_path / "segment-archive").iterdir())


def test_the_output_is_beside_the_source(tmp_path):
    from tasks.errors import JobError
    from tasks.segmentation.archive_job import output_beside

    assert output_beside(str(tmp_path / "photos/")) == str(tmp_path / "photos-masks")
    assert output_beside("s3://bucket/photos/") == "s3://bucket/photos-masks"
    for source in ("s3://bucket", "/"):
        with pytest.raises(JobError, match="There is no place beside"):
            output_beside(source)


@pytest.mark.parametrize(
    ("package", "extra"),
    [("ray", "cluster"), ("prefect", "prefect"), ("torch", "torch"), ("matplotlib", "charts")],
)
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(package, extra):
    sentence, status = execution.sentence_of(ModuleNotFoundError(f"No module named '{package}.x'", name=f"{package}.x"))
    assert status == 1 and f"pip install 'segment-archive[{extra}]'" in sentence


def test_segmenting_on_one_machine_needs_neither_ray_nor_prefect():
    modules = "tasks.engines.local", "tasks.segmentation.session", "tasks.segmentation.finish", "tasks.results.query"
    blocked = "import sys, importlib\nsys.modules.update(ray=None, prefect=None)\n"
    code = f"{blocked}for m in {modules}: importlib.import_module(m)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("torch", ("show", "PHOTOGRAPHS/photo-0.jpg", "--untrained")),
        ("torch", ("show", "PHOTOGRAPHS/photo-0.jpg", "--model", "deeplab_v2_resnet101", "--untrained")),
        ("torch", ("show", "PHOTOGRAPHS/photo-0.jpg", "--mirror")),
        ("pydensecrf", ("show", "PHOTOGRAPHS/photo-0.jpg", "--crf-engine", "pydensecrf")),
        ("cluster", ("run", "PHOTOGRAPHS", "OUT", "--engine", "ray")),
        ("train", ("train", "PHOTOGRAPHS", "OUT")),
        ("iceberg", ("publish", "PHOTOGRAPHS", "OUT")),
        ("torch", ("weights", "import", "PHOTOGRAPHS/photo-0.jpg", "--model", "pspnet50")),
    ],
)
def test_a_command_of_an_extra_that_is_missing_says_the_line_that_installs_it(extra, arguments, photographs, tmp_path):
    words = [word.replace("PHOTOGRAPHS", str(photographs)).replace("OUT", str(tmp_path / "out")) for word in arguments]
    code = f"{LIGHT}\nfrom flows.cli import app\nfrom flows import execution\nexecution.main(lambda: app({words!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert told.returncode == 1, told.stderr
    assert f"pip install 'segment-archive[{extra}]'" in told.stderr and len(told.stderr.splitlines()) == 1


def test_a_light_installation_segments_and_shows_the_result(photographs, tmp_path):
    for place in ("home", "temporary"):
        (tmp_path / place).mkdir()
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    environment = os.environ | light_environment(tmp_path) | own
    environment.pop("XDG_CACHE_HOME", None)
    for arguments in (
        ("run", photographs, tmp_path / "out", "--quiet", "--json"),
        ("find", tmp_path / "out", "--json"),
    ):
        told = subprocess.run(
            [sys.executable, "-m", "flows.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
        )
        assert told.returncode == 0, told.stderr
    assert list((tmp_path / "out" / "report").glob("*/index.html"))
    left = [file for place in own.values() for file in Path(place).rglob("*") if file.is_file()]
    assert not left, left


def functions():
    """Every command with its function."""
    for commands in flows.cli.COMMANDS.values():
        for name, (where, _) in commands.items():
            module, _, attribute = where.partition(":")
            found = getattr(importlib.import_module(module), attribute)
            if not isinstance(found, App):
                yield name, found
                continue
            for inner in found:
                if not inner.startswith("-"):
                    yield f"{name} {inner}", found[inner].default_command


def test_every_command_has_an_example_and_prints_its_result_for_scripts():
    for name, function in functions():
        assert "For example:\n\n    segment-archive" in function.__doc__, name
        if name != "completion":  # Its result is a script
            assert "json" in inspect.signature(function).parameters, name


def test_a_run_on_one_machine_loads_neither_torch_nor_pandas_nor_duckdb_in_the_console(photographs, tmp_path):
    code = (
        "import sys, flows.cli\nflows.cli.app(sys.argv[1:])\n"
        "print([name for name in ('torch', 'pandas', 'duckdb', 'ray', 'prefect') if sys.modules.get(name)])"
    )
    asked = ["run", str(photographs), str(tmp_path / "out"), "--engine", "local", "--long-side", "65", "--no-crf"]
    done = subprocess.run([sys.executable, "-c", code, *asked], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
    assert (tmp_path / "out" / "report").is_dir()


def test_a_proposal_ends_with_one_mark():
    told = invoke(flows.cli.app, "run", "photos", "--crf-preset", "deeplab_v2_vg16")
    assert told.exit_code == 2 and "?." not in told.output and "deeplab_v2_vgg16" in told.output


ENDS = """
import atexit, os, signal, sys, types
from flows import execution
from tasks.errors import JobError

lines = 0

def at_every_line(frame, event, argument):
    global lines
    if frame.f_code.co_filename != execution.__file__ or frame.f_code.co_name in ("_stop", "_watch"):
        return None
    if event == "line":
        lines += 1
        if lines == NUMBER:
            os.kill(os.getpid(), signal.SIGTERM)
    return at_every_line

def command():
    if KIND == "Ray exits":  # As its own handler does while it starts
        sys.modules["ray"] = types.ModuleType("ray")
        execution._console.status = 130
    caller = sys._getframe(1)
    while caller is not None:
        caller.f_trace = at_every_line
        caller = caller.f_back
    sys.settrace(at_every_line)
    if KIND == "error":
        raise JobError("An error.")
    if KIND == "Ray exits":
        raise SystemExit(1)

atexit.register(lambda: print(lines))
execution.main(command)
"""


@pytest.mark.parametrize(("kind", "status"), [("done", 0), ("error", 1), ("Ray exits", 130)])
def test_a_signal_at_any_line_of_the_end_of_a_command_is_no_traceback(kind, status):
    for number in itertools.count(1):
        code = ENDS.replace("NUMBER", str(number)).replace("KIND", repr(kind))
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "Traceback" not in ended.stderr and "ignored" not in ended.stderr, (number, ended.stderr)
        if "Stopped." not in ended.stderr or ended.returncode == status:
            break
        assert ended.returncode == 128 + 15, (number, ended)
    assert ended.returncode == status and number > 3
