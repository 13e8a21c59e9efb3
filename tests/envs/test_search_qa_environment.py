from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from envs.base import HasExpert, StepResult, Task, make, result_of
from envs.search_qa import Question, SearchQaEnvironment
from envs.search_qa.generator import GeneratorOptions, make_world
from envs.search_qa.world import SearchQaExpert
from opid_core.config import WarmStartConfig
from opid_core.errors import ConfigError
from opid_core.policies import load_tokenizer, train_tokenizer
from opid_core.rollout.prompting import render
from opid_core.warm_start import demonstrate

SMALL = {"generator": {"passages": 200, "train": 80, "valid_unseen": 20}}
NO_PASSAGES = "<information>\nNo passage found.\n</information>"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path_factory.getbasetemp() / "search_qa"))


@pytest.fixture
def environment(tmp_path) -> SearchQaEnvironment:
    passages = [{"id": 1, "contents": '"Belora"\nfounded by Tavi'}, {"id": 2, "contents": '"Tavi"\na baker'}]
    question = {"id": 1, "question": "Who\n founded Belora?", "golden_answers": ["Tavi", "Tavi the Elder"]}
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (tmp_path / "q.jsonl").write_text(json.dumps({**question, "data_source": "nq", "split": "train"}))
    made = make("search_qa", {"corpus": str(tmp_path / "c.jsonl"), "questions": str(tmp_path / "q.jsonl")})
    assert isinstance(made, SearchQaEnvironment)
    return made


def test_an_episode_that_searches_and_answers(environment):
    (task,) = environment.tasks("train")
    assert (task.task_id, task.task_type) == ("nq/1", "nq")
    assert result_of(environment.reset(task)) == "Nothing searched yet."
    assert environment.task_text == "Your question is: Who founded Belora?"
    assert list(environment.admissible_actions) == []
    assert result_of(environment.step("<search>baker</search>")) == StepResult(
        '<information>\nDoc 1: "Tavi"\na baker\n</information>', reward=0.0, done=False, won=False
    )
    assert result_of(environment.step("<search>Belora Tavi</search>")).observation == (
        '<information>\nDoc 1: "Belora"\nfounded by Tavi\nDoc 2: "Tavi"\na baker\n</information>'
    )
    assert result_of(environment.step("<answer>the tavi</answer>")) == StepResult("", reward=1.0, done=True, won=True)


@pytest.mark.parametrize(
    ("answer", "won"), [("Tavi", True), ("Elder", False), ("tavi elder!", True), ("", False), ("Tavi or Belora", False)]
)
def test_an_answer_ends_the_episode(environment, answer, won):
    environment.reset(environment.tasks("train")[0])
    result = result_of(environment.step(f"<answer>{answer}</answer>"))
    assert result == StepResult("", reward=1.0 if won else 0.0, done=True, won=won)


def test_the_fourth_turn_ends_the_episode(environment):
    environment.reset(environment.tasks("train")[0])
    actions = ["<search>Belora</search>", "", "<search></search>"]
    observations = [result_of(environment.step(action)).observation for action in actions]
    assert observations == [
        '<information>\nDoc 1: "Belora"\nfounded by Tavi\n</information>',
        "Nothing happens.",
        NO_PASSAGES,
    ]
    assert result_of(environment.step("<search>Belora</search>")) == StepResult("", reward=0.0, done=True, won=False)
    result_of(environment.reset(environment.tasks("train")[0]))  # the count starts anew
    for _ in range(3):
        assert not result_of(environment.step("")).done
    assert result_of(environment.step("<answer>Tavi</answer>")).won


def test_the_state_is_the_best_passage_found_last(environment):
    environment.reset(environment.tasks("train")[0])
    states = [environment.state_key()]
    for action in ("<search>Belora Tavi</search>", "<search>Belora</search>", "<search>nothing such</search>"):
        result_of(environment.step(action))
        states.append(environment.state_key())
    assert states[0] == ""
    assert states[1] == states[2] == states[3] != ""
    environment.reset(environment.tasks("train")[0])
    assert environment.state_key() == ""


def test_an_answer_inside_a_search_block_ends_the_episode(environment):
    # Malformed (both tags), yet executed: an answer is in it, so it is judged.
    environment.reset(environment.tasks("train")[0])
    action, is_valid = environment.parse_action("<search>x <answer>Tavi</answer></search>")
    assert not is_valid
    assert result_of(environment.step(action)).won


def test_golden_answers_are_forbidden_but_for_what_the_question_says(environment):
    def forbidden(question: str, *answers: str) -> list[str]:
        return list(environment.forbidden_texts(Task("x", "nq", Question("1", question, answers, "nq"))))

    assert forbidden("Who wrote it?", "The Poet", "Ann Lee") == ["The Poet", "Ann Lee"]
    assert forbidden("Which is older, the Alpha or Beta?", "Alpha", "beta", "Alphabet") == ["Alphabet"]
    assert forbidden("Is it so?", "Yes", "no", "...") == []


def test_group_members_start_and_go_on_alike():
    first, second = make("search_qa", SMALL), make("search_qa", SMALL)
    for task in first.tasks("train")[:5]:
        query = f"<search>{task.payload.question}</search>"
        assert result_of(first.reset(task)) == result_of(second.reset(task))
        assert result_of(first.step(query)) == result_of(second.step(query))
        assert result_of(first.step(query)).observation == result_of(second.step(query)).observation != NO_PASSAGES


@pytest.mark.parametrize("split", ["train", "valid_unseen"])
def test_the_expert_answers_every_generated_question(split):
    environment = make("search_qa", SMALL)
    assert isinstance(environment, HasExpert)
    for task in environment.tasks(split):
        expert = environment.expert(result_of(environment.reset(task)))
        steps, result = 0, None
        while result is None or not result.done:
            decision = expert.decide(environment.admissible_actions)
            action, is_valid = environment.parse_action(environment.response_text(decision))
            assert is_valid
            result = result_of(environment.step(action))
            expert.observe(action, result.observation)
            steps += 1
        assert result.won
        # One search may bring both passages of a two-hop question.
        assert steps in {"one_hop": (2,), "two_hop": (2, 3)}[task.task_type]


def test_the_expert_says_what_it_reads():
    expert = SearchQaExpert("What did the founder of Belora work as?")
    decision = expert.decide(())
    assert (decision.action, decision.thought) == ("<search>Belora</search>", "need founder of Belora.")
    expert.observe(decision.action, '<information>\nDoc 1: "Belora"\nBelora was founded by Tavi Muken.\n</information>')
    decision = expert.decide(())
    assert decision.action == "<search>Tavi Muken</search>"
    assert decision.thought == "Belora was founded by Tavi Muken. need craft of Tavi Muken."
    expert.observe(decision.action, NO_PASSAGES)
    assert expert.decide(()).action == "<search>Tavi Muken craft</search>"
    found = '<information>\nDoc 1: "Tavi"\nx.\nDoc 2: "Tavi Muken"\nTavi Muken worked as a baker.\n</information>'
    expert.observe("<search>anything</search>", found)
    decision = expert.decide(())
    assert (decision.action, decision.thought) == ("<answer>baker</answer>", "Tavi Muken worked as a baker.")


def test_a_clumsy_player_searches_and_answers_with_what_was_read():
    expert = SearchQaExpert("What did the founder of Belora work as?")
    assert expert.clumsy_actions(()) == [
        "<search>founder</search>",
        "<search>craft</search>",
        "<answer>Belora</answer>",
    ]
    read = '<information>\nDoc 1: "Belora"\nBelora was founded by Tavi Muken.\n</information>'
    expert.observe("<search>Belora</search>", read)
    assert expert.clumsy_actions(()) == [
        *("<search>Belora</search>", "<search>Tavi Muken</search>"),
        *("<answer>Belora</answer>", "<answer>Tavi Muken</answer>"),
    ]


def test_told_to_answer_only_the_experts_answer_is_shown():
    settings = WarmStartConfig(episodes=60, skill_share=1.0, clumsiness=0.5)
    shown = demonstrate(lambda: make("search_qa", SMALL), "train", settings, max_steps=4, history_length=2, seed=1)
    told = [one for one in shown if "Do now: answer" in render(one.parts)]
    assert len(told) > 10
    for one in told:
        thought, answer = one.response.removeprefix("<think>").removesuffix("</answer>").split("</think><answer>")
        assert answer in thought
        assert thought in render(one.parts)  # it is what was read


def test_a_name_is_the_same_two_tokens_wherever_it_stands(tmp_path):
    """Without a token for the space between them, which stands between any two words: copying is harder with it."""
    environment = make("search_qa", SMALL)
    assert isinstance(environment, HasExpert)
    train_tokenizer(["a"], environment.fixed_phrases, 300, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for name in make_world(GeneratorOptions(**SMALL["generator"])).names[:20]:  # pyright: ignore[reportArgumentType]
        cut = name.index(" of ") + 4 if " of " in name else name.index(" ")
        for text in ("<search>{}</search>", "Do now: search: {}.", "need {}.", "\n{} was born in "):
            shown = tokenizer.tokenize(text.format(name))
            assert any(pair == (name[:cut], name[cut:]) for pair in pairwise(shown)), shown


def test_there_is_no_expert_for_questions_of_a_file(environment):
    observation = result_of(environment.reset(environment.tasks("train")[0]))
    assert environment.expert(observation).path[0].name == "founder"  # worded as the generator words it
    environment.reset(Task("x", "nq", Question("1", "Why?", ("x",), "nq")))
    with pytest.raises(ConfigError, match=r"there is no expert for questions such as 'Why\?'"):
        environment.expert(observation)


def test_the_real_questions_and_passages(monkeypatch):
    data = Path(os.environ.get("OPID_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "search"
    if not data.is_dir():
        pytest.skip("no folder search/ in $OPID_SHARED_DATA or ../shared/data")
    files = {"corpus": str(data / "wiki18_mini_corpus.jsonl.xz"), "questions": str(data / "questions.jsonl")}
    environment = make("search_qa", files)
    tasks = {split: environment.tasks(split) for split in ("train", "valid_unseen")}
    assert sum(map(len, tasks.values())) == 3125
    assert {task.task_type for task in tasks["valid_unseen"]} == {"nq", "triviaqa", "popqa", "bamboogle"}
    every = {task.payload.question: task for part in tasks.values() for task in part}
    environment.reset(every["When did the last king from Britain's House of Hanover die?"])
    observation = result_of(
        environment.step("<search>House of Hanover last king of Britain William IV died</search>")
    ).observation
    assert "20 June 1837" in observation
    assert result_of(environment.step("<answer>20 June 1837.</answer>")).won


def test_a_warm_start_imitates_the_expert(tmp_path):
    import torch
    from transformers import AutoTokenizer

    from opid_core.config import CampaignConfig
    from opid_core.warm_start import warm_start

    config = CampaignConfig.model_validate(
        {
            "campaign": "x",
            "environment": {"name": "search_qa", "options": SMALL, "max_steps": 4, "history_length": 4},
            "rollout": {"max_prompt_tokens": 1024, "max_response_tokens": 64},
            "warm_start": {"episodes": 6, "epochs": 1, "detours": 0.0, "hidden_size": 32, "layers": 1, "heads": 1},
            "threads": 1,
        }
    )
    warm_start(config, lambda: make("search_qa", SMALL), tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    response = "<think>need founder of Belora.</think><search>Belora</search>"
    ids = tokenizer.encode(response, add_special_tokens=False)
    assert tokenizer.decode(ids) == response
    assert len(ids) < 20  # the tags are one token each
    assert (tmp_path / "policy" / "model.safetensors").is_file()
    assert torch.get_num_threads() == 1
