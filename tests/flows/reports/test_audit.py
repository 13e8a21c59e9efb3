"""The audit's pages and tables as data; `test_audit_browser.py` opens them in a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.reports.audit import iteration_numbers, summary
from flows.reports.audit.data import iteration_data, new_skills, score_rows
from flows.reports.audit.pages import CAMPAIGN_PAGE, content_hash, packed, page_of, visible, write_pages
from flows.reports.audit.tokens import ByteTokenizer, stored_tokenizer
from infra import stages
from infra.store import manifests, read_table
from opid_core import schema
from opid_core.errors import ConfigError
from tests.audited import TOKENIZER, Shape, make_campaign, unpacked
from tests.factories import valid_rows
from tests.hostile import hostile_strings

DOCS = Path(__file__).resolve().parents[3] / "docs" / "audit.md"


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer(TOKENIZER.read_bytes())


class Parts(HTMLParser):
    """The data, scripts and policy of a page, as a browser finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}
        self.scripts: list[str] = []
        self.policy = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"] or ""
        self._inside = attributes if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            return
        name = self._inside.get("id")
        if name is None:
            self.scripts.append(data)
        else:
            self.data[name] = unpacked(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = None


def tables(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {name: schema.from_rows(name, made) for name, made in rows.items()}


def test_ten_thousand_hostile_strings_come_back_exactly():
    strings = hostile_strings(10_000, seed=0)
    text = packed({"texts": strings})
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)  # nothing that could be markup
    # as UTF-16, as a browser has it: there two lone surrogates side by side are one character
    assert [as_utf16(string) for string in unpacked(text)["texts"]] == [as_utf16(string) for string in strings]
    assert packed({"texts": strings}) == text
    assert all(visible(string).isascii() and json.loads(visible(string)) == string for string in strings[:1000])


def test_hostile_texts_come_back_from_analyzer_reply_to_page(tmp_path):
    strings = [text for text in hostile_strings(10_000, seed=0) if text and not re.search("[\ud800-\udfff]", text)]
    assert len(strings) > 6000  # the others have lone surrogates, which no table can hold
    special = list(strings)
    store, _ = make_campaign(tmp_path, 1, Shape(tasks=40, group_size=8, steps=10), special=special)
    write_pages(store, manifests(store), [1], tmp_path / "pages")
    data = Parts((tmp_path / "pages" / page_of(1)).read_text(encoding="utf-8")).data
    assert set(strings) <= set(texts_in(data))
    steps = [step for name, chunk in data.items() if name.startswith("chunk") for step in chunk["steps"]]
    assert len(steps) == 3200
    for step in steps:
        if step["lengths"] is None:  # these made-up ids are not its tokens: the tokenizer composes characters
            assert unicodedata.normalize("NFC", step["response"]) != step["response"]
        else:
            assert sum(step["lengths"]) == len(step["response"])
    added = Parts((tmp_path / "pages" / CAMPAIGN_PAGE).read_text(encoding="utf-8")).data["campaign"]["added"]
    assert {row["text"] for row in added} == {skill["text"] for skill in data["index"]["skills"]} - {""}


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


def as_utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def test_a_page_runs_its_own_script_only_and_fetches_nothing(tmp_path):
    hostile = [text for text in hostile_strings(200, seed=2) if not re.search("[\ud800-\udfff]", text)]
    store, chain = make_campaign(tmp_path, 1, Shape(), special=hostile, degraded=1)
    write_pages(store, chain, [1], tmp_path / "pages")
    for name in (CAMPAIGN_PAGE, page_of(1)):
        page = (tmp_path / "pages" / name).read_text(encoding="utf-8")
        parts = Parts(page)
        (script,) = parts.scripts
        assert f"script-src {content_hash(script)};" in parts.policy
        assert parts.policy.startswith("default-src 'none'; ")
        assert "unsafe" not in parts.policy
        style = page.split("<style>")[1].split("</style>")[0]
        assert f"style-src {content_hash(style)};" in parts.policy
        addresses = [
            value for _, attributes in parts.tags for key, value in attributes.items() if key in ("src", "href")
        ]
        assert all(re.fullmatch(r"#\w+|index\.html|iteration-\d{6}\.html", address or "") for address in addresses)
        assert not [
            name for _, attributes in parts.tags for name in attributes if name.startswith("on") or name == "style"
        ]
        assert "innerHTML" not in script
        assert "eval" not in script.replace("evaluation", "")


def test_an_iterations_data_is_its_tables(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape())
    write_pages(store, chain, [1], tmp_path / "pages")
    data = Parts((tmp_path / "pages" / page_of(1)).read_text(encoding="utf-8")).data
    made = {name: read_table(store, record).to_pylist() for name, record in chain[1].tables.items()}
    index, chunks = data["index"], [data[f"chunk-{number}"] for number in range(6)]
    assert [t["id"] for t in index["trajectories"]] == [t["trajectory_id"] for t in made["trajectories"]]
    assert [(s["id"], s["text"], s["kind"]) for s in index["skills"]] == [
        (s["skill_id"], s["text"], s["kind"]) for s in made["skills"]
    ]
    shown = [step for chunk in chunks for step in chunk["steps"]]
    assert len(shown) == len(made["steps"]) == 18
    for step, row, route, scores in zip(shown, made["steps"], made["routes"], made["scores"], strict=True):
        assert (step["observation"], step["action"]) == (row["observation"], row["action"])
        assert (step["response"], step["ids"]) == (row["response_text"], row["response_ids"])
        assert sum(step["lengths"]) == len(row["response_text"])
        assert step["route"] == route["route"]
        assert [index["skills"][number]["id"] for number in step["skills"]] == [s for s in [route["skill_id"]] if s]
        assert np.allclose(np.array(step["old"]) / index["old_steps"], scores["old_log_probs"], atol=5.1e-4)
        if scores["skill_log_probs"] is not None:
            delta = np.array(scores["skill_log_probs"]) - np.array(scores["old_log_probs"])
            assert np.allclose(np.array(step["deltas"][0]) / index["delta_steps"], delta, atol=5.1e-5)
            assert step["skill_advantage"] == 0.01  # lambda
    scored = [(skill["id"], at) for skill in index["skills"] for _, at in skill["scored"]]
    assert sorted(scored) == sorted((r["skill_id"], r["step"]) for r in made["routes"] if r["skill_id"])
    assert chunks[0]["replies"][index["skills"][0]["reply"]] == made["skills"][0]["raw_reply"]


def test_a_step_scored_under_two_skills_shows_both_deltas():
    rows = valid_rows()
    rows["routes"][0]["added_skill_id"] = "a/episode"
    rows["scores"][0] |= {"added_log_probs": [-0.375, -0.5], "skill_advantages": [0.5, 0.25], "step_advantage": 0.125}
    before = {row["text"] for row in rows["skills"]}
    data = iteration_data("demo", 2, tables(rows), before, "there is none")
    first = data.chunks[0]["steps"][0]
    assert (first["skills"], first["deltas"]) == ([1, 0], [[2500, 2500], [1250, 0]])
    assert (first["outcome_advantage"], first["step_advantage"], first["skill_advantage"]) == (1.0, 0.125, [0.5, 0.25])
    assert data.index["skills"][0]["scored"] == [[0, 0], [0, 1]]
    assert not any(skill["new"] for skill in data.index["skills"])
    assert data.index["no_tokenizer"] == "there is none"
    assert data.chunks[1]["steps"][0]["deltas"] == []


def test_score_rows_hold_what_the_table_holds():
    found = score_rows(schema.from_rows("scores", valid_rows()["scores"]))
    assert found["a", 0].deltas[0].tolist() == [0.25, 0.25]
    assert found["b", 0].deltas == []
    assert found["b", 0].old_log_probs.tolist() == [-0.5, -0.5, -0.5]


def test_new_skills_are_texts_that_the_iteration_before_had_not():
    rows = valid_rows()["skills"]
    rows[0]["text"], rows[1]["text"] = "Take the mug first.", "Open the drawer."
    table = schema.from_rows("skills", [*rows, {**rows[1], "skill_id": "b/0"}])
    assert new_skills(table, {"Take the mug first."}) == [{"kind": "step", "text": "Open the drawer.", "count": 2}]
    assert [skill["kind"] for skill in new_skills(table, set())] == ["episode", "step"]


@pytest.mark.parametrize("text", ["go to cabinet 3", "日本語 — naïve 😀\n\tend", "", "\x00\ufffd\u202e<|end|>"])
def test_the_texts_of_tokens_join_to_the_response(tokenizer, text):
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(TOKENIZER))
    encoder.encode_special_tokens = True
    ids = encoder.encode(text, add_special_tokens=False).ids
    lengths = tokenizer.lengths([*ids, 0], text)  # 0: <|end|>, which responses leave out
    assert lengths is not None
    assert len(lengths) == len(ids) + 1
    assert sum(lengths) == len(text)
    assert lengths[-1] == 0
    assert tokenizer.name_of(0) == "<|end|>"
    assert tokenizer.lengths(ids, text + "x") is None


def test_a_character_of_several_tokens_counts_for_the_last(tokenizer):
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(TOKENIZER)).encode("日", add_special_tokens=False).ids
    assert len(ids) == 3
    assert tokenizer.lengths(ids, "日") == [0, 0, 1]
    assert tokenizer.lengths(ids[:2], "\ufffd") == [0, 1]  # cut in its middle, as a decoder shows it


def test_what_tokens_of_any_bytes_decode_to_is_split_exactly(tokenizer):
    from tokenizers import Tokenizer

    decoder, generator = Tokenizer.from_file(str(TOKENIZER)), np.random.default_rng(0)
    for _ in range(300):
        ids = generator.integers(0, decoder.get_vocab_size(), 20).tolist()
        text = decoder.decode(ids, skip_special_tokens=True)
        lengths = tokenizer.lengths(ids, text)
        assert lengths is not None, ids
        assert sum(lengths) == len(text)


def test_a_tokenizer_that_cannot_split_is_named(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape(), tokenizer=False)
    assert stored_tokenizer(store, chain[1]) == f"the policy folder {chain[1].policy.uri} holds no tokenizer.json"


def test_pages_are_written_where_and_for_what_was_asked(run, tmp_path):
    store, _ = make_campaign(tmp_path, 3, Shape())
    printed = run(store, ["audited"], [], None, "html")
    folder = tmp_path / "audited" / "audit"
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "iteration-000003.html"]
    assert printed.endswith(f"Open {folder}/index.html in a browser.\n")
    run(store, ["audited@1"], [], tmp_path / "other", "html")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["index.html", "iteration-000001.html"]
    assert linked(tmp_path / "other" / "index.html") == ["iteration-000001.html"]
    run(store, ["audited"], ["all"], None, "html")
    assert linked(folder / "index.html") == [page_of(3), page_of(2), page_of(1)]


def test_an_attempt_that_was_given_up_is_on_both_pages_with_its_reason(run, tmp_path):
    store, _ = make_campaign(tmp_path, 1, Shape())
    stages.give_up(store, 1, 0, "GateError: <b>skills</b>")
    run(store, ["audited"], [], None, "html")
    for name in ("index.html", "iteration-000001.html"):
        page = (tmp_path / "audited" / "audit" / name).read_text(encoding="utf-8")
        assert "Iteration 1, attempt 1 given up at " in page
        assert "<pre>GateError: &lt;b&gt;skills&lt;/b&gt;</pre>" in page


def linked(page: Path) -> list[str | None]:
    return [a["href"] for tag, a in Parts(page.read_text(encoding="utf-8")).tags if tag == "a"]


@pytest.fixture
def run(opid):
    """What `opid audit` prints."""

    def run(store, campaigns: list[str], iterations: list[str], out: Path | None, kind: str) -> str:
        chosen = [argument for iteration in iterations for argument in ("--iteration", iteration)]
        folder = [] if out is None else ["--out", out]
        return opid("audit", *campaigns, "--root", store.root, *chosen, *folder, "--format", kind)

    return run


def test_a_campaign_of_its_start_alone_has_a_page(run, tmp_path):
    store, _ = make_campaign(tmp_path, 0, Shape())
    run(store, ["audited"], [], None, "html")
    assert linked(tmp_path / "audited" / "audit" / "index.html") == []
    with pytest.raises(ConfigError, match="no iteration of 'audited' is committed yet"):
        run(store, ["audited"], [], None, "csv")


def test_bad_arguments_are_named(run, tmp_path):
    store, _ = make_campaign(tmp_path, 2, Shape())
    assert iteration_numbers(["all", "1"], 3) == [1, 2, 3]
    assert iteration_numbers(["last", "1"], 3) == [1, 3]
    for campaigns, iterations, out, kind, message in [
        (["audited"], ["0"], None, "html", r"--iteration: '0': must be all, last or a committed iteration \(1 to 2\)"),
        (["audited"], [], None, "xml", "--format: 'xml': must be one of html, json, csv, parquet"),
        (["audited@1"], ["1"], None, "html", "audited@1 names its iteration already"),
        (["audited", "audited@1"], ["1"], None, "html", "takes no --iteration"),
        (["a", "b", "c"], [], None, "html", "3 campaigns given"),
        (["audited"], [], tmp_path / "audited" / "config.json", "html", "is a file"),
        (["audited"], [], tmp_path / "audited" / "config.json" / "pages", "html", "cannot be made: Not a directory"),
        (["audited"], [], tmp_path / "audited" / "config.json" / "tables", "json", "cannot be made: Not a directory"),
        (["other"], [], None, "html", "no campaign 'other'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run(store, campaigns, iterations, out, kind)


def test_tables_of_all_formats_hold_the_same_joined_rows(run, tmp_path):
    store, chain = make_campaign(tmp_path, 2, Shape())
    for kind in ("parquet", "csv", "json"):
        assert len(run(store, ["audited"], ["all"], tmp_path / "tables", kind).splitlines()) == 3
    steps = pq.read_table(tmp_path / "tables" / "steps.parquet").to_pylist()
    assert len(steps) == 36
    from_json = json.loads((tmp_path / "tables" / "steps.json").read_text(encoding="utf-8"))
    assert from_json == steps
    scores, routes = (read_table(store, chain[2].tables[name]).to_pylist() for name in ("scores", "routes"))
    row, score = steps[18 + 1], scores[1]
    delta = np.array(score["skill_log_probs"]) - np.array(score["old_log_probs"])
    assert (row["iteration"], row["step"], row["route"], row["skill_id"]) == (2, 1, "step", routes[1]["skill_id"])
    assert row["delta_sum"] == pytest.approx(delta.sum())
    assert row["delta_mean"] == pytest.approx(delta.mean())
    assert row["advantage_mean"] == pytest.approx(0.5 + 0.01 * delta.mean())
    assert (steps[0]["route"], steps[0]["delta_sum"], steps[0]["skill_text"]) == ("none", None, None)
    skills = pq.read_table(tmp_path / "tables" / "skills.parquet").to_pylist()
    assert [skill["steps_scored"] for skill in skills[:5]] == [1, 1, 1, 1, 0]
    assert [skill["new"] for skill in skills[:5]] == [True, True, True, True, False]
    assert skills[1]["delta_mean"] == pytest.approx(
        next(s["delta_mean"] for s in steps if s["skill_id"] == skills[1]["skill_id"])
    )


def test_the_queries_of_the_page_about_the_audit_run(run, tmp_path, monkeypatch):
    import duckdb

    store, _ = make_campaign(tmp_path / "runs", 2, Shape(), name="quickstart")
    monkeypatch.chdir(tmp_path)
    for kind in ("parquet", "csv", "json"):
        run(store, ["quickstart"], ["all"], Path("tables"), kind)
    queries = re.findall(r"```sql\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(queries) >= 6
    for query in queries:
        found = duckdb.sql(query)
        assert found is not None, query
        assert found.fetchall(), query


def test_the_shell_example_of_the_page_about_the_audit_runs(tmp_path):
    make_campaign(tmp_path / "runs", 1, Shape(), name="quickstart")
    (command,) = re.findall(r"^python (-c \".*\")$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    made = subprocess.run(
        f"{sys.executable} {command}", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "success" in made.stdout


def test_the_campaign_page_charts_what_the_skills_signal_is_worth(tmp_path):
    store, chain = make_campaign(tmp_path, 2, Shape())
    rows = summary.commit_rows(store, chain)
    assert not any("order" in title for title, _, _ in summary.small_charts(rows))
    told = {"signal/step/order": 0.8, "signal/step/order_low": 0.7, "signal/step/order_high": 1.1}
    placebo = {"signal/step/placebo_order": 0.5, "signal/step/placebo_order_low": None}
    rows[2] = replace(rows[2], metrics={**rows[2].metrics, **told, **placebo})
    title, _, chart = summary.small_charts(rows)[0]
    assert title == "order by step skills (50%: none; grey: their placebo)"
    (point,), (below,) = (one.points for one in chart.series)
    assert (point.x, point.value, point.low, point.high) == (1, 0.8, 0.7, 1.0)
    assert (below.value, below.low, below.high) == (0.5, 0.5, 0.5)  # of one group alone there is no interval


def test_a_small_chart_of_few_texts_has_no_number_twice(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape())
    rows = summary.commit_rows(store, chain)
    for most, ticks in ((1, ["0", "0.5", "1"]), (5, ["0", "2.5", "5"]), (1500, ["0", "1,000", "2,000"])):
        (form, chart), *_ = [
            drawn[1:]
            for drawn in summary.small_charts([rows[0], replace(rows[1], new_texts=most)])
            if drawn[0] == "new skill texts"
        ]
        assert [form.format(tick) for tick in chart.y_ticks(2)] == ticks


def test_a_row_of_the_campaign_page_is_the_same_from_the_manifest_and_from_the_tables(tmp_path):
    store, chain = make_campaign(tmp_path, 2, Shape())
    tables = [
        manifest.model_copy(update={"metrics": {n: v for n, v in manifest.metrics.items() if n.startswith("routes/")}})
        for manifest in chain
    ]
    for row, read in zip(summary.commit_rows(store, chain), summary.commit_rows(store, tables), strict=True):
        assert replace(row, manifest=read.manifest, metrics={}) == replace(read, metrics={})
    first = summary.commit_rows(store, chain)[1]
    # Two tasks of three trajectories: the analysis of each one's last failed, the others cost 0.001 and gave two texts.
    assert (first.episodes, first.analyses, first.failed_analyses, first.new_texts) == (6, 6, 2, 8)
    assert first.analyzer_cost == pytest.approx(0.006)
    assert summary.commit_rows(store, chain)[2].new_texts == 8  # not among those of the iteration before
