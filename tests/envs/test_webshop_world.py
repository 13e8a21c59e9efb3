"""WebShop's pages and clicks, by hand; what holds whatever is done."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.webshop import Session, pages
from envs.webshop.catalog import Catalog, find_files
from envs.webshop.goals import Goals
from envs.webshop.reward import Nouns
from envs.webshop.search import open_index
from envs.webshop.world import Shop
from tests.envs.test_webshop_catalog import MUG, raw_product, small_data

INSTRUCTION = "Find me hand made mugs with color: red, and size: 16 oz"
HEAD = f"Instruction: [SEP] {INSTRUCTION} [SEP] Back to Search [SEP] "
ITEM = (
    f"{HEAD}< Prev [SEP] color [SEP] navy blue | white [SEP] red [SEP] size [SEP] 12 oz [SEP] 16 oz [SEP] 20 oz [SEP] "
    "Stone Mug [SEP] Price: $1009.99 to $1020.5 [SEP] Rating: 4.5 [SEP] Description [SEP] Features [SEP] Reviews [SEP] "
    "Buy Now"
)
ITEM_CLICKS = [
    *("back to search", "< prev", "description", "features", "reviews", "buy now"),
    *("navy blue | white", "red", "12 oz", "16 oz", "20 oz"),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The mug, and 23 lamps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPID_CACHE", str(tmp_path_factory.mktemp("cache")))
        products = [MUG, *(raw_product(f"BLAMP{number:05d}", name=f"Lamp {number}") for number in range(23))]
        catalog = Catalog(find_files(str(small_data(tmp_path_factory.mktemp("data"), products))))
        yield Shop(catalog, Goals(catalog, "synthetic", 0), Nouns(catalog), open_index("bm25", catalog))


def session(shop: Shop, show_attributes: bool = False) -> Session:
    goal = next(g for g in (shop.goals[i] for i in range(6)) if g.options == {"color": "red", "size": "16 oz"})
    assert goal.instruction == INSTRUCTION  # the mug costs more than any limit, so none is named
    return Session(shop, goal, option_matching="parity", show_attributes=show_attributes)


def test_a_whole_session(shop):
    world = session(shop)
    assert world.observation == f"Instruction: [SEP] {INSTRUCTION} [SEP] Search"
    assert (world.has_search_bar, list(world.clickables)) == (True, ["search"])
    assert world.step("search[hand made Mugs]") == (
        f"{HEAD}Page 1 (Total results: 1) [SEP] Next > [SEP] B000000MUG [SEP] Stone Mug [SEP] $1009.99 to $1020.5"
    )
    assert (world.has_search_bar, list(world.clickables)) == (False, ["back to search", "next >", "b000000mug"])
    assert world.step("click[B000000MUG]") == ITEM
    assert list(world.clickables) == ITEM_CLICKS
    assert world.step("click[red]") == ITEM  # what was chosen cannot be seen
    assert world.step("click[description]") == f"{HEAD}< Prev [SEP] Holds tea."
    assert list(world.clickables) == ["back to search", "< prev"]
    assert world.step("click[< prev]") == ITEM
    assert world.step("click[features]") == f"{HEAD}< Prev [SEP] One point"
    world.step("click[< prev]")
    assert world.step("click[reviews]") == (
        f'{HEAD}< Prev [SEP] "Fine" [SEP] 5 [SEP] Good. [SEP] "So so" [SEP] 4'  # an empty text is no text
    )
    world.step("click[< prev]")
    world.step("click[12 oz]")
    world.step("click[16 oz]")  # instead of 12 oz
    assert world.step("click[buy now]") == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk interface.) [SEP] "
        'Purchased [SEP] asin [SEP] B000000MUG [SEP] options [SEP] {"color": "red", "size": "16 oz"} [SEP] attrs [SEP] '
        "None [SEP] category [SEP] None [SEP] query [SEP] None [SEP] product category [SEP] None [SEP] Target [SEP] "
        "asin [SEP] options [SEP] attrs [SEP] price upper [SEP] instuction text [SEP] category [SEP] product category "
        "[SEP] query [SEP] Goal [SEP] None [SEP] Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward "
        "Details [SEP] None"
    )
    assert world.score is not None
    assert world.score == 1.0
    assert not world.clickables
    bought = world.observation
    assert world.step("search[lamp]") == world.step("click[back to search]") == bought


def test_result_pages(shop):
    world = session(shop)
    for number in (1, 2, 3, 4):
        seen = world.step("search[lamp]") if number == 1 else world.step("click[next >]")
        lamps = [f"BLAMP{lamp:05d} [SEP] Lamp {lamp} [SEP] $5.0" for lamp in range(23)][(number - 1) * 10 : number * 10]
        buttons = ["Next >"] if number == 1 else ["< Prev", "Next >"]
        assert seen == HEAD + " [SEP] ".join([f"Page {number} (Total results: 23)", *buttons, *lamps])
    assert list(world.clickables) == ["back to search", "< prev", "next >"]  # past the last result
    assert "Page 3 " in world.step("click[< prev]")
    world.step("click[blamp00022]")
    assert "Page 3 " in world.step("click[< prev]")  # from the item to the page of results that led there
    assert world.step("search[nothing such]") == f"{HEAD}Page 1 (Total results: 0) [SEP] Next >"


def test_choices_are_forgotten_when_results_are_shown(shop):
    for way_back in ("click[< prev]", "search[mugs]"):
        world = session(shop)
        for action in ("search[mugs]", "click[b000000mug]", "click[red]", "click[16 oz]", way_back):
            world.step(action)
        world.step("click[b000000mug]")
        world.step("click[buy now]")
        assert world.score is not None
        assert world.score == 2 / 4  # attribute and price of attribute, two options and price


def test_the_state_is_the_page_and_what_was_chosen(shop):
    def state(*actions: str) -> str:
        world = session(shop)
        for action in actions:
            world.step(action)
        return world.state_key()

    item = ("search[mugs]", "click[b000000mug]")
    assert state() == state(*item, "click[back to search]") == "search"
    assert state("search[mugs]") == state("search[stone mug]") != state("search[lamp]")
    assert state(*item, "click[red]", "click[16 oz]") == state(
        *item, "click[16 oz]", "click[12 oz]", "click[red]", "click[16 oz]"
    )
    assert len({state(*item, *more) for more in ((), ("click[red]",), ("click[red]", "click[description]"))}) == 3
    assert state(*item, "click[features]") == state(*item, "click[reviews]")  # both only lead back


def test_a_search_works_on_any_page_as_in_the_original(shop):
    world = session(shop)
    for action in ("search[mugs]", "click[b000000mug]"):
        world.step(action)
    assert "Page 1 (Total results: 23)" in world.step("search[lamp]")


@pytest.mark.parametrize(
    "action",
    [
        *(
            "search",
            "search[]",
            "SEARCH[mugs]",
            "search mugs",
            "find[mugs]",
            "click[search]",
            "click[buy now]",
            "click",
        ),
        *("click[]", "search[a] [b]", "", "[x]", "click[b000000mug]"),
    ],
)
def test_what_the_first_page_does_not_offer_changes_nothing(shop, action):
    world = session(shop)
    before = world.observation
    assert world.step(action) == before
    assert (world.page, world.score) == ("search", None)


def test_the_attributes_page(shop):
    world = session(shop, show_attributes=True)
    for action in ("search[mugs]", "click[b000000mug]"):
        world.step(action)
    assert "Reviews [SEP] Attributes [SEP] Buy Now" in world.observation
    assert "attributes" in world.clickables
    assert world.step("click[attributes]") == (
        f"{HEAD}< Prev [SEP] dishwasher safe [SEP] hand made [SEP] garden [SEP] coffee mugs [SEP] Kitchen › Cups › Mugs"
    )


@pytest.mark.parametrize(
    ("texts", "seen"),
    [
        (["a ", " b\n"], "a [SEP] b"),
        (["a", "", "b"], "a [SEP] b"),  # no text node at all
        (["a", " ", "b"], "a [SEP]  [SEP] b"),  # an empty bullet point after its blank
        (["a", " \n ", "b"], "a [SEP] b"),
        (["a", "\u00a0", "b"], "a [SEP]  [SEP] b"),
    ],
)
def test_white_space_as_the_html_round_trip_leaves_it(texts, seen):
    assert pages.observation(texts) == seen


def test_of_equal_option_values_the_last_is_clicked(shop):
    mug = shop.catalog[0]
    twins = type(mug)(
        **{f: getattr(mug, f) for f in mug.__slots__ if f != "options"}, options={"a": ("x",), "b": ("x",)}
    )
    clickables = pages.item_clickables(twins, False)
    assert clickables["x"] == pages.Clickable(option="b")
    assert list(clickables)[-1] == "x"


def test_the_done_page_escapes_as_the_original(shop):
    texts = pages.done_page(shop.catalog[0], {"b": "<1> & it's", "a": "\u00e9"}, 0.5)
    assert '{"a": "\\u00e9", "b": "\\u003c1\\u003e \\u0026 it\\u0027s"}' in texts
    assert "0.5" in texts


ACTIONS = st.one_of(
    st.sampled_from(
        ["search[mugs]", "search[lamp]", "click[next >]", "click[< prev]", "click[b000000mug]", "click[blamp00001]"]
        + [f"click[{text}]" for text in ITEM_CLICKS if text != "buy now"]
    ),
    st.text(max_size=12),
    st.text(max_size=12).map(lambda text: f"click[{text}]"),
)


@settings(max_examples=60)
@given(st.lists(ACTIONS, max_size=12))
def test_whatever_is_done(shop, actions):
    """Twins from the same state see the same; what is not offered changes nothing; a purchase scores 0 to 1."""
    world, twin = session(shop), session(shop)
    for action in actions:
        before, offered = world.observation, {f"click[{text}]" for text in world.clickables}
        assert world.step(action) == twin.step(action)
        assert list(world.clickables) == list(twin.clickables)
        if not action.startswith("search[") and action.lower() not in offered:
            assert world.observation == before
        assert world.score is None
    if "buy now" in world.clickables:
        world.step("click[buy now]")
        assert world.score is not None
        assert 0.0 <= world.score <= 1.0
