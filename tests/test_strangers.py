"""Environments that nobody here wrote: odd numbers, infos, spaces, seeds, limits. Right values, or a refusal by name."""

import copy
import json
import math
import os
import random
import re
import signal
import sys
import time

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate as evaluate_script
import grpo_cartpole
import ppo_cartpole
import remax_cartpole
import rloo_cartpole
import sppo_cartpole
import sppo_envs
from sppo_control import cli, outcomes
from sppo_control.demonstrations import read_demonstrations
from sppo_control.errors import UserError
from sppo_control.policies import make_policy, save_policy
from sppo_control.rollout import NOISE_STEPS, evaluate, noise_of_steps, rollout
from sppo_control.spaces import observation_scale, to_environment, to_samples, unsupported
from sppo_envs import (
    BadStep,
    NewEachEpisode,
    OutcomeReward,
    OutcomeVectorEnv,
    OutcomeVectorReward,
    ProcessVectorEnv,
    check_task,
    first_look,
    make_task,
)
from sppo_envs.infos import columns, scalars, stacked
from sppo_envs.lockstep import LockstepVectorEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import this file, and torch with it

ALL = {
    "sppo": sppo_cartpole, "ppo": ppo_cartpole, "grpo": grpo_cartpole, "rloo": rloo_cartpole, "remax": remax_cartpole,
}  # fmt: skip
SMALL = {"total_timesteps": 200, "num_envs": 8, "num_minibatches": 1, "eval_episodes": 8, "learning_rate": 1e-2}


class Walk(gym.Env):
    """A walk on a line from 0: the action is a step, 2 is the goal with reward 1; at most 6 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, **kwargs):
        self.__dict__.update(kwargs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps, self.noise = 0, 0, float(self.np_random.uniform(-1, 1))
        return self.seen(), {}

    def seen(self):
        return np.array([self.place, self.steps / 6, self.noise, 1], dtype=np.float32)

    def step(self, action):
        self.place += 1 if int(action) else -1
        self.steps += 1
        over = abs(self.place) == 2
        return self.seen(), float(self.place == 2), over, self.steps == 6, self.told(over)

    def told(self, over):
        return {}


@pytest.fixture
def register():
    """Registers an environment for the time of the test; returns its id."""
    made = []

    def add(make, name="Walk", **kwargs):
        env_id = f"strange/{name}{len(made)}-v0"
        gym.register(env_id, make, max_episode_steps=kwargs.pop("max_episode_steps", 6), **kwargs)
        made.append(env_id)
        return env_id

    yield add
    for env_id in made:
        del gym.registry[env_id]


def train(script, tmp_path, env_id, **changes):
    args = {**SMALL, **({"group_size": 4} if script in ("grpo", "rloo") else {}), **changes}
    args = {"success_return": 1.0, **args, "env_id": env_id, "runs_dir": str(tmp_path)}
    return ALL[script].train(cli.make_args(ALL[script].Args, **args))


def weights(run):
    return {name: x.numpy().tobytes() for name, x in load_file(run.checkpoints()[-1] / "policy.safetensors").items()}


def main(monkeypatch, capsys, script, *words):
    """Exit status, stdout, stderr of a script."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    status = 0
    try:
        cli.main(script.main if hasattr(script, "main") else script.train, script.Args, script.__doc__)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


# -------------------------------------------------------------------------------------- numbers that are not finite
class BadEnd(Walk):
    """Its observation after the last action is nothing that may matter."""

    end = 0.0

    def step(self, action):
        obs, *rest = super().step(action)
        return (np.full(4, self.end, dtype=np.float32) if rest[1] or rest[2] else obs), *rest


@pytest.mark.parametrize("script", ALL)
def test_what_is_in_padding_does_not_reach_the_weights(script, tmp_path, register):
    """Bit for bit the weights of the same environment with another last observation."""
    ends = (0.0, math.nan, math.inf, -3e38)
    found = [weights(train(script, tmp_path / str(i), register(lambda e=e: BadEnd(end=e)))) for i, e in enumerate(ends)]
    assert all(x == found[0] for x in found)
    (first,) = (tmp_path / "0").glob("*/checkpoints/000000/policy.safetensors")
    began = {name: x.numpy().tobytes() for name, x in load_file(first).items()}
    assert began != found[0], "nothing was learnt: the test says nothing"


class PaysAfterwards(OutcomeVectorEnv):
    """A user's vector environment whose finished episodes go on to change and to pay."""

    def step(self, actions):
        obs, reward, terminated, *rest = super().step(actions)
        before, self.before = getattr(self, "before", np.zeros_like(terminated)), terminated
        self.before = terminated & ~terminated.all()
        obs = obs + np.random.default_rng(0).normal(size=obs.shape) * before[:, None]
        return obs, np.where(before, [5.0, math.nan, -1.0, math.inf], reward), terminated, *rest


def test_padding_is_zero():
    envs = PaysAfterwards(lambda: OutcomeReward(Walk(), success, 6), 4)
    episodes = rollout(envs, make_policy(envs), np.random.default_rng(1))
    assert not episodes.mask.all()
    for x in (episodes.obs, episodes.actions, episodes.logp, episodes.reward):
        assert (x[~episodes.mask] == 0).all()
        assert torch.isfinite(x).all()
    assert torch.equal(episodes.reward.sum(dim=1), episodes.outcome)


class Odd(Walk):
    """Something is wrong in step 3, where environments get so far."""

    what, value, at = "observation", math.nan, 3

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        if self.steps == self.at:
            if self.what == "observation":
                obs = obs.astype(np.float64)
                obs[1] = self.value
            else:
                reward = self.value
        return obs, reward, False, self.steps == 6, info


@pytest.mark.parametrize("script", ALL)
@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("observation", math.nan, r"strange/\S+: observation 1 of environment 0 is nan after step 3$"),
        ("observation", -math.inf, r"observation 1 of environment 0 is -inf after step 3$"),
        (
            "observation",
            1e300,
            r"observation 1 of environment 0 is 1e\+300 after step 3, which is more than float32 holds",
        ),
        ("reward", math.nan, r"environment 0: the reward of <.*> is nan in step 3"),
        ("reward", np.float32(math.inf), r"environment 0: the reward of <.*> is inf in step 3"),
    ],
)
def test_a_real_number_that_is_not_finite_is_named_by_every_script(script, what, value, message, tmp_path, register):
    env_id = register(lambda: Odd(what=what, value=value))
    with pytest.raises(ValueError, match=message):
        train(script, tmp_path, env_id)


def test_numbers_that_are_not_finite_are_named_in_worker_processes_and_vector_environments():
    envs = ProcessVectorEnv(lambda: OutcomeReward(Odd(what="reward"), lambda o, i: True, 6), 3, workers=2)
    envs.reset(seed=0)
    envs.step(np.zeros(3, dtype=int))
    envs.step(np.zeros(3, dtype=int))
    with pytest.raises(BadStep, match=r"^environment 0: the reward of .* is nan in step 3"):
        envs.step(np.zeros(3, dtype=int))
    envs.close()
    envs = OutcomeVectorReward(Vector(3, lambda i: Odd(what="reward", at=2 + i)), lambda o, i: o[:, 0] > 0, 6)
    envs.reset(seed=0)
    envs.step(np.zeros(3, dtype=int))
    with pytest.raises(BadStep, match=r"^environment 0: the reward of .* is nan in step 2"):
        envs.step(np.zeros(3, dtype=int))


def test_an_output_of_the_policy_that_is_not_finite_is_named(register):
    for env_id in (register(Walk), "Pendulum-v1"):
        envs = make_task(env_id, 2, 1.0)
        policy = make_policy(envs)
        with torch.no_grad():
            policy.flat[-1] = math.nan
        with pytest.raises(ValueError, match=f"{env_id}: the policy's output for environment 0 is .*nan.* in step 1"):
            rollout(envs, policy, np.random.default_rng(0))


# --------------------------------------------------------------------------------------- what environments report
EVEN = {
    "a": 1, "b": 2.5, "flag": True, "zero": np.array(3), "small": np.float32(0.5), "big": 2**70, "late": 10.0,
    "text": "x", "array": np.zeros(2), "nested": {"r": 1.0, "l": 3}, "none": None, "list": [1, 2],
}  # fmt: skip
ODD = {
    "a": 2.5,
    "b": math.nan,
    "flag": np.bool_(False),
    "zero": 4.5,
    "small": 1,
    "big": 0,
    "text": 7,
    "array": np.zeros(3),
}
KEPT = {
    "a": [1, 2.5], "b": [2.5, math.nan], "flag": [True, False], "zero": [3, 4.5], "small": [0.5, 1], "big": [2.0**70, 0],
    "late": [10.0, math.nan], "text": [math.nan, 7],
}  # fmt: skip
"""What is kept of EVEN and ODD."""


class Reports(Walk):
    """Reports EVEN in episodes of even seeds, ODD in others; something else before the last step."""

    def reset(self, *, seed=None, options=None):
        self.even = seed % 2 == 0
        obs, _ = super().reset(seed=seed)
        return obs, {"begun": np.zeros(2 if self.even else 3), "episode": {"n": 1}}

    def told(self, over):
        if not (over or self.steps == 6):
            return {"a": "not yet", "step": np.zeros(self.steps)}
        return EVEN if self.even else ODD


class Vector(VectorEnv):
    """A user's batched simulator: copies that are stepped on after their end, infos as object arrays with masks."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs, make, form="object"):
        self.copies, self.num_envs, self.form = [make(i) for i in range(num_envs)], num_envs, form
        self.single_observation_space, self.single_action_space = Walk.observation_space, Walk.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        seeds = seed if isinstance(seed, list) else [seed + i for i in range(self.num_envs)]
        return np.stack([c.reset(seed=s)[0] for c, s in zip(self.copies, seeds, strict=True)]), {}

    def step(self, actions):
        obs, reward, over, late, infos = zip(
            *[c.step(a) for c, a in zip(self.copies, actions, strict=True)], strict=True
        )
        info = {}
        for name in {name for i in infos for name in i}:
            column = np.empty(self.num_envs, dtype=object)
            column[:] = [i.get(name) for i in infos]
            info[name] = column.tolist() if self.form == "list" else column
            info[f"_{name}"] = np.array([name in i for i in infos])
        return np.stack(obs), np.array(reward), np.array(over), np.array(late), info


class Lockstep(LockstepVectorEnv):
    """A user's subclass that reports the same."""

    def __init__(self, num_envs):
        super().__init__(num_envs, 6, False, Walk.observation_space, Walk.action_space)
        self.inner = Vector(num_envs, lambda i: Reports())

    def _begin(self, seed, options):
        return self.inner.reset(seed=seed)[0]

    def _advance(self, actions):
        obs, self.reward, over, late, self.info = self.inner.step(actions)
        return obs, over | late

    def _judge(self):
        return {"success": self.reward > 0, **columns(self.info, self.num_envs)}


def success(obs, info):
    return info["last_reward"] > 0


ENGINES = {
    "sync": lambda: OutcomeVectorEnv(lambda: OutcomeReward(Reports(), success, 6), 6),
    "processes": lambda: ProcessVectorEnv(lambda: OutcomeReward(Reports(), success, 6), 6, workers=2),
    "vector, objects": lambda: OutcomeVectorReward(Vector(6, lambda i: Reports()), success, 6),
    "vector, lists": lambda: OutcomeVectorReward(Vector(6, lambda i: Reports(), "list"), success, 6),
    "lockstep": lambda: Lockstep(6),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_and_booleans_are_reported_exactly_and_nothing_else_in_every_engine(engine):
    """Whichever episode ends first; absent is NaN and not 0."""
    envs = ENGINES[engine]()
    policy, rng = make_policy(envs), np.random.default_rng(3)
    ends = set()
    for _ in range(4):
        seed = int(np.random.default_rng(rng.bit_generator.state["state"]["state"] % 2**32).integers(2))
        episodes = rollout(envs, policy, rng)
        ends.add(tuple(episodes.lengths.tolist()))
        del seed
        even = [x == 0 for x in (~(np.asarray(episodes.info["flag"], dtype=bool))).tolist()]
        assert set(episodes.info) - {"success", "episode_return", "episode_length"} == set(KEPT)
        for name, (if_even, if_odd) in KEPT.items():
            expected = [if_even if e else if_odd for e in even]
            assert np.array_equal(
                np.asarray(episodes.info[name], dtype=float), np.array(expected, dtype=float), equal_nan=True
            ), name
        assert episodes.info["flag"].dtype == np.bool_
        assert sorted(even) == [False] * 3 + [True] * 3, "seeds of a batch are neighbours"
    assert len(ends) > 1
    envs.close()


def test_forms_of_an_info():
    info = {
        "a": np.float32(1.5),
        "b": np.uint8(3),
        "c": np.array(2),
        "d": np.array([2]),
        "e": {"x": 1},
        "f": 10**400,
        "_g": 1,
        5: 1,
    }
    assert scalars(info) == {"a": 1.5, "b": 3, "c": 2}
    found = stacked([{"x": 1}, None, {"x": True, "y": 2**62 + 1}])
    assert (found["x"].tolist(), found["x"].dtype, found["_x"].tolist()) == ([1, 0, 1], np.int64, [True, False, True])
    assert found["y"].tolist() == [0, 0, 2**62 + 1]
    info = {
        "a": np.array([1, 2], np.int8),
        "b": np.zeros((2, 2)),
        "c": ["x", 1.5],
        "d": 3.0,
        "e": np.array([1.0, 2.0]),
        "_e": np.array([True, False]),
    }
    found = columns(info, 2)
    assert found["a"].dtype == np.int64
    assert {k: v.tolist() for k, v in found.items()} == {
        "a": [1, 2], "c": [0, 1.5], "_c": [False, True], "e": [1, 2], "_e": [True, False],
    }  # fmt: skip


def test_measures_say_what_is_logged_in_every_engine():
    """With `measures`, the environment's own entries are left out; without, they are the measures."""

    def measures(obs, info):
        return {"place": obs[..., 0], "text": "no"}

    for make in (
        lambda m: OutcomeVectorEnv(lambda: OutcomeReward(Reports(), success, 6, m), 2),
        lambda m: OutcomeVectorReward(Vector(2, lambda i: Reports()), success, 6, m),
    ):
        for m, expected in ((measures, {"place"}), (None, set(KEPT))):
            envs = make(m)
            episodes = rollout(envs, make_policy(envs), np.random.default_rng(0))
            assert set(episodes.info) - {"success", "episode_return", "episode_length"} == expected


class Goal(Walk):
    """Tells the time only at the goal; nan and text now and then; one entry always."""

    def told(self, over):
        at_goal = {"seconds_to_goal": 10.0} if over and self.place == 2 else {}
        return {"odd": math.nan, "always": 3, **at_goal}


def test_a_mean_is_over_the_episodes_that_report_it_everywhere(tmp_path, register, monkeypatch, capsys):
    """The batch's scalars, Evaluation, summary.json, and evaluate.py's table and JSON."""
    env_id = register(Goal)
    run = train("sppo", tmp_path, env_id, eval_episodes=64, num_envs=16, learning_rate=1e-4)
    printed = capsys.readouterr().out
    summary = json.loads((run.folder / "summary.json").read_text())
    for moment in ("before", "after"):
        block = summary[moment]
        assert block["measures"] == {"always": 3.0, "seconds_to_goal": 10.0}
        assert block.get("reported", {"seconds_to_goal": 64}) == {"seconds_to_goal": round(block["rate"] * 64)}
    assert 0 < summary["before"]["rate"] < 1
    if "reported" in summary["after"]:
        assert f"(mean of the {summary['after']['reported']['seconds_to_goal']} that report it)" in printed
    events = EventAccumulator(str(run.folder)).Reload()
    rate = [round(16 * e.value) for e in events.Scalars("charts/success_rate")]
    assert [e.value for e in events.Scalars("measures/seconds_to_goal")] == [10.0] * len(rate)
    assert [e.value for e in events.Scalars("measures/seconds_to_goal_reported")] == [r for r in rate if r < 16]
    assert "measures/odd" not in events.Tags()["scalars"]
    status, out, _ = main(
        monkeypatch, capsys, evaluate_script, "--run", run.folder, "--episodes", 64, "--json", tmp_path / "e.json"
    )
    assert status == 0
    (found,) = json.loads((tmp_path / "e.json").read_text())["evaluations"]
    won = found["successes"]
    assert found["measures"]["seconds_to_goal"]["all"] == {
        "mean": 10.0, "percentile_5": 10.0, "median": 10.0, "percentile_95": 10.0, "reported": won,
    }  # fmt: skip
    assert set(found["measures"]["seconds_to_goal"]) == {"all", "successes"}
    assert re.search(rf"^seconds_to_goal +{won} all +10 ", out, flags=re.M)
    assert "odd" not in found["measures"] or not found["measures"]["odd"]


def test_batches_that_report_different_entries_are_joined():
    first = {"success": np.array([True, False]), "x": np.array([1, 2]), "flag": np.array([True, False])}
    second = {"success": np.array([True]), "y": np.array([5.0])}
    found = outcomes.joined([first, second])
    assert found["success"].tolist() == [True, False, True]
    assert outcomes.side_measures(found)["x"].tolist() == [1, 2]
    assert outcomes.side_measures(found)["y"].tolist() == [5]
    assert outcomes.reported_by(found) == {"x": 2, "y": 1, "flag": 2}
    result = outcomes.Evaluation(found["success"], found).as_dict()
    assert result["measures"] == {"flag": 0.5, "x": 1.5, "y": 5.0}


# ------------------------------------------------------------------------------ state that lasts longer than an episode
class Counts(Walk):
    """Tells how many episodes there have been."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed)

    def seen(self):
        return super().seen() + np.float32(self.episodes)


class Harder(Walk):
    """A curriculum: each finished episode makes rewards smaller."""

    ended = 0

    def step(self, action):
        obs, reward, over, late, info = super().step(action)
        self.ended += over or late
        return obs, 0.1 + reward - 0.01 * self.ended, over, late, info


class OwnGenerator(Walk):
    """Has a generator that no seed reaches, but begins equally in each copy."""

    def __init__(self):
        self.own = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.noise = float(self.own.normal())
        return self.seen(), {}


LASTING = {
    "NormalizeObservation": lambda: gym.wrappers.NormalizeObservation(Walk()),
    "NormalizeReward": lambda: gym.wrappers.NormalizeReward(Walk()),
    "counter": Counts,
    "curriculum": Harder,
    "generator": OwnGenerator,
}


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_longer_than_an_episode_is_refused_before_training(name, tmp_path, register, monkeypatch, capsys):
    env_id = register(LASTING[name])
    words = ("--env-id", env_id, "--success-return", 1, "--runs-dir", tmp_path)
    status, _, error = main(monkeypatch, capsys, sppo_cartpole, *words)
    assert status == 2
    assert re.fullmatch(rf"error: {env_id}: it keeps something from one episode to the next, .*\n", error), error
    assert "Task.obs_scale" in error
    assert ("wrapper " + name in error) == name.startswith("Normalize")
    assert not list(tmp_path.iterdir())


def test_a_new_environment_for_each_episode_keeps_nothing(register):
    """The way out that the refusal names, also for Gymnasium's BipedalWalker."""
    first_look(register(lambda: NewEachEpisode(Counts)), 1.0)
    pytest.importorskip("Box2D", reason="Box2D is not installed: extra box2d")
    with pytest.raises(ValueError, match=r"BipedalWalker-v3: it keeps something .*sppo_envs\.NewEachEpisode"):
        first_look("BipedalWalker-v3", 0.0)
    first_look(register(lambda: NewEachEpisode(lambda: gym.make("BipedalWalker-v3"))), 0.0)


def test_frozen_statistics_and_fixed_factors_are_no_state(register):
    def frozen():
        env = gym.wrappers.NormalizeObservation(Walk())
        env.update_running_mean = False
        return env

    def fixed():
        return gym.wrappers.TransformObservation(Walk(), lambda obs: obs / 2, None)

    class Caches(gym.Wrapper):
        """Arrays have a mean and a variance too."""

        def __init__(self):
            super().__init__(Walk())
            self.cached = np.zeros(3)

    for make in (frozen, fixed, Walk, lambda: Caches(), lambda: gym.wrappers.RecordEpisodeStatistics(Walk())):
        first_look(register(make), 1.0)
        assert (
            check_task(register(make), success_return=1.0)["nothing is kept from one episode to the next"].verdict
            == "holds"
        )


# --------------------------------------------------------------------------------------------------- seeds ignored
class Unseeded(Walk):
    source, when = "numpy", "reset"

    def draw(self):
        return {"numpy": np.random.uniform, "random": random.random, "own": np.random.default_rng().uniform}[
            self.source
        ]()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.when == "reset":
            self.noise = self.draw()
        return self.seen(), {}

    def step(self, action):
        if self.when == "step":
            self.noise = self.draw()
        return super().step(action)


@pytest.mark.parametrize(
    ("source", "when"), [("numpy", "reset"), ("random", "reset"), ("own", "reset"), ("numpy", "step")]
)
def test_ignored_seeds_are_said_once_and_refused_where_contexts_are_shared(source, when, tmp_path, register, capsys):
    env_id = register(lambda: Unseeded(source=source, when=when))
    for script in ("sppo", "ppo"):
        train(script, tmp_path / script, env_id)
        error = capsys.readouterr().err
        assert error.count(f"note: {env_id}: seeds do not decide its episodes") == 1, error
        assert "self.np_random" in error
    train("rloo", tmp_path / "reinforce", env_id, group_size=1)
    for script in ("grpo", "rloo", "remax"):
        with pytest.raises(
            ValueError, match=f"{env_id}: seeds do not decide its episodes.*compares episodes that share"
        ):
            train(script, tmp_path / script, env_id)
        assert not (tmp_path / script).exists()


def test_a_group_that_does_not_share_its_context_is_refused_by_the_rollout():
    """Also where nobody has looked first."""
    envs = OutcomeVectorEnv(lambda: OutcomeReward(Unseeded(), success, 6), 4)
    policy = make_policy(envs)
    rollout(envs, policy, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"environments 0 and 1 of .* were reset with one seed and began in different"):
        rollout(envs, policy, np.random.default_rng(0), group_size=2)


def test_a_look_leaves_no_trace_in_random_numbers(register):
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    first_look(register(Unseeded), 1.0)
    after = np.random.uniform(), random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    assert after == (np.random.uniform(), random.random())  # noqa: NPY002


# ------------------------------------------------------------------------------------------- sums against a threshold
class Pays(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def __init__(self, rewards):
        self.rewards = rewards

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = list(self.rewards)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.left.pop(0), not self.left, False, {}


@pytest.mark.parametrize(
    ("rewards", "threshold", "expected"),
    [
        ([0.1] * 10, 1.0, True),
        ([-0.1] * 3, -0.3, True),  # -0.30000000000000004
        ([np.float32(0.7)] * 10, 7.0, True),
        ([np.array([0.1])] * 10, 1.0, True),  # of shape (1,)
        ([-1] * 200, -200.0, True),
        ([-1] * 201, -200.0, False),
        ([1] * 9, 10.0, False),
        ([0.1, 0.2, -0.3], 0.0, True),
        ([-0.1, -0.2, 0.3], 0.0, True),
        ([0.1] * 9 + [0.0999], 1.0, False),
        ([1e-9], 1e-8, False),
        ([1.0] * 500, 500.0, True),
        ([1.0] * 499, 500.0, False),
    ],
)
@pytest.mark.parametrize("engine", ["sync", "vector"])
def test_a_sum_of_rewards_reaches_a_threshold_as_decimals_do(rewards, threshold, expected, engine, register):
    env_id = register(lambda: Pays(rewards), max_episode_steps=1000)
    if engine == "sync":
        envs = make_task(env_id, 1, threshold)
    else:

        class Batch(Vector):
            def step(self, actions):
                obs, reward, *rest = super().step(actions)
                return obs, np.reshape(reward, -1), *rest

        envs = OutcomeVectorReward(Batch(1, lambda i: Pays(rewards)), sppo_envs._reaches(threshold), 1000)
    envs.reset(seed=0)
    for _ in rewards:
        info = envs.step(np.zeros(1, dtype=int))[-1]
    assert info["success"].tolist() == [expected]
    assert info["episode_return"][0] == pytest.approx(float(np.sum(rewards)), abs=1e-6)


# -------------------------------------------------------------------------------- limits, truncation, old interfaces
def cut(obs, info):
    return np.asarray(info["truncated"]) & ~np.asarray(info["terminated"])


def one_cut(obs, info):
    return bool(info["truncated"] and not info["terminated"])


class Numpys(Walk):
    """Ends with numpy's booleans, arrays among them; rewards of shape (1,)."""

    def step(self, action):
        obs, reward, over, late, info = super().step(action)
        return obs, np.array([reward]), np.bool_(over), np.array([late and not over]), info


STACKS = {
    "sync": lambda make: OutcomeVectorEnv(lambda: OutcomeReward(gym.wrappers.TimeLimit(make(), 5), one_cut), 4),
    "wrapped": lambda make: OutcomeVectorEnv(
        lambda: gym.wrappers.TimeLimit(OutcomeReward(gym.wrappers.TimeLimit(make(), 5), one_cut), 9), 4
    ),
    "processes": lambda make: ProcessVectorEnv(
        lambda: gym.wrappers.TransformReward(OutcomeReward(gym.wrappers.TimeLimit(make(), 5), one_cut), float),
        4,
        workers=2,
    ),
    **{
        f"vector, {mode.value}": lambda make, mode=mode: OutcomeVectorReward(
            gym.vector.SyncVectorEnv([lambda: gym.wrappers.TimeLimit(make(), 5)] * 4, autoreset_mode=mode), cut
        )
        for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)
    },
    "vector, a user's": lambda make: OutcomeVectorReward(
        Vector(4, lambda i: gym.wrappers.TimeLimit(make(), 5)), cut, horizon=5
    ),
}


@pytest.mark.parametrize("make", [Walk, Numpys])
def test_limits_and_truncation_mean_the_same_in_all_engines(make):
    """Pairwise: horizon, observations, rewards, ends and infos, over batches with ends at different steps."""
    stacks = {name: f(make) for name, f in STACKS.items() if make is Walk or not name.startswith("vector")}
    assert {name: envs.horizon for name, envs in stacks.items()} == dict.fromkeys(stacks, 5)
    rng, lengths, outcomes_seen = np.random.default_rng(0), set(), set()
    for batch in range(6):
        seeds, actions = [batch, 7, batch, 9], rng.integers(0, 2, (7, 4))
        played = {}
        for name, envs in stacks.items():
            steps = [envs.reset(seed=seeds)[0]]
            steps += [envs.step(a) for a in actions]
            played[name] = steps
        for name, steps in played.items():
            for a, b in zip(played["sync"][1:], steps[1:], strict=True):
                for x, y in zip(a[:4], b[:4], strict=True):
                    assert np.array_equal(x, y), name
            info, expected = steps[-1][4], played["sync"][-1][4]
            for key in ("success", "episode_return", "episode_length"):
                assert np.array_equal(info[key], expected[key]), (name, key)
        lengths |= set(expected["episode_length"].tolist())
        outcomes_seen |= set(expected["success"].tolist())
    assert lengths == {2, 4, 5}
    assert outcomes_seen == {False, True}
    for envs in stacks.values():
        envs.close()


def test_a_disabled_async_vector_environment_goes_on():
    envs = OutcomeVectorReward(
        gym.vector.AsyncVectorEnv([lambda: gym.wrappers.TimeLimit(Walk(), 5)] * 2, autoreset_mode=AutoresetMode.DISABLED),
        cut, horizon=5,
    )  # fmt: skip
    envs.reset(seed=0)
    for action in ([1, 1], [1, 0], [0, 1], [0, 0], [0, 0]):
        _, _, terminated, _, info = envs.step(np.array(action))
    assert terminated.all()
    assert info["episode_length"].tolist() == [2, 5]
    assert (info["episode_return"].tolist(), info["success"].tolist()) == ([1, 0], [False, True])
    envs.close()


class FailsInStep(Walk):
    def step(self, action):
        raise ZeroDivisionError("the simulator blew up")


def test_a_worker_of_gymnasiums_that_dies_or_fails_is_reported_and_close_does_not_wait():
    """AsyncVectorEnv itself would wait for its answer for ever."""
    envs = OutcomeVectorReward(gym.vector.AsyncVectorEnv([Walk, Walk]), cut, horizon=5)
    envs.reset(seed=0)
    os.kill(envs.envs.processes[1].pid, signal.SIGKILL)
    envs.envs.processes[1].join()
    with pytest.raises(RuntimeError, match=r"a worker process of AsyncVectorEnv\(num_envs=2\) died; SyncVectorEnv"):
        envs.step(np.array([0, 0]))
    envs.close()
    assert not any(process.is_alive() for process in envs.envs.processes)

    envs = OutcomeVectorReward(gym.vector.AsyncVectorEnv([FailsInStep, Walk]), cut, horizon=5)
    envs.reset(seed=0)
    with (
        pytest.warns(UserWarning, match=r"Traceback(.|\n)*in step\n"),  # Gymnasium prints its traceback as a warning
        pytest.raises(ZeroDivisionError, match="the simulator blew up"),
    ):
        envs.step(np.array([0, 0]))
    envs.close()
    assert not any(process.is_alive() for process in envs.envs.processes)


class OldStep(Walk):
    def step(self, action):
        obs, reward, over, late, info = super().step(action)
        return obs, reward, over or late, info


class OldReset(Walk):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class NoSeed(Walk):
    def reset(self):
        return super().reset()[0]


class TwoRewards(Walk):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward, 1.0]), *rest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            OldStep,
            r"step\(\) must return \(observation, reward, terminated, truncated, info\), got a tuple of 4.*0\.26",
        ),
        (OldReset, r"reset\(\) must return \(observation, info\), got an array of shape \(4,\).*0\.26"),
        (NoSeed, r"reset\(\) takes no seed, as in Gym before 0\.26"),
        (TwoRewards, r"must be one number, got an array of shape \(2,\) in step 1; gymnasium.wrappers.TransformReward"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_old_and_odd_interfaces_are_refused_in_one_line(
    make, message, wrapped, register, tmp_path, monkeypatch, capsys
):
    env_id = register(make) if wrapped else register(make, disable_env_checker=True, order_enforce=False)
    words = ("--env-id", env_id, "--success-return", 1, "--runs-dir", tmp_path)
    status, _, error = main(monkeypatch, capsys, sppo_cartpole, *words)
    assert status == 2
    lines = [line for line in error.splitlines() if "WARN" not in line]
    assert len(lines) == 1, error
    assert re.search(message, lines[0]), error
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- spaces
class Aim(gym.Env):
    """One step: a number or more are shown, and the action should be as far up in its bounds as the number in [-1, 1]."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space, wanted, observation_space=None, seen=lambda x: x):
        self.action_space, self.wanted, self.show = action_space, wanted, seen
        self.observation_space = observation_space or Aim.observation_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.show(self.x), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return self.show(self.x), float(self.wanted(self.x[0], action)), True, False, {}


def box(low, high, shape=(1,), dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


def above(middle):
    """Whether the action is on the side of the middle where x is."""
    return lambda x, action: bool(np.all((np.asarray(action) > middle) == (x > 0)))


LEARNABLE = {
    "far": Aim(box(100, 200), above(150)),
    "far below": Aim(box(-3000, -1000, dtype=np.float64), above(-2000)),
    "unit": Aim(box(0, 1), above(0.5)),
    "tiny": Aim(box(-0.01, 0.01), above(0)),
    "asymmetric": Aim(spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 500.0]), dtype=np.float64), above([0.0, 250.0])),
    "unbounded": Aim(box(-np.inf, np.inf), above(0)),
    "float32's bounds": Aim(box(-3.4e38, 3.4e38), above(0)),
    "half-bounded": Aim(box(0, np.inf), above(0.5)),
    "shape ()": Aim(box(-1, 1, ()), above(0)),
    "shape (2, 2)": Aim(box(10, 20, (2, 2)), above(15)),
    "as now": Aim(box(-2, 2), above(0)),
    "Discrete from 1": Aim(spaces.Discrete(2, start=1), above(1.5)),
    "Discrete from -5": Aim(spaces.Discrete(3, start=-5), lambda x, a: a == (-3 if x > 0 else -5)),
    "float64 seen": Aim(box(-1, 1), above(0), box(-1, 1, (1,), np.float64), lambda x: x.astype(np.float64)),
    "bytes seen": Aim(
        box(-1, 1), above(0), box(0, 255, (2,), np.uint8), lambda x: np.repeat(128 + 100 * x, 2).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("name", LEARNABLE)
def test_these_spaces_are_learnt(name, tmp_path, register):
    env_id = register(lambda: copy.copy(LEARNABLE[name]))
    size = {"shape (2, 2)": 3, "bytes seen": 2}.get(name, 1)
    run = train(
        "rloo", tmp_path, env_id, total_timesteps=3000 * size, num_envs=64, group_size=1, eval_episodes=128,
        learning_rate=2e-2, num_minibatches=1,
    )  # fmt: skip
    summary = json.loads((run.folder / "summary.json").read_text())
    before, after = summary["before"]["rate"], summary["after"]["rate"]
    assert before < 0.75
    assert after > min(0.9, before + 0.35), (before, after)


REFUSED = {
    "integer box": (
        box(0, 5, dtype=np.int64),
        None,
        "actions must be Discrete or a Box of floats, got Box.*TransformAction",
    ),
    "MultiDiscrete": (
        spaces.MultiDiscrete([2, 3]),
        None,
        r"got MultiDiscrete\(\[2 3\]\); gymnasium.wrappers.TransformAction",
    ),
    "MultiBinary": (spaces.MultiBinary(3), None, r"got MultiBinary\(3\)"),
    "half-bounded, far": (
        box(100, np.inf),
        None,
        "action 0 has one bound only, and 0 is outside: 100 to inf.*both bounds",
    ),
    "half-bounded, below": (box(-np.inf, -1), None, "action 0 has one bound only, and 0 is outside: -inf to -1"),
    "no actions": (box(0, 1, (0,)), None, "actions must be"),
    "Dict seen": (box(-1, 1), spaces.Dict(a=box(0, 1)), "observations must be a Box of shape .*FlattenObservation"),
    "Tuple seen": (box(-1, 1), spaces.Tuple([box(0, 1)]), "observations must be a Box"),
    "Discrete seen": (box(-1, 1), spaces.Discrete(16), r"got Discrete\(16\); gymnasium.wrappers.FlattenObservation"),
    "image": (box(-1, 1), box(0, 255, (8, 8, 3), np.uint8), "observations must be a Box of shape"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("script", ALL)
def test_these_spaces_are_refused_by_name_before_training(name, script, tmp_path, register):
    actions, observations, message = REFUSED[name]
    env_id = register(lambda: Aim(actions, above(0), observations))
    with pytest.raises(ValueError, match=message):
        train(script, tmp_path, env_id)
    assert not list(tmp_path.iterdir())
    assert unsupported(observations or box(-1, 1), actions)


def test_one_object_for_several_episodes_is_refused(register):
    shared = Walk()
    for make in (
        lambda: OutcomeReward(shared, success, 6),
        lambda: OutcomeReward(gym.wrappers.TimeLimit(shared, 6), success),
    ):
        with pytest.raises(ValueError, match="is one object for several episodes"):
            OutcomeVectorEnv(make, 2)
    with pytest.raises(ValueError, match="make must make a new one"):
        make_task(register(lambda: shared), 2, 1.0)


def test_flattened_observations_of_any_kind_are_learnt(tmp_path, register):
    def make():
        env = Aim(spaces.Discrete(2), lambda x, a: a == (x > 0), spaces.Dict(a=spaces.Discrete(2), b=box(-1, 1)))
        env.show = lambda x: {"a": int(x[0] > 0), "b": x}
        return gym.wrappers.FlattenObservation(env)

    run = train("grpo", tmp_path, register(make), total_timesteps=3000, num_envs=64, group_size=8, eval_episodes=128)
    assert json.loads((run.folder / "summary.json").read_text())["after"]["rate"] > 0.9


@pytest.mark.parametrize(
    "space", [box(-1, 1, (3,)), box(-2, 2), box(-0.5, 4), spaces.Box(np.array([-1.0, -3.0]), np.array([2.0, 1.0]))]
)
def test_actions_of_near_bounds_are_clipped_as_ever(space):
    samples = np.random.default_rng(0).normal(0, 3, (50, *space.shape)).astype(np.float32)
    found = to_environment(space)(samples)
    assert found.tobytes() == np.clip(samples, space.low, space.high).tobytes()
    assert np.array_equal(to_samples(space, samples), samples)


def test_scaled_actions_reach_both_bounds_and_come_back():
    for space in (box(100, 200), box(-0.01, 0.01), box(0, 1e5, (2, 2)), spaces.Discrete(4, start=3)):
        act = to_environment(space)
        if isinstance(space, spaces.Discrete):
            assert act(np.array([0, 3])).tolist() == [3, 6]
            assert to_samples(space, np.array([3, 6])).tolist() == [0, 3]
            continue
        size = int(np.prod(space.shape))
        for sample, wanted in ((-1, space.low), (1, space.high), (7, space.high), (-7, space.low)):
            (found,) = act(np.full((1, size), sample, dtype=np.float32))
            assert np.array_equal(found, wanted)
            assert found.dtype == space.dtype
        samples = np.random.default_rng(0).uniform(-1, 1, (9, size)).astype(np.float32)
        assert np.allclose(to_samples(space, act(samples)), samples, atol=1e-5)
    assert observation_scale(box(0, 255, (2,), np.uint8)) == [1 / 255] * 2
    assert observation_scale(box(0, 255, (2,), np.float32)) is None
    assert observation_scale(spaces.Box(-(2**60), 2**60, (1,), np.int64)) == [1.0]


def test_given_demonstrations_are_in_the_environments_own_actions(tmp_path, register):
    """They are cloned as what a policy would have sampled."""
    for name, actions, expected in (
        ("far", [[100.0], [150.0], [200.0]], [[-1], [0], [1]]),
        ("as now", [[-2.0], [0.5], [1.0]], [[-2], [0.5], [1]]),
        ("Discrete from 1", [1, 2, 2], [0, 1, 1]),
    ):
        envs = make_task(register(lambda name=name: copy.copy(LEARNABLE[name])), 1, 1.0)
        np.savez(tmp_path / "d.npz", observations=np.zeros((3, 1), np.float32), actions=np.array(actions))
        assert read_demonstrations(str(tmp_path / "d.npz"), envs)[1].tolist() == expected
    np.savez(tmp_path / "d.npz", observations=np.zeros((1, 1), np.float32), actions=np.array([0]))
    with pytest.raises(UserError, match="must be 1 to 2, but row 0 is 0"):
        read_demonstrations(str(tmp_path / "d.npz"), envs)


# --------------------------------------------------------------------------------------------------- long horizons
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_noise_in_pieces_is_the_noise_drawn_at_once(env_id):
    envs = make_task(env_id, 3, 1.0)
    policy = make_policy(envs)
    for horizon in (1, 200, NOISE_STEPS, NOISE_STEPS + 1, 2 * NOISE_STEPS + 5):
        whole, pieces = np.random.default_rng(1), np.random.default_rng(1)
        expected = policy.noise(whole, horizon, 3)
        found = np.stack(list(noise_of_steps(policy, pieces, horizon, 3)))
        assert found.tobytes() == expected.tobytes()
        assert whole.random() == pieces.random(), "what is drawn afterwards is the same too"


def test_up_to_a_limit_what_is_drawn_later_does_not_depend_on_the_lengths(register):
    """So that evaluations of existing tasks have the numbers they had: the generator's state after a rollout."""
    envs = make_task(register(Walk), 4, 1.0)
    policy, rng, plain = make_policy(envs), np.random.default_rng(2), np.random.default_rng(2)
    rollout(envs, policy, rng)
    plain.integers(2**31 - 4)
    policy.noise(plain, 6, 4)
    assert rng.random() == plain.random()


def test_a_long_horizon_costs_what_the_longest_episode_costs(register):
    env_id = register(Walk, max_episode_steps=None)
    seconds = []
    for horizon in (1000, 10**14):
        envs = make_task(env_id, 16, 1.0, horizon)
        policy, start = make_policy(envs), time.perf_counter()
        result = evaluate(envs, policy, 64, np.random.default_rng(0))
        seconds.append(time.perf_counter() - start)
        assert len(result.outcome) == 64
    assert seconds[1] < 0.2 + 6 * seconds[0]


# ------------------------------------------------------------------------------------------------ nothing to learn
def test_all_failures_and_all_successes_are_said_before_training_and_once_later(tmp_path, register, capsys):
    class Same(Walk):
        reward = 0.0

        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, self.reward, *rest

    for reward, said in (
        (0.0, "no episode of 8 succeeded: nothing can be learnt from binary outcomes; lower the thresh"),
        (9.0, "all 8 episodes succeeded"),
    ):
        env_id = register(lambda r=reward: Same(reward=r))
        train("sppo", tmp_path, env_id, total_timesteps=64 * 5 * 24, num_envs=64)
        error = capsys.readouterr().err
        assert error.count(f"note: {said}") == 1, error
        assert len(re.findall(r"note: (no episode of|all) 1,280 ", error)) == 1, error
    train("sppo", tmp_path, register(Walk), eval_episodes=64)
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("rloo", ["--group-size", 1, "--num-envs", 1, "--num-minibatches", 1], "--num-envs must be at least 2"),
        ("rloo", ["--group-size", 5], "--group-size must divide --num-envs, got 5 for 64"),
        ("grpo", ["--group-size", 128], "--group-size must divide --num-envs, got 128 for 64"),
        ("grpo", ["--group-size", 1], "--group-size must be at least 2"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused_before_anything_runs(
    script, words, message, tmp_path, monkeypatch, capsys
):
    status, _, error = main(monkeypatch, capsys, ALL[script], *words, "--runs-dir", tmp_path)
    assert (status, not list(tmp_path.iterdir())) == (2, True)
    assert message in error


# ------------------------------------------------------------------------------------------------------ check_task
def test_a_good_environment_holds_in_all_engines(register, capsys):
    for engine in ("auto", "processes"):
        report = check_task(register(Walk), engine, success_return=1.0)
        assert report.holds
        assert {c.verdict for c in report.checks} == {"holds"}
        assert capsys.readouterr().out.strip() == str(report)
    assert check_task(lambda: OutcomeReward(Walk(), success, 6)).holds
    assert check_task(Walk, success_return=1.0, horizon=6)["all engines agree"].verdict == "holds"
    assert check_task("sppo/ContextCartPole-v0").holds


class Outside(Walk):
    def seen(self):
        return np.full(5, 1.0, dtype=np.float32)


class Fails(Walk):
    def step(self, action):
        raise ZeroDivisionError("the simulator blew up")


@pytest.mark.parametrize(
    ("make", "name", "verdict", "case"),
    [
        (Counts, "nothing is kept from one episode to the next", "fails", r"seed 0 .*: observation 0 after reset\(\) is 1"),
        (Harder, "nothing is kept from one episode to the next", "fails", "return after step"),
        (Unseeded, "seeds decide episodes", "fails", r"two copies with seed 0 .*: observation 2 after reset\(\)"),
        (lambda: Unseeded(when="step"), "seeds decide episodes", "fails", "observation 2 after step 1"),
        (Unseeded, "the same seed gives the same context", "fails", "environments 0 and 1, reset with seed 0, begin diff"),
        (Odd, "observations fit their space and are finite", "fails", "observation 1 is nan"),
        (Outside, "observations fit their space and are finite", "fails", r"shape is \(5,\), the space says \(4,\)"),
        (lambda: Odd(what="reward"), "every episode runs to its end", "fails", "the reward of .* is nan in step 3"),
        (Fails, "every episode runs to its end", "fails", r"ZeroDivisionError: the simulator blew up \(.*strang.*line"),
        (OldStep, "every episode runs to its end", "fails", "a tuple of 4"),
        (Goal, "every episode reports the same measures", "note", r"^seconds_to_goal by \d of 8$"),
        (lambda: Aim(box(-1, 1), lambda x, a: False), "both outcomes occur", "note", r"all 8 .* failed.* to 0\.32 "),
        (lambda: Aim(box(-np.inf, np.inf), above(0)), "actions have bounds", "note", "size 1 around 0"),
        (lambda: Aim(spaces.MultiBinary(2), above(0)), "spaces fit a policy", "fails", "MultiBinary"),
        (lambda: Odd(value=400.0), "observations are of moderate size", "note", "observation 1 reached 400"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_each_check_finds_what_it_is_for(make, name, verdict, case, register):
    report = check_task(register(make, disable_env_checker=True), success_return=1.0)
    assert report[name].verdict == verdict, str(report)
    assert re.search(case, report[name].case), report[name].case
    assert report.holds == (verdict == "note")
    if not report.holds:
        with pytest.raises(ValueError, match=re.escape(name)):
            check_task(register(make, disable_env_checker=True), success_return=1.0, raise_on_failure=True)


@pytest.mark.parametrize("script", ALL)
def test_the_flag_check_checks_and_exits(script, tmp_path, register, monkeypatch, capsys):
    for make, status in ((Walk, 0), (Counts, 1)):
        words = ("--env-id", register(make), "--success-return", 1, "--check", "--runs-dir", tmp_path)
        found, out, _ = main(monkeypatch, capsys, ALL[script], *words)
        assert found == status
        assert ("0 fail" in out) == (status == 0)
    assert not list(tmp_path.iterdir())


def test_worker_processes_do_not_run_the_users_script_again(tmp_path):
    """A script without `if __name__ == "__main__":` would start itself for ever."""
    import os
    import subprocess

    script = tmp_path / "mine.py"
    script.write_text(
        "print('began')\nimport sppo_envs\n"
        "envs = sppo_envs.make_task('CartPole-v1', 2, 5.0, engine='processes')\n"
        "print(envs.reset(seed=0)[0].shape)\nenvs.close()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.split("\n") == ["began", "(2, 4)", ""], done.stderr


def test_policies_of_strangers_play_in_evaluate(tmp_path, register, monkeypatch, capsys):
    """Scaled actions and counted ones reach the environment there as in training."""
    for name in ("far", "Discrete from 1", "shape (2, 2)"):
        env_id = register(lambda name=name: copy.copy(LEARNABLE[name]))
        save_policy(make_policy(make_task(env_id, 1, 1.0)), tmp_path / "p.safetensors", env_id)
        words = ("--run", tmp_path / "p.safetensors", "--success-return", 1, "--episodes", 32)
        status, out, error = main(monkeypatch, capsys, evaluate_script, *words)
        assert status == 0, error
        assert "of 32 sampled episodes" in out
