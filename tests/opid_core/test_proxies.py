"""Proxies of the environment: this machine is asked directly, whatever they say; elsewhere an error names them."""

from __future__ import annotations

import os

import httpx
import pytest

from infra import s3_objects
from infra.s3_objects import S3Address
from opid_core import proxies
from opid_core.config import LlmConfig
from opid_core.endpoint import check_endpoint
from opid_core.errors import ConfigError, InfrastructureError
from tests.chat_server import Answer, chat_server
from tests.conftest import S3_BUCKET

NOBODY = "http://someone:secret@127.0.0.1:9"
"""Port 9 (discard) is closed."""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")})


@pytest.mark.parametrize(
    ("name", "proxy"),
    [
        ("HTTP_PROXY", NOBODY),
        ("all_proxy", NOBODY),
        ("ALL_PROXY", "socks5h://127.0.0.1:9"),
        ("HTTPS_PROXY", "proxy://no-such-scheme"),
        ("http_proxy", "http://127.0.0.1:no-port"),
    ],
)
def test_this_machine_is_asked_without_a_proxy(name, proxy, s3_server):
    os.environ[name] = proxy
    proxies.spare_this_machine()
    s3_objects.forget_connections()
    with chat_server() as server:
        server.answers = [Answer(content="{}")]
        assert httpx.post(f"{server.url}/chat/completions", json={"model": "any"}).status_code == 200
        check_endpoint(LlmConfig(base_url=server.url))
        proxies.check(server.url)
    s3_objects.check_reachable(S3Address(S3_BUCKET, "any", s3_server.endpoint_url))
    s3_objects.forget_connections()


def test_elsewhere_a_proxy_that_cannot_be_used_is_one_error_and_one_that_fails_is_named(monkeypatch):
    os.environ |= {"ALL_PROXY": "socks5://me:secret@proxy:1080", "NO_PROXY": ".inside.org", "OPENAI_API_KEY": "k" * 8}
    proxies.spare_this_machine()
    proxies.check("http://model.inside.org/v1")
    elsewhere = LlmConfig(base_url="http://model.example.org/v1", max_retries=0)
    with pytest.raises(ConfigError, match=r"socks5://\*\*\*@proxy:1080 of ALL_PROXY.*socksio") as refused:
        check_endpoint(elsewhere)
    assert "secret" not in str(refused.value)

    os.environ |= {"HTTP_PROXY": NOBODY, "NO_PROXY": "", "no_proxy": ""}  # the endpoint's own may be sound
    with pytest.raises(ConfigError, match="of ALL_PROXY cannot be used"):
        check_endpoint(elsewhere)

    os.environ |= {"HTTPS_PROXY": NOBODY}  # nothing goes through ALL_PROXY then
    proxies.spare_this_machine()
    with pytest.raises(InfrastructureError, match="of HTTP_PROXY"):
        check_endpoint(elsewhere)
    del os.environ["HTTP_PROXY"], os.environ["HTTPS_PROXY"]

    os.environ |= {"ALL_PROXY": NOBODY, "NO_PROXY": "", "no_proxy": ""}
    with pytest.raises(InfrastructureError, match=r"through the proxy http://\*\*\*@127.0.0.1:9 of ALL_PROXY"):
        check_endpoint(elsewhere)
    bucket = S3Address("bucket", "key", "http://s3.example.org")
    assert proxies.through(str(bucket.endpoint_url), heeds_all=False) == ""
    os.environ["HTTP_PROXY"] = NOBODY
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InfrastructureError, match=r"through the proxy .* of HTTP_PROXY"):
        s3_objects.check_reachable(bucket)


@pytest.mark.parametrize("environment", [{}, {"HTTP_PROXY": NOBODY, "NO_PROXY": "*"}])
def test_an_environment_that_needs_no_exception_stays_as_it_is(environment):
    os.environ |= environment
    before = dict(os.environ)
    proxies.spare_this_machine()
    assert dict(os.environ) == before
