"""One request over the wire to an OpenAI-compatible server, and what its status, connection or body means.

Notable: redirects are not followed, a body ends at `max_bytes` and may not be compressed, and no key, password or query
of a URL gets into a log or an error. Whether to try again is endpoint.py's to say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from model.chat import ChatError, Request, printable
from model.completion import CompletionError, completion, retry_after
from model.weights import one_line

if TYPE_CHECKING:
    import ssl

    import httpx2
    import openai

_RETRIED = (408, 409, 425, 429)  # and every 5xx
_SCHEMA_NAME = "reversal"


class Failed(Exception):
    """A try that brought no answer. `again`: whether another may, then after `wait` seconds if the server said so."""

    def __init__(self, message: str, *, again: bool, wait: float | None = None) -> None:
        super().__init__(message)
        self.message, self.again, self.wait, self.tries = message, again, wait, 1


class Unconnected(Failed):
    """No connection was made at all."""


class Refused(Failed):
    """The server refuses this request (HTTP 400, 422 and the like): what it says, and of which field if it says so."""

    def __init__(self, message: str, body: str, param: str | None) -> None:
        super().__init__(message, again=False)
        self.body, self.param = body, param


@dataclass(frozen=True)
class Wire:
    """A way to a model behind a URL without user and password; `timeout` are seconds for one try as a whole."""

    url: str
    model: str
    timeout: float
    concurrent: int
    max_bytes: int
    key: str | None = field(default=None, repr=False)
    user: tuple[str, str] | None = field(default=None, repr=False)

    def client(self) -> openai.AsyncOpenAI:
        """A client, to be closed, that tries once."""
        import httpx2
        import openai

        async def bound(response: httpx2.Response) -> None:
            response.stream = _bounded(response, self.max_bytes)

        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            max_retries=0,
            timeout=self.timeout,
            http_client=httpx2.AsyncClient(
                timeout=self.timeout,
                verify=_trusted(),
                follow_redirects=False,
                auth=self.user,
                headers={"Accept-Encoding": "identity"},  # so that a small body cannot unpack to a large one
                event_hooks={"response": [bound]},
                limits=httpx2.Limits(max_connections=self.concurrent, max_keepalive_connections=self.concurrent),
            ),
        )

    async def send(
        self, client: openai.AsyncOpenAI, request: Request, left_out: frozenset[str], limit_field: str
    ) -> dict[str, Any]:
        """The body of a good response that has a choice, to a request without the fields in `left_out`, its token limit
        under the name `limit_field`. Raises Failed otherwise, ChatError where all would fail."""
        import openai

        messages: Any = [{"role": role, "content": text} for role, text in request.messages]
        fields: dict[str, Any] = {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": _SCHEMA_NAME, "strict": True, "schema": json.loads(request.schema)},
            },
            "seed": request.seed,
            "top_p": request.top_p,
            "temperature": request.temperature,
        }
        fields = {name: value for name, value in fields.items() if name not in left_out}
        fields[limit_field] = request.max_tokens
        try:
            async with asyncio.timeout(self.timeout):  # httpx's own is per read: a server that drips never ends
                response = await client.chat.completions.with_raw_response.create(
                    model=request.model,
                    messages=messages,
                    extra_headers=None if self.key else {"Authorization": openai.Omit()},
                    **fields,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Failed(f"timed out ({self.timeout:g} s)", again=True) from None
        except openai.APIConnectionError as error:
            raise _connection(error) from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except openai.OpenAIError as error:
            raise Failed(one_line(error), again=False) from None
        try:
            return completion(response.http_response.content, response.http_response.headers.get("content-type", ""))
        except CompletionError as error:
            raise Failed(one_line(error), again=True) from None

    def _status(self, error: openai.APIStatusError) -> Failed | ChatError:
        """What an HTTP status other than 200 means."""
        code, said = error.status_code, printable(error.message, 200)
        if code in (401, 403):
            given = "the key it was given" if self.key else "a request without a key"
            return ChatError(
                f"{self.url}: refuses {given} (HTTP {code}); put the right one into the environment as OPENAI_API_KEY"
            )
        if code == 404:
            return ChatError(
                f"{self.url}: HTTP 404 for model {self.model!r} ({self._without_key(said)}); {self.url}/models lists "
                "the models it has; the URL usually ends in /v1"
            )
        if 300 <= code < 400:
            where = urlsplit(error.response.headers.get("location", ""))
            return ChatError(
                f"{self.url}: HTTP {code}, sends requests on to {printable(where.scheme, 20)}://"
                f"{printable(where.hostname or '?', 80)}; redirects are not followed, name the final URL"
            )
        if code == 429 and error.code == "insufficient_quota":
            return ChatError(f"{self.url}: no quota left for model {self.model!r} (HTTP 429 insufficient_quota)")
        if code in _RETRIED or code >= 500:
            return Failed(f"HTTP {code}", again=True, wait=retry_after(error.response.headers.get("retry-after", "")))
        return Refused(f"HTTP {code}: {self._without_key(said)}", error.response.text[:20_000], error.param)

    def _without_key(self, text: str) -> str:
        """A server may echo what it was sent."""
        return text.replace(self.key, "***") if self.key else text


@cache
def _trusted() -> ssl.SSLContext:
    """Whom to trust, read once per process: a client is made for every call, and the list takes 0.1 s."""
    import httpx2

    return httpx2.create_ssl_context()


def _connection(error: openai.APIConnectionError) -> Failed:
    """A connection that was not made or broke off."""
    import httpx2

    cause = error.__cause__
    seen = one_line(cause) if cause is not None else one_line(error)
    if isinstance(cause, httpx2.ConnectError | httpx2.ProxyError):
        return Unconnected(f"cannot be reached ({seen})", again=True)
    if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.DecodingError):
        return Failed(seen, again=False)
    return Failed(f"the connection broke off ({seen})", again=True)


def _bounded(response: httpx2.Response, max_bytes: int) -> httpx2.AsyncByteStream:
    """A response's stream that ends in an error behind max_bytes."""
    import httpx2
    import openai

    stream: Any = response.stream

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise openai.OpenAIError("an answer in a compressed form, which was not asked for")
            seen = 0
            async for part in stream:
                seen += len(part)
                if seen > max_bytes:
                    raise openai.OpenAIError(f"an answer of more than {max_bytes} bytes")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


def checked_url(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL without user and password, and those. ChatError, which does not repeat them, for what is no http(s) URL."""
    example = "something like http://127.0.0.1:8000/v1"
    url = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ChatError(f"an endpoint's URL cannot be read; expected {example}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable():
        shown = "" if "@" in url else f" is {printable(url)!r},"
        raise ChatError(f"an endpoint's URL{shown} begins with neither http:// nor https:// and a host; name {example}")
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    plain = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))
    if parts.query or parts.fragment:
        raise ChatError(f"{plain}: an endpoint's URL takes no ? or #; a key belongs into OPENAI_API_KEY")
    user = (unquote(parts.username or ""), unquote(parts.password or ""))
    return plain, user if any(user) else None
