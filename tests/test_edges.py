"""Rollouts, policies and environments at edges where a small mistake could hide; tests/mutants.toml has the mistakes."""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_env  # noqa: F401 - registers toy/Sign-v0
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sppo_envs
from sppo_control import outcomes, starts
from sppo_control.networks import Critic
from sppo_control.policies import CategoricalPolicy, GaussianPolicy, load_policy, make_policy, save_policy
from sppo_control.rollout import ContextWindow, evaluate, rollout, success_by_context
from sppo_envs import OutcomeVectorReward, hopper, lunar_lander, pendulum, precision_cartpole

ID = "sppo/PrecisionCartPole-v0"


# -------------------------------------------------------------------------------------------------------- rollout
def test_actions_are_clipped_for_the_environment_and_stored_as_sampled():
    """toy_env refuses actions beyond its bounds."""
    envs = sppo_envs.make_task("toy/Sign-v0", 32, success_return=2.0)
    policy = make_policy(envs, hidden=())
    with torch.no_grad():
        policy.log_std.fill_(1.0)
    episodes = rollout(envs, policy, np.random.default_rng(0))
    assert episodes.actions.abs().max() > 1.5, "some samples must be beyond the bounds for this to say anything"
    logp, _ = policy.log_prob(episodes.obs, episodes.actions)
    torch.testing.assert_close(episodes.logp, logp)
    rewarded = (episodes.actions[..., 0].sign() == episodes.obs[..., 0].sign()).float()
    assert torch.equal(episodes.episode_return, rewarded.sum(1)), "the environment's own rewards, not the outcome"
    assert torch.equal(episodes.outcome, (rewarded.sum(1) == 2).float())
    assert not torch.equal(episodes.episode_return, episodes.outcome)


def test_noise_is_used_unless_greedy():
    envs = sppo_envs.make_task(ID, 8, horizon=5)
    policy = make_policy(envs)
    a, b = (rollout(envs, policy, np.random.default_rng(s), greedy=True) for s in (0, 0))
    assert torch.equal(a.actions, b.actions)
    assert torch.equal(a.actions, policy(a.obs).argmax(-1))
    sampled = rollout(envs, policy, np.random.default_rng(0))
    assert not torch.equal(sampled.actions, policy(sampled.obs).argmax(-1))


def test_side_measures_are_numbers_and_booleans_one_per_episode():
    info = {
        "balanced": np.array([True, False]), "share": np.array([0.5, 1.0]), "laps": np.array([3, 4]),
        "pair": np.zeros((2, 2)), "name": np.array(["a", "b"]), "_share": np.array([True, True]),
        "success": np.array([True, True]), "episode_return": np.zeros(2), "episode_length": np.ones(2),
    }  # fmt: skip
    assert list(outcomes.side_measures(info)) == ["balanced", "laps", "share"]


def test_advantage_scalars_have_the_documented_values():
    adv, v0, R = torch.tensor([0.5, -0.5, 0.25]), torch.tensor([0.25, 0.5, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    found = outcomes.advantage_scalars(adv, v0, R)
    assert found["advantages/mean"] == pytest.approx(adv.mean().item())
    assert found["advantages/std"] == pytest.approx(np.std(adv.numpy())), "divided by N"
    assert found["critic/v0_mean"] == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert found["critic/brier"] == pytest.approx((0.75**2 + 0.5**2) / 3)
    assert found["critic/ece"] == pytest.approx((0.75 + 0.5) / 3)
    assert found["losses/explained_variance"] == pytest.approx(1 - np.var((R - v0).numpy()) / np.var(R.numpy()))


def test_evaluation_runs_as_many_batches_as_needed():
    envs = sppo_envs.make_task(ID, 8, horizon=3)
    policy = make_policy(envs)
    for episodes in (1, 8, 9):
        assert len(evaluate(envs, policy, episodes, np.random.default_rng(0)).outcome) == episodes


def test_a_window_restores_its_contexts_and_keeps_pairs_together():
    window = ContextWindow(3, 4, 1)
    for update in range(4):
        context = torch.arange(4.0)[:, None] + 10 * update
        window.add(SimpleNamespace(context=context, outcome=context[:, 0] / 100))
    copy = ContextWindow(3, 4, 1)
    copy.load_tensors({name: x.clone() for name, x in window.named_tensors().items()})
    context, outcome = copy.sample(400, np.random.default_rng(0))
    torch.testing.assert_close(outcome, context[:, 0] / 100)
    assert sorted(context.unique().tolist()) == [*range(10, 14), *range(20, 24), *range(30, 34)]
    with pytest.raises(ValueError, match="do not fit this window"):
        ContextWindow(2, 4, 1).load_tensors(window.named_tensors())


def test_success_from_a_context_is_a_share_of_its_episodes():
    envs = sppo_envs.make_task(ID, 8)
    policy = starts.starting_policy(envs, ID, None, False, ())
    _, rate = success_by_context(envs, policy, 6, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    expected = [float(rollout(envs, policy, rng, group_size=8).outcome.mean()) for _ in range(6)]
    assert any(0 < share < 1 for share in expected), "else one episode would say as much"
    assert rate.tolist() == expected


# ------------------------------------------------------------------------------------------- policies and their files
def test_from_scratch_means_random_weights_of_the_widths_asked_for(tmp_path):
    envs = sppo_envs.make_task(ID, 2)
    shipped = load_file(starts.shipped_policy(ID))
    policy = starts.starting_policy(envs, ID, None, True, (5, 3))
    assert policy.sizes == (4, 5, 3, 2)
    assert starts.starting_policy(envs, ID, None, True, (64, 64)).flat.shape == (64 * 5 + 64 * 65 + 2 * 65,)
    start = starts.starting_policy(envs, ID, None, False, (5, 3))
    assert torch.equal(start.named_tensors()["layers.0.weight"], shipped["layers.0.weight"])
    save_policy(policy, tmp_path / "policy.safetensors", "another task")
    for given in (tmp_path, tmp_path / "policy.safetensors"):
        taken = starts.starting_policy(envs, ID, str(given), False, (64, 64))
        assert torch.equal(taken.flat, policy.flat)
        assert taken.env_id == ID


def test_a_policy_file_says_its_kind_task_and_format(tmp_path):
    envs, path = sppo_envs.make_task(ID, 2), tmp_path / "policy.safetensors"
    save_policy(make_policy(envs), path, ID)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["sppo_control"])
    assert about == {"policy": "CategoricalPolicy", "env_id": ID, "format": 1}
    assert load_policy(path, envs).env_id == ID
    save_file(load_file(path), path, metadata={"sppo_control": json.dumps({**about, "format": 2})})
    with pytest.raises(ValueError, match="contains no policy of this package"):
        load_policy(path, envs)


def test_last_layers_start_small_for_policies_and_with_gain_1_for_critics():
    torch.manual_seed(0)
    for network, gain in ((CategoricalPolicy(4, 2), 0.01), (GaussianPolicy(4, 2), 0.01), (Critic(4), 1.0)):
        weight = network.layers()[-1][0]
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=1e-4, atol=1e-7)
    first = Critic(4).layers()[0][0]
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [CategoricalPolicy, GaussianPolicy])
def test_both_forward_passes_scale_the_observations(kind):
    torch.manual_seed(0)
    scaled, plain = kind(3, 2, (6,), (1.0, 0.5, 20.0)), kind(3, 2, (6,))
    plain.flat.data.copy_(scaled.flat.data)
    obs = torch.randn(7, 3)
    expected = plain(obs * torch.tensor([1.0, 0.5, 20.0])).detach()
    assert (expected - plain(obs)).abs().max() > 1e-3
    torch.testing.assert_close(scaled(obs).detach(), expected)
    _, output = scaled.behaviour()(obs.numpy(), None)
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------- environments
class EndlessVector(gym.vector.VectorEnv):
    """Pays 1 in every step. Episode i ends at step i + 1, and goes on paying after that."""

    num_envs = 3
    single_observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    single_action_space = gym.spaces.Discrete(2)
    spec = None
    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros((3, 1), np.float32), {}

    def step(self, actions):
        self.t += 1
        obs = np.full((3, 1), self.t / 10, np.float32)
        return obs, np.ones(3), self.t >= np.arange(1, 4), np.zeros(3, bool), {}


def test_the_return_of_a_finished_episode_does_not_grow():
    told = []

    def success(obs, info):
        told.append(info["episode_return"].copy())
        return info["episode_return"] >= 2

    envs = OutcomeVectorReward(EndlessVector(), success, horizon=5)
    envs.reset(seed=0)
    for _ in range(3):
        obs, reward, done, _, info = envs.step(np.zeros(3, dtype=int))
    assert done.all()
    assert told[-1].tolist() == [1.0, 2.0, 3.0]
    assert info["success"].tolist() == [False, True, True]
    assert info["episode_length"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(obs[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert reward.tolist() == [0.0, 0.0, 1.0], "each outcome is paid once, in the episode's last step"


def test_numbers_of_the_tasks_are_those_of_the_docs():
    """docs/tasks.md; the other tests take these numbers from the code."""
    assert precision_cartpole.CONTEXT_SPREAD == (1.6, 1.2, 0.18, 1.2)
    assert np.degrees([precision_cartpole.MAX_FINAL_ANGLE, precision_cartpole.CONTEXT_MAX_FINAL_ANGLE]) == (
        pytest.approx([0.5, 3])
    )
    assert (pendulum.UPRIGHT, pendulum.WINDOW, pendulum.CONTEXT_WINDOW, pendulum.CONTEXT_MAX_SPEED) == (0.8, 100, 50, 2)
    assert (lunar_lander.MAX_X, hopper.MIN_DISTANCE) == (0.4, 1.0)
    horizons = [sppo_envs.task(env_id).horizon for env_id in sppo_envs.TASKS]
    assert dict(zip(sppo_envs.TASKS, horizons, strict=True)) == {
        "sppo/PrecisionCartPole-v0": 200, "sppo/ContextCartPole-v0": 200, "sppo/SparseMountainCar-v0": 1000,
        "sppo/SparsePendulum-v0": 1000, "sppo/ContextPendulum-v0": 100, "sppo/SparseLunarLander-v0": 1000,
        "sppo/SparseHopper-v0": 1000,
    }  # fmt: skip
