"""Every hostile file, in processes of their own; prints what became of them.

    python -m tests.hostile [images|files|all] [--images 10000] [--files 8400] [--seed 1] [--workers 2]

One file again, by hand: `python -m tests.hostile images --only 1234 --write bad.jpg`.
"""

import argparse
import time
from pathlib import Path

from benchmarks.conditions import conditions
from tests.hostile import trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["images", "files", "all"], default="all")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=8_400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="this number alone, in this process; its traceback is shown")
    parser.add_argument("--write", type=Path, help="with --only: write the file there")
    args = parser.parse_args()
    if args.only is not None and args.what == "all":
        parser.error("say of which the number is: images or files")
    if args.only is not None:
        one(args.what, args.only, args.seed, args.write)
        return
    print(conditions())
    bound = f"{trial.MEMORY_BYTES >> 30} GiB and {trial.TIME_LIMIT_S:.0f} s a file"
    sound = True
    for kind, number in (("images", args.images), ("files", args.files)):
        if args.what not in (kind, "all"):
            continue
        start = time.perf_counter()
        groups = trial.run(kind, range(number), args.seed, args.workers)
        print(
            f"\n{number:,} hostile {kind}, seed {args.seed}, at most {bound}, in {time.perf_counter() - start:.0f} s\n"
        )
        print(trial.table(groups))
        for group in groups.values():
            for fault in group.faults[:20]:
                print(f"  {fault}")
        sound = sound and trial.sound(groups)
    raise SystemExit(0 if sound else 1)


def one(what: str, number: int, seed: int, write: Path | None) -> None:
    """Read one file here."""
    import importlib

    module = importlib.import_module(f"tests.hostile.{what}")
    name, data = module.make(number, seed)
    content = data if isinstance(data, bytes) else data[1]  # Of files the kind is said too
    if write is not None:
        write.write_bytes(content)
    print(f"{name}, {len(content)} bytes")
    print(module.read(data))


if __name__ == "__main__":
    main()
