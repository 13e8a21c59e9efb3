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

TOP_K = 3
REAL = {
    "wikipedia": ("wiki18_mini_corpus.jsonl.xz", "questions.jsonl"),
    "two hops": ("2wiki_corpus.jsonl.xz", "panel/2wikimultihop_qa.parquet"),
}
"""Corpus and questions of each row of real data."""
COLUMNS = ("corpus", "engine", "passages", "index s", "open s", "query ms mean", "p95", "recall@3", "RSS MiB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_qa", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("OPID_SHARED_DATA", "../shared/data"))
    parser.add_argument("--engines", nargs="+", choices=("bm25s", "dense"), default=["bm25s"])
    parser.add_argument("--row", nargs=2, metavar=("CORPUS", "ENGINE"), help="measure one row, in this process")
    given = parser.parse_args()
    if given.row:
        print(" | ".join(_row(Path(given.data), *given.row)))
        return
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
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
        latencies_ms, recall = _search_all(engine, questions)
        memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"{corpus_name} ({len(questions):,} questions)",
        engine_name,
        f"{len(texts):,}",
        f"{index_s:.1f}",
        f"{open_s:.2f}",
        f"{latencies_ms.mean():.2f}",
        f"{np.quantile(latencies_ms, 0.95):.2f}",
        f"{recall:.3f}",
        f"{memory_mib:.0f}",
    ]


def answerable(questions: Sequence[Question], texts: Sequence[str]) -> list[Question]:
    """The questions of which some golden answer stands in some passage, as whole words after normalisation."""
    everything = "\n".join(f" {normalize_answer(text)} " for text in texts)
    return [q for q in questions if any(f" {normalize_answer(golden)} " in everything for golden in q.golden_answers)]


def _timed_open(name: str, corpus: Corpus) -> tuple[float, Engine]:
    """CPU seconds to open the engine, imports included the first time, and the engine."""
    started_s = time.process_time()
    engine = local_engine(name, corpus, RetrievalOptions())
    return time.process_time() - started_s, engine


def _search_all(engine: Engine, questions: Sequence[Question]) -> tuple[np.ndarray, float]:
    """CPU ms of each question asked as it is, one at a time; and the share with a golden answer found."""
    latencies_ms, hits = [], 0
    for question in questions:
        started_s = time.process_time()
        found = engine.search([question.question], TOP_K)[0]
        latencies_ms.append((time.process_time() - started_s) * 1000)
        texts = [f" {normalize_answer(passage.contents)} " for passage in found]
        hits += any(f" {normalize_answer(golden)} " in text for golden in question.golden_answers for text in texts)
    return np.array(latencies_ms), hits / len(questions)


if __name__ == "__main__":
    main()
