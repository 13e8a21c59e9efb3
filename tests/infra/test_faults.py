"""What goes wrong between us and an S3 server: one clear error each, and never a word of the credentials."""

from __future__ import annotations

import socket

import pytest

from infra import objects, s3_objects
from infra.objects import address_of, create_only, read
from infra.store import check_writable, commit, find_campaign, manifests, open_campaign, write_table
from opid_core.errors import ConfigError, DataError, InfrastructureError, OpidError
from tests.factories import CONFIG, make_chain, make_manifest, scores_table
from tests.infra.servers import answering, failing, keeping, overwriting

KEY, SECRET, TOKEN = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY", "FwoGZXIvYXdzEXAMPLETOKEN"


def everything_refused(root, url: str, kind: type[OpidError], message: str) -> None:
    """All kinds of access end in `kind` with `message`; no text and no context of theirs holds a credential."""
    address = address_of(root, url)
    for name, call in {
        "/x": lambda: read(address / "x"),
        "/y": lambda: create_only(address / "y", b"data"),
        "/z": lambda: objects.put(address / "z", b"data"),
        "/s": lambda: objects.size_of(address / "s"),
        "": lambda: objects.list_objects(address),
        "/d": lambda: objects.delete([address / "d"]),
        "/demo/config.json": lambda: find_campaign(root, "demo", url),
    }.items():
        with pytest.raises(kind, match=message) as caught:
            call()
        assert str(caught.value).startswith(f"{root}{name}: ")
        assert caught.value.__cause__ is None
        for secret in (KEY, SECRET, TOKEN, "secret-of-the-tests", "Signature="):
            assert secret not in str(caught.value)
    with pytest.raises(kind, match=message):
        check_writable(root, 0, url)
    with pytest.raises(kind, match=message):
        open_campaign(root, "demo", CONFIG, url)


def test_a_wrong_key_is_refused_and_nothing_is_written(s3_store, s3_root, credentials):
    credentials(AWS_SECRET_ACCESS_KEY=SECRET)
    everything_refused(s3_root.address, s3_root.endpoint_url, ConfigError, r"refused \(SignatureDoesNotMatch\); renew")
    credentials(AWS_SECRET_ACCESS_KEY="secret-of-the-tests")
    root = address_of(s3_root.address, s3_root.endpoint_url)
    assert [info.path for info in objects.list_objects(root)] == ["demo/config.json"]


def test_renewed_credentials_are_found_by_the_next_call(s3_store, credentials, monkeypatch):
    credentials(AWS_ACCESS_KEY_ID=KEY)
    with pytest.raises(ConfigError, match="InvalidAccessKeyId"):
        manifests(s3_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    assert manifests(s3_store) == []


def test_no_credentials_at_all(s3_root, credentials, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    credentials(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    everything_refused(s3_root.address, s3_root.endpoint_url, ConfigError, r"missing or refused \(NoCredentialsError\)")
    credentials(AWS_PROFILE="nobody")
    everything_refused(s3_root.address, s3_root.endpoint_url, ConfigError, r"missing or refused \(ProfileNotFound\)")


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "AccessDenied")])
def test_expired_or_insufficient_credentials(credentials, status, code):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_SESSION_TOKEN=TOKEN)
    with failing(status, code) as url:
        everything_refused(
            "s3://bucket/runs", url, ConfigError, rf"refused \({code}\); renew .* the same command again"
        )


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            "AccessDenied",
            ConfigError,
            r"cannot be deleted: the credentials are missing or refused \(AccessDenied\); renew",
        ),
        ("InternalError", InfrastructureError, r"cannot be deleted \(InternalError\)$"),
    ],
)
def test_an_object_that_is_not_deleted_is_named(credentials, code, kind, message):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    with keeping(code) as url, pytest.raises(kind, match=rf"^s3://bucket/a/state\.pt: {message}"):
        objects.delete([address_of("s3://bucket/a/state.pt", url), address_of("s3://bucket/b/state.pt", url)])


def test_a_missing_bucket(s3_server):
    everything_refused(
        "s3://nobody/runs", s3_server.endpoint_url, ConfigError, "there is no bucket 'nobody'; create it"
    )


@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (507, "XMinioStorageFull"), (404, "Strange")]
)
def test_a_failing_server_is_a_fault_that_may_pass(credentials, monkeypatch, status, code):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_MAX_ATTEMPTS="1")
    with failing(status, code) as url:
        everything_refused("s3://bucket/runs", url, InfrastructureError, rf"{url} failed or gave no answer \({code}\)")


def test_a_server_that_is_away_or_silent(credentials, monkeypatch):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_MAX_ATTEMPTS="1")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        everything_refused("s3://bucket/runs", url, InfrastructureError, r"no answer \(EndpointConnectionError\)")
        listening.listen()
        monkeypatch.setattr(s3_objects, "READ_TIMEOUT_S", 0.1)
        s3_objects.forget_connections()
        with pytest.raises(InfrastructureError, match=r"s3://bucket/x: cannot be read: .* \(ReadTimeoutError\)"):
            read(address_of("s3://bucket/x", url))


@pytest.mark.parametrize("token", ["", "<NextContinuationToken>again</NextContinuationToken>"])
def test_a_listing_that_never_ends_is_a_fault(credentials, token):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    entry = "<Contents><Key>x/a</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size></Contents>"
    page = f"<ListBucketResult><IsTruncated>true</IsTruncated>{token}{entry}</ListBucketResult>"
    with answering(200, page.encode(), {"Content-Type": "application/xml"}) as (url, asked):
        with pytest.raises(InfrastructureError, match=r"s3://bucket/x: cannot be listed: .* repeats itself"):
            objects.list_objects(address_of("s3://bucket/x", url))
        assert len(asked) == (2 if token else 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed(credentials, status):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_MAX_ATTEMPTS="1")
    with answering(200, b"theirs") as (elsewhere, asked), answering(status, b"", {"Location": elsewhere}) as (url, _):
        for call in (read, objects.list_objects, lambda address: create_only(address, b"ours")):
            with pytest.raises(InfrastructureError, match=r"s3://bucket/x: cannot be .* \(RedirectRefused\)"):
                call(address_of("s3://bucket/x", url))
        assert asked == []


def test_a_body_without_a_length_may_have_been_cut(credentials):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    with (
        answering(200, b"half", {"Connection": "close"}) as (url, _),
        pytest.raises(InfrastructureError, match=r"s3://bucket/x: .*4 bytes"),
    ):
        read(address_of("s3://bucket/x", url))


def test_no_more_is_read_of_an_object_than_may_stand_there(root):
    address = address_of(root.address, root.endpoint_url) / "object"
    create_only(address, b"12345")
    assert read(address, 5) == b"12345"
    with pytest.raises(DataError, match=f"{address}: .*4 bytes"):
        read(address, 4)


def test_a_server_that_overwrites_what_exists_is_refused(credentials):
    credentials(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
    with (
        overwriting() as url,
        pytest.raises(ConfigError, match=r"root: .*`If-None-Match: \*`"),
    ):
        open_campaign("s3://bucket/runs", "demo", CONFIG, url)


def test_credentials_that_expire_in_a_campaign_do_no_damage(s3_store, credentials, tmp_path):
    chain = make_chain(s3_store, tmp_path, 2)
    manifest = make_manifest(s3_store, tmp_path, chain[-1])
    credentials(AWS_SECRET_ACCESS_KEY=SECRET)
    with pytest.raises(ConfigError, match="AWS credentials"):
        commit(s3_store, manifest)
    with pytest.raises(ConfigError, match=r"part-0.parquet: .*credentials"):
        write_table(s3_store, "scores", 1, "attempt", scores_table())
    credentials(AWS_SECRET_ACCESS_KEY="secret-of-the-tests")
    assert manifests(s3_store) == chain
    assert commit(s3_store, manifest) == (manifest, True)
