"""Index time, query latency and recall of the search engines: `python -m benchmarks.search_qa`.

Real data, in `search/` of the folder that `--data`, else `$OPID_SHARED_DATA`, names: `questions.jsonl` with
`wiki18_mini_corpus.jsonl.xz`, and of `panel/` the two-hop questions with `2wiki_corpus.jsonl.xz`. Every
index is built anew, in a temporary folder. All times are CPU time of the process, so that other
work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.search_qa.data import Question, read_corpus, read_questions
from envs.search_qa.engines import Corpus, Engine
from envs.search_qa.generator import GeneratorOptions, make_world
from envs.search_qa.retrieval import RetrievalOptions, generated_corpus, local_engine, stored_corpus
from envs.search_qa.text import normalize_answer
from opid_core.evaluation import wilson_interval

TOP_K = 3
REAL = {
    "wikipedia": ("wiki18_mini_corpus.jsonl.xz", "questions.jsonl"),
    "two hops": ("2wiki_corpus.jsonl.xz", "panel/2wikimultihop_qa.parquet"),
}
"""Corpus and questions of each row of real data."""
COLUMNS = ("corpus", "engine", "passages", "index s", "open s", "query ms mean", "p95", "recall@3", "title@3")
MEMORY = ("index MiB", "RSS MiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_qa", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("OPID_SHARED_DATA", "../shared/data"))
    parser.add_argument("--engines", nargs="+", choices=("bm25s", "dense"), default=["bm25s"])
    parser.add_argument("--row", nargs=2, metavar=("CORPUS", "ENGINE"), help="measure one row, in this process")
    given = parser.parse_args()
    if given.row:
        print(" | ".join(_row(Path(given.data), *given.row)))
        return
    columns = COLUMNS + MEMORY
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    rows = [(name, engine) for name in REAL for engine in given.engines] + [("generated", "bm25s")]
    for row in rows:  # a process each, so that the memory is the row's own
        command = [sys.executable, "-m", "benchmarks.search_qa", "--data", given.data, "--row", *row]
        measured = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {measured.stdout.strip()} |", flush=True)


def _row(data: Path, corpus_name: str, engine_name: str) -> list[str]:
    if corpus_name in REAL:
        file, asked = (data / "search" / name for name in REAL[corpus_name])
        corpus = stored_corpus(str(file))
        texts = [contents for _, contents in read_corpus(file)]
        questions = answerable(read_questions(asked), texts)
    else:
        options = GeneratorOptions(passages=100_000, train=2000)
        started_s = time.process_time()
        world = make_world(options)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable
        print(
            f"the world of 100,000 passages is made in {time.process_time() - started_s:.1f} s of CPU", file=sys.stderr
        )
        corpus, texts = generated_corpus(options), [contents for _, contents in world.passages]
        questions = [question for question in world.questions["train"] if question.data_source == "one_hop"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPID_CACHE"] = folder
        index_s, _ = _timed_open(engine_name, corpus)
        open_s, engine = _timed_open(engine_name, corpus)
        stored_mib = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
        latencies_ms, recall, titles = _search_all(engine, questions, titles_of(texts))
        memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"{corpus_name} ({len(questions):,} questions)",
        engine_name,
        f"{len(texts):,}",
        f"{index_s:.1f}",
        f"{open_s:.2f}",
        f"{latencies_ms.mean():.2f}",
        f"{np.quantile(latencies_ms, 0.95):.2f}",
        recall,
        titles,
        f"{stored_mib:.1f}",
        f"{memory_mib:.0f}",
    ]


def answerable(questions: Sequence[Question], texts: Sequence[str]) -> list[Question]:
    """The questions of which some golden answer, no plain yes or no, stands in some passage, as whole words after
    normalisation."""
    everything = "\n".join(f" {normalize_answer(text)} " for text in texts)
    return [q for q in questions if any(f" {golden} " in everything for golden in _goldens(q))]


def _goldens(question: Question) -> set[str]:
    return {normalize_answer(golden) for golden in question.golden_answers} - {"yes", "no"}


def titles_of(texts: Sequence[str]) -> set[str]:
    """The passages' titles of several words, normalised: one word alone may stand in a question by chance."""
    titles = (normalize_answer(text.split("\n")[0]) for text in texts)
    return {title for title in titles if " " in title}


def named(question: str, titles: set[str]) -> set[str]:
    """Those of the `titles` that stand in the question, as whole words."""
    words = normalize_answer(question).split()
    return {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 2, len(words) + 1)} & titles


def _timed_open(name: str, corpus: Corpus) -> tuple[float, Engine]:
    """CPU seconds to open the engine, imports included the first time, and the engine."""
    started_s = time.process_time()
    engine = local_engine(name, corpus, RetrievalOptions())
    return time.process_time() - started_s, engine


def _search_all(engine: Engine, questions: Sequence[Question], titles: set[str]) -> tuple[np.ndarray, str, str]:
    """CPU ms of each question asked as it is, one at a time; the share with a golden answer found; and of those that
    name a title of `titles` the share with a passage of such a title found."""
    latencies_ms, answered, of_title = [], [], []
    for question in questions:
        started_s = time.process_time()
        passages = engine.search([question.question], TOP_K)[0]
        latencies_ms.append((time.process_time() - started_s) * 1000)
        texts = [f" {normalize_answer(passage.contents)} " for passage in passages]
        answered.append(any(f" {golden} " in text for golden in _goldens(question) for text in texts))
        if sought := named(question.question, titles):
            of_title.append(bool(sought & titles_of([passage.contents for passage in passages])))
    return np.array(latencies_ms), _share(answered), _share(of_title)


def _share(hits: Sequence[bool]) -> str:
    """A share with its 95% interval and of how many it is."""
    if not hits:
        return "none"
    low, high = wilson_interval(sum(hits), len(hits))
    return f"{sum(hits) / len(hits):.3f} ({low:.3f} to {high:.3f}; n = {len(hits):,})"


if __name__ == "__main__":
    main()
