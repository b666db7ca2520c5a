"""What every training script shares around its algorithm: command line, run folder, random numbers, TensorBoard,
progress bar, checkpoints, resuming, Ctrl-C.

A run folder, runs/<env>__<script>__<seed>__<time>/, holds

| file                      | what                                                                                 |
| ------------------------- | ------------------------------------------------------------------------------------ |
| config.json               | arguments, versions, git commit                                                      |
| summary.json              | success before and after, steps, seconds, peak memory                                |
| events.out.tfevents.*     | TensorBoard scalars, documented in docs/metrics.md                                   |
| checkpoints/<update>/     | policy, critic, optimisers (.safetensors) and counters (state.json)                  |
| videos/<update>.mp4       | with --capture-video: the same two episodes after each checkpoint                    |

Every random number of update u is drawn from a generator made of (seed, u, purpose), and whole episodes leave no
environment half-way. So weights, optimiser moments and four counters are the entire state of a run, and a resumed run
repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoints, streams, watch
from .checkpoints import (
    COUNTERS,
    LAYOUT,
    OptimizerState,
    Part,
    checkpoint_to_resume,
    complete,
    read_checkpoint,
    read_config,
    read_summary,
    remove_checkpoint,
    remove_leftovers,
    run_folder,
    write_checkpoint,
    write_json,
)
from .core import ClippedSurrogate
from .errors import NonFiniteError, UserError
from .events import Writer
from .outcomes import Evaluation, measure_scalars, nothing_to_learn
from .tracking import Tracker

FIRST = "Success/rate"
"""A second name of charts/success_rate. TensorBoard sorts tags, capitals first, so its pages open with this one."""
FIRST_PAGE = {
    "training": {
        "success": ["Multiline", ["charts/success_rate$"]],
        "V(s_0) and success": ["Multiline", ["critic/v0_mean$", "charts/success_rate$"]],
        "KL to the policy that acted": ["Multiline", ["losses/approx_kl$"]],
        "clip fraction": ["Multiline", ["losses/clipfrac$"]],
    }
}
"""TensorBoard's page Custom Scalars: title of a chart -> its tags, as regular expressions that begin with the tag."""


class Batch(Protocol):
    """What `Run.end_update` reads of a batch: `rollout.Episodes`, or a language model's `Responses`."""

    @property
    def info(self) -> dict[str, npt.NDArray[Any]]:
        """Name of a measure -> its value per episode, (B,), NaN where it was not reported."""

    @property
    def outcome(self) -> Tensor:
        """R, (B,)."""

    @property
    def lengths(self) -> Tensor:
        """Real steps per episode, (B,)."""

    @property
    def num_steps(self) -> int:
        """Real steps of the whole batch, N."""

    @property
    def episode_return(self) -> Tensor:
        """The environment's own return per episode, (B,)."""


# ---------------------------------------------------------------------------------------------------- statistics
class Means:
    """Weighted means over all minibatches of an update, so that the logged value is not that of the last one."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, weight: Tensor | float, **values: Tensor | float) -> None:
        """Add one minibatch's means (scalars), `weight` being the number of steps or episodes behind them.

        Raises:
            ValueError: a weight that is not above 0 and finite; a value that is not one number.
        """
        weight = _scalar("weight", weight)
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be above 0 and finite, got {weight}")
        numbers = {name: _scalar(name, value) for name, value in values.items()}
        for name, value in numbers.items():
            self._values.setdefault(name, []).append(value)
            self._weights.setdefault(name, []).append(weight)

    def add_surrogate(
        self, surrogate: ClippedSurrogate, entropy: Tensor, denominator: float | Tensor | None = None
    ) -> None:
        """Add the policy's statistics of one minibatch; every one is a mean over its real steps, but for the extremes.

        Args:
            surrogate: "token-mean".
            entropy: mean over the same steps.
            denominator: what was given to `core.clipped_surrogate`, if anything.
        """
        loss = surrogate.loss.detach()
        self.add(
            surrogate.num_steps,
            policy_loss=loss if denominator is None else loss * denominator / surrogate.num_steps,
            entropy=entropy,
            old_approx_kl=surrogate.old_approx_kl,
            approx_kl=surrogate.approx_kl,
            clipfrac=surrogate.clipfrac,
            ratio_min=surrogate.ratio_min,
            ratio_max=surrogate.ratio_max,
        )

    def scalars(self) -> dict[str, float]:
        """Everything added, under its TensorBoard tag; nothing if there was no minibatch."""
        if not self._values:
            return {}
        means = {f"losses/{name}": self[name] for name in self._values}
        if "ratio_min" not in self._values:
            return means
        return means | {"losses/ratio_min": self.min("ratio_min"), "losses/ratio_max": self.max("ratio_max")}

    def __getitem__(self, name: str) -> float:
        return float(np.average(self._values[name], weights=self._weights[name]))

    def min(self, name: str) -> float:
        """Smallest of the added values."""
        return min(self._values[name])

    def max(self, name: str) -> float:
        """Largest of the added values."""
        return max(self._values[name])


# ----------------------------------------------------------------------------------------------------------- run
class Run:
    """A run folder being written. Use as a context manager: it owns the progress bar and the Ctrl-C handler.

    Args:
        args: the script's arguments, a dataclass with at least seed, runs_dir, save_every, resume, and total_timesteps or,
            where the unit is "response", total_episodes.
        script: path of the script, for the folder's name and for the command that resumes.
        task: what is learnt, for the folder's name.
        unit: what the curves' x-axis, the progress bar and the budget count: environment steps, or a language model's
            responses, whose steps are tokens.
        film: called after each checkpoint with the run folder and the update; it returns the seconds that it took, which
            are no time of training.

    Raises:
        UserError: the folder cannot be written, or there is nothing to resume in it, or a tracker cannot begin.
        MissingExtra: the package of --track is not installed.
    """

    def __init__(
        self,
        args: Any,
        script: str,
        task: str,
        unit: Literal["step", "response"] = "step",
        film: Callable[[Path, int], float] | None = None,
    ) -> None:
        self.args, self.script, self.task, self.unit, self.film = args, Path(script), task, unit, film
        self.update = 0
        """Updates done."""
        self.steps = 0
        """Environment steps taken (tokens written, by a language model), baseline rollouts included."""
        self.episodes = 0
        """Episodes finished."""
        self.seconds = 0.0
        """Time spent training (rollouts, updates, logging, checkpoints), earlier parts of a resumed run included."""
        self.parts: Mapping[str, Part] = {}
        self.view: watch.View | None = None
        """What --watch draws; None without it, and where it cannot be drawn."""
        self._stop_signal: int | None = None
        self._clock = time.perf_counter()
        self._equal, self._said = (0, math.nan), False  # how many outcomes have been equal to which; see `_watch`
        self._recent: deque[float] = deque(maxlen=256)
        self._resumed = args.resume is not None
        self.folder = run_folder(Path(args.resume)) if self._resumed else self._create_folder()
        self.summary: dict[str, Any] = {}
        if self._resumed:  # all that can be refused, before anything is computed or written
            config = read_config(self.folder)
            checkpoints.check_layout(self.folder, config)
            if config["script"] != self.script.name:
                raise UserError(
                    f"{self.folder} was started by {config['script']}, not by {self.script.name}; resume it with that"
                )
            self.summary = read_summary(self.folder)
            if (checkpoint := checkpoint_to_resume(Path(args.resume))) is not None:
                read_checkpoint(checkpoint, {}, tuple(COUNTERS))
        self.tracker = self._tracker()

    def _tracker(self) -> Tracker | None:
        """What --track names. A new folder is removed if it cannot begin."""
        if getattr(self.args, "track", None) is None:
            return None
        try:
            return Tracker(self.args.track, self.folder, dataclasses.asdict(self.args) | versions())
        except (ImportError, UserError):
            if not self._resumed:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _create_folder(self) -> Path:
        task, stamp = self.task.replace("/", "-").replace(":", "-"), time.strftime("%Y%m%d-%H%M%S")
        name = f"{task}__{self.script.stem}__{self.args.seed}__{stamp}"
        config = {"args": dataclasses.asdict(self.args), "script": self.script.name, "layout": LAYOUT, **versions()}
        if self.script.is_file():
            config["script_sha256"] = checkpoints.digest(self.script)  # scripts/share.py adds exactly this file
        try:
            for suffix in ("", *(f"-{i}" for i in range(1, 100))):  # two runs may start within one second
                folder = Path(self.args.runs_dir) / (name + suffix)
                with contextlib.suppress(FileExistsError):
                    (folder / "checkpoints").mkdir(parents=True)
                    break
            write_json(folder / "config.json", config)
        except (OSError, UserError) as error:
            raise UserError(
                f"cannot write the run folder {folder} ({error}); name another place with --runs-dir"
            ) from error
        return folder

    @property
    def progress(self) -> int:
        """Steps or responses so far: the x-axis."""
        return self.steps if self.unit == "step" else self.episodes

    @property
    def budget(self) -> int:
        """Where `progress` ends."""
        return self.args.total_timesteps if self.unit == "step" else self.args.total_episodes

    # -- before training
    def once(self, key: str, compute: Callable[[], Evaluation]) -> dict[str, Any]:
        """Evaluate before `start`, and note it in summary.json under `key`. A resumed run reads what was noted before."""
        if key not in self.summary:
            result = compute()
            if why := nothing_to_learn(result.outcome, self.unit, getattr(self.args, "reward", None)):
                print(f"note: {why}", file=sys.stderr)
            self.summary[key] = result.as_dict()  # `start` writes it, when no checkpoint can be refused any more
        return self.summary[key]

    def start(self, **parts: Part | torch.optim.Optimizer) -> None:
        """Name what a checkpoint is made of (networks and optimisers), and restore it if the run is resumed.

        Raises:
            UserError: a checkpoint that is damaged or does not fit.
        """
        self.parts = {
            name: OptimizerState(part) if isinstance(part, torch.optim.Optimizer) else part
            for name, part in parts.items()
        }
        # A run killed before its first checkpoint has lost nothing: it begins anew in the same folder.
        checkpoint = checkpoint_to_resume(Path(self.args.resume)) if self._resumed else None
        if checkpoint is not None:
            self._restore(checkpoint)
            began, now = read_config(self.folder), versions()
            for what in ("versions", "machine"):
                if began[what] != now[what]:
                    note = f"note: {what} {now[what]}, the run began with {began[what]}; it may not repeat bit for bit"
                    print(note, file=sys.stderr)
        remove_leftovers(self.folder)
        if self.summary:
            with self._writing():
                write_json(self.folder / "summary.json", self.summary)
        # Events after the checkpoint belong to updates that will be done again: purge_step makes TensorBoard drop them. A
        # new run has nothing to drop, but its log must begin as others do: TensorBoard overlooks the first purge that it
        # reads, as the start of the run.
        purge_step = self.progress + 1 if self._resumed else sys.maxsize
        self._wait_for_a_later_name()
        with self._writing():
            self.writer = Writer(self.folder, purge_step, self.tracker)
            if checkpoint is None:
                arguments = dataclasses.asdict(self.args)
                rows = "".join(f"|{k}|{v}|\n" for k, v in arguments.items())
                self.writer.add_text("hyperparameters", f"|argument|value|\n|-|-|\n{rows}")
                self.writer.begin_session(arguments)
                self.writer.add_custom_scalars(FIRST_PAGE)
        if checkpoint is None:
            self.save()
        wanted, why = getattr(self.args, "watch", False), watch.can_show(sys.stderr)
        if wanted and why is not None:
            print(f"note: --watch draws nothing: {why}", file=sys.stderr)
        self.bar = tqdm(
            total=self.budget, initial=self.progress, unit=self.unit, unit_scale=True, dynamic_ncols=True,
            desc=self.script.stem, mininterval=0.2,
        )  # fmt: skip
        if wanted and why is None:
            self.view = watch.View(self.bar, self.budget)
        self._clock = time.perf_counter()

    def _wait_for_a_later_name(self) -> None:
        """TensorBoard reads event files in the order of their names, which begin with the second they were made in. Two
        files of one second would be read in any order, and the newer one's purge would not come last."""
        seconds = (file.name.split(".")[3] for file in self.folder.glob("events.out.tfevents.*"))
        made = [int(x) for x in seconds if x.isascii() and x.isdigit() and int(x) < time.time() + 10]  # else not ours
        while made and int(time.time()) <= max(made):
            time.sleep(0.05)

    def new_rng(self, stream: str) -> np.random.Generator:
        """A fresh generator for the coming update and one purpose: "rollout", "shuffle" or "evaluate".

        Two calls for one update and purpose give equal generators.
        """
        return np.random.default_rng(streams.training_words(self.args.seed, self.update, stream))

    # -- during training
    def check_finite(self, **values: Tensor) -> None:
        """Stop before the optimiser writes a NaN or infinity into the weights.

        Raises:
            NonFiniteError: names the update, the value and the last good checkpoint.
        """
        for name, value in values.items():
            number = float(value.detach())
            if not math.isfinite(number):
                raise NonFiniteError(
                    f"{name.replace('_', ' ')} is {number} in update {self.update + 1}; the last good checkpoint is "
                    f"{self.checkpoints()[-1]}. A lower --learning-rate or --max-grad-norm often helps."
                )

    def end_update(self, episodes: Batch, metrics: Mapping[str, float], baseline: Batch | None = None) -> None:
        """Count, log, show progress, save when due, and stop if Ctrl-C was pressed.

        Args:
            episodes: the batch of this update; its success rate, returns and lengths are logged.
            metrics: further TensorBoard scalars, tag to value.
            baseline: episodes that were run for a baseline only; their steps and number count, nothing else of them.
        """
        batches = [episodes] if baseline is None else [episodes, baseline]
        self.update += 1
        before = self.progress
        self.steps += sum(batch.num_steps for batch in batches)
        self.episodes += sum(len(batch.outcome) for batch in batches)
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        rate = float(episodes.outcome.mean())
        scalars = {
            FIRST: rate,
            "charts/success_rate": rate,
            "charts/episodic_return": float(episodes.episode_return.mean()),
            "charts/episodic_length": float(episodes.lengths.float().mean()),
            "charts/episodes": self.episodes,
            "charts/SPS": self.steps / self.seconds,
            **measure_scalars(episodes.info),
            **metrics,
        }
        with self._writing():
            self.writer.add_update(scalars, self.progress)
        self._recent.extend(episodes.outcome.tolist())
        self._watch(episodes.outcome)
        self.bar.set_postfix_str(f"success {np.mean(self._recent):.2f}", refresh=False)
        self.bar.update(self.progress - before)
        if self.view is not None and self._stop_signal is None:  # the message of Ctrl-C is not drawn over
            self.view.add(self.progress, float(np.mean(self._recent)), episodes, metrics)
        if self._stop_signal is not None:
            self._leave()
        if self.update % self.args.save_every == 0 or self.progress >= self.budget:
            self.save()

    def _watch(self, outcome: Tensor) -> None:
        """Say once that nothing can be learnt, when all outcomes have been equal for at least 20 updates."""
        first = float(outcome[0])
        equal = bool((outcome == first).all())
        self._equal = (self._equal[0] + len(outcome) if self._equal[1] == first else len(outcome), first)
        if not equal:
            self._equal = (0, math.nan)
        reward = getattr(self.args, "reward", None)
        why = nothing_to_learn(np.full(self._equal[0], first), self.unit, reward) if equal else None
        if why is not None and self._equal[0] >= max(1024, 20 * len(outcome)) and not self._said:
            self._said = True
            self.bar.write(f"note: {why}", file=sys.stderr)
            if self.view is not None:
                self.view.forget()

    def _leave(self) -> NoReturn:
        self.save()
        self.bar.close()
        print(
            f"\nStopped after update {self.update} ({self.progress:,} {self.unit}s); saved. Go on with\n"
            f"  {self._resume_command()}",
            file=sys.stderr,
        )
        sys.exit(128 + cast(int, self._stop_signal))

    # -- checkpoints
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete(self.folder / "checkpoints")

    def save(self) -> None:
        """Write a checkpoint: into a temporary folder first, renamed once it is on disk.

        Raises:
            UserError: it cannot be written, or the event file is gone. Earlier checkpoints are as they were.
        """
        target = self.folder / "checkpoints" / f"{self.update:06d}"
        if target.exists():
            return
        counters = {"update": self.update, "steps": self.steps, "episodes": self.episodes, "seconds": self.seconds}
        with self._writing():
            self.writer.file.check()  # events up to here must not be lost if the run dies and resumes from this checkpoint
            config = checkpoints.digest(self.folder / "config.json")
            write_checkpoint(target, self.parts, {**counters, "recent_outcomes": list(self._recent), "config": config})
        if self.film is not None and self._stop_signal is None:
            self._clock += self.film(self.folder, self.update)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Say in one line what could not be written, and how to go on."""
        try:
            with checkpoints.writing(self.folder):
                yield
        except UserError as error:
            where = error.__cause__.filename if isinstance(error.__cause__, OSError) else None
            if where is not None and ".tfevents." in str(where) and not Path(where).exists() and self.folder.is_dir():
                raise UserError(
                    f"the event file {where} was removed while training, so the curves up to here are lost; "
                    f"{self._how_to_go_on()}"
                ) from error
            raise UserError(f"{error}; {self._how_to_go_on()}") from error

    def _how_to_go_on(self) -> str:
        if not self.folder.is_dir():
            return "or start a new run"
        saved = self.checkpoints()
        if not saved:
            return "nothing was saved yet, so start a new run"
        return f"the last checkpoint is {saved[-1]}; go on with: {self._resume_command()}"

    def _resume_command(self) -> str:
        return f"python {_relative(self.script)} --resume {self.folder}"

    def _restore(self, folder: Path) -> None:
        state = read_checkpoint(folder, self.parts, (*COUNTERS, "config"))
        if state["config"] != checkpoints.digest(self.folder / "config.json"):
            changed = f"note: {self.folder / 'config.json'} was changed since {folder} was written"
            print(f"{changed}; this run may not repeat bit for bit", file=sys.stderr)
        self.update, self.steps = state["update"], state["steps"]
        self.episodes, self.seconds = state["episodes"], state["seconds"]
        self._recent.extend(state["recent_outcomes"])
        # Resuming from an earlier checkpoint than the last: what came after it will be computed anew.
        for later in reversed(self.checkpoints()):
            if int(later.name) > self.update:
                remove_checkpoint(later)

    # -- after training
    def finish(self, after: Evaluation, before: Mapping[str, Any]) -> None:
        """Write summary.json and print it.

        Raises:
            UserError: it cannot be written.
        """
        self.bar.close()
        with self._writing():
            self.writer.end_session()
            self.writer.file.check()
            self.writer.close()
        peak = peak_memory_mib()
        memory = "not known" if peak is None else f"{peak:.0f} MiB"
        self.summary |= {
            "after": after.as_dict(),
            "updates": self.update, "steps": self.steps, "episodes": self.episodes, "seconds": self.seconds,
            "steps_per_second": self.steps / self.seconds if self.seconds else None, "peak_memory_mib": peak,
        }  # fmt: skip
        with self._writing():
            write_json(self.folder / "summary.json", self.summary)
        remove_leftovers(self.folder)
        if self.tracker is not None:
            self.tracker.finish({"success_before": before["rate"], "success_after": after.rate})
        low, high = before["interval"]
        few = {name: f" of the {n} that report it" for name, n in self.summary["after"].get("reported", {}).items()}
        measures = "".join(
            f"{name:15} before {before.get('measures', {}).get(name, math.nan):.3f}   after {value:.3f}"
            f"   (mean{few.get(name, '')})\n"
            for name, value in self.summary["after"]["measures"].items()
        )
        steps, episodes = ("steps", "episodes") if self.unit == "step" else ("tokens", "responses")
        print(
            f"\nsuccess   before {before['rate']:.3f} [{low:.3f}, {high:.3f}]   after {after}"
            f"   ({len(after.outcome)} sampled {episodes}, 95 % Wilson interval)\n{measures}"
            f"training  {self.seconds:.1f} s, {self.steps / max(self.seconds, 1e-9):,.0f} {steps}/s   "
            f"({self.steps:,} {steps}, {self.episodes:,} {episodes}, {self.update} updates, peak memory {memory})\n"
            f"run       {self.folder}\n"
            f"curves    tensorboard --logdir {self.folder.parent}"
        )

    def __enter__(self) -> Run:
        self._old_handlers = {}
        with contextlib.suppress(ValueError):  # not in the main thread: no signals there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self.view is not None:
            self.view.close()
        if hasattr(self, "bar"):
            self.bar.close()
        if hasattr(self, "writer"):
            with contextlib.suppress(OSError, ValueError):  # an error in here would hide the one that ended the run
                self.writer.close()
        if self.tracker is not None:
            self.tracker.finish()

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stop_signal is not None:  # the second time: at once, leaving the last checkpoint as it is
            sys.exit(128 + number)
        self._stop_signal = number
        # not print: the signal may have come in the middle of one
        os.write(2, b"\nFinishing this update, then saving; once more to stop at once.\n")


# ------------------------------------------------------------------------------------------------------- helpers
def _scalar(name: str, value: Tensor | float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last for a tensor of several numbers
        raise ValueError(f"{name} must be one number, got {str(value)[:80]}") from error


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_absolute() else str(path)


def peak_memory_mib() -> float | None:
    """Largest resident set of this process so far, MiB; None on Windows, where Python does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def versions() -> dict[str, Any]:
    """Git commit (None outside a repository), versions of Python and packages, machine: JSON-ready."""
    packages = dict.fromkeys(("sppo-control", "torch", "numpy", "gymnasium", "safetensors"), "unknown (not installed)")
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):  # it is imported from a folder, by PYTHONPATH for example
            packages[name] = version(name)
    for extra in ("numba", "envpool", "mujoco", "box2d", "transformers", "trl"):
        with contextlib.suppress(PackageNotFoundError):
            packages[extra] = version(extra)
    clone = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(clone), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, head = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
        # Installed in a virtual environment, it may be inside a repository of the user, whose commit says nothing.
        commit = head if Path(top).resolve() == clone else None
    except (OSError, ValueError, subprocess.SubprocessError):
        commit = None  # installed without its repository, or no git
    return {
        "git_commit": commit,
        "versions": {"python": platform.python_version(), **packages},
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "torch_threads": torch.get_num_threads()},
    }
