#!/usr/bin/env bash
# Runs SPPO on unchanged verl 0.9.1, with the plug-in of this repository. Install both on every node.
#
#     recipes/verl/run_sppo.sh RECIPE data.train_files=TRAIN.parquet data.val_files=VAL.parquet [more overrides]
#     recipes/verl/run_sppo.sh RECIPE --dry-run data.train_files=... [more overrides]
#
# RECIPE is sppo_1_5b, sppo_7b or sppo_7b_critic_1_5b. README.md beside this file compares their values with the official ones.
# --dry-run builds the whole configuration, checks it and the data, says what a run would do, and starts nothing: it needs
# neither Ray, nor a GPU, nor the models. To print a configuration, add --cfg job.
# For several machines, start Ray on them and add trainer.nnodes=N.
# Other models: actor_rollout_ref.model.path=PATH_OR_HUB_ID, critic.model.path=PATH_OR_HUB_ID. Both need the same tokenizer.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
if [ $# -eq 0 ] || [ ! -f "$here/$1.yaml" ] || [ "$1" = sppo ]; then
  echo "first argument: sppo_1_5b, sppo_7b or sppo_7b_critic_1_5b; got ${1:-nothing}" >&2
  exit 2
fi
recipe="$1"
shift
main=(-m verl.trainer.main_ppo)
quiet=()
if [ "${1:-}" = --dry-run ]; then
  main=("$here/dry_run.py")
  quiet=(hydra.run.dir=. hydra.output_subdir=null hydra/job_logging=none)  # hydra writes nothing
  shift
fi
exec "${PYTHON:-python3}" "${main[@]}" --config-dir "$here" --config-name "$recipe" ${quiet[@]+"${quiet[@]}"} "$@"
