"""Prints the table of docs/reliability.md: what each fault has lost, duplicated or changed, and how long it has cost.

    python -m tests.faults [NAME ...] [--again] [--trials N | --times N] [--minutes M]
    python -m tests.faults --published | --publish [COMMIT]

Trials that have been done are kept in `.run/faults` and not done again, so that it goes on where it was stopped;
--again forgets them. Ends with status 1 where anything was lost, duplicated or differs, or a trial is still to be done.
--publish moves them to `tests/faults/trials.json`, with the commit that they are of (by default this one); from there
--published prints the table of docs/reliability.md.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from benchmarks.conditions import conditions
from tests.conftest import ROOT
from tests.faults.bench import LONG_SIDE_PX, NUM_PHOTOGRAPHS, Bench
from tests.faults.fault import Fault, Outcome
from tests.faults.registry import FAULTS

PUBLISHED = ROOT / "tests" / "faults" / "trials.json"
FOLDER = Path(os.environ.get("SEGMENT_ARCHIVE_FAULTS_FOLDER", ROOT / ".run" / "faults"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(fault.name for fault in FAULTS)}")
    parser.add_argument("--again", action="store_true", help="forget the trials that have been done")
    parser.add_argument("--trials", type=int, help="how many of each, instead of each fault's own number")
    parser.add_argument("--times", type=int, help="trials until these faults have struck this often, all together")
    parser.add_argument("--minutes", type=float, help="begin no trial after this time")
    parser.add_argument("--publish", nargs="?", const="HEAD", metavar="COMMIT", help="keep the trials in trials.json")
    parser.add_argument("--published", action="store_true", help="print the table of trials.json")
    args = parser.parse_args()
    if args.publish:
        publish(args.publish)
    if args.publish or args.published:
        found = {name: [Outcome(**trial["outcome"]) for trial in trials] for name, trials in published().items()}
        print(table([fault for fault in FAULTS if fault.name in found], lambda fault: found[fault.name]))
        return
    if unknown := set(args.names) - {fault.name for fault in FAULTS}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in FAULTS)}")
    wanted = [fault for fault in FAULTS if not args.names or fault.name in args.names]
    FOLDER.mkdir(parents=True, exist_ok=True)
    bench = Bench(FOLDER)
    bench.prepare()
    if args.again:
        for fault in wanted:
            (FOLDER / "results" / f"{fault.name}.json").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that what a trial has started is ended
    ends = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    failed: set[str] = set()
    share = -(-args.times // len(wanted)) if args.times else None

    def left(fault: Fault) -> int:
        """Trials, or strikes, that are still to be done."""
        if share is not None:
            return max(0, share - sum(outcome.times for outcome in outcomes(fault)))
        return max(0, (args.trials or fault.trials) - len(outcomes(fault)))

    while to_do := [fault for fault in wanted if left(fault) and fault.name not in failed]:
        if time.monotonic() >= ends:
            break
        trial = min(len(outcomes(fault)) for fault in to_do)  # One of each, then the next of each
        for fault in to_do:
            if len(outcomes(fault)) != trial:
                continue
            # A number of its own, and so moments of its own, also beside those of earlier sessions
            if time.monotonic() < ends and not attempt(bench, fault, trial + len(published().get(fault.name, []))):
                failed.add(fault.name)
    print(f"\n{conditions()}")
    print(f"{NUM_PHOTOGRAPHS} photographs and a file of each kind that is none, {LONG_SIDE_PX} px, default model.\n")
    print(table(wanted))
    if remains := sum(map(left, wanted)):
        print(f"\n{remains} {'strikes' if args.times else 'trials'} are still to be done: the same command goes on.")
    sys.exit(bool(remains or not all(outcome.clean for fault in wanted for outcome in outcomes(fault))))


def attempt(bench: Bench, fault: Fault, trial: int) -> bool:
    """Do one trial and keep what it has shown; False where that cannot be told."""
    start = time.monotonic()
    try:
        outcome = fault.run(bench, trial)
    except Exception:  # The other faults are still to be tried
        traceback.print_exc()
        print(f"{fault.name}, trial {trial}: the promise could not be told.", flush=True)
        return False
    kept = FOLDER / "results" / f"{fault.name}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps([dataclasses.asdict(done) for done in [*outcomes(fault), outcome]], indent=1))
    verdict = "clean" if outcome.clean else f"NOT CLEAN: {outcome}"
    print(f"{fault.name}, trial {trial}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    if outcome.clean:
        shutil.rmtree(FOLDER / "trials", ignore_errors=True)
    return True


def outcomes(fault: Fault) -> list[Outcome]:
    """Of the trials that have been done."""
    kept = FOLDER / "results" / f"{fault.name}.json"
    return [Outcome(**facts) for facts in json.loads(kept.read_text())] if kept.is_file() else []


def published() -> dict[str, list[dict[str, Any]]]:
    """Trials that are kept, by the name of their fault."""
    return dict(json.loads(PUBLISHED.read_text())) if PUBLISHED.is_file() else {}


def publish(commit: str) -> None:
    """Move the trials that have been done to those that are kept, with their commit and its day."""
    kept = published()
    git = ["git", "log", "-1", "--format=%h %as", commit]
    of = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    for fault in FAULTS:
        new = [{"of": of, "outcome": dataclasses.asdict(outcome)} for outcome in outcomes(fault)]
        for trial in new:
            trial["outcome"]["recovery_s"] = [round(seconds, 1) for seconds in trial["outcome"]["recovery_s"]]
        kept[fault.name] = [*kept.get(fault.name, []), *new]
        (FOLDER / "results" / f"{fault.name}.json").unlink(missing_ok=True)
    lines = [f'"{name}": [\n' + ",\n".join(map(json.dumps, trials)) + "\n]" for name, trials in kept.items() if trials]
    PUBLISHED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(faults: list[Fault], done: Callable[[Fault], list[Outcome]] | None = None) -> str:
    """Markdown, a line for each fault. done: what its trials have shown, by default those of this folder."""
    done = done or outcomes
    lines = [
        "| fault | trials | times | lost | duplicated | differing | recovery, s: median (longest) |",
        "|---" * 7 + "|",
    ]
    for fault in faults:
        total = sum(done(fault), Outcome(times=0))
        seconds = total.recovery_s
        told = f"{statistics.median(seconds):.0f} ({max(seconds):.0f})" if seconds else "-"
        numbers = f"{len(done(fault))} | {total.times} | {total.lost} | {total.duplicated} | {total.differing}"
        lines.append(f"| {fault.what} | {numbers} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
