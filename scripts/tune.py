"""Search hyper-parameters with Optuna, in the manner of RL Baselines3 Zoo.

    python scripts/tune.py --env-id sppo/SparsePendulum-v0 --algorithm sppo --trials 30
    python scripts/tune.py --trials 60 --total-timesteps 400000 --seeds 301 302 303

A trial draws a value for every hyper-parameter of `space` and trains with it on every seed of --seeds. Its score is the
mean success over the seeds after training. Training has --rungs parts. After each part the trial reports its success, and
the pruner may stop it: by default if it is below the median of the earlier trials at the same part.

The same command continues where it was stopped, because the trials are in a file of SQLite, --storage. A trial that was
killed is drawn again with the same values, and its runs continue from their checkpoints.

The seeds are for tuning alone. Those that this project reports (results/plan.md, results/grids/) are refused, because a
number that was chosen on a seed says too much on it. Report what you find on seeds of your own that you have not tuned on;
the end of the output has the command.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import sppo_envs
from sppo_control import cli, commands, errors, extras, limits
from sppo_control.checkpoints import read_json, write_json
from sppo_control.outputs import File, Folder, only_writer

REPORTED = frozenset({*range(1, 31)})
"""Seeds of the published results: 1 to 20 of the study and its small versions, 21 to 30 of results/plan.md."""
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}
PRUNERS = {"median": "MedianPruner", "halving": "SuccessiveHalvingPruner", "none": "NopPruner"}


@dataclass
class Args:
    env_id: str = "sppo/PrecisionCartPole-v0"
    """the task; its own numbers stay for all that is not searched"""
    algorithm: Literal["sppo", "ppo", "grpo", "rloo", "remax", "reinforce"] = "sppo"
    """what is trained, as in `sppo train --algorithm`"""
    settings: tuple[str, ...] = ()
    """further flags of the training script without dashes, the same in all trials: success-return=100 horizon=200"""
    trials: int = 20
    """trials that the study shall have in the end, those of earlier calls included"""
    seeds: tuple[int, ...] = (301, 302, 303)
    """of training; a trial's score is the mean over them"""
    total_timesteps: int | None = None
    """environment steps per run; None is the task's"""
    rungs: int = 4
    """parts of a run; after each of them but the last the pruner may stop the trial"""
    eval_episodes: int = 1024
    """episodes per evaluation"""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's TPESampler or RandomSampler"""
    pruner: Literal["median", "halving", "none"] = "median"
    """Optuna's MedianPruner, SuccessiveHalvingPruner or NopPruner"""
    startup_trials: int = 8
    """so many first trials are drawn at random and, by the median pruner, not stopped"""
    seed: int = 1
    """of the sampler"""
    storage: Annotated[Path, File(".db", ".sqlite3", new_folder=True)] = Path("runs/tune.db")
    """SQLite file of all studies"""
    study: str | None = None
    """name of the study in it; None is made of task and algorithm"""
    work_dir: Annotated[Path, Folder()] = Path("runs/tune")
    """folder for the run folders and logs of the trials"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"--seeds must be one seed or more, each once, got {' '.join(map(str, self.seeds)) or 'none'}"
            )
        if taken := sorted(REPORTED & set(self.seeds)):
            raise ValueError(
                f"--seeds must not be among those of the published results, 1 to 30, got {' '.join(map(str, taken))}; "
                "what is tuned on a seed cannot be reported on it"
            )
        for text in self.settings:
            name, equals, value = text.partition("=")
            if not name or name.startswith("-") or (equals and not value):
                raise ValueError(f"--settings must be flag=value, or flag alone, without dashes; got {text!r}")

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.study or f"{self.env_id} {self.algorithm}"


# ---------------------------------------------------------------------------------------------------- what is searched
def space(trial: Any, algorithm: str) -> dict[str, str]:
    """The hyper-parameters of one trial: flag without dashes -> value.

    The ranges are around the defaults of the scripts. Change this function to search others.

    Args:
        trial: Optuna's, whose suggest_... draw the values.
        algorithm: of `Args.algorithm`.
    """
    found: dict[str, Any] = {
        "learning-rate": trial.suggest_float("learning-rate", 1e-4, 1e-2, log=True),
        "num-envs": trial.suggest_categorical("num-envs", [32, 64, 128]),
        "update-epochs": trial.suggest_int("update-epochs", 1, 8),
        "num-minibatches": trial.suggest_categorical("num-minibatches", [1, 2, 4, 8]),
        "clip-coef": trial.suggest_categorical("clip-coef", [0.1, 0.2, 0.3]),
        "ent-coef": trial.suggest_categorical("ent-coef", [0.0, 0.001, 0.01]),
        "max-grad-norm": trial.suggest_categorical("max-grad-norm", [0.3, 0.5, 1.0, 5.0]),
    }
    if algorithm in ("sppo", "ppo"):
        found["critic-learning-rate"] = trial.suggest_float("critic-learning-rate", 3e-4, 3e-2, log=True)
    if algorithm == "sppo":
        found["critic-steps"] = trial.suggest_categorical("critic-steps", [5, 10, 20, 40])
        found["critic-window"] = trial.suggest_int("critic-window", 1, 8)
    if algorithm == "ppo":
        found["gamma"] = trial.suggest_categorical("gamma", [0.99, 0.999, 1.0])
        found["gae-lambda"] = trial.suggest_categorical("gae-lambda", [0.9, 0.95, 0.99, 1.0])
    if algorithm in ("grpo", "rloo"):
        found["group-size"] = trial.suggest_categorical("group-size", [4, 8, 16])
    if algorithm in ("sppo", "ppo", "rloo", "reinforce"):
        found["norm-adv"] = trial.suggest_categorical("norm-adv", ["none", "minibatch"])
    return {flag: repr(value) if isinstance(value, float) else str(value) for flag, value in found.items()}


# ------------------------------------------------------------------------------------------------------------- a trial
def words_of(args: Args, values: dict[str, str]) -> tuple[str, list[str]]:
    """The training script without .py, and the flags of a trial without its seed and budget."""
    script, flags = commands.ALGORITHMS[args.algorithm]
    settings = {name: value for name, _, value in (text.partition("=") for text in args.settings)}
    both = {**values, **settings}  # what the user sets is not searched
    words = [word for flag, value in both.items() for word in (f"--{flag}", *value.split())]
    return script, [*flags, "--env-id", args.env_id, *words]


def train(args: Args, script: str, words: list[str], seed: int, steps: int) -> float:
    """Train until `steps`, or go on until then, and return the success after it. What is known already is read from disk.

    Raises:
        UserError: the script failed; the message has its last line.
    """
    import benchmark  # it needs the extra study

    key = hashlib.sha256(" ".join([script, *words, str(args.eval_episodes)]).encode()).hexdigest()[:12]
    folder = args.work_dir.resolve() / key / str(seed)
    known: dict[str, float] = read_json(folder / "success.json") if (folder / "success.json").is_file() else {}
    if str(steps) not in known:
        file = str(commands.scripts_folder() / f"{script}.py")
        budget = ["--total-timesteps", str(steps)]
        first = [file, *words, "--seed", str(seed), "--eval-episodes", str(args.eval_episodes), *budget]
        run = benchmark.run(first, folder, budget)
        known[str(steps)] = float(read_json(run / "summary.json")["after"]["rate"])
        write_json(folder / "success.json", known)
    return known[str(steps)]


def objective(args: Args, steps: int) -> Callable[[Any], float]:
    """What Optuna maximises: the mean success over the seeds."""
    import optuna

    def score(trial: Any) -> float:
        script, words = words_of(args, space(trial, args.algorithm))
        rate = 0.0
        for rung in range(1, args.rungs + 1):
            until = steps * rung // args.rungs
            try:
                rates = [train(args, script, words, seed, until) for seed in args.seeds]
            except errors.UserError as error:
                if "stopped: " not in str(error):  # cli.py says so of a loss that became NaN
                    raise
                trial.set_user_attr("failed", str(error))
                raise optuna.TrialPruned from error
            rate = sum(rates) / len(rates)
            trial.report(rate, until)
            trial.set_user_attr("success by seed", rates)
            if rung < args.rungs and trial.should_prune():
                raise optuna.TrialPruned
        return rate

    return score


# --------------------------------------------------------------------------------------------------------------- study
def refuse_impossible(args: Args) -> int:
    """Refuse a task or setting that the training script refuses, before any trial. Returns the steps per run.

    Raises:
        UserError, ValueError: what the script says.
    """
    import importlib

    script, words = words_of(args, {})
    try:
        found = cli.parse_args(importlib.import_module(script).Args, None, words)
    except errors.UserError as error:
        if not args.settings:
            raise
        raise errors.UserError(f"--settings {' '.join(args.settings)}: {error}") from error
    sppo_envs.make_task(found.env_id, 1, found.success_return, found.horizon, found.engine).close()
    if getattr(found, "anneal_lr", False):
        raise ValueError(
            "--settings anneal-lr: a run with annealed rates has no parts, because its end decides its rates"
        )
    return args.total_timesteps or int(found.total_timesteps)


def open_study(args: Args) -> Any:
    """The study, which is made if it is not there. Trials that a killed process left running are drawn again."""
    import optuna

    args.storage.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{args.storage.resolve()}"
    pruner: Any = getattr(optuna.pruners, PRUNERS[args.pruner])
    sampler: Any = getattr(optuna.samplers, SAMPLERS[args.sampler])
    more = {"n_startup_trials": args.startup_trials}
    try:
        study = optuna.create_study(
            storage=storage, study_name=args.name, direction="maximize", load_if_exists=True,
            pruner=pruner(**more if args.pruner == "median" else {}),
        )  # fmt: skip
    except Exception as error:  # of SQLite: a file that is no data base
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(f"--storage {args.storage} cannot be used ({reason}); name another file") from error
    same: dict[str, Any] = {
        "env-id": args.env_id,
        "algorithm": args.algorithm,
        "seeds": list(args.seeds),
        "settings": list(args.settings),
    }
    same |= {"total-timesteps": args.total_timesteps, "rungs": args.rungs, "eval-episodes": args.eval_episodes}
    began = study.user_attrs.get("made with")
    if began is not None and began != same:
        changed = ", ".join(f"--{key} {began.get(key)}" for key in same if began.get(key) != same[key])
        raise errors.UserError(
            f"the study {args.name!r} of {args.storage} was made with {changed}; its trials cannot be compared with "
            "others. Name another --study"
        )
    study.set_user_attr("made with", same)
    again = set(study.user_attrs.get("drawn again", []))
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "RUNNING":  # its process was killed
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.state.name in ("RUNNING", "FAIL") and trial.number not in again:  # FAIL: Ctrl-C
            study.enqueue_trial(trial.params)
            again.add(trial.number)
    study.set_user_attr("drawn again", sorted(again))
    # A resumed sampler must not draw the first trials again.
    numbered = {"seed": args.seed + len(study.trials)} | (more if args.sampler == "tpe" else {})
    study.sampler = sampler(**numbered)
    return study


@contextlib.contextmanager
def progress(study: Any, args: Args) -> Iterator[Callable[[Any, Any], None]]:
    """A bar of the trials; yields what Optuna calls after each."""
    from tqdm import tqdm

    done = ended(study)
    with tqdm(total=args.trials, initial=done, unit="trial", desc="tune", dynamic_ncols=True) as bar:

        def after(study: Any, trial: Any) -> None:
            bar.update()
            with contextlib.suppress(ValueError):  # no trial has ended as yet
                bar.set_postfix_str(f"best {study.best_value:.3f}")

        yield after


def ended(study: Any) -> int:
    """Trials that are over: complete or stopped by the pruner."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))


def report(study: Any, args: Args) -> None:
    """Print the best trials, and the command that trains with the best one."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    pruned = sum(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False))
    print(f"\n{args.name}: {len(trials)} trials to the end, {pruned} stopped early; {args.storage}")
    for trial in sorted(trials, key=lambda t: -t.value)[:3]:
        values = " ".join(f"{key}={x:.3g}" if isinstance(x, float) else f"{key}={x}" for key, x in trial.params.items())
        print(f"  trial {trial.number}: success {trial.value:.3f} ({len(args.seeds)} seeds)   {values}")
    if trials:
        best = max(trials, key=lambda t: t.value)
        import optuna

        _, words = words_of(args, space(optuna.trial.FixedTrial(best.params), args.algorithm))
        flags = commands.ALGORITHMS[args.algorithm][1]
        rest = shlex.join(words[len(flags) :])
        budget = f" --total-timesteps {args.total_timesteps}" if args.total_timesteps else ""
        print(
            f"The best score of {len(trials)} is optimistic, because it was chosen. Report runs on other seeds:\n"
            f"  sppo train --algorithm {args.algorithm} {rest}{budget} --seed 401"
        )


def main(args: Args) -> None:
    extras.require("tune", "optuna", "pandas", wanted_by="scripts/tune.py")
    steps = refuse_impossible(args)
    args.storage.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(args.storage):
        study = open_study(args)
        left = args.trials - ended(study)
        if left > 0:
            with progress(study, args) as after:
                study.optimize(objective(args, steps), n_trials=left, callbacks=[after])
        report(study, args)


if __name__ == "__main__":
    try:
        cli.main(main, Args, __doc__)
    except KeyboardInterrupt:
        print("\nStopped; the same command continues from here.", file=sys.stderr)
        sys.exit(130)
