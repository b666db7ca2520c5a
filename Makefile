# A newcomer needs only `make train` and `make test`. Both work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: train test test-slow test-nightly test-verl test-oldest test-newest mutants docs bench pretrained starts study probes figures study-small soak llm-real clean
.DELETE_ON_ERROR:

# Deprecations in code of others are not errors where its versions cannot be chosen freely.
CALM := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

train: .venv/.core  ## train SPPO on Precision CartPole from the shipped starting policy
	$(BIN)/python scripts/sppo_cartpole.py

test: .venv/.test  ## check format, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal  # worksteal, because tests of training are few and long

test-slow: .venv/.test  ## the few tests that take more than ten seconds each: about three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n auto --dist worksteal

test-nightly: .venv/.test  ## the properties (tests/test_properties_*.py) on 2,000 random cases each, not 200: four minutes of one core
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_properties_*.py -n auto --dist worksteal

test-verl: .venv-verl/.test  ## test the verl plug-in, in a separate environment: verl and TRL need different transformers
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest $(CALM) tests_verl  # verl itself uses what is deprecated

test-oldest: .venv-oldest/.test  ## test the oldest versions that pyproject.toml admits, without the language-model half
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(CALM) -n auto --dist worksteal

test-newest: .venv-newest/.test  ## test the newest versions that exist today; torch is the one of constraints.txt
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n auto --dist worksteal

mutants: .venv/.test  ## make single-line bugs, and see which test catches each: about twenty minutes, resumable
	$(BIN)/python scripts/mutants.py --json runs/mutants.json --markdown docs/mutants.md

docs: .venv/.docs  ## build the site into docs/_build/html, without network; every warning and every bad link is an error
	rm -rf docs/_build
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: .venv/.bench  ## compare speed with peers, about an hour; with PureJaxRL too: make bench PUREJAXRL=path/to/its/clone
	@test -z "$(PUREJAXRL)" || $(MAKE) .venv-jax/.bench
	for what in training processes start scale engines; do \
	  $(BIN)/python scripts/speed.py --what $$what --out docs/speed.json $(if $(PUREJAXRL),--purejaxrl $(PUREJAXRL)) || exit 1; done
	$(BIN)/python scripts/speed.py --what tables --out docs/speed.json

study-small: .venv/.study  ## make a small version of the paper's figure 8: three tasks, three seeds, in less than 15 minutes
	$(BIN)/python scripts/benchmark.py --grid results/grids/small.toml
	$(BIN)/python scripts/report.py --results runs/study_small.parquet --out runs/study_small --figures fig8 fig5

study: .venv/.study  ## make both studies of docs/results.md, 30 hours of one core; runs that are already in results/ are skipped
	for grid in study second_tuning second second_why second_rates_tuning second_rates; do \
	  $(BIN)/python scripts/benchmark.py --grid results/grids/$$grid.toml || exit 1; done
	$(MAKE) figures

probes: .venv/.study  ## make results/*.json, which look into critics; trains their runs again for the checkpoints, half an hour
	$(BIN)/python scripts/benchmark.py --grid results/grids/probes.toml
	$(BIN)/python scripts/probe.py --commands results/commands/probes.toml

figures: .venv/.study  ## make the figures and tables of the docs from results/, about two minutes
	$(BIN)/python scripts/report.py --commands results/commands/figures.toml
	$(BIN)/python scripts/report_rates.py --what table
	$(BIN)/python scripts/compare.py --results results/second.parquet
	$(BIN)/python scripts/compare.py --results results/second.parquet results/second_why.parquet results/second_rates.parquet \
	  --plan results/plan_why.toml --no-picture --out docs/figures/second_why.md
	$(BIN)/python scripts/compare.py --results results/second.parquet results/second_rates.parquet --plan results/plan_rates.toml \
	  --no-picture --out docs/figures/second_rates.md
	$(BIN)/python scripts/critic_control.py
	$(BIN)/python scripts/credit.py --what map
	$(BIN)/python scripts/critic_control.py --results results/calibration_second.json results/calibration_second_early.json \
	  results/calibration_second_others.json \
	  --out docs/figures/critic_training.png

pretrained: .venv/.tasks  ## make the shipped starting policies again, about ten minutes
	for id in $$($(BIN)/python -c 'import sppo_envs; print(*sppo_envs.TASKS)'); do \
	  $(BIN)/python scripts/pretrain.py --env-id $$id || exit 1; done

# folder and target, lowest and highest success
STARTS := 0.03,0.02,0.05 0.1,0.07,0.14 0.3,0.23,0.37

starts: .venv/.tasks  ## make the starting policies of results/starts/0.03, 0.1 and 0.3; harder variants have no 0.3
	for id in PrecisionCartPole SparseMountainCar SparsePendulum SparseLunarLander SparseHopper \
	    StopMountainCar BalancePendulum FarHopper; do for start in $(STARTS); do \
	  set -- $$(echo $$start | tr , ' '); \
	  case $$id,$$1 in Stop*,0.3|Balance*,0.3|Far*,0.1|Far*,0.3) continue;; esac; \
	  case $$id in Far*) mkdir -p results/starts/0.03; \
	    cp sppo_control/pretrained/SparseHopper-v0.safetensors results/starts/0.03/FarHopper-v0.safetensors; \
	    $(BIN)/python scripts/evaluate.py --env-id sppo/FarHopper-v0 --run results/starts/0.03/FarHopper-v0.safetensors \
	      --json results/starts/0.03/FarHopper-v0.json || exit 1; continue;; esac; \
	  case $$id,$$1 in \
	    Stop*) every='--eval-every 5';; \
	    SparsePendulum,0.03) every='--eval-every 2 --clone-learning-rate 3e-4';; \
	    SparseHopper,0.03) every='--eval-every 5 --clone-learning-rate 1e-4';; \
	    SparseHopper,0.1) every='--target 0.08 --eval-episodes 512 --eval-every 20 --clone-learning-rate 1e-4';; \
	    SparseHopper,0.3) every='--target 0.25 --eval-episodes 512 --eval-every 10 --clone-learning-rate 1e-4 --log-std -2';; \
	    *) every=;; esac; \
	  $(BIN)/python scripts/pretrain.py --env-id sppo/$$id-v0 --target $$1 --min-success $$2 --max-success $$3 \
	    --eval-episodes 1024 $$every --out results/starts/$$1 || exit 1; done; done

soak: .venv/.test  ## kill and resume training runs 100 times, about 20 minutes
	$(BIN)/python scripts/soak.py --kills 100

llm-real: .venv/.llm-real  ## train SmolLM2-135M, a real pretrained model, by SPPO on sums: about an hour, resumable; ARGS="--bf16 --seed 2"
	$(BIN)/python scripts/llm_real.py $(ARGS)

clean:  ## remove the virtual environment; runs/ stays
	rm -rf .venv

# torch is installed first, and with a pinned version, so that no other package installs another build of it.
.venv/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"Python >= 3.11 is needed, {sys.executable} is {v}; name another: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: torch first, then the rest. One to three minutes the first time, without output."
	@$(PIP) torch
	@echo "torch is installed. Now NumPy, Gymnasium, numba and others ..."
	@$(PIP) -e '.[fast]'
	@echo "Compiling the kernels ..."
	@$(BIN)/python -m sppo_control.compiled  # numba compiles now, so that the first training need not
	@touch $@

.venv/.test: .venv/.core
	@echo "Installing what the tests need: simulators, Ray and transformers, about 1 GB (one to five minutes) ..."
	@$(PIP) -e '.[test]'
	@touch $@

.venv/.docs: .venv/.test  # all extras, because the API pages are made of the docstrings of what is imported
	@echo "Installing Sphinx (half a minute) ..."
	@$(PIP) -e '.[docs]'
	@touch $@

.venv-verl/.test: pyproject.toml constraints-verl.txt
	@test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	@echo "Installing into .venv-verl (two to three minutes the first time) ..."
	@.venv-verl/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0
	@.venv-verl/bin/python -m pip install --disable-pip-version-check -q -c constraints-verl.txt -e '.[verl]' pytest pytest-timeout
	@touch $@

.venv-oldest/.test: pyproject.toml constraints-oldest.txt
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	@echo "Installing into .venv-oldest (two to three minutes the first time) ..."
	@.venv-oldest/bin/python -m pip install --disable-pip-version-check -q -c constraints-oldest.txt torch
	@.venv-oldest/bin/python -m pip install --disable-pip-version-check -q -c constraints-oldest.txt \
	  -e '.[tasks,video,study,ray]' pytest pytest-timeout pytest-xdist hypothesis
	@touch $@

.venv-newest/.test: pyproject.toml
	@test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	@echo "Installing into .venv-newest (two to three minutes the first time) ..."
	@.venv-newest/bin/python -m pip install --disable-pip-version-check -q torch==2.13.0
	@.venv-newest/bin/python -m pip install --disable-pip-version-check -q -U -e '.[test]' hypothesis torch==2.13.0
	@touch $@

.venv/.tasks: .venv/.core
	@$(PIP) -e '.[tasks]'
	@touch $@

.venv/.study: .venv/.tasks
	@$(PIP) -e '.[study]'
	@touch $@

.venv/.llm-real: .venv/.core
	@$(PIP) -e '.[llm-real]'
	@touch $@

.venv/.bench: .venv/.tasks
	@$(PIP) -e '.[bench]'
	@touch $@

.venv-jax/.bench: constraints-jax.txt  # PureJaxRL's packages, which need no part of this project
	@test -x .venv-jax/bin/python || $(PYTHON) -m venv .venv-jax
	@.venv-jax/bin/python -m pip install --disable-pip-version-check -q -r constraints-jax.txt
	@touch $@
