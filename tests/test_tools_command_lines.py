"""Malformed command lines of the scripts that are tools, and files of strangers that they are given."""

import importlib.util
import itertools
import json
import os
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

import animations
import arithmetic_data
import benchmark
import compare
import compare_llm
import contexts
import credit
import critic_card
import critic_control
import critic_filter
import critic_why
import difficulty_llm
import drawings
import enjoy
import evaluate_llm
import fetch_smollm2
import llm_real
import mutants
import plain_english
import plot
import pretrain
import pretrain_llm
import probe
import report
import report_rates
import share
import soak
import speed
import speed_llm
import try_environments
import tune
from sppo_control import checkpoints, cli, limits, runs
from sppo_control.study import rates

ROOT = Path(__file__).resolve().parents[1]
POLE = "sppo/PrecisionCartPole-v0"
WORK = {
    animations: ["train", "draw"],
    arithmetic_data: [],
    benchmark: ["results_of"],
    compare: [],
    compare_llm: ["table_of_runs", "draw"],
    contexts: ["success_by_context"],
    credit: ["setting_of", "pages", "horizon_panel", "measured_points", "measured_table"],
    critic_card: ["evaluate", "make_card"],
    critic_control: ["groups", "table", "draw"],
    critic_filter: ["one_run", "draw", "table", "write"],
    critic_why: ["compare", "table"],
    difficulty_llm: ["measure"],
    drawings: [],
    enjoy: ["watch", "window"],
    evaluate_llm: ["respond"],
    fetch_smollm2: ["fetch", "read_gguf", "whole_or_absent"],
    llm_real: ["train", "evaluate"],
    mutants: ["copy_checkout", "run_tests"],
    plain_english: ["sentences"],
    plot: ["groups"],
    pretrain: ["train_expert", "collect", "clone"],
    pretrain_llm: ["demonstrations"],
    probe: ["tail", "calibration"],
    report: ["draw", "tables"],
    report_rates: [],
    share: ["source"],
    soak: ["launch"],
    speed: ["measure", "measure_engines", "measure_sb3"],
    speed_llm: ["child", "measure_loss", "measure_real", "work"],
    try_environments: ["attempt"],
    tune: ["train", "open_study"],
}
"""Script -> the functions that do its work, none of which may be called."""
HUGE = (str(2**63), "9" * 400)


def counts(*flags, least=1):
    """A flag for a whole number: below its range, above it, and no whole number."""
    return [(flag, x) for flag in flags for x in (str(least - 1), "-7", "1.5", "nan", "many", "", *HUGE)]


def numbers(*flags, low="-1e40", high="1e40"):
    """A flag for a number."""
    return [(flag, x) for flag in flags for x in (low, high, "nan", "inf", "-inf", "much", "")]


def files(flag, ending, parent_made=False):
    """A flag for a file to write."""
    bad = [
        "",
        ".",
        "folder",
        f"file/x{ending}",
        f"{'n' * 300}{ending}",
        f"x{ending}.zip",
        f"pipe{ending}",
        f"odd{ending}",
    ]
    bad += [f"/proc/x{ending}"] * (sys.platform == "linux") + [f"absent/x{ending}"] * (not parent_made)
    return [(flag, x) for x in bad]


def folders(*flags):
    """A flag for a folder to write to."""
    bad = ["", "file", "file/below", "file/below/it", "n" * 300, *["/proc/x"] * (sys.platform == "linux")]
    return [(flag, x) for flag in flags for x in bad]


RUNS = ("absent", "folder", "file", "run_of_list", "run_of_text", "run_without_args", "run_of_other_types")
TABLES = ("absent", "text", "empty", "csv", "other", "types", "folder", "twice", "arguments")
JSONS = ("absent", "text", "empty", "list", "rows", "runs", "deep", "nan")
CASES = {
    animations: [
        *counts("--episodes", "--total-timesteps"), *counts("--seed", least=0), *folders("--out", "--runs-dir"),
        *[("--env-ids", x) for x in ("nope", "", "CartPole-v1", "absent_module:x/Y-v0")],
        *[("--runs", x) for x in ("", "absent", "folder", "file")], ("--nope", "1"),
    ],
    arithmetic_data: [
        *counts("--held-out"), ("--held-out", "5000"), *counts("--seed", least=0), *folders("--out"), ("--nope", "1"),
    ],
    benchmark: [
        *counts("--eval-episodes", "--points", "--jobs"),
        *counts("--seeds", least=0),
        *[("--env-ids", x) for x in ("sppo/Pole-v0", "", "absent_module:x/Y-v0", "CartPole-v1")],
        *[("--algorithms", x) for x in ("dqn", "", "absent.py", "folder.py")],
        *[
            ("--settings", x)
            for x in ("no-such-flag=1", "learning-rate=", "learning-rate=-1", "hidden=x", "num-envs=0", "help", "x", "==")
        ],
        *[("--settings", x) for x in ("critic-recipe=other", "num-envs=7", "horizon=100000000", "env-id=x")],
        *files("--out", ".parquet", parent_made=True),
        *[("--out", f"{name}.parquet") for name in TABLES if name not in ("absent", "folder")],
        *folders("--work-dir"),
        *[("--grid", f"{name}.toml") for name in ("absent", "text", "list", "types", "unknown", "huge", "deep", "cells")],
        ("--grid", "folder"), ("--nope", "1"), ("--ray-address", ""),
    ],
    compare_llm: [
        *counts("--window"), *files("--out", ".json"), *files("--figure", ".png"), ("--nope", "1"),
        *[(name, None) for name in ("absent", "folder", "file", *(f"{name}.json" for name in JSONS if name != "absent"))],
    ],
    contexts: [
        *counts("--contexts", "--episodes"), *counts("--seed", least=0), *numbers("--success-return"),
        *files("--out", ".png"), *[("--env-ids", x) for x in ("nope", "", "CartPole-v1", "absent_module:x/Y-v0")],
        *[("--policy", x) for x in ("", "absent", "folder", "file", "text.safetensors")], ("--nope", "1"),
    ],
    credit: [
        *counts("--horizon", "--decisions", "--contexts", "--batch", "--group-size", "--episodes"),
        *counts("--seed", least=0), *numbers("--gain", "--offset", "--spread", "--right", "--critic-error"),
        *numbers("--critic-knows", "--critic-sees-from", "--context-error", "--gamma", "--gae-lambda"),
        *files("--out", ".png"), *folders("--figures"), *files("--results", ".json", parent_made=True),
        ("--what", "all"), ("--deciding", "soon"), ("--critic-kind", "pink"), ("--horizon", "3"), ("--batch", "60"),
        ("--episodes", "64"), ("--right", "1"), ("--nope", "1"),
    ],
    critic_card: [
        *counts("--k", "--batch-size"), *counts("--seed", least=0), *folders("--out"),
        *[("--run", x) for x in (*RUNS, "")], *[("--device", x) for x in ("nope", "meta", "mps", "cuda:99", "")],
    ],
    critic_control: [
        *files("--out", ".png"), *[("--results", f"{name}.json") for name in JSONS],
        *[("--results", x) for x in ("", "file", "table.csv")], ("--curves", "file"), ("--curves", ""),
    ],
    critic_why: [
        *counts("--episodes", "--updates", "--contexts"), *counts("--update", "--seed", least=0), ("--episodes", "100"),
        *files("--out", ".json"), *[("--out", f"{name}.json") for name in JSONS], *[("--runs", x) for x in (*RUNS, "")],
    ],
    critic_filter: [
        *counts("--seeds", least=0), *counts("--total-episodes"), *files("--out", ".json"), *files("--figure", ".png"),
        *[("--dataset", x) for x in ("", ".", "folder", "file/x.jsonl", "x.jsonl.zip", "absent/x.jsonl", "x.json")],
        ("--variants", "none"), ("--variants", ""), ("--worker", "x"), ("--worker", ""),
        *[("--out", f"{name}.json") for name in ("text", "empty", "list", "rows", "runs", "deep", "nan")],
    ],
    difficulty_llm: [
        *counts("--prompts", "--samples", "--batch-size"), *counts("--seed", "--updates", least=0),
        ("--prompts", "2"), ("--samples", "1"), *folders("--out"), *files("--figure", ".png"), ("--reward", "none"),
        *[("--problems", x) for x in ("", "absent.jsonl", "folder", "file", "list.json")],
        *[("--device", x) for x in ("nope", "meta", "mps", "cuda:99", "")],
        *[("--run", x) for x in (*RUNS, "")],
    ],
    drawings: [*folders("--out"), ("--what", "nothing"), ("--what", ""), ("--nope", "1")],
    enjoy: [
        *counts("--episodes", "--horizon"), *counts("--seed", least=0), *numbers("--success-return"),
        *files("--video", ".gif"), ("--render", "slow"), ("--env-id", ""), ("--nope", "1"),
        *[("--run", x) for x in ("absent", "folder", "file", "", "text.safetensors", "run_of_text")],
        *[("--run", x) for x in ("hf:", "hf:one", "hf:a/../b")],
    ],
    evaluate_llm: [
        *counts("--k", "--batch-size", "--max-response-length"), *counts("--seed", least=0),
        *numbers("--temperature", low="-0.1"), *folders("--out"), ("--out", "folder_with_file"),
        *[("--device", x) for x in ("nope", "meta", "mps", "cuda:99", "")],
        *[("--benchmarks", x) for x in ("aime99", "", "../x=y", "mine=absent.jsonl", "mine=text.json")],
        *[("--model", x) for x in ("", "absent/model", "folder")], ("--reward", "none"), ("--prompt-template", "Hi"),
    ],
    fetch_smollm2: [
        *folders("--out"), *counts("--critic-layers"), ("--critic-layers", "31"), ("--dtype", "int8"),
        *[("--gguf", x) for x in ("", "absent.gguf", "folder")],
    ],
    llm_real: [
        *folders("--out"), *counts("--total-episodes", "--batch-size", "--micro-batch-size", "--critic-steps"),
        *counts("--seed", least=0), *numbers("--learning-rate", "--critic-learning-rate"), ("--algorithm", "dqn"),
        *counts("--critic-layers", "--save-every"), ("--critic-layers", "31"),
        *[("--device", x) for x in ("nope", "meta", "mps", "cuda:99", "")],
    ],
    mutants: [
        *counts("--jobs"), *numbers("--time-limit", low="0"), *files("--json", ".json", parent_made=True),
        *files("--markdown", ".md"), ("--only", "no-such-mutant"), ("--files", "no/such/file.py"),
        *[("--json", f"{name}.json") for name in JSONS if name not in ("absent", "empty_object")],
        *[("--mutants", f"{name}.toml") for name in ("absent", "text", "list", "types", "unknown", "deep", "mutant")],
    ],
    plain_english: [
        *files("--json", ".json"), ("--paths", "absent.md"), ("--paths", "file"), ("--paths", "bytes.md"),
        ("--paths", "bytes.py"), ("--paths", "no_python.py"), ("--nope", "1"), ("--paths", ""),
    ],
    plot: [
        *counts("--smooth"), *files("--out", ".png"), ("--tag", ""), ("--nope", "1"),
        *[(name, None) for name in RUNS],
    ],
    pretrain: [
        *counts("--expert-timesteps", "--expert-num-envs", "--demonstrations", "--clone-batch", "--clone-updates"),
        *counts("--eval-every", "--eval-episodes"), *counts("--seed", least=0),
        *numbers("--expert-success", "--expert-learning-rate", "--reward-scale", "--gamma", "--gae-lambda", "--target"),
        *numbers("--clone-learning-rate", "--min-success", "--max-success", "--expert-log-std", "--log-std"),
        ("--clone-learning-rate", "-1"), ("--reward-scale", "0"), ("--success-return", "1"), ("--stage", "all of them"),
        *folders("--out", "--work-dir"), ("--out", "taken"),
        *[("--env-id", x) for x in ("nope", "", "CartPole-v1", "absent_module:x/Y-v0")],
        *[("--demonstrations-from", x) for x in ("", "absent.npz", "text.npz", "folder", "text.safetensors")],
        ("--engine", "warp"), ("--imitate", ""),
    ],
    pretrain_llm: [
        *counts("--layers", "--batch-size", "--max-steps"), *counts("--width", least=24), *counts("--seed", least=0),
        *numbers("--learning-rate", "--forgets-carry", "--wrong-digit", "--target"), *folders("--out"), ("--width", "25"),
    ],
    probe: [
        *counts("--episodes", "--contexts"), *counts("--seed", "--seeds", "--update", least=0),
        *files("--out", ".json", parent_made=True), ("--what", "heads"), ("--env-id", ""), ("--updates", "3"),
        *[("--runs", x) for x in (*RUNS, "")],
        *[("--commands", f"{name}.toml") for name in ("absent", "text", "list", "types", "unknown", "deep", "huge")],
    ],
    report: [
        *folders("--out"), *[("--figures", x) for x in ("fig3", "")], ("--starts", ""), ("--starts", "elsewhere"),
        *[("--results", f"{name}.parquet") for name in TABLES], *[("--results", f"{name}.json") for name in JSONS],
        *[("--results", x) for x in ("", "file", "table.csv")],
        *[("--commands", f"{name}.toml") for name in ("absent", "text", "list", "types", "unknown", "deep", "command")],
    ],
    compare: [
        *files("--out", ".md", parent_made=True), *[("--results", f"{name}.parquet") for name in TABLES],
        *[("--results", x) for x in ("", "file", "table.csv")],
        *[("--plan", f"{name}.toml") for name in ("absent", "text", "list", "unknown", "deep")],
        *counts("--seeds", least=0), *[("--against", f"{name}.parquet") for name in TABLES],
        *[("--against", x) for x in ("", "file", "table.csv")],
    ],
    report_rates: [
        *counts("--seeds", "--tuning-seeds", least=0), *files("--out", ".md", parent_made=True),
        *[("--tuning", f"{name}.parquet") for name in TABLES], ("--tuning", ""), ("--starts", ""),
        *[("--algorithms", x) for x in ("dqn", "", "grpo")], *[("--env-ids", x) for x in ("nope", "")], ("--what", "all"),
    ],
    share: [
        *counts("--episodes", "--video-episodes"), *counts("--seed", least=0), *folders("--to-folder"),
        *[("--to-folder", x) for x in ("folder_with_file", "taken")],
        *[("--push-to-hub", x) for x in ("", "name", "a/b/c", "../x", "a b/c", "-a/b")],
        *[("--run", x) for x in (*RUNS, "", POLE)], ("--nope", "1"),
    ],
    soak: [
        *counts("--kills"), *counts("--seed", least=0), *numbers("--minutes", low="0"), *files("--json", ".json"),
        *[("--json", f"{name}.json") for name in ("text", "empty", "list", "trials", "rows", "deep")],
        ("--scripts", "dqn"), ("--scripts", ""), ("--what", "all"),
    ],
    speed: [
        *counts("--rounds", "--num-envs", "--total-timesteps", "--sb3-timesteps"), *numbers("--seconds", low="0"),
        *files("--out", ".json", parent_made=True), ("--what", "loss"), ("--worker", "ppo"),
    ],
    speed_llm: [
        *counts("--rounds", "--max-response-length"), *counts("--seeds", least=0), ("--model", "absent"),
        *files("--out", ".json", parent_made=True), ("--device", "cuda:99"), ("--device", "tpu"),
        ("--what", "engines"), ("--worker", "ours"), ("--worker", ""),
        *[("--out", f"{name}.json") for name in ("text", "empty", "list", "rows", "runs", "deep")],
    ],
    try_environments: [
        *counts("--total-timesteps", "--timeout", "--jobs"), *files("--out", ".md"), ("--only", "no-such-id"),
        *[("--environments", f"{name}.toml") for name in ("absent", "text", "list", "types", "unknown", "deep", "tried")],
    ],
    tune: [
        *counts("--trials", "--rungs", "--eval-episodes", "--total-timesteps"), *counts("--startup-trials", least=0),
        *counts("--seed", "--seeds", least=0), ("--seeds", "11"), ("--seeds", "30"),
        *files("--storage", ".db", parent_made=True), *folders("--work-dir"), ("--sampler", "grid"), ("--pruner", "hard"),
        *[("--env-id", x) for x in ("nope", "", "CartPole-v1", "absent_module:x/Y-v0")], ("--algorithm", "dqn"),
        *[("--settings", x) for x in ("", "=1", "horizon=", "--horizon=5", "no-such-flag=1", "horizon=0", "num-envs=7")],
        ("--nope", "1"),
    ],
}  # fmt: skip
BASE = {
    evaluate_llm: {"--benchmarks": ["addition"]},
    plot: {"run_of_text": []},
    probe: {"--what": ["tail"], "--runs": ["folder"], "--out": ["new.json"]},
    compare: {"--results": ["good.parquet"]},
    enjoy: {"--run": [POLE]},
    share: {"--run": ["folder"], "--to-folder": ["new"]},
    critic_card: {"--run": ["run_of_other_types"]},
    compare_llm: {"file": []},
    difficulty_llm: {"--run": ["good_run"]},
    report: {"--results": ["good.parquet"]},
    report_rates: {"--what": ["choose"], "--tuning": ["good.parquet"], "--starts": ["shipped"]},
}
"""What a command line of the script needs beside the malformed flag."""
NAMED = {"cells.toml": ["clip-coef=-1: --clip-coef must be"], "mutant.toml": ["a-b: the old code occurs 0 times in"]}
"""What else a line may name: an entry of a file."""
TOMLS = {
    "text": "[command", "list": "command = 5\ngrid = 5\nmutant = 5\nenvironment = 5",
    "types": "\n".join(f"[[{x}]]\n{y}" for x, y in {
        "command": "out = {a = 1}\nresults = [[1]]", "grid": "out = 5", "mutant": "name = 5\ntests = 5",
        "environment": "id = 5"}.items()),
    "unknown": "\n".join(f"[[{x}]]\nnope = 1" for x in ("command", "grid", "mutant", "environment")),
    "huge": f"[[command]]\nwhat = 'tail'\nruns = ['x']\nout = 'x.json'\nseed = {2**70}\n"
            f"[[grid]]\nout = 'x.parquet'\nwork-dir = 'w'\nenv-ids = ['{POLE}']\nalgorithms = ['sppo']\nseeds = [{2**70}]",
    "deep": "x = " + "[" * 5000,
    "cells": f"[[grid]]\nout = 'x.parquet'\nwork-dir = 'w'\nenv-ids = ['{POLE}']\nalgorithms = ['sppo']\nseeds = [1]\n"
             "settings = ['clip-coef=-1']",
    "mutant": "[[mutant]]\nname = 'a-b'\nmistake = 'x'\nfile = 'README.md'\nold = 'not there'\nnew = 'x'\ntests = ['t']",
    "tried": "[[environment]]\nid = 'x'\nhorizon = 'long'",
    "command": "[[command]]\nfigures = ['fig2']\n[[command]]\nfigures = ['fig3']",
}  # fmt: skip
TEXTS = {
    "file": "text", "text.parquet": "text", "empty.parquet": "", "csv.parquet": "a,b\n1,2\n", "text.json": "{",
    "empty.json": "",
    "list.json": "[1]", "rows.json": '{"rows": 5}', "runs.json": '{"runs": [5]}', "deep.json": '{"rows": ' + "[" * 100_000,
    "nan.json": '{"rows": [NaN, Infinity]}', "text.npz": "x", "text.safetensors": "x", "table.csv": "a,b\n", "x.png": "",
    "trials.json": json.dumps({"seed": 1, "scripts": [*soak.CONTROL, *soak.LANGUAGE], "trials": [{"number": "1"}]}),
    "no_python.py": "def (", "run_of_list/config.json": "[]", "run_of_text/config.json": "{",
    "run_without_args/config.json": '{"script": "sppo_cartpole.py"}', "folder_with_file/x": "",
    "good_run/config.json": json.dumps({
        "script": "sppo_llm.py", "args": {}, "layout": checkpoints.LAYOUT, **runs.versions()}),
    "good_run/checkpoints/000000/state.json": "{}",
    "run_of_other_types/config.json": '{"script": "sppo_cartpole.py", "args": {"env_id": 5, "seed": "x"}}',
}  # fmt: skip


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """The current folder, full of things that are not what their names say."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "folder",
        "folder.py",
        "folder.parquet",
        "folder.json",
        "odd.png",
        "odd.json",
        "odd.md",
        "odd.parquet",
        "odd.gif",
        "odd.db",
    ):
        Path(name).mkdir()
    Path("taken", "PrecisionCartPole-v0.safetensors").mkdir(parents=True)
    for name, text in (TEXTS | {f"{name}.toml": text for name, text in TOMLS.items()}).items():
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_text(text)
    for name in ("bytes.md", "bytes.py"):
        Path(name).write_bytes(b"\xff\xfe\xfa")
    for ending in ("png", "json", "md", "parquet", "gif", "db") if hasattr(os, "mkfifo") else ():
        os.mkfifo(f"pipe.{ending}")
    good = table()
    good.to_parquet("good.parquet")
    pd.DataFrame({"a": [1]}).to_parquet("other.parquet")
    good.assign(seed="one", steps="many").to_parquet("types.parquet")
    good.assign(arguments="no JSON").to_parquet("arguments.parquet")
    pd.concat([good, good.assign(seed=1.5)]).to_parquet("twice.parquet")
    return tmp_path


def table(**changes):
    """A results file with one run."""
    row = {"env_id": POLE, "algorithm": "sppo", "setting": "", "seed": 1, "starts": "shipped", "commit": "x"}
    row |= dict.fromkeys(("episodes", "steps", "updates", "eval_episodes"), 9)
    row |= dict.fromkeys(("seconds", "success_rate", "success_before", "success_after", "peak_memory_mib"), 0.5)
    arguments = {"total_timesteps": 9, "learning_rate": 1e-3, "hidden": [8], "critic_hidden": [8], "critic_steps": 1}
    row["arguments"] = json.dumps({**arguments, "critic_window": 1, "critic_learning_rate": 1e-3})
    return pd.DataFrame([{**row, "measures_after": "{}", **changes}])


def tree(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def line_of(module, flag, value):
    """The words of a case: what the script needs, with the malformed flag in its place."""
    words = [flag] if value is None else [flag, value]
    if flag == "--commands":
        return words
    rest = {name: some for name, some in BASE.get(module, {}).items() if name != flag}
    if module is speed_llm and flag == "--out" and value.endswith(".json"):
        rest["--what"] = ["addition"]
    if module is speed_llm and flag == "--model":
        rest["--what"] = ["real"]
    if module is speed and flag == "--worker":
        rest["--what"] = ["training"]
    if flag == "--updates" and module is probe:
        rest["--what"] = ["tail"]
    return [*words, *itertools.chain.from_iterable([name, *some] for name, some in rest.items())]


def refused(module, words, monkeypatch, capsys):
    """What a command line prints, which must be one line, with exit status 2."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *words])
    with pytest.raises(SystemExit) as stop:
        cli.main(module.main, module.Args, "test", command_files=module in (report, probe))
    out, err = capsys.readouterr()
    said = f"{module.__name__} {' '.join(words)[:100]}: {out[-500:]} {err[-1500:]}"
    assert stop.value.code == 2, said
    lines = err.splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("error: "), said
    if module is tune and importlib.util.find_spec("optuna") is None:
        pytest.skip(lines[0])
    assert len(err) < 2500, said
    return lines[0]


@pytest.mark.parametrize(
    "module",
    [pytest.param(m, marks=[pytest.mark.slow] if m is evaluate_llm else [], id=m.__name__) for m in CASES],
)
def test_malformed_command_lines_of_tools(module, strange, monkeypatch, capsys):
    """Each is refused in one line that names its flag or its value, before any work, and nothing is written."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if module is evaluate_llm:
        pytest.importorskip("transformers")  # it asks for it before it looks at the folder
    monkeypatch.setattr(limits, "memory_bytes", lambda: 2**34)
    monkeypatch.setattr(rates, "table", lambda *args: pytest.fail(f"{sys.argv} was accepted"))
    monkeypatch.setattr(drawings, "DRAWINGS", {"all": ("x", lambda plt: pytest.fail(f"{sys.argv} was accepted"))})
    for name in WORK[module]:
        assert isinstance(getattr(module, name), types.FunctionType)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail(f"{sys.argv} was accepted"))
    before = tree(strange)
    for flag, value in CASES[module]:
        line = refused(module, line_of(module, flag, value), monkeypatch, capsys)
        named = (flag, *([value[:40]] if value else []), *NAMED.get(value, []))
        assert any(name in line for name in named), f"{flag} {value}: {line}"
        assert tree(strange) == before, f"{flag} {value} left something behind"


def test_there_are_many_command_lines():
    """docs/reliability.md says how many."""
    number = sum(map(len, CASES.values()))
    assert number >= 300
    assert f" {number}: " in (ROOT / "docs" / "reliability.md").read_text()
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    others = {"evaluate", *soak.CONTROL, *soak.LANGUAGE}  # in test_command_lines.py
    assert {module.__name__ for module in CASES} == scripts - others
