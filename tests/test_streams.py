"""No two purposes draw the same random numbers, and each update draws others than the one before."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

import evaluate
import sppo_cartpole
import sppo_envs
from sppo_control import limits, runs, streams
from sppo_control.policies import make_policy

SEEDS = (0, 1, 2, 3, 5, 7, 100, 2**31, 2**32 - 1)
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 10, 1000, 2**31)


def state(words):
    return tuple(np.random.SeedSequence(words).generate_state(8))


def test_no_two_generators_are_equal():
    """Training's streams and every other purpose, over seeds and updates (or numbers), all pairs."""
    made = {}
    for seed, number in itertools.product(SEEDS, NUMBERS):
        for stream in streams.TRAINING:
            made["training", stream, seed, number] = streams.training_words(seed, number, stream)
        for purpose in streams.PURPOSES:
            made[purpose, seed, number] = streams.words(purpose, seed, number)
    states = {}
    for name, words in made.items():
        assert states.setdefault(state(words), name) == name, f"{name} and {states[state(words)]} draw the same numbers"
    assert len(states) == len(SEEDS) * len(NUMBERS) * (len(streams.TRAINING) + len(streams.PURPOSES))


def test_why_a_fourth_word_is_needed():
    """The negative control: what evaluate.py did before was training's first rollout, and larger seeds take two words."""
    assert state([1]) == state(streams.training_words(1, 0, "rollout"))
    assert state([2**32 + 1]) == state([1, 1])
    assert limits.LIMITS["seed"][1] == streams.LARGEST_SEED
    assert all(streams.PURPOSES.values())
    assert len(set(streams.PURPOSES.values())) == len(streams.PURPOSES)


def test_training_draws_what_it_always_drew(monkeypatch):
    """Runs must repeat bit for bit, so this may not change."""
    run = runs.Run.__new__(runs.Run)
    run.args, run.update = sppo_cartpole.Args(seed=3), 17
    for stream, number in (("rollout", 0), ("shuffle", 1), ("evaluate", 2)):
        expected = np.random.default_rng([3, 17, number]).integers(2**60, size=5)
        np.testing.assert_array_equal(run.new_rng(stream).integers(2**60, size=5), expected)


@pytest.fixture
def spied(monkeypatch, tmp_path):
    """The generators of three updates: purpose -> the states in which they were used."""
    used, real = {"rollout": [], "shuffle": []}, runs.Run.new_rng

    def new_rng(self, stream):
        rng = real(self, stream)
        used.setdefault(stream, []).append((self.update, rng.bit_generator.state["state"]["state"]))
        return rng

    monkeypatch.setattr(runs.Run, "new_rng", new_rng)
    contexts, real_rollout = [], sppo_cartpole.rollout

    def rollout(envs, policy, rng, *args, **kwargs):
        used["rollout used"] = [*used.get("rollout used", []), rng.bit_generator.state["state"]["state"]]
        episodes = real_rollout(envs, policy, rng, *args, **kwargs)
        contexts.append(episodes.context.clone())
        return episodes

    monkeypatch.setattr(sppo_cartpole, "rollout", rollout)
    sppo_cartpole.train(
        sppo_cartpole.Args(
            total_timesteps=80, num_envs=4, num_minibatches=2, horizon=10, eval_episodes=2, runs_dir=str(tmp_path)
        )
    )
    return used, contexts


def test_each_update_draws_its_own_numbers(spied):
    used, contexts = spied
    assert len(contexts) >= 2
    for a, b in itertools.combinations(contexts, 2):
        assert not (a == b).all(), "the same contexts in two updates"
    for stream in ("rollout", "shuffle"):
        states = [x for _, x in used[stream]]
        assert len(set(states)) == len(states) >= 2, stream
        assert [update for update, _ in used[stream]] == list(range(len(states)))


def test_shuffling_does_not_draw_from_the_rollouts_stream(spied):
    used, _ = spied
    assert not {x for _, x in used["rollout"]} & {x for _, x in used["shuffle"]}
    assert used["rollout used"] == [x for _, x in used["rollout"]]


def test_evaluate_py_and_videos_draw_from_the_table(monkeypatch):
    asked, real = [], streams.new_rng
    monkeypatch.setattr(streams, "new_rng", lambda *args: asked.append(args) or real(*args))
    envs = sppo_envs.make_task("sppo/PrecisionCartPole-v0", 2, horizon=3)
    policy = make_policy(envs)
    args = evaluate.Args(run=("x",), episodes=2, seed=4, num_envs=2)
    evaluate.evaluate_in_batches(envs, policy, args)
    env = gym.make("sppo/PrecisionCartPole-v0", horizon=3)
    for number in (1, 2):
        list(evaluate.play(env, policy, args, number))
    assert asked == [("evaluate.py", 4), ("video", 4, 1), ("video", 4, 2)]
