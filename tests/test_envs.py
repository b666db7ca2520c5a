"""The tasks: Gymnasium's contract, batched against scalar trajectories, success rules at their boundaries, seeds,
any environment as a task, refusals. What runs them (EnvPool, worker processes) has tests of its own in test_engines.py."""

import functools
import importlib.util
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import sppo_envs
from sppo_envs import (
    OutcomeReward,
    OutcomeVectorEnv,
    OutcomeVectorReward,
    hopper,
    lunar_lander,
    mountain_car,
    pendulum,
    precision_cartpole,
)

CARTPOLE, CONTEXT_CARTPOLE = "sppo/PrecisionCartPole-v0", "sppo/ContextCartPole-v0"
PENDULUM, CONTEXT_PENDULUM = "sppo/SparsePendulum-v0", "sppo/ContextPendulum-v0"
CAR, LANDER, HOPPER = "sppo/SparseMountainCar-v0", "sppo/SparseLunarLander-v0", "sppo/SparseHopper-v0"
STOP, BALANCE, FAR = "sppo/StopMountainCar-v0", "sppo/BalancePendulum-v0", "sppo/FarHopper-v0"
NUMPY = (CARTPOLE, CONTEXT_CARTPOLE, CAR, STOP, PENDULUM, BALANCE, CONTEXT_PENDULUM)
ALL = sppo_envs.TASKS + sppo_envs.HARDER


def installed(*modules):
    return all(importlib.util.find_spec(m) is not None for m in modules)


GYMNASIUM_RUNS = {LANDER: installed("Box2D"), HOPPER: installed("mujoco", "imageio")}
GYMNASIUM_RUNS[FAR] = GYMNASIUM_RUNS[HOPPER]
SCALAR = [  # ids that gym.make can make here
    pytest.param(
        i, marks=pytest.mark.skipif(not GYMNASIUM_RUNS.get(i, True), reason="needs Box2D, or mujoco and imageio")
    )
    for i in ALL
]
BATCHED = [
    pytest.param(
        i, marks=pytest.mark.skipif(not (GYMNASIUM_RUNS.get(i, True) or installed("envpool")), reason="needs an engine")
    )
    for i in ALL
]


# ------------------------------------------------------------------------------------------------- controllers
def balance_pole(obs):
    """Usually survives, so that some episodes last to the horizon."""
    return ((obs[..., 2] + 0.3 * obs[..., 3] + 0.02 * obs[..., 0] + 0.05 * obs[..., 1]) > 0).astype(np.int64)


def hold_pendulum(obs):
    """Torque (B, 1) that gives a pendulum the energy it has at the top, and holds it there."""
    cos, sin, omega = obs[:, 0], obs[:, 1], obs[:, 2]
    lacking = 15 * (1 - cos) - omega**2 / 2
    swing = np.where(lacking > 0, 2, -2) * np.where(omega >= 0, 1, -1)
    return np.where(cos > 0.9, -(10 * np.arctan2(sin, cos) + 2 * omega), swing)[:, None].astype(np.float32)


def pump_car(obs):
    """Full force (B, 1) along the velocity: at the flag after about 100 steps."""
    return np.where(obs[:, 1] >= 0, 1.0, -1.0)[:, None].astype(np.float32)


def stop_car(obs):
    """Force (B, 1) that brings the car to the flag slowly: it brakes where it is faster than it need be."""
    x, v = obs.T
    fast = v > 0.003 + np.sqrt(0.003 * np.maximum(0.45 - x, 0))
    return np.where(fast, -1.0, np.where(v >= 0, 1.0, -1.0))[:, None].astype(np.float32)


def land(obs):
    """Gymnasium's hand-written controller for LunarLander, (B,)."""
    x, y, vx, vy, angle, spin = obs[:, :6].T
    legs = obs[:, 6:].any(axis=1)
    turn = (np.clip(0.5 * x + vx, -0.4, 0.4) - angle) * 0.5 - spin
    lift = (0.55 * np.abs(x) - y) * 0.5 - vy * 0.5
    turn, lift = np.where(legs, 0.0, turn), np.where(legs, -0.5 * vy, lift)
    up = (lift > np.abs(turn)) & (lift > 0.05)
    return np.where(up, 2, np.where(turn < -0.05, 3, np.where(turn > 0.05, 1, 0)))


CONTROL = {CARTPOLE: balance_pole, CONTEXT_CARTPOLE: balance_pole, CAR: pump_car, LANDER: land}
CONTROL |= {PENDULUM: hold_pendulum, BALANCE: hold_pendulum, CONTEXT_PENDULUM: hold_pendulum, STOP: stop_car}


def random_actions(space, n, rng):
    """n actions; of a Box, also some beyond its bounds."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, n)
    return rng.uniform(1.3 * space.low, 1.3 * space.high, (n, *space.shape)).astype(space.dtype)


def mixed(env_id, obs, rng):
    """Even rows try to succeed, odd ones do anything."""
    anything = random_actions(sppo_envs_space(env_id), len(obs), rng)
    if env_id in (HOPPER, FAR):
        return anything * np.where(np.arange(len(obs)) % 2, 1.0, 0.2).astype(np.float32)[:, None]
    even = (np.arange(len(obs)) % 2 == 0).reshape(-1, *[1] * (anything.ndim - 1))
    return np.where(even, CONTROL[env_id](obs), anything)


@functools.cache
def sppo_envs_space(env_id):
    return gym.make_vec(env_id, num_envs=1).single_action_space


# ---------------------------------------------------------------------------------------- Gymnasium's contract
@pytest.mark.parametrize("env_id", SCALAR)
def test_passes_gymnasiums_check(env_id):
    """Of the task itself, a wrapper: `unwrapped` would be Gymnasium's own environment. Warnings count as failures, but
    for that it is a wrapper and for the spaces that are Gymnasium's."""
    env = gym.make(env_id)
    assert env.spec.id == env_id
    while not isinstance(env, OutcomeReward):
        env = env.env
    short = OutcomeReward(env.env, lambda obs, info: True, horizon=1)
    with warnings.catch_warnings():  # not before: the first import of Box2D dies of an error here
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(maximum|minimum) value is (-)?infinity.*")
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space.*")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        check_env(env, skip_render_check=True)
        check_env(short, skip_render_check=True)


SHAPES = {  # horizon, observation, its dtype, action space
    CARTPOLE: (200, 4, np.float32, spaces.Discrete(2)),
    CONTEXT_CARTPOLE: (precision_cartpole.HORIZON, 4, np.float32, spaces.Discrete(2)),
    CAR: (1000, 2, np.float32, spaces.Box(-1, 1, (1,), np.float32)),
    PENDULUM: (1000, 3, np.float32, spaces.Box(-2, 2, (1,), np.float32)),
    CONTEXT_PENDULUM: (pendulum.CONTEXT_HORIZON, 3, np.float32, spaces.Box(-2, 2, (1,), np.float32)),
    LANDER: (1000, 8, np.float32, spaces.Discrete(4)),
    HOPPER: (1000, 11, np.float64, spaces.Box(-1, 1, (3,), np.float32)),
}
SHAPES |= {STOP: SHAPES[CAR], BALANCE: SHAPES[PENDULUM], FAR: SHAPES[HOPPER]}
MEASURES = {
    CARTPOLE: {"final_angle"},
    CONTEXT_CARTPOLE: {"final_angle"},
    CAR: {"final_position"},
    PENDULUM: {"balanced", "upright_share"},
    CONTEXT_PENDULUM: {"balanced", "upright_share"},
    LANDER: {"crashed", "landed", "final_x"},
    HOPPER: {"fell", "distance"},
}
MEASURES |= {STOP: {"final_position", "final_velocity"}, BALANCE: MEASURES[PENDULUM], FAR: MEASURES[HOPPER]}


@pytest.mark.parametrize("env_id", BATCHED)
def test_make_vec_keeps_the_contract_of_whole_episodes(env_id, monkeypatch):
    """Autoreset off; reward 0 until an episode's last step and then its outcome; terminated, never truncated; finished
    episodes stand still; info says which entries are valid; nothing that was returned changes later. Successes and
    failures both occur."""
    horizon, size, dtype, action_space = SHAPES[env_id]
    envs = gym.make_vec(env_id, num_envs=8)
    assert envs.unwrapped.horizon == horizon
    if env_id in (
        HOPPER,
        FAR,
    ):  # nobody here can walk a metre, so: not to fall within 20 steps and be ahead of the start
        monkeypatch.setattr(hopper, "MIN_DISTANCE" if env_id == HOPPER else "FAR_DISTANCE", 0.0)
        envs = gym.make_vec(env_id, num_envs=8, horizon=20, engine="auto" if installed("envpool") else "sync")
        horizon = 20
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert envs.single_observation_space.shape == (size,)
    assert envs.observation_space.shape == (8, size)
    assert envs.observation_space.dtype == dtype
    assert envs.single_action_space == action_space
    assert envs.action_space.shape == (8, *action_space.shape)

    rng = np.random.default_rng(0)
    obs, info = envs.reset(seed=0)
    assert "success" not in info
    assert obs.dtype == dtype
    done, outcome, last = np.zeros(8, dtype=bool), np.full(8, -1.0), None
    lengths, returned = np.zeros(8, dtype=int), [(obs, obs.copy())]
    for step in range(1, horizon + 3):
        before = obs.copy()
        obs, reward, terminated, truncated, info = envs.step(mixed(env_id, obs, rng))
        returned += [(array, array.copy()) for array in (obs, reward, terminated, *info.values())]
        assert envs.observation_space.contains(obs)
        assert obs.dtype == dtype
        assert not truncated.any()
        assert terminated[done].all(), "an ended episode stays ended"
        assert np.array_equal(obs[done], before[done])
        assert not reward[~terminated | done].any(), "paid before the last step, or after it"
        ended = terminated & ~done
        lengths[ended] = step
        if not terminated.any():
            assert "success" not in info
        else:
            assert set(info) >= {"success", *MEASURES[env_id]}
            assert np.array_equal(info["_success"], terminated)
            assert info["success"].dtype == bool
            outcome[ended] = reward[ended]
            assert np.array_equal(outcome[terminated], info["success"][terminated].astype(float))
            if last is not None:  # what was known of the finished stays
                for name in ("success", *MEASURES[env_id]):
                    assert np.array_equal(info[name][done], last[name][done]), name
            last = {name: info[name].copy() for name in ("success", *MEASURES[env_id])}
        done = done | terminated
        if done.all() and step > lengths.max() + 1:
            break
    assert done.all()
    assert lengths.max() <= horizon
    assert set(outcome) == {0.0, 1.0}, "both outcomes must occur for this to say anything"
    assert all(np.array_equal(array, copy) for array, copy in returned), "what was returned has changed since"
    envs.close()


# --------------------------------------------------------------- batched numpy against Gymnasium's environments
RAW = {CARTPOLE: CartPoleEnv, CONTEXT_CARTPOLE: CartPoleEnv, CAR: Continuous_MountainCarEnv}
RAW |= {PENDULUM: PendulumEnv, CONTEXT_PENDULUM: PendulumEnv, BALANCE: PendulumEnv, STOP: Continuous_MountainCarEnv}


@pytest.mark.parametrize("env_id", NUMPY)
def test_one_environment_moves_as_gymnasiums_own(env_id):
    """Nothing but initial states, rewards and ends differ from Gymnasium's class; what follows compares with this."""
    rng, ends = np.random.default_rng(1), 0
    env, raw = gym.make(env_id, horizon=150), RAW[env_id]()
    for episode in range(4):
        obs, _ = env.reset(seed=episode)
        expected, _ = raw.reset(seed=episode)
        if env_id in (CONTEXT_CARTPOLE, CONTEXT_PENDULUM):
            assert not np.array_equal(obs, expected)
            raw.state = np.array(env.unwrapped.state)
        else:
            assert np.array_equal(obs, expected), "initial states of one seed are Gymnasium's"
        for step in range(1, 151):
            if env_id in (CAR, STOP) and episode % 2:
                action = pump_car(obs[None])[0]
            else:
                action = random_actions(raw.action_space, 1, rng)[0]
            expected, _, over, _, _ = raw.step(action)
            obs, _, terminated, _, _ = env.step(action)
            assert obs.tobytes() == expected.tobytes()
            assert terminated == (over or step == 150)
            if terminated:
                ends += over
                break
    assert ends == {CARTPOLE: 4, CONTEXT_CARTPOLE: 4, CAR: 2, STOP: 2}.get(env_id, 0)


def side_by_side(env_id, start, act, tolerance=0.0):
    """B batched and B scalar episodes from equal states by equal actions, act(observations, step) -> (B, ...).

    Rewards, ends and outcomes must be equal, observations and side measures within `tolerance`. Returns the lengths of
    the episodes, the outcomes, the largest difference seen, and the batched observations (steps, B, D).
    """
    n = len(start)
    envs, scalars = gym.make_vec(env_id, num_envs=n), [gym.make(env_id) for _ in range(n)]
    obs, _ = envs.reset(options={"state": start})
    for env, state in zip(scalars, start, strict=True):
        env.reset(seed=0)
        env.unwrapped.state = np.array(state)
    done, lengths, outcomes, largest, seen = np.zeros(n, dtype=bool), np.zeros(n, dtype=int), np.full(n, -1.0), 0.0, []
    while not done.all():
        actions = act(obs, len(seen))
        obs, reward, terminated, _, info = envs.step(actions)
        seen.append(obs)
        for i in np.flatnonzero(~done):
            o, r, term, trunc, scalar = scalars[i].step(actions[i])
            assert o.dtype == obs.dtype
            largest = max(largest, float(np.abs(o - obs[i]).max()))
            assert largest <= tolerance, (i, len(seen))
            assert (r, term, trunc) == (reward[i], terminated[i], False), (i, len(seen))
            if term:
                lengths[i], outcomes[i] = len(seen), r
                assert scalar["episode_length"] == len(seen)
                assert scalar["success"] == info["success"][i] == (r == 1)
                assert info["_success"][i]
                assert {k for k in info if k[0] != "_"} == {"success"} | MEASURES[env_id]
                for name in MEASURES[env_id]:
                    assert type(scalar[name]) in (bool, float)
                    assert scalar[name] == pytest.approx(info[name][i], abs=tolerance, rel=0)
        done = terminated
    return lengths, outcomes, largest, np.array(seen)


@pytest.mark.parametrize(
    ("env_id", "spread"),
    [(CARTPOLE, 0.05), (CARTPOLE, 0.2), (CONTEXT_CARTPOLE, np.array(precision_cartpole.CONTEXT_SPREAD))],
)
def test_cartpole_equals_gymnasiums_bit_for_bit(env_id, spread):
    """Random and balancing actions, 64 episodes, every observation, reward, end and info."""
    rng = np.random.default_rng(0)
    noisy = np.arange(64) % 2 == 0

    def act(obs, step):
        return np.where(noisy & (rng.random(64) < 0.3), rng.integers(0, 2, 64), balance_pole(obs))

    lengths, outcomes, _, _ = side_by_side(env_id, rng.uniform(-spread, spread, (64, 4)), act)
    assert lengths.sum() > 3000
    assert lengths.min() < 200 <= lengths.max(), "both falls and full episodes must have been compared"
    assert set(outcomes) == {0.0, 1.0}


def test_mountain_car_equals_gymnasiums_within_float32_rounding():
    """Measured: 1.0e-5 at most over 1000 steps (Gymnasium rounds to float32 between the
    operations, the batch once a step); 1e-4 is what is promised. Both walls, the flag and the horizon are reached."""
    rng, n = np.random.default_rng(0), 24
    start = np.stack([rng.uniform(-0.6, -0.4, n), np.zeros(n)], axis=1)
    start[-1], start[-2], start[-3] = (0.58, 0.07), (0.5, -0.05), (-1.2, -0.07)
    kind = np.arange(n) % 4

    def act(obs, step):
        pump, anything = pump_car(obs)[:, 0], rng.uniform(-1.5, 1.5, n)
        shy = np.where(obs[:, 0] > 0.1, -1.0, pump)  # turns back before the flag, into the left wall
        rough = np.where(rng.random(n) < 0.3, anything, pump)
        return np.select([kind == 0, kind == 1, kind == 2], [pump, anything, shy], rough)[:, None].astype(np.float32)

    start[2::4, 0] = -0.9  # of the shy ones, for whom the wall matters
    lengths, outcomes, largest, obs = side_by_side(CAR, start, act, tolerance=1e-4)
    assert largest > 0, "not bit for bit, or the tolerance and the docstring above can go"
    assert obs[:, :, 0].min() == np.float32(-1.2)
    assert obs[:, :, 0].max() == np.float32(0.6)
    assert (obs[:, :, 1].max(), obs[:, :, 1].min()) == (np.float32(0.07), np.float32(-0.07))
    assert (lengths == 1000).sum() >= 6
    assert set(outcomes) == {0.0, 1.0}


def test_stop_mountain_car_equals_gymnasiums_within_float32_rounding():
    """Half of the cars brake before the flag, and half do not: all arrive, but only the slow ones succeed."""
    start = np.stack([np.linspace(-0.6, -0.4, 8), np.zeros(8)], axis=1)

    def act(obs, step):
        return np.where(np.arange(8)[:, None] % 2, stop_car(obs), pump_car(obs))

    lengths, outcomes, _, obs = side_by_side(STOP, start, act, tolerance=1e-4)
    assert lengths.max() < 1000
    assert outcomes.tolist() == [0, 1] * 4
    assert (obs[-1][::2, 1] > 2 * mountain_car.STOP_SPEED).all()


PENDULUM_START = np.random.default_rng(1).uniform((-np.pi, -1), (np.pi, 1), (24, 2))
PENDULUM_START[1::4] *= 0.1  # near the top


def pendulum_act(rng):
    """Of each four pendulums: swung up and held, the same with noise, random torque, and full torque one way."""

    def act(obs, step):
        hold, kind = hold_pendulum(obs), np.arange(len(obs))[:, None] % 4
        noisy, anything = hold + rng.normal(0, 1, hold.shape), rng.uniform(-3, 3, hold.shape)
        return np.select([kind == 0, kind == 1, kind == 2], [hold, noisy, anything], 2).astype(np.float32)

    return act


@pytest.mark.parametrize("env_id", [PENDULUM, BALANCE, CONTEXT_PENDULUM])
def test_pendulum_equals_gymnasiums_bit_for_bit(env_id):
    """Measured over 1000 steps: no difference at all, and none is allowed: the test below shows that a tolerance, 1e-4
    say, would be met with equal bits or not at all."""
    _, outcomes, largest, obs = side_by_side(env_id, PENDULUM_START, pendulum_act(np.random.default_rng(2)))
    assert largest == 0
    assert 4 < (obs[-60:, :, 0] > 0.8).all(axis=0).sum() < 20, "some must stand, and some not"
    assert np.abs(obs[:, :, 2]).max() > 7.9, "fast enough for the speed limit of 8 to matter"
    assert set(outcomes) == {0.0, 1.0}


def test_the_pendulum_is_chaotic_so_that_equal_bits_are_what_to_ask_for():
    """The last bit of the starts changed, the same actions: held up at the top by torques that follow another pendulum,
    all episodes come apart; under random torque, some pass 1e-4 and some do not."""
    a, b = (gym.make_vec(PENDULUM, num_envs=24) for _ in range(2))
    obs, _ = a.reset(options={"state": PENDULUM_START})
    b.reset(options={"state": np.nextafter(PENDULUM_START, np.inf)})
    act, largest = pendulum_act(np.random.default_rng(2)), np.zeros(24)
    for step in range(1000):
        actions = act(obs, step)
        obs = a.step(actions)[0]
        largest = np.maximum(largest, np.abs(obs - b.step(actions)[0]).max(axis=1))
    assert (largest[:2] > 1).all()
    assert 0 < (largest > 1e-4).sum() < 24


# ---------------------------------------------------------------------------- success, judged at the boundary
@pytest.mark.parametrize(
    ("env_id", "angle", "position", "expected"),
    [
        (CARTPOLE, math.radians(0.49), 0.0, True),
        (CARTPOLE, math.radians(-0.49), 0.0, True),
        (CARTPOLE, math.radians(0.51), 0.0, False),
        (CARTPOLE, math.radians(-0.51), 0.0, False),
        (CARTPOLE, 0.0, 2.39, True),
        (CARTPOLE, 0.0, 2.41, False),  # upright, but off the track at the last step
        (CARTPOLE, math.radians(12.1), 0.0, False),
        (CONTEXT_CARTPOLE, 0.999 * precision_cartpole.CONTEXT_MAX_FINAL_ANGLE, 0.0, True),
        (CONTEXT_CARTPOLE, -0.999 * precision_cartpole.CONTEXT_MAX_FINAL_ANGLE, 0.0, True),
        (CONTEXT_CARTPOLE, 1.001 * precision_cartpole.CONTEXT_MAX_FINAL_ANGLE, 0.0, False),
        (CONTEXT_CARTPOLE, -1.001 * precision_cartpole.CONTEXT_MAX_FINAL_ANGLE, 0.0, False),
        (CONTEXT_CARTPOLE, 0.0, -2.41, False),
    ],
)
def test_cartpole_is_judged_at_the_last_step(env_id, angle, position, expected):
    """horizon = 1, no velocity: the state after the step is the one before it."""
    judge_one_step(env_id, (position, 0.0, angle, 0.0), 0, expected, final_angle=angle)


def judge_one_step(env_id, state, action, expected, **measures):
    """One step of an episode of one step, batched and scalar."""
    envs = gym.make_vec(env_id, num_envs=1, horizon=1)
    envs.reset(options={"state": np.array([state])})
    _, reward, terminated, _, info = envs.step(np.array([action]))
    assert terminated[0]
    assert (bool(info["success"][0]), reward[0]) == (expected, float(expected))
    env = gym.make(env_id, horizon=1)
    env.reset(seed=0)
    env.unwrapped.state = np.array(state)
    _, reward, terminated, _, scalar = env.step(action)
    assert terminated
    assert (scalar["success"], reward) == (expected, float(expected))
    for name, value in measures.items():
        assert info[name][0] == pytest.approx(value)
        assert scalar[name] == pytest.approx(value)


def test_mountain_car_succeeds_from_x_of_the_flag_on_in_float32_and_not_while_rolling_back():
    """A cloud of states that one step brings to the flag, 0.45 in float32 (below 0.45 in float64), to within the last
    bit on both sides, rolling up and rolling back."""
    flag = np.float32(0.45)
    below = np.nextafter(flag, np.float32(0))
    assert float(flag) < 0.45
    at = flag + np.arange(-20, 21) * (flag - below)
    speed = np.array([1e-5, -1e-5])
    x, v = (a.ravel() for a in np.meshgrid(at, speed))
    x = (x - v).astype(np.float32)
    v = (v + 0.0025 * np.cos(3.0 * x)).astype(np.float32)  # the slope takes this away
    start = np.stack([x, v], axis=1)
    envs = gym.make_vec(CAR, num_envs=len(start), horizon=2)
    envs.reset(options={"state": start})
    obs, reward, terminated, _, info = envs.step(np.zeros((len(start), 1), dtype=np.float32))
    for x, up in ((flag, True), (flag, False), (below, True), (below, False)):
        hit = (obs[:, 0] == x) & ((obs[:, 1] >= 0) == up)
        assert hit.any(), "the cloud must contain what this is about"
        assert (terminated[hit] == (x == flag and up)).all()
        assert (reward[hit] == float(x == flag and up)).all()
    assert np.array_equal(terminated, (obs[:, 0] >= flag) & (obs[:, 1] >= 0))
    assert info["success"][terminated].all()
    for state, expected, end in zip(start, obs, terminated, strict=True):  # Gymnasium's own flag
        raw = Continuous_MountainCarEnv()
        raw.reset(seed=0)
        raw.state = state
        o, _, over, _, _ = raw.step(np.zeros(1, dtype=np.float32))
        if np.array_equal(o, expected):
            assert over == end


@pytest.mark.parametrize(("v", "expected"), [(0.0, True), (-1e-9, False), (1e-9, True)])
def test_mountain_car_may_stand_still_at_the_flag(v, expected):
    x = 0.5
    envs = gym.make_vec(CAR, num_envs=1, horizon=1)
    envs.reset(options={"state": [[x, v + 0.0025 * np.cos(3 * x)]]})
    obs, reward, _, _, info = envs.step(np.zeros((1, 1), dtype=np.float32))
    assert obs[0, 1] == pytest.approx(v, abs=1e-12)
    assert (reward[0], bool(info["success"][0])) == (float(expected), expected)
    assert info["final_position"][0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("velocity", "expected"), [(1e-5, True), (0.0079, True), (0.0081, False), (0.03, False), (-1e-4, False)]
)
def test_stop_mountain_car_must_be_slow_at_the_flag(velocity, expected):
    """Beyond the flag after one step, with the velocity that the slope leaves."""
    x = 0.47
    state = (x, velocity + 0.0025 * math.cos(3 * x))
    judge_one_step(STOP, state, np.zeros(1, np.float32), expected, final_velocity=pytest.approx(velocity, abs=1e-7))


def test_stop_mountain_car_does_not_succeed_by_being_slow_elsewhere():
    judge_one_step(STOP, (-0.5, 0.0), np.zeros(1, np.float32), False)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("beyond", "expected"), [(-1e-6, True), (1e-6, False)])
@pytest.mark.parametrize("turns", [0, 3])
@pytest.mark.parametrize("env_id", [PENDULUM, CONTEXT_PENDULUM])
def test_pendulum_must_end_with_cos_above_0_8(env_id, beyond, expected, side, turns):
    """The start's velocity is what gravity takes away in one step, so that the pendulum stays where it is."""
    angle = side * (math.acos(0.8) + beyond) + 2 * math.pi * turns
    state = (angle, -15 * math.sin(angle) * 0.05)
    action = np.zeros(1, dtype=np.float32)
    judge_one_step(env_id, state, action, expected, balanced=expected, upright_share=float(expected))


def pendulum_episodes(env_id, start, act, **kwargs):
    """Observations (T, B, 3), and the last reward and info."""
    envs = gym.make_vec(env_id, num_envs=len(start), **kwargs)
    obs, _ = envs.reset(options={"state": start})
    seen = []
    for step in range(envs.unwrapped.horizon):
        obs, reward, _, _, info = envs.step(act(obs, step))
        seen.append(obs)
    return np.array(seen), reward, info


def test_spinning_is_told_from_balancing():
    """Both end upright and succeed in Sparse Pendulum; `balanced` and `upright_share` tell them apart."""
    n = 41
    start = np.stack([np.linspace(-3, 3, n), np.full(n, 8.0)], axis=1)
    start[0] = 0.0  # stands still: nothing pushes it

    def act(obs, step):
        return np.where(np.arange(n) == 0, 0.0, 2.0)[:, None].astype(np.float32)

    obs, reward, info = pendulum_episodes(PENDULUM, start, act, horizon=150)
    success = info["success"]
    assert 5 < success[1:].sum() < n - 1, "some spin through the top at the last step, some elsewhere"
    assert np.array_equal(reward, success.astype(float))
    assert success[0]
    assert info["balanced"].tolist() == [True] + [False] * (n - 1)
    assert info["upright_share"][0] == 1
    assert (info["upright_share"][1:] < 0.4).all()
    assert (info["upright_share"][1:] > 0.1).all()
    # the share of the last 100 steps, not of all, and not of other steps
    assert info["upright_share"] == pytest.approx((obs[-100:, :, 0] > 0.8).mean(axis=0))
    assert info["upright_share"] != pytest.approx((obs[:, :, 0] > 0.8).mean(axis=0))


@pytest.mark.parametrize(
    ("env_id", "window"), [(CONTEXT_PENDULUM, pendulum.CONTEXT_WINDOW), (PENDULUM, 100), (BALANCE, 200)]
)
def test_all_of_the_last_steps_count_and_no_step_before(env_id, window):
    """One pendulum comes up and stands. With the horizon such that the last `window` steps are exactly its upright ones
    it is balanced; with one step less it is not. Context Pendulum's success is that; Sparse Pendulum's is not."""
    start = np.array([[1.2, -4.5]])
    obs, _, _ = pendulum_episodes(env_id, start, lambda obs, step: hold_pendulum(obs), horizon=window + 100)
    up = obs[:, 0, 0] > 0.8
    first = int(np.argmax(up))
    assert 1 < first < 30
    assert up[first:].all()
    for more, balanced in ((0, True), (-1, False), (5, True)):
        horizon = first + window + more
        _, reward, info = pendulum_episodes(env_id, start, lambda obs, step: hold_pendulum(obs), horizon=horizon)
        env = gym.make(env_id, horizon=horizon)
        o, _ = env.reset(seed=0)
        env.unwrapped.state = start[0].copy()
        o = start[0]
        o = np.array([np.cos(o[0]), np.sin(o[0]), o[1]], dtype=np.float32)
        for _ in range(horizon):
            o, r, _, _, scalar = env.step(hold_pendulum(o[None])[0])
        success = balanced or env_id == PENDULUM
        for found in (
            (info["balanced"][0], info["success"][0], reward[0], info["upright_share"][0]),
            (scalar["balanced"], scalar["success"], r, scalar["upright_share"]),
        ):
            assert found == (balanced, success, float(success), pytest.approx(1 if balanced else 1 - 1 / window))
    # a fall at the very end: 100 upright steps, then one below
    kick = first + window + 3

    def act(obs, step):
        return hold_pendulum(obs) if step < kick else np.full((1, 1), 2, dtype=np.float32)

    obs, _, _ = pendulum_episodes(env_id, start, act, horizon=kick + 60)
    down = kick + int(np.argmax(obs[kick:, 0, 0] <= 0.8))
    assert down > kick
    for horizon, success in ((down, True), (down + 1, False)):
        _, reward, info = pendulum_episodes(env_id, start, act, horizon=horizon)
        assert (reward[0], bool(info["success"][0])) == (float(success), success)


@pytest.mark.parametrize("env_id", [PENDULUM, CONTEXT_PENDULUM])
def test_how_long_it_stood_is_counted_anew_in_every_episode(env_id):
    """Episodes shorter than the window, with one that hung before one that stands, and the other way round."""
    envs, env = gym.make_vec(env_id, num_envs=1, horizon=6), gym.make(env_id, horizon=6)
    action = np.zeros((1, 1), dtype=np.float32)
    for angle, share in ((np.pi, 0.0), (0.0, 1.0), (np.pi, 0.0)):
        envs.reset(options={"state": [[angle, 0.0]]})
        env.reset(seed=0)
        env.unwrapped.state = np.array([angle, 0.0])
        for _ in range(6):
            info, scalar = envs.step(action)[4], env.step(action[0])[4]
        assert info["upright_share"][0] == scalar["upright_share"] == share
        assert info["balanced"][0] == scalar["balanced"] == (share == 1)


def test_context_tasks_start_in_the_states_that_they_state():
    """Bounds of the initial states are filled and kept to, batched and scalar, with empty options too."""
    pole = np.array(precision_cartpole.CONTEXT_SPREAD)
    swing = np.array([math.pi, pendulum.CONTEXT_MAX_SPEED])
    for env_id, bound in ((CONTEXT_CARTPOLE, pole), (CONTEXT_PENDULUM, swing)):
        env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=300)
        envs.reset(seed=0)
        scalars, with_options = (
            np.array([state_after_reset(env, seed, options) for seed in range(300)]) for options in (None, {})
        )
        for states in (envs.unwrapped._state.T, scalars, with_options):
            assert (np.abs(states) <= bound).all()
            assert (states.max(axis=0) > 0.9 * bound).all()
            assert (states.min(axis=0) < -0.9 * bound).all()


def state_after_reset(env, seed, options):
    env.reset(seed=seed, options=options)
    return np.array(env.unwrapped.state)


LANDED = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "terminated", "last_reward", "expected"),
    [
        ({}, True, 100.0, "success landed"),
        ({0: 0.39}, True, 100.0, "success landed"),
        ({0: -0.39}, True, 100.0, "success landed"),
        ({0: 0.41}, True, 100.0, "landed"),
        ({0: -0.41}, True, 100.0, "landed"),
        ({6: 0.0}, True, 100.0, "landed"),  # on one leg
        ({7: 0.0}, True, 100.0, "landed"),
        ({}, True, -100.0, "crashed"),  # on both legs, but the body touched
        ({0: 1.01, 6: 0.0, 7: 0.0}, True, -100.0, "crashed"),
        ({}, False, -0.3, "success"),  # on the ground, still moving at the horizon
        ({}, False, -120.0, "success"),  # an own reward as low as a crash's, but it is none
        ({}, False, 100.0, "success"),
        ({6: 0.0}, False, 0.1, ""),
        ({0: 0.41}, False, 0.1, ""),
    ],
)
def test_lunar_landers_rules(change, terminated, last_reward, expected):
    """Of one environment and of a batch, on made-up last steps."""
    obs = LANDED.copy()
    for i, value in change.items():
        obs[i] = value
    info = {"terminated": terminated, "last_reward": last_reward}
    other = {"terminated": np.array([terminated, True]), "last_reward": np.array([last_reward, -100.0])}
    wanted = expected.split()
    one, batch = lunar_lander.measures(obs, info), lunar_lander.measures(np.stack([obs, LANDED]), other)
    assert isinstance(lunar_lander.success(obs, info), bool | np.bool_)
    assert bool(lunar_lander.success(obs, info)) is ("success" in wanted)
    assert lunar_lander.success(np.stack([obs, LANDED]), other).tolist() == ["success" in wanted, False]
    for name in ("crashed", "landed"):
        assert bool(one[name]) is (name in wanted)
        assert batch[name].tolist() == [name in wanted, name == "crashed"]
    assert one["final_x"] == obs[0] == batch["final_x"][0]


@pytest.mark.parametrize(
    ("x", "fell", "expected"),
    [(1.01, False, True), (0.99, False, False), (1.01, True, False), (-1.01, False, False), (1.0, False, False)],
)
@pytest.mark.parametrize("far", [False, True])
def test_hoppers_rules(x, fell, expected, far, monkeypatch):
    """Of one environment and of a batch, on made-up last steps. Far Hopper asks for its own distance."""
    if far:
        x += hopper.FAR_DISTANCE - 1
        monkeypatch.setattr(hopper, "success", hopper.far_success)
    obs = np.zeros((2, 11))
    info = {"x_position": np.float64(x), "terminated": fell}
    batch = {"x_position": np.array([x, 20.0]), "terminated": np.array([fell, False])}
    assert isinstance(hopper.success(obs[0], info), bool | np.bool_)
    assert bool(hopper.success(obs[0], info)) is expected
    assert hopper.success(obs, batch).tolist() == [expected, True]
    assert hopper.measures(obs[0], info) == {"distance": x, "fell": fell}


# ------------------------------------------------------------------------------------------------------- seeds
def episodes(envs, seed, action_seed, steps):
    """First observations, and (obs, reward, terminated) of `steps` random steps, as one list of arrays."""
    obs, _ = envs.reset(seed=seed)
    rng, seen = np.random.default_rng(action_seed), [np.array(obs)]
    for _ in range(steps):
        if isinstance(envs, gym.vector.VectorEnv):
            action = random_actions(envs.single_action_space, envs.num_envs, rng)
        else:
            action = random_actions(envs.action_space, 1, rng)[0]
        obs, reward, terminated, _, info = envs.step(action)
        seen += [np.array(obs), np.array(reward), np.array(terminated)]
        seen += [np.array(info[k]) for k in sorted(info) if np.all(info.get(f"_{k}", terminated))]
    return seen


def equal(a, b):
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("env_id", SCALAR)
def test_one_environment_repeats_by_its_seed_bit_for_bit(env_id):
    """Seed and actions decide all: in another copy, and in one that has been used before."""
    first, second = gym.make(env_id, horizon=110), gym.make(env_id, horizon=110)
    steps = 110
    a = episodes(first, 5, 0, steps)
    assert equal(a, episodes(second, 5, 0, steps))
    episodes(first, 6, 1, 40)
    assert equal(a, episodes(first, 5, 0, steps)), "an earlier episode shows"
    assert not np.array_equal(a[0], episodes(second, 6, 0, 1)[0]), "another seed starts elsewhere"


@pytest.mark.parametrize("env_id", BATCHED)
def test_a_batch_repeats_by_its_seed_bit_for_bit(env_id):
    """The default engine, with one seed for the batch and with one an environment."""
    envs, again = (sppo_envs.make_task(env_id, 4, horizon=110) for _ in range(2))
    for seed, other in ((1, 2), ([1, 2, 3, 4], [5, 6, 7, 8])):
        a = episodes(envs, seed, 0, 112)
        assert len({row.tobytes() for row in a[0]}) == 4, "one seed, and yet four different starts"
        assert equal(a, episodes(again, seed, 0, 112))
        b = episodes(envs, other, 0, 112)
        assert not equal(a, b)
        assert not any(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))
        assert equal(a, episodes(envs, seed, 0, 112)), "earlier episodes show"
    a, b = episodes(envs, None, 0, 1), episodes(envs, None, 0, 1)
    assert not np.array_equal(a[0], b[0]), "without a seed the next batch is another"
    envs.close()
    again.close()


def test_options_bound_the_initial_states_as_gymnasiums_do():
    envs = gym.make_vec(CARTPOLE, num_envs=50)
    assert np.abs(envs.reset(seed=1)[0]).max() <= 0.05
    wide, _ = envs.reset(seed=1, options={"low": -0.2, "high": 0.2})
    assert 0.15 < np.abs(wide).max() <= 0.2
    envs = gym.make_vec(CAR, num_envs=50)
    assert -0.6 <= envs.reset(seed=1)[0][:, 0].min() < envs.reset(seed=1)[0][:, 0].max() <= -0.4
    obs, _ = envs.reset(seed=1, options={"low": -1.0, "high": -0.9})
    assert (np.abs(obs[:, 0] + 0.95) <= 0.05).all()
    assert not obs[:, 1].any()


# ------------------------------------------------------------------------------------------------ dense rewards
def test_dense_reward_of_cartpole_prefers_upright_and_dislikes_falls():
    envs = gym.make_vec(CARTPOLE, num_envs=4, dense=True)
    envs.reset(options={"state": np.array([[0, 0, 0, 0], [0, 0, 0.03, 0], [0, 0, 0.1, 0], [0, 0, 0.3, 0]])})
    reward = envs.step(np.zeros(4, dtype=int))[1]
    assert reward == pytest.approx([1.0, 0.46, 0.1, -5.0])
    assert envs.step(np.zeros(4, dtype=int))[1][3] == 0.0


def test_dense_reward_of_the_car_and_the_pendulum():
    """Speed and the flag; standing and slowness. Finished episodes are paid nothing, and the outcome is still told."""
    envs = gym.make_vec(CAR, num_envs=2, dense=True)
    envs.reset(options={"state": [[-0.5, -0.03], [0.46, 0.05]]})
    obs, reward, terminated, _, info = envs.step(np.zeros((2, 1), dtype=np.float32))
    assert terminated.tolist() == [False, True]
    assert info["success"].tolist() == [False, True]
    assert reward == pytest.approx(10 * np.abs(obs[:, 1]) + [0, 50])
    assert envs.step(np.zeros((2, 1), dtype=np.float32))[1][1] == 0

    envs = gym.make_vec(PENDULUM, num_envs=3, dense=True, horizon=2)
    envs.reset(options={"state": [[0, 0], [math.pi, 0], [0, 4.0]]})
    obs, reward, _, _, _ = envs.step(np.zeros((3, 1), dtype=np.float32))
    assert reward == pytest.approx(0.5 * obs[:, 0] - 0.005 * obs[:, 2] ** 2)
    assert reward[0] == pytest.approx(0.5)
    assert reward[1] == pytest.approx(-0.5)
    assert envs.step(np.zeros((3, 1), dtype=np.float32))[4]["success"].tolist() == [True, False, True]


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
    env = OutcomeReward(Counting(length=3), lambda obs, info: info["episode_return"] >= 3, horizon=10)
    env.reset(seed=0)
    steps = [env.step(0) for _ in range(5)]
    assert [s[1] for s in steps] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert [s[2] for s in steps] == [False, False, True, True, True]
    assert not any(s[3] for s in steps)
    assert steps[4][4] == {"n": 3, "episode_return": 3.0, "episode_length": 3, "success": True}
    assert steps[4][0] == steps[2][0] == 3
    assert env.env.steps == 3, "the environment must not have been stepped beyond its end"
    env.reset()
    assert env.step(0)[1:3] == (0.0, False)
    assert [env.step(0)[4].get("episode_return") for _ in range(2)] == [None, 3.0], "the return starts anew"


def test_outcome_reward_ends_at_the_horizon_and_judges_there():
    env = OutcomeReward(Counting(), lambda obs, info: bool(obs[0] == 4 and not info["terminated"]), horizon=4)
    env.reset()
    assert [env.step(0)[1:3] for _ in range(4)] == [(0.0, False)] * 3 + [(1.0, True)]


def test_outcome_reward_takes_the_environments_own_limit_and_never_more():
    def never(obs, info):
        return False

    limited = gym.wrappers.TimeLimit(Counting(), 5)
    limited.unwrapped.spec = gym.spec("CartPole-v1")
    assert OutcomeReward(limited, never).horizon == limited.spec.max_episode_steps == 5
    assert OutcomeReward(limited, never, horizon=3).horizon == 3
    assert OutcomeReward(limited, never, horizon=9).horizon == 5


def test_what_a_predicate_is_told_and_what_measures_add():
    """The environment's own truncation and reward are seen by the predicate, although neither leaves the wrapper."""
    told = []

    def success(obs, info):
        told.append(dict(info))
        return np.bool_(True)

    env = OutcomeReward(
        gym.wrappers.TimeLimit(Counting(), 2), success, horizon=9,
        measures=lambda obs, info: {"final": obs[..., 0], "flag": np.bool_(True), "vector": obs},
    )  # fmt: skip
    env.reset()
    env.step(0)
    _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert told == [
        {"n": 2, "episode_return": 2.0, "episode_length": 2, "last_reward": 1.0, "terminated": False, "truncated": True}
    ]
    assert (info["final"], info["flag"], info["success"]) == (2.0, True, True)
    assert (type(info["final"]), type(info["flag"]), type(info["success"])) == (float, bool, bool)
    assert info["vector"].tolist() == [2.0]


def test_dense_pays_each_step_and_still_tells_the_outcome():
    env = OutcomeReward(Counting(length=3), lambda obs, info: True, horizon=10, dense=lambda own: 0.25 * own)
    env.reset()
    steps = [env.step(0) for _ in range(4)]
    assert [s[1] for s in steps] == [0.25, 0.25, 0.25, 0.0]
    assert [s[4].get("success") for s in steps] == [None, None, True, True]
    assert steps[2][4]["episode_return"] == 3, "of the own rewards"


@pytest.mark.parametrize("answer", [0.7, 1, np.int64(1), np.array([True]), np.array(True), None, "yes"])
def test_outcome_reward_takes_booleans_only(answer):
    """1 is refused too: a predicate that returns a score is a mistake that would train on rubbish."""
    env = OutcomeReward(Counting(), lambda obs, info: answer, horizon=1)
    env.reset()
    with pytest.raises(TypeError, match=r"success must return a bool, got .* of \w+"):
        env.step(0)


def cartpoles(n, **kwargs):
    return gym.make_vec("CartPole-v1", num_envs=n, vectorization_mode="sync", **kwargs)


@pytest.mark.parametrize(
    "answer",
    [
        np.array([0.7, 0.3]), np.array([1, 0]), np.array([[True], [False]]), np.array([True]), np.array(True),
        [True, False], True, None,
    ],
)  # fmt: skip
def test_outcome_vector_reward_takes_one_boolean_an_episode_only(answer):
    envs = OutcomeVectorReward(cartpoles(2), lambda obs, info: answer, horizon=1)
    envs.reset(seed=0)
    with pytest.raises(TypeError, match=r"boolean array of shape \(2,\), got "):
        envs.step(np.array([0, 1]))


def test_outcome_vector_reward_equals_copies_of_outcome_reward():
    """Around Gymnasium's own vector environment, which starts the next episode by itself in the step after an end:
    none of that may show. 20 batches of 6 episodes of random actions, the same seeds, ends at falls and at the horizon,
    a few steps more after all have ended."""
    n, horizon = 6, 30

    def measures(obs, info):
        return {"final_x": obs[..., 0], "last": info["last_reward"], "fell": info["terminated"]}

    vector = OutcomeVectorReward(
        cartpoles(n), lambda obs, info: (info["episode_return"] >= 20) & (obs[:, 0] < 0.1), horizon, measures
    )
    assert vector.envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    copies = OutcomeVectorEnv(
        lambda: OutcomeReward(
            gym.make("CartPole-v1"), lambda obs, info: bool((info["episode_return"] >= 20) & (obs[0] < 0.1)), horizon,
            measures,
        ),
        n,
    )  # fmt: skip
    assert vector.horizon == copies.horizon == horizon
    rng, lengths, outcomes = np.random.default_rng(0), [], []
    for batch in range(20):
        seed = batch if batch % 2 else [7 * batch + i // 2 for i in range(n)]
        a, b = vector.reset(seed=seed)[0], copies.reset(seed=seed)[0]
        assert np.array_equal(a, b)
        for _ in range(horizon + 5):
            actions = rng.integers(0, 2, n)
            obs, reward, terminated, truncated, info = vector.step(actions)
            o, r, term, _, expected = copies.step(actions)
            assert np.array_equal(obs, o)
            assert np.array_equal(reward, r)
            assert np.array_equal(terminated, term)
            assert not truncated.any()
            assert set(info) == set(expected)
            for name, value in expected.items():
                where = slice(None) if name[0] == "_" else terminated
                assert np.array_equal(info[name][where], value[where]), name
        lengths += info["episode_length"].tolist()
        outcomes += info["success"].tolist()
        assert terminated.all()
    assert min(lengths) < 15
    assert lengths.count(horizon) >= 10
    assert 20 < sum(outcomes) < 100


def test_outcome_vector_reward_around_gymnasiums_batched_cartpole():
    """An environment that is batched itself, with a limit of its own."""
    envs = OutcomeVectorReward(gym.make_vec("CartPole-v1", num_envs=5), lambda obs, info: info["truncated"])
    assert envs.horizon == 500
    obs, _ = envs.reset(seed=0)
    total = np.zeros(5)
    for step in range(500):
        action = balance_pole(obs)
        action[:2] = step % 3 == 0
        obs, reward, terminated, _, info = envs.step(action)
        total += reward
    assert terminated.all()
    assert info["success"].tolist() == total.astype(bool).tolist() == [False, False, True, True, True]
    assert (info["episode_length"] == info["episode_return"]).all()
    assert info["episode_length"][2:].tolist() == [500] * 3


def test_copies_close_and_refuse_as_one():
    closed = []

    class Closing(Counting):
        def close(self):
            closed.append(self)

    envs = OutcomeVectorEnv(lambda: OutcomeReward(Closing(), lambda obs, info: True, 3), 2)
    envs.close()
    envs.close()
    assert closed == [e.env for e in envs.envs]
    inner = cartpoles(2)
    OutcomeVectorReward(inner, lambda obs, info: info["terminated"]).close()
    assert inner.closed


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
    assert sppo_envs.make_task("CartPole-v1", 1, success_return=20.0).horizon == 500


# ---------------------------------------------------------------------------------------------------- refusals
def ready(env_id, n):
    envs = gym.make_vec(env_id, num_envs=n)
    envs.reset(seed=0)
    return envs


gym.register("Endless-v0", Counting)


def never(obs, info):
    return False


def same_step():
    return cartpoles(2, vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})


def unlimited():
    envs = gym.vector.SyncVectorEnv([Counting, Counting])
    assert envs.spec is None
    return envs


make_task = sppo_envs.make_task


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        # make_task
        (
            lambda: make_task("CartPole-v9", 2, 1.0),
            ValueError,
            "unknown environment 'CartPole-v9'; did you mean CartPole-v1",
        ),
        (lambda: make_task("sppo/PrecisionCartpole", 2), ValueError, f"did you mean {CARTPOLE}"),
        (lambda: make_task("sppo/SparseHoper-v0", 2), ValueError, f"did you mean {HOPPER}"),
        (lambda: make_task("qqqqqqqqqqqq", 2), ValueError, f"this package's are .*{CAR}"),
        (lambda: make_task("nomodule:Thing-v0", 2, 1.0), ValueError, "cannot make nomodule:Thing-v0"),
        *[
            (lambda i=i: make_task(i, 2, success_return=1.0), ValueError, f"{i} has a success rule of its own")
            for i in sppo_envs.TASKS
        ],
        (
            lambda: make_task("CartPole-v1", 2),
            ValueError,
            r"CartPole-v1 has no success rule: pass --success-return .*\(it is registered as solved at 475\)$",
        ),
        (
            lambda: make_task("Endless-v0", 2),
            ValueError,
            r"Endless-v0 has no success rule: .* It also has no step limit .* --horizon N",
        ),
        (
            lambda: make_task("Endless-v0", 2, 1.0),
            ValueError,
            "^Endless-v0 has no step limit of its own: pass --horizon N",
        ),
        (lambda: OutcomeReward(gym.make("Endless-v0"), never), ValueError, "^Endless-v0 has no step limit of its own"),
        (lambda: make_task("Pendulum-v1", 2), ValueError, "Pendulum-v1 has no success rule: .*counts as a success$"),
        (lambda: make_task("CartPole-v1", 2, engine="envpool"), ValueError, "CartPole-v1 has no success rule"),
        (
            lambda: make_task("CartPole-v1", 2, 1.0, dense=True),
            ValueError,
            "dense reward is known for .*, not for Cart",
        ),
        (
            lambda: make_task("CartPole-v1", 2, 1.0, engine="numpy"),
            ValueError,
            "engine numpy is for tasks with a batched engine",
        ),
        (
            lambda: make_task("CartPole-v1", 2, 1.0, engine="jax"),
            ValueError,
            "engine must be one of auto, numpy, .*'jax'",
        ),
        (lambda: make_task(CARTPOLE, 2, engine="cuda"), ValueError, "engine must be one of .*, got 'cuda'"),
        *[
            (
                lambda i=i: make_task(i, 2, engine="envpool"),
                ValueError,
                f"{i} has the engines numpy, proc.*, not envpool",
            )
            for i in NUMPY
        ],
        (lambda: make_task(LANDER, 2, engine="numpy"), ValueError, "has the engines envpool, .*, not numpy"),
        (lambda: make_task(HOPPER, 2, engine="numpy"), ValueError, "has the engines envpool, .*, not numpy"),
        (lambda: make_task(CAR, 2, engine="sync", dense=True), ValueError, "dense reward of .* numpy engine only"),
        (lambda: make_task(CAR, 2, engine="processes", dense=True), ValueError, "dense reward of .* numpy engine only"),
        *[
            (lambda i=i, h=h: make_task(i, 2, horizon=h), ValueError, f"horizon must be at least 1 step, got {h}")
            for i in NUMPY
            for h in (0, -1)
        ],
        (lambda: make_task(CAR, 2, horizon=0, engine="sync"), ValueError, "horizon must be at least 1 step, got 0"),
        (
            lambda: make_task(CAR, 2, horizon=0, engine="processes"),
            ValueError,
            "horizon must be at least 1 step, got 0",
        ),
        (lambda: make_task("CartPole-v1", 2, 1.0, horizon=0), ValueError, "horizon must be at least 1 step, got 0"),
        *[(lambda i=i: make_task(i, 0), ValueError, "num_envs must be at least 1, got 0") for i in NUMPY],
        (lambda: make_task(CAR, 0, engine="sync"), ValueError, "num_envs must be at least 1, got 0"),
        (lambda: make_task(CAR, -2, engine="processes"), ValueError, "num_envs must be at least 1, got -2"),
        (lambda: make_task("CartPole-v1", 0, 1.0), ValueError, "num_envs must be at least 1, got 0"),
        # gym.make, gym.make_vec
        (lambda: gym.make_vec(CARTPOLE, num_envs=0), ValueError, "num_envs must be at least 1, got 0"),
        (lambda: gym.make_vec(CARTPOLE, num_envs=2, horizon=0), ValueError, "horizon must be at least 1 step, got 0"),
        (lambda: gym.make(PENDULUM, horizon=-3), ValueError, "horizon must be at least 1 step, got -3"),
        # reset and step
        (
            lambda: gym.make_vec(CARTPOLE, num_envs=2).step(np.zeros(2, dtype=int)),
            RuntimeError,
            r"call reset\(\) before",
        ),
        (lambda: ready(CARTPOLE, 2).step(np.array([0, 2])), ValueError, r"2 whole numbers, each 0 or 1, got \[0 2\]"),
        (lambda: ready(CARTPOLE, 2).step(np.array([0, -1])), ValueError, "each 0 or 1"),
        (lambda: ready(CARTPOLE, 2).step(np.array([0])), ValueError, "each 0 or 1"),
        (lambda: ready(CARTPOLE, 2).step(np.array([[0], [1]])), ValueError, "each 0 or 1"),
        (lambda: ready(CARTPOLE, 2).step(np.array([0.0, 0.5])), ValueError, "each 0 or 1"),
        (lambda: ready(CARTPOLE, 2).step(np.array([True, False])), ValueError, "each 0 or 1"),  # would be a mask
        (lambda: ready(PENDULUM, 2).step(np.array([0.0, 1.0])), ValueError, r"finite numbers of shape \(2, 1\)"),
        (lambda: ready(PENDULUM, 2).step(np.array([[0.0], [np.nan]])), ValueError, "finite numbers of shape"),
        (lambda: ready(CAR, 2).step(np.array([[np.inf], [0.0]])), ValueError, "finite numbers of shape"),
        (
            lambda: ready(CARTPOLE, 2).reset(options={"state": np.zeros((3, 4))}),
            ValueError,
            r"\(2, 4\), rows of pos.*\(3, 4\)",
        ),
        (
            lambda: ready(PENDULUM, 2).reset(options={"state": np.zeros(2)}),
            ValueError,
            r"\(2, 2\), rows of angle \(rad\)",
        ),
        (lambda: ready(CARTPOLE, 2).reset(seed=[1, 2, 3]), ValueError, "one number or 2, one an environment; got 3"),
        # the wrappers
        (lambda: OutcomeReward(Counting(), never), ValueError, "no step limit of its own; pass a horizon"),
        (lambda: OutcomeReward(Counting(), never, horizon=-3), ValueError, "at least 1 step, got -3"),
        (lambda: OutcomeReward(gym.make("CartPole-v1"), never, horizon=0), ValueError, "at least 1 step, got 0"),
        (lambda: OutcomeVectorEnv(lambda: OutcomeReward(Counting(), never, 3), 0), ValueError, "num_envs .*, got 0"),
        (lambda: OutcomeVectorEnv(lambda: OutcomeReward(Counting(), never), 2), ValueError, "pass a horizon"),
        (
            lambda: OutcomeVectorEnv(lambda: OutcomeReward(Counting(), never, 3), 2).reset(seed=[1]),
            ValueError,
            "one number or 2, one an environment; got 1",
        ),
        (lambda: OutcomeVectorReward(unlimited(), never), ValueError, "no step limit of its own; pass a horizon"),
        (lambda: OutcomeVectorReward(unlimited(), never, horizon=0), ValueError, "at least 1 step, got 0"),
        (lambda: OutcomeVectorReward(same_step(), never, horizon=5), ValueError, "AutoresetMode.NEXT_STEP"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
