"""The audit's pages in a real headless Chromium: open, filter, follow a skill to its tokens and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.reports.audit.overview import OVERVIEW_PAGE, write_overview
from flows.reports.audit.pages import CAMPAIGN_PAGE, page_of, write_pages
from flows.reports.skills import effects_of
from infra.store import CampaignStore, read_table
from tests.audited import Shape, make_campaign
from tests.chromium import Open, watched_pages
from tests.hostile import hostile_strings

if TYPE_CHECKING:
    from playwright.sync_api import Page

LAST = 2
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def open_page() -> Iterator[Open]:
    with watched_pages() as opened:
        yield opened


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> tuple[CampaignStore, list, Path]:
    root = tmp_path_factory.mktemp("audited")
    store, chain = make_campaign(root, 2, Shape(), degraded=1)
    write_pages(store, chain, [1, LAST], root / "pages")
    write_overview(str(root), None, [], root / "pages")
    return store, chain, root / "pages"


def test_the_campaign_page_leads_to_an_iteration(campaign, open_page):
    page = open_page(campaign[2] / CAMPAIGN_PAGE)
    assert page.locator(".alarm").inner_text() == "Iteration 1 is degraded: skills: 2 of 6 analyses failed"
    assert page.locator("svg.chart circle").count() == 2 + 3 + 3  # training rollouts, and two panels at each policy
    assert page.locator("#added tbody tr").count() == 8
    assert "too short" in page.locator("tr.warn").inner_text()
    page.click(f"a[href='{page_of(LAST)}']")
    page.wait_for_url(f"**/{page_of(LAST)}*")  # the page that is left is ready too
    page.wait_for_selector("body[data-ready=yes]", state="attached")
    assert page.locator("h1").inner_text() == "Iteration 2"


def test_skills_are_ranked_by_what_they_did(campaign, open_page):
    store, chain, folder = campaign
    effects = effects_of(store, chain)
    page = open_page(folder / CAMPAIGN_PAGE)
    rows = page.locator("#effects tbody tr")
    assert rows.count() == len(effects)
    texts = page.locator("#effects td.skill-text")
    assert texts.first.inner_text() == effects[0].text
    heading = page.locator("#effects th:has-text('mean delta')")
    heading.locator("button").press("Enter")  # by the keyboard too
    assert heading.get_attribute("aria-sort") == "descending"
    by_delta = sorted(effects, key=lambda effect: -effect.delta)
    assert texts.first.inner_text() == by_delta[0].text
    heading.locator("button").click()
    assert texts.first.inner_text() == by_delta[-1].text
    page.fill("#effect-text", effects[0].text.upper())
    page.wait_for_selector(f"#effect-count:has-text('1 of {len(effects)} skills')")
    page.fill("#effect-text", "")
    page.select_option("#effect-kind", "episode")
    assert rows.count() == sum(effect.kind == "episode" for effect in effects)


def column(page: Page, table: str, number: int) -> list[str]:
    """The texts of a column (the first is 1) of a table."""
    return page.locator(f"{table} tbody td:nth-child({number})").all_inner_texts()


def test_all_tables_are_sorted_by_a_click_on_a_heading(tmp_path, open_page):
    store, chain = make_campaign(tmp_path, 11, Shape(tasks=1, group_size=3, steps=2, tokens=4), degraded=3)
    make_campaign(tmp_path, 2, Shape(), name="other")
    write_pages(store, chain, [11], tmp_path)
    write_overview(str(tmp_path), None, [], tmp_path)
    tables = {CAMPAIGN_PAGE: 6, OVERVIEW_PAGE: 3, f"{page_of(11)}#record": 2}
    for name, count in tables.items():
        page = open_page(tmp_path / name.split("#")[0])
        page.goto(f"{page.url.split('#')[0]}#{name.partition('#')[2]}")
        heads = page.locator("table:not(#skill-list table) thead tr")
        assert (heads.count(), page.locator("th").count()) == (count, page.locator("th > button").count()), name
    page = open_page(tmp_path / CAMPAIGN_PAGE)
    iterations = [str(number) for number in range(12)]
    heading = page.locator("#iterations th button").first
    heading.click()  # as numbers: 11 stands above 9
    assert [text.split()[0] for text in column(page, "#iterations", 1)] == iterations[::-1]
    heading.press("Enter")
    assert [text.split()[0] for text in column(page, "#iterations", 1)] == iterations
    page.locator("#iterations th button").nth(1).click()
    shares = [float(text.split("%")[0]) if text else None for text in column(page, "#iterations", 2)]
    assert shares[-1] is None  # the start has none
    assert shares[:-1] == sorted((one for one in shares if one is not None), reverse=True)
    page.locator("#iterations th button:text-is('gates')").click()
    assert "warned" in column(page, "#iterations", 4)[0]
    page.reload()  # as of a followed page
    assert "warned" in column(page, "#iterations", 4)[0]
    page.locator("#added th button:text-is('text')").dblclick()
    assert (texts := column(page, "#added", 3)) == sorted(texts)
    page = open_page(tmp_path / page_of(11))
    page.click(".tabs a[href='#record']")
    page.locator("#metrics th button").nth(1).click()
    values = [float(text) if text != "–" else None for text in column(page, "#metrics", 2)]
    known = [value for value in values if value is not None]
    assert values == [*sorted(known, reverse=True), *[None] * (len(values) - len(known))]
    page = open_page(tmp_path / OVERVIEW_PAGE)
    page.locator("th button:text-is('iterations')").dblclick()
    assert column(page, "section:first-of-type table", 3) == ["2 of 2", "11 of 11"]


def test_the_dots_of_a_chart_are_reached_by_the_keyboard(campaign, open_page):
    for name in (CAMPAIGN_PAGE, OVERVIEW_PAGE):
        page = open_page(campaign[2] / name)
        charts = page.locator("svg:has(.series)")
        assert page.locator("circle[tabindex='0']").count() == charts.count()  # one stop of the Tab key each
        chart, note = charts.first, page.locator(".dot-note")
        lines = chart.locator(".series")
        titles = [lines.nth(n).locator("circle title").all_text_contents() for n in range(lines.count())]
        chart.locator("circle[tabindex='0']").focus()
        assert note.inner_text() == titles[0][-1]
        for key, expected in (
            ("ArrowLeft", titles[0][-2]),
            ("ArrowRight", titles[0][-1]),
            ("ArrowRight", titles[0][-1]),  # there is no further one
            ("Home", titles[0][0]),
            ("ArrowDown", titles[1][0]),
            ("End", titles[1][-1]),
            ("ArrowUp", titles[0][-1]),
        ):
            page.keyboard.press(key)
            assert note.inner_text() == expected, key
            assert page.locator(":focus title").text_content() == expected
        for key in ("Control+ArrowLeft", "Meta+Home", "Alt+ArrowUp"):  # the browser's own
            page.keyboard.press(key)
            assert note.inner_text() == titles[0][-1], key
        for width in (390, 800, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.keyboard.press("Home")
            page.keyboard.press("End")
            box = note.bounding_box() or pytest.fail("no box")
            assert 0 <= box["x"] <= width - box["width"]
        page.keyboard.press("Tab")
        assert page.locator("circle:focus").count() == (charts.count() > 1)
        page.locator(":focus").blur()
        assert note.count() == 0
        lines.first.locator("circle").first.click(force=True)  # it was visited
        assert page.locator("circle:focus").count() == 0


def test_the_overview_needs_nothing_of_newer_browsers(campaign, open_page):
    page = open_page(campaign[2] / OVERVIEW_PAGE)
    page.add_init_script("delete window.DecompressionStream")
    page.reload()
    page.wait_for_selector("body[data-ready=yes]", state="attached")
    assert page.evaluate("typeof DecompressionStream") == "undefined"
    assert (page.locator(".alarm").count(), page.locator("th").count()) == (0, page.locator("th > button").count())


def test_a_skill_stands_beside_its_placebo_where_some_skill_has_one(campaign, tmp_path, open_page):
    page = open_page(campaign[2] / CAMPAIGN_PAGE)
    headings = page.locator("#effects th").all_inner_texts()
    assert "placebo's delta" not in headings
    assert "placebo's delta" not in page.locator("section:has(#effects) p").inner_text()
    store, chain = make_campaign(tmp_path, 1, Shape(), placebo=0.25)
    write_pages(store, chain, [], tmp_path / "pages")
    page = open_page(tmp_path / "pages" / CAMPAIGN_PAGE)
    place = page.locator("#effects th").all_inner_texts().index("placebo's delta")
    effects = effects_of(store, chain)
    expected = [f"+{e.placebo_delta:.2f}" for e in effects if e.placebo_delta]
    assert page.locator(f"#effects td:nth-child({place + 1})").all_inner_texts() == expected
    assert len(expected) == len(effects)
    assert "placebo's delta" in page.locator("section:has(#effects) p").inner_text()


def test_the_skills_of_an_iteration_are_sorted_by_steps_and_delta_and_stay_so_when_searched(campaign, open_page):
    store, chain, folder = campaign
    scores, routes = (read_table(store, chain[-1].tables[name]).to_pylist() for name in ("scores", "routes"))
    deltas: dict[str, list[float]] = {}
    for score, route in zip(scores, routes, strict=True):
        if route["skill_id"]:
            pairs = zip(score["skill_log_probs"], score["old_log_probs"], strict=True)
            deltas.setdefault(route["skill_id"], []).append(sum(under - old for under, old in pairs))
    skills = read_table(store, chain[-1].tables["skills"]).to_pylist()
    means = {s["text"]: sum(of) / len(of) for s in skills if (of := deltas.get(s["skill_id"]))}
    page = open_page(folder / page_of(LAST))
    page.click(".tabs a[href='#skills']")
    page.wait_for_selector("#skill-count:has-text('10 of 10 skills')")
    page.locator("#skill-list th button:text-is('mean delta, nats')").click()
    texts = page.locator("#skill-list td.skill-text")
    expected = sorted(means, key=lambda text: -means[text])
    assert texts.all_inner_texts()[: len(expected)] == expected
    shown = page.locator("#skill-list td:nth-child(5)").all_inner_texts()
    numbers = [f"{'−' if means[text] < 0 else '+'}{abs(means[text]):.2f}" for text in expected]
    assert shown == [*numbers, *["–"] * (10 - len(expected))]
    page.select_option("#skill-kind", "step")
    page.wait_for_selector("#skill-count:has-text('4 of 10 skills')")
    kinds = {s["text"] for s in skills if s["kind"] == "step"}
    assert texts.all_inner_texts() == [text for text in expected if text in kinds]


def test_a_skill_was_born_where_the_whole_campaign_extracted_it_first(tmp_path, open_page):
    store, chain = make_campaign(tmp_path, 12, Shape(tasks=1, group_size=2, steps=2, tokens=4))
    write_pages(store, chain, [], tmp_path / "pages")
    page = open_page(tmp_path / "pages" / CAMPAIGN_PAGE)
    texts = page.locator("#effects td.skill-text").all_inner_texts()
    born, used = (page.locator(f"#effects td:nth-last-child({place})").all_inner_texts() for place in (2, 1))
    first: dict[str, int] = {}
    for manifest in chain[1:]:
        for text in read_table(store, manifest.tables["skills"], ["text"])["text"].to_pylist():
            first.setdefault(text, manifest.iteration)
    assert [int(value) for value in born] == [first[text] for text in texts]
    assert set(map(int, used)) <= set(range(3, 13))  # the newest ten are looked at


def test_a_followed_page_shows_the_next_commit_and_keeps_what_is_searched_and_sorted(tmp_path, open_page):
    store, chain = make_campaign(tmp_path, 2, Shape())
    write_pages(store, chain[:2], [], tmp_path / "pages", reload_s=3)
    page = open_page(tmp_path / "pages" / CAMPAIGN_PAGE)
    assert page.locator(".card b").first.inner_text() == "1"
    page.fill("#effect-text", "o")  # while the field is in use the page stays
    page.select_option("#effect-kind", "step")
    write_pages(store, chain, [], tmp_path / "pages")
    page.locator("#effects th button:text-is('steps')").dblclick()  # down, then up
    page.wait_for_selector(".card b:text-is('2')")
    page.wait_for_selector("body[data-ready=yes]", state="attached")
    assert (page.input_value("#effect-kind"), page.input_value("#effect-text")) == ("step", "o")
    assert page.locator("#effects th[aria-sort=ascending]").inner_text().startswith("steps")
    assert set(page.locator("#effects tbody .badge").all_inner_texts()) == {"step"}
    assert page.locator("#followed").count() == 0


def test_of_long_tables_25_rows_are_shown_until_all_are_asked_for_and_printed_are_all(tmp_path, open_page):
    store, chain = make_campaign(tmp_path, 29, Shape(tasks=3, group_size=2, steps=2, tokens=4))
    write_pages(store, chain, [], tmp_path / "pages")
    page = open_page(tmp_path / "pages" / CAMPAIGN_PAGE)
    rows, button = page.locator("#iterations tbody tr:visible"), page.locator("#iterations .more")
    assert (rows.count(), button.inner_text()) == (25, "Show all 30 rows")
    page.emulate_media(media="print")
    assert rows.count() == 30
    page.emulate_media(media="screen")
    button.click()
    page.reload()
    assert rows.count() == 30
    effects, more = page.locator("#effects tbody tr:visible"), page.locator("#effects .more")
    assert effects.count() == 25
    page.fill("#effect-text", page.locator("#effects td.skill-text").first.inner_text())
    assert (effects.count(), more.is_hidden()) == (1, True)
    assert page.locator("#added .more").is_hidden()


def test_campaigns_lead_to_their_pages(tmp_path, open_page):
    for name in ("one", "<b>two"):
        store, chain = make_campaign(tmp_path, 1, Shape(), name=name)
        write_pages(store, chain, [], tmp_path / name / "audit")
    page = open_page(write_overview(str(tmp_path), None, [], None))
    assert page.locator("td a").all_inner_texts() == ["<b>two", "one"]
    page.click("td a:text-is('<b>two')")
    page.wait_for_selector("body[data-ready=yes]", state="attached")
    assert page.locator("h1").inner_text() == "<b>two"


def test_no_printed_page_is_wider_than_its_paper(tmp_path, open_page):
    for name in ("audited", "alfworld-a-method-with-a-long-name-seed12"):
        store, chain = make_campaign(tmp_path, 12, Shape(), name=name, placebo=0.25, degraded=3)
        write_pages(store, chain, [12], tmp_path / name)
    write_overview(str(tmp_path), None, [], tmp_path)
    last = tmp_path / "audited" / page_of(12)
    paths = [tmp_path / "audited" / CAMPAIGN_PAGE, tmp_path / OVERVIEW_PAGE, last]
    for path, views in zip(paths, ([""], [""], ["#trajectories", "#skills", "#skill=1", "#record"]), strict=True):
        page = open_page(path)
        page.set_viewport_size({"width": 720, "height": 1000})
        page.emulate_media(media="print")
        for view in views:
            page.goto(path.as_uri() + view)
            page.wait_for_selector(f"body[data-shown='{view[1:]}']" if view else "body", state="attached")
            assert page.evaluate("document.documentElement.scrollWidth") <= 720, (path.name, view)


@pytest.mark.parametrize("width", [380, 800, 1280])
def test_no_page_is_wider_than_its_window_a_chart_is_seen_whole_and_its_numbers_can_be_read(campaign, open_page, width):
    for name in (page_of(LAST), CAMPAIGN_PAGE, OVERVIEW_PAGE):
        page = open_page(campaign[2] / name)
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if name == page_of(LAST):
            continue  # it has no chart
        chart = page.locator("svg.chart").first
        numbers = chart.locator("text")
        boxes = [numbers.nth(n).bounding_box() or pytest.fail("no box") for n in range(numbers.count())]
        frame = chart.bounding_box() or pytest.fail("no box")
        assert len(boxes) >= 8
        for box in boxes:
            assert box["height"] >= 9
            assert 0 <= frame["x"] <= box["x"] <= frame["x"] + frame["width"] - box["width"] <= width - box["width"]
            assert frame["y"] - 1 <= box["y"] <= frame["y"] + frame["height"] + 1 - box["height"]


def test_the_filters_leave_what_they_say(campaign, open_page):
    store, chain, folder = campaign
    rows = read_table(store, chain[-1].tables["trajectories"]).to_pylist()
    page = open_page(folder / page_of(LAST))
    assert page.locator("#count").inner_text() == "6 of 6 trajectories"
    outcome = rows[0]["outcome"]
    page.select_option("#outcome", outcome)
    count = sum(row["outcome"] == outcome for row in rows)
    page.wait_for_selector(f"#count:has-text('{count} of 6')")
    page.select_option("#outcome", "")
    page.select_option("#task", "type:pick")  # the first of two tasks
    page.wait_for_selector("#count:has-text('3 of 6')")
    page.select_option("#route", "step")  # the third of each group has no skills
    page.wait_for_selector("#count:has-text('2 of 6')")
    page.select_option("#task", "")
    page.wait_for_selector("#count:has-text('4 of 6')")
    page.select_option("#route", "")
    step = read_table(store, chain[-1].tables["steps"]).to_pylist()[-1]
    page.fill("#text", step["observation"].upper())
    page.wait_for_selector("#count:has-text('1 of 6')")
    assert page.locator("#list a").get_attribute("href") == "#trajectory=5"
    page.click("#list a")
    page.wait_for_selector("body[data-shown='trajectory=5']")
    stand_back = page.locator(".step-card").evaluate_all("cards => cards.map(card => card.classList.contains('dim'))")
    assert stand_back == [True, True, False]  # the steps without the text


def test_a_skill_leads_to_its_tokens_and_back(campaign, open_page):
    store, chain, folder = campaign
    table = {name: read_table(store, record).to_pylist() for name, record in chain[-1].tables.items()}
    skill = table["skills"][1]
    assert (skill["kind"], skill["step"]) == ("step", 1)
    page = open_page(folder / page_of(LAST))
    page.wait_for_selector("body[data-shown='trajectory=0']")
    page.click(".step-card[data-step='1'] a.skill-link")
    page.wait_for_selector("body[data-shown='skill=1']")
    assert page.locator(".skill-title").inner_text() == skill["text"]
    assert page.locator("#view-skill .step-card").count() == 1
    step, scores = table["steps"][1], table["scores"][1]
    spans = page.locator("#view-skill .response span")
    assert spans.count() == len(step["response_ids"])
    assert "".join(spans.evaluate_all("all => all.map(span => span.textContent)")) == step["response_text"]
    for place, (under, old) in enumerate(zip(scores["skill_log_probs"], scores["old_log_probs"], strict=True)):
        note, colour = spans.nth(place).evaluate("span => [span.title, span.style.backgroundColor]")
        shown = f"{'−' if under < old else '+'}{abs(under - old):.4f}"
        assert f"delta {shown} = " in note
        assert colour.startswith("rgba(224, 112, 26" if under < old else "rgba(29, 111, 209"), note
    assert page.locator("#view-skill .response span").last.evaluate("span => span.dataset.name") == "<|end|>"
    page.click("#view-skill details:has-text('all') summary >> nth=-1")
    page.wait_for_selector("#view-skill details tbody tr")  # the table is made by the event that opening sends later
    assert page.locator("#view-skill details tbody tr").count() == len(step["response_ids"])
    page.click("#back")
    page.wait_for_selector("body[data-shown='trajectory=0']")
    page.click(".tabs a[href='#skills']")
    page.wait_for_selector("#skill-count:has-text('10 of 10 skills')")
    page.select_option("#skill-kind", "failed")
    page.wait_for_selector("#skill-count:has-text('2 of 10 skills')")
    assert page.locator("#skill-list td.skill-text").first.inner_text().endswith("the reply holds no JSON object")


def test_without_a_tokenizer_the_page_says_so_and_shows_ids(tmp_path, open_page):
    store, chain = make_campaign(tmp_path, 1, Shape(), tokenizer=False)
    write_pages(store, chain, [1], tmp_path / "pages")
    step = read_table(store, chain[-1].tables["steps"]).to_pylist()[1]
    page = open_page(tmp_path / "pages" / page_of(1))
    assert "holds no tokenizer.json" in page.locator("#trouble").inner_text()
    card = page.locator(".step-card[data-step='1']")
    assert card.locator(".response").inner_text() == step["response_text"]
    assert card.locator(".ids span").all_inner_texts() == [str(token_id) for token_id in step["response_ids"]]


def test_hostile_texts_are_shown_as_they_are_and_run_nothing(tmp_path, open_page):
    strings = [text for text in hostile_strings(400, seed=1) if text and not re.search("[\ud800-\udfff]", text)]
    store, chain = make_campaign(tmp_path, 1, Shape(tasks=4, group_size=4, steps=5), special=strings)
    write_pages(store, chain, [1], tmp_path / "pages")
    skills, steps = (read_table(store, chain[-1].tables[name]).to_pylist() for name in ("skills", "steps"))
    page = open_page(tmp_path / "pages" / page_of(1))
    texts = "all => all.map(element => element.textContent)"
    for number in range(16):
        page.goto(f"{page.url.split('#')[0]}#trajectory={number}")
        page.wait_for_selector(f"body[data-shown='trajectory={number}']")
        own = [step for step in steps if step["trajectory_id"].endswith(f"{number // 4:04d}-{number % 4:02d}")]
        assert len(own) == 5
        assert page.locator("#trajectory .response").evaluate_all(texts) == [step["response_text"] for step in own]
        fields = page.locator("#trajectory .fields > dd:nth-of-type(-n+2) > .free").evaluate_all(texts)
        assert fields == [text for step in own for text in (step["observation"], step["action"])]
    page.goto(f"{page.url.split('#')[0]}#skills")
    page.wait_for_selector("body[data-shown=skills]")
    shown = page.locator("#skill-list .skill-text").evaluate_all(texts)
    assert shown == [skill["text"] or f"failed: {skill['error']}" for skill in skills]
    page = open_page(tmp_path / "pages" / CAMPAIGN_PAGE)
    added = page.locator("#added .skill-text").evaluate_all(texts)
    assert sorted(added) == sorted({skill["text"] for skill in skills if skill["text"]})
