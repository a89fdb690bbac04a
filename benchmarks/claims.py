"""`python -m benchmarks.claims [NAME ...]`: every figure of README and docs beside what its command prints now.

    python -m benchmarks.claims                 all commands of `claims.toml`; goes on after a stop
    python -m benchmarks.claims crf start       those whose line contains one of these words
    python -m benchmarks.claims --again crf     measured before or not
    python -m benchmarks.claims --check         runs nothing: has each figure its line, and each line its place?

What a command printed is kept in `.run/claims/`. The table: claim, claimed, measured, verdict (holds; differs, beyond
the tolerance; not printed; failed). Exit status 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions

ROOT = Path(__file__).resolve().parent.parent
LINES = Path(__file__).with_name("claims.toml")
PRINTED = ROOT / ".run" / "claims"

NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
UNITS = "%|s|ms|min|minutes?|seconds?|hours?|h|MB|MiB|GB|GiB|kB|KiB|images/s|CPU|points?|times|histories|states"
FIGURE = re.compile(rf"(?<![\w.#/-]){NUMBER}(?: (?:to|and) {NUMBER})?(?:\s?%|[ ](?:{UNITS})\b|x(?!\w))")


@dataclass(frozen=True)
class Claim:
    """A place in a document and what must be found there; of `text`, `table` and `test` see `claims.toml`."""

    file: str
    pattern: str
    is_table: bool
    printed: str
    tolerance: float
    bound: str
    """`""` both ways, `"least"` or `"most"`: what is measured may be better without limit."""

    def claimed(self, document: str) -> list[Row]:
        return _table(document, self.pattern) if self.is_table else _text(document, self.pattern)

    def measured(self, output: str) -> list[Row]:
        return _table(output, self.printed) if self.is_table else _text(output, self.printed)


@dataclass(frozen=True)
class Row:
    """Figures that stand together: a row of a table by its words, or those of a text."""

    name: str
    figures: tuple[float, ...]


@dataclass(frozen=True)
class Command:
    run: str
    claims: tuple[Claim, ...]

    @property
    def kept(self) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", self.run.lower().removeprefix("python -m "))[:60].strip("-")
        return PRINTED / f"{name}-{hashlib.sha256(self.run.encode()).hexdigest()[:6]}.txt"


def read_lines(file: Path = LINES) -> tuple[list[Command], dict[str, dict[str, list[str]]]]:
    """The commands with their claims, and what is given: settings, arithmetic and other people's figures, by file."""
    found = tomllib.loads(file.read_text())
    commands = []
    for entry in found["command"]:
        claims = [
            Claim(
                file=line["in"],
                pattern=line.get("table") or line["text"],
                is_table="table" in line,
                printed=line.get("printed") or line.get("table") or "",
                tolerance=line.get("tolerance", 0.0),
                bound=line.get("bound", ""),
            )
            for line in entry["claims"]
        ]
        commands.append(Command(entry["run"], tuple(claims)))
    return commands, found["given"]


def _flat(text: str) -> str:
    return " ".join(text.replace("*", "").split())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(n.replace(",", "")) for n in re.findall(rf"(?<![\w.-]){NUMBER}|(?<=[+~]){NUMBER}", text))


def _text_pattern(template: str) -> re.Pattern[str]:
    """`{}` stands for a figure, `...` for anything within 200 characters, blanks for any run of them."""
    parts = re.split(r"(\{\}|\.\.\.)", _flat(template).replace(" ... ", "..."))
    meant = {"{}": rf"[*+]*({NUMBER})[*]*", "...": r".{0,200}?"}
    return re.compile("".join(meant.get(p) or re.escape(p).replace(r"\ ", r"[\s*]+") for p in parts), re.DOTALL)


def _text(document: str, template: str) -> list[Row]:
    found = _text_pattern(template).search(document)
    return [Row("", tuple(float(n.replace(",", "")) for n in found.groups()))] if found else []


def _tables(document: str, head: str) -> Iterator[re.Match[str]]:
    """The tables whose first line begins with these cells."""
    wanted = _cells(head)
    for found in re.finditer(r"(?:^\|.*\n?)+", document, re.MULTILINE):
        if _cells(found[0].split("\n", 1)[0])[: len(wanted)] == wanted:
            yield found


def _cells(line: str) -> list[str]:
    return [_flat(cell.replace("`", "")) for cell in line.strip().strip("|").split("|")]


def _table(document: str, head: str) -> list[Row]:
    rows: list[Row] = []
    first = next(_tables(document, head), None)
    for line in first[0].splitlines()[2:] if first else []:
        cells = _cells(line)
        words = [cell for cell in cells if not re.match(r"[+(]?-?\d", cell)]
        figures = [n for cell in cells if cell not in words for n in _numbers(cell)]
        if not words or words[0] != cells[0]:  # the first column names the row, be it a number
            words, figures = [cells[0], *words], figures[len(_numbers(cells[0])) :]
        rows.append(Row(" ".join(word for word in words if word), tuple(figures)))
    return rows


def uncovered(document: str, claims: list[Claim], given: dict[str, list[str]]) -> list[str]:
    """Figures of a document that no line speaks of, each with what stands around it."""
    covered = [False] * len(document)

    def cover(begin: int, end: int) -> None:
        covered[begin:end] = [True] * (end - begin)

    for fence in re.finditer(r"^```.*?^```|`[^`\n]*`|^#.*?$|\]\([^)]*\)", document, re.DOTALL | re.MULTILINE):
        cover(*fence.span())
    tables = [claim.pattern for claim in claims if claim.is_table] + given.get("tables", [])
    for head in tables:
        for table in _tables(document, head):
            cover(*table.span())
    for text in [claim.pattern for claim in claims if not claim.is_table] + given.get("texts", []):
        for found in _text_pattern(text).finditer(document):
            cover(*found.span())
    for paragraph in re.finditer(r"(?:^(?!\s*$).*\n?)+", document, re.MULTILINE):
        if any(_text_pattern(words).search(paragraph[0]) for words in given.get("paragraphs", [])):
            cover(*paragraph.span())
    missing = []
    for figure in _figures(document):
        if not all(covered[figure.start() : figure.end()]):
            around = document[max(0, figure.start() - 40) : figure.end() + 30]
            missing.append(" ".join(around.split()))
    return missing


def _figures(document: str) -> Iterator[re.Match[str]]:
    yield from FIGURE.finditer(document)
    for line in re.finditer(r"^\|.*$", document, re.MULTILINE):
        yield from re.compile(rf"\|\s*[*+]*{NUMBER}[*]*\s*(?=\|)").finditer(document, line.start(), line.end())


def check() -> list[str]:
    """What is wrong between `claims.toml` and the documents, a sentence each."""
    commands, given = read_lines()
    claims = [claim for command in commands for claim in command.claims]
    files = ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
    wrong = [f"{file} is in claims.toml, and is no document" for file in {c.file for c in claims} - set(files)]
    for file in files:
        document = (ROOT / file).read_text()
        of_file = [claim for claim in claims if claim.file == file]
        wrong += [f"{file} says nothing like: {c.pattern}" for c in of_file if not c.claimed(document)]
        for text in given.get(file, {}).get("texts", []) + given.get(file, {}).get("paragraphs", []):
            if not _text_pattern(text).search(document):
                wrong.append(f"{file} says nothing like what is given: {text}")
        for head in given.get(file, {}).get("tables", []):
            if not any(_tables(document, head)):
                wrong.append(f"{file} has no table that begins: {head}")
        wrong += [
            f"{file}: no line in benchmarks/claims.toml for: {f}"
            for f in uncovered(document, of_file, given.get(file, {}))
        ]
    return wrong


def compare(claim: Claim, document: str, output: str) -> Iterator[tuple[str, str, str, str]]:
    """Claim, claimed, measured, verdict: one for each row of a table, one for a text."""
    measured = {row.name: row for row in claim.measured(output)}
    rows = claim.claimed(document)
    in_order = claim.measured(output) if len({row.name for row in rows}) < len(rows) else []
    for number, row in enumerate(rows):
        name = f"{claim.file}: {row.name or _flat(claim.pattern)[:60]}"
        claimed = " ".join(f"{n:g}" for n in row.figures)
        found = (in_order[number] if number < len(in_order) else None) if in_order else measured.get(row.name)
        if not row.figures:
            continue
        if found is None or len(found.figures) < len(row.figures):
            yield name, claimed, "", "not printed"
            continue
        shown = " ".join(f"{n:g}" for n in found.figures)
        holds = all(_holds(claim, *pair) for pair in zip(row.figures, found.figures, strict=False))
        yield name, claimed, shown, "holds" if holds else "differs"


def _holds(claim: Claim, claimed: float, measured: float) -> bool:
    room = claim.tolerance * abs(claimed) + 1e-9
    at_least = measured >= claimed - room
    at_most = measured <= claimed + room
    return at_least if claim.bound == "least" else at_most if claim.bound == "most" else at_least and at_most


def run(command: Command, again: bool) -> tuple[int, str]:
    """Exit status and output of a command, from `.run/claims` where it ended well before."""
    if not again and command.kept.exists():
        return 0, command.kept.read_text()
    arguments = shlex.split(command.run)
    if arguments[0] == "python":
        arguments[0] = sys.executable
    elif (Path(sys.executable).parent / arguments[0]).exists():
        arguments[0] = str(Path(sys.executable).parent / arguments[0])
    print(f"... {command.run}", file=sys.stderr, flush=True)
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode == 0:
        command.kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = command.kept.with_suffix(".new")
        unfinished.write_text(done.stdout)
        unfinished.replace(command.kept)
    return done.returncode, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        wrong = check()
        print("\n".join(wrong) or "Every figure has its line, and every line its place.")
        raise SystemExit(bool(wrong))
    commands: list[Any] = [c for c in read_lines()[0] if not args.names or any(n in c.run for n in args.names)]
    if not commands:
        raise SystemExit(f"No command of {LINES.name} contains {' or '.join(args.names)}.")
    print(conditions())
    verdicts: dict[str, int] = {}
    print("\n| claim | claimed | measured | verdict |\n|---|---|---|---|")
    for command in commands:
        status, output = run(command, args.again)
        for claim in command.claims:
            document = (ROOT / claim.file).read_text()
            lines = [*compare(claim, document, output)] if status == 0 and claim.printed else []
            if not lines:  # a promise: that the command ends well is what shows it
                lines = [(f"{claim.file}: {_flat(claim.pattern)[:60]}", "", "", "failed" if status else "holds")]
            for name, claimed, measured, verdict in lines:
                print(f"| {name} | {claimed} | {measured} | {verdict} |", flush=True)
                verdicts[verdict] = verdicts.get(verdict, 0) + 1
        if status:
            print(f"\n{command.run} failed:\n{output[-500:]}\n", file=sys.stderr)
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    raise SystemExit(set(verdicts) != {"holds"})


if __name__ == "__main__":
    main()
