"""Prompts that the critic calls hopeless or solved: which are drawn in their place, in sppo_llm.py and in SPPOTrainer."""

import contextlib
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: extra llm")

from test_llm_scripts import assert_same_run, checkpoints, curves
from test_llm_trainer import assert_same, config, weights
from test_llm_trainer import critic as small_critic
from test_llm_trainer import prompts as dataset
from test_llm_trainer import small as small_reward
from test_llm_trainer import trainer as make_trainer

import sppo_llm
from sppo_control.llm import PromptCritic, addition, prompts, setup
from sppo_control.llm.prompt_filter import PromptFilter, others


class Chances:
    """A generator whose numbers are given."""

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def random(self, n):
        return np.array([next(self.numbers, 0.5) for _ in range(n)])


def percent(rows):
    """V of a prompt is its number, in hundredths."""
    return torch.tensor(rows) / 100


# ------------------------------------------------------------------------------------------------- the choice itself
def test_skipped_prompts_are_replaced_by_the_next_ones_in_their_order():
    """Bounds 0.1 and 0.9: 10 and 90 are inside, as float32 has them."""
    asked = []

    def value(rows):
        asked.append(rows)
        return percent(rows)

    chosen = PromptFilter(0.1, 0.9, 0.0).choose([10, 5, 90, 95], iter([9, 50, 91, 20, 30, 1]), value, Chances())
    assert chosen.kept == [10, 90, 50, 20]
    assert asked == [[10, 5, 90, 95], [9, 50, 91, 20]], "no more than are needed, a batch at a time"
    assert (chosen.below, chosen.above, chosen.retried, chosen.filled) == (2, 2, 0, 0)
    assert chosen.offered == pytest.approx(0.5), "of the batch as it would have been"
    assert chosen.scalars() == {
        "prompts/v0_offered": chosen.offered, "prompts/below": 2.0, "prompts/above": 2.0, "prompts/retried": 0.0,
        "prompts/filled": 0.0,
    }  # fmt: skip


def test_what_comes_after_the_last_prompt_that_is_kept_is_not_counted():
    chosen = PromptFilter(0.1, None, 0.0).choose([50, 5], iter([60, 1]), percent, Chances())
    assert chosen.kept == [50, 60]
    assert chosen.below == 1


def test_a_filter_that_skips_nothing_leaves_the_batch_as_it_is():
    for bounds in ((None, 0.95), (0.05, None), (0.0, 1.0)):
        chosen = PromptFilter(*bounds).choose([30, 20, 10], iter([40]), percent, Chances())
        assert chosen.kept == [30, 20, 10]
        assert (chosen.below, chosen.above) == (0, 0)
    assert not PromptFilter().active
    assert PromptFilter(high=0.5).active
    assert PromptFilter(low=0.5).active


def test_some_of_the_skipped_are_tried_again():
    chosen = PromptFilter(0.1, 0.9, 0.3).choose([5, 95, 50, 6], iter([60, 70]), percent, Chances(0.29, 0.31, 0.0, 0.3))
    assert chosen.kept == [5, 50, 60, 70]
    assert (chosen.below, chosen.above, chosen.retried) == (1, 1, 1)
    rng, kept = np.random.default_rng(0), 0
    for _ in range(200):
        kept += PromptFilter(0.1, None, 0.3).choose([1] * 10, iter([50] * 10), percent, rng).retried
    assert kept / 2000 == pytest.approx(0.3, abs=0.03)
    everything = PromptFilter(0.4, 0.5, 1.0).choose([1, 99], iter([]), percent, np.random.default_rng(0))
    assert everything.kept == [1, 99]


def test_where_no_others_are_left_the_skipped_ones_fill_the_batch():
    chosen = PromptFilter(0.1, 0.9, 0.0).choose([5, 95, 50, 96], iter([4, 60]), percent, Chances())
    assert chosen.kept == [50, 60, 5, 95]
    assert (chosen.below, chosen.above, chosen.filled) == (1, 1, 2), "those that were skipped for good"


def test_all_processes_ask_for_values_equally_often():
    """One process needs no others, the second needs two more batches, the third runs out; as with a sharded critic."""
    wait, flags, calls, found = threading.Barrier(3), [False] * 3, [0] * 3, [None] * 3

    def process(i, offered, more):
        def value(rows):
            calls[i] += 1
            assert rows
            wait.wait(20)  # a forward pass that all must make
            return percent(rows)

        def anyone(flag):
            flags[i] = flag
            wait.wait(20)
            answer = any(flags)
            wait.wait(20)
            return answer

        found[i] = PromptFilter(0.1, None, 0.0).choose(offered, iter(more), value, Chances(), anyone)

    batches = (([50, 60], [1]), ([1, 2], [3, 4, 70, 80]), ([3, 4], [5]))
    threads = [threading.Thread(target=process, args=(i, *batch)) for i, batch in enumerate(batches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert calls == [3, 3, 3]
    assert [x.kept for x in found] == [[50, 60], [70, 80], [3, 4]]
    assert [(x.below, x.filled) for x in found] == [(0, 0), (4, 0), (1, 2)]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((-0.1, None), "low must be a probability from 0 to 1, got -0.1"),
        ((None, 1.5), "high must be a probability from 0 to 1, got 1.5"),
        ((None, None, float("nan")), "retry must be a probability from 0 to 1, got nan"),
        ((0.5, 0.5), "low must be below high, got 0.5 and 0.5: .* none is left"),
        ((0.9, 0.1), "low must be below high"),
    ],
)
def test_bad_bounds_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        PromptFilter(*bounds)


def test_a_value_that_is_no_probability_is_refused():
    for bad in (float("nan"), 1.1, -0.1):
        with pytest.raises(ValueError, match="V must be probabilities from 0 to 1, got"):
            PromptFilter(0.1).sides(torch.tensor([0.5, bad]))
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptFilter(0.1).choose([], iter([]), percent, Chances())


def test_bounds_that_leave_too_few_prompts_are_refused_after_as_few_values_as_possible():
    asked = []

    def value(rows):
        asked.extend(rows)
        return percent(rows)

    PromptFilter(0.1, 0.9).require([5, 50, 60, 95, 70, 1], value, 2, "--x 1")
    assert asked == [5, 50, 60, 95]
    with pytest.raises(
        ValueError, match=r"--x 1 leave 1 of 4 prompts, fewer than a batch of 2: .* from 0.050 to 0.960"
    ):
        PromptFilter(0.1, 0.9).require([5, 95, 50, 96], value, 2, "--x 1")


def test_others_are_all_the_rest_once():
    rows = list(others(10, [3, 7], np.random.default_rng(1)))
    assert sorted(rows) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert rows != sorted(rows)


# ------------------------------------------------------------------------------------------------------- sppo_llm.py
SMALL = {"batch_size": 16, "total_episodes": 48, "eval_prompts": 8, "save_every": 1, "device": "cpu", "seed": 9,
         "critic_layers": 1}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def additions():
    """600 additions, made once for all."""
    with pytest.MonkeyPatch.context() as patch:
        whole = prompts.load_prompts(None, addition.tokenizer())
        made = whole._take(list(range(600)))
        patch.setattr(setup, "load_prompts", lambda *args: made)
        yield made


def train(folder, patch=None, **values):
    """A run; V may be made up: of the prompt's tokens. Returns the run and the texts of each batch's prompts."""
    seen = []
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()):
        real = sppo_llm.generate

        def generate(model, tokenizer, given, rows, *args, **kwargs):
            seen.append([given.texts[row] for row in rows])
            return real(model, tokenizer, given, rows, *args, **kwargs)

        patched.setattr(sppo_llm, "generate", generate)
        if patch is not None:
            patched.setattr(PromptCritic, "predict", patch)
        run = sppo_llm.train(sppo_llm.Args(**{**SMALL, "runs_dir": str(folder), **values}))
    return run, seen


def by_length(self, ids, batch_size=16):
    """Short prompts are solved, long ones are hopeless."""
    return torch.tensor([{4: 0.99, 5: 0.97, 9: 0.02, 10: 0.01}.get(len(row), 0.5) for row in ids])


@pytest.fixture(scope="module")
def unfiltered(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"))


def test_only_prompts_between_the_bounds_are_drawn_and_the_others_are_counted(unfiltered, tmp_path):
    plain = unfiltered[1]
    run, seen = train(tmp_path, by_length, skip_prompts_below=0.05, skip_prompts_above=0.95, retry_skipped_prompts=0.0)
    assert len(seen) == 3
    log = curves(run.folder)
    for update, (batch, before) in enumerate(zip(seen, plain, strict=True)):
        kept = [text for text in before if 5 < len(text) < 9]
        assert 0 < len(kept) < 16
        assert batch[: len(kept)] == kept, "the rest of the batch as it would be, in its order"
        assert len(set(batch)) == 16
        assert all(5 < len(text) < 9 for text in batch)
        assert log["prompts/below"][update][1] >= sum(len(text) >= 9 for text in before) > 0
        assert log["prompts/above"][update][1] >= sum(len(text) <= 5 for text in before)
        values = by_length(None, before)
        assert log["prompts/v0_offered"][update][1] == pytest.approx(float(values.mean()), abs=1e-6)
        assert log["prompts/retried"][update][1] == log["prompts/filled"][update][1] == 0


@pytest.mark.slow
def test_one_bound_alone(tmp_path):
    for name, long in (("skip_prompts_below", False), ("skip_prompts_above", True)):
        x = {"skip_prompts_below": 0.05, "skip_prompts_above": 0.95}[name]
        _, seen = train(tmp_path, by_length, total_episodes=16, retry_skipped_prompts=0.0, **{name: x})
        lengths = {len(text) for text in seen[0]}
        assert (max(lengths) >= 9) == long
        assert (min(lengths) <= 5) == (not long)


def test_without_bounds_and_with_bounds_that_skip_nothing_the_run_is_the_same(unfiltered, tmp_path):
    run, seen = train(tmp_path, skip_prompts_below=0.0, skip_prompts_above=1.0)
    assert seen == unfiltered[1]
    for part in ("policy", "critic"):
        ours, theirs = (checkpoints(x.folder)[-1] / part / "model.safetensors" for x in (run, unfiltered[0]))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not [tag for tag in curves(unfiltered[0].folder) if tag.startswith("prompts/")]


@pytest.mark.slow
def test_retried_prompts_are_drawn_and_counted(tmp_path):
    run, seen = train(
        tmp_path,
        by_length,
        skip_prompts_below=0.05,
        skip_prompts_above=0.95,
        retry_skipped_prompts=0.5,
        total_episodes=16,
    )
    outside = sum(not 5 < len(text) < 9 for text in seen[0])
    assert curves(run.folder)["prompts/retried"][0][1] == outside > 0


@pytest.mark.slow
def test_a_warm_up_skips_nothing(unfiltered, tmp_path):
    run, seen = train(tmp_path, by_length, skip_prompts_below=0.05, critic_warmup_batches=2, retry_skipped_prompts=0.0)
    assert seen[:2] == unfiltered[1][:2]
    assert max(map(len, seen[2])) < 9
    assert len(curves(run.folder)["prompts/below"]) == 1


def test_a_resumed_run_draws_the_same_prompts(tmp_path):
    """V is of the critic in the checkpoint, and the chances follow from seed and update."""
    start = sppo_llm.Args(**{**SMALL, "total_episodes": 64}, critic_learning_rate=0.03, runs_dir=str(tmp_path / "a"),
                          skip_prompts_below=0.47, skip_prompts_above=0.53, retry_skipped_prompts=0.4)  # fmt: skip
    values = {name: getattr(start, name) for name in vars(start)}
    whole, seen = train(tmp_path / "a", **values)
    log = curves(whole.folder)
    assert sum(x for _, x in log["prompts/below"]) + sum(x for _, x in log["prompts/above"]) > 5, (
        "else this says nothing"
    )
    broken, first = train(tmp_path / "b", **{**values, "runs_dir": str(tmp_path / "b"), "total_episodes": 32})
    assert first == seen[:2]
    values |= {"runs_dir": str(tmp_path / "b"), "resume": str(broken.folder)}
    resumed, rest = train(tmp_path / "b", **values)
    assert rest == seen[2:]
    assert_same_run(resumed.folder, whole.folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"skip_prompts_below": 0.5, "skip_prompts_above": 0.5},
            "--skip-prompts-below must be below --skip-prompts-above",
        ),
        ({"skip_prompts_below": 0.9, "skip_prompts_above": 0.1}, "no prompt would be left"),
        ({"skip_prompts_below": 1.5}, "--skip-prompts-below must be from 0 to 1, got 1.5"),
        ({"skip_prompts_above": float("nan")}, "--skip-prompts-above must be from 0 to 1, got nan"),
        ({"retry_skipped_prompts": 2.0, "skip_prompts_below": 0.1}, "--retry-skipped-prompts must be from 0 to 1"),
        ({"retry_skipped_prompts": 0.2}, "--retry-skipped-prompts 0.2 means nothing where no prompt is skipped"),
    ],
)
def test_impossible_bounds_are_refused_by_the_script(values, message):
    with pytest.raises(ValueError, match=message):
        sppo_llm.Args(**values)


def test_bounds_that_leave_no_batch_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"--skip-prompts-below 0.6 leave 0 of \d+ prompts, .* from 0.500 to 0.500"):
        train(tmp_path / "runs", skip_prompts_below=0.6)
    assert not Path(tmp_path / "runs").exists()
    run, _ = train(tmp_path / "runs", skip_prompts_below=0.6, critic_warmup_batches=1, total_episodes=32)
    assert curves(run.folder)["prompts/filled"][0][1] >= 0, "the critic that decides is the one after the warm-up"


# ------------------------------------------------------------------------------------------------------- SPPOTrainer
class Drawn:
    """A reward that notes the prompts."""

    __name__ = "small"

    def __init__(self):
        self.prompts = []

    def __call__(self, prompts, completions, answer, **columns):
        self.prompts.append(prompts)
        return small_reward(completions, answer)


def signs(self, ids, batch_size=16):
    """Prompts of 4 tokens are hopeless, of 6 solved."""
    return torch.tensor([{4: 0.01, 6: 0.99}.get(len(row), 0.5) for row in ids])


def test_the_trainer_draws_prompts_between_the_bounds(tmp_path, monkeypatch):
    plain, drawn = Drawn(), Drawn()
    make_trainer(tmp_path, plain, critic=small_critic(), max_steps=2).train()
    monkeypatch.setattr(PromptCritic, "predict", signs)
    settings = {"skip_prompts_below": 0.1, "skip_prompts_above": 0.9, "retry_skipped_prompts": 0.0}
    made = make_trainer(tmp_path, drawn, critic=small_critic(), max_steps=2, **settings)
    made.train()
    assert {len(text) for batch in plain.prompts for text in batch} == {4, 5, 6}
    assert {len(text) for batch in drawn.prompts for text in batch} == {5}
    assert [len(batch) for batch in drawn.prompts] == [8, 8]
    kept = [text for text in plain.prompts[0] if len(text) == 5]
    assert drawn.prompts[0][: len(kept)] == kept
    log = [row for row in made.state.log_history if "prompts/below" in row]
    assert log[0]["prompts/below"] >= sum(len(text) == 4 for text in plain.prompts[0])
    values = signs(None, plain.prompts[0])
    assert log[0]["prompts/v0_offered"] == pytest.approx(float(values.mean()))
    assert log[0]["prompts/retried"] == log[0]["prompts/filled"] == 0


@pytest.mark.slow
def test_the_trainer_resumes_with_the_same_prompts(tmp_path):
    settings = {
        "skip_prompts_below": 0.35, "skip_prompts_above": 0.8, "retry_skipped_prompts": 0.3, "max_steps": 4,
        "save_strategy": "steps", "save_steps": 2, "critic_warmup_batches": 1,
    }  # fmt: skip
    reward = Drawn()
    whole = make_trainer(tmp_path / "a", reward, dataset(40), critic=small_critic(), **settings)
    whole.train()
    log = [row for row in whole.state.log_history if "prompts/below" in row]
    assert sum(row["prompts/below"] + row["prompts/above"] for row in log) > 5, "else this says nothing"
    again = Drawn()
    made = make_trainer(tmp_path / "b", again, dataset(40), critic=small_critic(6), **settings)
    made.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.prompts == reward.prompts[3:], "the first was the warm-up's"
    assert_same(weights(made.model), weights(whole.model))
    assert_same(weights(made.critic), weights(whole.critic))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"skip_prompts_below": 0.5, "skip_prompts_above": 0.4}, "skip_prompts_below must be below skip_prompts_above"),
        ({"skip_prompts_above": 1.1}, "skip_prompts_above must be a probability from 0 to 1, got 1.1"),
        ({"skip_prompts_below": float("nan")}, "skip_prompts_below must be a probability from 0 to 1, got nan"),
        ({"retry_skipped_prompts": 0.2}, "retry_skipped_prompts=0.2 means nothing where no prompt is skipped"),
    ],
)
def test_impossible_bounds_are_refused_by_the_trainer(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **values)


def test_the_trainer_refuses_bounds_that_leave_too_few_prompts(tmp_path):
    drawn = Drawn()
    made = make_trainer(tmp_path, drawn, skip_prompts_below=0.6)
    with pytest.raises(ValueError, match=r"skip_prompts_below=0.6 .* leave too few of the 24 prompts .* 0.5 of every"):
        made.train()
    assert not drawn.prompts, "before anything is generated"


def test_the_trainer_saves_its_critic_with_a_card(tmp_path):
    """Of the responses of the training, V as it was before it was trained on them; a checkpoint has no card."""
    reward, seen = Drawn(), []
    made = make_trainer(tmp_path, reward, critic=small_critic(), max_steps=2, save_strategy="steps", save_steps=1)
    real = made._roll_out

    def roll_out(*args):
        output, outcome = real(*args)
        seen.append((made.critic(output["prompt_ids"], output["prompt_mask"]).sigmoid().detach(), outcome))
        return output, outcome

    made._roll_out = roll_out
    made.train()
    made.save_model()
    folder = tmp_path / "critic"
    v0, R = (torch.cat(parts).double() for parts in zip(*seen, strict=True))
    found = made.critic_card().calibration
    assert (found.outcomes, found.success) == (16, pytest.approx(float(R.mean())))
    assert found.brier == pytest.approx(float((v0 - R).square().mean()), abs=1e-5)
    text = (folder / "README.md").read_text()
    assert f"| Brier score, mean (V - R)^2 | {found.brier:.4f} |" in text
    assert "the newest 16 responses" in text
    assert torch.equal(PromptCritic.from_pretrained(folder).predict(["1+2="]), made.critic.predict(["1+2="]))
    assert not (tmp_path / "checkpoint-2" / "critic" / "README.md").exists()
    assert "skipped" not in text


def test_what_is_uploaded_while_training_has_the_critic(tmp_path, monkeypatch):
    """transformers copies the policy's files alone into the folder that it uploads."""
    made = make_trainer(tmp_path, critic=small_critic(), max_steps=1, save_strategy="steps", save_steps=1)
    made.train()
    made.save_model()
    seen = []
    monkeypatch.setattr(
        type(made).__mro__[1], "_push_from_checkpoint",
        lambda self, folder: seen.append(sorted(path.name for path in (tmp_path / "critic").iterdir())),
    )  # fmt: skip
    torch.nn.init.ones_(made.critic.head.weight)
    made.critic.save_pretrained(tmp_path / "checkpoint-1" / "critic")
    made._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert {"prompt_critic.json", "head.safetensors", "model.safetensors", "config.json"} <= set(seen[0])
    assert "README.md" not in seen[0], "the card is not of this critic"
    assert PromptCritic.from_pretrained(tmp_path / "critic").head.weight.eq(1).all()
