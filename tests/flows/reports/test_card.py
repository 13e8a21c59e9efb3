"""The model card: metadata that the hub's own client reads back, and what it says and keeps to itself."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from flows.reports.card import model_card
from infra.manifest import to_bytes
from infra.store import open_campaign
from opid_core.config import build_config
from opid_core.errors import DataError
from tests.factories import CONFIG, START_ROWS, commit_rows, named_rows

BASE = {"name": "Qwen/Qwen2.5-3B-Instruct", "revision": "aa8e72537993ba99e69dfaafa59ed015b17504d1"}
GIVEN = {
    "campaign": "demo",
    "root": "/home/me/runs",
    "seed": 3,
    "policy": BASE["name"],
    "environment": {"name": "alfworld", "options": {"data": "/home/me/games"}},
    "method": {"name": "opid", "lambda_step": 0.5},
    "tracking": {"wandb_project": "my-project"},
    "storage": {"endpoint_url": "https://my-server:9000"},
}


def won(version: int, successes: int, split: str = "valid_unseen") -> list[dict]:
    """Four evaluated episodes."""
    return [
        {
            "policy_version": version,
            "split": split,
            "task_id": str(number),
            "outcome": "success" if number < successes else "failure",
        }
        for number in range(4)
    ]


@pytest.fixture
def campaign(tmp_path):
    """A campaign that began with a model of the hub, and was evaluated before and after its only iteration."""
    store = open_campaign(tmp_path, "demo", build_config(GIVEN).model_dump(mode="json"))
    files = {"base_model.json": json.dumps(BASE).encode()}
    start = commit_rows(store, tmp_path, None, {**START_ROWS, "evaluations": won(0, 1)}, files=files)
    evaluations = won(1, 3) + won(1, 2, "valid_seen")
    return store, [start, commit_rows(store, tmp_path, start, {**named_rows(), "evaluations": evaluations})]


def test_its_metadata_are_read_by_the_hubs_client(campaign):
    data = ModelCard(model_card(*campaign)).data.to_dict()
    assert data["base_model"] == BASE["name"]
    assert (data["base_model_relation"], data["library_name"]) == ("finetune", "transformers")
    assert data["tags"] == ["opid", "agent", "reinforcement-learning", "alfworld"]
    (index,) = data["model-index"]
    assert index["name"] == "demo, iteration 1"
    found = {result["dataset"]["split"]: result["metrics"] for result in index["results"]}
    assert [metric["value"] for metric in found["valid_unseen"]] == [0.75, 0.75]
    assert [metric["value"] for metric in found["valid_seen"]] == [0.5, 0.5]
    args = {"temperature": 0.5, "episodes": 4, "interval_95": [0.3006, 0.9544]}
    first = {"type": "success_rate", "value": 0.75, "name": "success (micro), temperature 0.5", "args": args}
    assert found["valid_unseen"][0] == first


def test_it_says_what_the_policy_is_and_how_it_was_made(campaign):
    text = model_card(*campaign)
    manifest = campaign[1][1]
    for said in (
        "Skills are for training alone: the policy runs without.",
        f"| [{BASE['name']}](https://huggingface.co/{BASE['name']}), revision `{BASE['revision']}` |",
        "| campaign, seed | `demo`, `3` |",
        "| iteration | 1 (the policy after 1 update) |",
        "| method | `opid`; ",
        "`lambda_step 0.5`",
        f"| config hash | `{manifest.config_hash}` |",
        f"| manifest's sha256 | `{hashlib.sha256(to_bytes(manifest)).hexdigest()}` |",
        "| code version | `0.1.0` |",
        "| 0 updates | `valid_unseen` | 0.5 | 4 | 25.0% | 4.6% to 69.9% | 25.0% |",
        "| 1 update | `valid_unseen` | 0.5 | 4 | 75.0% | 30.1% to 95.4% | 75.0% |",
        "| 1 update | `valid_seen` | 0.5 | 4 | 50.0% | 15.0% to 85.0% | 50.0% |",
        "opid train config.yaml --set iterations=1\n",
        "opid reproduce demo --iteration 1\n",
    ):
        assert said in text


def test_its_config_trains_the_same_and_tells_nothing_of_the_machine(campaign):
    text = model_card(*campaign)
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["policy"] == f"{BASE['name']}@{BASE['revision']}"
    assert shown["environment"]["options"]["data"] == "games"
    config = build_config(shown)
    meant = build_config({**GIVEN, "policy": shown["policy"], "environment": shown["environment"]})
    unlike = {"root", "tracking", "storage"}
    assert config.model_dump(exclude=unlike) == meant.model_dump(exclude=unlike)
    for secret in ("/home/me", "my-project", "my-server"):
        assert secret not in text


def test_a_servers_address_is_not_published(tmp_path):
    options = {"retrieval": {"engine": "server", "url": "http://search.my-lab.org:8000/retrieve"}}
    given = {"campaign": "demo", "environment": {"name": "search_qa", "options": options}, "root": str(tmp_path)}
    store = open_campaign(tmp_path, "demo", build_config(given).model_dump(mode="json"))
    text = model_card(store, [commit_rows(store, tmp_path, None, START_ROWS)])
    assert "my-lab" not in text
    assert "url: ADDRESS" in text


def test_no_text_of_the_campaign_is_markup_or_ends_the_block_that_it_stands_in(tmp_path):
    name, link = "a`b\n```\n<img src=evil>", "[log in](//evil) <img src=//evil> | x"
    given = {"campaign": link, "seed": link, "environment": {"name": link, "options": {"own": f"x\n````\n{link}\n\n"}}}
    store = open_campaign(tmp_path, name, CONFIG | given)
    rows = START_ROWS | {"evaluations": won(0, 1, link)}
    text = model_card(store, [commit_rows(store, tmp_path, None, rows)])
    page = MarkdownIt("commonmark").enable("table").render(text.split("\n---\n", 1)[1])
    assert "<img" not in page
    assert "<a" not in page
    assert page.count("<pre>") == 3
    assert yaml.safe_load(text.split("`````yaml\n")[1].split("\n`````\n")[0])["environment"] == given["environment"]


@pytest.mark.parametrize(
    "told",
    [b"{", b"[]", b'{"name": "a/b"}', b'{"name": "a](//evil)/b", "revision": "c"}', b'{"name": 1, "revision": 2}'],
)
def test_a_base_model_that_is_no_name_of_the_hub_is_named(tmp_path, told):
    store = open_campaign(tmp_path, "demo", CONFIG)
    start = commit_rows(store, tmp_path, None, START_ROWS, files={"base_model.json": told})
    with pytest.raises(
        DataError, match=r"/base_model\.json: name, revision: expected ORG/NAME and a commit of the hub"
    ):
        model_card(store, [start])


def test_of_a_path_that_is_not_absolute_the_last_name_alone_is_shown(tmp_path):
    options = {
        "corpus": "../customers/acme/corpus",
        "questions": "generated",
        "own": ["./internal/y.json", {"z": "../z"}],
    }
    given = {
        "policy": "private/acme-secret/model",
        "environment": {"name": "search_qa", "options": options, "train_split": "a/b"},
        "evaluation": {"skill_bank": "secret/bank.json"},
    }
    store = open_campaign(tmp_path, "demo", CONFIG | given)
    text = model_card(store, [commit_rows(store, tmp_path, None, START_ROWS)])
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["policy"] == "model"
    assert shown["environment"]["options"] == {
        "corpus": "corpus",
        "questions": "generated",
        "own": ["y.json", {"z": "z"}],
    }
    assert shown["environment"]["train_split"] == "a/b"
    assert shown["evaluation"]["skill_bank"] == "bank.json"
    assert "| a local folder, `model` |" in text
    for secret in ("acme", "internal", "secret"):
        assert secret not in text


def test_a_card_of_what_is_not_known(tmp_path):
    """No evaluation, no base model, a degraded iteration with a text of others."""
    store = open_campaign(tmp_path, "demo", CONFIG)
    start = commit_rows(store, tmp_path, None, START_ROWS)
    degraded = commit_rows(store, tmp_path, start, named_rows() | {"evaluations": []}, degraded=["`a` | <b>\n# c"])
    text = model_card(store, [start, degraded])
    assert "model-index" not in text
    assert "This policy was not evaluated in its campaign." in text
    assert "a tiny policy of the campaign's own warm start" in text
    assert "**Degraded:** `a / <b> # c`" in text


@pytest.mark.parametrize(
    "given",
    [
        {"evaluation": {"skill_bank": "bank.json"}},
        {"method": {"name": "skill_grpo", "skill_bank": "bank.json", "keep_skill_at_test": 1}},
    ],
)
def test_a_policy_that_was_evaluated_with_skills_is_not_said_to_run_without(tmp_path, given):
    store = open_campaign(tmp_path, "demo", CONFIG | given)
    text = model_card(store, [commit_rows(store, tmp_path, None, START_ROWS)])
    assert "Skills are for training alone" not in text
    assert "with the skills of `bank.json` in its prompts" in text
