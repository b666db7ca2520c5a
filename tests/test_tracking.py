"""--track: what reaches Trackio and Weights & Biases, and that a run is the same with and without them."""

import importlib
import importlib.machinery
import json
import math
import sys
import types

import pytest

import sppo_cartpole
from sppo_control import cli, errors, extras, runs, tracking

SMALL = {"total_timesteps": 240, "num_envs": 16, "eval_episodes": 4, "seed": 7, "kernels": "torch", "horizon": 5}
SERVICES = ("trackio", "wandb")


class Service(types.ModuleType):
    """The calls that both packages have, in their own form, as a module that notes them."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.began, self.logged, self.finished, self.breaks, self.summary = [], [], 0, None, {}

    def init(self, **kwargs):
        if self.breaks == "init":
            raise RuntimeError("no\naccount")
        self.began.append(kwargs)
        return self

    def define_metric(self, name, step_metric=None):
        assert self.__name__ == "wandb"
        self.axes = {**getattr(self, "axes", {}), name: step_metric}

    def log(self, scalars, step=None):
        if self.breaks == "log":
            raise ConnectionError("it is gone")
        assert (step is None) or self.__name__ == "trackio"
        self.logged.append((dict(scalars), step))

    def finish(self):
        self.finished += 1


@pytest.fixture(params=SERVICES)
def service(request, monkeypatch):
    module = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    return module


def train(folder, **changes):
    return sppo_cartpole.train(sppo_cartpole.Args(**{**SMALL, "runs_dir": str(folder), **changes}))


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_tracker_gets_every_scalar_of_tensorboard_and_changes_nothing(service, tmp_path):
    name = service.__name__
    run = train(tmp_path / "tracked", track=name)
    plain = train(tmp_path / "plain")
    assert (run.checkpoints()[-1] / "policy.safetensors").read_bytes() == (
        plain.checkpoints()[-1] / "policy.safetensors"
    ).read_bytes()

    (began,) = service.began
    assert began["project"] == "sppo_control"
    assert began["name"] == run.folder.name
    assert began["config"]["learning_rate"] == 1e-3
    assert began["config"]["versions"]["python"]
    assert began["resume"] == "allow"
    assert service.finished == 1
    rate = json.loads((run.folder / "summary.json").read_text())["after"]["rate"]
    logged = list(service.logged)
    if name == "wandb":
        assert (began["id"], began["dir"]) == (run.folder.name, str(run.folder))
        assert service.axes == {"global_step": None, "*": "global_step"}
        assert service.summary["success_after"] == rate
        logged = [({k: v for k, v in x.items() if k != "global_step"}, x["global_step"]) for x, _ in logged]
    else:
        last, _ = logged.pop()
        assert last["success_after"] == rate
    seen = {}
    for scalars, step in logged:
        for tag, value in scalars.items():
            seen.setdefault(tag, []).append((step, value))
    expected = curves(run.folder)
    assert expected.keys() == seen.keys()
    for tag, points in expected.items():
        assert [step for step, _ in seen[tag]] == [step for step, _ in points]
        assert [value for _, value in seen[tag]] == pytest.approx([value for _, value in points], rel=1e-5)


def test_a_resumed_run_goes_on_under_its_name(service, tmp_path):
    run = train(tmp_path)
    train(tmp_path, resume=str(run.folder), total_timesteps=400, track=service.__name__)
    (began,) = service.began
    assert began["name"] == run.folder.name
    steps = [x.get("global_step", step) for x, step in service.logged]
    assert steps[0] > 240


def test_projects_and_spaces_are_named_by_variables(service, tmp_path, monkeypatch):
    monkeypatch.setenv(f"{service.__name__.upper()}_PROJECT", "poles")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/curves")
    tracking.Tracker(service.__name__, tmp_path, {})
    assert service.began[0]["project"] == "poles"
    assert service.began[0].get("space_id") == ("me/curves" if service.__name__ == "trackio" else None)


def test_a_service_that_fails_is_left_out_and_the_run_goes_on(service, tmp_path, capsys):
    service.breaks = "log"
    run = train(tmp_path, track=service.__name__)
    said = [line for line in capsys.readouterr().err.splitlines() if "--track" in line]
    assert len(said) == 1
    assert "it is gone" in said[0]
    assert len(curves(run.folder)["charts/success_rate"]) == run.update


def test_a_service_that_cannot_begin_is_refused_before_the_work(service, tmp_path):
    service.breaks = "init"
    with pytest.raises(errors.UserError, match=f"--track {service.__name__} cannot begin \\(no account\\)"):
        train(tmp_path, track=service.__name__)
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_left_out(service, tmp_path):
    tracker = tracking.Tracker(service.__name__, tmp_path, {})
    tracker.log({"a": 1.0, "b": math.nan, "c": math.inf}, 5)
    scalars, step = service.logged[0]
    assert {**scalars, "global_step": scalars.get("global_step", step)} == {"a": 1.0, "global_step": 5}
    tracker.finish()
    tracker.finish()
    tracker.log({"a": 2.0}, 6)
    assert (service.finished, len(service.logged)) == (1, 1)


@pytest.mark.parametrize("name", SERVICES)
def test_a_missing_package_gives_the_command_that_installs_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module == name else True)
    with pytest.raises(extras.MissingExtra, match=f"--track {name} needs, is not installed"):
        train(tmp_path, track=name)
    assert not list(tmp_path.iterdir())


def test_the_commit_is_this_clones_and_not_that_of_a_repository_around_it(monkeypatch):
    real, said = runs.subprocess.run, []
    assert runs.versions()["git_commit"] is None or len(runs.versions()["git_commit"]) == 40

    def elsewhere(*args, **kwargs):
        said.append(args)
        return types.SimpleNamespace(stdout="/home/user/other\n" + "a" * 40 + "\n")

    monkeypatch.setattr(runs.subprocess, "run", elsewhere)
    assert runs.versions()["git_commit"] is None
    assert said
    monkeypatch.setattr(runs.subprocess, "run", real)


@pytest.mark.parametrize("name", ["sppo", "ppo", "grpo", "rloo"])
def test_the_language_model_scripts_take_it_too(name):
    """They hand their arguments to the same `Run`."""
    args = importlib.import_module(f"{name}_llm").Args(track="wandb")
    assert args.track == "wandb"
    assert importlib.import_module(f"{name}_llm").Args().track is None


def test_the_trackers_name_may_change_when_a_run_is_resumed():
    assert {"track", "capture_video"} <= cli.RESUMABLE_CHANGES
