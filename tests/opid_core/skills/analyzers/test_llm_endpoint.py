"""What the LLM analyzer makes of an endpoint that fails, refuses or knows less."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opid_core.config import LlmConfig
from opid_core.endpoint import check_endpoint, without_key
from opid_core.errors import ConfigError, InfrastructureError
from opid_core.reading import MAX_BYTES
from opid_core.skills.analyzers import llm
from tests.chat_server import KEY, Answer
from tests.opid_core.skills.analyzers.asked import GOOD, analysis_of, config, episode
from tests.opid_core.skills.episodes import together


@pytest.mark.parametrize("status", [408, 429, 500, 529])
def test_a_transient_error_is_tried_again(server, status):
    server.answers = [Answer(status, "later"), Answer(content=GOOD)]
    analysis = analysis_of(server)
    assert (analysis.error, analysis.attempts) == (None, 2)


def test_errors_that_outlast_the_retries_are_recorded(server):
    server.answers = [Answer(500, "down\nfor good")]
    analysis = analysis_of(server, max_retries=2)
    assert analysis.failed
    assert (analysis.error, analysis.attempts, analysis.raw_reply) == ("HTTP 500: down for good (2 retries)", 3, None)
    assert (analysis.tokens, analysis.cost) == (None, None)


def test_the_endpoint_names_the_wait(server):
    """The first wait of the SDK's own would be half a second; it waits no hour."""
    server.answers = [Answer(429, "slow down", {"Retry-After-Ms": "", "Retry-After": "1"}), Answer(content=GOOD)]
    started_s = time.monotonic()
    assert analysis_of(server).attempts == 2
    assert time.monotonic() - started_s > 1
    server.answers = [Answer(429, "slow down", {"Retry-After-Ms": "", "Retry-After": "3600"})]
    assert analysis_of(server).error == "HTTP 429: slow down (0 retries)"


def test_an_endpoint_that_hangs_or_drips_is_left(server):
    server.answers = [Answer(hang=True), Answer(content=GOOD)]
    analysis = analysis_of(server, timeout_s=0.5)
    assert (analysis.error, analysis.attempts) == (None, 2)
    server.answers = [Answer(content=GOOD, drip_s=0.05)]
    assert analysis_of(server, timeout_s=0.3).error == "no answer within 0.3 s (1 retries)"


def test_no_server(server):
    analysis = analysis_of(server, base_url="http://127.0.0.1:9/v1")
    assert (analysis.error or "").startswith("no connection: ConnectError")
    assert analysis.attempts == 2


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b'{"choices": ', b'{"choices": [{"message": "busy"}]}'])
def test_a_page_that_is_no_completion_is_tried_again(server, body):
    server.answers = [Answer(body=body), Answer(content=GOOD)]
    assert analysis_of(server).attempts == 2
    server.answers = [Answer(body=body)]
    assert (analysis_of(server, max_retries=0).error or "").startswith("HTTP 200 without a completion: ")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_refused_for_its_content_is_recorded_at_once(server, status):
    server.answers = [Answer(status, "context too long")]
    analysis = analysis_of(server, max_retries=5)
    assert analysis.error == f"the endpoint refused the request: HTTP {status}: context too long"
    assert (analysis.attempts, analysis.raw_reply) == (1, None)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_all(server, status):
    server.answers = [Answer(status, f"who is {KEY}?")]
    with pytest.raises(ConfigError, match=rf"refused the key of TEST_LLM_KEY \(HTTP {status}\)") as caught:
        analysis_of(server, max_retries=5)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_an_unknown_model_stops_all(server):
    server.answers = [Answer(404, "no model")]
    with pytest.raises(ConfigError, match="does not know the model 'teacher'"):
        analysis_of(server)


def test_a_share_of_failed_calls_leaves_the_others_alone(server):
    def answer(body: dict[str, Any]) -> Answer:
        return Answer(500, "down") if "see-3 " in body["messages"][1]["content"] else Answer(content=GOOD)

    server.answer = answer
    trajectories = [episode(str(n), seen=f"see-{n}") for n in range(20)]
    analyses = llm.analyze(together(*trajectories), config(server))
    assert [a.trajectory_id for a in analyses if a.failed] == ["3"]
    assert sum(a.episode_skill == "look first" for a in analyses) == 19


# Structured output -------------------------------------------------------------------------------------------------


def test_a_schema_is_asked_for_until_it_is_refused(server):
    def answer(body: dict[str, Any]) -> Answer:
        return Answer(400, "response_format is not supported") if "response_format" in body else Answer(content=GOOD)

    server.answer = answer
    notes: list[str] = []
    trajectories = [episode(str(n), seen=f"see-{n}") for n in range(5)]
    analyses = llm.analyze(together(*trajectories), config(server, concurrency=1), on_note=notes.append)
    assert [a.attempts for a in analyses] == [2, 1, 1, 1, 1]
    (note,) = notes
    assert note == f"{server.url} is asked without response_format from now on: response_format is not supported"
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["episode_summary", "episode_skill", "step_skills"]
    assert schema["properties"]["step_skills"]["maxProperties"] == 5


def test_calls_at_once_fall_back_with_one_note(server):
    def answer(body: dict[str, Any]) -> Answer:
        return Answer(400, "json_schema: unknown") if "response_format" in body else Answer(content=GOOD)

    server.answer = answer
    notes: list[str] = []
    trajectories = [episode(str(n), seen=f"see-{n}") for n in range(12)]
    analyses = llm.analyze(together(*trajectories), config(server, concurrency=12), on_note=notes.append)
    assert all(a.error is None for a in analyses)
    assert len(notes) == 1


def test_structured_output_can_be_insisted_on_or_left(server):
    server.answers = [Answer(400, "response_format is not supported")]
    assert "response_format" in (analysis_of(server, structured_output="on").error or "")
    server.answers = [Answer(content=GOOD)]
    assert analysis_of(server, structured_output="off").error is None
    assert "response_format" not in server.requests[-1]


def test_an_endpoint_with_another_name_for_the_limit(server):
    def answer(body: dict[str, Any]) -> Answer:
        refused = Answer(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return refused if "max_tokens" in body else Answer(content=GOOD)

    server.answer = answer
    analysis = analysis_of(server)
    assert (analysis.error, analysis.attempts) == (None, 2)
    assert server.requests[1]["max_completion_tokens"] == 4096


# Sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd", "gzip, gzip"])
def test_a_reply_without_bounds_is_no_reply(server, status, encoding):
    body = b" " * (MAX_BYTES + 1)  # in gzip 16 KiB
    headers = {} if encoding == "identity" else {"Content-Encoding": encoding}
    server.answers = [Answer(status, body=gzip.compress(body) if "gzip" in encoding else body, headers=headers)]
    error = analysis_of(server).error
    assert error is not None
    assert f"HTTP {status}" in error
    assert ("an encoding that was not asked for" if encoding in ("zstd", "gzip, gzip") else "longer than") in error


def test_a_reply_in_gzip_is_understood(server):
    body = json.dumps({"choices": [{"message": {"content": GOOD}}]}).encode()
    server.answers = [Answer(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})]
    assert analysis_of(server).episode_skill == "look first"


# Keys --------------------------------------------------------------------------------------------------------------


def test_the_key_is_in_nothing_that_is_recorded(server):
    server.answers = [Answer(400, f"bad header Authorization: Bearer {KEY}")]
    assert analysis_of(server).error == (
        "the endpoint refused the request: HTTP 400: bad header Authorization: Bearer [key]"
    )
    server.answers = [Answer(500, body=f"<pre>{KEY}</pre>".encode())]
    assert analysis_of(server).error == "HTTP 500: <pre>[key]</pre> (1 retries)"
    server.answers = [Answer(content=f'{{"episode_skill": "the key is {KEY}"}}')]
    assert KEY not in repr(analysis_of(server))


def test_a_part_of_the_key_is_not_recorded_either(server):
    for echo in (KEY[:8], KEY[3:20], f"{KEY[:4]}...{KEY[-4:]}", f"{KEY[:7]}*****", f"'****{KEY[-4:]}'"):
        server.answers = [Answer(400, f"bad key {echo}, sorry")]
        error = analysis_of(server).error
        assert error is not None
        assert "[key]" in error
        assert not any(KEY[start : start + 4] in error for start in range(len(KEY) - 3)), error
    server.answers = [Answer(400, "skip this... and sk- too")]
    assert analysis_of(server).error == "the endpoint refused the request: HTTP 400: skip this... and sk- too"


@given(st.text(st.sampled_from("ab-x "), max_size=60), st.text(st.sampled_from("ab-x"), min_size=8, max_size=20))
def test_no_eight_characters_of_a_key_are_left(text, key):
    left = without_key(text, key)
    assert not any(key[start : start + 8] in left for start in range(len(key) - 7))
    assert left == text or "[key]" in left


def test_a_key_that_is_missing_or_no_key(server, monkeypatch):
    monkeypatch.delenv("TEST_LLM_KEY")
    assert analysis_of(server).error is None  # loopback needs none
    assert server.keys == [None]
    with pytest.raises(ConfigError, match="TEST_LLM_KEY is not set"):
        analysis_of(server, base_url="https://llm.example.org/v1")
    monkeypatch.setenv("TEST_LLM_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(ConfigError, match="characters that no key has") as caught:
        analysis_of(server)
    assert KEY not in str(caught.value)


def test_no_key_in_the_address():
    for url in ("http://user:word@host/v1", "http://host/v1?key=abc", "ftp://host"):
        with pytest.raises(ValueError, match="base_url"):
            LlmConfig(base_url=url)


# The check before a campaign ---------------------------------------------------------------------------------------


def test_the_endpoint_is_checked_with_one_token(server):
    check_endpoint(config(server).llm)
    (request,) = server.requests
    assert request["max_tokens"] == 1
    assert "response_format" not in request


def test_what_the_check_finds(server):
    server.answers = [Answer(401, "no")]
    with pytest.raises(ConfigError, match="refused the key of TEST_LLM_KEY"):
        check_endpoint(config(server).llm)
    server.answers = [Answer(400, "temperature must be 1")]
    with pytest.raises(ConfigError, match="temperature must be 1"):
        check_endpoint(config(server).llm)
    server.answers = [Answer(400, "response_format is not supported")]
    with pytest.raises(ConfigError, match="response_format"):
        check_endpoint(config(server, structured_output="on").llm)
    with pytest.raises(InfrastructureError, match=r"endpoint http://127\.0\.0\.1:9/v1: no connection"):
        check_endpoint(config(server, base_url="http://127.0.0.1:9/v1").llm)
