"""The first five minutes, measured: `python -m benchmarks.install [PHOTOGRAPHS] [--compile]`, after `make wheel`.

In a fresh virtual environment, no compiler in PATH and a home of its own: pip installs dist/*.whl with what it needs
(brought into pip's cache before the clock starts), one photograph is shown, a folder is run, its gallery is there.
Prints the seconds of each part, the size of each package once installed and once used, and every file left outside the
output. --compile: as pip does by itself, bytecode is made of every module when it is installed, rather than of those
that are used when they are.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.photographs import FIVE

ROOT = Path(__file__).resolve().parent.parent

TARGET_S = 90
TARGET_MB = 500

SIZES = """
import importlib.metadata, importlib.util, json, pathlib
sizes = {}
for package in importlib.metadata.distributions():
    files = {pathlib.Path(str(file.locate())) for file in package.files or ()}
    files |= {pathlib.Path(importlib.util.cache_from_source(file)) for file in files if file.suffix == ".py"}
    sizes[package.metadata["Name"]] = sum(file.stat().st_size for file in files if file.is_file())
print(json.dumps(sizes))
"""
"""Bytes of each package, bytecode included, that pip made or that Python made since."""

OF_EVERY_ENVIRONMENT = {"pip", "setuptools"}


class Fresh:
    """A virtual environment, a home and a temporary folder that nothing has used."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.home, self.temporary, self.venv = folder / "home", folder / "tmp", folder / "venv"
        for made in (self.home, self.temporary):
            made.mkdir()
        cache = subprocess.run(
            [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=False
        ).stdout.strip()
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "SSL_"))}
        self.environment = kept | {
            "PATH": str(self.venv / "bin"),
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            **({"PIP_CACHE_DIR": cache} if cache else {}),
        }
        for compiler in ("c++", "cc", "clang", "g++", "gcc"):
            assert shutil.which(compiler, path=self.environment["PATH"]) is None, compiler
        self.seconds: dict[str, float] = {}

    def do(self, part: str | None, *command: object) -> str:
        """Run a command; what it takes is counted to a part."""
        began = time.perf_counter()
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        if part is not None:
            self.seconds[part] = time.perf_counter() - began
        return done.stdout

    def sizes(self) -> dict[str, int]:
        """Bytes of each package that was installed."""
        sizes: dict[str, int] = json.loads(self.do(None, self.venv / "bin" / "python", "-B", "-c", SIZES))
        return {package: size for package, size in sizes.items() if package not in OF_EVERY_ENVIRONMENT}

    def left(self) -> dict[str, int]:
        """Bytes of each file in the home and the temporary folder."""
        files = [file for place in (self.home, self.temporary) for file in place.rglob("*") if file.is_file()]
        return {str(file.relative_to(self.folder)): file.stat().st_size for file in sorted(files)}


def wheel_for(python: str) -> Path:
    """The wheel of dist/ for an interpreter."""
    asked = [python, "-c", "import sys; print('%d%02d' % sys.version_info[:2])"]
    version = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    pattern = "*-abi3-*.whl" if version >= 312 else f"*-cp{version}-*.whl"
    found = sorted((ROOT / "dist").glob(pattern))
    if not found:
        raise SystemExit(f"There is no {pattern} in dist/: `make wheel` first.")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", type=Path, help="a folder; by default the five of the benchmarks")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--compile", action="store_true", help="let pip compile every module to bytecode")
    args = parser.parse_args()
    wheel = wheel_for(args.python)
    with tempfile.TemporaryDirectory(prefix="first-five-minutes-") as name:
        fresh = Fresh(Path(name), args.python)
        photographs = fresh.home / "photos"
        if args.photographs:
            shutil.copytree(args.photographs.resolve(), photographs)
        else:
            photographs.mkdir()
            for file in FIVE:
                shutil.copy(file, photographs)
        own = next(file for file in sorted(photographs.rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        load = os.getloadavg()[0]
        fresh.do("virtual environment", args.python, "-m", "venv", fresh.venv)
        bin_ = fresh.venv / "bin"
        fresh.do(None, bin_ / "python", "-m", "pip", "install", "--quiet", "--dry-run", wheel)
        compiled = () if args.compile else ("--no-compile",)
        fresh.do(
            " ".join(("pip install", *compiled)), bin_ / "python", "-m", "pip", "install", "--quiet", *compiled, wheel
        )
        installed = fresh.sizes()
        command = bin_ / "segment-archive"
        fresh.do("first mask: show", command, "show", own, "--to", fresh.home / "overlay.png")
        told = fresh.do("folder and gallery: run", command, "run", photographs)
        assert (fresh.home / "overlay.png").stat().st_size and list(fresh.home.glob("photos-masks/report/*/index.html"))
        (fresh.home / "overlay.png").unlink()
        for place in (photographs, fresh.home / "photos-masks"):
            shutil.rmtree(place)
        version = fresh.do(None, bin_ / "python", "-VV").split("\n")[0]
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, on {version.partition('(')[0].strip()}")
        print(f"{os.cpu_count()} CPUs, load before {load:.1f}; packages in pip's cache; no compiler in PATH")
        for part, taken in fresh.seconds.items():
            print(f"  {taken:7.1f} s  {part}")
        print(f"  {sum(fresh.seconds.values()):7.1f} s  in all (target {TARGET_S})")
        used = fresh.sizes()
        print("by package, installed and used:")
        for package, size in sorted(used.items(), key=lambda entry: -entry[1]):
            if size >= 1e6:
                print(f"  {installed[package] / 1e6:7.1f} {size / 1e6:7.1f} MB  {package}")
        in_all = sum(installed.values()) / 1e6, sum(used.values()) / 1e6
        print(f"  {in_all[0]:7.1f} {in_all[1]:7.1f} MB  in all, {len(used)} packages (target {TARGET_MB})")
        left = fresh.left()
        print(f"left in the home and the temporary folder: {len(left)} files, {sum(left.values())} bytes")
        for file, size in left.items():
            print(f"  {size:9d}  {file}")
        print("\n".join(f"| {line}" for line in told.strip().splitlines()))


if __name__ == "__main__":
    main()
