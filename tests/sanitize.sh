#!/bin/sh
# Builds the CRF engine with the address and undefined-behaviour sanitizers and runs its tests on it.
# Usage: tests/sanitize.sh [PYTHON] [PYTEST ARGUMENT ...]; PYTHON has the project's packages, by default `python`.
# Takes two to three minutes. Needs g++ with its sanitizer libraries (on Debian they come with g++).
set -eu
cd "$(dirname "$0")/.."
python=${1:-python}
[ $# -gt 0 ] && shift
home=build/sanitize
rm -rf "$home"
# An environment of its own that sees the packages of PYTHON, but not its installation of this project
"$python" -m venv --without-pip "$home/venv"
site=$("$home/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import site, sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))' > "$site/packages.pth"
"$python" -m pip install --quiet --no-deps --target "$home/project" \
    -C build-dir="$home/build" -C cmake.define.SEGCRF_SANITIZE=ON .
echo "import sys; sys.path.insert(0, '$PWD/$home/project')" > "$site/project.pth"
# The engine is imported before pytest puts this folder, which has no build of it, in front of the path (-p segcore._crf).
# The sanitizers must be there before Python is. Leaks are left out: the interpreter itself never frees all
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    "$home/venv/bin/python" -P -m pytest -p segcore._crf -p no:cacheprovider -m "not slow" "$@" tests/segcore/crf/test_dense_crf.py
