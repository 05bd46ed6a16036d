"""A real server on loopback that speaks /v1/chat/completions and /v1/models, and misbehaves when told to.

    with ChatServer() as server:
        server.say(Reply(status=500), Reply(text="{}"), to="a red ball")

A request whose last message contains `a red ball` gets these replies one after the other, the last of them for ever;
any other gets an answer in the form asked for, `turned(prompt)`. What came in is kept in `server.seen`.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny-chat"


@dataclass(frozen=True)
class Reply:
    """What the server does with one request. `body` replaces the whole completion, `drop` closes the connection: before
    the head ("head") or in the midst of the body ("body")."""

    text: str | None = None
    status: int = 200
    finish_reason: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    drip: float = 0.0  # seconds between the bytes of the body
    drop: str = ""
    message: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def user(self) -> str:
        return self.body["messages"][-1]["content"]


def answer(reversed_prompt: str, **changes: Any) -> dict[str, Any]:
    """A proposal in the form of the schema."""
    return {
        "reversal_class": "equivariant",
        "reversed_prompt": reversed_prompt,
        "changed_spans": [{"from": "left", "to": "right", "kind": "direction"}],
        "preserved_entities": ["ball"],
        "uses_marker": False,
        **changes,
    }


def prompt_of(user: str) -> str:
    """The prompt in the last message of a request that the template made."""
    found = json.JSONDecoder().raw_decode(user, user.index("{"))[0]
    return found["prompt"]


def turned(prompt: str) -> str:
    """The words left and right exchanged."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda word: other[word[0]], prompt)


class ChatServer:
    """See the module. `key`: the only key that is let in; `refuses`: fields of a request answered with `refusal`, 400
    by default; `good`: text for a request that no script is for."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.key: str | None = None
        self.refuses: tuple[str, ...] = ()
        self.refusal: Callable[[str], Reply] = lambda name: error(400, f"Unrecognized request argument: {name}", name)
        self.good: Callable[[str], str] = lambda user: json.dumps(answer(turned(prompt_of(user))))
        self.delay = 0.0
        self.most = self.now = 0  # requests in flight
        self._scripts: list[tuple[str, list[Reply]]] = []
        self._lock = threading.Lock()

    def say(self, *replies: Reply, to: str = "") -> None:
        self._scripts.append((to, list(replies)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ChatServer:
        owner = self

        class Handler(_Handler):
            chat = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply_to(self, request: Seen) -> Reply:
        with self._lock:
            self.seen.append(request)
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return error(401, f"Incorrect API key provided: {request.headers.get('authorization')}")
            if request.body.get("model") != MODEL:
                return error(404, f"The model `{request.body.get('model')}` does not exist.", code="model_not_found")
            for name in self.refuses:
                if name in request.body:
                    return self.refusal(name)
            for words, replies in self._scripts:
                if words in request.user:
                    return replies.pop(0) if len(replies) > 1 else replies[0]
        return Reply(text=self.good(request.user), delay=self.delay)


def error(status: int, message: str, param: str | None = None, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI's own server words it."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return Reply(status=status, body=json.dumps(body).encode(), headers=headers)


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}]}
        found = self.path == "/v1/models"
        self._send(Reply(body=json.dumps(models).encode()) if found else error(404, "no such page"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Seen(self.path, headers, body, time.monotonic())
        if self.path != "/v1/chat/completions":
            self._send(error(404, "no such page"))
            return
        with self.chat._lock:
            self.chat.now += 1
            self.chat.most = max(self.chat.most, self.chat.now)
        try:
            self._send(self.chat.reply_to(request), body)
        finally:
            with self.chat._lock:
                self.chat.now -= 1

    def _send(self, reply: Reply, request: dict[str, Any] | None = None) -> None:
        time.sleep(reply.delay)
        if reply.drop == "head":
            self._hang_up()
            return
        body = reply.body
        if body is None:
            body = json.dumps(_completion(reply, request or {})).encode()
        try:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
                self.send_header(name, reply.headers.get(name, value))
            for name, value in reply.headers.items():
                if name not in ("Content-Type", "Content-Length"):
                    self.send_header(name, value)
            self.end_headers()
            if reply.drop == "body":
                self.wfile.write(body[: len(body) // 2])
                self._hang_up()
                return
            for start in range(0, len(body), 1 if reply.drip else len(body) or 1):
                self.wfile.write(body[start : start + 1] if reply.drip else body)
                time.sleep(reply.drip)
        except OSError:  # the client has gone, as it should with some of these
            self.close_connection = True

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


def _completion(reply: Reply, request: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text} if reply.message is None else reply.message
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": f"{request.get('model')}-2026",
        "system_fingerprint": "fp_tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        **reply.extra,
    }
