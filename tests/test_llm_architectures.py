"""Public architectures are trained with the right log-probabilities, or refused before anything is generated."""

import pytest

pytest.importorskip("trl", reason="trl is not installed: extra llm")

import llm_architectures as architectures


@pytest.mark.parametrize("name", architectures.QUICK)
def test_an_architecture_is_what_the_page_says(name, tmp_path):
    result = architectures.one_update(name, tmp_path)
    assert (result == "trained") == (name != "Gemma2")
    rows = [line for line in architectures.PAGE.read_text().splitlines() if line.startswith(f"| {name} |")]
    assert len(rows) == 1
    assert rows[0].endswith(f"| {result} |")


@pytest.mark.slow
def test_the_whole_page_is_right(tmp_path):
    found = {name: architectures.one_update(name, tmp_path / name) for name in architectures.ARCHITECTURES}
    assert architectures.PAGE.read_text() == architectures.table(found)
