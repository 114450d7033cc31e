# make demo     run the whole pipeline with a real model on a CPU: SFT, reward model, PPO, report (runs/demo/report)
# make demo-fast  run a third of it, in a few minutes (runs/demo-fast/report)
# make test     run the test suite
# make test-vllm  run the vLLM engine on this CPU, in an environment of its own (.venv-vllm); see docs/reference/vllm.md
# make test-exports  run exports in llama.cpp and rewardbench, and lm-eval on policies; environments of their own
# make chaos    damage every file of a tiny run; kill its stages KILLS times, resume them, compare the results
# make audit    ask the registry for known vulnerabilities of the pinned versions
# make lint     check style, types, and who imports whom
# make docs     build the documentation site into site/; to search in it: python -m http.server -d site
# make setup    create the environment in .venv; the other targets call it
# make clean    remove .venv and the other environments and caches, but not runs/
#
# PIP_ARGS is passed to pip. A machine without a GPU can skip the CUDA packages:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# EXTRAS names the extras to install: make setup EXTRAS=dev,gpu
# Either of the two installs again, also into an environment that exists.
# WORKERS is the number of test processes, one core each: make test WORKERS=8

SHELL := /bin/bash
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c '' 2>/dev/null && echo $$python && break; done)
PIP_ARGS ?=
EXTRAS ?= dev
WORKERS ?= 2
KILLS ?= 100
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/installed

# The constraints also hold in the environments in which pip builds packages. Older and newer pips read different names.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# deepspeed starts ninja, and tristage starts deepspeed, by name.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup again demo demo-fast test test-vllm test-vllm-here test-exports chaos audit lint docs clean

# EXTRAS or PIP_ARGS on the command line install into an environment that exists, too.
ifneq (,$(findstring command line,$(origin EXTRAS) $(origin PIP_ARGS)))
$(INSTALLED): again
endif

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tristage needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/python -m stages.models.demo_models smollm2-135m-instruct
	$(BIN)/tristage run configs/demo.yaml

# A third of the demo: it shows that things move, not by how much. A lexicon of feelings ranks and judges, which is quick.
FAST := name=demo-fast sft.epochs=1 data.rm.limit=136 rm.epochs=1 data.rm.held_out=40 rm.normalization_prompts=24 \
    rm.rankings.labeller=warmth ppo.judge=warmth data.ppo.held_out=40 ppo.iterations=5 ppo.batch_size=24 \
    ppo.learning_rate=5e-4 ppo.critic=shared ppo.eval_steps=null ppo.save_steps=5

demo-fast: setup
	$(BIN)/python -m stages.models.demo_models smollm2-135m-instruct
	$(BIN)/tristage run configs/demo.yaml $(FAST)

# Files run in the order of the folders. Long files come first, so that the workers end together.
test: setup
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=20 $(PYTEST_ARGS)

# vLLM needs other versions than constraints.txt.
test-vllm test-vllm-here $(VLLM_INSTALLED): export PIP_CONSTRAINT :=
test-vllm test-vllm-here $(VLLM_INSTALLED): export PIP_BUILD_CONSTRAINT :=

test-vllm:
	@obstacle="$$($(PYTHON) tests/vllm/processor.py)" || exit 1; \
	if [ -n "$$obstacle" ]; then echo "test-vllm: skipped: $$obstacle"; else $(MAKE) --no-print-directory test-vllm-here; fi

test-vllm-here: $(VLLM_INSTALLED)
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -q --durations=20 tests/vllm $(PYTEST_ARGS)

$(VLLM_INSTALLED): pyproject.toml tests/vllm/requirements.txt
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install $(PIP_ARGS) --no-deps -r tests/vllm/requirements.txt
	$(VLLM_VENV)/bin/python -m pip install $(PIP_ARGS) --no-deps --no-build-isolation -e .
	@touch $@

# The converter replaces the package gguf, and rewardbench pins an older transformers, so each has its environment.
test-exports: setup .venv-gguf/installed .venv-rewardbench/installed
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[evaluate]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 tests/exports $(PYTEST_ARGS)

.venv-%/installed: export PIP_CONSTRAINT :=
.venv-%/installed: export PIP_BUILD_CONSTRAINT :=
.venv-%/installed: tests/exports/%.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install $(PIP_ARGS) -r tests/exports/$*.txt
	@touch $@

chaos: setup
	$(BIN)/python -m tests.chaos.damage --seed $(SEED)
	$(BIN)/python -m tests.chaos $(KILLS) --seed $(SEED)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: export NO_MKDOCS_2_WARNING := 1
docs: setup
	$(BIN)/python -m mkdocs build --strict

# A separate environment without pins, so that pip-audit knows the newest advisories.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	PIP_CONSTRAINT= $(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --no-deps --disable-pip --requirement constraints.txt

clean:
	rm -rf $(VENV) .venv-* build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
