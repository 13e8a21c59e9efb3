from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.quickstart import TABLES, against_start, against_twin, over_seeds, placebos

MEASUREMENTS = Path(__file__).parents[2] / "docs" / "measurements"


def test_methods_less_the_start_by_hand():
    """The mean differences of the four games are -0.5, 1, 0 and 0: however their signs are flipped, the sum is no
    nearer to 0."""
    runs = [
        {"seed": 0, "start": {"1": "1000"}, "opid": {}, "placebo": {}, "grpo": {"1": "1100"}},
        {"seed": 1, "start": {"1": "1000"}, "opid": {}, "placebo": {}, "grpo": {"1": "0100"}},
    ]
    header, _, row = against_start(runs)
    assert header == "| difference in points | temperature | all seeds | p | p (Holm) | seed 0 | seed 1 |"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["grpo less start", "1"]
    assert [cell.split()[0] for cell in (cells[2], cells[5], cells[6])] == ["+12.5", "+25.0", "+0.0"]
    assert cells[3:5] == ["1", "1"]


def test_opid_less_its_twin_by_hand():
    """Of the run's four games OPID wins two that its twin loses: 2 of 4 flips of two signs are as far from 0."""
    run = {"start": dict.fromkeys(["1", "0.4"], "1000"), "opid": dict.fromkeys(["1", "0.4"], "1110")}
    runs = [{"seed": 7, **run, "grpo": dict.fromkeys(["1", "0.4"], "1000")}]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in against_twin(runs)[2:]]
    assert [row[:2] for row in rows] == [["1", "7"], ["0.4", "7"]]
    assert [cell.split()[0] for cell in rows[0][2:6]] == ["25.0%", "25.0%", "75.0%", "+50.0"]
    assert 0.45 < float(rows[0][6]) < 0.55
    assert float(rows[0][7]) == pytest.approx(min(1, 2 * float(rows[0][6])), abs=0.02)
    means = [cell.strip() for cell in over_seeds(runs)[2].strip("|").split("|")]
    assert means[:5] == ["1", "1", "25.0%", "25.0%", "75.0%"]


def test_placebos_by_hand():
    """In the first run the placebo loses four games that OPID wins: 2 of 16 flips of four signs are as far from 0."""
    runs = [
        {"seed": 3, "placebo": {"1": "00001"}, "grpo": {"1": "00001"}, "opid": {"1": "11111"}},
        {"seed": 4, "placebo": {"1": "00001"}, "grpo": {"1": "00001"}, "opid": {"1": "00001"}},
    ]
    first, second, both = [[cell.strip() for cell in row.strip("|").split("|")] for row in placebos(runs)[2:]]
    assert first[:4] == ["3", "20.0%", "20.0%", "100.0%"]
    assert [cell.split()[0] for cell in (first[4], first[7], second[7], both[7])] == ["+0.0", "-80.0", "+0.0", "-40.0"]
    assert float(first[8]) == pytest.approx(2 / 16, abs=0.02)
    assert float(first[9]) == pytest.approx(2 * float(first[8]), abs=0.02)
    assert (both[0], both[6], both[9]) == ("all", "", "")


@pytest.mark.parametrize("runs", ["since_dd80165", "panel"])
def test_the_page_has_the_numbers_of_its_file(runs):
    played = json.loads((MEASUREMENTS / "quickstart.json").read_text(encoding="utf-8"))[runs]
    page = (MEASUREMENTS / "quickstart.md").read_text(encoding="utf-8")
    for table in TABLES:
        assert "\n".join(table(played)) in page
