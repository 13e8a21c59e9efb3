"""WebShop as an environment: goals and their order, splits, options, expert, generated catalog."""

from __future__ import annotations

import importlib.util
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs.base import HasExpert, StepResult, result_of
from envs.webshop import WebshopEnvironment
from envs.webshop.catalog import Catalog, find_files
from envs.webshop.goals import NO_LIMIT, Goals, draw_limit
from opid_core.config import WarmStartConfig
from opid_core.errors import ConfigError, DataError
from opid_core.policies import load_tokenizer, train_tokenizer
from opid_core.warm_start import demonstrate
from tests.envs.test_webshop_catalog import MUG, raw_product, small_data


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def data(tmp_path):
    return str(small_data(tmp_path / "data"))


def generated(**options) -> WebshopEnvironment:
    environment = envs.make("webshop", {"generator": {"products": 40}, "validation": 20, **options})
    assert isinstance(environment, WebshopEnvironment)
    return environment


def test_synthetic_goals_by_hand(data):
    goals = Goals(Catalog(find_files(data)), "synthetic", 3)
    assert len(goals) == 6  # two colours by three sizes; the lamp has no instruction
    wordings = {goals.task(index).task_id: goals[index].instruction for index in range(6)}
    assert wordings == {
        "B000000MUG/0": "Find me hand made mugs with color: navy blue | white, and size: 12 oz",
        "B000000MUG/1": "Find me hand made mugs with color: navy blue | white, and size: 16 oz",
        "B000000MUG/2": "Find me hand made mugs with color: navy blue | white, and size: 20 oz",
        "B000000MUG/3": "Find me hand made mugs with color: red, and size: 12 oz",
        "B000000MUG/4": "Find me hand made mugs with color: red, and size: 16 oz",
        "B000000MUG/5": "Find me hand made mugs with color: red, and size: 20 oz",
    }
    order = list(range(6))
    random.Random(3).shuffle(order)
    assert [goals.task(index).task_id for index in range(6)] == [f"B000000MUG/{variant}" for variant in order]
    assert {goals.task(index).task_type for index in range(6)} == {"garden"}


def test_draws_follow_the_originals_order(tmp_path):
    """One stream: the price of every product with a range, then a limit for every product with an instruction."""
    products = [
        raw_product("B1", pricing="$14.00 - $16.00"),
        raw_product("B2", pricing="$31.00"),
        raw_product("B3", pricing="$20.00 - $60.00"),
    ]
    instructions = {
        asin: {"attributes": [], "instruction": "Find me lamps", "instruction_attributes": ["a"]}
        for asin in ("B1", "B2")
    }
    files = find_files(str(small_data(tmp_path / "data", products, items_ins_v2__json=instructions)))
    goals = Goals(Catalog(files), "synthetic", 7)
    stream = random.Random(7)
    prices = [stream.uniform(14.0, 16.0), 31.0, stream.uniform(20.0, 60.0)]
    assert goals.prices.tolist() == prices
    limits = {
        "B1": max(stream.sample([20.0, 30.0, 40.0, 50.0], 2)),
        "B2": max(stream.sample([40.0, 50.0, 60.0, 70.0], 2)),
    }
    drawn = {goal.asin: goal for goal in (goals[0], goals[1])}
    assert {asin: goal.price_upper for asin, goal in drawn.items()} == limits
    assert drawn["B1"].instruction == f"Find me lamps, and price lower than {limits['B1']:.2f} dollars"


@given(st.floats(0, 1200), st.integers(0, 100))
def test_the_price_limit_is_one_of_the_upper_three_multiples(price, seed):
    limit = draw_limit(price, random.Random(seed))
    choices = [10.0 * n for n in range(1, 100) if 10.0 * n > price][:4]
    assert limit in choices[1:] if len(choices) >= 2 else limit == NO_LIMIT


def test_human_goals(data):
    environment = envs.make("webshop", {"data": data, "goals": "human", "validation": 1})
    with pytest.raises(ConfigError, match=r"environment\.options\.validation: 1 "):
        environment.tasks("train")
    assert isinstance(environment, WebshopEnvironment)
    goal = environment.shop.goals[0]
    assert (goal.instruction, goal.attributes, goal.options) == ("a mug", ("hand made",), ("red",))


def test_splits_are_disjoint_and_complete():
    environment = generated()
    train, validation = environment.tasks("train"), environment.tasks("validation")
    assert len(validation) == 20
    ids = [task.task_id for task in [*validation, *train]]
    assert len(set(ids)) == len(ids) == len(environment.shop.goals)
    assert [task.task_id for task in generated().tasks("train")] == ids[20:]
    assert [task.task_id for task in train[2:5]] == ids[22:25]
    assert train[-1].task_id == ids[-1]
    with pytest.raises(IndexError):
        train[len(train)]
    # Another seed is another order of the same ids.
    other = generated(goal_seed=5)
    shuffled = [task.task_id for task in [*other.tasks("validation"), *other.tasks("train")]]
    assert shuffled != ids
    assert sorted(shuffled) == sorted(ids)
    with pytest.raises(ConfigError, match=r"split: .*'test'.*train, validation"):
        environment.tasks("test")


def test_a_manifest_picks_tasks_in_its_order(data, tmp_path):
    manifest = tmp_path / "ids.json"
    options = {"data": data, "validation": 1}
    ids = [task.task_id for task in envs.make("webshop", options).tasks("train")]
    manifest.write_text(json.dumps({"train": [ids[3], ids[1]], "validation": ["none/0"]}))
    environment = envs.make("webshop", {**options, "manifest": str(manifest)})
    assert [task.task_id for task in environment.tasks("train")] == [ids[3], ids[1]]
    with pytest.raises(DataError, match=r"validation, entry 1: .*'none/0'"):
        environment.tasks("validation")
    manifest.write_text(f"train {ids[0]}\ntrain {ids[0]}\n")
    with pytest.raises(DataError, match=f"line 2: .*'{ids[0]}'"):
        environment.tasks("train")


def test_an_episode(data):
    environment = envs.make("webshop", {"data": data, "validation": 1})
    task = next(t for t in environment.tasks("train") if t.task_id == "B000000MUG/4")
    first = result_of(environment.reset(task))
    assert environment.task_text == "Your task is to: Find me hand made mugs with color: red, and size: 16 oz"
    assert environment.admissible_actions == ["search[<your query>]", "click[search]"]
    assert result_of(environment.step("jump")) == StepResult(first, reward=0.0, done=False, won=False, score=0.0)
    for action in ("search[mugs]", "click[b000000mug]", "click[red]"):
        assert result_of(environment.step(action)).reward == 0.0
    assert "click[16 oz]" in environment.admissible_actions
    assert isinstance(environment, WebshopEnvironment)
    half = result_of(environment.step("click[buy now]"))
    assert (half.reward, half.done, half.won) == (0.0, True, False)
    assert half.score == 3 / 4
    assert result_of(environment.reset(task)) == first  # the next member of the group begins where the first did
    for action in ("search[mugs]", "click[b000000mug]", "click[red]", "click[16 oz]"):
        environment.step(action)
    won = result_of(environment.step("click[buy now]"))
    assert (won.reward, won.done, won.won) == (1.0, True, True)


def test_bad_options_are_refused(data, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for options, message in (
        ({"data": str(tmp_path / "none")}, "is no folder"),
        ({"data": str(tmp_path / "empty")}, "found: none"),
        ({"data": str(small_data(tmp_path / "x", items_human_ins__json=None)), "goals": "human"}, "no items_human_ins"),
        ({"goal": "human"}, "did you mean 'goals'"),
        ({"search": "lucene"}, "bm25"),
        ({"generator": {"products": 1}}, "greater than or equal to 20"),
    ):
        with pytest.raises(ConfigError, match=message):
            envs.make("webshop", options)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spacy" else find_spec(name))
    with pytest.raises(ConfigError, match=r"webshop needs spacy; install the extra: pip install 'opid\[webshop\]'"):
        envs.make("webshop", {"data": data})


@pytest.mark.parametrize("matching", ["parity", "fixed"])
@pytest.mark.parametrize("kind", ["synthetic", "human"])
def test_every_generated_goal_can_be_won(kind, matching):
    shop = generated(goals=kind, generator={"products": 200}).shop
    for index in range(len(shop.goals)):
        goal = shop.goals[index]
        chosen = goal.options if isinstance(goal.options, dict) else dict(enumerate(goal.options))
        worth = shop.score(goal.product, goal, chosen, matching)  # pyright: ignore[reportArgumentType]
        assert worth == 1.0, goal


@pytest.mark.parametrize("kind", ["synthetic", "human"])
def test_the_expert_wins_what_it_is_shown(kind):
    environment = generated(goals=kind, validation=2)
    assert isinstance(environment, HasExpert)
    for task in environment.tasks("train")[:30]:
        observation = result_of(environment.reset(task))
        expert, won = environment.expert(observation), False
        for _ in range(15):
            decision = expert.decide(environment.admissible_actions)
            assert environment.parse_action(environment.response_text(decision)) == (decision.action, True)
            assert decision.action in environment.admissible_actions or decision.action.startswith("search[")
            result = result_of(environment.step(decision.action))
            expert.observe(decision.action, result.observation)
            if result.done:
                won = result.won
                break
        assert won, task.task_id


def test_the_expert_mends_detours():
    environment = generated()
    task = next(t for t in environment.tasks("train") if len(environment.shop.goals[t.payload].options) == 2)
    goal = environment.shop.goals[task.payload]
    product = environment.shop.product(goal.product)
    wrong = next(v for v in product.options[next(iter(goal.options))] if v not in goal.options.values())  # pyright: ignore
    detours = {1: "click[back to search]", 4: f"click[{wrong}]", 6: "click[features]", 7: "jump", 9: f"click[{wrong}]"}
    expert = environment.expert(result_of(environment.reset(task)))
    for step in range(30):
        action = detours.get(step) or expert.decide(environment.admissible_actions).action
        result = result_of(environment.step(action))
        expert.observe(action, result.observation)
        if result.done:
            break
    assert result.won


def test_a_search_that_misses_is_tried_with_other_words(tmp_path):
    """60 mugs hide the goal's product from every search, its name's too: the expert still buys."""
    products = [raw_product(f"BMUG{number:06d}", name="Mug", query="mugs") for number in range(60)]
    data = str(small_data(tmp_path / "data", [*products, {**MUG, "name": "Mug", "full_description": "mug" * 9}]))
    environment = envs.make("webshop", {"data": data, "validation": 1})
    assert isinstance(environment, WebshopEnvironment)
    expert = environment.expert(result_of(environment.reset(environment.tasks("train")[0])))
    actions = []
    for _ in range(40):
        actions.append(expert.decide(environment.admissible_actions).action)
        result = result_of(environment.step(actions[-1]))
        expert.observe(actions[-1], result.observation)
        if result.done:
            break
    assert result.done
    searches = [action for action in actions if action.startswith("search[")]
    assert searches == ["search[coffee mugs]", "search[hand made mugs]", "search[mug]"]


def test_a_clumsy_player_clicks_anything_and_searches_for_a_part():
    environment = generated()
    observation = result_of(environment.reset(environment.tasks("train")[0]))
    expert = environment.expert(observation)
    instruction = environment.task_text.removeprefix("Your task is to: Find me ")
    words = re.split(r" with [a-z]+:|, and price", instruction)[0].split()
    begin, end = " ".join(words[:2]), " ".join(words[-2:])
    searches = [f"search[{begin}]", f"search[{end}]"]
    assert expert.clumsy_actions(environment.admissible_actions) == ["click[search]", *searches]
    result = result_of(environment.step(f"search[{begin}]"))
    expert.observe(f"search[{begin}]", result.observation)
    assert expert.clumsy_actions(environment.admissible_actions) == list(environment.admissible_actions)


def test_demonstrations_for_a_warm_start():
    """What `opid warm-start` imitates: detours included, every response well-formed, skills in some of the prompts."""
    settings = WarmStartConfig(episodes=6, detours=0.3)
    shown = demonstrate(generated, "train", settings, max_steps=15, history_length=2, seed=1)
    assert shown == demonstrate(generated, "train", settings, max_steps=15, history_length=2, seed=1)
    assert len(shown) >= 6 * 3
    assert all(WebshopEnvironment.parse_action(one.response)[1] for one in shown)
    assert shown[0].response.startswith("<think>search page. search.</think><action>search[")


def test_an_id_is_one_token_on_the_page_in_the_action_and_in_the_skill(tmp_path):
    environment = generated()
    assert isinstance(environment, WebshopEnvironment)
    train_tokenizer(["a"], environment.fixed_phrases, 300, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    asin = str(environment.shop.catalog.asins[7])
    assert tokenizer.tokenize(f" [SEP] {asin} [SEP] $1")[1] == asin
    skill, response = (
        tokenizer.tokenize(text) for text in (f"Do now: click[{asin.lower()}]", f"click[{asin.lower()}]")
    )
    assert skill[-3:] == response == ["click[", asin.lower(), "]"]


def test_an_option_is_one_token_in_the_instruction_on_the_page_and_in_the_action(tmp_path):
    """Also one that begins with a number, which would be a token of its own."""
    environment = generated()
    train_tokenizer(["a"], environment.fixed_phrases, 300, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    instruction = tokenizer.tokenize("with color: navy blue, and size: 10 inch, and price")
    assert {"color: ", "navy blue", "size: ", "10 inch"} <= {*instruction}
    assert tokenizer.tokenize(" [SEP] 10 inch [SEP] ")[1] == tokenizer.tokenize("click[10 inch]")[1] == "10 inch"
