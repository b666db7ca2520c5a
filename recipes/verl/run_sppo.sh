#!/usr/bin/env bash
# SPPO on stock verl 0.9.1 with the plug-in of this repository, installed on every node.
#
#     recipes/verl/run_sppo.sh RECIPE data.train_files=TRAIN.parquet data.val_files=VAL.parquet [more overrides]
#
# RECIPE: sppo_1_5b, sppo_7b, sppo_7b_critic_1_5b (the files beside this one say which values are the paper's).
# Several machines: start Ray on them, then trainer.nnodes=N. Look at a configuration without running it: --cfg job.
# Models: actor_rollout_ref.model.path=PATH_OR_HUB_ID, critic.model.path=PATH_OR_HUB_ID (same tokenizer).
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
if [ $# -eq 0 ] || [ ! -f "$here/$1.yaml" ] || [ "$1" = sppo ]; then
  echo "first argument: sppo_1_5b, sppo_7b or sppo_7b_critic_1_5b; got ${1:-nothing}" >&2
  exit 2
fi
recipe="$1"
shift
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo --config-dir "$here" --config-name "$recipe" "$@"
