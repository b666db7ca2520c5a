#!/usr/bin/env bash
# Runs SPPO on unchanged verl 0.9.1, with the plug-in of this repository. Install both on every node.
#
#     recipes/verl/run_sppo.sh RECIPE data.train_files=TRAIN.parquet data.val_files=VAL.parquet [more overrides]
#
# RECIPE is sppo_1_5b, sppo_7b or sppo_7b_critic_1_5b. The files beside this one say which values are the paper's.
# For several machines, start Ray on them and add trainer.nnodes=N. To print a configuration without a run, add --cfg job.
# Other models: actor_rollout_ref.model.path=PATH_OR_HUB_ID, critic.model.path=PATH_OR_HUB_ID. Both need the same tokenizer.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
if [ $# -eq 0 ] || [ ! -f "$here/$1.yaml" ] || [ "$1" = sppo ]; then
  echo "first argument: sppo_1_5b, sppo_7b or sppo_7b_critic_1_5b; got ${1:-nothing}" >&2
  exit 2
fi
recipe="$1"
shift
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo --config-dir "$here" --config-name "$recipe" "$@"
