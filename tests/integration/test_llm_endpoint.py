"""vLLM's own server with a tiny policy: it plays the panel that it was made for, and was never taught to analyse."""

from __future__ import annotations

import io
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from flows.evaluate import endpoint_settings, evaluate_endpoint
from infra import processes
from opid_core.config import AnalyzerConfig, LlmConfig, load_config
from opid_core.endpoint import check_endpoint
from opid_core.errors import ConfigError
from opid_core.skills.analyzers import llm
from tests.opid_core.skills.episodes import episode

# Our side of the endpoint is tested with a scripted server by `make test`.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONFIGS = Path(__file__).parents[2] / "configs"
POLICY = CONFIGS / "policies" / "alfworld_tiny"
MODEL_LENGTH = 4096
"""The policy has seen 512 positions; what it says at others does not matter here."""
MAX_TOKENS = 2400
"""Two texts of the schema's 1,000 characters, if each were a token, and room for their names."""
LIMIT_S = 500.0
SEEN = dict.fromkeys(range(2), "You see a desk 1.")
EPISODE = episode("x", ["look", "look"], "failure", SEEN, task_text="put a mug in the desk")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",  # as our engine: one small function, for seconds
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    """The address of a server that has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    options = {
        "--model": str(POLICY),
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": str(MODEL_LENGTH),
        "--hf-overrides": json.dumps({"max_position_embeddings": MODEL_LENGTH}),
        "--structured-outputs-config": json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
    }
    flags = ("--enforce-eager", "--no-enable-chunked-prefill")  # a seeded prompt cannot be prefilled in chunks on CPU
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    server = processes.start([*command, *(part for option in options.items() for part in option)], log, ENVIRONMENT)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        processes.kill(server)


def _wait_until_healthy(url: str, server, log: Path) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        try:
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert server.poll() is None and time.monotonic() < deadline_s, processes.last_lines(log)  # noqa: PT018
        time.sleep(0.2)


def config(endpoint: str, **changes) -> AnalyzerConfig:
    limits = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "timeout_s": LIMIT_S}
    llm_config = LlmConfig(base_url=endpoint, model="tiny", **limits, **changes)
    return AnalyzerConfig(backend="llm", max_step_skills=0, llm=llm_config)


def test_the_endpoint_is_checked_and_its_schema_makes_any_model_answer(endpoint):
    check_endpoint(config(endpoint).llm)
    with pytest.raises(ConfigError, match="does not know the model 'unknown'"):
        check_endpoint(config(endpoint).llm.model_copy(update={"model": "unknown"}))
    notes: list[str] = []
    (analysis,) = llm.analyze(EPISODE, config(endpoint, structured_output="on"), on_note=notes.append)
    assert notes == []
    assert (analysis.error, analysis.attempts) == (None, 1)
    reply = json.loads(analysis.raw_reply or "")
    assert list(reply) == ["episode_summary", "episode_skill", "step_skills"]
    assert 0 < len(reply["episode_skill"]) <= 1000
    assert reply["step_skills"] == {}
    assert (analysis.prompt_tokens or 0) > 100
    assert 0 < (analysis.completion_tokens or 0) <= MAX_TOKENS
    # without the schema this policy says what it was taught to say, and is asked twice
    (plain,) = llm.analyze(EPISODE, config(endpoint, structured_output="off"))
    assert plain.failed
    assert plain.attempts == 2
    assert "<action>" in (plain.raw_reply or "")


def test_the_panel_is_played_through_the_server(endpoint):
    overrides = ["evaluation.tasks=2", "evaluation.temperatures=[0.4]", "environment.max_steps=3"]
    config = load_config(CONFIGS / "quickstart.yaml", [*overrides, f"analyzer.llm.timeout_s={LIMIT_S}"])
    settings = endpoint_settings(config, endpoint, "tiny", "OPENAI_API_KEY")
    output = io.StringIO()
    table, answered = evaluate_endpoint(config, settings, Console(file=output, width=200))
    rows = table.to_pylist()
    turns = sum(row["steps"] for row in rows)
    assert len(rows) == len({row["task_id"] for row in rows}) == 2
    # The policy has learned the form from prompts in its own template: it keeps to it only where the server uses that.
    assert [row["valid_actions"] for row in rows] == [row["steps"] for row in rows]
    assert all(row["outcome"] in ("success", "truncated") for row in rows)
    assert (answered.responses, answered.requests, answered.uncounted, answered.empty) == (turns, turns, 0, 0)
    assert answered.completion_tokens == sum(row["tokens"] for row in rows)
    assert answered.prompt_tokens > 50 * turns
    assert "without seed" not in output.getvalue()
    assert evaluate_endpoint(config, settings, Console(file=output, width=200))[0].equals(table)  # the seeds are used
