"""ALFWorld games on disk: JSON-lines packs, and the folders that alfworld-download makes."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from opid_core.errors import DataError
from opid_core.reading import json_of_file, lines_of, parse_json

TaskType = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

TASK_LINE = "Your task is to: "


@dataclass(frozen=True)
class Game:
    """One game: the task in words ("put a clean apple in fridge") and its PDDL problem over the fixed ALFRED domain."""

    game_id: str
    task_type: str
    task_desc: str
    pddl_problem: str


def read_pack(path: str | Path, malformed: list[str] | None = None) -> Iterator[Game]:
    """The games of a JSON-lines file (`.jsonl`, or `.xz`-compressed), in its order; a game's id is its `path`.

    Raises DataError that names file, line and field of anything that cannot be used. With a list of `malformed` games
    a line that holds no game is left out instead, and what is wrong with it is appended to the list.
    """
    path = Path(path)
    open_text = lzma.open if path.suffix == ".xz" else open
    seen: dict[str, int] = {}
    try:
        with open_text(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines_of(lines), start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    game = _game_of_line(line, where)
                except DataError as error:
                    if malformed is None:
                        raise
                    malformed.append(str(error))
                    continue
                if game.game_id in seen:
                    raise DataError(f"{where}, field path: {game.game_id!r} is already on line {seen[game.game_id]}")
                seen[game.game_id] = number
                yield game
    except (OSError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read after {len(seen)} games: {error}") from None


def _game_of_line(line: str, where: str) -> Game:
    try:
        entry = parse_json(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    return _game(entry, where)


def _game(entry: object, where: str) -> Game:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    values = []
    for field in ("path", "task_type", "task_desc", "pddl_problem"):
        value = entry.get(field)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}, field {field}: expected a non-empty text, got {value!r}")
        values.append(value)
    if values[1] not in TASK_TYPES:
        raise DataError(f"{where}, field task_type: unknown {values[1]!r}; known: {', '.join(TASK_TYPES)}")
    return Game(*values)


def folder_splits(path: str | Path) -> dict[Path, dict[str, Path]]:
    """For each data set in a folder that alfworld-download made (itself, or `json_2.1.1` in it): split -> folder."""
    path = Path(path)
    roots = [path, *sorted(p for p in path.glob("json_*") if p.is_dir())]
    splits = {
        root: {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and any(p.glob("*/*/game.tw-pddl"))}
        for root in roots
    }
    return {root: folders for root, folders in splits.items() if folders}


def read_folder(
    path: str | Path, malformed: list[str] | None = None, left_out: Counter[str] | None = None
) -> Iterator[Game]:
    """The games of one split folder (`<task>/<trial>/{game.tw-pddl,traj_data.json}`), sorted by id (`task/trial`).

    As in ALFWorld, games with movable receptacles or slicing and games not known to be solvable are left out, and
    counted in `left_out` by the reason. The task text is that of the game's own grammar. Raises DataError that names
    file and field, or appends that to the list of `malformed` games.
    """
    for file in sorted(Path(path).glob("*/*/game.tw-pddl")):
        try:
            game = _game_of_file(file)
        except DataError as error:
            if malformed is None:
                raise
            malformed.append(str(error))
            continue
        if isinstance(game, Game):
            yield game
        elif left_out is not None:
            left_out[game] += 1


def _game_of_file(file: Path) -> Game | str:
    """The game, or why it is left out."""
    trial = file.parent
    game_id = f"{trial.parent.name}/{trial.name}"
    if "movable" in game_id or "Sliced" in game_id:
        return "with movable receptacles or slicing"
    if not (trial / "traj_data.json").is_file():
        return "without traj_data.json"
    data = _json_object(file)
    if data.get("solvable") is not True:
        return "not known to be solvable"
    entry = {
        "path": game_id,
        "task_type": _json_object(trial / "traj_data.json").get("task_type"),
        "task_desc": _task_of_grammar(data.get("grammar"), file),
        "pddl_problem": data.get("pddl_problem"),
    }
    return _game(entry, str(file))


def _json_object(file: Path) -> dict:
    data = json_of_file(file)
    if not isinstance(data, dict):
        raise DataError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data


def _task_of_grammar(grammar: object, file: Path) -> str:
    """The text between "Your task is to: " and the full stop that ends its rule."""
    _, line, rest = str(grammar).partition(TASK_LINE)
    task, stop, _ = rest.partition('."')
    if not line or not stop:
        raise DataError(f"{file}, field grammar: no rule with {TASK_LINE!r}")
    return task
