from __future__ import annotations

import json
from dataclasses import asdict, replace

from benchmarks.alfworld_conformance import Comparison, compare, read_state, table
from tests.envs.test_alfworld_world import original_world, small_game


class OtherTask:
    """textworld, told another task than it was asked for."""

    def __init__(self) -> None:
        self.original = original_world()

    def reset(self, game):
        return self.original.reset(replace(game, task_desc="put another thing"))

    def __getattr__(self, name):
        return getattr(self.original, name)


def test_a_difference_is_found_and_ends_the_game():
    result = compare(OtherTask(), small_game(), walk=5)  # pyright: ignore[reportArgumentType]
    assert (result.plan, result.walk) == (0, 0)
    assert result.mismatch.startswith("after 'reset': observation '-= Welcome")
    assert "put a thing." in result.mismatch.split(", textworld: ")[0]
    assert "put another thing." in result.mismatch.split(", textworld: ")[1]


def test_the_state_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "state.jsonl"
    assert read_state(path) == {}
    first = Comparison("train", "a", "look_at_obj_in_light", plan=3, walk=40, refused=4)
    wrong, mended = replace(first, game_id="b", mismatch="after 'look': won"), replace(first, game_id="b")
    lines = [json.dumps(asdict(one)) for one in (first, wrong, mended)]
    path.write_text("\n".join(["", lines[0], lines[1][:30], lines[1], lines[2]]))
    assert read_state(path) == {("train", "a"): first, ("train", "b"): mended}


def test_the_table_counts_games_commands_and_differences():
    first = Comparison("train", "a", "look_at_obj_in_light", plan=3, walk=40, refused=4)
    results = [first, replace(first, game_id="b", walk=1100, mismatch="after 'look': won"), replace(first, split="x")]
    lines = table(results, {"train": 3}).splitlines()
    assert lines[3] == "| train | look_at_obj_in_light | 2 | 6 | 1,140 | 8 | 1 |"
    assert lines[8:] == ["| train | all | 2 of 3 | 6 | 1,140 | 8 | 1 |", "", "* train b: after 'look': won"]
