#!/bin/sh
# Builds both extensions with Clang and runs their tests on that build. Usage: tests/clang.sh [PYTHON]
# CXX names the compiler, by default clang++ (Debian: clang-19, and CXX=clang++-19); 15 or later.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python}
home=$PWD/build/clang
rm -rf "$home"
CXX=${CXX:-clang++} "$python" -m pip install --quiet --no-deps --target "$home/project" -C build-dir="$home/build" .
grep "CMAKE_CXX_COMPILER:" "$home/build/CMakeCache.txt"
# Tests run beside that build: in this folder, segcore is the one of the working tree
cp -r tests examples pyproject.toml "$home/project"
cd "$home/project"
PYTHONPATH="$home/project" "$python" -P -m pytest -n 0 -p no:cacheprovider -m "not slow" \
    tests/segcore/crf/test_dense_crf.py tests/segcore/models/test_cpu_training.py
