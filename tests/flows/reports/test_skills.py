from __future__ import annotations

from typing import Any

from markdown_it import MarkdownIt

from flows.reports.skills import effect_lines, effects_of, first_extracted
from infra.store import open_campaign
from opid_core.skills.effects import SkillEffect, effect_rows
from tests.factories import CONFIG, START_ROWS, commit_rows, named_rows


def make_effect(kind: str, text: str, **numbers: Any) -> SkillEffect:
    return SkillEffect(
        kind,
        text,
        **{
            **{"delta_per_token": 0.0, "placebo_delta": None, "raised_won": 0, "other_won": 0, "first": 1, "last": 1},
            **numbers,
        },
    )


def test_the_skills_that_did_most_with_their_part():
    effects = [
        make_effect("step", "Do now: a|b", steps=4, raised=3, delta=0.5, delta_per_token=0.0625, advantage=6.0),
        make_effect("episode", "Plan: c", steps=2, raised=1, delta=-1.25, delta_per_token=-0.5, advantage=2.0),
        *(make_effect("step", str(n), steps=1, raised=0, delta=0.0, advantage=0.0) for n in range(3)),
    ]
    sentence, _, _, _, first, second, third = effect_lines(effects)
    assert sentence.startswith(
        "5 different skills in the newest iterations (at most 10); of what they gave episode skills 25.0%, "
        "step skills 75.0%."
    )
    assert first == "| `step` | `Do now: a/b` | 4 | 75% | +0.50 | +0.062 | 75.0% |"
    assert second == "| `episode` | `Plan: c` | 2 | 50% | -1.25 | -0.500 | 25.0% |"
    assert third == "| `step` | `0` | 1 | 0% | +0.00 | +0.000 | 0.0% |"
    nothing = "3 different skills in the newest iterations (at most 10); they gave nothing. "
    assert effect_lines(effects[2:])[0].startswith(nothing)
    assert effect_lines(effects[:1])[0].startswith("1 different skill in ")
    (long,) = effect_lines([make_effect("episode", "word " * 200, steps=1, raised=1, delta=0.0, advantage=1.0)])[4:]
    assert long.startswith("| `episode` | `word word ")
    assert "word ...` | 1 |" in long
    assert len(long) < 250
    assert effect_lines([]) == ["No step was scored under a skill."]


def test_a_text_of_an_analyzer_is_neither_markup_nor_another_cell():
    text = "![x](https://evil/b.png) <img src=//evil> `[log in](https://evil)` \\| more"
    lines = effect_lines([make_effect("step", text, steps=1, raised=1, delta=0.0, advantage=1.0)])
    page = MarkdownIt("commonmark").enable("table").render("\n".join(lines))
    assert "<img" not in page
    assert "<a" not in page
    assert page.count("<td>") == 7
    assert (
        "<td><code>![x](https://evil/b.png) &lt;img src=//evil&gt; [log in](https://evil) \\/ more</code></td>" in page
    )


def test_effects_are_read_from_a_campaigns_commits(tmp_path):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    chain = [commit_rows(store, tmp_path, None, START_ROWS)]
    chain.append(commit_rows(store, tmp_path, chain[0], named_rows()))
    first, second = effects_of(store, chain)
    # 0.25 a token: two of the step skill, one of the episode skill of the same trajectory
    assert first.delta_per_token == second.delta_per_token == 0.25
    assert (first.kind, first.steps, first.delta, first.advantage) == ("step", 1, 0.5, 0.5)
    assert (second.kind, second.steps, second.delta, second.advantage) == ("episode", 1, 0.25, 0.25)


def test_a_skill_is_known_from_the_first_iteration_that_extracted_its_text(tmp_path):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    chain = [commit_rows(store, tmp_path, None, START_ROWS)]
    texts = [("old", "old"), ("old", "new"), ("newer", "old")]  # of the episode skill, and of the step skill
    for of_iteration in texts:
        rows = named_rows()
        for row, text in zip(rows["skills"], of_iteration, strict=False):
            row["text"] = text
        chain.append(commit_rows(store, tmp_path, chain[-1], rows))
    expected = {("episode", "old"): 1, ("step", "old"): 1, ("step", "new"): 2, ("episode", "newer"): 3}
    assert first_extracted(store, chain) == expected
    assert first_extracted(store, chain[2:], first_extracted(store, chain[:2])) == expected


def test_rows_to_sort_have_shares():
    first, second = effect_rows(
        [
            make_effect("step", "a", steps=4, raised=3, raised_won=1, delta=0.5, advantage=6.0, first=2, last=7),
            make_effect("episode", "b", steps=2, raised=2, delta=1.5, placebo_delta=0.25, advantage=2.0),
        ]
    )
    assert first == {
        **{
            "kind": "step",
            "text": "a",
            "steps": 4,
            "raised": 0.75,
            "delta": 0.5,
            "delta_per_token": 0.0,
            "placebo_delta": None,
            "share": 0.75,
        },
        **{"won_if_raised": 1 / 3, "won_if_not": 0.0, "first": 2, "last": 7},
    }
    assert (second["won_if_not"], second["share"], second["placebo_delta"]) == (None, 0.25, 0.25)
