from __future__ import annotations

import sys
import threading

from flows import prefect_api
from infra import processes


def test_what_ends_is_started_again_and_nothing_is_left(monkeypatch, tmp_path):
    failures, thrice = [], threading.Event()

    def wait_s(count: int) -> float:
        failures.append(count)
        return 0.0

    def start():
        lives = len(failures) == 3
        if lives:
            thrice.set()
        script = "import time; time.sleep(600)" if lives else ""
        started.append(processes.start([sys.executable, "-c", script], tmp_path / "log"))
        return started[-1]

    started, announced = [], []
    monkeypatch.setattr(prefect_api, "wait_before_start_s", wait_s)
    with prefect_api.kept_alive(start, announced.append) as first:
        assert thrice.wait(60)
    assert (first, failures, announced) == (started[0], [1, 2, 3], [0.0, 0.0, 0.0])
    assert len(started) == 4
    assert all(process.poll() is not None for process in started)


def test_the_waits_grow_to_a_minute():
    assert [prefect_api.wait_before_start_s(failures) for failures in (1, 2, 3, 6, 7, 2000)] == [1, 2, 4, 32, 60, 60]
