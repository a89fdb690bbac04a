"""Plays histories of the commit protocol, on all cores: `make prove N=100000`, or `python -m tests.protocol`.

    python -m tests.protocol [--histories N] [--minutes M] [--again]
    python -m tests.protocol --replay SEED [--bug NAME]

First the model is explored, then the histories are played, then each planted bug is hunted. What is done is kept in
`.run/protocol`, under a digest of the code that it was done with, so that it goes on where it was stopped; --again
forgets it. --replay prints one history. Ends with status 1 where the promise was broken, a bug was not found, or
histories are still to be played.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from benchmarks.conditions import conditions
from tasks.processes import usable_cpus
from tests.conftest import ROOT
from tests.protocol import model
from tests.protocol.bugs import BUGS
from tests.protocol.pieces import PIECE, replayed, violations

FOLDER = ROOT / ".run" / "protocol"
_HUNT = 4000  # Histories after which a bug counts as not found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, help="begin nothing after this time")
    parser.add_argument("--again", action="store_true", help="forget what has been done")
    parser.add_argument("--replay", type=int, metavar="SEED", help="print one history")
    parser.add_argument("--bug", choices=[bug.name for bug in BUGS], help="of a program with this planted bug")
    args = parser.parse_args()
    if args.replay is not None:
        print(replayed(args.replay, args.bug))
        return
    ends = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    kept = FOLDER / f"{code_digest()}.json"
    if args.again:
        kept.unlink(missing_ok=True)
    states, steps, way = model.explore()
    print(f"Model: {states:,} states, {steps:,} steps, {way or 'no violation'}.", flush=True)
    with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
        done = _Done(kept)
        for seed, violation in _spread(pool, done.hunted(""), args.histories, None, ends):
            done.note("", seed, violation)
        for bug in BUGS:
            for seed, violation in _spread(pool, done.hunted(bug.name), _HUNT, bug.name, ends):
                done.note(bug.name, seed, violation)
                if violation:
                    break
    print(f"\n{conditions()}\n\n{done.table()}")
    if not done.whole(args.histories) and ends < float("inf"):
        print("\nThere is more to do: the same command goes on.")
    sys.exit(bool(way or not done.whole(args.histories)))


def _spread(pool: ProcessPoolExecutor, start: int, end: int, bug: str | None, ends: float) -> Iterator[tuple[int, str]]:
    """Seed and violation of each history, a few pieces at a time, in the order of the seeds."""
    starts = iter(range(start, end, PIECE))
    waiting: dict[int, Future[list[str]]] = {}
    following = start
    while True:
        while len(waiting) < 2 * usable_cpus() and time.monotonic() < ends and (at := next(starts, None)) is not None:
            waiting[at] = pool.submit(violations, at, bug)
        if not waiting:
            return
        wait(waiting.values(), return_when=FIRST_COMPLETED)
        while following in waiting and waiting[following].done():
            found = waiting.pop(following).result()
            yield from enumerate(found, following)
            following += PIECE


class _Done:
    """What has been played, by planted bug; "" has the histories of the program as it is."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.facts: dict[str, dict] = json.loads(place.read_text()) if place.is_file() else {}

    def hunted(self, name: str) -> int:
        """The next seed; far out where the bug was found."""
        facts = self.facts.get(name, {"played": 0, "violations": {}})
        return _HUNT if name and facts["violations"] else facts["played"]

    def note(self, name: str, seed: int, violation: str) -> None:
        facts = self.facts.setdefault(name, {"played": 0, "violations": {}})
        facts["played"] = seed + 1
        if violation:
            facts["violations"][str(seed)] = violation
        if violation or facts["played"] % PIECE == 0:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            new = self.place.with_suffix(".new")
            new.write_text(json.dumps(self.facts, indent=1))
            new.replace(self.place)

    def whole(self, histories: int) -> bool:
        """Whether all histories were played without a violation, and every bug was found."""
        found = all(self.facts.get(bug.name, {}).get("violations") for bug in BUGS)
        own = self.facts.get("", {"played": 0, "violations": {}})
        return found and own["played"] >= histories and not own["violations"]

    def table(self) -> str:
        """Markdown."""
        own = self.facts.get("", {"played": 0, "violations": {}})
        lines = [f"{own['played']:,} histories, {len(own['violations'])} violations."]
        lines += [f"- seed {seed}: {what}" for seed, what in own["violations"].items()]
        lines += ["", "| planted bug | found by | after histories |", "|---|---|---|"]
        for bug in BUGS:
            facts = self.facts.get(bug.name, {"played": 0, "violations": {}})
            by = next(iter(facts["violations"].values()), "not found")
            lines.append(f"| {bug.what} | {by.partition(':')[0] if 'JobError' in by else by} | {facts['played']} |")
        return "\n".join(lines)


def code_digest() -> str:
    """Of what plays, and of the modules of the program that it has loaded: other code has other results."""
    loaded = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "tasks"}
    program = {Path(file) for file in loaded.values() if file}
    files = sorted(program | set((ROOT / "tests" / "protocol").glob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


if __name__ == "__main__":
    main()
