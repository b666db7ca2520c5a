"""The conformance kit: it accepts what is right, finds what is wrong, and calls the mistake by its name."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sppo_control import conformance, core, errors
from sppo_control.conformance import __main__ as command
from sppo_control.conformance import adapters, check, peers, reference, score, spec

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "conformance.md").read_text()


def status(report):
    return {result.prop.id: result.status for result in report.results}


def named(report):
    return {name for result in report.results for name in result.mistakes}


# -------------------------------------------------------------------------------------------------- what is right
def test_core_has_every_property_that_it_offers():
    report = check(core, examples=0)
    assert report.ok, report
    assert report.framework == "torch"
    offered = {p.id for p in spec.PROPERTIES if p.function.name != "update"}
    assert {name for name, what in status(report).items() if what == "holds"} == offered


def test_hypothesis_is_used_for_what_holds_too():
    seen = []

    def sequence_advantage(outcome, value_logit):
        seen.append(len(outcome))
        return outcome - torch.sigmoid(value_logit)

    assert check({"sequence_advantage": sequence_advantage}, only=["sequence_advantage.value"], examples=20).ok
    assert len(seen) > 20


# ------------------------------------------------------------------------------------------------------- findings
def test_a_finding_has_the_smallest_example_the_mistake_and_the_equation():
    report = check({"sequence_advantage": lambda outcome, value_logit: outcome - value_logit})
    result = next(r for r in report.results if r.status == "fails")
    assert not report.ok
    assert result.prop.id == "sequence_advantage.value"
    assert result.inputs == {"outcome": [0.0], "value_logit": [0.0]}, "shrunk"
    assert result.mistakes == ("advantage_from_the_logit",)
    text = str(report)
    for part in ("advantage is [0.0], right is [-0.5]", "as if it were a probability", "A = R - sigmoid(v)", "eq. 1"):
        assert part in text
    plain = json.loads(report.json())
    assert plain["specification"] == spec.SPEC_VERSION
    assert plain["counts"]["fails"] == len([p for p in plain["properties"] if p["status"] == "fails"]) >= 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda R, v: 1 / 0, "raises ZeroDivisionError: division by zero"),
        (lambda R, v: (R - torch.sigmoid(v))[:, None], "right is (1,)"),
        (lambda R, v: R * torch.nan, '"nan"'),
        (lambda R, v: None, "raises TypeError: an array was expected, got NoneType"),
        (lambda R: R, "raises TypeError"),
    ],
    ids=["raises", "shape", "nan", "nothing", "arguments"],
)
def test_a_broken_adapter_is_a_finding_in_one_line(function, words):
    report = check(
        {"sequence_advantage": function, "framework": "torch"}, only=["sequence_advantage.value"], examples=5
    )
    (result,) = report.results
    assert result.status == "fails"
    assert words in result.found
    assert "\n" not in result.found
    assert result.mistakes == ()


def test_two_mistakes_at_once_are_both_named():
    def group_relative_advantage(outcome, group_size, normalize_std=True):
        groups = outcome.reshape(-1, group_size)
        centred = groups - groups.mean(1, keepdim=True)
        return (centred / (groups.std(1, keepdim=True) + 1e-4) if normalize_std else centred).reshape(-1)

    adapter = {"group_relative_advantage": group_relative_advantage}
    report = check(adapter, examples=0)
    half = check(adapter, {"group_epsilon_1e_4": "the other is not expected"}, examples=0)
    assert not half.ok
    assert named(report) == {"group_deviation_of_a_sample", "group_epsilon_1e_4"}


def test_expected_failures_have_reasons():
    def loss(logp, logp_old, advantage, mask):
        r = torch.where(mask, logp - logp_old.detach(), 0.0).exp()
        A = advantage.detach() if advantage.ndim == 2 else advantage.detach()[:, None]
        L = torch.minimum(r * A, r.clamp(0.8, 1.2) * A)
        return -(torch.where(A < 0, torch.maximum(L, 3 * A), L) * mask).sum() / mask.sum()

    only = ["policy_loss.clip", "policy_loss.padding"]
    assert named(check({"policy_loss": loss}, only=only, examples=0)) == {"dual_clip"}
    report = check({"policy_loss": loss}, {"dual_clip": "we bound it"}, only=only, examples=0)
    assert report.ok
    assert set(status(report).values()) == {"expected failure"}
    assert "we bound it" in str(report)
    by_property = check({"policy_loss": loss}, {"policy_loss.clip": "so it is"}, only=only, examples=0)
    assert status(by_property) == {"policy_loss.clip": "expected failure", "policy_loss.padding": "fails"}
    held = check({"policy_loss": loss}, {"sum_for_mean": "no"}, only=["policy_loss.detached"], examples=0)
    assert "expected to fail, but nothing failed so: sum_for_mean" in str(held)
    with pytest.raises(ValueError, match="'dual-clip', which is neither"):
        check({"policy_loss": loss}, {"dual-clip": "a slip"})
    with pytest.raises(ValueError, match="'policy'"):
        check({"policy_loss": loss}, only=["policy"])


def test_what_is_not_offered_is_said():
    def policy_loss(logp, logp_old, advantage, mask):
        return core.clipped_surrogate(logp, logp_old, advantage, mask).loss

    def greedy_baseline_advantage(outcome, greedy_outcome):
        raise NotImplementedError("no greedy episodes here")

    report = check({"policy_loss": policy_loss, "greedy_baseline_advantage": greedy_baseline_advantage},
                   only=["policy_loss.fixed", "policy_loss.approx_kl", "greedy_baseline_advantage", "update"])  # fmt: skip
    reasons = {r.prop.id: r.reason for r in report.results}
    assert report.ok
    assert reasons["policy_loss.fixed"] == "policy_loss has no argument reduction"
    assert reasons["policy_loss.approx_kl"] == "policy_loss does not return approx_kl"
    assert reasons["greedy_baseline_advantage.value"] == "no greedy episodes here"
    assert reasons["update.one_step"] == "the adapter has no such function"


def gae_without_defaults(reward, value, mask, gamma, gae_lambda):
    return core.generalized_advantage(reward, value, mask, gamma, gae_lambda)


def loss_without_defaults(logp, logp_old, advantage, mask, clip_coef, *, reduction, denominator, ratio):
    return core.clipped_surrogate(logp, logp_old, advantage, mask, clip_coef, reduction, denominator, ratio).loss


def test_options_without_a_default_are_passed():
    def squared_value_loss(value, returns, mask, denominator, value_old, clip_coef):
        return core.squared_value_loss(value, returns, mask, denominator, value_old, clip_coef)

    adapter = {"generalized_advantage": gae_without_defaults, "policy_loss": loss_without_defaults}
    report = check({**adapter, "squared_value_loss": squared_value_loss}, examples=0)
    assert report.ok, report
    statistics = {f"policy_loss.{s}" for s in ("old_approx_kl", "approx_kl", "clipfrac", "ratio_min", "ratio_max")}
    absent = {r.prop.id for r in report.results if r.prop.function.name in adapter and r.status == "not offered"}
    assert absent == statistics | {"policy_loss.kl_of_a_sequence_ratio"}, "it returns a scalar"


def test_a_bug_in_an_adapter_without_defaults_is_named():
    def clipped_from_above(logp, logp_old, advantage, mask, clip_coef):
        A = advantage.detach() if advantage.ndim == 2 else advantage.detach()[:, None]
        r = torch.where(mask, logp - logp_old.detach(), 0.0).exp()
        return -torch.where(mask, torch.minimum(r * A, r.clamp(max=1 + clip_coef) * A), 0.0).sum() / mask.sum()

    def lambda_ignored(reward, value, mask, gamma, gae_lambda):
        return core.generalized_advantage(reward, value, mask, gamma, 1.0)

    only = ["policy_loss.clip", "policy_loss.clip_coef", "policy_loss.padding", "policy_loss.approx_kl"]
    report = check({"policy_loss": clipped_from_above}, only=only, examples=0)
    assert named(report) == {"ratio_clipped_from_above_only"}
    assert status(report)["policy_loss.approx_kl"] == "not offered"
    assert named(check({"generalized_advantage": lambda_ignored}, examples=0)) == {"gae_lambda_ignored"}


def test_defaults_of_an_adapters_own_are_no_failure():
    def gae(reward, value, mask, gamma=0.99, gae_lambda=0.95):
        return core.generalized_advantage(reward, value, mask, gamma, gae_lambda)

    def policy_loss(logp, logp_old, advantage, mask, *, clip_coef=0.1):
        return core.clipped_surrogate(logp, logp_old, advantage, mask, clip_coef)

    def group_relative(outcome, group_size, normalize_std=False):
        return core.group_relative_advantage(outcome, group_size, normalize_std)

    adapter = {"generalized_advantage": gae, "policy_loss": policy_loss, "group_relative_advantage": group_relative}
    report = check(adapter, examples=0)
    assert report.ok, report


def test_arguments_that_the_kit_does_not_know_are_said_where_no_mistake_is_named():
    def gae(rewards, values, mask, gamma=0.99, lam=0.95):
        return core.generalized_advantage(rewards, values, mask, gamma, lam)

    report = check({"generalized_advantage": gae}, only=["generalized_advantage.plain"], examples=0)
    words = (
        "called with its own lam = 0.95, which the kit does not know. If that is one of gamma, gae_lambda, give it this"
    )
    assert words in str(report)
    assert words in report.as_dict()["properties"][0]["note"]

    def half(value_logit, outcome, scale=0.5):
        return scale * (torch.sigmoid(value_logit) - outcome.detach()).square().mean()

    report = check({"bernoulli_value_loss": half}, only=["bernoulli_value_loss.value"], examples=0)
    assert named(report) == {"half_squared_error_for_cross_entropy"}
    assert "scale" not in str(report), "the mistake is known"


def multiplied(logp, logp_old, advantage, mask):
    A = advantage.detach() if advantage.ndim == 2 else advantage.detach()[:, None]
    r = (logp - logp_old.detach()).exp()
    return torch.minimum(r * A, r.clamp(0.8, 1.2) * A) * mask


def masked_late(logp, logp_old, advantage, mask):
    return -torch.where(mask, multiplied(logp, logp_old, advantage, torch.ones_like(mask)), 0.0).sum() / mask.sum()


def gae_by_factor(late):
    def gae(reward, value, mask, gamma=1.0, gae_lambda=1.0):
        value, m = value.detach(), mask.to(reward.dtype)
        adv = torch.zeros_like(reward)
        last = after = torch.zeros_like(reward[:, 0])
        for t in reversed(range(reward.shape[1])):
            here = reward[:, t] + gamma * after - value[:, t] + gamma * gae_lambda * last
            last = m[:, t] * here + (1 - m[:, t]) * last
            after = m[:, t] * value[:, t] + (1 - m[:, t]) * after
            adv[:, t] = last
        both = adv, adv + value
        return [torch.where(mask, x, 0.0) for x in both] if late else [x * m for x in both]

    return gae


def gae_that_stops_at_padding(reward, value, mask, gamma=1.0, gae_lambda=1.0):
    value, adv = value.detach(), torch.zeros_like(reward)
    last = after = torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        here = reward[:, t] + gamma * after - value[:, t] + gamma * gae_lambda * last
        last, after = torch.where(mask[:, t], here, 0.0), torch.where(mask[:, t], value[:, t], 0.0)
        adv[:, t] = last
    return adv, torch.where(mask, adv + value, 0.0)


def squared_late(value, returns, mask):
    return torch.where(mask, (value - returns.detach()).square(), 0.0).sum() / mask.sum() / 2


@pytest.mark.parametrize(
    ("adapter", "prop", "mistake"),
    [
        ({"policy_loss": lambda *x: -multiplied(*x).sum() / x[3].sum()}, "policy_loss.padding_values",
         "old_log_probability_padding_kept"),
        ({"policy_loss": masked_late}, "policy_loss.padding_values", "padding_removed_after_the_ratio"),
        ({"policy_loss": lambda *x: -multiplied(*x[:3], torch.ones_like(x[3]))[x[3]].mean()}, "policy_loss.padding_values",
         "padding_removed_after_the_ratio"),
        ({"generalized_advantage": gae_by_factor(False)}, "generalized_advantage.padding_values", "gae_padding_kept"),
        ({"generalized_advantage": gae_by_factor(True)}, "generalized_advantage.padding_values",
         "gae_padding_cleared_late"),
        ({"generalized_advantage": gae_that_stops_at_padding}, "generalized_advantage.padding_anywhere",
         "gae_padding_ends_the_episode"),
        ({"squared_value_loss": squared_late}, "squared_value_loss.padding_values",
         "squared_error_padding_removed_after_the_square"),
    ],
)  # fmt: skip
def test_each_usual_way_to_remove_padding_too_late_has_a_name(adapter, prop, mistake):
    only = [prop] if "loss" in prop else None  # GAE's other properties tell it from padding that is taken as real
    (result,) = (r for r in check(adapter, only=only, examples=0).results if r.prop.id == prop)
    assert set(result.mistakes) == {mistake}


@pytest.mark.parametrize("function", spec.FUNCTIONS, ids=lambda f: f.name)
def test_the_defaults_are_those_of_core_and_of_the_page(function):
    name = "clipped_surrogate" if function.name == "policy_loss" else function.name
    if function.name == "update":
        assert not function.defaults
        return
    parameters = inspect.signature(getattr(core, name)).parameters.values()
    of_core = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in function.arrays}
    assert dict(function.defaults) == of_core
    row = next((line for line in PAGE.splitlines() if line.startswith(f"| `{function.name}`")), None)
    if row is not None:
        written = dict(re.findall(r"(\w+) = (\S+?)[, ]", row))
        assert {key: ast.literal_eval(x) for key, x in written.items()} == of_core


MISTAKES = [(f.name, name) for f in spec.FUNCTIONS for name in f.faults]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in MISTAKES]


def wrong(function, *faults):
    """An adapter that makes these mistakes: the reference's variant, called as an adapter is."""

    def call(*first, **options):
        x = dict(zip(function.arrays, first, strict=True))
        x |= {name: options.pop(name) for name in function.optional_arrays if name in options}
        dtype = next((str(t.dtype).removeprefix("torch.") for t in x.values() if t.is_floating_point()), "float64")
        x = {name: t.double() if t.is_floating_point() else t for name, t in x.items()}
        return function.reference(x, {**options, "dtype": dtype}, frozenset(faults))

    return {function.name: call, "framework": "torch"}


@pytest.mark.parametrize(("function", "mistake"), SLOW)
def test_every_known_mistake_is_found_and_named(function, mistake):
    (of,) = (f for f in spec.FUNCTIONS if f.name == function)
    if function == "update":
        pytest.skip("test_a_wrong_update_is_named")
    assert named(check(wrong(of, mistake), examples=0)) == {mistake}


# -------------------------------------------------------------------------------------------------- whole updates
class Update:
    """SPPO's update of the little model, written with core and an optimiser of torch; `fault` puts one bug into it."""

    def __init__(self, optimizer="sgd", fault=None):
        self.optimizer, self.fault = optimizer, fault

    def init(self, params):
        weights = {name: w.clone().requires_grad_() for name, w in params.items()}
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        return weights, kind(weights.values(), lr=0.5)

    def params(self, state):
        return state[0]

    def save(self, state):
        weights, optimizer = state
        return {n: w.detach().clone() for n, w in weights.items()}, json.dumps(_listed(optimizer.state_dict()))

    def load(self, saved):
        state = self.init(saved[0])
        if self.fault != "update_moments_lost_on_resume":
            state[1].load_state_dict(_unlisted(json.loads(saved[1])))
        return state

    def update(self, state, batch):
        weights, optimizer = state
        mask = torch.ones_like(batch["mask"]) if self.fault == "update_trains_padding" else batch["mask"]
        size, critic = batch["micro_batch_size"], weights["critic"]
        if self.fault == "update_critic_trained_before_the_advantage":
            ahead, trainer = self.load(self.save(state))
            core.bernoulli_value_loss(batch["context"] @ ahead["critic"], batch["outcome"]).backward()
            trainer.step()
            critic = ahead["critic"]
        if self.fault != "update_gradient_never_cleared":
            optimizer.zero_grad()
        for i in range(0, len(mask), size):
            part = slice(i, i + size)
            logits = batch["obs"][part] @ weights["policy"]
            logp = logits.log_softmax(-1).gather(-1, batch["action"][part][..., None])[..., 0]
            v, R = batch["context"][part] @ weights["critic"], batch["outcome"][part]
            A = core.sequence_advantage(R, batch["context"][part] @ critic)
            m, old = mask[part], batch["logp_old"][part]
            if self.fault == "update_old_log_probability_computed_again":
                old = logp
            steps, episodes = mask.sum(), len(mask)
            if self.fault in ("update_micro_batch_means_added", "update_steps_on_each_micro_batch"):
                steps, episodes = m.sum(), len(R)
            if self.fault == "update_advantage_not_detached":
                r = (logp - old).exp()
                A = (R - v.sigmoid())[:, None]
                loss = -torch.where(m, torch.minimum(r * A, r.clamp(0.8, 1.2) * A), 0.0).sum() / steps
            else:
                loss = core.clipped_surrogate(logp, old, A, m, denominator=steps).loss
            (loss + core.bernoulli_value_loss(v, R, denominator=episodes)).backward()
            if self.fault == "update_steps_on_each_micro_batch":
                optimizer.step()
                optimizer.zero_grad()
        if self.fault != "update_steps_on_each_micro_batch":
            optimizer.step()
        return weights, optimizer


def _listed(x):
    return {k: _listed(v) for k, v in x.items()} if isinstance(x, dict) else x.tolist() if torch.is_tensor(x) else x


def _unlisted(x):
    state = {int(k): {n: torch.tensor(v, dtype=torch.float64) for n, v in s.items()} for k, s in x["state"].items()}
    return {**x, "state": state}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_right_update_holds(optimizer):
    report = check(Update(optimizer), examples=0)
    assert report.ok, report
    assert status(report)["update.resume"] == "holds"


@pytest.mark.parametrize(
    ("optimizer", "fault"),
    [
        ("sgd", "update_advantage_not_detached"),
        ("sgd", "update_trains_padding"),
        ("sgd", "update_micro_batch_means_added"),
        ("sgd", "update_steps_on_each_micro_batch"),
        ("sgd", "update_critic_trained_before_the_advantage"),
        ("adam", "update_critic_trained_before_the_advantage"),
        ("sgd", "update_old_log_probability_computed_again"),
        ("adam", "update_gradient_never_cleared"),
        ("adam", "update_moments_lost_on_resume"),
    ],
)
def test_a_wrong_update_is_named(optimizer, fault):
    assert named(check(Update(optimizer, fault), examples=0)) == {fault}


def test_later_failures_of_an_update_point_to_the_first():
    sentence = "fails for the same reason as update.one_step, perhaps"

    class Third(Update):
        """The new weights are a third of what is right: not one of the known mistakes."""

        def params(self, state):
            return {name: w / 3 for name, w in state[0].items()}

    report = check(Third(), examples=0)
    assert {status(report)[f"update.{p}"] for p in ("one_step", "padding", "two_updates")} == {"fails"}
    assert named(report) == set()
    first, *later = (r for r in report.results if r.status == "fails")
    assert sentence not in first.lines()
    assert all(sentence in r.lines() and r.as_dict()["same_as"] == "update.one_step" for r in later)
    alone = check(Update(fault="update_trains_padding"), examples=0)
    assert sentence not in str(alone), "one_step holds"


# ------------------------------------------------------------------------------------------------ kinds of adapters
def numpy_advantage(outcome, value_logit):
    assert isinstance(outcome, np.ndarray)
    return outcome - 1 / (1 + np.exp(-value_logit))


def test_an_adapter_is_a_module_a_class_an_object_or_a_dictionary():
    class Mine:
        sequence_advantage = staticmethod(numpy_advantage)

    for adapter in (Mine, Mine(), {"sequence_advantage": numpy_advantage, "framework": "numpy"}):
        report = check(adapter, examples=0)
        assert report.framework == "numpy"
        assert status(report)["sequence_advantage.value"] == "holds"
        assert status(report)["sequence_advantage.detached"] == "not offered", "NumPy has no gradients"


def test_float32_has_a_wider_tolerance():
    def close(outcome, value_logit):
        assert outcome.dtype == torch.float32
        return outcome - torch.sigmoid(value_logit) + 1e-6

    adapter = {"sequence_advantage": close, "framework": "torch"}
    only = ["sequence_advantage.value"]
    assert check({**adapter, "dtype": "float32"}, only=only, examples=0).ok
    adapter["sequence_advantage"] = lambda outcome, value_logit: outcome - torch.sigmoid(value_logit) + 1e-6
    assert not check(adapter, only=only, examples=0).ok


def test_value_loss_is_either_of_the_two():
    assert set(adapters.Adapter({"value_loss": core.bernoulli_value_loss}).functions) == {"bernoulli_value_loss"}
    assert set(adapters.Adapter({"value_loss": core.squared_value_loss}).functions) == {"squared_value_loss"}


@pytest.mark.parametrize(
    ("adapter", "words"),
    [({}, "offers nothing"), ({"sequence_advantage": max, "framework": "mlx"}, "must be one of torch, numpy, jax"),
     ({"sequence_advantage": max, "framework": "torch", "dtype": "int8"}, "float32 or float64")],
)  # fmt: skip
def test_what_is_no_adapter_is_refused(adapter, words):
    with pytest.raises(ValueError, match=words):
        check(adapter)


def test_jax_arrays_and_gradients():
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed: constraints-jax.txt")
    from jax.lax import stop_gradient

    def policy_loss(logp, logp_old, advantage, mask):
        A = advantage if advantage.ndim == 2 else advantage[:, None]
        A, r = stop_gradient(A), jnp.exp(jnp.where(mask, logp - stop_gradient(logp_old), 0.0))
        return -jnp.where(mask, jnp.minimum(r * A, jnp.clip(r, 0.8, 1.2) * A), 0.0).sum() / mask.sum()

    only = ["policy_loss.clip", "policy_loss.padding", "policy_loss.detached", "policy_loss.advantage_per_step"]
    report = check({"policy_loss": policy_loss, "framework": "jax"}, only=only, examples=0)
    assert set(status(report).values()) == {"holds"}, report


# ----------------------------------------------------------------------------------------------------- command line
@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with the module of the page, and a command line."""
    (tmp_path / "my_losses.py").write_text(example())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sppo-conformance", *words])
        with pytest.raises(SystemExit) as stop:
            command.main()
        return stop.value.code

    yield run
    sys.modules.pop("my_losses", None)


def example():
    return re.search(r"```python\n(import numpy.*?)```", PAGE, flags=re.S)[1]


def test_the_example_of_the_page_gives_the_report_of_the_page(in_folder, capsys):
    assert in_folder("my_losses") == 1
    out = capsys.readouterr().out
    assert f"```text\n{out}```" in PAGE


def test_the_exit_status_and_the_json_file(in_folder, tmp_path, capsys):
    assert in_folder("my_losses", "--only", "sequence_advantage", "--examples", "0") == 0
    expected = "leave_one_out_includes_itself=we like it"
    assert in_folder("my_losses", "--examples", "0", "--expect", expected, "--json", "found/r.json") == 0
    plain = json.loads((tmp_path / "found" / "r.json").read_text())
    assert plain["counts"]["expected failure"] == 1
    capsys.readouterr()
    for words, message in (
        (["absent"], "cannot be imported"),
        (["my_losses:absent"], "has no 'absent'; its names"),
        (["my losses"], "module:name"),
        (["my_losses.py"], "write my_losses, without .py"),
        (["my_losses.py:adapter"], "write my_losses, without .py"),
        (["code/my_losses.py"], "without .py, in the folder code"),
        ([], "name one adapter"),
        (["my_losses", "--list"], "name one adapter"),
        (["my_losses", "--only", "nothing"], "'nothing', which is neither"),
        (["my_losses", "--expect", "dual_clip"], "NAME=REASON"),
        (["my_losses", "--examples", "-1"], "at least 0"),
    ):
        assert in_folder(*words) == 2, words
        assert message in capsys.readouterr().err, words


def test_the_list_of_properties_is_on_the_page():
    assert spec.page() in PAGE, "run python -m sppo_control.conformance --list"
    ids = [entry["id"] for entry in conformance.specification()]
    assert len(set(ids)) == len(ids) == len(spec.PROPERTIES)


# -------------------------------------------------------------------------------------------------------- pytest
def test_the_pytest_option_makes_a_test_of_each_property(pytester):
    pytester.makepyfile(my_losses=example())
    pytester.syspathinsert()
    result = pytester.runpytest_inprocess(
        "-p", "sppo_control.conformance.pytest_plugin", "-p", "no:cacheprovider", "--sppo-adapter", "my_losses"
    )
    sys.modules.pop("my_losses", None)
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    text = result.stdout.str()
    assert "the episode itself included" in text
    assert "FAILED my_losses::leave_one_out_advantage.value" in text
    assert "Traceback" not in text


def test_the_plugin_is_light_and_silent_without_its_option():
    code = (
        "import sys, sppo_control.conformance.pytest_plugin; "
        "print(sorted({'torch', 'numpy', 'hypothesis', 'tyro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- score
def test_the_page_has_the_stored_score():
    stored = json.loads((ROOT / "docs" / "conformance_score.json").read_text())
    assert score.page(stored) in PAGE, (
        "run python -m sppo_control.conformance --score --json docs/conformance_score.json"
    )
    counted = {m["name"] for m in score.mutants()} - set(score.NOT_COUNTED)
    assert {m["mutant"] for m in stored["mutants"]} == counted
    found, right = score.shares(stored)
    assert found >= 0.95
    assert right >= 0.8


def test_some_mutants_again():
    """One per kind; --score does all of them."""
    names = ["gae-padding-is-discounted", "group-mean-of-the-whole-batch", "squared-error-without-the-half"]
    stored = json.loads((ROOT / "docs" / "conformance_score.json").read_text())
    again = score.score(names)
    assert again["mutants"] == [m for m in stored["mutants"] if m["mutant"] in names]


@pytest.mark.slow
def test_all_mutants_again():
    assert score.score() == json.loads((ROOT / "docs" / "conformance_score.json").read_text())


def test_a_score_needs_a_clone(tmp_path):
    with pytest.raises(errors.UserError, match="needs a clone"):
        score.mutants(tmp_path)


# ---------------------------------------------------------------------------------------------------------- peers
def test_the_page_has_the_stored_peers_and_each_deviation_is_understood():
    stored = json.loads((ROOT / "docs" / "conformance_peers.json").read_text())
    assert peers.page(stored) in PAGE, (
        "run python -m sppo_control.conformance --peers --json docs/conformance_peers.json"
    )
    assert [row["adapter"] for row in stored] == [peer.__name__ for peer in peers.PEERS]
    for row in stored:
        assert row.get("missing") or not row["unexplained"], row


@pytest.mark.parametrize("peer", ["SB3GAE", "SB3PPO", "TRLGRPO", "TRLRLOO", "LigerGRPO", "Polgrad"])
def test_a_peer_deviates_as_stored(peer):
    adapter = getattr(peers, peer)
    pytest.importorskip(peers.MODULES[adapter.package], reason=f"{adapter.package} is not installed")
    (stored,) = (r for r in json.loads((ROOT / "docs" / "conformance_peers.json").read_text()) if r["adapter"] == peer)
    (row,) = peers.measure(0, (adapter,))
    assert row["ok"], row["unexplained"]
    assert row["deviations"] == stored["deviations"]


def test_the_reference_imports_nothing_of_core():
    assert "core" not in {
        line.split()[-1] for line in Path(reference.__file__).read_text().splitlines() if "import" in line
    }
