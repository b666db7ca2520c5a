"""Whether an environment keeps the promises that training relies on: `check_task`, in the manner of Gymnasium's check_env.

    import sppo_envs
    sppo_envs.check_task("mytasks:my/Sledge-v0")
    sppo_envs.check_task("CartPole-v1", success_return=100)
    sppo_envs.check_task(lambda: OutcomeReward(...))

All checks compare episodes of equal seeds and equal actions: of two new copies, of a new and a used copy, of two
engines. Actions are random. The scripts make the quick part of it before training, `first_look`.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from sppo_control.spaces import bounds, scaled, to_environment, unsupported

from .engines import Engine, copies
from .lockstep import BadStep
from .outcome import OutcomeReward, OutcomeVectorEnv, WrappedOutcome, find_outcome

Verdict = Literal["holds", "fails", "note"]
LARGE = 30.0
"""Observations above this size saturate a tanh network."""
STATE = (
    "clear it in reset(), or make a new one for each episode: sppo_envs.NewEachEpisode. For running "
    "statistics (NormalizeObservation, NormalizeReward), use fixed factors: "
    "Task.obs_scale, gymnasium.wrappers.TransformObservation or TransformReward"
)
SEEDS = "call super().reset(seed=seed), and draw from self.np_random only"


@dataclass(frozen=True)
class Check:
    """One promise of an environment."""

    name: str
    """what is promised"""
    verdict: Verdict
    """fails: training would be wrong or impossible. note: training works, but read this."""
    case: str = ""
    """the smallest case in which it does not hold"""
    change: str = ""
    """what to change"""

    def __str__(self) -> str:
        words = "".join(f"; {text}" for text in (self.case, self.change) if text)
        return f"{self.verdict:5}  {self.name}{words}"


@dataclass
class Report:
    """What `check_task` found."""

    env: str
    """id or name of the environment"""
    checks: list[Check] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """No check fails; there may be notes."""
        return all(check.verdict != "fails" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    def __str__(self) -> str:
        counts = {v: sum(check.verdict == v for check in self.checks) for v in ("holds", "fails", "note")}
        s = "" if counts["note"] == 1 else "s"
        total = f"{counts['holds']} hold, {counts['fails']} fail, {counts['note']} note{s}"
        return "\n".join([f"{self.env}: {total}", *(f"  {check}" for check in self.checks)])

    def add(self, name: str, verdict: Verdict = "holds", case: str = "", change: str = "") -> None:
        """Add a check."""
        self.checks.append(Check(name, verdict, case, change))


def check_task(
    env: str | Callable[[], gym.Env[Any, Any]],
    engine: Engine = "auto",
    episodes: int = 8,
    *,
    success_return: float | None = None,
    horizon: int | None = None,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> Report:
    """Check an environment, print what was found, and return it.

    Args:
        env: an id, as in `make_task`, or a function that makes one environment.
        engine: what would run it in training. It is compared with copies in this process, and those with worker processes.
        episodes: how many are compared, at least 2.
        success_return: see `make_task`.
        horizon: see `make_task`.
        seed: the episodes' seeds follow from it.
        raise_on_failure: raise instead of only telling.

    Raises:
        ValueError: the environment cannot be made; with `raise_on_failure`, a check fails.
    """
    if episodes < 2:
        raise ValueError(f"episodes must be at least 2, got {episodes}")
    make = _maker(env, success_return, horizon)
    name = env if isinstance(env, str) else getattr(env, "__qualname__", str(env))
    with _random_numbers_kept():
        report = _report(name, make, engine, episodes, seed)
    print(report)
    if raise_on_failure and not report.holds:
        raise ValueError(str(report))
    return report


def first_look(
    env_id: str,
    success_return: float | None = None,
    horizon: int | None = None,
    engine: Engine = "auto",
    shared_contexts: bool = False,
) -> None:
    """The quick part of `check_task`: a few short episodes before training. The tasks of this package are left out.

    Args:
        env_id: see `make_task`.
        success_return: see `make_task`.
        horizon: see `make_task`.
        engine: see `make_task`.
        shared_contexts: the algorithm compares episodes from one context, and so needs seeds that decide it.

    Raises:
        ValueError: no policy fits the spaces, the interface is Gym's old one, or the environment keeps something from one
            episode to the next. Also, with `shared_contexts`, if seeds do not decide episodes.
    """
    from . import HARDER, TASKS

    if env_id in TASKS + HARDER:
        return
    report = Report(env_id)
    make = _maker(env_id, success_return, horizon)
    with _random_numbers_kept():
        envs = make(2, "sync" if engine == "processes" else engine)
        try:
            _spaces(report, envs)
            if report.holds:
                _repeats(report, envs, seed=0, steps=16, seconds=0.3)
        except Exception as error:
            _refuse_old_interface(envs, error)
            raise
        finally:
            envs.close()
    for check in report.checks:
        if check.name == _SPACES and check.verdict == "fails":
            raise ValueError(f"{env_id}: {check.case}")
        if check.name not in _NOT or check.verdict == "holds":
            continue
        line = f"{env_id}: {_NOT[check.name]}: {check.case}; {check.change}"
        if check.verdict == "fails" and check.name == _LASTING:
            raise ValueError(line)
        if check.verdict == "fails" and shared_contexts:
            raise ValueError(f"{line}. This algorithm compares episodes that share a context")
        print(f"note: {line}", file=sys.stderr)


_SPACES = "spaces fit a policy"
_SEEDS = "seeds decide episodes"
_LASTING = "nothing is kept from one episode to the next"
_NOT = {
    _SEEDS: "seeds do not decide its episodes, so that no run can be repeated",
    _LASTING: "it keeps something from one episode to the next, so that neither evaluation nor a resumed run is right",
}
Make = Callable[[int, Engine], Any]
"""(B, engine) -> B environments"""


# ------------------------------------------------------------------------------------------------------- the checks
def _report(name: str, make: Make, engine: Engine, episodes: int, seed: int) -> Report:
    report, envs = Report(name), make(2, engine)
    try:
        _spaces(report, envs)
        if not report.holds:
            return report
        played = _guarded(report, envs, lambda: _repeats(report, envs, seed, steps=2000, seconds=20.0))
        if played is None:
            return report
    finally:
        envs.close()
    envs = make(episodes, engine)
    try:
        played = _guarded(report, envs, lambda: [play(envs, range(seed, seed + episodes))])
        if played is None:
            return report
        report.add("every episode runs to its end")
        _contract(report, envs, played[0])
        _observations(report, envs, played[0])
        _entries(report, played[0])
        _context(report, envs, played[0], seed)
        _outcomes(report, played[0])
    finally:
        envs.close()
    _engines(report, make, engine, seed, played[0])
    return report


def _guarded(report: Report, envs: Any, work: Callable[[], list[Played] | None]) -> list[Played] | None:
    """What `work` returns; None after an error, which is then in the report."""
    try:
        return work() or []
    except Exception as error:
        name, case = "every episode runs to its end", f"{type(error).__name__}: {error}"
        try:
            _refuse_old_interface(envs, error)
        except BadStep as old:
            report.add(name, "fails", str(old))
            return None
        if not isinstance(error, BadStep):
            at = traceback.extract_tb(error.__traceback__)[-1]
            case += f" ({at.filename}, line {at.lineno})"
        report.add(name, "fails", case if not isinstance(error, BadStep) else str(error))
        return None


def _spaces(report: Report, envs: Any) -> None:
    problem = unsupported(envs.single_observation_space, envs.single_action_space)
    report.add(_SPACES, "fails" if problem else "holds", problem or "")
    space = envs.single_action_space
    if problem or not isinstance(space, gym.spaces.Box):
        return
    low, high = bounds(space)
    if (np.isinf(low) | np.isinf(high)).any():
        report.add(
            "actions have bounds", "note", "a policy starts with actions of size 1 around 0, and these have no bounds",
            "if larger ones are needed, give the action space finite bounds: then actions are scaled to them",
        )  # fmt: skip
    elif scaled(space).any():
        report.add("actions have bounds", "holds", "a policy's actions from -1 to 1 are scaled to them")


def _repeats(report: Report, envs: Any, seed: int, steps: int, seconds: float) -> list[Played]:
    """Episodes of two copies with equal seeds; others; then the first ones again, their beginnings several times."""
    new = play(envs, [seed, seed], steps)
    until, k = time.perf_counter() + seconds, 1
    # What a simulator's memory looks like may differ after some resets only: with Box2D after the third or the ninth.
    again = None
    while k < 3 or (k < 6 and time.perf_counter() < until):
        play(envs, [seed + k, seed + k + 100], steps=100_000, until=until)
        k += 1
        again = again or new.difference(0, play(envs, [seed, seed], 4), 0)
    until = time.perf_counter() + seconds
    while k < 12 and time.perf_counter() < until:
        play(envs, [seed + k, seed + k + 100], 4)
        k += 1
        again = again or new.difference(0, play(envs, [seed, seed], 4), 0)
    used = play(envs, [seed, seed], steps)

    copy = new.difference(0, new, 1)
    if copy is None:
        report.add(_SEEDS)
    else:
        report.add(_SEEDS, "fails", f"two copies with seed {seed} and equal actions differ: {copy.text}", SEEDS)
    kept = next((w for w in (_statistics(env) for env in getattr(envs, "envs", ())) if w is not None), None)
    again = (again or new.difference(0, used, 0)) if copy is None else None
    if kept is not None:
        report.add(_LASTING, "fails", f"its wrapper {type(kept).__name__} keeps running statistics", STATE)
    elif again is None:
        report.add(_LASTING)
    else:
        case = f"a new copy and a used one, with seed {seed} and equal actions, differ: {again.text}"
        rounding = "the difference is as small as rounding errors are; a resumed run may not repeat bit for bit"
        report.add(_LASTING, "note" if again.tiny else "fails", case, rounding if again.tiny else STATE)
    return [new, used]


def _contract(report: Report, envs: Any, played: Played) -> None:
    """Of every engine: what `rollout` relies on."""
    name, horizon = "a finished episode waits; the outcome is its last reward", int(envs.horizon)
    wrong = None
    if played.truncated:
        wrong = "an episode ended as truncated"
    elif "success" not in played.info or played.info["success"].dtype != np.bool_:
        wrong = "info has no boolean `success` after the last step"
    elif not np.array_equal(played.rewards.sum(axis=0), played.info["success"].astype(float)):
        wrong = "the rewards of an episode do not add up to its outcome, 0 or 1"
    elif played.moved_after_end:
        wrong = "a finished episode was reported as running again"
    report.add(name, "fails" if wrong else "holds", wrong or "", "make it with OutcomeReward" if wrong else "")
    late = int(played.lengths.max())
    report.add(
        "the horizon ends every episode", "holds" if late <= horizon and played.over.all() else "fails",
        "" if late <= horizon and played.over.all() else f"an episode was not over after {horizon} steps",
    )  # fmt: skip


def _observations(report: Report, envs: Any, played: Played) -> None:
    space, obs = envs.single_observation_space, played.real_obs()
    name = "observations fit their space and are finite"
    bad = np.argwhere(~np.isfinite(obs))
    if obs.shape[1:] != space.shape:
        report.add(name, "fails", f"their shape is {obs.shape[1:]}, the space says {space.shape}")
    elif len(bad):
        report.add(name, "fails", f"observation {bad[0][1]} is {obs[tuple(bad[0])]}")
    elif ((obs < space.low) | (obs > space.high)).any():
        k = int(np.argwhere((obs < space.low) | (obs > space.high))[0][1])
        report.add(name, "note", f"observation {k} was outside its bounds, {space.low[k]:g} to {space.high[k]:g}")
    else:
        report.add(name)
    largest = np.abs(obs.astype(np.float64)).max(axis=0) if len(obs) else np.zeros(1)
    if not len(bad) and np.issubdtype(space.dtype, np.floating) and largest.max() > LARGE:
        k = int(largest.argmax())
        report.add(
            "observations are of moderate size", "note", f"observation {k} reached {largest[k]:.4g}",
            "give factors: Task.obs_scale, or gymnasium.wrappers.TransformObservation",
        )  # fmt: skip


def _entries(report: Report, played: Played) -> None:
    """Numbers of the last info that only some episodes report."""
    few = [
        f"{k} by {int(m.sum())} of {len(m)}"
        for k, m in sorted(played.masks.items())
        if not m.all() and k in played.info
    ]
    report.add(
        "every episode reports the same measures", "note" if few else "holds", ", ".join(few),
        "a mean is over the episodes that report it" if few else "",
    )  # fmt: skip


def _context(report: Report, envs: Any, played: Played, seed: int) -> None:
    """One seed given to all environments."""
    n = envs.num_envs
    obs = np.asarray(envs.reset(seed=[seed] * n)[0])
    name, other = "the same seed gives the same context", [i for i in range(n) if not _same(obs[i], obs[0])]
    case = f"environments 0 and {other[0]}, reset with seed {seed}, begin differently" if other else ""
    report.add(name, "fails" if other else "holds", case, SEEDS if other else "")
    first = played.obs[0]
    if all(_same(first[i], first[0]) for i in range(n)):
        report.add("contexts differ", "note", f"{n} seeds begin in one state", "V(s_0) then has nothing to know")


def _outcomes(report: Report, played: Played) -> None:
    success = played.info.get("success", np.zeros(0))
    equal = len(success) > 0 and (success == success[0]).all()
    what = change = ""
    if equal:
        # Imported here, because it imports torch, which worker processes do not need.
        from sppo_control.core import wilson_interval

        n = len(success)
        low, high = wilson_interval(n if success[0] else 0, n)
        if success[0]:
            ended, rate, way_out = "succeeded", f"as low as {low:.2f}", "1, make the task harder"
        else:
            ended, rate = "failed", f"up to {high:.2f}"
            way_out = "0, begin with a policy that succeeds sometimes (--start)"
        what = f"all {n} episodes of random actions {ended}, so the success rate may be {rate} (95 %)"
        change = f"training needs both outcomes: if its success rate stays at {way_out}"
    report.add("both outcomes occur", "note" if equal else "holds", what, change)


def _engines(report: Report, make: Make, engine: Engine, seed: int, played: Played) -> None:
    """Copies in this process against worker processes, bit for bit; and against the engine itself in what all share."""
    name, seeds = "all engines agree", list(range(seed, seed + 3))
    found = []
    for other in ("sync", "processes"):
        try:
            envs = make(3, other)
        except ValueError as error:
            report.add(name, "note", f"{other} cannot run it ({error})")
            return
        try:
            found.append((envs.horizon, envs.single_observation_space, envs.single_action_space, play(envs, seeds)))
        except Exception as error:
            report.add(name, "fails", f"engine {other}: {type(error).__name__}: {str(error).splitlines()[0]}")
            return
        finally:
            envs.close()
    sync, processes = found
    for i in range(3):
        apart = sync[3].difference(i, processes[3], i)
        if apart is not None and report[_SEEDS].verdict == "holds":
            report.add(name, "fails", f"sync and processes differ with seed {seeds[i]}: {apart.text}")
            return
    names, others = (set(x) - {"episode_return", "episode_length"} for x in (sync[3].info, played.info))
    if engine not in ("sync", "processes") and names != others:
        report.add(name, "note", f"sync and {engine} report other measures: {', '.join(sorted(names ^ others))}")
    else:
        report.add(name)


# ------------------------------------------------------------------------------------------------- episodes, compared
@dataclass(frozen=True)
class _Difference:
    text: str
    tiny: bool


@dataclass
class Played:
    """B episodes of random actions."""

    obs: list[npt.NDArray[Any]]
    """of each step, the first one after reset: (B, ...)"""
    returns: list[npt.NDArray[Any]]
    """sums of own rewards so far, (B,), where they can be seen"""
    rewards: npt.NDArray[Any]
    """(T, B)"""
    dones: list[npt.NDArray[np.bool_]]
    info: dict[str, npt.NDArray[Any]]
    masks: dict[str, npt.NDArray[np.bool_]]
    truncated: bool
    moved_after_end: bool

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """(B,): which episodes have ended"""
        return self.dones[-1]

    @property
    def lengths(self) -> npt.NDArray[Any]:
        """(B,) steps"""
        return (
            1 + np.sum([~done for done in self.dones[:-1]], axis=0)
            if len(self.dones) > 1
            else np.ones(len(self.over), int)
        )

    def real_obs(self) -> npt.NDArray[Any]:
        """Observations before an action, (N, ...)."""
        before = [np.zeros(len(self.over), dtype=np.bool_), *self.dones[:-1]]
        return np.concatenate([o[~done] for o, done in zip(self.obs[: len(before)], before, strict=True)])

    def difference(self, i: int, other: Played, j: int) -> _Difference | None:
        """The first difference between episode i and episode j of another batch, with equal seeds and actions."""
        for t in range(min(len(self.obs), len(other.obs))):
            where = f"after step {t}" if t else "after reset()"
            for what, a, b in [
                ("observation", self.obs[t][i], other.obs[t][j]),
                *([("return", self.returns[t][i], other.returns[t][j])] if self.returns and other.returns else []),
            ]:
                if not _same(a, b):
                    k, x, y = _first_difference(a, b)
                    tiny = bool(np.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True))
                    number = f" {k}" if np.ndim(a) else ""
                    return _Difference(f"{what}{number} {where} is {x} and {y}", tiny)
            if t and self.dones[t - 1][i] != other.dones[t - 1][j]:
                return _Difference(f"one of them ends {where}", False)
            if t and self.dones[t - 1][i]:
                break
        for name in sorted(self.info.keys() & other.info.keys()):
            a, b = self.info[name][i], other.info[name][j]
            if name in ("success", "episode_return", "episode_length") and not _same(a, b):
                return _Difference(f"{name} is {a} and {b}", False)
        return None


def play(envs: Any, seeds: Any, steps: int = 1_000_000_000, until: float | None = None) -> Played:
    """Episodes of random actions, which follow from each episode's seed.

    Args:
        envs: B environments.
        seeds: B.
        steps: after so many steps stop, whether the episodes are over or not.
        until: stop also at this time of `time.perf_counter`.
    """
    seeds = [int(s) for s in seeds]
    space, act_in = envs.single_action_space, to_environment(envs.single_action_space)
    rngs = [np.random.default_rng([7, s]) for s in seeds]
    inner = [find_outcome(env) for env in getattr(envs, "envs", ())] if isinstance(envs, OutcomeVectorEnv) else []
    obs = [np.array(envs.reset(seed=seeds)[0])]
    returns, rewards, dones = [np.zeros(len(seeds))] if inner else [], [], []
    done, truncated, moved, info = np.zeros(len(seeds), dtype=np.bool_), False, False, {}
    for _ in range(min(steps, envs.horizon)):
        if isinstance(space, gym.spaces.Discrete):
            samples = np.array([rng.integers(space.n) for rng in rngs])
        else:
            samples = np.stack([rng.standard_normal(np.prod(space.shape or (1,), dtype=int)) for rng in rngs])
            samples = samples.astype(np.float32)
        o, reward, terminated, cut, info = envs.step(act_in(samples))
        obs.append(np.array(o))
        rewards.append(np.where(done, 0.0, reward))
        if inner:
            returns.append(np.array([env._return for env in inner if env is not None]))
        truncated, moved = truncated or bool(np.any(cut)), moved or bool((done & ~terminated).any())
        done = done | terminated | cut
        dones.append(done)
        if done.all() or (until is not None and time.perf_counter() > until):
            break
    measures = {k: np.array(v) for k, v in info.items() if not k.startswith("_")} if done.all() else {}
    masks = {k: np.array(info.get(f"_{k}", np.ones(len(seeds), dtype=np.bool_))) for k in measures}
    return Played(obs, returns, np.array(rewards), dones, measures, masks, truncated, moved)


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _first_difference(a: Any, b: Any) -> tuple[int, Any, Any]:
    x, y = np.reshape(a, -1), np.reshape(b, -1)
    k = int(np.flatnonzero((x != y) & ~((x != x) & (y != y)))[0])
    return k, x[k], y[k]


# ---------------------------------------------------------------------------------------------------------- helpers
def _maker(env: str | Callable[[], gym.Env[Any, Any]], success_return: float | None, horizon: int | None) -> Make:
    from . import _reaches, make_task

    if isinstance(env, str):
        return lambda n, engine: make_task(env, n, success_return, horizon, engine)
    if success_return is None:
        return lambda n, engine: copies(lambda: WrappedOutcome(env(), horizon), n, _copying(engine))
    reached = _reaches(success_return)
    return lambda n, engine: copies(lambda: OutcomeReward(env(), reached, horizon), n, _copying(engine))


def _copying(engine: Engine) -> Literal["processes", "sync"]:
    return "processes" if engine == "processes" else "sync"


def _statistics(env: gym.Env[Any, Any]) -> gym.Env[Any, Any] | None:
    """A wrapper in the stack that keeps a running mean and variance (as Gymnasium's RunningMeanStd), unless it is told not
    to go on with them."""
    while isinstance(env, gym.Wrapper):
        running = any(all(hasattr(x, name) for name in ("mean", "var", "count", "update")) for x in vars(env).values())
        if running and getattr(env, "update_running_mean", True):
            return env
        env = env.env
    return None


def _refuse_old_interface(envs: Any, error: Exception) -> None:
    """
    Raises:
        BadStep: the environment has Gym's old interface, which is why it failed.
    """
    if isinstance(error, BadStep) or not getattr(envs, "envs", ()):
        return
    bare = envs.envs[0].unwrapped
    old = OutcomeReward(bare, lambda obs, info: False, horizon=1)
    try:
        try:
            old.reset(seed=0)
        except TypeError as problem:
            if "seed" in str(problem):
                raise BadStep(
                    f"{bare}: reset() takes no seed, as in Gym before 0.26; change the environment"
                ) from error
            return
        old.step(bare.action_space.sample())
    except BadStep as problem:
        raise BadStep(str(problem)) from error
    except Exception:
        return


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """The global generators go on afterwards as if nothing had been drawn."""
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the one that others may use
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)  # noqa: NPY002
