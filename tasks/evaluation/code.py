"""Which code decides a metric, and its digest: evaluations of other code are made anew, other words change nothing."""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from segcore.crf import dense_crf

DECIDING = (
    "tasks.stream.worker",
    "tasks.evaluation.judging",
    "tasks.evaluation.counts",
    "tasks.evaluation.metrics",
    "tasks.evaluation.record",
)
"""Of `tasks`: what turns images into counts and counts into metrics. Of `segcore`, all that these import in any number
of steps: a chart is not among it, the predictor is."""

_CRF = "segcore/crf/engine"
_ENGINE_FILES = ("CMakeLists.txt", _CRF)  # Compiler flags decide roundings


@functools.cache
def code_version() -> str:
    """Digest of the code that decides a metric: the same from a wheel as from a clone."""
    root = Path(__file__).resolve().parents[2]
    # Of the libraries, those that decode, scale and multiply
    return code_digest(root, dense_crf.engine_digest(), [f"{p} {version(p)}" for p in ("numpy", "pillow", "torch")])


def code_digest(root: Path, compiled_engine: str, libraries: Iterable[str] = ()) -> str:
    """Digest of the deciding code below a folder.

    root: holds `segcore/` and `tasks/`. compiled_engine: `source_digest` of the CRF engine that is at work, "" where it
        has none.
    Comments, docstrings and layout do not count: equal programs have equal digests.
    """
    whole = hashlib.sha256()
    for line in libraries:
        whole.update(f"{line}\n".encode())
    for name, digest in sorted(_programs(root).items()):
        whole.update(f"{name} {digest}\n".encode())
    # An engine that was changed and not built yet is another one than both before and after
    engine = {compiled_engine, engine_source_digest(root) or compiled_engine}
    whole.update(" ".join(sorted(engine)).encode())
    return whole.hexdigest()[:12]


def engine_source_digest(root: Path) -> str | None:
    """What CMakeLists.txt compiles into the CRF engine as its `source_digest`; None where its sources are not here."""
    if not (root / _CRF).is_dir():
        return None
    files = [root / "CMakeLists.txt", *(file for file in (root / _CRF).iterdir() if file.is_file())]
    found = {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
    return hashlib.sha256("".join(f"{name} {found[name]}\n" for name in sorted(found)).encode()).hexdigest()


def deciding_files(root: Path) -> list[str]:
    """The modules whose code is in the digest, below a folder: paths such as "segcore/crf/dense_crf.py"."""
    return sorted(_programs(root))


def _programs(root: Path) -> dict[str, str]:
    """Digest by path of the deciding modules, and of what they import of `segcore`."""
    found: dict[str, str] = {}
    waiting = [*DECIDING]
    while waiting:
        path = _file_of(root, waiting.pop())
        if path is None or (name := path.relative_to(root).as_posix()) in found:
            continue
        found[name], imported = _program(path.read_bytes())
        waiting += imported
    return found


@functools.cache
def _program(source: bytes) -> tuple[str, list[str]]:
    """Digest of a module without comments, docstrings and layout, and what it may import of `segcore`."""
    tree = ast.parse(source)
    imported = [module for module in _imported(tree) if module.split(".")[0] == "segcore"]
    return hashlib.sha256(ast.dump(_without_words(tree)).encode()).hexdigest(), imported


def _file_of(root: Path, module: str) -> Path | None:
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Every module that a program may import, with the packages around it; imports in the project are absolute."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("segcore."):
            names = [node.value]  # Of a table of modules that are imported by name
        for name in names:
            parts = name.split(".")
            # Not the whole of segcore, whose door is not gone through here
            yield from (".".join(parts[:n]) for n in range(2, len(parts) + 1))


def _without_words(tree: ast.Module) -> ast.Module:
    """The program without docstrings, those of attributes too."""
    for node in ast.walk(tree):
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                body[:] = [s for s in body if not _is_text(s)] or [ast.Pass()]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
