"""The console command `segment-archive`: the list of its commands, and how a command ends.

Commands are imported when they are called, so that help and completion start at once. Their options come from the
models of their jobs (`options.py`); how results look is in `screen.py`.

Exit statuses: 0 done; 1 the job cannot run, or found what is wrong; 2 wrong usage; 130 and 143 stopped by Ctrl-C and
SIGTERM.
"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# A person at a terminal sees our words; Prefect and Ray report through their own interfaces. Set before their import.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
# The first start of Prefect's own server makes its database, which takes longer than its patience on a busy machine
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

if "PREFECT_HOME" in os.environ:
    with contextlib.suppress(OSError):  # Prefect makes the last folder of the path only, and its server then hangs
        Path(os.environ["PREFECT_HOME"]).expanduser().mkdir(parents=True, exist_ok=True)

from cyclopts import App, CycloptsError, Group

from flows import execution
from flows.options import UsageError

COMMANDS = {
    "Segment": {
        "run": ("flows.run_cli:run", "Segment every photograph of a folder, bucket or dataset."),
        "show": ("flows.run_cli:show", "Segment one photograph, and write or open its overlay."),
        "estimate": ("flows.operate_cli:estimate", "Measure a sample: how long an archive takes, and what it costs."),
    },
    "Results": {
        "find": ("flows.results_cli:find", "Find images by class, share and confidence, without SQL."),
        "query": ("flows.results_cli:query", "Query a run in SQL (DuckDB)."),
        "report": ("flows.results_cli:report", "Make a gallery: static pages that open from a disk or a bucket."),
        "export": (
            "flows.results_cli:export",
            "Export masks as COCO, CVAT, PNG, VOC or YOLO, for Label Studio or `datasets`.",
        ),
        "import": ("flows.review_cli:import_", "Bring corrected masks back as a dataset."),
        "diff": ("flows.results_cli:diff", "Compare two runs."),
        "annotate": ("flows.results_cli:annotate", "Write classes as keywords into XMP sidecars."),
        "publish": ("flows.results_cli:publish", "Publish a run as a table of Apache Iceberg."),
        "compact": ("flows.results_cli:compact", "Replace many small files of a run by few large ones."),
    },
    "Models and data": {
        "models": ("flows.weights_cli:models", "List the models."),
        "presets": ("flows.weights_cli:presets", "List the published CRF parameters."),
        "weights": ("flows.weights_cli:weights", "Import or pull published weights."),
        "prepare": ("flows.prepare_cli:prepare", "Prepare or check a dataset for training and evaluation."),
        "recipes": ("flows.train_cli:recipes", "List the recipes of training."),
        "train": ("flows.train_cli:train", "Train a model."),
        "evaluate": ("flows.evaluate_cli:evaluate", "Measure how good models are, and compare them with baselines."),
        "baseline": ("flows.evaluate_cli:baseline", "Accept what later evaluations are compared with."),
        "submission": ("flows.evaluate_cli:submission", "Pack masks for the VOC test server."),
        "tune-crf": ("flows.tune_cli:tune_crf", "Search CRF parameters, coarse to fine."),
    },
    "This machine": {
        "doctor": ("flows.operate_cli:doctor", "Check that everything a job needs is here."),
        "clean": ("flows.operate_cli:clean", "Remove the cache of this user."),
        "completion": ("flows.operate_cli:completion", "Print or install the completion of a shell."),
    },
}
"""Heading of the help, then command: where it is, and its sentence."""


def _app() -> App:
    """The commands; none of them is imported."""
    app = App(
        name="segment-archive",
        version=lambda: version("segment-archive"),
        help="Segment large archives of photographs into queryable masks.\n\nFor example:\n\n"
        "segment-archive run ~/photos --open\n\nsegment-archive find ~/photos-masks --class dog",
        help_flags=["--help", "-h"],
        help_format="plaintext",
        help_epilogue="Exit status: 0 done, 1 the job cannot run, 2 wrong usage, 130 or 143 stopped.",
    )
    for title, commands in COMMANDS.items():
        group = Group.create_ordered(title)
        for place, (name, (where, words)) in enumerate(commands.items()):
            app.command(where, name=name, help=words, group=group, sort_key=place)
    return app


_commands = _app()


def app(tokens: Sequence[str] | None = None) -> None:
    """Run one command line; what is wrong with it ends it by one sentence and exit status 2."""
    tokens = sys.argv[1:] if tokens is None else tokens
    named = next((token for token in tokens[:1] if any(token in commands for commands in COMMANDS.values())), None)
    if named is not None:
        _give_page(named)
    try:
        status = _commands(list(tokens), exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, UsageError) as error:
        from flows import usage

        asked = _commands
        names: list[str] = []
        for token in tokens[:2]:  # A command, or one below it, such as `weights import`
            if token.startswith("-") or token not in asked:
                break
            asked, names = asked[token], [*names, token]
        command = " ".join(names)
        words = str(error) if isinstance(error, UsageError) else usage.sentence(error, list(tokens), asked, command)
        page = f"See `segment-archive {command}".rstrip() + " --help`."
        execution.fail(f"{execution.visible(words)} {page}", execution.WRONG_USAGE)
    if isinstance(status, int) and status:
        raise SystemExit(status)


def _give_page(name: str) -> None:
    """Of a command, its docstring, since the sentence is for the list; of a list of commands, an example of each."""
    command = _commands[name]
    if command.default_command is not None:
        command.help = None
        return
    inner = [command[word].default_command for word in command if not word.startswith("-")]
    examples = [(function.__doc__ or "").partition("For example:")[2].split("\n\n")[1].strip() for function in inner]
    command.help = "\n\n".join((f"{command.help}", "For example:", *examples))


def check(tokens: Sequence[str]) -> None:
    """Parse a command line without running it. Raises CycloptsError for what is no command or option."""
    _commands.parse_args(list(tokens), exit_on_error=False, print_error=False)


def completion(shell: str | None) -> str:
    """The script that completes commands in a shell."""
    script: str = _commands.generate_completion(shell=shell)  # type: ignore[arg-type]
    # Where the script knows no word, bash completes paths: most of our arguments are some
    return re.sub(r"^complete -F ", "complete -o bashdefault -o default -F ", script, flags=re.M)


def install_completion(shell: str | None) -> str:
    """Put that script where the shell finds it, and return the path."""
    from cyclopts.completion import detect_shell

    shell = shell or detect_shell()
    path: Path = _commands.install_completion(shell=shell)  # type: ignore[arg-type]
    path.write_text(completion(shell), encoding="utf-8")
    start = Path.home() / ".zshrc"
    if shell == "zsh" and start.exists() and "compinit" not in (before := start.read_text(errors="surrogateescape")):
        # A zsh that was never set up completes nothing
        start.write_text(f"{before.rstrip()}\nautoload -Uz compinit && compinit\n", errors="surrogateescape")
    return str(path)


def main() -> None:
    """Entry point of the console command."""
    execution.main(app)


if __name__ == "__main__":
    main()
