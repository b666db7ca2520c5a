"""`runs.Run` by itself, without an algorithm: random numbers, counting, logs on disk, checkpoints, resuming, stopping."""

import dataclasses
import json
import signal
import time
from types import SimpleNamespace
from typing import Any

import first_page
import numpy as np
import pytest
import torch
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import backend_context

import ppo_cartpole
import sppo_cartpole
from sppo_control import checkpoints, core, errors, runs
from sppo_control.networks import Critic
from sppo_control.outcomes import Evaluation


@dataclasses.dataclass
class Args:
    runs_dir: str
    seed: int = 3
    total_timesteps: int = 1_000
    save_every: int = 100
    resume: str | None = None


def batch(*outcome, lengths=None, **info):
    """Episodes of these outcomes."""
    lengths = torch.tensor([2] * len(outcome) if lengths is None else lengths)
    R = torch.tensor(outcome, dtype=torch.float32)
    info = {name: np.array(x) for name, x in info.items()}
    return SimpleNamespace(
        info=info, outcome=R, lengths=lengths, num_steps=int(lengths.sum()), episode_return=10 * R - 1
    )


def new_run(args, **parts):
    run = runs.Run(args, "scripts/some_cartpole.py", "my/Task-v0")
    run.start(**parts)
    return run


def curves(folder):
    """tag -> [(step, value)], as far as it is on disk."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# -------------------------------------------------------------------------------------------------- random numbers
def test_random_numbers_depend_on_seed_update_and_purpose(tmp_path):
    run = runs.Run(Args(str(tmp_path)), "scripts/x.py", "task")
    draw = lambda: [int(run.new_rng(stream).integers(2**62)) for stream in ("rollout", "shuffle", "evaluate")]  # noqa: E731
    first = draw()
    assert draw() == first, "two calls give equal generators"
    assert first == [int(np.random.default_rng([3, 0, i]).integers(2**62)) for i in range(3)]
    run.update = 5
    assert draw() == [int(np.random.default_rng([3, 5, i]).integers(2**62)) for i in range(3)]
    run.args.seed = 4
    assert draw() == [int(np.random.default_rng([4, 5, i]).integers(2**62)) for i in range(3)]


# ------------------------------------------------------------------------------------------------ counting and logs
def test_an_update_is_counted_and_logged_at_its_end(tmp_path):
    run = new_run(Args(str(tmp_path)))
    run.end_update(batch(1, 0, lengths=[3, 5], tilt=[0.5, 1.0], fell=[True, False]), {"losses/policy_loss": 0.25})
    run.end_update(batch(1, 1, lengths=[1, 4]), {}, baseline=batch(0, lengths=[7]))
    assert (run.update, run.steps, run.episodes) == (2, 8 + 5 + 7, 2 + 2 + 1)
    run.writer.flush()
    logged = curves(run.folder)
    assert logged["charts/success_rate"] == [(8, 0.5), (20, 1.0)]
    assert logged["charts/episodic_return"] == [(8, 4.0), (20, 9.0)]
    assert logged["charts/episodic_length"] == [(8, 4.0), (20, 2.5)]
    assert logged["charts/episodes"] == [(8, 2.0), (20, 5.0)]
    assert logged["measures/tilt"] == [(8, 0.75)]
    assert logged["measures/fell"] == [(8, 0.5)]
    assert logged["losses/policy_loss"] == [(8, 0.25)]


def test_statistics_of_an_update_are_weighted_and_extremes_are_extremes():
    means = runs.Means()
    for n, loss in ((1, 4.0), (3, 8.0)):
        logp = torch.full((1, n), 0.1 * n)
        seen = core.clipped_surrogate(logp, torch.zeros(1, n), torch.ones(1), torch.ones(1, n).bool())
        means.add_surrogate(seen, entropy=torch.tensor(loss))
    scalars = means.scalars()
    assert scalars["losses/entropy"] == 7.0
    assert scalars["losses/old_approx_kl"] == pytest.approx(-(0.1 + 3 * 0.3) / 4)
    assert scalars["losses/ratio_min"] == pytest.approx(np.exp(0.1))
    assert scalars["losses/ratio_max"] == pytest.approx(np.exp(0.3))


def test_the_loss_of_a_micro_batch_is_logged_as_a_mean_over_its_steps():
    means, logp, mask = runs.Means(), torch.randn(4, 3), torch.ones(4, 3).bool()
    logp_old, advantage = torch.randn(4, 3), torch.randn(4)
    for rows in torch.arange(4).split(1):
        part = core.clipped_surrogate(logp[rows], logp_old[rows], advantage[rows], mask[rows], denominator=12.0)
        means.add_surrogate(part, torch.tensor(0.0), 12.0)
    whole = core.clipped_surrogate(logp, logp_old, advantage, mask)
    assert means.scalars()["losses/policy_loss"] == pytest.approx(float(whole.loss), rel=1e-5)


# ------------------------------------------------------------------------------------------ checkpoints and resuming
def test_a_checkpoint_is_due_every_so_often_and_at_the_end_and_events_are_on_disk_by_then(tmp_path):
    run = new_run(Args(str(tmp_path), save_every=2, total_timesteps=20))
    for _ in range(5):
        run.end_update(batch(1, 0), {})
        if run.update == 2:
            assert [step for step, _ in curves(run.folder)["charts/success_rate"]] == [4, 8]
    assert [int(path.name) for path in run.checkpoints()] == [0, 2, 4, 5]


def test_a_checkpoint_is_written_when_all_events_before_it_have_been_flushed(tmp_path, monkeypatch):
    run, calls = new_run(Args(str(tmp_path), save_every=1)), []
    for owner, name in ((run.writer, "add_scalar"), (run.writer.file, "check"), (runs, "write_checkpoint")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, n=name, r=real, **kw: calls.append(n) or r(*args, **kw))
    run.end_update(batch(1, 0), {})
    assert calls[0] == "add_scalar"
    last = len(calls) - 1 - calls[::-1].index("add_scalar")
    assert calls[last + 1 :][:2] == ["check", "write_checkpoint"]


def test_resuming_restores_counters_parts_and_recent_outcomes_and_drops_what_came_later(tmp_path):
    run = new_run(Args(str(tmp_path), save_every=1), net=(net := Critic(2)))
    for update in range(4):
        with torch.no_grad():
            net.flat.fill_(update + 1)
        run.end_update(batch(1, 0, update % 2), {})
    run.writer.close()
    (run.folder / "checkpoints" / ".writing-dead").mkdir()
    time.sleep(1 - time.time() % 1)  # so that the next file of events has a later name at once
    again = new_run(Args(str(tmp_path), resume=str(run.folder / "checkpoints" / "000002")), net=(other := Critic(2)))
    assert (again.update, again.steps, again.episodes) == (2, 12, 6)
    assert again.seconds > 0
    assert (other.flat == 2).all()
    assert list(again._recent) == [1, 0, 0, 1, 0, 1]
    assert [path.name for path in again.checkpoints()] == ["000000", "000001", "000002"]
    assert not list((run.folder / "checkpoints").glob(".writing-*"))
    again.end_update(batch(1, 1, 1), {})
    again.writer.close()
    logged = curves(run.folder)["charts/success_rate"]
    assert [step for step, _ in logged] == [6, 12, 18], "events after the checkpoint are dropped, those before stay"
    assert logged[-1][1] == 1.0
    newest = new_run(Args(str(tmp_path), resume=str(run.folder)), net=Critic(2))
    assert newest.update == 2, "the newest checkpoint is taken where none is named"


def test_an_optimisers_state_goes_through_a_checkpoint(tmp_path):
    net = Critic(2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    parts = {"a": net, "o": checkpoints.OptimizerState(optimizer)}
    checkpoints.write_checkpoint(tmp_path / "000003", parts, {"update": 3})
    copy = Critic(2)
    other = torch.optim.Adam(copy.parameters(), lr=0.1)
    state = checkpoints.read_checkpoint(
        tmp_path / "000003", {"a": copy, "o": checkpoints.OptimizerState(other)}, ("update",)
    )
    assert state == {"update": 3}
    for net_, optimizer_ in ((net, optimizer), (copy, other)):
        optimizer_.zero_grad()
        net_(torch.ones(1, 2)).sum().backward()
        optimizer_.step()
    assert torch.equal(net.flat, copy.flat)


def test_the_newest_checkpoint_and_the_newest_of_at_most_so_many_updates(tmp_path):
    for update in (0, 8, 16):
        (tmp_path / "checkpoints" / f"{update:06d}").mkdir(parents=True)
    assert checkpoints.newest(tmp_path).name == "000016"
    assert checkpoints.newest(tmp_path, at_most=8).name == "000008"
    assert checkpoints.newest(tmp_path, at_most=15).name == "000008"


def test_a_folder_without_a_layout_is_of_the_first_one(tmp_path):
    with pytest.raises(errors.UserError, match=r"has layout 1, this version reads layout"):
        checkpoints.check_layout(tmp_path, {})


# ------------------------------------------------------------------------------------------- stopping and evaluating
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_update_and_saves(tmp_path, number, status, capsys):
    run = new_run(Args(str(tmp_path)))
    run._on_signal(number, None)
    with pytest.raises(SystemExit) as stop:
        run.end_update(batch(1, 0), {})
    assert stop.value.code == status
    assert [int(path.name) for path in run.checkpoints()] == [0, 1]
    assert f"--resume {run.folder}" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_value_that_is_not_finite_passes(tmp_path, value):
    run = new_run(Args(str(tmp_path)))
    with pytest.raises(errors.NonFiniteError, match="critic gradient norm is"):
        run.check_finite(policy_loss=torch.tensor(1.0), critic_gradient_norm=torch.tensor(value))


def test_a_resumed_run_is_not_evaluated_before_training_again(tmp_path):
    run = new_run(Args(str(tmp_path)))
    first = run.once("before", lambda: Evaluation(np.array([True, False]), {}))
    run.start()  # writes it
    again = runs.Run(Args(str(tmp_path), resume=str(run.folder)), "scripts/some_cartpole.py", "my/Task-v0")
    noted = again.once("before", lambda: Evaluation(np.array([True]), {}))
    assert (noted["rate"], noted["episodes"]) == (first["rate"], first["episodes"]) == (0.5, 2)
    assert json.loads((run.folder / "summary.json").read_text())["before"]["rate"] == 0.5


def test_versions_of_a_source_tree_that_is_not_installed(monkeypatch):
    def none(name):
        raise runs.PackageNotFoundError(name)

    monkeypatch.setattr(runs, "version", none)
    found = runs.versions()["versions"]
    assert found.pop("python")
    assert found == dict.fromkeys(
        ("sppo-control", "torch", "numpy", "gymnasium", "safetensors"), "unknown (not installed)"
    )


def test_the_page_of_chosen_curves_is_written_once_per_run(tmp_path):
    """As TensorBoard's page Custom Scalars reads it, also after the run was resumed."""
    folder = None
    for _ in range(2):
        run = new_run(Args(str(tmp_path), resume=folder))
        folder = str(run.folder)
        run.end_update(batch(1, 0), {"critic/v0_mean": 0.5, "losses/approx_kl": 0.0, "losses/clipfrac": 0.0})
        run.save()
        run.writer.close()
    assert len(list(run.folder.glob("events*"))) == 2
    assert run.update == 2
    assert len(first_page.layouts(run.folder)) == 1
    assert first_page.charts(run.folder, curves(run.folder)) == first_page.SIDE_BY_SIDE


def test_tensorboard_shows_the_arguments_and_opens_with_success(tmp_path):
    """As its page HPARAMS reads a folder of two runs whose arguments have different names; one run is not complete."""
    for name, value, complete in (("width", 0.5, True), ("sizes", (4, 2), False)):
        kind = dataclasses.make_dataclass("Own", [(name, Any, value)], bases=(Args,))
        run = new_run(kind(str(tmp_path / "runs")))
        run.end_update(batch(1, 0, 1, 1), {"advantages/mean": 0.0})
        if complete:
            success = Evaluation(np.array([True]), {})
            run.finish(success, success.as_dict())
        run.writer.close()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs")).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path / "runs"))
    hparams = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    metadata = hparams.hparams_metadata(context.RequestContext(), "")
    assert sorted("_hparams_/session_end_info" in tags for tags in metadata.values()) == [False, True]
    experiment = hparams.experiment_from_metadata(context.RequestContext(), "", True, metadata, [])
    assert {x.name for x in experiment.hparam_infos} == {
        "runs_dir",
        "seed",
        "total_timesteps",
        "save_every",
        "width",
        "sizes",
    }
    assert experiment.metric_infos[0].name.tag == "Success/rate"
    tags = EventAccumulator(str(run.folder)).Reload().Tags()["scalars"]
    assert min(tags) == "Success/rate", "TensorBoard sorts tags"
    assert curves(run.folder)["Success/rate"] == curves(run.folder)["charts/success_rate"] == [(8, 0.75)]
    assert list(run.folder.glob("*/events*")) == [], "no folder of its own"


# -------------------------------------------------------------------------------------------------------- arguments
RANGES = {
    "ent_coef": ([-1e-9, float("inf"), float("nan")], [0.0]),
    "learning_rate": ([0.0, float("inf"), float("nan")], [1e-9]),
    "critic_learning_rate": ([0.0], [1e-9]),
    "max_grad_norm": ([0.0], [1e-7]),
    "clip_coef": ([0.0], [0.5]),
    "update_epochs": ([0], [1]),
    "eval_episodes": ([0], [1]),
    "save_every": ([0], [1]),
    "num_envs": ([0, 63], [4]),
    "seed": ([-1], [0]),
    "gamma": ([-1e-9, 1 + 1e-9], [0.0, 1.0]),
    "gae_lambda": ([-1e-9, 1 + 1e-9], [0.0, 1.0]),
    "critic_steps": ([0], [1]),
    "critic_batch_size": ([0], [1]),
    "critic_window": ([0], [1]),
}
"""Argument -> values that are refused, values that are taken."""


@pytest.mark.parametrize("module", [sppo_cartpole, ppo_cartpole], ids=["sppo", "ppo"])
def test_ranges_of_arguments(module):
    own = {field.name for field in dataclasses.fields(module.Args)}
    for name, (bad, good) in RANGES.items():
        for value in bad if name in own else ():
            with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} |--num-minibatches must divide"):
                module.Args(**{name: value})
        for value in good if name in own else ():
            module.Args(**{name: value})
