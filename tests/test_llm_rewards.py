"""Verifiable rewards: what is right scores 1, everything else 0 and is counted, and nothing stops the training."""

import os
import pickle
import signal
import sys
import threading
import time

import pytest
import torch

from sppo_control.llm import MathReward, exact_match
from sppo_control.llm.rewards import check_outcomes, completion_text, last_boxed


@pytest.fixture(scope="module")
def math_reward():
    pytest.importorskip("math_verify", reason="math_verify is not installed: extra llm")
    reward = MathReward(timeout=60)  # the tests that time out have a short one of their own
    yield reward
    reward.close()


def score(reward, boxed, answer):
    return reward([f"so \\boxed{{{boxed}}}"], answer=[answer])[0]


def nonzero(reward):
    return {key: n for key, n in reward.counts.items() if n}


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("42", "42", 1.0),
        (" 42\n", "42 ", 1.0),
        ("42.0", "42", 0.0),
        ("the answer is 42", "42", 0.0),
        ([{"role": "assistant", "content": "42"}], "42", 1.0),
        ("", "42", 0.0),
        ("42", 42, 1.0),
    ],
)
def test_exact_match(completion, answer, expected):
    assert exact_match(completion, answer) == expected


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("abc", "abc"),
        ([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "last"}], "last"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_text_of_a_completion(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} or rather \boxed{2}, done", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {3}", "3"),
        (r"\boxed{3", None),
        (r"\boxed{1} \boxed{2", None),  # cut off at the length limit in the middle of the last word
        ("3", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("boxed", "answer", "expected"),
    [
        ("42", "42", 1.0),
        ("42.0", "42", 1.0),
        ("0.5", r"\frac{1}{2}", 1.0),
        (r"\frac{2}{4}", "1/2", 1.0),
        ("10000", "10,000", 1.0),
        ("(x+1)^2", "x^2+2x+1", 1.0),
        ("x = 3", "3", 1.0),
        ("2, 1", r"\{1,2\}", 1.0),
        ("3", r"not \boxed{2}, but \boxed{3}", 1.0),  # an answer column that holds whole solutions
        ("3", "$3$", 1.0),
        ("3", 3, 1.0),
        (r"\text{East}", "east", 1.0),
        ("seat", "east", 0.0),  # to math-verify both are the product e a s t
        ("???", "???", 1.0),  # the same text needs no reading
        ("41", "42", 0.0),
        ("(2, 1)", "(1, 2)", 0.0),
        ("3, 4", "3", 0.0),  # no second guess in one box
        ("x^2", "x^3", 0.0),
        (r"4.5 \times 10^{33}", "4.5e33", 1.0),  # as Minerva Math writes its answers
        ("-4.50e-3", r"-4.5 \times 10^{-3}", 1.0),
        (r"4.5 \times 10^{32}", "4.5e33", 0.0),
        ("2e", "2e", 1.0),
        ("5.44", "2e", 0.0),  # Euler's number, no exponent behind it
    ],
)
def test_math_reward(math_reward, boxed, answer, expected):
    assert score(math_reward, boxed, answer) == expected
    assert math_reward.counts["crashed"] == math_reward.counts["timed_out"] == 0


def test_only_the_last_box_counts(math_reward):
    assert math_reward([r"\boxed{4} \boxed{3}", r"\boxed{3} \boxed{4}"], answer=["4", "4"]) == [0.0, 1.0]


def test_what_cannot_be_parsed_scores_0_and_is_counted():
    reward, logged = MathReward(timeout=60), {}
    completions = ["I give up", r"\boxed{???}", r"\boxed{}", r"\boxed{1}", r"\boxed{2}", r"\boxed{3}"]
    answers = ["1", "1", "1", r"\frac", "2", "4"]
    assert reward(completions, answer=answers, log_metric=logged.__setitem__) == [0, 0, 0, 0, 1, 0]
    assert nonzero(reward) == {"total": 6, "correct": 1, "unparsed": 3, "answer_unparsed": 1}
    assert logged == {
        "math_reward/unparsed": 0.5,
        "math_reward/answer_unparsed": 1 / 6,
        "math_reward/timed_out": 0.0,
        "math_reward/crashed": 0.0,
    }
    reward.close()


# ----------------------------------------------------------------------------------------------- it never stops training
def test_a_number_that_would_take_forever_times_out_and_the_next_one_is_scored():
    """9^(9^9), compared with a number, is computed inside C, where no Python signal handler gets a turn."""
    reward = MathReward(timeout=2)
    began = time.monotonic()
    assert reward([r"\boxed{9^{9^{9^9}}}"], answer=["7"]) == [0.0]
    assert nonzero(reward) == {"total": 1, "timed_out": 1}
    assert time.monotonic() - began < 60
    reward.timeout = 60
    reward.close()
    assert score(reward, "0.5", "1/2") == 1.0
    reward.close()


@pytest.fixture
def verifier(tmp_path, monkeypatch):
    """A stand-in for math-verify, found by the verifier's process alone."""

    def install(verify):
        folder = tmp_path / "math_verify"
        folder.mkdir()
        (folder / "__init__.py").write_text(
            "import os, time\nclass LatexExtractionConfig:\n    def __init__(self, **_): pass\n"
            "def parse(text, *_, **__): return [text.encode()]\n"
            "def verify(gold, boxed, raise_on_error=False, **_):\n    try:\n"
            f"        if b'bad' in boxed[0]: {verify}\n    except Exception:\n"
            "        if raise_on_error: raise\n        return False\n    return gold == boxed\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ("raise ValueError('bug')", "crashed"),
        ("raise RecursionError", "crashed"),
        ("os._exit(3)", "crashed"),
        ("os.abort()", "crashed"),
        ("bytearray(2**31)", "crashed"),  # 2 GiB
        ("time.sleep(1000)", "timed_out"),
        ("print('noise')", None),  # must not be taken for an answer
    ],
)
def test_a_fault_in_the_verifier_scores_0_is_counted_and_is_over(verifier, fault, key):
    verifier(fault)
    reward = MathReward(timeout=1.0 if key == "timed_out" else 60, memory_gib=1.0)
    score(reward, "x+1", "x+2")
    pid = reward._worker.pid
    completions = [r"\boxed{bad+1}", r"\boxed{x+ 1}", r"\boxed{bad}"]
    assert reward(completions, answer=["y", "x+ 1", "z"]) == [0.0, 1.0, 0.0]
    assert nonzero(reward) == {"total": 4, "correct": 1} | ({key: 2} if key else {})
    score(reward, "x+1", "x+2")
    if fault.startswith(("raise", "print", "bytearray")):  # an exception costs no new process
        assert reward._worker.pid == pid
    reward.close()


def test_a_verifier_that_dies_between_two_calls_is_started_again(math_reward):
    assert score(math_reward, "0.5", "1/2") == 1.0
    os.kill(math_reward._worker.pid, signal.SIGKILL)
    math_reward._worker.wait()
    assert score(math_reward, "0.5", "1/2") == 1.0
    assert math_reward.counts["crashed"] == 0


def test_a_verifier_that_dies_while_it_is_asked_is_no_error():
    reward = MathReward(timeout=60)
    assert score(reward, "0.5", "1/2") == 1.0
    os.kill(reward._worker.pid, signal.SIGKILL)
    reward._worker.wait()
    reward._worker.poll = lambda: None  # it seemed to be alive
    assert score(reward, "0.5", "1/2") == 0.0
    assert nonzero(reward) == {"total": 2, "correct": 1, "crashed": 1}
    assert score(reward, "0.5", "1/2") == 1.0
    reward.close()


def test_a_verifier_that_cannot_start_is_an_error(verifier, tmp_path):
    """It would score everything 0."""
    verifier("pass")
    (tmp_path / "math_verify" / "__init__.py").write_text("raise ImportError('antlr4 is broken')")
    with pytest.raises(RuntimeError, match=r"does not start \(\"ImportError: antlr4 is broken\"\); to see why, run: "):
        MathReward()([r"\boxed{1}"], answer=["2"])


def test_in_threads_it_works_and_counts_all(verifier):
    """math-verify's own time limit fails there: signals reach the main thread only."""
    verifier("pass")
    reward, results = MathReward(timeout=60), []

    def work(i):
        results.extend(reward([rf"\boxed{{{i}+1}}"] * 20, answer=[f"{i} +1", f"{i}+1"] * 10))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0.0, 1.0] * 40
    assert nonzero(reward) == {"total": 80, "correct": 40}
    reward.close()


def test_threads_and_pickle_with_the_real_verifier(math_reward):
    found = []
    copy = pickle.loads(pickle.dumps(math_reward))
    thread = threading.Thread(target=lambda: found.append(score(copy, "0.5", "1/2")))
    thread.start()
    thread.join()
    assert found == [1.0]
    assert copy._worker.pid != math_reward._worker.pid
    copy.close()


def test_a_fork_does_not_share_the_pipe(math_reward):
    """Two processes on one pipe would read each other's verdicts."""
    assert score(math_reward, "0.5", "1/2") == 1.0
    parent = math_reward._worker
    math_reward._owner = -1  # what a child of a fork sees: another process's worker
    assert score(math_reward, "0.25", "1/4") == 1.0
    assert math_reward._worker is not parent
    assert parent.poll() is None
    parent.kill()
    parent.communicate()


# -------------------------------------------------------------------------------------------------------------- as TRL
def test_trl_calls_it_with_columns_and_chats(math_reward):
    chats = [[{"role": "assistant", "content": rf"\boxed{{{x}}}"}] for x in ("0.5", "3")]
    rewards = math_reward(
        prompts=["p", "q"], completions=chats, completion_ids=[[1], [2]], solution=["1/2", "4"], trainer_state=None,
        log_extra=None, log_metric=lambda name, value: None,
    )  # fmt: skip
    assert rewards == [1.0, 0.0]
    assert all(type(r) is float for r in rewards)
    assert math_reward.__name__ == "math_reward"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no answer column: the reward needs one of answer, solution, got no column; rename yours"),
        ({"target": ["1"], "level": [3], "log_extra": None}, "got level, target; rename yours"),
        ({"answer": ["1", "2"]}, "the column 'answer' has 2 entries for 1 completions"),
        ({"answer": [None]}, r"'answer' is None at index 0 of this batch; drop such rows with dataset.filter"),
    ],
)
def test_a_missing_answer_is_an_error(math_reward, columns, message):
    with pytest.raises(ValueError, match=message):
        math_reward([r"\boxed{1}"], **columns)


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"memory_gib": -1.0}])
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be above 0, got"):
        MathReward(**arguments)


def test_a_missing_math_verify_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(
        ImportError, match=r"math_verify, which MathReward needs, .* run: pip install 'sppo-control\[llm\]'"
    ):
        MathReward()


# ------------------------------------------------------------------------------------------------------------ outcomes
@pytest.mark.parametrize("rewards", [[0.0, 1.0], [], torch.tensor([1, 0]), torch.ones(2, 3), [True, False]])
def test_outcomes_are_accepted_and_left_as_they_are(rewards):
    before = str(rewards)
    check_outcomes(rewards)  # it raises where it does not accept
    assert str(rewards) == before


def test_one_bad_reward_in_a_matrix_is_found():
    rewards = torch.ones(2, 3)
    rewards[1, 1] = 0.5
    with pytest.raises(ValueError, match=r"got 0\.5 at index 4\."):
        check_outcomes(rewards)


@pytest.mark.parametrize("bad", [0.5, 2.0, -1.0, float("nan"), None])
def test_rewards_that_are_no_outcomes_are_refused_with_the_way_out(bad):
    with pytest.raises(ValueError, match=rf"must be 0 \(failure\) or 1 \(success\), got {bad} at index 2\. Threshold"):
        check_outcomes([0.0, 1.0, bad])
    if bad is not None:
        with pytest.raises(ValueError, match=r"at index 2\."):
            check_outcomes(torch.tensor([0.0, 1.0, bad]))
