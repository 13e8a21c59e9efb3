"""What the benchmark of the data path finds, at toy size."""

from __future__ import annotations

import multiprocessing

from benchmarks.data_path import Counters, iterate


def reads() -> tuple[int, int]:
    counters = Counters()
    found = iterate(2, prompt_tokens=64, response_tokens=16, counters=counters, iterations=2)
    return found["samples"], found["tables"]


def test_an_undisturbed_iteration_reads_no_table_back_nor_do_its_trackers():
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # what is opened is heard to the end of a process
        samples, tables = pool.apply(reads)
    assert samples > 0
    assert tables == 0
