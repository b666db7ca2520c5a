"""The docs: examples in them are run, numbers in them are core's, links lead somewhere."""

import doctest
import re
from pathlib import Path

import pytest
import torch

from sppo_control import core

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
ALGORITHMS = ("sppo", "ppo", "grpo", "rloo", "remax")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_examples_on_the_page_of_an_algorithm_give_what_they_say(name):
    failed, tried = doctest.testfile(str(ROOT / "docs" / f"{name}.md"), module_relative=False)
    assert tried >= 4
    assert failed == 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_worked_example_has_cores_numbers(name):
    """Every number of the table, on each page, from the functions of core."""
    text = (ROOT / "docs" / f"{name}.md").read_text().split("## A worked example")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| \d", line)
    ]
    assert [row[1] for row in rows] == ["easy", "easy", "hard", "hard"]
    R = torch.tensor([float(row[2]) for row in rows])
    value = torch.tensor([[float(v) for v in row[3].split(",")] for row in rows])
    reward = torch.zeros(4, 3)
    reward[:, -1] = R
    greedy = torch.tensor([1.0, 1.0, 0.0, 0.0])
    expected = [
        core.sequence_advantage(R, torch.logit(value[:, 0])),
        core.generalized_advantage(reward, value, torch.ones(4, 3, dtype=torch.bool))[0],
        core.group_relative_advantage(R, 2),
        core.leave_one_out_advantage(R, 2),
        core.greedy_baseline_advantage(R, greedy),
    ]
    for column, adv in enumerate(expected, start=4):
        for row, numbers in zip(rows, adv.reshape(4, -1).tolist(), strict=True):
            assert row[column] == ", ".join(f"{abs(x) if abs(x) < 5e-7 else x:.1f}" for x in numbers)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if page.parent.name == "docs" and file.suffix == ".md":  # the site has no other pages
            assert file.is_relative_to(ROOT / "docs"), f"{page.name} links to {target}, which is no page of the site"
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings]
            assert heading in slugs, f"{page.name} links to {target}; {file.name} has {', '.join(slugs)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_and_flags_that_exist(page):
    """python scripts/X.py --flag ...: the script is there, and the flag is in its text or in its arguments."""
    text = page.read_text()
    for script, rest in re.findall(r"python (scripts/\w+\.py)([^\n`]*)", text):
        assert (ROOT / script).is_file(), f"{page.name}: {script}"
        source = (ROOT / script).read_text()
        for flag in re.findall(r"(?<!\S)--([a-z][a-z0-9-]*)", rest.split("#")[0]):
            name = flag.removeprefix("no-").replace("-", "_")
            if flag == "commands" and "command_files=True" in source:  # cli.main adds it
                continue
            assert flag == "help" or re.search(rf"^    {name}: ", source, flags=re.M), f"{page.name}: {script} --{flag}"


INTERVAL = re.compile(r"([-+]?\d\.\d+) \[([-+]?\d\.\d+),\s+([-+]?\d\.\d+)\]")
TABLES = ("tables.md", "second.md", "second_why.md", "second_rates.md", "rates.md")


def in_table(number, table):
    """Whether a value and its interval are in a table, perhaps with more digits there, or as the opposite difference."""
    digits = 0.5 * 10 ** -len(number[0].split(".")[1]) + 1e-9
    value, low, high = map(float, number)
    return any(
        max(abs(value - v), abs(low - a), abs(high - b)) <= digits
        or max(abs(value + v), abs(low + b), abs(high + a)) <= digits
        for v, a, b in table
    )


def test_each_interval_of_the_results_is_in_a_table_that_a_command_makes():
    """So a page that was not rewritten after new runs is noticed."""
    text = "".join((ROOT / "docs" / "figures" / name).read_text() for name in TABLES)
    table = [tuple(map(float, found)) for found in INTERVAL.findall(text)]
    page = INTERVAL.findall((ROOT / "docs" / "results.md").read_text())
    assert len(page) > 40
    assert [number for number in page if not in_table(number, table)] == []
    assert not in_table(("0.123", "0.045", "0.678"), table)  # the helper can say no


def test_the_number_of_mutants_is_that_of_their_page():
    pages = [(ROOT / "docs" / name).read_text() for name in ("mutants.md", "reliability.md")]
    tried, caught = re.search(r"(\d+) mutants were tried. (\d+) were caught", pages[0]).groups()
    assert f"| {caught} of {tried} caught" in pages[1]
