"""Malformed command lines, the user's own exceptions, and systems without Unix's modules."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import grpo_cartpole
import grpo_llm
import ppo_cartpole
import ppo_llm
import remax_cartpole
import rloo_cartpole
import rloo_llm
import sppo_cartpole
import sppo_llm
from sppo_control import arguments, cli, errors, extras, limits

ROOT = Path(__file__).resolve().parents[1]
CONTROL = (sppo_cartpole, ppo_cartpole, grpo_cartpole, rloo_cartpole, remax_cartpole)
LANGUAGE = (sppo_llm, ppo_llm, grpo_llm, rloo_llm)
BOTH = [
    *[("--learning-rate", x) for x in ("1e30", "1e-320", "nan", "inf", "-inf", "0", "-1", "1e-11", "11", "x", "")],
    *[("--clip-coef", x) for x in ("1e9", "nan", "inf", "0", "-0.2", "1e-7")],
    *[("--max-grad-norm", x) for x in ("1e-300", "1e300", "nan", "inf", "0", "-1")],
    *[("--seed", x) for x in ("-1", str(2**32), str(2**63), str(2**64), "1.5", "1e3", "9" * 5000)],
    *[("--num-minibatches", x) for x in ("0", "-2", "7", str(2**63))],
    *[("--update-epochs", x) for x in ("0", str(10**7), str(2**70))],
    *[("--save-every", x) for x in ("0", "-1", str(2**63))],
    ("--runs-dir", ""),
    ("--runs-dir=", None),
    ("--resume", ""),
    ("--resume", "absent/folder"),
    ("--resume", "a" * 5000),
    ("--no-such-flag", "1"),
    *[("--track", x) for x in ("", "mlflow", "True")],
]
CONTROL_ONLY = [
    *[("--horizon", x) for x in ("100000000", "0", "-5", str(2**31), str(2**63), "1e3", "nan")],
    *[("--num-envs", x) for x in ("10000000", "0", "-64", str(2**63), str(2**20 + 4))],
    *[("--total-timesteps", x) for x in ("0", str(2**63), "inf")],
    *[("--eval-episodes", x) for x in ("0", str(2**31), "-1")],
    *[("--hidden", x) for x in ("0", "-3", "100000", str(2**63))],
    *[("--success-return", x) for x in ("nan", "inf", "1e31", "")],
    *[("--ent-coef", x) for x in ("nan", "inf", "-1", "1e9")],
    ("--env-id", ""), ("--env-id=", None), ("--start", ""), ("--engine", "warp"),
]  # fmt: skip
OWN = {
    sppo_cartpole: [
        *[("--critic-window", x) for x in ("0", "100000000000", str(2**24), "-1")],
        *[("--critic-batch-size", x) for x in ("0", str(2**30), str(2**63))],
        *[("--critic-steps", x) for x in ("0", str(10**7))],
        *[("--critic-hidden", x) for x in ("0", "70000")],
        *[("--critic-learning-rate", x) for x in ("1e30", "nan", "1e-320")],
    ],
    ppo_cartpole: [
        *[("--gamma", x) for x in ("nan", "1.1", "-0.1")],
        *[("--critic-gae-lambda", x) for x in ("nan", "1.1", "-0.1")],
        *[("--critic-warmup-batches", x) for x in ("-1", str(2**31), "0.5")],
        *[("--norm-adv", x) for x in ("epoch", "", "True")],
        ("--gae-lambda", "inf"), ("--critic-loss", "x"),
    ],
    grpo_cartpole: [
        *[("--group-size", x) for x in ("0", "-8", str(2**63))],
        ("--ratio", "token"), ("--reduction", "mean"),
    ],
    rloo_cartpole: [
        *[("--group-size", x) for x in ("0", str(2**21))],
        *[("--num-contexts", x) for x in ("0", "-1", str(10**7), "1.5")],
        ("--baseline", "mean"), ("--baseline", "tracked"),
    ],
}  # fmt: skip
SKIPPING = [
    *[(f"--{name}", x) for name in ("skip-prompts-below", "skip-prompts-above", "retry-skipped-prompts")
      for x in ("-0.1", "1.1", "nan", "inf", "x", "")],
    ("--retry-skipped-prompts", "0.2"),
]  # fmt: skip
LANGUAGE_ONLY = [
    *[("--temperature", x) for x in ("1e-30", "nan", "inf", "0", "1e9")],
    *[("--device", x) for x in ("nope", "meta", "mps", "cuda:99", "")],
    *[("--batch-size", x) for x in ("0", str(2**21), str(2**63))],
    *[("--max-response-length", x) for x in ("0", str(2**30))],
    *[("--total-episodes", x) for x in ("0", str(2**63))],
    *[(flag, "") for flag in ("--dataset", "--model")],
]  # fmt: skip
EVALUATE = [
    *[("--episodes", x) for x in ("0", "-1", str(2**31), str(2**63), "nan")],
    *[("--num-envs", x) for x in ("0", "10000000")],
    *[("--horizon", x) for x in ("0", "100000000", str(2**63))],
    *[("--seed", x) for x in ("-1", str(2**32), str(2**63))],
    *[("--success-return", x) for x in ("nan", "inf")],
    *[("--json", x) for x in ("", ".", "absent/x.json")],
    *[("--video", x) for x in ("", ".", "absent/x.png", "x.txt")],
    *[("--video-episodes", x) for x in ("0", str(10**6))],
    ("--env-id", ""),
]  # fmt: skip
CASES = [
    *[(module, case) for module in (*CONTROL, *LANGUAGE) for case in BOTH],
    *[(module, case) for module in CONTROL for case in CONTROL_ONLY],
    *[(module, case) for module, cases in OWN.items() for case in cases],
    *[(module, case) for module in LANGUAGE for case in LANGUAGE_ONLY],
    *[(sppo_llm, case) for case in SKIPPING],
    *[(evaluate, case) for case in EVALUATE],
]


def test_malformed_command_lines(monkeypatch, capsys, tmp_path):
    """Each is refused with exit status 2 and its flag before anything runs; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(limits, "memory_bytes", lambda: 2**34)
    monkeypatch.setattr(evaluate, "evaluate_in_batches", lambda *args: pytest.fail(f"{sys.argv} was accepted"))
    for module in (*CONTROL, *LANGUAGE):  # the work of a script; a malformed line must not reach it
        monkeypatch.setattr(module, "train", lambda args: pytest.fail(f"{args} was accepted"))
    assert len(CASES) >= 100
    for module, (name, value) in CASES:
        words = [name] if value is None else [name, value]
        if module is evaluate:
            words += ["--run", "sppo/PrecisionCartPole-v0"]
            if name == "--num-envs":
                words += ["--episodes", "20000000"]
        monkeypatch.setattr(sys, "argv", [module.__file__, *words])
        with pytest.raises(SystemExit) as stop:
            cli.main(module.main if module is evaluate else module.train, module.Args, "test")
        err = capsys.readouterr().err
        case = f"{module.__name__} {name} {value!s:.40}: {err[-500:]}"
        assert stop.value.code == 2, case
        assert "Traceback" not in err, case
        wanted = name.rstrip("=")
        if name == "--resume" and value:
            wanted = "neither a run folder nor a checkpoint"
        assert wanted in err, case
        assert len(err) < 9000, case
    assert not list(tmp_path.iterdir())
    print(f"{len(CASES)} command lines")


def test_the_limits_leave_the_defaults_and_common_values_alone():
    for module in (*CONTROL, *LANGUAGE):
        assert module.Args() == cli.make_args(module.Args)
    for name, value in {"learning_rate": 1e-6, "clip_coef": 10.0, "max_grad_norm": 1e9, "horizon": 100_000}.items():
        assert getattr(sppo_cartpole.Args(**{name: value}), name) == value


def test_memory_is_estimated_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 2**34)
    with pytest.raises(ValueError, match=r"--horizon 100000000 may need [\d,.]+ GiB, and this machine has [\d,.]+ GiB"):
        sppo_cartpole.Args(horizon=100_000_000)
    needed = arguments._bytes(sppo_cartpole.Args())
    assert all(0 < x < 2**26 for x in needed.values()), needed
    assert limits.memory_bytes() == 2**34
    monkeypatch.undo()
    assert 2**28 < limits.memory_bytes() < 2**50
    monkeypatch.delattr(limits.os, "sysconf")
    assert limits.memory_bytes() == 2**40, "as on Windows"


def test_a_huge_number_of_digits_is_not_repeated_in_full(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--horizon", str(2**62)])
    with pytest.raises(SystemExit):
        cli.main(sppo_cartpole.train, sppo_cartpole.Args, "test")
    assert "--horizon must be from 1 to 2^31 - 1" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- the user's own exception
USERS = """
import multiprocessing

import gymnasium as gym
import numpy as np


class Broken(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        if FIRST:  # the quick look before training is in the process that the user started
            return np.zeros(2, dtype=np.float32), 0.0, False, False, {}
        BODY


gym.register("own/Broken-v0", Broken, max_episode_steps=5)
"""


@pytest.mark.parametrize("engine", ["sync", pytest.param("processes", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("np.zeros(3) + np.zeros(4)", "operands could not be broadcast"),
        ("open('absent.txt')", "No such file or directory: 'absent.txt'"),
        ("np.stack([np.zeros(1), np.zeros(2)])", "must have the same shape"),  # raised inside numpy's own file
        ("import absent_package", "No module named 'absent_package'"),
        ("raise ValueError('of the user')", "of the user"),
    ],
)
def test_the_users_own_exception_shows_where(engine, body, message, tmp_path):
    first = "multiprocessing.parent_process() is None" if engine == "processes" else "False"
    (tmp_path / "broken_task.py").write_text(USERS.replace("BODY", body).replace("FIRST", first))
    line = USERS.splitlines().index("        BODY") + 1
    command = [sys.executable, str(ROOT / "scripts" / "sppo_cartpole.py"), "--env-id", "broken_task:own/Broken-v0"]
    command += ["--success-return", "1", "--num-envs", "4", "--engine", engine, "--runs-dir", "runs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback (most recent call last):" in done.stderr
    assert f'broken_task.py", line {line}, in step' in done.stderr
    assert message in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), last
    if engine == "sync":
        assert f"broken_task.py, line {line}, which is not part of sppo_control" in last
    else:
        assert "worker process" in last


def refusal(function):
    try:
        function()
    except Exception as error:
        return cli.is_refusal(error)
    raise AssertionError("nothing was raised")


def test_our_refusals_are_told_from_defects(tmp_path):
    """What this project raises on purpose is one line, whatever its type; what happens to it is not."""

    def raises(error):
        raise error

    assert refusal(lambda: raises(errors.UserError("x")))
    assert refusal(lambda: limits.check_memory({"--x": 2**60}, 5))  # a ValueError of ours
    assert refusal(lambda: extras.require("llm", "no_such_module"))  # an ImportError of ours
    assert refusal(
        lambda: sppo_cartpole.starting_policy(None, "x", "absent.safetensors", False, ())
    )  # an OSError of ours
    assert refusal(lambda: limits.check_memory({"--x": 1}, 5) or cli.run_folder(tmp_path))
    assert not refusal(lambda: raises(ValueError("of a file that is not ours")))
    assert not refusal(lambda: limits.check_memory({"--x": "2"}, 5))  # a TypeError
    assert not refusal(lambda: arguments._bytes(None))
    assert not refusal(lambda: torch.zeros(3) + torch.zeros(4))


def test_an_arithmetic_error_in_our_own_code_is_a_defect(monkeypatch):
    """The same type as our refusals, in a file of ours, but no `raise` statement: `zip(strict=True)` of two lengths."""
    monkeypatch.setattr(arguments, "flag", lambda name: int("not a number"))
    assert not refusal(lambda: arguments._bytes(sppo_cartpole.Args()))
    code = compile("int('x')", cli.__file__, "eval")
    assert not refusal(lambda: eval(code))
    code = compile("raise ValueError('x')", cli.__file__, "exec")
    assert refusal(lambda: exec(code))


# --------------------------------------------------------------------------------------------- Windows and macOS
UNIX = ("resource", "fcntl", "pwd", "grp", "termios", "syslog", "posix_ipc")
BLOCKED = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {UNIX!r}:
            import inspect
            frame = sys._getframe(1)
            while frame and "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            file = frame.f_code.co_filename
            if file.startswith(sys.argv[1]) and "site-packages" not in file:
                raise ImportError(f"{{name}} at {{frame.f_code.co_filename}}:{{frame.f_lineno}}")
for name in {UNIX!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Block())
for name in sys.argv[2:]:
    importlib.import_module(name)
from sppo_control import runs
sys.modules.pop("resource", None)  # another package may have imported it
assert runs.peak_memory_mib() is None
"""


def modules():
    """All modules of the project but those that need verl."""
    found = []
    for folder, top in ((ROOT / "sppo_control", ROOT), (ROOT / "envs" / "sppo_envs", ROOT / "envs")):
        for path in sorted(folder.rglob("*.py")):
            name = ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
            if path.stem not in ("verl_plugin", "__main__"):
                found.append(name)
    return found + [path.stem for path in sorted((ROOT / "scripts").glob("*.py"))]


@pytest.mark.slow
def test_nothing_imports_a_module_of_unix_only():
    """Every module is imported in a process where those modules are not there."""
    pytest.importorskip("trl")
    pytest.importorskip("matplotlib")
    code, names = BLOCKED, modules()
    assert len(names) > 40
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'envs')!r}, {str(ROOT / 'scripts')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + code, str(ROOT), *names], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    blocked = "exec(compile('import fcntl', sys.argv[1] + '/x.py', 'exec'))\nfor name in []"
    control = paths + code.replace("for name in sys.argv[2:]", blocked)
    done = subprocess.run([sys.executable, "-c", control, str(ROOT)], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"fcntl at .*x\.py:1", done.stderr), "the test must see such an import"
