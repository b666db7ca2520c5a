"""One home per task: what a task's record says reaches every script, for the tasks of this package and for a user's own."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import contexts
import evaluate
import pretrain
import sppo_cartpole
import sppo_envs
from sppo_control import cli
from sppo_control.policies import make_policy, save_policy
from sppo_control.starts import policy_name, shipped_policy, starting_policy
from sppo_envs import Axis, OutcomeReward, Recipe, Task, register

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "tasks.md").read_text()
REGISTRY = importlib.import_module("sppo_envs.task")._REGISTRY
SIGNS = "signs:you/PrecisionCartPole-v0"
SIGNS_FILE = '''
import gymnasium as gym
import numpy as np
from sppo_envs import OutcomeReward

class Signs(gym.Env):
    """The action should be the sign of the first of four numbers, four times; spaces are CartPole's."""
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def draw(self):
        self.shown = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.shown

    def step(self, action):
        right = float(action == (self.shown[0] > 0))
        return self.draw(), right, False, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)

def make(render_mode=None):
    def success(obs, info):
        return info["episode_return"] == info["episode_length"]
    return gym.wrappers.TransformReward(OutcomeReward(Signs(), success, 4), lambda reward: reward - 5)

gym.register("you/PrecisionCartPole-v0", make)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a module, the current one; what is registered and imported in a test is forgotten after it."""
    (tmp_path / "signs.py").write_text(SIGNS_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registries = [(r, dict(r)) for r in (gym.registry, REGISTRY)]
    modules = set(sys.modules)
    yield tmp_path
    for registry, before in registries:
        registry.clear()
        registry.update(before)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run(monkeypatch, script, *words):
    """A script's command line, in this process."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    cli.main(getattr(script, "train", None) or script.main, script.Args, script.__doc__)


def refusal(monkeypatch, capsys, script, *words):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, script, *words)
    assert stop.value.code == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the eighth task, by the docs
QUICK = {
    "pretrain.py": "--demonstrations 64 --eval-episodes 128 --min-success 0.1 --max-success 0.7",
    "sppo_cartpole.py": "--total-timesteps 2000 --eval-episodes 64",
    "evaluate.py": "--episodes 64 --video-episodes 1",
    "contexts.py": "--contexts 6 --episodes 8",
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed: extra plots")
def test_an_eighth_task_in_one_file_runs_in_every_script_as_the_docs_say(tmp_path):
    """The commands of docs/tasks.md in a folder that holds nothing but docs/mytasks.py, with smaller numbers."""
    (tmp_path / "mytasks.py").write_text((ROOT / "docs" / "mytasks.py").read_text())
    (commands,) = re.findall(r"```bash\n(python -m sppo_envs.*?)```", DOCS, flags=re.S)
    paths = [str(ROOT), str(ROOT / "envs")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    printed = {}
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        name = Path(words[1]).name
        words = [sys.executable, *(w.replace("SCRIPTS", str(ROOT / "scripts")) for w in words[1:])]
        words = [p for w in words for p in (sorted(map(str, tmp_path.glob(w))) if "*" in w else [w])]
        words += shlex.split(QUICK.get(name, ""))
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed["--check" if "--check" in words else name] = done.stdout
    assert list(printed) == ["-m", "--check", "pretrain.py", "sppo_cartpole.py", "evaluate.py", "contexts.py"]

    row = "| `my/Sledge-v0` | - | the sledge is within 10 cm of the mark | 40 | processes, sync | 32 | 4 | 0.001 |"
    assert row in printed["-m"]
    assert "0 fail" in printed["--check"]
    start = tmp_path / "pretrained" / "my-Sledge-v0.safetensors"
    card = json.loads(start.with_suffix(".json").read_text())
    assert (card["env_id"], card["in_band"]) == ("mytasks:my/Sledge-v0", True)
    assert card["arguments"]["expert_success"] == 0.6, "of its recipe"
    (made,) = (tmp_path / "runs").glob("*Sledge*")
    args = json.loads((made / "config.json").read_text())["args"]
    assert (args["num_envs"], args["success_return"]) == (32, None)
    assert (made / "checkpoints" / "000000" / "policy.safetensors").read_bytes() == start.read_bytes()
    assert "final_position" in json.loads((made / "summary.json").read_text())["after"]["measures"]
    assert "of 64 sampled episodes" in printed["evaluate.py"]
    assert (tmp_path / "sledge.gif").stat().st_size > 0
    assert "mytasks:my/Sledge-v0: mean" in printed["contexts.py"]
    assert (tmp_path / "sledge.png").stat().st_size > 0


def test_the_docs_show_the_table_and_the_file():
    assert f"\n{sppo_envs.table(sppo_envs.TASKS + sppo_envs.HARDER)}\n" in DOCS, (
        "paste what `python -m sppo_envs` prints"
    )
    assert f"```python\n{(ROOT / 'docs' / 'mytasks.py').read_text()}```" in DOCS


# ------------------------------------------------------------------------------------------------------- the records
def test_the_records_say_what_the_environments_do():
    defaults = {f.name for f in dataclasses.fields(sppo_envs.Defaults)}
    for env_id in sppo_envs.TASKS + sppo_envs.HARDER:
        task = sppo_envs.task(env_id)
        assert task.id == env_id
        assert sppo_envs.task(f"sppo_envs:{env_id}") is task
        assert set(sppo_envs.task_defaults(env_id)) == defaults
        assert sppo_envs.task_defaults(env_id)["total_timesteps"] == task.defaults.total_timesteps
        envs = sppo_envs.make_task(env_id, 2)
        assert envs.horizon == task.horizon
        assert tuple(envs.obs_scale) == task.obs_scale
        obs, _ = envs.reset(seed=0)
        assert all(axis.values(obs).shape == (2,) for axis in task.axes)
        assert task.has_dense_reward
    assert sppo_envs.task("CartPole-v1") is None
    assert sppo_envs.task_defaults("CartPole-v1") == dataclasses.asdict(sppo_envs.Defaults())


def test_pretrains_arguments_are_those_of_the_recipe_and_help_shows_the_tasks_own(monkeypatch, capsys):
    own, recipe = dataclasses.asdict(pretrain.Args()), dataclasses.asdict(Recipe())
    assert {name: own[name] for name in recipe} == recipe
    assert sppo_envs.task("sppo/PrecisionCartPole-v0").recipe == Recipe(), "whose numbers are written in the file"
    with pytest.raises(SystemExit):
        run(monkeypatch, pretrain, "--env-id", "sppo/SparsePendulum-v0", "--help")
    text = " ".join(re.sub(r"[^ -~]", " ", capsys.readouterr().out).split())
    for flag, value in {
        "target": "0.08",
        "imitate": "balanced",
        "clone-learning-rate": "0.001",
        "log-std": "-0.5",
    }.items():
        assert re.search(rf" --{flag} [^)]*\(default: {value}\)", text), flag


def test_the_middle_of_the_band_follows_the_band(monkeypatch):
    args = cli.parse_args(pretrain.Args, "", ["--min-success", "0.5", "--max-success", "0.9"])
    assert args.aim == pytest.approx(0.7)
    args = cli.parse_args(pretrain.Args, "", ["--env-id", "sppo/SparsePendulum-v0"])
    assert (args.aim, args.imitate) == (0.08, "balanced")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contexts", "0"], "--contexts must be from 1 to 2^31 - 1, got 0"),
        (["--episodes", "-1"], "--episodes must be from 1 to 2^31 - 1, got -1"),
        (["--seed", "-1"], "--seed must be from 0 to 2^32 - 1, got -1"),
        (["--out", "c.doc"], "cannot write --out c.doc: its name must end in .png or .svg or .pdf"),
        (["--out", "nowhere/c.png"], "cannot write --out nowhere/c.png: there is no folder nowhere"),
        (["--env-ids", "sppo/SparseHoper-v0"], "did you mean sppo/SparseHopper-v0"),
        (["--env-ids", "CartPole-v1"], "CartPole-v1 has no success rule"),
        (["--env-ids", SIGNS], f"{SIGNS} has no starting policy; make one with scripts/pretrain.py"),
        (["--policy", "absent.safetensors"], "no starting policy at absent.safetensors"),
    ],
)
def test_contexts_refuses_before_the_work(words, message, folder, monkeypatch, capsys):
    monkeypatch.setattr(contexts, "success_by_context", lambda *a: pytest.fail("it has begun"))
    assert message in refusal(monkeypatch, capsys, contexts, *words)


@pytest.mark.parametrize(("rates", "share"), [((0.2, 0.2), 0.0), ((0.1, 0.9), 0.64), ((0.0, 1.0), 1.0)])
@pytest.mark.parametrize("episodes", [2, 4, 64])
def test_the_share_of_the_start_does_not_count_the_noise_of_the_rates(rates, share, episodes):
    p = np.repeat(rates, 20_000)
    measured = np.random.default_rng(0).binomial(episodes, p) / episodes
    assert contexts.share_of_the_start(measured, episodes) == pytest.approx(share, abs=0.02)


def test_the_share_of_the_start_says_where_it_cannot_be_told():
    for rate, episodes in ((np.zeros(3), 4), (np.ones(3), 4), (np.array([0.5]), 4), (np.array([0.0, 1.0]), 1)):
        assert np.isnan(contexts.share_of_the_start(rate, episodes))


def test_the_picture_of_contexts_has_the_tasks_axes(folder, monkeypatch):
    saved = []
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed: extra plots")
    monkeypatch.setattr(figure.Figure, "savefig", lambda figure, path: saved.append(figure))
    policy = folder / "p.safetensors"
    save_policy(make_policy(sppo_envs.make_task(SIGNS, 1)), policy, SIGNS)
    quick = {"contexts": 5, "episodes": 2, "out": Path("c.png")}
    contexts.main(contexts.Args(env_ids=("sppo/ContextPendulum-v0",), **quick))
    contexts.main(contexts.Args(env_ids=(SIGNS,), policy=str(policy), **quick))
    labels = [(f.axes[1].get_xlabel(), f.axes[1].get_ylabel()) for f in saved]
    assert labels == [("angle from upright (rad)", "angular velocity (rad/s)"), ("observation 0", "observation 1")]
    angle, omega = np.asarray(saved[0].axes[1].collections[0].get_offsets()).T
    assert np.abs(angle).max() > 1, "an angle, not its cosine or sine"
    assert np.abs(omega).max() <= 2


# ------------------------------------------------------------------------------------------------ a name is no identity
def test_a_task_of_the_same_last_name_starts_from_random_weights(folder):
    """The spaces are CartPole's, so that the shipped policy would fit."""
    assert shipped_policy(SIGNS) == folder / "pretrained" / "you-PrecisionCartPole-v0.safetensors"
    assert shipped_policy("CartPole-v1") is None
    envs = sppo_envs.make_task(SIGNS, 2)
    torch.manual_seed(3)
    policy = starting_policy(envs, SIGNS, None, False, (64, 64))
    torch.manual_seed(3)
    assert torch.equal(policy.flat, make_policy(envs).flat)
    assert policy.env_id == SIGNS


def test_a_starting_policy_for_another_task_is_refused_unless_it_is_named(folder):
    envs = sppo_envs.make_task(SIGNS, 2)
    path = shipped_policy(SIGNS)
    path.parent.mkdir()
    ours = make_policy(envs)
    for made_for in ("other:you/PrecisionCartPole-v0", "sppo/PrecisionCartPole-v0", "PrecisionCartPole-v0"):
        save_policy(ours, path, made_for)
        with pytest.raises(ValueError, match=f"was made for {made_for}, not for {SIGNS}; --start"):
            starting_policy(envs, SIGNS, None, False, (64, 64))
        assert torch.equal(starting_policy(envs, SIGNS, str(path), False, ()).flat, ours.flat)
        assert not torch.equal(starting_policy(envs, SIGNS, None, True, (64, 64)).flat, ours.flat)
    for made_for in (SIGNS, "you/PrecisionCartPole-v0"):
        save_policy(ours, path, made_for)
        assert torch.equal(starting_policy(envs, SIGNS, None, False, (64, 64)).flat, ours.flat)


def test_a_record_may_name_the_file_of_its_start(folder):
    own = folder / "elsewhere" / "start.safetensors"
    task = Task(
        id="my/Elsewhere-v0", make=sppo_envs.task("sppo/SparsePendulum-v0").make, success="s", horizon=3, start=own
    )
    register(task)
    assert shipped_policy("my/Elsewhere-v0") == own


def test_names_of_files():
    assert policy_name("sppo/SparseHopper-v0") == "SparseHopper-v0.safetensors"
    assert policy_name("sppo/FarHopper-v0") == "FarHopper-v0.safetensors"
    assert policy_name("mytasks:my/Task-v0") == "my-Task-v0.safetensors"
    assert policy_name("you/SparseHopper-v0") == "you-SparseHopper-v0.safetensors"


# ---------------------------------------------------------------------------------------------- who knows success
def test_a_task_that_knows_its_success_needs_no_flag_and_takes_none(folder, monkeypatch, capsys):
    words = ["--env-id", SIGNS, "--total-timesteps", 65, "--num-envs", 8, "--eval-episodes", 8, "--runs-dir", "runs"]
    run(monkeypatch, sppo_cartpole, *words)
    (made,) = (folder / "runs").glob("*")
    run(monkeypatch, evaluate, "--run", made, "--episodes", 32, "--video", "strip.png", "--video-episodes", 1)
    assert (folder / "strip.png").is_file()
    refused = "has a success rule of its own; leave --success-return out"
    assert refused in refusal(monkeypatch, capsys, sppo_cartpole, *words, "--success-return", 1)
    assert refused in refusal(monkeypatch, capsys, evaluate, "--run", made, "--success-return", 1)
    write_demonstrations(folder / "d.npz", 100)
    words = ["--env-id", SIGNS, "--demonstrations-from", "d.npz", "--success-return", 1]
    assert refused in refusal(monkeypatch, capsys, pretrain, *words)


@pytest.mark.parametrize("engine", ["sync", "processes"])
def test_outcomes_below_wrappers_and_limits(folder, engine):
    """The wrapper around the OutcomeReward takes 5 from each reward; the module is known to no worker process before."""
    envs = sppo_envs.make_task(SIGNS, 16, engine=engine)
    assert envs.horizon == 4
    obs, _ = envs.reset(seed=0)
    for t in range(6):
        right = obs[:, 0] > 0
        right[::2] ^= t == 1  # every second one makes a mistake
        obs, reward, terminated, truncated, info = envs.step(right.astype(np.int64))
        wanted = np.arange(16) % 2 if t == 3 else np.zeros(16)
        assert np.array_equal(reward, wanted), t
        assert terminated.all() == (t >= 3)
        assert not truncated.any()
    assert info["success"].tolist() == [False, True] * 8
    assert info["episode_return"].tolist() == [3, 4] * 8, "of the environment's own rewards"
    envs.close()


def test_the_least_limit_is_where_the_outcome_is_decided(folder):
    sppo_envs.task(SIGNS)
    make = sys.modules["signs"].make
    gym.register("you/Short-v0", make, max_episode_steps=2)
    for env_id, horizon, expected in (("you/Short-v0", None, 2), (SIGNS, 3, 3), (SIGNS, 9, 4), ("you/Short-v0", 1, 1)):
        envs = sppo_envs.make_task(env_id, 1, horizon=horizon)
        obs, _ = envs.reset(seed=0)
        for _ in range(envs.horizon):
            obs, reward, terminated, _, info = envs.step((obs[:, 0] > 0).astype(np.int64))
        assert (envs.horizon, terminated[0], reward[0], info["success"][0]) == (expected, True, 1, True)

    class Hides(gym.Wrapper):
        def step(self, action):
            return *self.env.step(action)[:4], {}

    gym.register("you/Hidden-v0", lambda: Hides(make()))
    envs = sppo_envs.make_task("you/Hidden-v0", 1, horizon=1)
    envs.reset(seed=0)
    with pytest.raises(RuntimeError, match="ended an episode without `success` in info"):
        envs.step(np.array([0]))


class Batched:
    """In place of a user's batched simulator."""

    def __init__(self, num_envs, horizon, dense=False):
        self.num_envs, self.horizon, self.dense = num_envs, horizon, dense


def no_dense(render_mode=None, horizon=7):
    return sppo_envs.task("sppo/SparseMountainCar-v0").make(render_mode, horizon)


def test_a_users_engines(folder):
    """auto takes the batched one; copies of `make` are there too; the dense reward where there is one."""
    register(Task(id="my/Batched-v0", make=no_dense, make_vec=Batched, success="s", horizon=7, obs_scale=(1.0, 2.0)))
    envs = sppo_envs.make_task("my/Batched-v0", 3)
    assert (type(envs), envs.num_envs, envs.horizon, envs.dense, envs.obs_scale) == (Batched, 3, 7, False, (1.0, 2.0))
    assert sppo_envs.make_task("my/Batched-v0", 3, horizon=5, dense=True).dense is True
    copies = sppo_envs.make_task("my/Batched-v0", 3, horizon=5, engine="sync")
    assert (type(copies), copies.horizon, copies.obs_scale) == (sppo_envs.OutcomeVectorEnv, 5, (1.0, 2.0))
    with pytest.raises(ValueError, match="dense reward of my/Batched-v0 exists in its numpy engine only"):
        sppo_envs.make_task("my/Batched-v0", 3, dense=True, engine="sync")
    with pytest.raises(ValueError, match="has the engines numpy, processes and sync, not envpool"):
        sppo_envs.make_task("my/Batched-v0", 3, engine="envpool")
    register(Task(id="my/Single-v0", make=no_dense, success="s", horizon=6))
    assert type(sppo_envs.make_task("my/Single-v0", 2)) is sppo_envs.OutcomeVectorEnv
    assert sppo_envs.make_task("my/Single-v0", 2).horizon == 6, "the record's, not the function's default"
    with pytest.raises(ValueError, match="has no dense reward: neither its make nor its make_vec takes"):
        sppo_envs.make_task("my/Single-v0", 2, dense=True)
    with pytest.raises(ValueError, match="has the engines processes and sync, not numpy"):
        sppo_envs.make_task("my/Single-v0", 2, engine="numpy")


# ----------------------------------------------------------------------------------------------- registry and modules
def test_ids_belong_to_one_task_only(folder):
    own = {"make": no_dense, "success": "s", "horizon": 3}
    with pytest.raises(ValueError, match=r"sppo/SparseHopper-v0 is a task of sppo_envs\.hopper already"):
        register(Task(id="sppo/SparseHopper-v0", **own))
    with pytest.raises(ValueError, match="CartPole-v1 is an environment registered with Gymnasium already"):
        register(Task(id="CartPole-v1", **own))
    (folder / "again.py").write_text(
        "import sppo_envs\nH = 4\n"
        "def make(horizon=H): return sppo_envs.task('sppo/SparsePendulum-v0').make(horizon=horizon)\n"
        "sppo_envs.register(sppo_envs.Task(id='my/Again-v0', make=make, success='s', horizon=H))\n"
    )
    assert sppo_envs.task("again:my/Again-v0").horizon == 4
    (folder / "again.py").write_text((folder / "again.py").read_text().replace("H = 4", "H = 55"))
    importlib.reload(sys.modules["again"])
    assert sppo_envs.task("my/Again-v0").horizon == gym.make("my/Again-v0").get_wrapper_attr("horizon") == 55
    with pytest.raises(ValueError, match=r"my/Again-v0 is a task of again already"):
        register(Task(id="my/Again-v0", **own))
    assert gym.spec("my/Again-v0").entry_point == "again:make", "a string, so that the specification can be stored"
    for change, message in (({"horizon": 0}, "at least 1 step"), ({"axes": (Axis("x", 0),)}, "must be two, or none")):
        with pytest.raises(ValueError, match=message):
            Task(id="my/Bad-v0", **{**own, **change})


def test_the_current_folder_is_searched_last(folder):
    assert "tabnanny" not in sys.modules, "a module of Python's own that nobody imports"
    (folder / "tabnanny.py").write_text("raise AssertionError('it hides an installed module')\n")
    assert sppo_envs.task("tabnanny:CartPole-v1") is None
    del sys.modules["tabnanny"]
    with pytest.raises(ValueError, match=f"No module named 'nomodule'; looked in the current folder, {folder}, too"):
        sppo_envs.make_task("nomodule:my/Task-v0", 1)
    with pytest.raises(ValueError, match=r"cannot make signs:my/Sings-v0: .*signs\.py registers no my/Sings-v0"):
        sppo_envs.make_task("signs:my/Sings-v0", 1)
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):  # the user's own error, with its traceback
        sppo_envs.task("broken:my/Task-v0")


# ---------------------------------------------------------------------------------------------- given demonstrations
def demonstrations(n=2000):
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (n, 4)).astype(np.float32)
    return {"observations": obs, "actions": (obs[:, 0] > 0).astype(np.int64)}


def write_demonstrations(path, n=2000, **changes):
    arrays = {**demonstrations(n), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


CLONE = ["--env-id", SIGNS, "--min-success", "0.2", "--max-success", "0.6", "--eval-episodes", "256"]


def fake_minari(monkeypatch):
    """Two episodes, each with one observation more than actions."""
    arrays = demonstrations()
    obs, actions = arrays["observations"], arrays["actions"]
    parts = [(obs[a:b], actions[a:b]) for a, b in ((0, 700), (700, 2000))]
    episodes = [types.SimpleNamespace(observations=np.concatenate([o, o[:1] * np.nan]), actions=a) for o, a in parts]
    module = types.ModuleType("minari")
    module.__spec__ = importlib.machinery.ModuleSpec("minari", None)
    module.load_dataset = lambda name, download: {
        "you/demos-v0": types.SimpleNamespace(iterate_episodes=lambda: episodes)
    }[name]
    monkeypatch.setitem(sys.modules, "minari", module)


def test_a_task_without_dense_reward_clones_given_demonstrations(folder, monkeypatch, capsys):
    """From each kind of source the same policy, bit for bit; training and evaluation then start from it."""
    message = "has no dense reward to train an expert on; give demonstrations to clone: --demonstrations-from FILE"
    assert message in refusal(monkeypatch, capsys, pretrain, *CLONE)
    assert not (folder / "runs").exists(), "refused before any work"
    assert not (folder / "pretrained").exists()
    write_demonstrations("d.npz")
    save_file({k: torch.from_numpy(v) for k, v in demonstrations().items()}, "d.safetensors")
    fake_minari(monkeypatch)
    start, contents = shipped_policy(SIGNS), []
    for source in ("d.npz", "d.safetensors", "minari:you/demos-v0"):
        run(monkeypatch, pretrain, *CLONE, "--demonstrations-from", source)
        contents.append(start.read_bytes())
        card = json.loads(start.with_suffix(".json").read_text())
        assert card["in_band"]
        assert re.match(rf"demonstrations from {source} cloned, SHA-256 [0-9a-f]{{64}} \(2000 steps\)", card["recipe"])
        start.unlink()
    assert contents[0] == contents[1] == contents[2]
    assert not (folder / "runs").exists(), "no expert"

    start.write_bytes(contents[0])
    words = ["--total-timesteps", 32, "--num-envs", 8, "--eval-episodes", 8]
    run(monkeypatch, sppo_cartpole, "--env-id", SIGNS, *words)
    (made,) = (folder / "runs").glob("*")
    assert (made / "checkpoints" / "000000" / "policy.safetensors").read_bytes() == contents[0]
    capsys.readouterr()
    run(monkeypatch, evaluate, "--run", SIGNS, "--episodes", 256)
    rate = float(re.search(r"success (0\.\d+)", capsys.readouterr().out).group(1))
    assert 0.15 < rate < 0.65


def test_an_environment_that_does_not_know_success_is_cloned_with_a_return(folder, monkeypatch, capsys):
    (folder / "plain.py").write_text(
        SIGNS_FILE.replace("OutcomeReward(Signs(), success, 4), lambda reward: reward - 5", "Signs(), lambda r: r")
        .replace("you/Precision", "plain/Precision").replace("make)", "make, max_episode_steps=4)")
    )  # fmt: skip
    write_demonstrations("d.npz")
    words = ["--env-id", "plain:plain/PrecisionCartPole-v0", *CLONE[2:], "--demonstrations-from", "d.npz"]
    assert "has no success rule: pass --success-return" in refusal(monkeypatch, capsys, pretrain, *words)
    run(monkeypatch, pretrain, *words, "--success-return", 4)
    card = json.loads((folder / "pretrained" / "plain-PrecisionCartPole-v0.json").read_text())
    assert card["command"].endswith("--seed 1 --demonstrations-from d.npz --success-return 4")
    assert card["in_band"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": None}, "d.npz has no observations; it has actions"),
        ({"observations": np.zeros((5, 3))}, r"observations of d.npz must be numbers of shape (N, 4), got float64 of"),
        (
            {"observations": np.zeros((5, 4), dtype=bool)},
            "observations of d.npz must be numbers of shape (N, 4), got bool",
        ),
        (
            {"observations": np.full((5, 4), [0, 0, 0, np.nan])},
            "observations of d.npz must be finite, but row 0 is [ 0.",
        ),
        ({"actions": np.zeros(5)}, "actions of d.npz must be whole numbers of shape (N,), got float64 of shape (5,)"),
        ({"actions": np.zeros((5, 1), dtype=int)}, "actions of d.npz must be whole numbers of shape (N,), got int64"),
        ({"actions": np.array([0, 1, 0, 2, 0])}, "actions of d.npz must be 0 to 1, but row 3 is 2"),
        ({"actions": np.array([0, 1, 0, -1, 0])}, "actions of d.npz must be 0 to 1, but row 3 is -1"),
        ({"actions": np.zeros(4, dtype=int)}, "d.npz must have one action per observation, got 5 and 4"),
        ({"observations": np.zeros((0, 4)), "actions": np.zeros(0, dtype=int)}, "per observation, got 0 and 0"),
        ({"actions": np.array([None] * 5)}, "cannot read --demonstrations-from d.npz: Object arrays cannot be loaded"),
    ],
)
def test_demonstrations_that_do_not_fit_are_refused_before_the_work(changes, message, folder, monkeypatch, capsys):
    write_demonstrations("d.npz", 5, **changes)
    monkeypatch.setattr(pretrain, "clone", lambda *a: pytest.fail("it has begun"))
    assert message in refusal(monkeypatch, capsys, pretrain, *CLONE, "--demonstrations-from", "d.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.npz", None, "cannot read --demonstrations-from absent.npz: [Errno 2] No such file"),
        ("d.csv", b"1,2", "--demonstrations-from takes .npz, .safetensors or minari:<dataset id>, got d.csv"),
        ("d.npz", b"", "cannot read --demonstrations-from d.npz"),
        ("d.npz", b"rubbish", "cannot read --demonstrations-from d.npz"),
        ("d.safetensors", b"rubbish", "cannot read --demonstrations-from d.safetensors"),
        ("minari:you/absent-v0", None, "cannot read minari:you/absent-v0"),
    ],
)
def test_files_of_demonstrations_that_cannot_be_read(name, content, message, folder, monkeypatch, capsys):
    if content is not None:
        Path(name).write_bytes(content)
    fake_minari(monkeypatch)
    assert message in refusal(monkeypatch, capsys, pretrain, *CLONE, "--demonstrations-from", name)


def test_continuous_actions_and_a_missing_package(folder, monkeypatch, capsys):
    envs = sppo_envs.make_task("sppo/SparsePendulum-v0", 1)
    np.savez("d.npz", observations=np.zeros((5, 3)), actions=np.arange(5)[:, None])
    obs, actions = pretrain.read_demonstrations("d.npz", envs)
    assert (obs.dtype, actions.dtype, actions.tolist()) == (torch.float32, torch.float32, [[0], [1], [2], [3], [4]])
    monkeypatch.setitem(sys.modules, "minari", None)
    words = [*CLONE, "--demonstrations-from", "minari:x"]
    error = refusal(monkeypatch, capsys, pretrain, *words)
    assert "minari, which --demonstrations-from minari:x needs, is not installed; run: pip install" in error


def test_a_real_minari_dataset(folder, monkeypatch):
    """Written by Minari itself: what the stand-in above pretends."""
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    arrays, buffers = demonstrations(12), []
    for part in (slice(0, 5), slice(5, 12)):
        obs, actions = arrays["observations"][part], arrays["actions"][part]
        ends = [False] * (len(actions) - 1) + [True]
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=[*obs, obs[0]], actions=list(actions), rewards=[0.0] * len(actions), terminations=ends,
                truncations=ends,
            )
        )  # fmt: skip
    space = sppo_envs.make_task(SIGNS, 1)
    minari.create_dataset_from_buffers(
        "you/demos-v0",
        buffers,
        observation_space=space.single_observation_space,
        action_space=space.single_action_space,
    )
    obs, actions = pretrain.read_demonstrations("minari:you/demos-v0", space)
    assert np.array_equal(obs.numpy(), arrays["observations"])
    assert np.array_equal(actions.numpy(), arrays["actions"])


def test_what_is_imitated_must_be_a_boolean_measure(folder, monkeypatch, capsys):
    write_demonstrations("d.npz")
    words = [*CLONE, "--demonstrations-from", "d.npz", "--imitate"]
    assert "--imitate must be one of success, got 'balanced'" in refusal(
        monkeypatch, capsys, pretrain, *words, "balanced"
    )
    assert "got 'episode_return'" in refusal(monkeypatch, capsys, pretrain, *words, "episode_return")


def test_a_task_in_no_file_needs_a_folder_for_its_start(folder, monkeypatch, capsys):
    write_demonstrations("d.npz")
    words = ["--env-id", "CartPole-v1", "--success-return", 50, "--demonstrations-from", "d.npz"]
    error = refusal(monkeypatch, capsys, pretrain, *words)
    assert "CartPole-v1 is not in one of your files; name a folder for its starting policy with --out" in error


def test_outcome_rewards_alone_are_not_wrapped_twice():
    assert type(sppo_envs.make_one("sppo/SparsePendulum-v0")) is OutcomeReward
