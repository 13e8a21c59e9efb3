"""The original's own catalog of 1,000 products, against what the original is known to do with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import envs
from envs.webshop import Goal, WebshopEnvironment

SHARED = Path(os.environ.get("OPID_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
DATA = SHARED / "webshop"

pytestmark = pytest.mark.skipif(
    not (DATA / "items_shuffle_1000.json").is_file(),
    reason=f"no items_shuffle_1000.json in {DATA} (set OPID_SHARED_DATA)",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPID_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = envs.make("webshop", {"data": str(DATA)})
        assert isinstance(made, WebshopEnvironment)
        yield made


def goals(environment: WebshopEnvironment) -> list[Goal]:
    return [environment.shop.goals[index] for index in range(len(environment.shop.goals))]


def test_number_of_goals_and_how_many_can_be_won(environment):
    """Buying each goal's product with its options."""
    shop, every = environment.shop, goals(environment)
    assert (len(shop.catalog), len(every)) == (1000, 6910)
    assert (len(environment.tasks("validation")), len(environment.tasks("train"))) == (500, 6410)
    assert len({task.task_id for split in ("validation", "train") for task in environment.tasks(split)}) == 6910
    won = {
        matching: sum(shop.score(goal.product, goal, goal.options, matching) == 1.0 for goal in every)
        for matching in ("parity", "fixed")
    }
    assert won == {"parity": 6452, "fixed": 6910}


def test_a_published_transcript(environment):
    """AgentQuest's transcript of the original: a search, an item, a purchase."""
    wanted = (
        "Find me slim fit, machine wash women's jumpsuits, rompers & overalls with short sleeve, high waist, polyester "
        "spandex for daily wear with color: green stripe, and size: large"
    )
    every = goals(environment)
    index = next(n for n, goal in enumerate(every) if goal.instruction.startswith(f"{wanted}, and price"))
    task = environment.shop.goals.task(index)
    environment.reset(task)
    head = f"Instruction: [SEP] {every[index].instruction} [SEP] Back to Search [SEP] "

    seen = environment.step("search[women jumpsuits]").observation
    assert seen.startswith(
        f"{head}Page 1 (Total results: 50) [SEP] Next > [SEP] B09NDS8F4V [SEP] AODONG Onesie Pajamas"
    )
    assert environment.admissible_actions == [
        *("click[back to search]", "click[next >]", "click[b09nds8f4v]", "click[b09pvnlvrw]", "click[b09rv4txkj]"),
        *("click[b099wx3cv5]", "click[b09q37jqz6]", "click[b09qpx97vw]", "click[b09nsc5vdg]", "click[b09qgk5xhz]"),
        *("click[b09s632dt3]", "click[b09qxf3v3x]"),
    ]
    assert " [SEP] $17.4 to $28.67 [SEP] " in seen
    seen = environment.step("click[b09qgk5xhz]").observation
    assert seen == (
        f"{head}< Prev [SEP] WENKOMG1 Men's Long Sleeve Undershirt with Mask Turtleneck Hooded T-Shirt Solid Color "
        "Workout Tops Zipper Side Slit Shirts Slim Fit Sweatshirt Spring/Summer Tee Shirts(Gray,) [SEP] Price: $8.39 "
        "[SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    bought = environment.step("click[buy now]")
    assert bought.observation.endswith(
        " [SEP] Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 0.03333333333333333 [SEP] Reward Details [SEP] None"
    )
    assert (bought.reward, bought.done, bought.won) == (0.0, True, False)


# Published transcripts of the original in this catalog: query, rank of the first product, the products.
SEARCHES = (
    (
        "eco friendly fleece throw blanket tortoisegoo9511 39x49in under 60",
        0,
        "B09DG3YTHY B0836D6CW4 B09KTB1VG6 B08FGWZZ8J B08SKH3LTM B07SXRVKZ2 B09BNCFGLY B09C1YWG8W B08WKMHTGH B09MYFGDY5",
    ),
    (
        "tempered glass screen protector under $40",
        0,
        "B083ZK4NRS B088LZPNG6 B095PF5BXT B07YCGBPRD B07ZYVWCZ7 B07JMXLXNY B0982W8RKZ B07GZLDJMC B083HXHG75 B08CV7M1HV",
    ),
    ("men's sweater polyester cotton 5x-large under $60 machine wash", 0, "B09PBPZ24Z B09QQP3356"),
    ("men's sweater polyester cotton 5x-large under $60 machine wash", 10, "B09ND8P2QR B09ND9DP7J"),
    ("men's sweater polyester cotton 5x-large under $60 machine wash", 20, "B09P7H5YK7 B07JVVDJ6L B09P39QN2W"),
    (
        "men's sweater polyester cotton 5x-large under $60 machine wash",
        30,
        "B07FD13LP1 B09J95S478 B09476F64C B09T756KQ5 B09GVJBPRR B09QCVCYVY B085WQKRRJ B09R9YCM6R B09HGFV91W B07WX8FPGG",
    ),
    ("men sweater polyester cotton machine wash cold tumble dry 5x-large", 0, "B01HQTWL6S B09Q8RD8YN B09M63B87V"),
    ("men sweater polyester cotton machine wash cold tumble dry 5x-large", 10, "B09HY9XB8P B09QQP3356"),
)


@pytest.mark.parametrize(("query", "rank", "products"), SEARCHES)
def test_published_searches(environment, query, rank, products):
    found = [str(environment.shop.catalog.asins[number]) for number in environment.shop.search(query, 50)]
    assert len(found) == 50
    assert found[rank : rank + len(products.split())] == products.split()


@pytest.mark.parametrize(
    ("index", "instruction"),
    [
        (490, "Find me eco friendly throw blankets with fleece throw with color: tortoisegoo9511, and size: 39x49in"),
        (71, "Find me screen protectors with tempered glass, glass screen"),
        (
            3413,
            "Find me machine wash, wash cold men's sweaters with polyester cotton for tumble dry with size: 5x-large",
        ),
    ],
)
def test_published_goal_numbers(environment, index, instruction):
    """The default seed is the original's own; its price limits are drawn anew at every start."""
    assert environment.shop.goals[index].instruction.startswith(f"{instruction}, and price lower than ")


def test_human_goals():
    environment = envs.make("webshop", {"data": str(DATA), "goals": "human", "validation": 3})
    assert len(environment.tasks("train")) == 10


def test_the_default_order_is_the_originals_shuffle(environment):
    """`random.seed(233); random.shuffle(goals)` over the goals by product and combination."""
    import random

    ids = [environment.shop.goals.task(index).task_id for index in range(6910)]
    asins = environment.shop.catalog.asins.tolist()
    made = sorted(ids, key=lambda task_id: (asins.index(task_id.split("/")[0]), int(task_id.split("/")[1])))
    random.Random(233).shuffle(made)
    assert ids == made
