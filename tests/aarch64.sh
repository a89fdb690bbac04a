#!/bin/sh
# Compiles the CRF engine for aarch64 and, where qemu-aarch64-static is at hand, runs it there against this processor.
# Needs aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu, qemu-user-static). Usage: tests/aarch64.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python}
home=build/aarch64
mkdir -p "$home"
flags="-std=c++17 -O3 -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-psabi"
sources="tests/crf_driver.cpp segcore/crf/engine/memory.cpp"
for compiler in aarch64-linux-gnu-g++ g++; do
    "$compiler" $flags -ffp-contract=off -c segcore/crf/engine/lattice_plain.cpp -o "$home/lattice.o"
    "$compiler" $flags -ffp-contract=fast -c segcore/crf/engine/engine_plain.cpp -o "$home/engine.o"
    "$compiler" $flags -static $sources "$home/lattice.o" "$home/engine.o" -o "$home/$compiler"
done
headers=$("$python" -c 'import nanobind, sysconfig; print("-I" + sysconfig.get_path("include"), "-I" + nanobind.include_dir())')
aarch64-linux-gnu-g++ -std=c++17 -O2 -fPIC $headers -c segcore/crf/engine/bindings.cpp -o "$home/bindings.o"
echo "The engine and its binding compile for aarch64."
command -v qemu-aarch64-static >/dev/null || { echo "qemu-aarch64-static is missing: not run."; exit 0; }
here=$("$home/g++")
there=$(qemu-aarch64-static "$home/aarch64-linux-gnu-g++")
echo "here:    $here"
echo "aarch64: $there"
[ "$here" = "$there" ] || { echo "They differ."; exit 1; }
