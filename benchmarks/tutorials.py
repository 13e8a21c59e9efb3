"""`python -m benchmarks.tutorials PAGE ... --folder CLONE`: play tutorials as they are written.

CLONE is a fresh clone after `make install`. Files are made from the titled blocks of the documentation, then every line
of the pages' shell blocks runs in it, in order, in one shell a page. Blocks that need a GPU are left out, `opid serve`
is ended with Ctrl-C after `--serve-s`, and `opid play` gets the end of its input at once. Prints Markdown: a table of
commands with exit codes and seconds, and of each the end of its output.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.test_snippets import GPU, fences

REPOSITORY = Path(__file__).parents[1]
MARK = "@@played"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="PAGE", help="a page of docs/tutorials, without .md")
    parser.add_argument("--folder", type=Path, required=True, help="the fresh clone to play in")
    parser.add_argument("--serve-s", type=int, default=120, help="seconds until `opid serve` gets Ctrl-C")
    parser.add_argument("--skip", action="append", default=[], metavar="TEXT", help="leave out lines that hold TEXT")
    parser.add_argument("--lines", type=int, default=6, help="how many lines of each output to show")
    arguments = parser.parse_args()
    write_titled(arguments.folder)
    failed = 0
    for page in arguments.pages:
        lines = commands(REPOSITORY / "docs" / "tutorials" / f"{page}.md")
        played = play(
            [line for line in lines if not any(text in line for text in arguments.skip)],
            arguments.folder,
            arguments.serve_s,
        )
        failed += sum(code != 0 for _, code, _, _ in played)
        show(page, lines, played, arguments.lines)
    sys.exit(1 if failed else 0)


def write_titled(folder: Path) -> None:
    """Write every block whose fence has a title that is a file's name into `folder`."""
    for page in sorted((REPOSITORY / "docs").rglob("*.md")):
        for _, options, text in fences(page):
            if options != GPU and (title := re.fullmatch(r'title="([\w.]+)"', options)):
                (folder / title[1]).write_text(text, encoding="utf-8")


def commands(page: Path) -> list[str]:
    """The lines of the page's shell blocks, without those that need a GPU."""
    blocks = [text for language, options, text in fences(page) if language == "bash" and options != GPU]
    return [line.split("  #")[0].rstrip() for text in blocks for line in text.splitlines() if line.strip()]


def play(lines: list[str], folder: Path, serve_s: int) -> list[tuple[str, int, float, str]]:
    """Command, exit code, seconds and output of each line, run by one shell in `folder`."""
    script = ""
    for line in lines:
        run = f"timeout --preserve-status --signal INT {serve_s} {line}" if line.startswith("opid serve") else line
        script += f'{run} < /dev/null 2>&1\nprintf "\\n{MARK} %s %s\\n" $? $EPOCHREALTIME\n'
    environment = {
        **os.environ,
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    environment.pop("PYTHONPATH", None)
    started = subprocess.run(["bash", "-c", "echo $EPOCHREALTIME"], capture_output=True, text=True, check=True).stdout
    ran = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    *outputs, _ = re.split(rf"\n{MARK} (\d+) ([\d.]+)\n", ran.stdout)
    played, since_s = [], float(started)
    for line, output, code, until_s in zip(lines, outputs[::3], outputs[1::3], outputs[2::3], strict=True):
        played.append((line, int(code), float(until_s) - since_s, output))
        since_s = float(until_s)
    return played


def show(page: str, lines: list[str], played: list[tuple[str, int, float, str]], n_lines: int) -> None:
    """Print the page's part of the transcript."""
    print(f"## {page}\n\n| command | exit code | seconds |\n|---|---|---|")
    done = [line for line, *_ in played]
    for line, code, seconds, _ in played:
        print(f"| `{line}` | {code} | {seconds:.0f} |")
    for line in lines:
        if line not in done:
            print(f"| `{line}` | left out | |")
    print("\n```text")
    for line, _, _, output in played:
        print(f"$ {line}")
        written = [text.rstrip() for text in output.splitlines() if text.strip()]
        print("\n".join(["..."] * (len(written) > n_lines) + written[-n_lines:]))
    print("```\n", flush=True)


if __name__ == "__main__":
    main()
