"""Prints the table of docs/reliability.md: what each fault has lost, duplicated or changed, and how long it has cost.

    python -m tests.faults [NAME ...] [--again] [--trials N | --times N] [--minutes M]

Trials that have been done are kept in `.run/faults` and not done again, so that it goes on where it was stopped;
--again forgets them. Ends with status 1 where anything was lost, duplicated or differs, or a trial is still to be done.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from benchmarks.conditions import conditions
from tests.conftest import ROOT
from tests.faults.bench import LONG_SIDE_PX, NUM_PHOTOGRAPHS, Bench
from tests.faults.fault import Fault, Outcome
from tests.faults.registry import FAULTS

FOLDER = Path(os.environ.get("SEGMENT_ARCHIVE_FAULTS_FOLDER", ROOT / ".run" / "faults"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(fault.name for fault in FAULTS)}")
    parser.add_argument("--again", action="store_true", help="forget the trials that have been done")
    parser.add_argument("--trials", type=int, help="how many of each, instead of each fault's own number")
    parser.add_argument("--times", type=int, help="trials until these faults have struck this often, all together")
    parser.add_argument("--minutes", type=float, help="begin no trial after this time")
    args = parser.parse_args()
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
            if time.monotonic() < ends and not attempt(bench, fault, trial):
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


def table(faults: list[Fault]) -> str:
    """Markdown, a line for each fault."""
    lines = [
        "| fault | times | lost | duplicated | differing | recovery, s: median (longest) |",
        "|---" * 6 + "|",
    ]
    for fault in faults:
        total = sum(outcomes(fault), Outcome(times=0))
        seconds = total.recovery_s
        told = f"{statistics.median(seconds):.0f} ({max(seconds):.0f})" if seconds else "-"
        numbers = f"{total.times} | {total.lost} | {total.duplicated} | {total.differing}"
        lines.append(f"| {fault.what} | {numbers} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
