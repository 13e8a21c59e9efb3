"""Whatever a text of a task, a policy or a file's name holds, it does not steer the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.columns import Columns
from rich.table import Table
from rich.text import Text

import flows
from envs import alfworld
from flows.cli import main as cli
from flows.display import live_progress
from flows.reports.formatting import Terminal, say, show_markdown
from flows.reports.study_tables import TESTS
from opid_core.config import build_config
from tasks import progress
from tasks.markdown import markdown_table

HOSTILE = "[bold]x[/] :smile: \x1b[2J\x1b]0;title\x07\x9b31m\u202e"


def shown(text: str) -> str:
    """The text in every way in which the commands print one; on a terminal without colours, to which Rich itself sends
    no sequence but for progress."""
    output = io.StringIO()
    terminal = Terminal(file=output, width=400, force_terminal=True, color_system=None)
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(Text(text, "bold"))
    for renderable in (text, Text(text), table, Columns([text])):
        terminal.print(renderable)
    say(terminal, text, "red")
    show_markdown(terminal, f"# {text}\n\n```\n{text}\n```\n\n[{text}](http://example.org) `{text}`")
    return output.getvalue()


@given(st.text())
def test_no_text_holds_what_steers_a_terminal(text):
    assert all(character.isprintable() or character == "\n" for character in shown(text))


def test_a_text_is_shown_as_it_is_and_its_control_characters_as_escapes():
    printed = shown(HOSTILE)
    assert printed.count("[bold]x[/] :smile: \\x1b[2J\\x1b]0;title\\x9b31m\\u202e") >= 6
    assert "http://example.org" in printed


def test_a_code_block_of_a_page_is_printed_with_unbroken_lines():
    output = io.StringIO()
    command = f"opid audit quickstart --root /{'folder/' * 30}"
    show_markdown(Terminal(file=output, width=40), f"# Title\n\nText\n\n```\n{command}\n```\n")
    assert command in output.getvalue().splitlines()


def test_progress_shows_names_as_they_are():
    output = io.StringIO()
    config = build_config({"campaign": "x", "environment": {"name": "alfworld"}}).model_copy(
        update={"campaign": "[red]mine[/]"}
    )
    with live_progress(Terminal(file=output, width=200, force_terminal=True, color_system=None), config):
        progress.report(1, "rollout", 1, 2, "[b]note[/]\x9b31m")
    assert "[red]mine[/]" in output.getvalue()
    assert "[b]note[/]\\x9" in output.getvalue()
    assert "\x9b" not in output.getvalue()


def test_a_bug_shows_its_trace_and_ends_with_1(monkeypatch, capsys):
    def fail() -> None:
        raise RuntimeError(f"about {HOSTILE}")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().err
    assert ended.value.code == 1
    assert "RuntimeError: about [bold]x[/] :smile: \\x1b[2J" in printed
    assert "\x1b" not in printed


def test_nothing_is_printed_past_the_terminal():
    files = [*Path(flows.__file__).parent.rglob("*.py"), *Path(alfworld.__file__).parents[1].rglob("*.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert [name for name, text in texts.items() if " Console(" in text.replace("class Terminal(Console)", "")] == []


def test_a_table_that_is_too_wide_is_printed_in_parts_with_every_cell_whole():
    names = [f"method_{number:02}" for number in range(12)]
    rows = [[f"seconds/stage/{stage}_s", *(f"{n * 11.11:.2f}%" for n in range(12))] for stage in ("rescore", "update")]
    output = io.StringIO()
    show_markdown(Terminal(file=output, width=60), "\n".join(markdown_table(["", *names], rows)))
    lines = output.getvalue().splitlines()
    words = output.getvalue().split()
    assert max(map(len, lines)) <= 60
    assert [word for word in words if word.startswith("method")] == names
    assert [word for word in words if word.endswith("%")] == [
        cell for part in (slice(1, 4), slice(4, 7), slice(7, 10), slice(10, 13)) for row in rows for cell in row[part]
    ]
    assert words.count("seconds/stage/update_s") == 4


@pytest.mark.parametrize(
    "table", ["| a | b |\n|---|---|\n| 1 | 2 |", "| a |\n|---|\n| 1 | 2 |\n", "| a |\n|---|\n| 1 |\n"]
)
def test_a_table_that_fits_or_has_rows_of_unequal_length_stays_one(table):
    output = io.StringIO()
    show_markdown(Terminal(file=output, width=60), f"before\n\n{table}")
    assert output.getvalue().split()[:2] == ["before", "a"]
    assert output.getvalue().split().count("1") == 1


INTERVAL = "52.0% (46.4% to 57.6%)"
NAMES = ["quickstart-grpo", "quickstart-opid", "quickstart-lambda-0.1"]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (
            ["method", "temperature", "seeds", "tasks", "before", "success (micro)", "success (macro)"],
            [[name, "0.4", "3", "300", "37.3%", INTERVAL, INTERVAL] for name in NAMES],
        ),
        (
            ["method", "twin", "temperature", "shared seeds", "difference (95%)", *TESTS],
            [[name, NAMES[2], "0.4", "3", INTERVAL, "0.0018", "0.009", "7.7 points"] for name in NAMES],
        ),
        (
            ["task type (after 4 updates, temperature 0.4)", "episodes", "before", "success"],
            [["pick_clean_then_place_in_recep", "100", INTERVAL, INTERVAL]],
        ),
    ],
)
@pytest.mark.parametrize("width", [80, 60])
def test_no_name_in_a_table_is_cut(header, rows, width):
    output = io.StringIO()
    show_markdown(Terminal(file=output, width=width), "\n".join(markdown_table(header, rows)))
    lines, words = output.getvalue().splitlines(), output.getvalue().split()
    assert "…" not in output.getvalue()
    assert max(map(len, lines)) <= width
    for row in [header, *rows]:
        assert {word for cell in row for word in cell.split()} <= set(words)


def test_a_column_has_no_more_than_it_needs_and_what_is_left_goes_to_the_longest():
    output = io.StringIO()
    show_markdown(Terminal(file=output, width=30), "| a | b |\n|---|---|\n| long-name | one two three four |")
    # of 30 characters 4 are padding, 9 the name's; the other cell needs 18 and has 17
    assert [line.rstrip() for line in output.getvalue().splitlines() if "long" in line or "four" in line] == [
        " long-name  one two three",
        "            four",
    ]


def test_a_word_longer_than_the_line_goes_on_in_the_next():
    output = io.StringIO()
    show_markdown(Terminal(file=output, width=20), f"| a |\n|---|\n| {'x' * 30} |")
    assert "…" not in output.getvalue()
    assert output.getvalue().count("x") == 30
