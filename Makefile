# A newcomer needs only `make train` and `make test`. Both work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: train test test-slow test-nightly test-verl mutants bench pretrained study probes figures study-small soak clean
.DELETE_ON_ERROR:

train: .venv/.core  ## train SPPO on Precision CartPole from the shipped starting policy
	$(BIN)/python scripts/sppo_cartpole.py

test: .venv/.test  ## check format, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal  # worksteal, because tests of training are few and long

test-slow: .venv/.test  ## the few tests that take more than ten seconds each: about two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --dist worksteal

test-nightly: .venv/.test  ## the properties (tests/test_properties_*.py) on 2,000 random cases each, not 200: four minutes of one core
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_properties_*.py -n auto --dist worksteal

test-verl: .venv-verl/.test  ## test the verl plug-in, in a separate environment: verl and TRL need different transformers
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest tests_verl

mutants: .venv/.test  ## make single-line bugs, and see which test catches each: about twenty minutes, resumable
	$(BIN)/python scripts/mutants.py --json runs/mutants.json --markdown docs/mutants.md

bench: .venv/.bench  ## compare training speed with Stable-Baselines3, and engines with Gymnasium's
	$(BIN)/python scripts/speed.py
	$(BIN)/python scripts/speed.py --what engines

study-small: .venv/.study  ## make a small version of the paper's figure 8: three tasks, three seeds, in less than 15 minutes
	$(BIN)/python scripts/benchmark.py --grid results/grids/small.toml
	$(BIN)/python scripts/report.py --results runs/study_small.parquet --out runs/study_small --figures fig8 fig5

study: .venv/.study  ## make the whole study of docs/results.md, which takes hours; runs that are already in results/ are skipped
	$(BIN)/python scripts/benchmark.py --grid results/grids/study.toml
	$(MAKE) figures

probes: .venv/.study  ## make results/*.json, which look into critics; trains their runs again for the checkpoints, half an hour
	$(BIN)/python scripts/benchmark.py --grid results/grids/probes.toml
	$(BIN)/python scripts/probe.py --commands results/commands/probes.toml

figures: .venv/.study  ## make the figures and tables of the docs from results/, about a minute
	$(BIN)/python scripts/report.py --commands results/commands/figures.toml
	$(BIN)/python scripts/report_rates.py --what table

pretrained: .venv/.tasks  ## make the shipped starting policies again, about ten minutes
	for id in $$($(BIN)/python -c 'import sppo_envs; print(*sppo_envs.TASKS)'); do \
	  $(BIN)/python scripts/pretrain.py --env-id $$id || exit 1; done

soak: .venv/.test  ## kill and resume training runs 100 times, about 20 minutes
	$(BIN)/python scripts/soak.py --kills 100

clean:  ## remove the virtual environment; runs/ stays
	rm -rf .venv

# torch is installed first, and with a pinned version, so that no other package installs another build of it.
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
