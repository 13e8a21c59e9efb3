"""The objects of a store on an S3-compatible server, through s3fs. Credentials: the standard AWS chain, nothing else.

Every fault becomes one of our errors that names the object; none of them holds a word of the credentials.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, BinaryIO

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from infra.local_objects import PIECE_BYTES, ObjectInfo, too_long
from opid_core import proxies
from opid_core.errors import ConfigError, InfrastructureError, OpidError

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
UPLOAD_PIECE_BYTES = 1 << 25
"""Larger objects are uploaded in pieces of this size: S3 allows 10,000 of them, 320 GiB."""
_DELETE_AT_ONCE = 1000
"""S3 takes no more keys in one request."""
_MAX_PAGES = 10_000
"""Of a listing: ten million objects."""

_REFUSED = {
    *("AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "Forbidden", "Unauthorized", "401", "403"),
    *("InvalidAccessKeyId", "InvalidSecurity", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "RequestExpired"),
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidClientTokenId", "TokenRefreshRequired"),
}
_NO_OBJECT = {"NoSuchKey", "404"}
_EXISTS = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
"""Another writer's request for the object is in flight."""
_again_after_conflict = Retrying(
    retry=retry_if_exception(lambda error: _code(error) in _CONFLICT),
    wait=wait_exponential(0.1),
    stop=stop_after_attempt(6),
    reraise=True,
)


@dataclass(frozen=True)
class S3Address:
    """An object, or a folder of objects: `s3://bucket/key` on the server at `endpoint_url` (None: AWS)."""

    bucket: str
    key: str
    endpoint_url: str | None = None

    def __truediv__(self, name: str) -> S3Address:
        return S3Address(self.bucket, f"{self.key}/{name}".strip("/"), self.endpoint_url)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def create_only(address: S3Address, data: bytes) -> bool:
    """See `infra.objects.create_only`."""
    # A PUT whose answer was lost is sent again by botocore, and then finds its own first success: if the object holds
    # exactly our bytes, it is ours. Manifests and leases hold ids and times, so no other writer has the same bytes.
    return _create(address, data) or digest_of(address) == (len(data), hashlib.sha256(data).hexdigest())


def create_from(address: S3Address, source: BinaryIO, copy: BinaryIO | None = None) -> tuple[bool, int, str]:
    """Create the object from a stream unless it exists: whether we did, and size and sha256 of the stream.

    The stream is read once; `copy` gets the same bytes.
    """
    digest, size = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        while piece := source.read(UPLOAD_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            if copy is not None:
                copy.write(piece)
            yield piece

    stream = pieces()
    first = next(stream, b"")
    small = len(first) < UPLOAD_PIECE_BYTES
    created = _create(address, first) if small else _upload(address, itertools.chain((first,), stream))
    return created, size, digest.hexdigest()


def refuses_to_overwrite(address: S3Address, data: bytes) -> bool:
    """Whether the server refuses to create the existing object that holds `data` again."""
    return not _create(address, data)


def put(address: S3Address, data: bytes) -> None:
    """See `infra.objects.put`."""
    _call(address, "written", "put_object", Key=address.key, Body=data)


def read(address: S3Address, max_bytes: int) -> bytes | None:
    """See `infra.objects.read`."""
    target = io.BytesIO()
    return None if download(address, target, max_bytes) is None else target.getvalue()


def size_of(address: S3Address) -> int | None:
    """See `infra.objects.size_of`."""
    # A listing, not HEAD: the answers to HEAD have no body, so an expired token would look like a bad request.
    listed = _call(address, "read", "list_objects_v2", Prefix=address.key, MaxKeys=1).get("Contents", [])
    return listed[0]["Size"] if listed and listed[0]["Key"] == address.key else None


def digest_of(address: S3Address, max_bytes: float = math.inf) -> tuple[int, str] | None:
    """See `infra.objects.digest_of`."""
    return download(address, None, max_bytes)


def download(address: S3Address, target: BinaryIO | None, max_bytes: float = math.inf) -> tuple[int, str] | None:
    """Copy an object to `target` in pieces: its size and sha256, or None when there is none.

    Raises InfrastructureError for a body of another length than was announced, DataError for more than `max_bytes`.
    """
    from fsspec.asyn import sync

    answer = _try(address, "read", "get_object", _NO_OBJECT, Key=address.key)
    if answer is None:
        return None
    loop, body = _filesystem(address.endpoint_url, os.getpid()).loop, answer["Body"]
    digest, size = hashlib.sha256(), 0
    try:
        while True:
            with _faults(address, "read"):
                piece = sync(loop, body.read, PIECE_BYTES)
            if not piece:
                if size != answer.get("ContentLength"):  # without one, the end of a body and a cut look the same
                    raise InfrastructureError(f"{address}: cannot be read: the answer was cut after {size} bytes")
                return size, digest.hexdigest()
            digest.update(piece)
            if target is not None:
                target.write(piece)
            size += len(piece)
            if size > max_bytes:
                raise too_long(address, max_bytes)
    finally:
        body.close()


def list_objects(address: S3Address) -> list[ObjectInfo]:
    """See `infra.objects.list_objects`."""
    prefix = f"{address.key}/" if address.key else ""
    return [
        ObjectInfo(entry["Key"].removeprefix(prefix), entry["Size"], entry["LastModified"].timestamp())
        for page in _pages(address, Prefix=prefix)
        for entry in page.get("Contents", [])
    ]


def list_folders(address: S3Address) -> list[str]:
    """See `infra.objects.list_folders`."""
    prefix = f"{address.key}/" if address.key else ""
    return [
        entry["Prefix"].removeprefix(prefix).rstrip("/")
        for page in _pages(address, Prefix=prefix, Delimiter="/")
        for entry in page.get("CommonPrefixes", [])
    ]


def delete(addresses: Iterable[S3Address]) -> None:
    """See `infra.objects.delete`."""
    waiting = list(addresses)
    for start in range(0, len(waiting), _DELETE_AT_ONCE):
        some = waiting[start : start + _DELETE_AT_ONCE]
        keys = {"Objects": [{"Key": address.key} for address in some], "Quiet": True}
        for failed in _call(some[0], "deleted", "delete_objects", Delete=keys).get("Errors", []):
            address, code = S3Address(some[0].bucket, failed["Key"]), failed["Code"]
            if code in _REFUSED:
                raise _refused(address, "deleted", code)
            raise InfrastructureError(f"{address}: cannot be deleted ({code})")


def check_reachable(address: S3Address) -> None:
    """Raise ConfigError unless the bucket can be listed with the credentials found."""
    _call(address, "listed", "list_objects_v2", Prefix=address.key, MaxKeys=1)


def forget_connections() -> None:
    """Make the next call connect anew, with the credentials found then."""
    _filesystem.cache_clear()


def _create(address: S3Address, data: bytes) -> bool:
    return _try(address, "written", "put_object", _EXISTS, Key=address.key, Body=data, IfNoneMatch="*") is not None


def _upload(address: S3Address, pieces: Iterator[bytes]) -> bool:
    answer = _call(address, "written", "create_multipart_upload", Key=address.key)
    upload = {"Key": address.key, "UploadId": answer["UploadId"]}
    created = False
    try:
        parts = []
        for number, piece in enumerate(pieces, start=1):
            answer = _call(address, "written", "upload_part", **upload, PartNumber=number, Body=piece)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        last = {**upload, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
        created = _try(address, "written", "complete_multipart_upload", _EXISTS, **last) is not None
        return created
    finally:
        if not created:
            with suppress(OpidError):  # the fault that brought us here is the one to report
                _call(address, "deleted", "abort_multipart_upload", **upload)


def _pages(address: S3Address, **arguments: Any) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for _ in range(_MAX_PAGES):
        page = _call(address, "listed", "list_objects_v2", **arguments)
        named = {entry["Key"] for entry in page.get("Contents", [])}
        named |= {entry["Prefix"] for entry in page.get("CommonPrefixes", [])}
        if seen & named:
            break
        seen |= named
        yield page
        if not page.get("IsTruncated"):
            return
        if not page.get("NextContinuationToken"):
            break
        arguments["ContinuationToken"] = page["NextContinuationToken"]
    raise InfrastructureError(
        f"{address}: cannot be listed: {address.endpoint_url or 'AWS'} repeats itself, or does not say where to go on"
    )


def _call(address: S3Address, action: str, method: str, **arguments: Any) -> dict[str, Any]:
    answer = _try(address, action, method, frozenset(), **arguments)
    assert answer is not None
    return answer


def _try(address: S3Address, action: str, method: str, expected: Set[str], **arguments: Any) -> dict[str, Any] | None:
    """The server's answer, or None when it is one of the `expected` error codes."""
    with _faults(address, action):
        filesystem = _filesystem(address.endpoint_url, os.getpid())
        try:
            return _again_after_conflict(filesystem.call_s3, method, Bucket=address.bucket, **arguments)
        except OSError as error:  # its type says little: s3fs knows a 412 by a Condition that not all servers send
            if _code(error) in expected:
                return None
            raise


@functools.lru_cache(maxsize=4)
def _filesystem(endpoint_url: str | None, process_id: int):
    """The connection of this process (`process_id`: after a fork the parent's event loop is not ours to use)."""
    import s3fs

    filesystem = s3fs.S3FileSystem(
        endpoint_url=endpoint_url,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"mode": "standard"},
            "max_pool_connections": 32,
            "http_session_cls": _session_class(),
        },
    )
    filesystem.retries = 1  # botocore retries already: s3fs's own on top would multiply the waiting
    return filesystem


@functools.cache
def _session_class() -> type:
    """aiobotocore's HTTP session, but for redirects: aiohttp would follow them to any host, which then sees what is
    written and chooses what is read."""
    from aiobotocore.httpsession import AIOHTTPSession
    from botocore.exceptions import BotoCoreError

    class RedirectRefused(BotoCoreError):
        pass

    class StayingSession(AIOHTTPSession):
        async def _get_session(self, proxy_url: str | None) -> Any:
            session = await super()._get_session(proxy_url)
            return SimpleNamespace(request=functools.partial(session.request, allow_redirects=False))

        async def send(self, request: Any) -> Any:
            response = await super().send(request)
            if 300 <= response.status_code < 400 and "location" in response.headers:
                raise RedirectRefused
            return response

    return StayingSession


@contextmanager
def _faults(address: S3Address, action: str) -> Iterator[None]:
    import aiohttp
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (OSError, ValueError, BotoCoreError, aiohttp.ClientError) as error:
        # Without the cause: nothing that a request or its signature was made of belongs in a log.
        raise _fault(address, action, error) from None


def _fault(address: S3Address, action: str, error: Exception) -> OpidError:
    from botocore import exceptions

    code, kind = _code(error), type(error).__name__
    credentials = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.ProfileNotFound,
        exceptions.TokenRetrievalError,
        exceptions.SSOError,
        exceptions.UnauthorizedSSOTokenError,
    )
    server, reason = address.endpoint_url or "AWS", code or kind
    server += proxies.through(address.endpoint_url or "https://s3.amazonaws.com", heeds_all=False)
    if code in _REFUSED or isinstance(error, credentials):
        return _refused(address, action, reason)
    if code == "NoSuchBucket":
        return ConfigError(f"{address}: there is no bucket {address.bucket!r}; create it, or choose another root")
    if code == "InvalidBucketName" or isinstance(error, ValueError | exceptions.ParamValidationError):
        return ConfigError(f"{address}: not a usable address at {server} ({reason})")
    return InfrastructureError(f"{address}: cannot be {action}: {server} failed or gave no answer ({reason})")


def _refused(address: S3Address, action: str, reason: str) -> ConfigError:
    forget_connections()  # they keep the credentials they found
    return ConfigError(
        f"{address}: cannot be {action}: the credentials are missing or refused ({reason}); renew the AWS "
        "credentials (environment, profile or role) and run the same command again"
    )


def _code(error: BaseException | None) -> str | None:
    """The server's error code, which s3fs keeps in the cause of the error it raises; None when there was no answer."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code") or str(response["ResponseMetadata"]["HTTPStatusCode"])
        error = error.__cause__
    return None
