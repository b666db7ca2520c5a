# `make train` and `make test` are all a newcomer needs; both work from a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: train test test-verl mutants bench pretrained study probes figures study-small clean
.DELETE_ON_ERROR:

train: .venv/.core  ## train SPPO on Precision CartPole from the shipped starting policy
	$(BIN)/python scripts/sppo_cartpole.py

test: .venv/.test  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal  # tests of training are few and long

test-verl: .venv-verl/.test  ## the verl plug-in, in an environment of its own: verl and TRL need different transformers
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest tests_verl

mutants: .venv/.test  ## single-line bugs, and which test catches each: about twenty minutes; goes on where it stopped
	$(BIN)/python scripts/mutants.py --json runs/mutants.json --markdown docs/mutants.md

bench: .venv/.bench  ## training speed against Stable-Baselines3, engines against Gymnasium's
	$(BIN)/python scripts/speed.py
	$(BIN)/python scripts/speed.py --what engines

study-small: .venv/.study  ## a small version of the paper's figure 8: three tasks, three seeds, under 15 minutes
	$(BIN)/python scripts/benchmark.py --grid results/grids/small.toml
	$(BIN)/python scripts/report.py --results runs/study_small.parquet --out runs/study_small --figures fig8 fig5

study: .venv/.study  ## the whole study of docs/results.md: hours; what is in results/ already is not run again
	$(BIN)/python scripts/benchmark.py --grid results/grids/study.toml
	$(MAKE) figures

probes: .venv/.study  ## results/*.json, looks inside the critics: needs checkpoints, so it trains those runs again, half an hour
	$(BIN)/python scripts/benchmark.py --grid results/grids/probes.toml
	$(BIN)/python scripts/probe.py --commands results/commands/probes.toml

figures: .venv/.study  ## the figures and tables of the docs, from results/: about a minute
	$(BIN)/python scripts/report.py --commands results/commands/figures.toml
	$(BIN)/python scripts/report_rates.py --what table

pretrained: .venv/.tasks  ## rebuild the shipped starting policies, about ten minutes
	for id in $$($(BIN)/python -c 'import sppo_envs; print(*sppo_envs.TASKS)'); do \
	  $(BIN)/python scripts/pretrain.py --env-id $$id || exit 1; done

clean:  ## remove the virtual environment; runs/ stays
	rm -rf .venv

# torch is installed first and pinned, so that no other package can pull in another build of it.
.venv/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"Python >= 3.11 is needed, {sys.executable} is {v}; name another: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (one to three minutes the first time) ..."
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

.venv/.test: .venv/.core
	@$(PIP) -e '.[test]'
	@touch $@

.venv-verl/.test: pyproject.toml constraints-verl.txt
	@test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	@echo "Installing into .venv-verl (two to three minutes the first time) ..."
	@.venv-verl/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0
	@.venv-verl/bin/python -m pip install --disable-pip-version-check -q -c constraints-verl.txt -e '.[verl]' pytest
	@touch $@

.venv/.tasks: .venv/.core
	@$(PIP) -e '.[tasks]'
	@touch $@

.venv/.study: .venv/.tasks
	@$(PIP) -e '.[study]'
	@touch $@

.venv/.bench: .venv/.tasks
	@$(PIP) -e '.[bench]'
	@touch $@
