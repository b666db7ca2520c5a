"""The conformance kit on verl's core_algos: each deviation is the one that docs/conformance.md explains."""

import json
import pathlib

from sppo_control.conformance import peers

STORED = pathlib.Path(__file__).resolve().parents[1] / "docs" / "conformance_peers.json"


def test_verl_deviates_as_stored():
    (stored,) = (row for row in json.loads(STORED.read_text()) if row["adapter"] == "Verl")
    (row,) = peers.measure(0, (peers.Verl,))
    assert row["ok"], row["unexplained"]
    assert row["deviations"] == stored["deviations"]
