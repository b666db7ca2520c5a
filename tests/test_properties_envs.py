"""Properties of envs/sppo_envs, its outcomes, infos and tasks: the right number, or a refusal that names the argument."""

import dataclasses
import importlib
import itertools
import math
import re
import string

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import Properties, refused

import sppo_envs
from sppo_envs import engines, infos, lockstep, outcome

tasks = importlib.import_module("sppo_envs.task")  # sppo_envs.task is the function

PROCESSES = "worker processes; tests/test_engines.py"
POOL = "EnvPool's threads; tests/test_engines.py"
PROPERTIES = Properties(
    engines={
        "cores": "asks the system; tests/test_engines.py", "has_envpool": "asks the system",
        "own_make": "makes Gymnasium's environments; tests/test_tasks.py",
        **dict.fromkeys(("ProcessVectorEnv", "ProcessVectorEnv.reset", "ProcessVectorEnv.step"), PROCESSES),
        "ProcessVectorEnv.close_extras": PROCESSES, "EnvPoolVectorEnv": POOL, "EnvPoolVectorEnv.bare_pool": POOL,
        "EnvPoolVectorEnv.close_extras": POOL,
    },
    lockstep={"BadStep": "an error", "NumpyVectorEnv": "its subclasses have tests/test_envs.py and tests/test_tasks.py"}
    | {f"NumpyVectorEnv.{x}": "tests/test_kernels.py" for x in ("dynamics", "settle", "state")},
    outcome={"NewEachEpisode": "a wrapper that makes environments; tests/test_strangers.py"}
    | {f"NewEachEpisode.{x}": "tests/test_strangers.py" for x in ("reset",)},
    task={"Recipe": "values only", "Defaults": "values only"},
)  # fmt: skip
of = PROPERTIES.of
SEED = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=max(20, settings.default.max_examples // 10))
"""For what makes Gymnasium's environments in each case."""


def test_every_public_function_has_a_property():
    PROPERTIES.check(sppo_envs, outcome, lockstep, engines, infos, tasks)


# ------------------------------------------------------------------------------------------------------------ infos
NUMBER = st.sampled_from([
    True, False, 0, -3, 2**40, 2**70, -(2**1020), 2**1023, 0.25, math.nan, math.inf, np.float32(0.5), np.float16(2),
    np.int8(-4), np.uint64(2**63), np.bool_(True), np.array(7), np.array([1.0]), "text", None, [1], {}, 1j,
])  # fmt: skip
NAME = st.sampled_from(["a", "b", "_a", "c", 3])


def scalar_by_hand(x):
    """As Python's number; None where it is not one."""
    x = x.item() if isinstance(x, np.generic | np.ndarray) and x.ndim == 0 else x
    if type(x) is int and not -(2**63) <= x < 2**63:
        return float(x) if abs(x) < 2**1023 else None
    return x if type(x) in (bool, int, float) else None


def same(a, b):
    return type(a) is type(b) and (a == b or (a != a and b != b))


@of(infos, "scalars")
@given(st.dictionaries(NAME, NUMBER), st.sets(st.sampled_from("ab")))
def test_scalars(info, without):
    found = infos.scalars(info, without)
    names = [n for n, x in info.items() if n in ("a", "b", "c") and n not in without and scalar_by_hand(x) is not None]
    assert list(found) == names
    assert all(same(found[name], scalar_by_hand(info[name])) for name in names)


@of(infos, "stacked", "columns")
@given(st.lists(st.one_of(st.none(), st.dictionaries(st.sampled_from("abc"), NUMBER)), min_size=1, max_size=5))
def test_stacked_and_columns(many):
    ends = [None if info is None else infos.scalars(info) for info in many]
    found, n = infos.stacked(ends), len(many)
    names = list(dict.fromkeys(name for end in ends if end for name in end))
    assert [name for name in found if name[0] != "_"] == names
    for name in names:
        told = [end is not None and name in end for end in ends]
        values = [end[name] for end in ends if end is not None and name in end]
        kinds = {type(x) for x in values}
        assert found[f"_{name}"].tolist() == told
        assert found[name].dtype == (float if float in kinds else int if int in kinds else bool)
        expected = iter(values)
        for x, ok in zip(found[name].tolist(), told, strict=True):
            y = next(expected) if ok else 0
            assert x == y or (x != x and y != y)
    # The same as a vector environment may report them: an object array with a mask, or a list with None.
    for name in names:
        boxed = np.empty(n, dtype=object)
        boxed[:] = [None if not end else end.get(name) for end in ends]
        told = found[f"_{name}"]
        for reported in ({name: boxed, f"_{name}": told}, {name: boxed.tolist()}):
            back = infos.columns(
                {**reported, "other": np.zeros(n + 1), "_hidden": told, "text": np.array(["x"] * n)}, n
            )
            np.testing.assert_array_equal(back[name], found[name])
            assert back[name].dtype == found[name].dtype
            assert back.keys() == {name} | ({f"_{name}"} if not told.all() else set())
    for dtype, wide in ((np.float32, float), (np.uint8, int), (np.int16, int), (bool, bool), (np.uint64, int)):
        x = np.arange(n).astype(dtype)
        back = infos.columns({"a": x}, n)
        assert back["a"].dtype == wide
        assert back["a"].tolist() == x.tolist()
        assert not np.shares_memory(back["a"], x)


# --------------------------------------------------------------------------------------------------------- outcomes
class Scripted(gym.Env):
    """Pays given rewards; ends by itself at a given step, or is truncated at another."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, rewards, terminated_at, truncated_at, extra=None):
        self.rewards, self.ends, self.extra = rewards, (terminated_at, truncated_at), extra or {}
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        obs = np.full(1, self.t, np.float32)
        return obs, self.rewards[self.t - 1], *(self.t >= end for end in self.ends), {**self.extra, "t": self.t}


REWARDS = st.lists(st.floats(-5, 5), min_size=8, max_size=8)
END, HORIZON = st.integers(1, 9), st.integers(1, 7)


@of(outcome, "OutcomeReward", "OutcomeReward.reset", "OutcomeReward.step")
@given(REWARDS, END, END, HORIZON, st.booleans(), st.booleans(), st.floats(-9, 9))
def test_outcome_reward(rewards, terminated_at, truncated_at, horizon, dense, measured, least):
    seen = []

    def success(obs, info):
        seen.append((obs, info))
        return bool(info["episode_return"] >= least)

    measures = (lambda obs, info: {"last": np.float32(info["last_reward"])}) if measured else None
    env = outcome.OutcomeReward(
        Scripted(rewards, terminated_at, truncated_at),
        success,
        horizon,
        measures,
        (lambda r: 10 * r) if dense else None,
    )
    for _ in range(2):  # nothing of the first episode is left in the second
        seen.clear()
        obs, _ = env.reset(seed=0)
        length = min(terminated_at, truncated_at, horizon)
        for t in range(1, length + 3):
            obs, reward, terminated, truncated, info = env.step(0)
            own = rewards[min(t, length) - 1]
            assert obs == min(t, length)
            assert terminated == (t >= length)
            assert not truncated
            total = sum(rewards[:length])
            if t > length:
                assert reward == 0
            elif dense:
                assert reward == 10 * own
            elif abs(total - least) > 1e-9:
                assert reward == (t == length and total >= least)
            if t >= length:
                assert info["episode_return"] == pytest.approx(total, abs=1e-9)
                assert info["episode_length"] == length
                assert info["success"] == (info["episode_return"] >= least)
                assert env.hidden == ({"t"} if measured else set())
                if measured:
                    assert info["last"] == np.float32(own)
        ((_, told),) = seen
        assert told["last_reward"] == rewards[length - 1]
        assert told["terminated"] == (length == terminated_at)
        assert told["truncated"] == (length == truncated_at)


@of(outcome, "OutcomeReward")
@given(
    st.sampled_from([math.nan, math.inf, -math.inf, "1", None, [1.0, 2.0], np.ones(2), 1j, np.array("x")]),
    st.integers(0, 3), st.sampled_from([0, -1, 1.5, math.nan, math.inf, "3"]),
    st.sampled_from([1, 0.0, None, "yes", np.ones(1, bool)]),
)  # fmt: skip
def test_outcome_reward_refuses_bad_values_by_name(reward, at, horizon, verdict):
    rewards = [0.5, np.float32(1), np.array([2.0]), 1]
    env = outcome.OutcomeReward(Scripted([*rewards[:at], reward], 9, 9), lambda obs, info: True, 9)
    env.reset(seed=0)
    for _ in range(at):
        env.step(0)
    refused(lambda: env.step(0), f"step {at + 1}", error=lockstep.BadStep)
    refused(lambda: outcome.OutcomeReward(Scripted([], 1, 1), lambda obs, info: True, horizon), "horizon")
    refused(lambda: outcome.OutcomeReward(Scripted([], 1, 1), lambda obs, info: True), "horizon")
    env = outcome.OutcomeReward(Scripted([1.0], 1, 1), lambda obs, info: verdict, 1)
    env.reset(seed=0)
    refused(lambda: env.step(0), "success", error=TypeError)


@of(outcome, "WrappedOutcome", "WrappedOutcome.hidden", "WrappedOutcome.reset", "WrappedOutcome.step")
@of(outcome, "find_outcome", "step_limit", "as_outcome")
@given(
    REWARDS,
    END,
    HORIZON,
    st.lists(st.integers(1, 9), max_size=3),
    st.one_of(st.none(), st.integers(-1, 9)),
    st.booleans(),
)
def test_wrapped_outcome(rewards, terminated_at, inner, limits, horizon, dense):
    bare = gym.wrappers.TimeLimit(Scripted(rewards, terminated_at, 99), 8)
    core = outcome.OutcomeReward(bare, lambda obs, info: True, inner, dense=(lambda r: 10 * r) if dense else None)
    env = gym.wrappers.TransformReward(core, lambda r: 2 * r)
    for limit in limits:
        env = gym.wrappers.TimeLimit(env, limit)
    assert outcome.find_outcome(env) is core
    assert outcome.find_outcome(bare) is None
    assert outcome.step_limit(env) == min([8, inner, *limits])
    assert outcome.step_limit(bare.env) is None
    assert outcome.as_outcome(core) is core
    refused(lambda: outcome.as_outcome(bare), "OutcomeReward")
    if horizon is not None and horizon < 1:
        refused(lambda: outcome.WrappedOutcome(env, horizon), "horizon")
        return
    found = outcome.WrappedOutcome(env, horizon)
    least = min([8, inner, *limits, *([horizon] if horizon else [])])
    length = min(least, terminated_at)
    assert found.horizon == least
    assert found.hidden == frozenset()
    found.reset(seed=0)
    for t in range(1, length + 2):
        obs, reward, terminated, truncated, info = found.step(0)
        assert (obs[0], terminated, truncated) == (min(t, length), t >= length, False)
        expected = 20 * rewards[t - 1] if dense and t <= length else float(t == length)
        assert reward == (expected if not dense or t <= length else 0.0)
    assert info["episode_length"] == length
    assert info["success"] is True


class Batch(gym.vector.VectorEnv):
    """B scripted episodes in one object, which begin again by themselves."""

    single_observation_space, single_action_space = Scripted.observation_space, Scripted.action_space
    spec = None

    def __init__(self, rewards, lengths, mode=AutoresetMode.NEXT_STEP):
        self.rewards, self.lengths, self.num_envs = np.array(rewards), np.array(lengths), len(lengths)
        self.metadata = {"autoreset_mode": mode}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        self.t += 1
        over = self.t >= self.lengths
        obs = np.full((self.num_envs, 1), self.t, np.float32)
        return obs, self.rewards[:, self.t - 1], over, np.zeros_like(over), {"t": np.full(self.num_envs, self.t)}


@of(outcome, "OutcomeVectorEnv", "OutcomeVectorEnv.reset", "OutcomeVectorEnv.step", "OutcomeVectorEnv.close_extras")
@of(outcome, "OutcomeVectorReward", "OutcomeVectorReward.close_extras", "judged")
@of(engines, "copies")
@given(SEED, st.integers(1, 4), HORIZON, st.sampled_from(["copies", "batch"]))
def test_outcomes_of_several_environments(seed, B, horizon, kind):
    rng = np.random.default_rng(seed)
    lengths, rewards = rng.integers(1, 9, B), rng.standard_normal((B, 8))
    ends = np.minimum(lengths, horizon)
    if kind == "copies":
        scripts = iter([Scripted(rewards[b], lengths[b], 99) for b in range(B)])
        envs = engines.copies(
            lambda: outcome.OutcomeReward(next(scripts), lambda obs, info: bool(info["episode_return"] > 0), horizon),
            B,
            "sync",
        )
    else:
        envs = outcome.OutcomeVectorReward(
            Batch(rewards, lengths), lambda obs, info: info["episode_return"] > 0, horizon
        )
    obs, _ = envs.reset(seed=[3] * B)
    assert not obs.any()
    for t in range(1, ends.max() + 2):
        obs, reward, terminated, truncated, info = envs.step(np.zeros(B, dtype=np.int64))
        for b in range(B):
            total = sum(rewards[b, : ends[b]])
            assert obs[b, 0] == min(t, ends[b])
            assert reward[b] == (t == ends[b] and total > 0)
            assert terminated[b] == (t >= ends[b])
            if t >= ends[b]:
                assert info["success"][b] == (total > 0)
                assert info["episode_return"][b] == pytest.approx(total)
                assert info["episode_length"][b] == info["t"][b] == ends[b]
            if t >= min(ends):
                assert info["_success"][b] == (t >= ends[b])
        assert not truncated.any()
    envs.close()
    for bad in (0, -1, 1.5, math.nan):
        refused(lambda bad=bad: outcome.OutcomeVectorEnv(lambda: None, bad), "num_envs")
        batch = Batch(rewards, lengths)
        refused(lambda bad=bad, batch=batch: outcome.OutcomeVectorReward(batch, lambda o, i: None, bad), "horizon")
    refused(lambda: outcome.OutcomeVectorReward(Batch(rewards, lengths), lambda o, i: None), "horizon")
    same_step = Batch(rewards, lengths, AutoresetMode.SAME_STEP)
    refused(lambda: outcome.OutcomeVectorReward(same_step, lambda o, i: None, 3), "AutoresetMode.NEXT_STEP")
    one = outcome.OutcomeReward(Scripted([], 1, 1), lambda o, i: True, 3)
    if B > 1:
        refused(lambda: outcome.OutcomeVectorEnv(lambda: one, B), "make")


@of(outcome, "judged")
@given(st.booleans(), st.booleans(), st.integers(1, 3))
def test_judged(measured, clash, n):
    own = {"episode_return": np.zeros(n), "episode_length": np.ones(n)}
    info = {"x": np.arange(n), "success": np.zeros(n), **({"episode_return": np.full(n, 5.0)} if clash else {})}
    found = outcome.judged(
        np.ones(n, bool), own, info, {"y": np.ones(n), "episode_return": np.full(n, 7.0)} if measured else None
    )
    assert found["success"].tolist() == [True] * n, "success is what the predicate says"
    assert found["episode_return"].tolist() == [7.0 if measured else 0.0] * n, "measures may say more, an info may not"
    assert found.keys() == {"episode_return", "episode_length", "success", "y" if measured else "x"}


@of(outcome, "checked_rewards", "checked_success", "env_seeds")
@of(lockstep, "checked_horizon", "checked_num_envs", "checked_seed")
@given(SEED, st.integers(1, 4), st.sampled_from([np.float64, np.float32, np.int8, bool]), st.booleans(),
       st.sampled_from([math.nan, math.inf, -math.inf, 1e308]))  # fmt: skip
def test_checked_values(seed, n, dtype, column, bad):
    rng = np.random.default_rng(seed)
    reward, running = rng.integers(0, 2, n).astype(dtype), rng.integers(0, 2, n).astype(bool)
    given_reward = reward[:, None] if column else reward
    found = outcome.checked_rewards(given_reward, running, "envs", 3)
    assert found.dtype == np.float64
    assert found.tolist() == [float(r) if ok else 0.0 for r, ok in zip(reward, running, strict=True)]
    spoilt = np.full(n, bad)
    if running.any() and not math.isfinite(bad):
        refused(lambda: outcome.checked_rewards(spoilt, running, "envs", 3), "step 3")
    else:
        assert outcome.checked_rewards(spoilt, running, "envs", 3).tolist() == [bad if ok else 0.0 for ok in running]
    for wrong in (np.zeros(n + 1), ["x"] * n, None, np.zeros(n, complex)):
        refused(lambda wrong=wrong: outcome.checked_rewards(wrong, running, "envs", 3), "rewards")
    assert outcome.checked_success(running, n) is running
    for wrong in (running.tolist(), running.astype(int), running[:, None], np.append(running, True), None, True):
        refused(lambda wrong=wrong: outcome.checked_success(wrong, n), "success", error=TypeError)
    seeds = rng.integers(0, 2**40, n)
    assert outcome.env_seeds(None, n) == [None] * n
    for one in (5, np.int64(5)):
        assert outcome.env_seeds(one, n) == [5 + i for i in range(n)]
        assert (lockstep.checked_horizon(one), lockstep.checked_num_envs(one), lockstep.checked_seed(one, n)) == (
            5,
            5,
            5,
        )
    for many in (seeds, seeds.tolist(), tuple(seeds)):
        assert outcome.env_seeds(many, n) == lockstep.checked_seed(many, n) == seeds.tolist()
    for wrong in (-1, 1.5, "1", [1.5] * n, [-1] * n, ["a"] * n, [1] * (n + 1), []):
        refused(lambda wrong=wrong: outcome.env_seeds(wrong, n), "seed")
        refused(lambda wrong=wrong: lockstep.checked_seed(wrong, n), "seed")
    for wrong in (0, -2, 1.5, math.nan, math.inf, "2", None, [1]):
        refused(lambda wrong=wrong: lockstep.checked_horizon(wrong), "horizon")
        refused(lambda wrong=wrong: lockstep.checked_num_envs(wrong), "num_envs")


# --------------------------------------------------------------------------------------------------------- lockstep
class Counting(lockstep.NumpyVectorEnv):
    """The state counts steps, from an integer that the seed decides; an episode ends at a state of `top`."""

    state_names = ("count",)
    top = 6

    def __init__(self, num_envs, horizon, dense=False, continuous=False):
        space = gym.spaces.Box(-1, 1, (2,), np.float32) if continuous else gym.spaces.Discrete(3, start=-1)
        super().__init__(num_envs, horizon, dense, gym.spaces.Box(-99, 99, (1,), np.float32), space)

    def _draw(self, rng, n, options):
        return rng.integers(0, 5, (1, n)).astype(float)

    def _observe(self):
        return self._state.T.astype(np.float32)

    def _move(self, actions):
        return self._state + 1

    def _over(self):
        return self._state[0] >= self.top

    def _judge(self):
        return {"success": self._over(), "count": self._state[0].copy()}

    def _dense_reward(self):
        return self._state[0] / 10


@of(lockstep, "LockstepVectorEnv", "LockstepVectorEnv.reset", "LockstepVectorEnv.step")
@given(
    SEED, st.integers(1, 4), HORIZON, st.booleans(), st.booleans(), st.sampled_from(["one", "many", "state", "none"])
)
def test_lockstep(seed, B, horizon, dense, continuous, how):
    envs = Counting(B, horizon, dense, continuous)
    good = np.zeros((B, 2), np.float32) if continuous else np.full(B, -1)
    with pytest.raises(RuntimeError, match="reset"):
        envs.step(good)
    if how == "one":
        obs, _ = envs.reset(seed=seed)
        assert obs.tolist() == envs.reset(seed=seed)[0].tolist()
    elif how == "many":
        obs, _ = envs.reset(seed=[seed] * B)
        assert (obs == np.random.default_rng(seed).integers(0, 5, (1, 1))).all()
    elif how == "none":
        obs, _ = envs.reset()
    else:
        state = np.random.default_rng(seed).integers(0, 5, (B, 1))
        obs, _ = envs.reset(options={"state": state})
        assert obs.tolist() == state.tolist()
        refused(lambda: envs.reset(options={"state": state[:, :0]}), "state")
        obs, _ = envs.reset(options={"state": state})
    start = obs[:, 0].copy()
    length = np.minimum(np.maximum(1, 6 - start), horizon)
    for t in range(1, int(length.max()) + 2):
        obs, reward, terminated, truncated, info = envs.step(good)
        now = start + np.minimum(t, length)
        assert obs[:, 0].tolist() == now.tolist()
        assert terminated.tolist() == (t >= length).tolist()
        assert not truncated.any()
        paid = now / 10 * (t <= length) if dense else ((t == length) & (now >= 6)).astype(float)
        assert reward.tolist() == pytest.approx(paid.tolist())
        if terminated.any():
            assert info["_success"].tolist() == terminated.tolist()
            assert info["success"].tolist() == ((now >= 6) & terminated).tolist()
            assert info["count"].tolist() == (now * terminated).tolist()
        else:
            assert info == {}
    bad = [good[:, None], good[: B - 1], np.array(["x"] * B), None, good + 1j, np.full(good.shape, math.nan)]
    bad += [np.full((B, 2), math.inf)] if continuous else [good + 3, good - 1, good.astype(float)]
    for wrong in bad:
        refused(lambda wrong=wrong: envs.step(wrong), "actions")
    for wrong in (-1, 0.5, [1] * (B + 1), ["a"] * B):
        refused(lambda wrong=wrong: envs.reset(seed=wrong), "seed")
    refused(lambda: Counting(0, horizon), "num_envs")
    refused(lambda: Counting(B, 0), "horizon")


# ------------------------------------------------------------------------------------------------------------ tasks
def make_it(render_mode=None, horizon=5):
    return outcome.OutcomeReward(Scripted([1.0] * 9, 9, 9), lambda obs, info: True, horizon)


def make_dense(render_mode=None, dense=False):
    return make_it()


IDS = st.text(string.ascii_letters + "/-:v0 .", max_size=8)


@of(tasks, "Task", "Task.has_dense_reward", "Task.engines", "register", "task", "task_defaults", "table", "accepts")
@given(IDS, st.sampled_from([make_it, make_dense]), st.booleans(), st.integers(-1, 3), st.integers(0, 3))
def test_tasks(env_id, make, batched, horizon, axes):
    values = {"id": f"prop/{env_id}", "make": make, "success": "it | is", "horizon": horizon}
    values["axes"] = (tasks.Axis("x", 0),) * axes
    if ":" in env_id or horizon < 1 or axes not in (0, 2):
        refused(lambda: tasks.Task(**values), "id" if ":" in env_id else "horizon" if horizon < 1 else "axes")
        return
    new = tasks.Task(**values, make_vec=make_it if batched else None)
    assert new.engines == (("numpy",) if batched else ()) + ("processes", "sync")
    assert new.has_dense_reward == (make is make_dense) == tasks.accepts(make, "dense")
    before, refusal = dict(gym.registry), ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_REGISTRY", dict(tasks._REGISTRY))
        try:
            tasks.register(new)
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert new.id in refusal
            assert gym.registry == before, "a refusal changes nothing"
            return
        try:
            assert gym.registry.keys() - before.keys() == {new.id}
            assert tasks.task(new.id) is new
            assert tasks.task_defaults(new.id) == dataclasses.asdict(new.defaults)
            refused(lambda: tasks.register(dataclasses.replace(new, success="other")), new.id)
            assert f"| `{new.id}` | - | it \\| is | {horizon} |" in tasks.table([new.id])
        finally:
            gym.registry.pop(new.id)
    refused(lambda: tasks.table([sppo_envs.TASKS[0], new.id]), new.id)


@of(tasks, "task", "task_defaults", "import_module")
@given(st.text("ab.:/-v0é", max_size=8), st.sampled_from(["", ".", "..", "a.", "nowhere_at_all", "json", "é"]))
def test_unknown_ids(name, module):
    env_id = f"{module}:{name}" if module else name.replace(":", "")
    inner = env_id.rpartition(":")[0]
    if inner in ("", "json"):
        found, defaults = tasks.task(env_id), tasks.task_defaults(env_id)
        assert found is None
        assert defaults == {"num_envs": 64, "num_minibatches": 4, "learning_rate": 1e-3, "total_timesteps": 2_000_000}
    else:
        for call in (tasks.task, tasks.task_defaults, lambda name: tasks.import_module(inner, name)):
            with pytest.raises(ValueError, match=re.escape(f"cannot make {env_id}: ")):
                call(env_id)


@of(tasks, "Axis", "Axis.values")
@given(SEED, st.integers(1, 5), st.integers(0, 3))
def test_axes(seed, n, column):
    obs = np.random.default_rng(seed).standard_normal((n, 4))
    assert tasks.Axis("x", column).values(obs).tolist() == [row[column] for row in obs.tolist()]
    assert tasks.Axis("x", lambda o: (2 * o[:, column]).tolist()).values(obs).tolist() == [
        2 * row[column] for row in obs.tolist()
    ]


@of(sppo_envs, "make_task", "make_one")
@FEW
@given(st.integers(1, 3), st.integers(1, 4), st.floats(-3, 6), SEED)
def test_made_environments(num_envs, horizon, success_return, seed):
    """CartPole pays 1 in each step, and no episode is over within 4 steps."""
    envs = sppo_envs.make_task("CartPole-v1", num_envs, success_return, horizon)
    envs.reset(seed=seed)
    for _ in range(horizon):
        *_, terminated, _, info = envs.step(np.zeros(num_envs, dtype=np.int64))
    assert terminated.all()
    reached = horizon >= success_return
    assert info["success"].tolist() == [reached] * num_envs or abs(horizon - success_return) < 1e-6
    assert (envs.horizon, envs.env_id) == (horizon, "CartPole-v1")
    envs.close()
    env = sppo_envs.make_one("CartPole-v1", success_return, horizon)
    assert env.horizon == horizon
    env.close()
    own, numbers = sppo_envs.TASKS[0], itertools.cycle([0, -1, 1.5, math.nan])
    for make in (lambda **k: sppo_envs.make_task(**{"num_envs": 1, **k}), sppo_envs.make_one):
        refused(lambda make=make: make(env_id=own, success_return=1.0), "--success-return")
        refused(lambda make=make: make(env_id=own, horizon=next(numbers)), "horizon")
        refused(lambda make=make: make(env_id="CartPole-v1", success_return=1.0, horizon=next(numbers)), "horizon")
        refused(lambda make=make: make(env_id="CartPole-v1"), "--success-return")
        refused(lambda make=make: make(env_id="CartPole-v9x", success_return=1.0), "'CartPole-v9x'")
        for bad in (math.nan, math.inf, -math.inf):
            refused(lambda make=make, bad=bad: make(env_id="CartPole-v1", success_return=bad), "success_return")
    for name, bad in (("num_envs", 0), ("num_envs", 1.5), ("engine", "gpu"), ("engine", None)):
        refused(lambda name=name, bad=bad: sppo_envs.make_task(**{"env_id": own, "num_envs": 1, name: bad}), name)
    refused(lambda: sppo_envs.make_task("CartPole-v1", 1, 1.0, dense=True), "dense")
    refused(lambda: sppo_envs.make_task("CartPole-v1", 1, 1.0, engine="numpy"), "--engine")
