# `make` lists the targets. Those that need .venv bring it up to date first, which does nothing when nothing has changed.

PY := .venv/bin/python
PYTEST_ARGS ?=
LOCK_ARGS ?=
# That from which .venv was made, else the first that is new enough; PYTHON=python3.12 make demo chooses another.
PYTHON ?= $(or $(shell for python in $(PY) python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import os, sys; sys.version_info >= (3, 11) or sys.exit(1); \
	print(os.path.realpath(sys._base_executable))' 2>/dev/null && exit; done),python3)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env demo reproduce-table runtime bench triton gpu-check test faults slow check lint lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

# Written when an install is complete. Its name holds the version of Python and this folder, whose path the scripts
# in .venv contain: where either differs, or an install was interrupted, it is missing and .venv is made anew.
STAMP := .venv/installed-$(shell $(PYTHON) -c 'import os, sys, zlib; \
	print("%d.%d-%08x" % (*sys.version_info[:2], zlib.crc32(os.getcwd().encode())))' 2>/dev/null)
TORCH := $(shell sed -n 's/^constraint-dependencies = \["\(torch==.*\)"\]/\1/p' pyproject.toml)
PIP := $(PY) -m pip install
LOCKED := $(PIP) --require-hashes --no-deps --no-build-isolation --use-pep517
# A user's pip settings may say where packages come from, but not that they go elsewhere than into .venv.
export PIP_USER := 0
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PIP_TARGET

# A link to the environment of another folder is used as it is.
env: $(if $(shell test -L .venv && echo linked),,$(STAMP)) ## install requirements.lock into .venv; every target below does this itself

# torch comes first and by name, so that a CPU machine can take a CPU build; what its CUDA build needs comes last.
# setuptools builds the packages that come as source.
$(STAMP): requirements.lock pyproject.toml $(PY)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d is too old, \
	3.11 or newer is needed: name one, as in PYTHON=python3.12 make demo" % v[:2])'
	@test -f $@ || { rm -f .venv/installed-* && $(PYTHON) -m venv --clear .venv; }
	@rm -f $@
	$(PIP) --no-deps $(TORCH)
	sed -n '/^setuptools==/,/# via/p' requirements.lock > .venv/setuptools.lock
	$(LOCKED) -r .venv/setuptools.lock
	$(LOCKED) -r requirements.lock
	$(PIP) $(TORCH)
	$(PIP) --no-deps --no-build-isolation --editable .
# On Linux torchaudio's libraries need CUDA. Beside a CPU build of torch its import fails with them, and works without.
	@$(PY) -c 'import sys, torch; sys.exit(sys.platform != "linux" or bool(torch.version.cuda or torch.version.hip))' || exit 0; \
	find .venv/lib -path '*/torchaudio/lib/*.so' -type f -print -delete
	@$(PY) -c 'import torchaudio'
	@touch $@

# Where the Python of .venv is missing, no stamp counts.
$(PY):
	@rm -f .venv/installed-*

demo: env ## half an hour of synthetic speech, a sweep of small RNNs, a table, a plot, three transcripts
	$(PY) src/train.py -m -cd sweeps -cn demo
	$(PY) src/report.py outputs/demo --out outputs/demo
	$(PY) src/transcribe.py $$(ls -d outputs/demo/rnn-128-dense-*/ | head -1) --split test --limit 3

SCALE ?= mini
SEEDS ?= 0
OUTPUTS ?= outputs
ARGS ?=
reproduce-table: env ## the nine rows of the paper's table; SCALE=mini (CPU) or paper (GPUs), SEEDS=1,2,3, ARGS=settings
	@status=0; $(PY) src/train.py -m -cd sweeps -cn table scale=$(SCALE) seed=$(SEEDS) outputs=$(OUTPUTS) $(ARGS) || status=$$?; \
	$(PY) src/report.py $(OUTPUTS) --paper --out $(OUTPUTS)/report && exit $$status

runtime: env ## compile the block-sparse runtime ahead of its first use
	$(PY) src/bench.py --compile

bench: env ## benchmark the runtime beside baselines, which it installs; ARGS=--quick takes a minute
	$(PY) -m pip install --quiet -r benchmarks/baselines.txt
	$(PY) src/bench.py --out outputs/bench $(ARGS)

triton: env ## install Triton beside a CPU build of torch: its interpreter runs the tests of the GPU kernels
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[cuda]'

gpu-check: env ## tests, training step and runtime on a GPU; writes results/gpu/
	$(PY) benchmarks/gpu_check.py

test: lint ## lint, types and the tests; PYTEST_ARGS='-k word' picks some
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 $(PYTEST_ARGS)

faults: env ## kill trainings and sweeps, resume them, compare; ARGS=--short takes minutes
	OMP_NUM_THREADS=1 $(PY) tests/faults.py $(ARGS)

slow: env ## the slow tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow --numprocesses auto --maxprocesses 2 --dist worksteal --durations 20 $(PYTEST_ARGS)

check: test slow ## test, then slow

lint: env ## style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

lock: env ## rewrite requirements.lock from pyproject.toml; LOCK_ARGS=--upgrade takes newer releases
	$(PY) -m uv pip compile pyproject.toml --quiet --custom-compile-command 'make lock' \
		--output-file requirements.lock $(LOCK_ARGS)

clean: ## remove caches and build outputs; .venv, outputs/, corpora/ and results/ stay
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -name .venv -o -name .git -o -name outputs -o -name corpora -o -name results \) -prune \
		-o -name __pycache__ -type d -prune -exec rm -rf {} +
