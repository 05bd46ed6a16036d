"""Object storage: how a store at `s3://bucket/folder` is reached, and what is said when it cannot be.

Notable: credentials come from where every AWS tool takes them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or
AWS_PROFILE with ~/.aws, AWS_SESSION_TOKEN, a machine's role) and go to Lance unseen. What a server or Lance says of a
failure may quote requests with key ids and signatures, so none of it is repeated: errors here are words of our own,
and have no cause that a traceback could print.
"""

import os
import re
from functools import cache
from urllib.parse import urlsplit

from store.errors import StoreError

CONNECT_SECONDS = 3
_OPTIONS = {"connect_timeout": f"{CONNECT_SECONDS}s", "client_max_retries": "3", "client_retry_timeout": "20"}
_CODE = re.compile(r"<Code>(\w+)</Code>")
_SIGNS = (
    ("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken", "key"),
    ("AccessDenied|403 Forbidden", "denied"),
    ("NoSuchBucket", "bucket"),
    ("credentials|CredentialsNotLoaded|ProviderError|token endpoint", "credentials"),
    ("resolve region", "region"),
    ("error sending request|connection|timed out|timeout|dns", "reach"),
)


class NoTable(StoreError):
    """There is no table of that name; everything else about the store may be well."""


def is_remote(uri: object) -> bool:
    """Whether a store is in object storage (`s3://bucket/registry`), not a folder."""
    return "://" in str(uri)


def storage_options(uri: object) -> dict[str, str] | None:
    """What Lance must be told besides the environment's credentials; None for a folder.

    Plain http is allowed where AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3, which comes first) asks for it, as a local
    S3 server's does. An unreachable server is given up within seconds.
    """
    if not is_remote(uri):
        return None
    named = endpoint() if str(uri).startswith("s3://") else None
    if named is None:
        return dict(_OPTIONS)
    return {"endpoint": named, "allow_http": str(named.startswith("http://")).lower(), **_OPTIONS}


def endpoint() -> str | None:
    """The S3 server that the environment names; None: Amazon's, or that of the AWS profile."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def check_remote(uri: object) -> None:
    """Refuses an address that cannot be meant, and a server that nobody answers at, with StoreError."""
    try:
        parts = urlsplit(str(uri))
    except ValueError:
        raise StoreError("the address of a registry is s3://bucket/folder; this one cannot be read") from None
    if not parts.netloc or "@" in parts.netloc:
        raise StoreError("the address of a registry is s3://bucket/folder; keys stand in the environment, not in it")
    if parts.scheme == "s3" and (named := endpoint()):
        _knock(named)


@cache
def _knock(named: str) -> None:
    import socket
    import urllib.request

    parts = urlsplit(named)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(f"AWS_ENDPOINT_URL is {_shown(named)!r}; expected http://host:port or https://host")
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.netloc):
        return  # a proxy knows how to get there
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        raise StoreError(
            f"cannot reach the S3 server {_shown(named)} ({why}); AWS_ENDPOINT_URL names it: correct it, or unset it "
            "for Amazon's"
        ) from None


def _shown(named: str) -> str:
    """A server's address without a password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", named)


def remote_error(error: BaseException, uri: object) -> StoreError:
    """What went wrong at a table in object storage: one line, its own words, naming bucket and what to set."""
    text = str(error)
    if "was not found" in text and "NoSuchBucket" not in text:
        return NoTable(f"no table at {uri}; nothing is registered there, or the address is another (`bagger register`)")
    bucket = f"bucket {urlsplit(str(uri)).netloc!r}"
    named = endpoint()
    server = f"the S3 server {_shown(named)}" if named else "S3"
    kind = next((kind for signs, kind in _SIGNS if re.search(signs, text, re.IGNORECASE)), "")
    code = f" ({match[1]})" if (match := _CODE.search(text)) else ""
    told = {
        "key": f"{server} does not accept the credentials for {bucket}{code}; check AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        "denied": f"{server} denies access to {bucket}{code}; check whose credentials AWS_ACCESS_KEY_ID or AWS_PROFILE "
        "name, and what they may do: list, get, put and delete objects",
        "bucket": f"{server} has no {bucket}; make it, or correct the address; AWS_ENDPOINT_URL names the server",
        "credentials": f"no credentials for {bucket} of {server}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE",
        "region": f"cannot find {bucket} at Amazon's S3; set AWS_REGION, or AWS_ENDPOINT_URL if it lies elsewhere",
        "reach": f"cannot reach {server} for {bucket}; check the network, AWS_ENDPOINT_URL and AWS_REGION",
    }
    if kind:
        return StoreError(told[kind])
    if _CODE.search(text) or "://" in text:  # a server's answer, which may quote the request
        return StoreError(f"{server} failed for {bucket}{code}; try again, and see the server's own log")
    return StoreError(f"cannot read or write table {uri} ({text.splitlines()[0][:200]})")
