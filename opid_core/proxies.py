"""Proxy variables of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY; lower case too): requests to this
machine never go through a proxy, and elsewhere the one that a request goes through is named in its error."""

from __future__ import annotations

import os
import re
import urllib.request
from urllib.parse import urlsplit

from opid_core.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_UNUSABLE = "*"
"""Beside other hosts in NO_PROXY it lets httpx alone ignore the proxies: it would refuse to make any client because of
one that it cannot use, those for this machine too. Elsewhere `check` asks before such a request."""


def spare_this_machine() -> None:
    """Let this process and its children ask this machine without a proxy, whatever the environment says."""
    proxies = urllib.request.getproxies()
    hosts = [host.strip() for host in proxies.get("no", "").split(",") if host.strip()]
    if not {"http", "https", "all"} & {*proxies} or hosts == ["*"]:
        return
    hosts += [host for host in LOOPBACK if host not in hosts]
    if {"http", "https", "all"} <= {*proxies} and _problem(proxies["all"]):
        for name in ("ALL_PROXY", "all_proxy"):  # nothing would go through it
            os.environ.pop(name, None)
    if _unusable() and _UNUSABLE not in hosts:
        hosts.append(_UNUSABLE)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(hosts)


def check(url: str) -> None:
    """Raise ConfigError where the environment names a proxy for `url`, and httpx cannot use that or another one."""
    unusable = _unusable() if _proxy(url) else None
    if unusable is not None:
        name, proxy, problem = unusable
        raise ConfigError(
            f"{masked(url)} would be asked through a proxy, and {_masked_proxy(proxy)} of {name} cannot be used: "
            f"{problem}; set another one, unset it, or put the host into NO_PROXY"
        )


def through(url: str, *, heeds_all: bool = True) -> str:
    """ " through the proxy ..." as an error about `url` says it, "" where there is no proxy for it.
    `heeds_all`: whether what asks it heeds ALL_PROXY."""
    proxy = _proxy(url)
    if proxy and proxy[0] == "ALL_PROXY" and not heeds_all:
        return ""
    return f" through the proxy {_masked_proxy(proxy[1])} of {proxy[0]}" if proxy else ""


def _proxy(url: str) -> tuple[str, str] | None:
    """The proxy for `url`, and the variable that names it."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    host = parts.hostname or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return next(
        ((f"{scheme.upper()}_PROXY", proxies[scheme]) for scheme in (parts.scheme, "all") if scheme in proxies), None
    )


def _unusable() -> tuple[str, str, str] | None:
    """A variable that names a proxy which httpx cannot use, that proxy, and why."""
    for scheme, proxy in urllib.request.getproxies().items():
        if scheme in ("http", "https", "all") and (problem := _problem(proxy)):
            return f"{scheme.upper()}_PROXY", proxy, problem
    return None


def _problem(proxy: str) -> str | None:
    """Why httpx cannot use `proxy`."""
    import httpx

    try:
        httpx.Client(proxy=proxy if "://" in proxy else f"http://{proxy}").close()
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        return str(error).partition(". ")[0].replace(proxy, _masked_proxy(proxy))
    return None


def masked(text: str) -> str:
    """`text`, in whose addresses neither user and password nor a query stand: keys are kept in all of these."""
    text = re.sub(r"(://[^\s?'\"]*\?)[^\s'\"]*", r"\1***", text)
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _masked_proxy(proxy: str) -> str:
    """`proxy`, which may lack its scheme, as `masked`."""
    return proxy if "@" not in proxy else masked(proxy if "://" in proxy else f"http://{proxy}")
