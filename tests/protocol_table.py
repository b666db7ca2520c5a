r"""100 made-up responses, judged by scripts/evaluate_llm.py under its two protocols: the table in docs/llm_evaluate.md.

PYTHONPATH=.:scripts python tests/protocol_table.py       # writes the table
"""

from __future__ import annotations

from pathlib import Path

import evaluate_llm
from sppo_control.markdown import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "llm_evaluate.md"
BEGIN, END = "<!-- protocols: begin -->", "<!-- protocols: end -->"
GOLDS = ("204", r"\frac{1}{3}", "1.6e-19", r"\sqrt{2}", "3.25")
NEAR = ("204.01", "0.33333", "1.60001e-19", "1.41421", "3.2501")  # within 1e-4
FAR = ("205", "0.332", "1.7e-19", "1.42", "3.26")
SAME = ("204.0", "2/6", r"1.6 \times 10^{-19}", r"\frac{2}{\sqrt{2}}", r"\frac{13}{4}")
LONG = ("204.", "0.3333333333", "1.60e-19", "1.41421356237", "3.250")  # to ten digits or more, where there is no end
KINDS = {
    "the same text": [rf"So \boxed{{{x}}}." for x in GOLDS],
    "another form of the same": [rf"So \boxed{{{x}}}." for x in SAME],
    "another form, of ten digits": [rf"So \boxed{{{x}}}." for x in LONG],
    "nearly the number, by less than 1e-4": [rf"So \boxed{{{x}}}." for x in NEAR],
    "not the number": [rf"So \boxed{{{x}}}." for x in FAR],
    "another problem's number": [rf"So \boxed{{{x}}}." for x in (*GOLDS[1:], GOLDS[0])],
    "thinks, and answers": [rf"Is it 7?</think>So \boxed{{{x}}}." for x in GOLDS],
    "thinks, and answers wrongly": [rf"\boxed{{{x}}}</think>So \boxed{{7}}." for x in GOLDS],
    "answers while it thinks, and not afterwards": [rf"\boxed{{{x}}}</think>That was easy." for x in GOLDS],
    "answers while it thinks, which has no end": [rf"<think>Perhaps \boxed{{{x}}}." for x in GOLDS],
    "thinks twice": [rf"No.</think>\boxed{{7}}<think>Oh.</think>\boxed{{{x}}}" for x in GOLDS],
    r"\fbox": [rf"So \fbox{{{x}}}." for x in GOLDS],
    r"\fbox after a \boxed": [rf"So \boxed{{7}}, no, \fbox{{{x}}}." for x in GOLDS],
    r"two \boxed, the last is right": [rf"\boxed{{7}} or \boxed{{{x}}}" for x in GOLDS],
    r"two \boxed, the first is right": [rf"\boxed{{{x}}} or \boxed{{7}}" for x in GOLDS],
    "no box": [f"The answer is {x}." for x in GOLDS],
    "a box that is not closed": [rf"So \boxed{{{x}" for x in GOLDS],
    "an empty box": [r"So \boxed{}." for _ in GOLDS],
    "a box with a dollar sign": [rf"So \boxed{{${x}$}}." for x in GOLDS],
    "several answers in one box": [rf"So \boxed{{{x}, 7}}." for x in GOLDS],
}


def verdicts() -> dict[str, dict[str, list[float]]]:
    """Protocol -> kind -> outcomes of its five responses."""
    found = {}
    for protocol in ("ours", "sppo-paper"):
        judge = evaluate_llm.Judge("math", protocol)
        found[protocol] = {kind: judge(texts, {"answer": list(GOLDS)}) for kind, texts in KINDS.items()}
        judge.math.close()
    return found


def table() -> str:
    """One row for each kind."""
    found = verdicts()
    rows = []
    for kind, texts in KINDS.items():
        ours, paper = (int(sum(found[protocol][kind])) for protocol in found)
        rows.append([kind, f"`{texts[0]}`", f"{ours} of 5", f"{paper} of 5", "" if ours == paper else "differs"])
    differ = sum(a != b for kind in KINDS for a, b in zip(*(found[protocol][kind] for protocol in found), strict=True))
    head = ("responses", "the first of five", "ours", "sppo-paper", "")
    return f"{markdown_table(head, rows)}\n\nThe protocols differ on {differ} of {sum(map(len, KINDS.values()))} responses."


def page(text: str) -> str:
    """The page with the new table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
