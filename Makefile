# `make train` and `make test` are all a newcomer needs; both work from a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: train test test-verl bench pretrained study probes figures study-small soak clean
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

bench: .venv/.bench  ## training speed against Stable-Baselines3, engines against Gymnasium's
	$(BIN)/python scripts/speed.py
	$(BIN)/python scripts/speed.py --what engines

study-small: .venv/.study  ## a small version of the paper's figure 8: three tasks, three seeds, under 15 minutes
	$(BIN)/python scripts/benchmark.py --algorithms sppo ppo --seeds 1 2 3 --out runs/study_small.parquet \
	  --env-ids sppo/PrecisionCartPole-v0 sppo/SparseMountainCar-v0 sppo/SparsePendulum-v0
	$(BIN)/python scripts/report.py --results runs/study_small.parquet --out runs/study_small --figures fig8 fig5

CHEAP := sppo/PrecisionCartPole-v0 sppo/SparseMountainCar-v0 sppo/SparsePendulum-v0
CONTEXTS := sppo/ContextCartPole-v0 sppo/ContextPendulum-v0
DEAR := sppo/SparseLunarLander-v0 sppo/SparseHopper-v0
GRID := $(BIN)/python scripts/benchmark.py --starts results/starts
TENTIMES := 11 12 13 14 15 16 17 18 19 20

study: .venv/.study  ## the whole study of docs/results.md: hours; what is in results/ already is not run again
	$(GRID) --out results/study.parquet --work-dir runs/study --seeds $(TENTIMES) --env-ids $(CHEAP) $(CONTEXTS) \
	  --algorithms sppo sppo-paper ppo ppo-bce grpo rloo remax reinforce
	$(GRID) --out results/study.parquet --work-dir runs/study --seeds $(TENTIMES) --env-ids $(CHEAP) $(CONTEXTS) \
	  --algorithms sppo-skip ppo-skip
	$(GRID) --out results/study.parquet --work-dir runs/study --seeds $(TENTIMES) --env-ids $(DEAR) --algorithms sppo ppo
	$(GRID) --out results/study.parquet --work-dir runs/study --seeds $(TENTIMES) --env-ids sppo/SparseHopper-v0 \
	  --algorithms sppo-skip ppo-skip
	$(GRID) --out results/study.parquet --work-dir runs/study --seeds 11 12 13 14 15 --env-ids sppo/SparseLunarLander-v0 \
	  --algorithms sppo-skip ppo-skip
	$(GRID) --out results/study.parquet --work-dir runs/study --seeds 11 12 13 --env-ids $(DEAR) \
	  --algorithms sppo-paper ppo-bce grpo rloo remax reinforce
	$(GRID) --out results/seconds.parquet --work-dir runs/seconds --seeds 11 12 13 14 15 --env-ids $(CHEAP) $(CONTEXTS) \
	  --algorithms sppo ppo grpo rloo reinforce remax  # the same runs again for figure 5, with nothing else on the machine
	$(GRID) --out results/seconds.parquet --work-dir runs/seconds --seeds 11 12 13 --env-ids $(DEAR) --algorithms sppo ppo grpo
	$(GRID) --out results/critic_size.parquet --work-dir runs/size --seeds 11 12 13 14 15 --env-ids sppo/ContextCartPole-v0 \
	  --algorithms sppo ppo --settings "critic-hidden=8 8" "critic-hidden=64 64" "critic-hidden=256 256" "critic-hidden=1024 1024"
	$(GRID) --out results/rates_tuning.parquet --work-dir runs/rates --seeds 201 202 203 --env-ids sppo/PrecisionCartPole-v0 \
	  --algorithms sppo ppo grpo rloo remax --settings learning-rate=3e-4 learning-rate=1e-3 learning-rate=3e-3
	$(GRID) --out results/rates_tuning.parquet --work-dir runs/rates --seeds 201 202 203 \
	  --env-ids sppo/SparseMountainCar-v0 sppo/SparsePendulum-v0 \
	  --algorithms sppo ppo grpo rloo remax --settings learning-rate=1e-4 learning-rate=3e-4 learning-rate=1e-3
	$(GRID) --out results/rates.parquet --work-dir runs/rates --seeds $(TENTIMES) --env-ids sppo/PrecisionCartPole-v0 \
	  --algorithms sppo ppo grpo --settings learning-rate=3e-3  # these four as scripts/report_rates.py --what choose says
	$(GRID) --out results/rates.parquet --work-dir runs/rates --seeds $(TENTIMES) --env-ids sppo/PrecisionCartPole-v0 \
	  --algorithms remax --settings learning-rate=3e-4
	$(GRID) --out results/rates.parquet --work-dir runs/rates --seeds $(TENTIMES) --env-ids sppo/SparsePendulum-v0 \
	  --algorithms ppo --settings learning-rate=1e-3
	$(GRID) --out results/rates.parquet --work-dir runs/rates --seeds $(TENTIMES) --env-ids sppo/SparsePendulum-v0 \
	  --algorithms grpo --settings learning-rate=1e-4
	$(MAKE) figures

PROBED := $(GRID) --out runs/probed.parquet --work-dir runs/probed
TAIL := $(BIN)/python scripts/probe.py --what tail --runs runs/probed/tail

probes: .venv/.study  ## results/*.json, looks inside the critics: needs checkpoints, so it trains those runs again, half an hour
	$(PROBED)/contexts --seeds 11 12 13 14 15 --env-ids $(CONTEXTS) --algorithms sppo sppo-paper ppo
	$(PROBED)/tail --seeds 11 12 13 14 15 --env-ids sppo/PrecisionCartPole-v0 sppo/SparsePendulum-v0 --algorithms sppo ppo
	$(PROBED)/tail --seeds 11 12 13 --env-ids sppo/SparseHopper-v0 --algorithms sppo ppo
	$(TAIL) --env-id sppo/PrecisionCartPole-v0 --update 20 --out results/tail_cartpole.json
	$(TAIL) --env-id sppo/SparsePendulum-v0 --update 20 --out results/tail_pendulum.json
	$(TAIL) --env-id sppo/SparseHopper-v0 --update 40 --out results/tail_hopper.json
	$(BIN)/python scripts/probe.py --what calibration --runs runs/probed/contexts --updates 20 60 --out results/calibration.json

REPORT := $(BIN)/python scripts/report.py --out docs/figures

figures: .venv/.study  ## the figures and tables of the docs, from results/: about a minute
	$(REPORT) --figures fig1 fig2 fig4 fig6 fig7 fig8 fig8_all critics tables --results results/study.parquet \
	  results/critic_size.parquet results/calibration.json results/tail_cartpole.json results/tail_hopper.json results/tail_pendulum.json
	$(REPORT) --figures fig5 --results results/seconds.parquet
	$(REPORT) --figures addition --results docs/speed_llm_addition.json
	$(BIN)/python scripts/report_rates.py --what table

pretrained: .venv/.tasks  ## rebuild the shipped starting policies, about ten minutes
	$(BIN)/python scripts/pretrain.py --env-id sppo/PrecisionCartPole-v0
	$(BIN)/python scripts/pretrain.py --env-id sppo/SparseMountainCar-v0
	$(BIN)/python scripts/pretrain.py --env-id sppo/SparsePendulum-v0
	$(BIN)/python scripts/pretrain.py --env-id sppo/SparseLunarLander-v0
	$(BIN)/python scripts/pretrain.py --env-id sppo/SparseHopper-v0
	$(BIN)/python scripts/pretrain.py --env-id sppo/ContextCartPole-v0
	$(BIN)/python scripts/pretrain.py --env-id sppo/ContextPendulum-v0

soak: .venv/.test  ## kill and resume training runs 100 times, about 20 minutes
	$(BIN)/python scripts/soak.py --kills 100

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
