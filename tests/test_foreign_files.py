"""Run folders and policy files from strangers: damaged, edited and hostile ones are refused in one line, or harmless."""

import contextlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import evaluate
import sppo_cartpole
from sppo_control import checkpoints, cli, errors
from sppo_control.checkpoints import OptimizerState

ID = "sppo/PrecisionCartPole-v0"
NESTED = "[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of three updates with small networks."""
    args = sppo_cartpole.Args(
        total_timesteps=100, num_envs=4, num_minibatches=2, horizon=12, eval_episodes=2, save_every=1, hidden=(6,),
        critic_hidden=(5,), critic_steps=2, critic_batch_size=4, from_scratch=True,
        runs_dir=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return sppo_cartpole.train(args).folder


@pytest.fixture
def call(monkeypatch, capsys):
    """A script in this process: (exit status, standard error, 0 lines of traceback)."""

    def run(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
        capsys.readouterr()
        try:
            cli.main(module.main if module is evaluate else module.train, module.Args, "test")
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def last(folder):
    return checkpoints.newest(folder)


def forge(checkpoint, **entries):
    """Change state.json and make its digests fit, as somebody who means harm would: the contents must be refused."""
    path = checkpoint / "state.json"
    state = {**json.loads(path.read_text()), **entries}
    state = {key: value for key, value in state.items() if value != "absent"}
    if isinstance(state.get("sha256"), dict):
        state["sha256"] = {n: checkpoints.digest(checkpoint / n) for n in state["sha256"] if n != "state.json"}
        state["sha256"]["state.json"] = checkpoints._digest_of_state(state)
    path.write_text(json.dumps(state))


def tensor_damages(path):
    """Name -> tensors that are not those of the file, with what the message must name."""
    good = load_file(path)
    for name, x in good.items():
        for dtype in (torch.float64, torch.int32, torch.complex64, torch.float8_e4m3fn, torch.float16):
            if x.dtype.is_floating_point:
                yield f"{name} {dtype}", {**good, name: x.detach().clone().to(dtype)}, name
        if x.dtype.is_floating_point:
            for value in (np.nan, np.inf, -np.inf):
                bad = x.clone()
                bad.view(-1)[0] = value
                yield f"{name} {value}", {**good, name: bad}, name
        if x.dim():
            yield f"{name} shorter", {**good, name: x[:-1].clone()}, name.split(".")[-1]
        yield f"{name} missing", {k: v for k, v in good.items() if k != name}, name.split(".")[-1]
        yield f"{name} renamed", {("x" + k if k == name else k): v for k, v in good.items()}, name
    yield "one more", {**good, "foreign": torch.zeros(2)}, "foreign"


def byte_damages(data, rng, flips):
    """Name -> bytes that are not those of the file."""
    for size in {0, 4, 8, len(data) // 2, len(data) - 1}:
        yield f"cut to {size}", data[:size]
    yield "huge header", (2**62).to_bytes(8, "little") + data[8:]
    yield "large header", (10**9).to_bytes(8, "little") + data[8:]
    yield "nested header", len(NESTED).to_bytes(8, "little") + NESTED.encode()
    for _ in range(flips):
        at, bit = int(rng.integers(len(data))), int(rng.integers(8))
        yield f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


WRONG = (None, "x", [], {}, -1, 1.5, True, float("nan"), float("inf"), 2**70, [[]], "absent")
TRIED = {}
"""Kind of damage -> how many; the test at the end of the file looks at the sum."""


def refused(call, folder, name, file, entry=""):
    """Resume a damaged run: exit status 2, one line that names the file, nothing written."""
    before = content(folder)
    status, err = call(sppo_cartpole, "--resume", folder)
    said = err.strip()
    assert status == 2, f"{name}: {status} {err}"
    assert len(said.splitlines()) == 1, f"{name}: {err}"
    assert said.startswith("error: "), f"{name}: {err}"
    assert file in said, f"{name}: {err}"
    assert entry in said, f"{name}: {err}"
    assert content(folder) == before, f"{name}: something was written"


@pytest.fixture
def copy(whole, tmp_path):
    """Copies of the run, one at a time."""

    def make():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(whole, tmp_path / "copy"))

    return make


def test_an_untouched_copy_is_resumed(copy, call, whole):
    """Without this, a test of refusals would pass if everything were refused."""
    folder = copy()
    status, err = call(sppo_cartpole, "--resume", folder)
    assert status == 0, err
    assert "note: " not in err
    assert (last(folder) / "policy.safetensors").read_bytes() == (last(whole) / "policy.safetensors").read_bytes()


@pytest.mark.parametrize("part", ["policy", "critic", "optimizer", "critic_optimizer", "recent"])
def test_damaged_tensors_of_a_checkpoint(part, copy, call, whole):
    rng, source = np.random.default_rng(len(part)), last(whole) / f"{part}.safetensors"
    for name, data in byte_damages(source.read_bytes(), rng, flips=10):
        folder = copy()
        (last(folder) / source.name).write_bytes(data)
        refused(call, folder, name, source.name)
        TRIED[f"bytes of {part}"] = TRIED.get(f"bytes of {part}", 0) + 1
    for name, tensors, entry in tensor_damages(source):
        folder = copy()
        save_file(tensors, last(folder) / source.name)
        forge(last(folder))  # the digest fits: what is in the file must be looked at
        refused(call, folder, name, source.name, entry)
        TRIED[f"tensors of {part}"] = TRIED.get(f"tensors of {part}", 0) + 1


def test_an_optimizer_file_without_any_tensor_is_refused(copy, call):
    folder = copy()
    save_file({}, last(folder) / "optimizer.safetensors")
    refused(call, folder, "empty", "optimizer.safetensors")


def test_edited_state(copy, call, whole):
    good = json.loads((last(whole) / "state.json").read_text())
    entries = ("layout", "update", "steps", "episodes", "seconds", "recent_outcomes", "sha256", "config")
    for key in entries:
        for value in WRONG:
            if (key, value) in (("seconds", 1.5), ("seconds", 2**70), ("recent_outcomes", [])) or (
                key == "config" and value != "absent"
            ):
                continue  # possible; whether it is the one that was written, the digest tells
            folder = copy()
            forge(last(folder), **{key: value})
            refused(call, folder, f"{key}={value!r}", "layout" if key == "layout" else "state.json")
            TRIED["state.json"] = TRIED.get("state.json", 0) + 1
    for name, change in {
        "another update": {"update": good["update"] - 1},
        "an outcome above 1": {"recent_outcomes": [0.0, 2.0]},
        "negative steps": {"steps": -5},
        "a digest that is none": {"sha256": {"policy.safetensors": "abc"}},
    }.items():
        folder = copy()
        forge(last(folder), **change) if "sha256" not in change else (last(folder) / "state.json").write_text(
            json.dumps({**good, **change})
        )
        refused(call, folder, name, "state.json")
    folder = copy()
    (last(folder) / "state.json").write_text(json.dumps({**good, "steps": good["steps"] + 1}))
    refused(call, folder, "one step more", "state.json", "SHA-256")


@pytest.mark.parametrize("file", ["state.json", "config.json", "summary.json"])
def test_json_that_is_none(file, copy, call, whole):
    texts = [
        "",
        "{",
        "[]",
        "5",
        "null",
        '"x"',
        NESTED,
        '{"a": ' * 100_000,
        "{" + "1" * 5000 + "}",
        '{"a": 1' + "0" * 5000 + "}",
    ]
    for text in (*texts, b"\xff\xfe\x00", b"\x80"):
        folder = copy()
        path = last(folder) / file if file == "state.json" else folder / file
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(call, folder, f"{text[:20]!r}", file)
        TRIED[file] = TRIED.get(file, 0) + 1


def test_flipped_bits_of_json(copy, call, whole):
    """state.json: always refused. config.json and summary.json may be edited by hand: refused, or said, or the same run."""
    rng, notes = np.random.default_rng(0), 0
    for file in ("state.json", "config.json", "summary.json"):
        for _ in range(25):
            folder = copy()
            path = last(folder) / file if file == "state.json" else folder / file
            data = bytearray(path.read_bytes())
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(7))
            same = file == "state.json" and json_or_none(bytes(data)) == json.loads(path.read_text())
            path.write_bytes(data)
            status, err = call(sppo_cartpole, "--resume", folder)
            TRIED[f"bits of {file}"] = TRIED.get(f"bits of {file}", 0) + 1
            assert "Traceback" not in err
            if status == 2:
                assert len(err.strip().splitlines()) == 1, err
                assert file in err or "--" in err or "state.json" in err or folder.name in err, err
                continue
            assert status == 0, err
            assert file != "state.json" or same, "a changed counter must not be resumed"
            if file == "config.json":
                notes += 1
                assert "config.json was changed since" in err
            else:
                weights = [(last(f) / "policy.safetensors").read_bytes() for f in (folder, whole)]
                assert weights[0] == weights[1]
    assert notes, "no flip was left for the note: this would say nothing of it"


def json_or_none(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_edited_config(copy, call, whole):
    good = json.loads((whole / "config.json").read_text())
    changes = [({"args": {**good["args"], key: value}}, key) for key in good["args"] for value in WRONG[1:-1]]
    changes += [({key: value}, key) for key in ("args", "script", "layout") for value in WRONG]
    changes += [({key: value}, key) for key in ("versions", "machine") for value in (None, "x", [], 5)]
    changes += [({"args": {**good["args"], "new": 1}}, "new"), ({"layout": 3, "versions": 5}, "layout 3")]
    for change, key in changes:
        value = change["args"].get(key) if key in good["args"] else change.get(key)
        hint = sppo_cartpole.Args.__annotations__.get(key, "")
        if cli_accepts(key, value, hint):
            continue
        folder = copy()
        text = {k: v for k, v in {**good, **change}.items() if v != "absent"}
        (folder / "config.json").write_text(json.dumps(text))
        file = {"new": folder.name, "layout": folder.name, "layout 3": folder.name, "script": ""}.get(
            key, "config.json"
        )
        refused(call, folder, f"{key}: {change}", file)
        TRIED["config.json"] = TRIED.get("config.json", 0) + 1
    assert TRIED["config.json"] > 150


def cli_accepts(key, value, hint):
    """Values of WRONG that are possible for an argument: another number or text, which a hand may have written."""
    if key == "args" and value == {}:
        return True  # all arguments have defaults; that they are not what they were is said in a note
    free_text = key in ("env_id", "start", "runs_dir", "resume") and value == "x"
    lists = key in ("hidden", "critic_hidden") and value == []
    return free_text or lists or (hint == "bool" and value is True) or (key == "success_return" and value in (-1, 1.5)) or (
        hint == "float" and value == 1.5
    ) or (key in ("ent_coef",) and value == 1.5)  # fmt: skip


def test_edited_summary(copy, call, whole):
    good = json.loads((whole / "summary.json").read_text())
    changes = [{key: value} for key in ("before", "after") for value in WRONG[:-1]]
    changes += [{key: value} for key in ("steps", "updates", "seconds") for value in ("x", -1, None, True, [])]
    for key in ("rate", "interval", "episodes", "measures"):
        changes += [{"before": {**good["before"], key: value}} for value in ("x", -1, None, [1, 2, 3], [5, 6])]
    for change in changes:
        folder = copy()
        (folder / "summary.json").write_text(json.dumps({**good, **change}))
        refused(call, folder, str(change), "summary.json", next(iter(change)))
        TRIED["summary.json"] = TRIED.get("summary.json", 0) + 1


# ------------------------------------------------------------------------------------------------------ policy files
def test_damaged_policy_files(whole, call, tmp_path):
    """Through evaluate.py and --start; the file is alone, so that no digest helps."""
    source, rng = last(whole) / "policy.safetensors", np.random.default_rng(3)
    good = load_file(source)
    about = {"policy": "CategoricalPolicy", "env_id": ID, "format": 1}
    metadata = {"sppo_control": json.dumps(about)}
    path, runs_dir = tmp_path / "foreign.safetensors", tmp_path / "runs"
    cases = [(name, data) for name, data in byte_damages(source.read_bytes(), rng, 0)]
    cases += [(name, (tensors, metadata)) for name, tensors, _ in tensor_damages(source)]
    for key in about:
        for value in (None, 5, [], {}, True, "x", 1.0, "absent"):
            if value != about[key] or type(value) is not type(about[key]):
                changed = {k: v for k, v in {**about, key: value}.items() if v != "absent"}
                if (key, value) != ("env_id", "x"):  # a file for another task may be tried in this one
                    cases.append((f"{key}={value!r}", (good, {"sppo_control": json.dumps(changed)})))
    cases += [(text[:9], (good, {"sppo_control": text})) for text in ("", "5", "[]", "{", NESTED, "null")]
    cases.append(("no metadata", (good, None)))
    for words in ("layers.0.weight", "layers.1.weight"):
        cases.append((f"{words} one number", ({**good, words: torch.zeros(3)}, metadata)))
        cases.append((f"{words} no rows", ({**good, words: torch.zeros(0, 4)}, metadata)))
    for name, damage in cases:
        if isinstance(damage, bytes):
            path.write_bytes(damage)
        else:
            save_file(damage[0], path, metadata=damage[1])
        for module, words in (
            (evaluate, ("--run", path, "--env-id", ID, "--episodes", 1, "--horizon", 3)),
            (sppo_cartpole, ("--start", path, "--horizon", 3, "--total-timesteps", 1, "--runs-dir", runs_dir)),
        ):
            status, err = call(module, *words)
            assert status == 2, f"{name}: {status} {err}"
            assert len(err.strip().splitlines()) == 1, f"{name}: {err}"
            assert "foreign.safetensors" in err, f"{name}: {err}"
            TRIED["policy files"] = TRIED.get("policy files", 0) + 1
    assert not runs_dir.exists()


def test_bits_of_a_policy_in_a_checkpoint(copy, call):
    """Of a file alone a flipped bit may be any other weight. In a checkpoint it is noticed, by evaluate.py too."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        folder = copy()
        path = last(folder) / "policy.safetensors"
        data = bytearray(path.read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        for run in (folder, path):
            status, err = call(evaluate, "--run", run, "--episodes", 1)
            assert status == 2, err
            assert "policy.safetensors" in err
            assert len(err.strip().splitlines()) == 1
        TRIED["bits of policies"] = TRIED.get("bits of policies", 0) + 1


def test_enough_damages_were_tried():
    if "policy files" in TRIED and "config.json" in TRIED:  # not if one test was chosen
        print(f"{sum(TRIED.values())} damages: {TRIED}")
        assert sum(TRIED.values()) >= 200


# ------------------------------------------------------------------------------------------------------ code execution
class Hostile:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_pickle_is_ever_loaded(copy, call, tmp_path):
    marker = tmp_path / "executed"
    data = pickle.dumps(Hostile(marker))
    pickle.loads(data)
    assert marker.is_dir(), "the pickle must be able to do harm"
    marker.rmdir()
    names = ["policy", "critic", "optimizer", "critic_optimizer", "recent"]
    for file in [*(f"{name}.safetensors" for name in names), "state.json"]:
        folder = copy()
        (last(folder) / file).write_bytes(data)
        refused(call, folder, file, file)
        call(evaluate, "--run", folder, "--episodes", 1)
    for file in ("config.json", "summary.json"):
        folder = copy()
        (folder / file).write_bytes(data)
        refused(call, folder, file, file)
        call(evaluate, "--run", folder, "--episodes", 1)
    path = tmp_path / "p.safetensors"
    path.write_bytes(data)
    for words in (("--run", path), ("--run", path, "--env-id", ID)):
        assert call(evaluate, *words)[0] == 2
    assert call(sppo_cartpole, "--start", path, "--runs-dir", tmp_path / "r")[0] == 2
    assert not marker.exists()


MODULE = """
import pathlib
pathlib.Path(__file__).with_name("imported").write_text("yes")
import gymnasium
gymnasium.register("own/Walk-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=20)
"""


@pytest.fixture
def foreign(copy, tmp_path, monkeypatch):
    """A run of a stranger's whose env_id names an installed module; (folder, file that appears at the import)."""
    library = tmp_path / "site"
    library.mkdir()
    (library / "installed_walk.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(library))
    for name in ("installed_walk", "own_walk"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    folder = copy()
    rename(folder, "installed_walk:own/Walk-v0")
    monkeypatch.chdir(tmp_path)
    return folder, library / "imported"


def rename(folder, env_id):
    config = json.loads((folder / "config.json").read_text())
    config["args"] |= {"env_id": env_id, "success_return": 15.0}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_run_folder_imports_no_installed_module(foreign, call):
    folder, imported = foreign
    for module, words in (
        (sppo_cartpole, ("--resume", folder)),
        (sppo_cartpole, ("--resume", folder / "checkpoints" / "000001")),
        (evaluate, ("--run", folder, "--episodes", 1)),
        (evaluate, ("--run", last(folder), "--episodes", 1)),
        (sppo_cartpole, ("--resume", folder, "--env-id", "installed_walk:other")),
    ):
        status, err = call(module, *words)
        assert status == 2
        assert "'installed_walk'" in err
        assert "--env-id 'installed_walk:own/Walk-v0'" in err
        assert not imported.exists(), words
    pytest.importorskip("sppo_control.study", exc_type=ImportError)
    import probe

    args = probe.Args(what="tail", runs=(folder,), out=folder / "x.json")
    with contextlib.ExitStack() as stack, pytest.raises(errors.UserError, match="'installed_walk'"):
        probe.load(args, stack)
    assert not imported.exists()
    status, err = call(evaluate, "--run", folder, "--episodes", 1, "--env-id", "installed_walk:own/Walk-v0")
    assert status == 0, err
    assert imported.exists(), "what the user types is imported"


def test_the_users_own_module_needs_no_flag(foreign, call, tmp_path):
    folder, _ = foreign
    (tmp_path / "own_walk.py").write_text(MODULE)
    rename(folder, "own_walk:own/Walk-v0")
    status, err = call(evaluate, "--run", folder, "--episodes", 1)
    assert status == 0, err
    assert (tmp_path / "imported").exists()


def test_a_module_inside_the_run_folder_is_not_the_users_own(foreign, call, monkeypatch):
    folder, _ = foreign
    (folder / "own_walk.py").write_text(MODULE)
    rename(folder, "own_walk:own/Walk-v0")
    monkeypatch.chdir(folder)
    status, err = call(evaluate, "--run", folder, "--episodes", 1)
    assert status == 2, err
    assert not (folder / "imported").exists()


@pytest.mark.parametrize("name", ["this", "antigravity", "os.path", "sys", "a b", "", "..x", "installed_walk.sub"])
def test_other_names_of_modules(name, foreign, tmp_path):
    (tmp_path / "this.py").write_text("")  # Python would take its own
    before = set(sys.modules)
    if name:
        with pytest.raises(errors.UserError, match="to be imported"):
            checkpoints.check_module(f"{name}:X-v0", foreign[0], None)
    else:
        checkpoints.check_module("X-v0", foreign[0], None)
    assert set(sys.modules) == before


def test_a_policy_file_names_no_module_either(whole, call, foreign, tmp_path):
    _, imported = foreign
    about = {"policy": "CategoricalPolicy", "env_id": "installed_walk:own/Walk-v0", "format": 1}
    path = tmp_path / "foreign.safetensors"
    save_file(load_file(last(whole) / "policy.safetensors"), path, metadata={"sppo_control": json.dumps(about)})
    status, err = call(evaluate, "--run", path, "--success-return", 3, "--episodes", 1)
    assert status == 2, err
    assert not imported.exists()


# ------------------------------------------------------------------------------------------------------ optimisers
def test_an_optimizers_state_is_whole_or_refused():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    state = OptimizerState(optimizer)
    state.load_tensors({})  # before the first step
    parameter.grad = torch.ones(3)
    optimizer.step()
    good = {name: x.clone() for name, x in state.named_tensors().items()}
    state.load_tensors(good)
    for name in good:
        with pytest.raises(ValueError, match=name):
            state.load_tensors({k: v for k, v in good.items() if k != name})
    for name, value in (("0.step", 0.0), ("0.step", -1.0), ("0.step", 1.5), ("0.exp_avg_sq", -1.0)):
        with pytest.raises(ValueError, match=name):
            state.load_tensors({**good, name: torch.full_like(good[name], value)})
    for name in ("x", "0", "0.exp_avg.x", "-1.exp_avg", "0.momentum", "٣.exp_avg"):
        with pytest.raises(ValueError, match="no entry of an optimiser"):
            state.load_tensors({**good, name: torch.ones(3)})
