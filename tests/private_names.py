"""Private names of other packages in flows, tasks and segcore: `python -m tests.private_names` prints them.

A name counts that begins with an underscore, is no dunder, and that no file of the project defines: as an attribute,
or as part of what is imported. What Python itself documents (`os._exit`) is no private name.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("flows", "tasks", "segcore")
DOCUMENTED = frozenset({"_exit", "_replace", "_asdict", "_fields", "_make"})


@dataclass(frozen=True)
class Use:
    """One private name in one line."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name}"


def uses(files: dict[str, str], own: frozenset[str] = frozenset()) -> Iterator[Use]:
    """Private names of others.

    files: source by path. own: names that are the project's, beside what the files define.
    """
    trees = {path: ast.parse(source, path) for path, source in files.items()}
    own = own | DOCUMENTED | {name for tree in trees.values() for name in _defined(tree)}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for name in _named(node):
                if name.startswith("_") and not name.startswith("__") and name not in own:
                    yield Use(path, node.lineno, name)  # type: ignore[attr-defined]


def project() -> list[Use]:
    """Those of this project."""
    files = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for floor in FLOORS
        for path in sorted((ROOT / floor).rglob("*.py"))
    }
    # Extensions and modules of the project are imported by name
    own = frozenset({"_crf", "_layers", *(Path(path).stem for path in files)})
    return list(uses(files, own))


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    if isinstance(node, ast.Import):
        return [part for alias in node.names for part in alias.name.split(".")]
    return []


def _defined(tree: ast.AST) -> Iterator[str]:
    """Names that are given here: of functions and classes, variables, fields, and attributes that are assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            # A method that only goes on to the one it overrides is the other package's name
            if not _overrides(node):
                yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def _overrides(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.Attribute)
        and inner.attr == getattr(node, "name", "")
        and isinstance(inner.value, ast.Call)
        and isinstance(inner.value.func, ast.Name)
        and inner.value.func.id == "super"
        for inner in ast.walk(node)
    )


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


if __name__ == "__main__":
    found = project()
    print("\n".join(map(str, found)) or "No private name of another package.")
    sys.exit(bool(found))
