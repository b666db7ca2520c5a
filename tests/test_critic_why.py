"""Critics fitted to a policy that stands still: what they learn from, by hand, and the page has the table of the file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sppo_control.study", exc_type=ImportError)  # the reason names the package

import critic_why
import sppo_cartpole
from sppo_control.errors import FileError, UserError
from sppo_control.networks import Critic

ROOT = Path(__file__).resolve().parents[1]


def test_products_of_cos_and_sin_are_the_harmonics_of_the_angle():
    obs = torch.tensor([[2.0, 3.0]])
    assert critic_why.products(obs, 2).tolist() == [[2, 3, 4, 6, 9]]
    assert critic_why.products(torch.rand(5, 3)).shape == (5, 34), "C(3 + 4, 4) - 1"
    angle = torch.linspace(-3, 3, 60)
    found = critic_why.products(torch.stack([angle.cos(), angle.sin()], dim=1)).double()
    wanted = torch.cos(4 * angle).double()
    solved = torch.linalg.lstsq(torch.cat([found, torch.ones(60, 1)], 1), wanted, driver="gelsd").solution
    assert torch.cat([found, torch.ones(60, 1)], 1) @ solved == pytest.approx(wanted, abs=1e-5)


def test_a_critic_is_fitted_as_the_training_script_trains_its_own():
    """Three updates by hand with torch's own optimiser, and it looks after one and three."""
    rng = np.random.default_rng(0)
    contexts, new = (torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)) for n in (300, 7))
    outcomes = (contexts[:, 0] > 0).float()
    found = dict(critic_why.fit(contexts, outcomes, new, (8,), (1, 3), seed=4))
    draws = np.random.default_rng(4)
    torch.manual_seed(4)
    network = Critic(3, (8,)).to_sequential()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, eps=1e-5)
    for update in (1, 2, 3):
        rows = draws.integers(300, size=128)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(contexts[rows])[:, 0], outcomes[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if update != 2:
            assert found[update] == pytest.approx(torch.sigmoid(network(new))[:, 0].detach().numpy(), abs=1e-5)
    assert list(found) == [1, 3]


def test_the_nearest_contexts_give_their_mean_outcome(monkeypatch):
    monkeypatch.setattr(critic_why, "NEAREST", 3)
    contexts, outcomes = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0]]), torch.tensor([1.0, 0, 1, 0, 0])
    new = torch.tensor([[0.9], [10.4]])
    assert critic_why.nearest(contexts, outcomes, new) == pytest.approx([2 / 3, 1 / 3])
    assert critic_why.nearest(contexts[:2], outcomes[:2], new) == pytest.approx([0.5, 0.5]), "no more than there are"


def test_measures_of_a_v_by_hand():
    found = critic_why.measured(np.array([0.2, 0.6]), torch.tensor([0.0, 1.0]), 64)
    assert found["spearman"] == pytest.approx(1)
    assert found["brier"] == pytest.approx((0.04 + 0.16) / 2)
    assert found["ece"] == pytest.approx((0.2 + 0.4) / 2)
    assert found["share"] == pytest.approx(1 - 0.1 / 0.25)
    assert set(found) == set(critic_why.MEASURES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run of SPPO, and one whose critic was trained otherwise."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"num_envs": 8, "num_minibatches": 2, "save_every": 1, "eval_episodes": 1, "total_timesteps": 1600}
    for changes in ({"seed": 3}, {"seed": 4, "critic_steps": 21}):
        sppo_cartpole.train(sppo_cartpole.Args("sppo/ContextPendulum-v0", runs_dir=str(folder), **small, **changes))
    return folder


def test_all_critics_are_compared_on_the_policy_of_the_checkpoint(trained, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(critic_why, "fit", lambda c, o, new, h, updates, seed: (
        seen.append((c, o, h)) or [(u, np.linspace(0, 1, len(new))) for u in updates]))  # fmt: skip
    changes = {
        "episodes": (64, 128),
        "updates": (2, 5),
        "contexts": 6,
        "update": 1,
        "env_id": "sppo/ContextPendulum-v0",
    }
    critic_why.main(critic_why.Args((trained,), tmp_path / "o.json", **changes))
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert {(row["seed"], row["update"]) for row in rows} == {(3, 1)}, "the other run has another critic"
    assert [(row["critic"], row["episodes"], row["updates"]) for row in rows] == [
        ("the run's own", 0, 0), *[("as in training", n, u) for n in (64, 128) for u in (2, 5)],
        *[(name, 128, u) for name in ("wide", "products") for u in (2, 5)], *[("nearest", n, 0) for n in (64, 128)],
    ]  # fmt: skip
    assert [(*c.shape, *h) for c, _, h in seen] == [
        (64, 3, 64, 64), (128, 3, 64, 64), (128, 3, 256, 256), (128, 34, 64, 64)
    ]  # fmt: skip
    assert seen[0][0] == pytest.approx(seen[1][0][:64]), "fewer episodes are the first of the same"
    assert seen[1][0][:, :2].square().sum(1) == pytest.approx(torch.ones(128)), "cos and sin, which are not scaled"
    assert 0 < seen[1][0][:, 2].abs().max() <= 0.5, "at most 2 rad/s, scaled by 0.25"
    assert set(seen[1][1].tolist()) == {0.0, 1.0}
    assert critic_why.table(rows) in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(trained, tmp_path):
    (other,) = (
        p.parent for p in trained.glob("*/config.json") if json.loads(p.read_text())["args"]["critic_steps"] == 21
    )
    with pytest.raises(UserError, match=r"--runs has no run of sppo_cartpole\.py with the default critic"):
        critic_why.main(critic_why.Args((other,), tmp_path / "o.json"))
    assert not (tmp_path / "o.json").exists()
    with pytest.raises(ValueError, match="--episodes must be multiples of 64, because so many run at a time; got 100"):
        critic_why.Args(episodes=(64, 100))
    (tmp_path / "bad.json").write_text('{"rows": [{"critic": "wide"}]}')
    with pytest.raises(FileError, match=r"was not written by scripts/critic_why\.py"):
        critic_why.read(tmp_path / "bad.json")


def test_the_page_has_the_table_of_the_file():
    text = critic_why.table(critic_why.read(ROOT / "results" / "critic_why.json"))
    assert text in (ROOT / "docs" / "critic_control.md").read_text(), "python scripts/critic_why.py"
