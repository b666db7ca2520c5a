"""Average@k of mathematical benchmarks with its interval, and the responses on disk, so that an evaluation can go on.

The folder of an evaluation holds

| file             | what                                                                                            |
| ---------------- | ----------------------------------------------------------------------------------------------- |
| settings.json    | settings, and what each benchmark was: source, number and digest of its problems, first prompt  |
| <name>.jsonl     | a line a response, in the order in which they were finished                                     |
| results.json     | written by the script at the end                                                                |

and a line of <name>.jsonl is a record:

| field            | meaning                                                                                         |
| ---------------- | ----------------------------------------------------------------------------------------------- |
| problem, sample  | which problem (row of the benchmark, from 0), which of its k responses (from 0)                 |
| outcome          | 1 right, 0 wrong                                                                                |
| verdict          | correct, wrong, or why no answer was found or judged: a key of `MathReward.counts`              |
| truncated        | the longest length was reached without an end                                                   |
| tokens, response | length, the end included, and text                                                              |
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sppo_control import checkpoints, errors
from sppo_control.core import wilson_interval
from sppo_control.markdown import markdown_table

Record = dict[str, Any]
RESAMPLES = 10_000
"""Draws of the bootstrap, a multiple of 100."""
UNDECIDED = ("timed_out", "crashed", "answer_unparsed")
"""Verdicts that say something about the verifier or the benchmark, not about the response."""


# ------------------------------------------------------------------------------------------------------ on disk
def open_folder(
    out: Path, settings: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]], free: Collection[str]
) -> None:
    """Begin the folder, or go on with it; a benchmark that is new to it is added.

    Args:
        out: a folder of an earlier evaluation, or an empty or new one.
        settings: JSON-ready; `model` and `weights`, the name of the policy and a digest of it, are among them.
        benchmarks: name -> JSON-ready description, `source`, `problems` and `digest` among it.
        free: the settings that may differ from the folder's.

    Raises:
        UserError: other settings, weights or problems than the folder's, naming both; a folder of something else.
    """
    file = out / "settings.json"
    stored: dict[str, Any] = {"settings": settings, "benchmarks": {}}
    if file.is_file():
        stored = checkpoints.read_json(file)
        olds = stored["settings"]
        for key, new in settings.items():
            old = olds.get(key)
            if old != new and key not in free:
                flag = "--" + key.replace("_", "-")
                if key == "weights":
                    flag, old, new = "--model", f"{olds['model']} ({old})", f"{settings['model']} ({new})"
                raise errors.UserError(f"{flag} is {old} in {out} and cannot become {new}; name another --out")
        for name, now in benchmarks.items():
            was = stored["benchmarks"].get(name, now)
            if was["digest"] != now["digest"]:
                old, new = (f"{b['source']} ({b['problems']} problems, {b['digest']})" for b in (was, now))
                raise errors.UserError(
                    f"--benchmarks {name} is {old} in {out} and cannot become {new}; name another --out"
                )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.UserError(f"--out {out} is not of an evaluation (no settings.json); name a new or empty folder")
    stored["benchmarks"] |= benchmarks
    out.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(file, stored)


def read_records(file: IO[bytes], problems: int, k: int) -> dict[tuple[int, int], Record]:
    """The records of <name>.jsonl. A half-written last line is cut off: what it was to hold will be sampled again.

    Args:
        file: open for reading and appending.
        problems, k: what the benchmark has.

    Returns:
        (problem, sample) -> record.

    Raises:
        UserError: another line is damaged, or of another benchmark.
    """
    file.seek(0)
    whole, newline, half = file.read().rpartition(b"\n")
    if half:
        file.truncate(len(whole + newline))
    records = {}
    for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
        try:
            record = json.loads(line)
            problem, sample = record["problem"], record["sample"]
            if not (problem in range(problems) and sample in range(k) and record["outcome"] in (0, 1)):
                raise ValueError("no such problem, sample or outcome")
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"line {number} of {file.name} is damaged ({error!r}); delete the line, and start again"
            ) from error
        records[problem, sample] = record
    return records


# --------------------------------------------------------------------------------------------------- Average@k
def bootstrap_interval(means: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a benchmark's Average@k, by bootstrap over its problems. Problems are drawn, not responses: the k
    responses to one problem say less about the next problem than k problems would.

    Args:
        means: of each problem's k outcomes, (problems,).

    Returns:
        The 2.5 and 97.5 % points of the mean over as many problems, drawn with replacement. Where all problems agree, as
        where none is ever solved, that would be no interval, as if the next problem were certain; then Wilson's for one
        response to each problem.
    """
    n = len(means)
    if np.ptp(means) == 0:
        return wilson_interval(round(means.sum()), n)
    rng = np.random.default_rng(0)  # the same responses, the same interval
    # a hundred at a time: quicker than one, and no memory to speak of for thousands of problems
    draws = np.concatenate([means[rng.integers(n, size=(100, n))].mean(1) for _ in range(RESAMPLES // 100)])
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return low, high


def mean_interval(rates: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """95 % interval of the mean of independent rates, from theirs: the distances to their lower ends add up in squares, and
    so do those to the upper ends ("MOVER", Zou and Donner, 2008). Unlike a mean of draws it holds for rates near 0 and 1,
    whose intervals are lopsided."""
    below = math.sqrt(sum((rate - low) ** 2 for rate, (low, _) in zip(rates, intervals, strict=True)))
    above = math.sqrt(sum((high - rate) ** 2 for rate, (_, high) in zip(rates, intervals, strict=True)))
    mean = sum(rates) / len(rates)
    return mean - below / len(rates), mean + above / len(rates)


def summarize(records: Mapping[str, Sequence[Record]], k: int) -> dict[str, dict[str, Any]]:
    """The numbers of each benchmark, and of their unweighted mean where there are several.

    Args:
        records: name -> k records for each problem, in any order.
        k: responses to each problem.

    Returns:
        name -> problems, average_at_k, interval_95, pass_at_k, truncated, mean_tokens, verdicts (how many of each), and
        unreadable_answers (the problems whose right answer math-verify cannot read); "mean" -> the first and next two.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, rows in records.items():
        outcome = np.empty((len(rows) // k, k))
        for row in rows:
            outcome[row["problem"], row["sample"]] = row["outcome"]
        verdicts = [row["verdict"] for row in rows]
        results[name] = {
            "problems": len(outcome),
            "average_at_k": float(outcome.mean()),
            "interval_95": bootstrap_interval(outcome.mean(1)),
            "pass_at_k": float(outcome.max(1).mean()),
            "truncated": float(np.mean([row["truncated"] for row in rows])),
            "mean_tokens": float(np.mean([row["tokens"] for row in rows])),
            "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
            "unreadable_answers": sorted({row["problem"] for row in rows if row["verdict"] == "answer_unparsed"}),
        }
    if len(results) > 1:
        rates, intervals, passed = (
            [r[key] for r in results.values()] for key in ("average_at_k", "interval_95", "pass_at_k")
        )
        results["mean"] = {
            "average_at_k": float(np.mean(rates)),
            "interval_95": mean_interval(rates, intervals),
            "pass_at_k": float(np.mean(passed)),
        }
    return results


def results_table(results: Mapping[str, Mapping[str, Any]], k: int) -> str:
    """What `summarize` returned as a Markdown table, in per cent, one row per benchmark."""
    head = (
        "benchmark",
        "problems",
        f"Average@{k} [95 %]",
        f"pass@{k}",
        "truncated",
        "no answer",
        "undecided",
        "tokens",
    )
    rows = []
    for name, r in results.items():
        average, low, high, at_least_one = (
            f"{100 * x:.1f}" for x in (r["average_at_k"], *r["interval_95"], r["pass_at_k"])
        )
        problems, rest = "", [""] * 4
        if "verdicts" in r:
            share = lambda *of, r=r: 100 * sum(r["verdicts"].get(v, 0) for v in of) / (k * r["problems"])  # noqa: E731
            shares = 100 * r["truncated"], share("unparsed"), share(*UNDECIDED)
            problems, rest = str(r["problems"]), [*(f"{x:.1f}" for x in shares), f"{r['mean_tokens']:.0f}"]
        rows.append([name, problems, f"{average} [{low}, {high}]", at_least_one, *rest])
    return markdown_table(head, rows)
