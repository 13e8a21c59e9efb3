from __future__ import annotations

import json
from pathlib import Path

from benchmarks.against_start import table

MEASUREMENTS = Path(__file__).parents[2] / "docs" / "measurements"


def test_a_table_by_hand():
    """The mean differences of the four games are -0.5, 1, 0 and 0: however their signs are flipped, the sum is no
    nearer to 0."""
    runs = [
        {"seed": 0, "start": {"1": "1000"}, "opid": {}, "placebo": {}, "grpo": {"1": "1100"}},
        {"seed": 1, "start": {"1": "1000"}, "opid": {}, "placebo": {}, "grpo": {"1": "0100"}},
    ]
    header, _, row = table(runs).splitlines()
    assert header == "| difference in points | temperature | all seeds | p | p (Holm) | seed 0 | seed 1 |"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["grpo less start", "1"]
    assert [cell.split()[0] for cell in (cells[2], cells[5], cells[6])] == ["+12.5", "+25.0", "+0.0"]
    assert cells[3:5] == ["1", "1"]


def test_the_page_has_the_numbers_of_its_file():
    runs = json.loads((MEASUREMENTS / "quickstart.json").read_text(encoding="utf-8"))["panel"]
    assert table(runs) in (MEASUREMENTS / "quickstart.md").read_text(encoding="utf-8")
