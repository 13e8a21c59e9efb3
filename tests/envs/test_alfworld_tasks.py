from __future__ import annotations

import json
import lzma
from dataclasses import replace

import pytest

from envs.alfworld import AlfworldEnvironment, AlfworldOptions
from envs.alfworld.games import TASK_TYPES, Game, read_folder, read_pack
from envs.alfworld.pddl import parse
from envs.base import StepResult, make, result_of
from opid_core.errors import ConfigError, DataError
from tests.envs.test_alfworld_world import small_game


def pack_line(game: Game) -> str:
    return json.dumps(
        {
            "path": game.game_id,
            "task_type": game.task_type,
            "task_desc": game.task_desc,
            "pddl_problem": game.pddl_problem,
        }
    )


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.xz"])
def test_pack_and_environment(tmp_path, name):
    text = "\n".join([pack_line(small_game("cool")), "", pack_line(small_game("two"))])
    (tmp_path / name).write_bytes(lzma.compress(text.encode()) if name.endswith("xz") else text.encode())
    assert list(read_pack(tmp_path / name)) == [small_game("cool"), small_game("two")]

    manifest = tmp_path / "manifest.txt"
    manifest.write_text("# order of play\ntrain small/two\ntrain small/cool\n")
    environment = make("alfworld", {"data": str(tmp_path), "manifest": str(manifest)})
    tasks = environment.tasks("train")
    assert [task.task_id for task in tasks] == ["small/two", "small/cool"]
    assert result_of(environment.reset(tasks[1])) == (
        "You are in the middle of a room. Looking quickly around you, you see "
        "a desk 2, a desk 1, a fridge 1, a microwave 1, and a sinkbasin 1."
    )
    assert environment.task_text == "Your task is to: put a thing."
    assert "help" not in environment.admissible_actions
    assert "look" in environment.admissible_actions
    for command in ("go to desk 1", "take apple 2 from desk 1", "go to fridge 1", "open fridge 1", "cool it"):
        assert result_of(environment.step(command)).reward == 0.0
    environment.step("cool apple 2 with fridge 1")
    assert result_of(environment.step("move apple 2 to fridge 1")) == StepResult(
        "You move the apple 2 to the fridge 1.", reward=1.0, done=True, won=True
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: expected a JSON object, got list"),
        ('{"path": "a"}', "line 2, field task_type: expected a non-empty text, got None"),
        (pack_line(replace(small_game(), game_id="b", task_type="fly")), "line 2, field task_type: unknown 'fly'"),
        (pack_line(small_game()), "line 2, field path: 'small/cool' is already on line 1"),
    ],
)
def test_bad_pack_lines_are_named(tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    path.write_text(pack_line(small_game()) + "\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        list(read_pack(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train small/cool\ntrain small/cool\n",
            "line 2: task 'small/cool' is named twice: here for train, for train at",
        ),
        (
            "train small/cool\n\nvalid_seen small/cool\n",
            "line 3: task 'small/cool' is named twice: here for valid_seen, for train at {manifest}, line 1",
        ),
        (
            '{"train": ["small/cool"], "valid_seen": ["small/two", "small/cool"]}',
            "valid_seen, entry 2: task 'small/cool' is named twice: here for valid_seen, for train at {manifest}, "
            "train, entry 1",
        ),
        (
            '{"train": ["small/two"], "valid_seen": [], "train": ["small/cool"]}',
            "field train: stands twice, as field 1 and as field 3",
        ),
        ("train small/cool\n\ntrain small/none\n", "line 3: no task 'small/none'"),
        ("train\n", "line 1: expected `split id`"),
        ('{"train": ["small/none"]}', "train, entry 1: no task 'small/none'"),
        ('{"train": "small/cool"}', "field train: expected a list"),
        ('{"train": [}', "line 1: not valid JSON"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, text, message):
    (tmp_path / "train.jsonl").write_text(pack_line(small_game()))
    manifest = tmp_path / "ids"
    manifest.write_text(text)
    environment = AlfworldEnvironment(AlfworldOptions(data=str(tmp_path), manifest=str(manifest)))
    with pytest.raises(DataError) as caught:
        environment.tasks("train")
    assert str(caught.value).startswith(f"{manifest}, {message.replace('{manifest}', str(manifest))}")


def test_alfworld_download_folder(tmp_path, monkeypatch):
    game = small_game()
    for trial, solvable in (("T2", True), ("T1", True), ("T3", False)):
        folder = tmp_path / "json_2.1.1" / "valid_seen" / "cool-Apple" / trial
        folder.mkdir(parents=True)
        grammar = '"task": [{"rhs": "Your task is to: put a thing."}]'
        data = {"pddl_problem": game.pddl_problem, "grammar": grammar, "solvable": solvable}
        (folder / "game.tw-pddl").write_text(json.dumps(data))
        (folder / "traj_data.json").write_text(json.dumps({"task_type": game.task_type}))
    expected = [replace(game, game_id="cool-Apple/T1"), replace(game, game_id="cool-Apple/T2")]
    assert list(read_folder(tmp_path / "json_2.1.1" / "valid_seen")) == expected
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    environment = make("alfworld", {"data": "$ALFWORLD_DATA"})
    assert [task.task_id for task in environment.tasks("valid_seen")] == ["cool-Apple/T1", "cool-Apple/T2"]
    with pytest.raises(ConfigError, match=r"split: .*'train'.*valid_seen"):
        environment.tasks("train")
    with pytest.raises(
        ConfigError, match=r"no game of look_at.* left out are 2 of pick_cool.*, 1 not known to be solv"
    ):
        make("alfworld", {"data": "$ALFWORLD_DATA", "task_types": ["look_at_obj_in_light"]}).tasks("valid_seen")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.jsonl", "train.jsonl.xz"], r"train\.jsonl and .*train\.jsonl\.xz are one split"),
        (["train.jsonl", "json_2.1.1/train/a/b/game.tw-pddl"], r"several data sets: .*\*\.jsonl\*, .*json_2\.1\.1"),
        (
            ["json_2.1.0/train/a/b/game.tw-pddl", "json_2.1.1/train/a/b/game.tw-pddl"],
            r"several data sets: .*2\.1\.0, .*",
        ),
    ],
)
def test_data_that_stands_twice_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        make("alfworld", {"data": str(tmp_path)}).tasks("train")


def test_games_that_are_all_left_out_are_counted(tmp_path):
    (tmp_path / "train.jsonl").write_text("no game\n[]\n")
    (tmp_path / "._train.jsonl").write_bytes(b"\x00\xff")  # as macOS leaves it beside a copied file
    with pytest.raises(ConfigError, match=r"left out are 2 malformed \(the first: .*train\.jsonl, line 1"):
        make("alfworld", {"data": str(tmp_path), "skip_malformed": True}).tasks("train")


def test_malformed_games_of_a_pack_are_skipped_when_asked(tmp_path, caplog):
    unbalanced = replace(small_game(), game_id="small/unbalanced", pddl_problem="(define (problem")
    lines = [pack_line(small_game("two")), '{"path": ', pack_line(unbalanced), pack_line(small_game())]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: not valid JSON"):
        make("alfworld", {"data": str(tmp_path)}).tasks("train")
    for _ in range(2):
        tasks = make("alfworld", {"data": str(tmp_path), "skip_malformed": True}).tasks("train")
        assert [task.task_id for task in tasks] == ["small/two", "small/cool"]
    (warning,) = caplog.records  # the second time the games were read already
    assert warning.levelname == "WARNING"
    first, *names = warning.getMessage().splitlines()
    assert first == f"{tmp_path / 'train.jsonl'}: skipped 2 malformed games:"
    assert names[0].startswith(f"{tmp_path / 'train.jsonl'}, line 2: not valid JSON")
    assert "game small/unbalanced: pddl_problem" in names[1]


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("(:objects", "(:objects (a b) - agent"),
        ("(:init", "(:init (atlocation (agent1) loc_1)"),
        ("(:goal", "(:goal (atlocation (agent1) loc_1)) (:other"),
        ("(:goal", "(:goal (inreceptacle nothing nowhere)) (:other"),
        ("(:goal", "(:goal (exists (?o - object) (openable ?x))) (:other"),
    ],
)
def test_problems_that_mean_nothing_are_malformed(part, instead):
    game = small_game()
    assert part in game.pddl_problem
    with pytest.raises(DataError, match=f"game {game.game_id}: pddl_problem"):
        parse(replace(game, pddl_problem=game.pddl_problem.replace(part, instead)))


def test_malformed_games_of_a_folder_are_skipped_when_asked(tmp_path, caplog):
    game = small_game()
    for trial in ("T1", "T2", "T3"):
        folder = tmp_path / "train" / "cool-Apple" / trial
        folder.mkdir(parents=True)
        grammar = '"task": [{"rhs": "Your task is to: put a thing."}]'
        data = {"pddl_problem": game.pddl_problem, "grammar": grammar, "solvable": True}
        (folder / "game.tw-pddl").write_text(json.dumps(data))
        (folder / "traj_data.json").write_text(json.dumps({"task_type": game.task_type}))
    broken = tmp_path / "train" / "cool-Apple" / "T2" / "game.tw-pddl"
    broken.write_text(broken.read_text()[:-9])
    with pytest.raises(DataError) as caught:
        make("alfworld", {"data": str(tmp_path)}).tasks("train")
    assert str(caught.value).startswith(f"{broken}: not valid JSON")
    tasks = make("alfworld", {"data": str(tmp_path), "skip_malformed": True}).tasks("train")
    assert [task.task_id for task in tasks] == ["cool-Apple/T1", "cool-Apple/T3"]
    (warning,) = caplog.records
    assert warning.getMessage() == f"{tmp_path / 'train'}: skipped 1 malformed games:\n{caught.value}"


def test_games_that_cannot_be_won_are_found_when_asked(tmp_path, caplog):
    path = tmp_path / "train.jsonl"
    no_way = replace(small_game("(holds agent1 DeskLamp_bar_1)"), game_id="small/lamp")
    path.write_text("\n".join([pack_line(small_game()), pack_line(no_way)]))
    message = f"{path}: game small/lamp: the planner finds no solution"
    assert len(make("alfworld", {"data": str(tmp_path)}).tasks("train")) == 2
    with pytest.raises(DataError) as caught:
        make("alfworld", {"data": str(tmp_path), "check_solvable": True}).tasks("train")
    assert str(caught.value) == message
    environment = make("alfworld", {"data": str(tmp_path), "check_solvable": True, "skip_malformed": True})
    assert [task.task_id for task in environment.tasks("train")] == ["small/cool"]
    assert caplog.messages == [f"{path}: skipped 1 malformed games:\n{message}"]


def test_a_pack_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "train.jsonl.xz").write_bytes(lzma.compress(pack_line(small_game()).encode())[:-20])
    (tmp_path / "valid_seen.jsonl").write_bytes(pack_line(small_game()).encode() + b"\n\xff\xfe")
    for name in ("train.jsonl.xz", "valid_seen.jsonl"):
        with pytest.raises(DataError) as caught:
            make("alfworld", {"data": str(tmp_path)}).tasks(name.split(".")[0])
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read after ")


def test_bad_manifests_of_generated_games_are_refused(tmp_path):
    manifest = tmp_path / "ids"
    manifest.write_text("train train/000011\ntrain train/000012\ntest test/000001\n")
    environment = make("alfworld", {"generator": {"train": 12}, "manifest": str(manifest)})
    with pytest.raises(DataError, match=r"line 2: .*'train/000012'"):
        environment.tasks("train")
    with pytest.raises(ConfigError, match=r"split: .*'valid_seen'.*test, train"):
        environment.tasks("valid_seen")
    with pytest.raises(ConfigError, match=r"split: .*'test'"):
        environment.tasks("test")
    missing = make("alfworld", {"manifest": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"environment\.options\.manifest: .*none"):
        missing.tasks("train")


def test_skipping_does_not_hide_an_id_that_is_there_twice(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join([pack_line(small_game())] * 2))
    with pytest.raises(DataError, match=r"line 2, field path: 'small/cool'.*line 1"):
        make("alfworld", {"data": str(tmp_path), "skip_malformed": True}).tasks("train")


def test_bad_options_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    for options, message in (
        ({"data": "$ALFWORLD_DATA"}, "the environment variable is not set"),
        ({"data": str(tmp_path / "none")}, "is no folder"),
        ({"data": str(tmp_path)}, "holds neither packs"),
        ({"task_type": []}, "did you mean 'task_types'"),
        ({"task_types": []}, "at least 1 item"),
        ({"task_types": ["look_at_obj_in_light"] * 2}, "named twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            make("alfworld", options)


def test_generated_games_are_the_default():
    environment = make("alfworld", {"generator": {"size": "small", "train": 12}})
    tasks = environment.tasks("train")
    assert len(tasks) == 12
    assert {task.task_type for task in tasks} == set(TASK_TYPES)
    assert result_of(environment.reset(tasks[0])) == result_of(environment.reset(tasks[0]))
    assert environment.task_text.startswith("Your task is to: ")
    with pytest.raises(ConfigError, match=r"split: .*'test'"):
        environment.tasks("test")


def test_the_words_of_the_goal_are_forbidden_where_the_config_says_so():
    generated = {"size": "small", "train": 30}
    plain, strict = (
        AlfworldEnvironment(AlfworldOptions.model_validate({"generator": generated, "forbid_goal_words": forbid}))
        for forbid in (False, True)
    )
    for task in strict.tasks("train")[:12]:
        strict.reset(task)
        words = strict.forbidden_texts(task)
        assert len(words) == 2
        assert all(word in strict.task_text for word in words), (strict.task_text, words)
        assert plain.forbidden_texts(task) == []
