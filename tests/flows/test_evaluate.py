"""`opid evaluate --endpoint` against a scripted server, as the user types it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.evaluate import policy_to_play
from infra.objects import delete
from infra.store import open_campaign
from opid_core.config import build_config
from opid_core.seeds import derive
from tests.chat_server import KEY, Answer, ChatServer, chat_server
from tests.factories import make_chain
from tests.flows.cli.test_cli import opid, own_environment  # noqa: F401 - an autouse fixture

OFFERS = "Admissible actions: "


def walk(body: dict[str, Any]) -> Answer:
    """A model that opens the door or takes the key where it can, and else takes the first action offered."""
    (message,) = body["messages"]
    offered = [line for line in message["content"].splitlines() if line.startswith(OFFERS)]
    if not offered:
        return Answer(content="{}")  # the question before the panel
    actions = offered[0].removeprefix(OFFERS).split(", ")
    action = next((a for a in ("open door", "take key") if a in actions), actions[0])
    return Answer(content=f"<think>On.</think><action>{action}</action>")


@pytest.fixture
def server(monkeypatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    with chat_server() as state:
        state.answer = walk
        yield state


@pytest.fixture
def config_path(tmp_path) -> Path:
    """A panel of four corridors of four rooms."""
    config = {
        "campaign": "small",
        "root": str(tmp_path / "runs"),
        "environment": {
            "name": "tests.envs.corridor:corridor",
            "options": {"rooms": 4},
            "max_steps": 5,
            "history_length": 2,
        },
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 24},  # no prompt would fit
        "evaluation": {"tasks": 4, "temperatures": [0.7]},
        "analyzer": {"llm": {"max_retries": 1, "concurrency": 2}},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Evaluation:
    """One run of the command: its exit code, what it printed, and the record that it wrote."""

    def __init__(self, monkeypatch, capsys, config_path: Path, url: str, *arguments: str) -> None:
        out = config_path.with_name("evaluated.json")
        asked = ("--endpoint", url, "--model", "walker", "--api-key-env", "TEST_LLM_KEY", "--out", out)
        self.code = opid(monkeypatch, "evaluate", config_path, *asked, *arguments)
        printed = capsys.readouterr()
        self.out, self.error = printed.out, printed.err
        text = out.read_text(encoding="utf-8") if out.exists() else ""
        self.record = json.loads(text) if text else None
        assert KEY not in self.out + self.error + text
        assert "Traceback" not in self.error


@pytest.fixture
def evaluate(monkeypatch, capsys, config_path, server):
    return lambda *arguments, url=None: Evaluation(monkeypatch, capsys, config_path, url or server.url, *arguments)


def asked_in_episodes(server: ChatServer) -> list[dict[str, Any]]:
    return [request for request in server.requests if OFFERS in request["messages"][0]["content"]]


def test_a_model_behind_an_endpoint_plays_the_panel(server, evaluate):
    evaluated = evaluate()
    assert evaluated.code == 0, evaluated.error
    record = evaluated.record
    assert record["policy"] == f"walker at {server.url}"
    # The model goes left to room 1, then to and fro between the rooms 1 and 2.
    # Only the first task has key and door on that way: left, take key, left, open door.
    shown = ("task_id", "outcome", "steps", "valid_actions", "admissible_actions", "tokens", "return")
    assert [tuple(row[name] for name in shown) for row in record["episodes"]] == [
        ("start3-key2-door1", "success", 4, 4, 4, 48, 10.0),
        ("start1-key2-door3", "truncated", 5, 5, 5, 60, 0.0),
        ("start3-key4-door2", "truncated", 5, 5, 5, 60, 0.0),
        ("start2-key1-door4", "truncated", 5, 5, 5, 60, 0.0),
    ]
    assert record["success"]["0.7"]["micro"] == 0.25
    # 4 + 3 * 5 turns of 30 and 12 tokens each; the question before the panel is none of them.
    assert record["endpoint"] == {
        "requests": 19,
        "responses": 19,
        "prompt_tokens": 570,
        "completion_tokens": 228,
        "uncounted": 0,
        "cut": 0,
        "empty": 0,
    }
    assert f"Evaluating walker at {server.url}\n" in evaluated.out
    assert "19 responses to 19 requests, 570 prompt and 228 completion tokens\n" in evaluated.out
    assert "corridor" in evaluated.out
    assert "25.0%" in evaluated.out

    asked = asked_in_episodes(server)
    assert (len(asked), len(server.requests)) == (19, 20)
    for request in server.requests:
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("walker", 0.7, 24)
    turns = [derive(row["seed"], turn) for row in record["episodes"] for turn in range(row["steps"])]
    assert Counter(request["seed"] for request in asked) == Counter(turns)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert server.most_at_once <= 2


def test_the_same_model_is_asked_the_same(server, evaluate, config_path):
    first = evaluate()
    before = len(server.requests)
    config_path.with_name("evaluated.json").unlink()
    second = evaluate("--set", "analyzer.llm.concurrency=7")
    assert second.record == first.record
    asked = [json.dumps(request, sort_keys=True) for request in server.requests]
    assert Counter(asked[:before]) == Counter(asked[before:])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--endpoint", "http://127.0.0.1:9/v1"), "--endpoint and --model NAME belong together"),
        (("--model", "walker"), "--endpoint and --model NAME belong together"),
        (
            ("--endpoint", "http://127.0.0.1:9/v1", "--model", "walker", "--policy", "folder"),
            "--endpoint and --policy: give one of them",
        ),
        (
            ("--endpoint", "http://127.0.0.1:9/v1", "--model", "walker", "--out", "absent/evaluated.json"),
            "--out: absent is no folder",
        ),
    ],
)
def test_options_that_do_not_belong_together(monkeypatch, capsys, config_path, arguments, error):
    assert opid(monkeypatch, "evaluate", config_path, *arguments) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("key", ["evaluation.split", "evaluation.more_splits"])
def test_an_unknown_split_is_told_with_its_key_before_the_endpoint_is_asked(server, evaluate, key):
    value = "nowhere" if key == "evaluation.split" else "[nowhere]"
    evaluated = evaluate("--set", f"{key}={value}")
    assert evaluated.code == 2
    assert evaluated.error.startswith(f"error: {key}: unknown split 'nowhere'; known: ")
    assert server.requests == []


@pytest.mark.parametrize("url", ["host/v1", "ftp://host/v1", f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"])
def test_an_address_of_another_form(evaluate, url):
    evaluated = evaluate(url=url)
    assert evaluated.code == 2
    assert evaluated.error.startswith("error: --endpoint: expected http://HOST/v1 or https://HOST/v1, without user")


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/v1", "http://[::1/v1", "http:///v1", "http://a..b/v1"])
def test_an_address_that_nothing_can_be_sent_to(evaluate, url):
    evaluated = evaluate(url=url)
    assert evaluated.code == 2
    assert evaluated.error.startswith(f"error: endpoint {url}: no address of an endpoint (")


def test_a_missing_key(evaluate, monkeypatch):
    monkeypatch.delenv("TEST_LLM_KEY")
    error = evaluate(url="https://llm.example.org/v1").error
    assert error.startswith("error: endpoint https://llm.example.org/v1: the environment variable TEST_LLM_KEY is not")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(401, f"who is {KEY}?"), "endpoint {url} refused the key of TEST_LLM_KEY (HTTP 401)"),
        (
            Answer(404, "no model"),
            "endpoint {url} does not know the model 'walker', or is no address of an endpoint (HTTP 404)",
        ),
        (
            Answer(400, "temperature must be 1"),
            "endpoint {url}: the endpoint refused the request: HTTP 400: temperature must be 1",
        ),
        (Answer(503, "loading"), "endpoint {url}: HTTP 503: loading (1 retries)"),
    ],
)
def test_what_the_endpoint_refuses_is_said_before_any_episode(server, evaluate, answer, error):
    server.answer, server.answers = None, [answer]
    evaluated = evaluate()
    assert (evaluated.code, evaluated.record) == (2, None)
    assert evaluated.error == f"error: {error.format(url=server.url)}\n"
    assert asked_in_episodes(server) == []


def test_every_temperature_is_tried_before_any_episode(server, evaluate):
    server.answer = lambda body: walk(body) if body["temperature"] == 1.0 else Answer(400, "temperature must be 1")
    evaluated = evaluate("--set", "evaluation.temperatures=[1.0, 0.4]")
    assert evaluated.error.endswith("HTTP 400: temperature must be 1\n")
    assert [request["temperature"] for request in server.requests] == [1.0, 0.4]
    assert asked_in_episodes(server) == []


def test_a_panel_that_is_too_large_is_said_before_the_endpoint_is_asked(server, evaluate):
    error = evaluate("--set", "evaluation.tasks=9").error
    assert error == "error: evaluation: the split 'valid_unseen' has 8 tasks, the panel needs 9\n"
    assert server.requests == []


def test_transient_errors_are_tried_again(server, evaluate):
    first: set[str] = set()

    def answer(body: dict[str, Any]) -> Answer:
        known = json.dumps(body) in first
        first.add(json.dumps(body))
        return walk(body) if known else Answer(429, "slow down", {"Retry-After": "0"})

    server.answer = answer
    record = evaluate().record
    assert [row["outcome"] for row in record["episodes"]] == ["success", "truncated", "truncated", "truncated"]
    assert (record["endpoint"]["responses"], record["endpoint"]["requests"]) == (19, 38)


def late(answer: Answer):
    """Answers three turns of episodes, then always `answer`."""
    turns = 0

    def respond(body: dict[str, Any]) -> Answer:
        nonlocal turns
        turns += OFFERS in body["messages"][0]["content"]
        return answer if turns > 3 else walk(body)

    return respond


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(500, "down"), "HTTP 500: down (1 retries)"),
        (Answer(hang=True), "no answer within 0.2 s (1 retries)"),
        (Answer(body=b'{"choices": []}'), 'HTTP 200 without a completion: {"choices": []} (1 retries)'),
    ],
)
def test_an_outage_ends_the_evaluation_without_a_result(server, evaluate, answer, error):
    server.answer = late(answer)
    evaluated = evaluate("--set", "analyzer.llm.timeout_s=0.2" if answer.hang else "analyzer.llm.timeout_s=60")
    assert (evaluated.code, evaluated.record) == (2, None)
    assert evaluated.error == f"error: endpoint {server.url}: {error}\n"
    assert "success" not in evaluated.out


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(400, "prompt is too long"), "the endpoint refused the request: HTTP 400: prompt is too long"),
        (Answer(content="", finish_reason="content_filter"), "kept the reply back for its content (content_filter)"),
    ],
)
def test_a_prompt_without_an_answer_is_no_failed_episode(server, evaluate, answer, reason):
    server.answer = late(answer)
    evaluated = evaluate()
    assert (evaluated.code, evaluated.record) == (2, None)
    assert evaluated.error.startswith(f"error: endpoint {server.url}: no answer to a prompt of task 'start")
    assert reason in evaluated.error
    assert evaluated.error.endswith("is neither won nor lost, so nothing is evaluated\n")


def test_an_endpoint_without_seeds_is_asked_without(server, evaluate):
    server.answer = lambda body: Answer(400, "Unknown parameter: 'seed'.") if "seed" in body else walk(body)
    evaluated = evaluate("--set", "analyzer.llm.concurrency=1")
    assert evaluated.out.count(f"{server.url} is asked without seed from now on: Unknown parameter: 'seed'.") == 1
    assert [row["outcome"] for row in evaluated.record["episodes"]][:2] == ["success", "truncated"]
    assert evaluated.record["endpoint"]["requests"] == 20


def test_empty_and_cut_and_uncounted_responses_are_told(server, evaluate):
    nothing = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    server.answer = late(Answer(body=json.dumps(nothing).encode()))
    evaluated = evaluate("--set", "evaluation.tasks=1")
    # Left, take key, left; then two turns without a word.
    (row,) = evaluated.record["episodes"]
    assert (row["outcome"], row["steps"], row["valid_actions"], row["tokens"]) == ("truncated", 5, 3, 36)
    assert "5 responses to 5 requests, 90 prompt and 36 completion tokens; " in evaluated.out
    assert "the tokens of 2 were not named and count as 0; 2 were cut at rollout.max_response_tokens; 2 were empty" in (
        " ".join(evaluated.out.split())
    )


def test_the_policy_to_play_is_its_weights(tmp_path):
    """Its optimizer state is not needed to play it: not downloaded, and not missed."""
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs")})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    chain = make_chain(store, tmp_path, 2)
    weights, state = chain[-1].policy.files
    delete([store.address(state.path)])
    with policy_to_play(config, None) as (folder, _):
        assert folder / "model.safetensors" == store.address(weights.path)
