"""The tasks: Gymnasium's own checks, batched against scalar trajectories bit for bit, outcomes, refusals."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import sppo_envs

ID = "sppo/PrecisionCartPole-v0"


def test_passes_gymnasiums_check():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(maximum|minimum) value is (-)?infinity.*")
        check_env(gym.make(ID).unwrapped, skip_render_check=True)
    assert gym.make(ID).spec.id == ID


def test_make_vec_gives_the_batched_one_without_autoreset():
    envs = gym.make_vec(ID, num_envs=3)
    assert type(envs).__name__ == "PrecisionCartPoleVectorEnv"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    obs, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(obs)
    assert obs.dtype == np.float32


def balance(obs):
    """A controller that usually survives, so that some episodes last to the horizon."""
    return ((obs[..., 2] + 0.3 * obs[..., 3] + 0.02 * obs[..., 0] + 0.05 * obs[..., 1]) > 0).astype(np.int64)


@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_trajectories_equal_the_scalar_environments_bit_for_bit(spread):
    """Random and balancing actions, 64 episodes, every observation, reward, end and info."""
    rng = np.random.default_rng(0)
    envs, scalars = gym.make_vec(ID, num_envs=64), [gym.make(ID) for _ in range(64)]
    start = rng.uniform(-spread, spread, (64, 4))
    obs, _ = envs.reset(options={"state": start})
    for env, state in zip(scalars, start, strict=True):
        env.reset(seed=0)
        env.unwrapped.state = state
    done, ends, steps = np.zeros(64, dtype=bool), [], 0
    noisy = np.arange(64) % 2 == 0
    while not done.all():
        actions = np.where(noisy & (rng.random(64) < 0.3), rng.integers(0, 2, 64), balance(obs))
        before = obs
        obs, reward, terminated, truncated, info = envs.step(actions)
        assert not truncated.any()
        for i in np.flatnonzero(done):  # finished episodes stand still
            assert np.array_equal(obs[i], before[i])
            assert reward[i] == 0
            assert terminated[i]
        for i in np.flatnonzero(~done):
            o, r, term, trunc, scalar_info = scalars[i].step(int(actions[i]))
            assert o.tobytes() == obs[i].tobytes()
            assert (r, term, trunc) == (reward[i], terminated[i], False)
            steps += 1
            if term:
                assert scalar_info == {"success": info["success"][i], "final_angle": info["final_angle"][i]}
                assert info["_success"][i]
                ends.append((scalars[i].unwrapped._steps, r))
        done = done | terminated
    assert steps > 3000
    lengths, rewards = zip(*ends, strict=True)
    assert min(lengths) < 200 <= max(lengths), "both falls and full episodes must have been compared"
    assert {0.0, 1.0} == set(rewards)


def test_dynamics_are_gymnasiums_cartpole():
    reference, env = CartPoleEnv(), gym.make(ID).unwrapped
    reference.reset(seed=5)
    obs, _ = env.reset(seed=5)
    rng = np.random.default_rng(1)
    for _ in range(20):
        action = int(rng.integers(2))
        expected, _, fell, _, _ = reference.step(action)
        obs, _, terminated, _, _ = env.step(action)
        assert np.array_equal(obs, expected)
        assert terminated == fell
        if fell:
            break


@pytest.mark.parametrize(
    ("angle", "position", "expected"),
    [
        (math.radians(0.49), 0.0, True),
        (math.radians(-0.49), 0.0, True),
        (math.radians(0.51), 0.0, False),
        (math.radians(-0.51), 0.0, False),
        (0.0, 2.41, False),  # upright, but off the track at the last step
        (math.radians(12.1), 0.0, False),
    ],
)
def test_success_is_judged_at_the_last_step(angle, position, expected):
    """horizon = 1, no velocity: the state after the step is the one before it."""
    state = np.array([[position, 0.0, angle, 0.0]])
    envs = gym.make_vec(ID, num_envs=1, horizon=1)
    envs.reset(options={"state": state})
    _, reward, terminated, _, info = envs.step(np.array([0]))
    assert terminated[0]
    assert bool(info["success"][0]) is expected
    assert reward[0] == float(expected)
    env = gym.make(ID, horizon=1)
    env.reset(seed=0)
    env.unwrapped.state = state[0]
    assert env.step(0)[4]["success"] is expected


def test_same_seed_same_start_and_other_seed_another():
    envs = gym.make_vec(ID, num_envs=4)
    a, b, c = (envs.reset(seed=s)[0] for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.abs(a).max() <= 0.05
    wide, _ = envs.reset(seed=1, options={"low": -0.2, "high": 0.2})
    assert np.abs(wide).max() > 0.05


def test_dense_reward_prefers_upright_and_dislikes_falls():
    envs = gym.make_vec(ID, num_envs=4, dense=True)
    envs.reset(options={"state": np.array([[0, 0, 0, 0], [0, 0, 0.03, 0], [0, 0, 0.1, 0], [0, 0, 0.3, 0]])})
    reward = envs.step(np.zeros(4, dtype=int))[1]
    assert reward == pytest.approx([1.0, 0.46, 0.1, -5.0])
    assert envs.step(np.zeros(4, dtype=int))[1][3] == 0.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gym.make_vec(ID, num_envs=0), ValueError, "num_envs must be at least 1, got 0"),
        (lambda: gym.make_vec(ID, num_envs=2, horizon=0), ValueError, "horizon must be at least 1 step, got 0"),
        (lambda: gym.make_vec(ID, num_envs=2).step(np.zeros(2, dtype=int)), RuntimeError, "call reset"),
        (lambda: reset(2).step(np.array([0, 2])), ValueError, r"2 whole numbers, each 0 or 1, got \[0 2\]"),
        (lambda: reset(2).step(np.array([0, -1])), ValueError, "each 0 or 1"),
        (lambda: reset(2).step(np.array([0])), ValueError, "each 0 or 1"),
        (lambda: reset(2).reset(options={"state": np.zeros((3, 4))}), ValueError, r"shape \(2, 4\), got \(3, 4\)"),
        (lambda: sppo_envs.make_task(ID, 2, success_return=1.0), ValueError, "has a success rule of its own"),
        (lambda: sppo_envs.make_task("CartPole-v1", 2), ValueError, "pass --success-return"),
        (lambda: sppo_envs.make_task("CartPole-v9", 2, 1.0), ValueError, "did you mean CartPole-v1"),
        (lambda: sppo_envs.make_task("sppo/PrecisionCartpole", 2), ValueError, f"did you mean {ID}"),
        (lambda: sppo_envs.make_task("CartPole-v1", 2, 1.0, horizon=0), ValueError, "horizon must be at least 1"),
        (lambda: sppo_envs.make_task("nomodule:Thing-v0", 2, 1.0), ValueError, "cannot make nomodule:Thing-v0"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def reset(n):
    envs = gym.make_vec(ID, num_envs=n)
    envs.reset(seed=0)
    return envs


# ------------------------------------------------------------------------------------- any environment as a task
class Counting(gym.Env):
    """Counts its steps; reward 1 each; ends after `length` steps, or never."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length=10**9):
        self.length, self.steps = length, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, dtype=np.float32), 1.0, self.steps >= self.length, False, {"n": self.steps}


def test_outcome_reward_is_sparse_and_leaves_a_finished_episode_alone():
    env = sppo_envs.OutcomeReward(Counting(length=3), lambda obs, info: info["episode_return"] >= 3, horizon=10)
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(5)]
    assert [s[1] for s in steps] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert [s[2] for s in steps] == [False, False, True, True, True]
    assert not any(s[3] for s in steps)
    assert steps[4][4] == {"n": 3, "episode_return": 3.0, "episode_length": 3, "success": True}
    assert env.env.steps == 3, "the environment must not have been stepped beyond its end"
    env.reset()
    assert env.step(0)[2] is False


def test_outcome_reward_ends_at_the_horizon_and_judges_there():
    env = sppo_envs.OutcomeReward(Counting(), lambda obs, info: bool(obs[0] == 4 and not info["terminated"]), horizon=4)
    env.reset()
    assert [env.step(0)[1:3] for _ in range(4)] == [(0.0, False)] * 3 + [(1.0, True)]


def test_outcome_reward_refusals():
    with pytest.raises(ValueError, match="pass a horizon"):
        sppo_envs.OutcomeReward(Counting(), lambda obs, info: True)
    with pytest.raises(ValueError, match="at least 1, got -3"):
        sppo_envs.OutcomeReward(Counting(), lambda obs, info: True, horizon=-3)
    env = sppo_envs.OutcomeReward(Counting(), lambda obs, info: 0.7, horizon=1)
    env.reset()
    with pytest.raises(TypeError, match=r"must return a bool, got 0\.7 of float"):
        env.step(0)


def test_a_foreign_environment_in_lockstep():
    envs = sppo_envs.make_task("CartPole-v1", 8, success_return=20.0, horizon=60)
    assert envs.horizon == 60
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    done, total = np.zeros(8, dtype=bool), np.zeros(8)
    while not done.all():
        _, reward, terminated, _, info = envs.step(rng.integers(0, 2, 8))
        total += reward
        done = terminated
    assert np.array_equal(total, (info["episode_return"] >= 20).astype(float))
    assert np.array_equal(info["success"], info["episode_return"] >= 20)
    assert 0 < total.sum() < 8, "both outcomes must occur for this to say anything"
