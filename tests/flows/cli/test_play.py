from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from envs.base import make, result_of
from flows.cli.play import play_episode
from opid_core.errors import ConfigError

ALFWORLD = {"generator": {"size": "small", "train": 6}}
WEBSHOP = {"generator": {"products": 40}, "validation": 20}
SEARCH_QA = {"generator": {"passages": 200, "train": 80, "valid_unseen": 20}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path_factory.getbasetemp() / "play"))


@pytest.fixture
def questions(tmp_path) -> dict[str, str]:
    asked = {"id": 1, "question": "Who runs Belora?", "golden_answers": ["Tavi"], "data_source": "nq"}
    (tmp_path / "q.jsonl").write_text(json.dumps({**asked, "split": "train"}))
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": 1, "contents": '"Belora"\nfounded by Tavi'}))
    return {"corpus": str(tmp_path / "c.jsonl"), "questions": str(tmp_path / "q.jsonl")}


def played(name: str, options: dict, split: str, answer: Callable[[str, str], str], task_id: str | None = None) -> str:
    """What is printed when `answer(printed so far, prompt)` types the lines."""
    output = io.StringIO()
    console = Console(file=output, width=4000)
    play_episode(name, options, split, task_id, console, lambda prompt: answer(output.getvalue(), prompt))
    return output.getvalue()


def typing(*lines: str) -> Callable[[str, str], str]:
    """Types `lines`, then ends the input."""
    left = list(lines)

    def answer(_printed: str, _prompt: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return answer


@pytest.mark.parametrize(
    ("name", "options", "split"),
    [("alfworld", ALFWORLD, "train"), ("webshop", WEBSHOP, "train"), ("search_qa", SEARCH_QA, "valid_unseen")],
)
def test_who_follows_the_hints_wins(name, options, split):
    typed: list[str] = []

    def answer(printed: str, _prompt: str) -> str:
        last = printed.splitlines()[-1]
        if not last.startswith("Hint: "):
            return "hint"
        typed.append(last.removeprefix("Hint: ").split(" (")[0])
        return typed[-1]

    printed = played(name, options, split, answer)
    steps = [f"{number:>3} {action}" for number, action in enumerate(typed, start=1)]
    assert len(steps) > 1
    assert printed.endswith("\n".join([f"\nEpisode won. Reward: 1, steps: {len(steps)}", *steps, ""]))


def test_an_action_is_typed_or_chosen_by_its_number():
    environment = make("alfworld", ALFWORLD)
    task = environment.tasks("train")[3]
    first = result_of(environment.reset(task))
    offered = list(environment.admissible_actions)
    printed = played(
        "alfworld", ALFWORLD, "train", typing("2", f" {offered[0].upper()} ", "fly", "quit"), "train/000003"
    )
    assert printed.startswith(
        f"train/000003 ({task.task_type})\n\n{environment.task_text}\n\n{first}\n\n  1 {offered[0]} "
    )
    second = result_of(environment.step(offered[1])).observation
    third = result_of(environment.step(offered[0])).observation
    assert f"\nStep 1: {offered[1]}\n\n{second}\n" in printed
    assert f"\nStep 2: {offered[0]}\n\n{third}\n" in printed
    assert "\nStep 3: fly\n\nNothing happens.\n" in printed
    end = f"\nEpisode ended by you. Reward: 0, steps: 3\n  1 {offered[1]}\n  2 {offered[0]}\n  3 fly\n"
    assert printed.endswith(end)


def test_what_is_no_action_takes_no_step():
    environment = make("alfworld", ALFWORLD)
    environment.reset(environment.tasks("train")[0])
    count = len(environment.admissible_actions)
    printed = played("alfworld", ALFWORLD, "train", typing("", "0", str(count + 1), "\u5f00 desk 1"))
    assert printed.count(f"Choose a number from 1 to {count}.\n") == 2
    assert printed.count("Not understood. Type an action or its number; hint: ") == 1
    assert printed.endswith("\nEpisode ended by you. Reward: 0, steps: 0\n")


def test_search_qa_takes_words_after_a_tag(questions):
    typed = typing("hint", "belora", "Search: Belora Tavi", "7", "<search>Tavi</search>", "answer: the Tavi!")
    how = "Type search: WORDS or answer: WORDS; hint: what the expert would do; quit: end the episode.\n"
    found = '<information>\nDoc 1: "Belora"\nfounded by Tavi\n</information>\n'
    assert played("search_qa", questions, "train", typed) == (
        "nq/1 (nq)\n\nYour question is: Who runs Belora?\n\nNothing searched yet.\n"
        f"\n{how}"
        "No hint: policy: there is no expert for questions such as 'Who runs Belora?'; name a base policy folder\n"
        f"Not understood. {how}"
        f"\nStep 1: <search>Belora Tavi</search>\n\n{found}"
        f"\n{how}"
        f"Not understood. {how}"
        f"\nStep 2: <search>Tavi</search>\n\n{found}"
        f"\n{how}"
        "\nStep 3: <answer>the Tavi!</answer>\n"
        "\nEpisode won. Reward: 1, steps: 3\n"
        "  1 <search>Belora Tavi</search>\n  2 <search>Tavi</search>\n  3 <answer>the Tavi!</answer>\n"
    )


def test_a_wrong_answer_loses(questions):
    printed = played("search_qa", questions, "train", typing("answer: Belora"))
    assert printed.endswith("\nEpisode lost. Reward: 0, steps: 1\n  1 <answer>Belora</answer>\n")


def test_a_search_chosen_by_number_asks_for_its_words():
    prompts: list[str] = []
    typed = typing("1", "red mug", "quit")

    def answer(printed: str, prompt: str) -> str:
        prompts.append(prompt)
        return typed(printed, prompt)

    printed = played("webshop", WEBSHOP, "train", answer)
    assert prompts == ["> ", "your query> ", "> "]
    assert "  1 search[<your query>] " in printed
    assert "\nStep 1: search[red mug]\n\nInstruction: [SEP] " in printed


@pytest.mark.parametrize(
    ("name", "split", "task_id", "message"),
    [
        ("chess", "train", None, "environment.name: unknown environment 'chess'"),
        ("alfworld", "test", None, "split: unknown split 'test'; known: train"),
        ("alfworld", "train", "train/7", "task: no task 'train/7' among the 6 of split train; its first are: train/0"),
    ],
)
def test_what_is_not_there_is_one_config_error_before_the_first_question(name, split, task_id, message):
    with pytest.raises(ConfigError, match=message):
        played(name, ALFWORLD, split, typing(), task_id)
