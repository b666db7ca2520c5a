"""What runs the tasks: EnvPool, worker processes, copies in this process. They must agree where they promise to."""

import copy
import importlib.util
import itertools
import os
import pathlib
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import sppo_envs
from sppo_control import extras
from sppo_control.extras import MissingExtra
from sppo_envs import (
    OutcomeReward,
    OutcomeVectorEnv,
    ProcessVectorEnv,
    engines,
    hopper,
    lunar_lander,
    make_task,
)
from sppo_envs.engines import EnvPoolVectorEnv
from sppo_envs.lockstep import NumpyVectorEnv

CARTPOLE, CAR, PENDULUM = "sppo/PrecisionCartPole-v0", "sppo/SparseMountainCar-v0", "sppo/SparsePendulum-v0"
LANDER, HOPPER = "sppo/SparseLunarLander-v0", "sppo/SparseHopper-v0"


def installed(*modules):
    return all(importlib.util.find_spec(m) is not None for m in modules)


CAN = {LANDER: installed("Box2D"), HOPPER: installed("mujoco", "imageio")}
needs_envpool = pytest.mark.skipif(not installed("envpool"), reason="needs envpool")


def needs_gymnasiums(env_id):
    return pytest.mark.skipif(not CAN.get(env_id, True), reason="needs Box2D, or mujoco and imageio")


GYMNASIUM = [pytest.param(i, marks=needs_gymnasiums(i)) for i in sppo_envs.TASKS]
ENVPOOL = [pytest.param(i, marks=needs_envpool) for i in (LANDER, HOPPER)]
BOTH = [pytest.param(i, marks=[needs_envpool, needs_gymnasiums(i)]) for i in (LANDER, HOPPER)]


def random_actions(envs, rng):
    space = envs.single_action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, envs.num_envs)
    return rng.uniform(space.low, space.high, (envs.num_envs, *space.shape)).astype(np.float32)


def play(envs, seed, rng, steps):
    """Random episodes; the first reset info, then of each step the five things that it returned, which must not change
    later."""
    obs, info = envs.reset(seed=seed)
    seen = [(obs, *[np.zeros(envs.num_envs)] * 3, info)]
    copies = [copy.deepcopy(seen[0])]
    for _ in range(steps):
        seen.append(envs.step(random_actions(envs, rng)))
        copies.append(copy.deepcopy(seen[-1]))
    for step, copied in zip(seen, copies, strict=True):
        arrays, as_they_were = ((*x[:4], *x[4].values()) for x in (step, copied))
        assert all(same(x, y) for x, y in zip(arrays, as_they_were, strict=True)), "what was returned has changed since"
    return seen


def same(a, b):
    """Equal to the last bit, dtype included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# -------------------------------------------------------------------------------------- worker processes and copies
B, STEPS = 5, 90


@pytest.fixture(scope="module", params=GYMNASIUM)
def pair(request):
    """Five episodes of at most 90 steps: in two worker processes (two and three episodes), and in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "cores", lambda: 2)
        processes = make_task(request.param, B, horizon=STEPS, engine="processes")
    sync = make_task(request.param, B, horizon=STEPS, engine="sync")
    yield processes, sync
    processes.close()
    sync.close()


def test_processes_equal_copies_in_this_process_bit_for_bit(pair):
    """Observations, rewards, ends, and of ended episodes every entry of info; over several batches with one environment,
    with a seed for all and a seed for each, and a few steps after all have ended."""
    processes, sync = pair
    assert (type(processes), type(sync)) == (ProcessVectorEnv, OutcomeVectorEnv)
    assert len(processes._processes) == 2
    for name in ("num_envs", "horizon", "obs_scale", "observation_space", "action_space", "metadata"):
        assert getattr(processes, name) == getattr(sync, name), name
    assert (processes.single_observation_space, processes.single_action_space) == (
        sync.single_observation_space, sync.single_action_space,
    )  # fmt: skip
    assert processes.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    lengths = []
    play(processes, 3, np.random.default_rng(9), 25)  # given up half way, some of them ended
    for batch, seed in enumerate((0, 77, [5, 4, 3, 2, 1])):
        a = play(processes, seed, np.random.default_rng(batch), STEPS + 2)
        b = play(sync, seed, np.random.default_rng(batch), STEPS + 2)
        assert set(a[0][-1]) == set(b[0][-1])
        assert all(same(a[0][-1][k], b[0][-1][k]) for k in b[0][-1])
        for (obs, reward, terminated, truncated, info), other in zip(a[1:], b[1:], strict=True):
            assert same(obs, other[0])
            assert same(reward, other[1])
            assert same(terminated, other[2])
            assert same(truncated, other[3])
            if not terminated.any():
                assert "success" not in info
                continue
            assert set(info) == set(other[4])
            assert same(info["_success"], terminated)
            for name, value in info.items():
                assert same(value[terminated], other[4][name][terminated]), name
        assert same(a[0][0], b[0][0])
        assert terminated.all()
        assert np.array_equal(a[-1][0], a[-3][0]), "finished episodes stand still"
        lengths += info["episode_length"].tolist()
        rewards = np.sum([step[1] for step in a[1:]], axis=0)
        assert np.array_equal(rewards, info["success"].astype(float))
    if processes.single_observation_space.shape in ((2,), (3,)):  # car and pendulum, which nothing ends so soon
        assert set(lengths) == {STEPS}
    else:
        assert len(set(lengths)) > 5, "episodes must end at different times for this to say anything"


@pytest.mark.parametrize("env_id", GYMNASIUM)
def test_a_policy_sees_the_same_whatever_runs_the_task(env_id):
    """Spaces, scale of the observations and horizon of the default engine are those of Gymnasium's copies."""
    default, sync = make_task(env_id, 2), make_task(env_id, 2, engine="sync")
    for name in ("obs_scale", "horizon", "single_observation_space", "single_action_space", "observation_space"):
        assert getattr(default, name) == getattr(sync, name), name
    assert len(default.obs_scale) == default.single_observation_space.shape[0]
    default.close()


GROUPS = [7, 7, 8, 7, 9]
"""seeds; the equal ones lie in both worker processes"""


def check_groups(envs, steps):
    """Environments of equal seeds start in equal states and, by equal actions, go on so to the end; others differ."""
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=GROUPS)
    for step in range(steps):
        for i, j in itertools.combinations(range(B), 2):
            if GROUPS[i] == GROUPS[j]:
                assert same(obs[i], obs[j]), (step, i, j)
            elif step == 0:
                assert not np.array_equal(obs[i], obs[j])
        actions = random_actions(envs, rng)
        actions[[1, 3]] = actions[0]
        obs, reward, terminated, _, info = envs.step(actions)
        assert reward[0] == reward[1] == reward[3]
        assert terminated[0] == terminated[1] == terminated[3]
    assert terminated.all()
    for name, value in info.items():
        assert value[0] == value[1] == value[3], name


def test_equal_seeds_give_equal_episodes_in_processes_and_copies(pair):
    """What groups of episodes (GRPO) and greedy baselines (ReMax) build on."""
    for envs in pair:
        check_groups(envs, STEPS)


@pytest.mark.parametrize("env_id", [i for i in sppo_envs.TASKS if i not in (LANDER, HOPPER)] + ENVPOOL)
def test_equal_seeds_give_equal_episodes_in_the_fast_engine(env_id, monkeypatch):
    """The numpy engine, or EnvPool with two threads."""
    monkeypatch.setattr(engines, "cores", lambda: 2)
    envs = make_task(env_id, B, horizon=STEPS)
    assert isinstance(envs, EnvPoolVectorEnv if env_id in (LANDER, HOPPER) else NumpyVectorEnv)
    check_groups(envs, STEPS)
    check_groups(envs, STEPS)


def make_breaking(at):
    """Environments that fail in step `at`; defined here so that the workers get them by value."""

    class Breaking(gym.Env):
        observation_space = spaces.Box(-1, 1, (1,), np.float32)
        action_space = spaces.Discrete(2)
        steps = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            if options:
                raise KeyError(f"no such option: {options}")
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            self.steps += 1
            if self.steps == at:
                self.fail_in_a_named_place()
            return np.zeros(1, dtype=np.float32), 0.0, False, False, {}

        def fail_in_a_named_place(self):
            raise ZeroDivisionError("the simulator blew up")

    return lambda: OutcomeReward(Breaking(), lambda obs, info: True, horizon=5)


def test_a_failure_in_a_worker_comes_with_its_traceback_and_close_still_works():
    envs = ProcessVectorEnv(make_breaking(at=2), 2, workers=2)
    envs.reset(seed=0)
    envs.step(np.zeros(2, dtype=int))
    with pytest.raises(RuntimeError, match="failed in its worker process") as error:
        envs.step(np.zeros(2, dtype=int))
    assert "ZeroDivisionError: the simulator blew up" in str(error.value)
    assert "in fail_in_a_named_place" in str(error.value)
    assert "Traceback (most recent call last)" in str(error.value)
    envs.close()
    assert_gone(envs)


def test_a_failure_in_reset_comes_with_its_traceback():
    envs = ProcessVectorEnv(make_breaking(at=2), 1)
    with pytest.raises(RuntimeError, match=r"failed in its worker(.|\n)*Traceback(.|\n)*KeyError: .*no such option"):
        envs.reset(seed=0, options={"wind": 1})
    envs.close()


def assert_gone(envs):
    assert envs._processes
    for process in envs._processes:
        assert not process.is_alive()
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_close_ends_the_processes():
    """On their own account, not killed; a second time does nothing."""
    envs = ProcessVectorEnv(make_breaking(at=9), 3, workers=2)
    envs.reset(seed=0)
    assert all(p.is_alive() and p.daemon for p in envs._processes)
    envs.close()
    envs.close()
    assert_gone(envs)
    assert [p.exitcode for p in envs._processes] == [0, 0]


def test_a_worker_that_was_killed_is_reported_and_close_still_works():
    """Out of memory, say: not a broken pipe, and no waiting for an answer that never comes."""
    envs = ProcessVectorEnv(make_breaking(at=9), 2, workers=2)
    envs.reset(seed=0)
    os.kill(envs._processes[1].pid, signal.SIGKILL)
    envs._processes[1].join()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a worker process died; --engine sync"):
            envs.step(np.zeros(2, dtype=int))
    envs.close()
    assert_gone(envs)


def test_as_many_processes_as_cores_and_never_more_than_environments(monkeypatch):
    """Of OMP_NUM_THREADS cores at most; every environment is in exactly one process."""
    started = []

    class Process:
        def __init__(self, target, args, daemon):
            started.append(args[2])
            self.exitcode = 0

        def start(self):
            pass

        def join(self, timeout):
            pass

        def is_alive(self):
            return False

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Process", Process)
    for workers, n, sizes in ((2, 5, [2, 3]), (8, 3, [1, 1, 1]), (3, 9, [3, 3, 3]), (1, 4, [4])):
        started.clear()
        ProcessVectorEnv(make_breaking(at=9), n, workers=workers)
        assert started == sizes
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for limit, expected in (("2", 2), ("64", 6), ("", 6), ("0", 6), ("many", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
        assert engines.cores() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    started.clear()
    ProcessVectorEnv(make_breaking(at=9), 8)
    assert started == [2, 2, 2, 2]


# ------------------------------------------------------------------------------------------------------ EnvPool
class Spy:
    """A pool that notes which environments it is asked to step."""

    def __init__(self, pool, num_envs):
        self.pool, self.all, self.stepped = pool, list(range(num_envs)), []

    def step(self, actions, ids=None):
        self.stepped.append(self.all if ids is None else np.asarray(ids).tolist())
        assert len(actions) == len(self.stepped[-1])
        return self.pool.step(actions) if ids is None else self.pool.step(actions, ids)


@pytest.mark.parametrize("env_id", ENVPOOL)
def test_envpool_steps_the_unfinished_episodes_and_no_others(env_id, monkeypatch):
    """It would start their next episodes by itself. What finished episodes ended with stays to the end."""
    monkeypatch.setattr(engines, "cores", lambda: 2)
    n, rng = 12, np.random.default_rng(0)
    envs = make_task(env_id, n, engine="envpool", horizon=90)
    obs, _ = envs.reset(seed=0)
    spy = envs._pool = Spy(envs._pool, n)
    done, kept, lengths = np.zeros(n, dtype=bool), {}, np.zeros(n, dtype=int)
    for step in range(1, 93):
        before = obs.copy()
        obs, _, terminated, _, info = envs.step(random_actions(envs, rng))
        if done.all():
            assert not any(spy.stepped[step - 1 :])
        else:
            assert spy.stepped[-1] == np.flatnonzero(~done).tolist()
        assert np.array_equal(obs[done], before[done])
        assert (obs[~done] != before[~done]).any(axis=1).all(), "the unfinished ones move"
        for i in np.flatnonzero(terminated & ~done):
            kept[i] = {k: v[i] for k, v in info.items()}
            lengths[i] = step
        for i in np.flatnonzero(done):
            assert kept[i] == {k: v[i] for k, v in info.items()}
        done = terminated
    assert done.all()
    assert len(set(lengths.tolist())) > 5
    assert np.array_equal(info["episode_length"], lengths)
    assert len(np.unique(info["episode_return"])) == n


@pytest.mark.parametrize("env_id", ENVPOOL)
def test_an_envpool_episode_depends_on_its_own_seed_and_actions_only(env_id, monkeypatch):
    """Not on its neighbours, its place in the batch, the number of threads, or what was run before."""

    def run(seeds, threads, which):
        monkeypatch.setattr(engines, "cores", lambda: threads)
        envs = make_task(env_id, len(seeds), engine="envpool", horizon=60)
        envs.reset(seed=99)
        obs, _ = envs.reset(seed=seeds)
        rng, other, seen = np.random.default_rng(0), np.random.default_rng(1), [obs[which].copy()]
        for _ in range(60):
            mine, actions = random_actions(envs, rng)[0], random_actions(envs, other)
            actions[which] = mine
            obs, _, _, _, info = envs.step(actions)
            seen.append(obs[which].copy())
        return seen, {k: v[which] for k, v in info.items()}

    # one draw of actions for the one watched, however many there are
    monkeypatch.setattr(sys.modules[__name__], "random_actions", one_row_at_a_time)
    alone, end = run([5], 1, 0)
    for seeds, threads, which in (([1, 2, 5, 3], 1, 2), ([5, 5, 0], 2, 1)):
        seen, info = run(seeds, threads, which)
        assert all(same(a, b) for a, b in zip(alone, seen, strict=True))
        assert info == end


def one_row_at_a_time(envs, rng):
    """Random actions whose first row does not depend on how many there are."""
    space = envs.single_action_space
    if isinstance(space, spaces.Discrete):
        return np.array([rng.integers(0, space.n)] * envs.num_envs)
    return np.tile(rng.uniform(space.low, space.high).astype(np.float32), (envs.num_envs, 1))


@pytest.mark.parametrize("env_id", ENVPOOL)
def test_without_seeds_envpools_batches_follow_from_the_last_seed(env_id):
    """As Gymnasium's own generator: other episodes each time, the same ones after the same seed."""
    envs = make_task(env_id, 3, engine="envpool")
    batches = [[envs.reset(seed=seed)[0].copy() for seed in (4, None, None)] for _ in range(2)]
    for a, b in zip(*batches, strict=True):
        assert same(a, b)
    assert len({row.tobytes() for obs in batches[0] for row in obs}) == 9


@pytest.mark.parametrize("env_id", ENVPOOL)
def test_what_envpool_ends_exactly_at_the_horizon_is_judged_as_ended_by_itself(env_id):
    """A fall or crash in the very last step is one. (EnvPool itself reports it as truncated.) And an episode that only
    runs out of steps is neither a fall nor a crash."""
    name = "fell" if env_id == HOPPER else "crashed"

    def run(horizon):
        envs = make_task(env_id, 8, engine="envpool", horizon=horizon)
        envs.reset(seed=0)
        rng, n = np.random.default_rng(0), 0
        while True:
            n += 1
            obs, _, terminated, _, info = envs.step(random_actions(envs, rng))
            if terminated.all():
                return obs, info, n

    obs, info, _ = run(1000)
    lengths = info["episode_length"]
    assert info[name].all()
    for horizon in sorted(set(lengths))[2:5]:
        o, cut, steps = run(int(horizon))
        assert steps == horizon
        assert np.array_equal(cut["episode_length"], np.minimum(lengths, horizon))
        assert np.array_equal(cut[name], lengths <= horizon)
        assert np.array_equal(o[lengths <= horizon], obs[lengths <= horizon])


@needs_envpool
def test_what_a_predicate_is_told_by_envpool():
    """As by OutcomeReward around Gymnasium's environment with its limit: CartPole falls, or is truncated at the limit.
    Scores in place of booleans are refused."""
    told = {}

    def success(obs, info):
        told.update({k: np.array(v) for k, v in info.items()})
        return info["truncated"]

    envs = EnvPoolVectorEnv("CartPole-v1", 4, 12, success, measures=lambda obs, info: {"x": obs[:, 0]})
    envs.reset(seed=0)
    total = np.zeros(4)
    for _ in range(14):
        tilt = envs._obs[:, 2] + 0.3 * envs._obs[:, 3]
        actions = np.where(np.arange(4) < 2, 0, (tilt > 0).astype(int))
        obs, reward, _, _, info = envs.step(actions)
        total += reward
    assert info["success"].tolist() == [False, False, True, True] == total.astype(bool).tolist()
    assert told["terminated"].tolist() == [True, True, False, False]
    assert told["truncated"][2:].tolist() == [True, True]
    assert told["last_reward"].tolist() == [1.0] * 4
    assert told["episode_return"].tolist() == info["episode_length"].tolist()
    assert (info["episode_length"][:2] < 12).all()
    assert info["episode_length"][2:].tolist() == [12, 12]
    assert np.array_equal(info["x"], obs[:, 0])
    assert EnvPoolVectorEnv("CartPole-v1", 1, None, success).horizon == 500
    for answer in (np.ones(2), np.ones(2, dtype=int), np.ones((2, 1), dtype=bool), [True, False]):
        envs = EnvPoolVectorEnv("CartPole-v1", 2, 1, lambda obs, info, answer=answer: answer)
        envs.reset(seed=0)
        with pytest.raises(TypeError, match=r"boolean array of shape \(2,\)"):
            envs.step(np.zeros(2, dtype=int))


@pytest.mark.parametrize("env_id", ENVPOOL)
def test_envpool_refuses(env_id):
    for kwargs, message in (
        ({"horizon": 0}, "horizon must be at least 1 step, got 0"),
        ({"horizon": -5}, "horizon must be at least 1 step, got -5"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_task(env_id, **{"num_envs": 2, "engine": "envpool"} | kwargs)
    envs = make_task(env_id, 2, engine="envpool")
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step"):
        envs.step(random_actions(envs, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="EnvPool takes no reset options"):
        envs.reset(seed=0, options={"low": 1})
    with pytest.raises(ValueError, match="one number or 2, one an environment; got 3"):
        envs.reset(seed=[1, 2, 3])
    envs.reset(seed=0)
    bad = [np.array([0.5, 1.7]), np.array([0, 4])] if env_id == LANDER else [np.zeros((2, 2)), np.full((2, 3), np.nan)]
    for actions in bad:
        with pytest.raises(ValueError, match="actions must be"):
            envs.step(actions)
    with pytest.raises(ValueError, match="EnvPool has no Nothing-v0"):
        EnvPoolVectorEnv("Nothing-v0", 2, 5, lambda obs, info: info["terminated"])


# -------------------------------------------------------------------------------------- EnvPool against Gymnasium
@pytest.mark.parametrize("env_id", BOTH)
def test_envpool_states_gymnasiums_spaces(env_id):
    """So that a policy made for the one fits the other."""
    pool, sync = make_task(env_id, 3, engine="envpool"), make_task(env_id, 3, engine="sync")
    raw = gym.make({LANDER: "LunarLander-v3", HOPPER: "Hopper-v5"}[env_id])
    for envs in (pool, sync):
        assert envs.single_observation_space == raw.observation_space
        assert envs.single_action_space == raw.action_space
    assert (pool.observation_space, pool.action_space) == (sync.observation_space, sync.action_space)
    assert pool.obs_scale == sync.obs_scale
    assert pool.horizon == sync.horizon == 1000
    assert len(pool.obs_scale) == raw.observation_space.shape[0]
    for engine in ("envpool", "sync"):
        assert make_task(env_id, 1, engine=engine, horizon=1500).horizon == 1500, "the task's limit is a default"


@pytest.mark.parametrize("env_id", [pytest.param(HOPPER, marks=[needs_envpool, needs_gymnasiums(HOPPER)])])
def test_envpools_hopper_moves_as_gymnasiums(env_id):
    """From EnvPool's initial states (its observations are positions and velocities; x is missing, and does not matter to
    the motion), by equal actions, to the fall or the horizon. Measured: 3e-9 at most; contacts amplify roundings."""
    n, horizon, rng = 10, 60, np.random.default_rng(0)
    pool, copies = (make_task(env_id, n, horizon=horizon, engine=e) for e in ("envpool", "sync"))
    obs, _ = pool.reset(seed=0)
    copies.reset(seed=0)
    for env, o in zip(copies.envs, obs, strict=True):
        env.unwrapped.set_state(np.concatenate([[0.0], o[:5]]), o[5:])
    strength = np.linspace(0, 1, n)[:, None]
    for _ in range(horizon):
        actions = (strength * random_actions(pool, rng)).astype(np.float32)
        obs, reward, terminated, _, info = pool.step(actions)
        o, r, term, _, expected = copies.step(actions)
        assert np.abs(obs - o).max() < 1e-6
        assert np.array_equal(terminated, term)
        assert np.array_equal(reward, r)
    assert set(info) - set(expected) == set()
    assert info["fell"].any()
    assert not info["fell"].all()
    for name in ("fell", "episode_length", "success"):
        assert np.array_equal(info[name], expected[name]), name
    assert info["episode_return"] == pytest.approx(expected["episode_return"], abs=1e-4)
    assert info["distance"] == pytest.approx(expected["distance"], abs=6e-3), "the start's x is within 5e-3"


def summary(envs, batches, act):
    """(episodes, 3) of length, return, success; and the names' means of the remaining measures."""
    rows, rng = [], np.random.default_rng(5)
    for batch in range(batches):
        obs, _ = envs.reset(seed=1000 * batch)
        terminated = np.zeros(envs.num_envs, dtype=bool)
        while not terminated.all():
            obs, _, terminated, _, info = envs.step(act(envs, obs, rng))
        rows.append(np.stack([info["episode_length"], info["episode_return"], info["success"]], axis=1))
    return np.concatenate(rows)


def lands_or_not(envs, obs, rng):
    """Gymnasium's hand-written controller for the even rows, anything for the odd ones."""
    x, y, vx, vy, angle, spin = obs[:, :6].T
    legs = obs[:, 6:].any(axis=1)
    turn = (np.clip(0.5 * x + vx, -0.4, 0.4) - angle) * 0.5 - spin
    lift = (0.55 * np.abs(x) - y) * 0.5 - vy * 0.5
    turn, lift = np.where(legs, 0.0, turn), np.where(legs, -0.5 * vy, lift)
    good = np.where((lift > np.abs(turn)) & (lift > 0.05), 2, np.where(turn < -0.05, 3, np.where(turn > 0.05, 1, 0)))
    return np.where(np.arange(len(obs)) % 2, random_actions(envs, rng), good)


@pytest.mark.parametrize("env_id", BOTH)
def test_envpool_and_gymnasium_agree_within_sampling_error(env_id):
    """Mean length, return and success of episodes; their random numbers differ, their distributions must not. The lander
    is flown by a controller that lands, and at random."""
    n, batches = (32, 3) if env_id == LANDER else (50, 4)
    act = lands_or_not if env_id == LANDER else lambda envs, obs, rng: random_actions(envs, rng)
    a, b = (summary(make_task(env_id, n, engine=e), batches, act) for e in ("envpool", "sync"))
    for half in (slice(0, None, 2), slice(1, None, 2)):
        x, y = a[half], b[half]
        error = np.sqrt((x.var(axis=0, ddof=1) + y.var(axis=0, ddof=1)) / len(x))
        assert (np.abs(x.mean(axis=0) - y.mean(axis=0)) <= 4 * error).all(), (x.mean(axis=0), y.mean(axis=0), error)
    if env_id == LANDER:
        for x in (a, b):
            assert x[::2, 2].mean() > 0.3, "the controller lands"
            assert x[1::2, 2].mean() < 0.1, "chance does not"


@pytest.mark.parametrize("env_id", BOTH)
def test_dense_rewards_are_the_tasks_shaped_ones_in_every_engine(env_id):
    """Their sum is that of the shaped own rewards; the outcome is told all the same; the finished are paid nothing."""
    shaped = {LANDER: lunar_lander, HOPPER: hopper}[env_id].dense_reward
    for engine in ("envpool", "sync"):
        envs, sparse = (make_task(env_id, 4, horizon=40, engine=engine, dense=d) for d in (True, False))
        seen = []
        for e in (envs, sparse):
            e.reset(seed=0)
            rng = np.random.default_rng(0)
            seen.append([e.step(random_actions(e, rng)) for _ in range(42)])
        for (obs, reward, terminated, _, info), (o, _, term, _, i), before in zip(
            *(s[1:] for s in seen), seen[0][:-1], strict=True
        ):
            assert same(np.asarray(obs), np.asarray(o))
            assert np.array_equal(terminated, term)
            assert not reward[before[2]].any()
            assert reward[~before[2]].all(), "each step pays"
            assert info.keys() == i.keys()
        total = np.sum([s[1] for s in seen[0]], axis=0)
        assert np.array_equal(info["success"], i["success"])
        if env_id == LANDER:  # where the shaped rewards are a multiple of the own ones
            assert total == pytest.approx(shaped(info["episode_return"]), rel=1e-5)
        else:
            assert (total <= shaped(np.inf) * info["episode_length"]).all()
            assert total == pytest.approx(info["episode_return"], rel=0.2)


# ------------------------------------------------------------------------------------------- which engine, and if none
def test_auto_takes_envpool_and_without_it_processes(monkeypatch):
    """Of the two tasks that EnvPool has; for the others it does not matter. (Copies in this process stand in for worker
    processes here.)"""

    class Processes(OutcomeVectorEnv):
        pass

    monkeypatch.setattr(engines, "ProcessVectorEnv", Processes)
    for env_id, module in ((LANDER, lunar_lander), (HOPPER, hopper)):
        if installed("envpool"):
            assert type(make_task(env_id, 2)) is EnvPoolVectorEnv
            assert type(gym.make_vec(env_id, num_envs=2)) is EnvPoolVectorEnv
        if CAN[env_id]:
            with monkeypatch.context() as patch:
                patch.setattr(module, "has_envpool", lambda: False)
                envs = make_task(env_id, 2, horizon=7)
                assert type(envs) is Processes
                assert (envs.num_envs, envs.horizon, envs.obs_scale) == (2, 7, module.OBS_SCALE)
                assert type(make_task(env_id, 2, engine="sync")) is OutcomeVectorEnv
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "envpool", None)
                assert type(make_task(env_id, 2)) is Processes
    for env_id in (CARTPOLE, CAR, PENDULUM):
        assert isinstance(make_task(env_id, 2), NumpyVectorEnv)
        assert isinstance(make_task(env_id, 2, engine="numpy"), NumpyVectorEnv)
        assert type(make_task(env_id, 2, engine="processes")) is Processes
        assert type(make_task(env_id, 2, engine="sync")) is OutcomeVectorEnv


def forget(monkeypatch, package, users):
    """Make a package look missing, also to Gymnasium's modules that may have imported it already."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in [m for m in sys.modules if m == users or m.startswith(users + ".")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("engine", ["sync", "processes"])
@pytest.mark.parametrize(
    ("env_id", "package", "users", "extra"),
    [
        (LANDER, "Box2D", "gymnasium.envs.box2d", "box2d"),
        (HOPPER, "mujoco", "gymnasium.envs.mujoco", "mujoco"),
        pytest.param(
            HOPPER,
            "imageio",
            "gymnasium.envs.mujoco",
            "mujoco",
            marks=pytest.mark.skipif(
                not installed("mujoco"), reason="mujoco is not installed: it would be named first"
            ),
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    env_id, package, users, extra, engine, monkeypatch
):
    """In this process, before any worker is started; an ImportError, for those who look for one."""
    forget(monkeypatch, package, users)
    for make in (lambda: make_task(env_id, 2, engine=engine), lambda: gym.make(env_id)):
        with pytest.raises(MissingExtra) as error:
            make()
        assert str(error.value).startswith(f"{package}, which {env_id.split('-')[0].removeprefix('sppo/Sparse')}")
        assert str(error.value).endswith(f"run: {extras.install(extra)}")
        assert isinstance(error.value, ImportError)


@pytest.mark.parametrize("env_id", [LANDER, HOPPER, "CartPole-v1"])
def test_missing_envpool_is_named_with_the_command_that_installs_it(env_id, monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(MissingExtra) as error:
        make_task(env_id, 2, engine="envpool", success_return=None if env_id in sppo_envs.TASKS else 1.0)
    command = extras.install("envpool")
    assert str(error.value) == f"envpool, which --engine envpool needs, is not installed; run: {command}"


@pytest.mark.parametrize("env_id", [LANDER, HOPPER])
def test_with_neither_envpool_nor_the_simulator_the_simulators_command_is_given(env_id, monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    package, users = {LANDER: ("Box2D", "gymnasium.envs.box2d"), HOPPER: ("mujoco", "gymnasium.envs.mujoco")}[env_id]
    forget(monkeypatch, package, users)
    with pytest.raises(MissingExtra, match="run: pip install") as error:
        make_task(env_id, 2)
    assert "envpool" not in str(error.value)


# ------------------------------------------------------------------------------------------- foreign environments
def test_a_foreign_environment_runs_in_processes_as_in_this_one(tmp_path, monkeypatch):
    """A user's own module, which nobody has imported yet, here or in a worker: `module:id` does."""
    source = pathlib.Path(__file__).with_name("toy_env.py").read_text()
    (tmp_path / "users_own_module.py").write_text(source.replace("toy/Sign-v0", "own/Sign-v0"))
    monkeypatch.syspath_prepend(tmp_path)
    both = [make_task("users_own_module:own/Sign-v0", 3, success_return=2.0, engine=e) for e in ("processes", "sync")]
    assert [type(e) for e in both] == [ProcessVectorEnv, OutcomeVectorEnv]
    outcomes = []
    for seed in range(4):
        a, b = (play(e, seed, np.random.default_rng(seed), 3) for e in both)
        for x, y in zip(a, b, strict=True):
            assert all(same(u, v) for u, v in zip(x[:4], y[:4], strict=True))
        outcomes += a[-1][4]["success"].tolist()
        assert np.array_equal(a[-1][4]["episode_return"] >= 2, a[-1][4]["success"])
    assert set(outcomes) == {True, False}
    for envs in both:
        envs.close()
    assert type(make_task("CartPole-v1", 2, 9.0)) is OutcomeVectorEnv, "auto is sync"


@needs_envpool
def test_a_foreign_environment_in_envpool():
    """Where EnvPool has it; where it has not, it says so."""
    envs = make_task("CartPole-v1", 16, success_return=20.0, horizon=60, engine="envpool")
    assert type(envs) is EnvPoolVectorEnv
    last = play(envs, 0, np.random.default_rng(0), 60)[-1]
    info = last[4]
    assert last[2].all()
    assert np.array_equal(info["success"], info["episode_return"] >= 20)
    assert 0 < info["success"].sum() < 16
    assert np.array_equal(info["episode_return"], info["episode_length"])
    with pytest.raises(ValueError, match="EnvPool has no GymV21Environment-v0"):
        make_task("GymV21Environment-v0", 2, success_return=1.0, engine="envpool")
