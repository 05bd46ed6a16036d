"""Asking a language model: what is asked, what was answered, and the one interface of both ways to ask.

A Request holds everything that an answer depends on and its `digest` names it, so an answer can be kept under that name
and read again instead of asking again: models do not answer the same twice on another batch size, GPU or day. Where
the model is served is no part of it. `endpoint.py` asks a server, `local_chat.py` a folder of weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

EndpointKind = Literal["openai", "transformers"]
ENDPOINT_KINDS = ("openai", "transformers")
ROLES = ("system", "user", "assistant")
MAX_SEED = 2**31 - 1  # what every server takes: some read 32 bits, others a JavaScript number
_NAME = 200  # characters kept of what a server calls its model


class ChatError(ValueError):
    """An endpoint that cannot be used at all, or a request or kept answer that is none."""


@dataclass(frozen=True)
class Request:
    """One question to a language model.

    `messages` are (role, content) pairs; `schema` is the JSON schema of the answer as canonical JSON text;
    `temperature` 0 is greedy; `revision` the commit or weight digest of local weights, None for a server.
    """

    model: str
    revision: str | None
    endpoint_kind: EndpointKind
    messages: tuple[tuple[str, str], ...]
    schema: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.endpoint_kind not in ENDPOINT_KINDS:
            raise ChatError(f"endpoint_kind is {self.endpoint_kind!r}, allowed are {', '.join(ENDPOINT_KINDS)}")
        if not self.messages or not all(role in ROLES and isinstance(text, str) for role, text in self.messages):
            raise ChatError(f"messages must be one or more (role, text) with a role of {', '.join(ROLES)}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise ChatError(f"temperature is {self.temperature}, allowed is 0 to 2")
        if not 0 < self.top_p <= 1:
            raise ChatError(f"top_p is {self.top_p}, allowed is above 0, up to 1")
        if self.max_tokens < 1:
            raise ChatError(f"max_tokens is {self.max_tokens}, allowed is 1 or more")
        if not 0 <= self.seed <= MAX_SEED:
            raise ChatError(f"seed is {self.seed}, allowed is 0 to {MAX_SEED}")

    @property
    def digest(self) -> str:
        """sha256 of canonical JSON of all fields: the name under which an answer is kept."""
        numbers = {"temperature": float(self.temperature), "top_p": float(self.top_p)}  # 0 asks what 0.0 does
        return hashlib.sha256(canonical_json({**asdict(self), **numbers}).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back for one Request.

    `text` is the raw output, unedited ("" if there was none); `error` is None or one printable line. `model` is the
    name that the server gives, `revision` its system_fingerprint or what Request.revision says for local weights.
    `seconds` is the time from the first try to the end of the last, for a local model the time of its whole batch.
    """

    request_digest: str
    text: str = ""
    error: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    revision: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float = 0.0
    tries: int = 1

    @property
    def is_final(self) -> bool:
        """Whether the model did answer, however badly. Only such answers are kept: the same request would get the same
        again, while a time-out says nothing of the model."""
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as from_json takes them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """An answer that was kept. ChatError where it is none: fields missing, unknown or of another type."""
        if not isinstance(data, Mapping):
            raise ChatError(f"a kept answer must be a mapping, saw {type(data).__name__}")
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ set(data)):
            raise ChatError(f"a kept answer has other fields than now: {', '.join(map(str, wrong))} differ")
        types: dict[str, tuple[type, ...]] = {
            "request_digest": (str,), "text": (str,), "error": (str, type(None)), "finish_reason": (str, type(None)),
            "model": (str, type(None)), "revision": (str, type(None)), "input_tokens": (int, type(None)),
            "output_tokens": (int, type(None)), "seconds": (int, float), "tries": (int,),
        }  # fmt: skip
        for name, allowed in types.items():
            if not isinstance(data[name], allowed) or isinstance(data[name], bool):
                raise ChatError(f"a kept answer's {name} is {str(data[name])[:80]!r} ({type(data[name]).__name__})")
        return cls(**data)


class Chat(Protocol):
    """Something that answers requests."""

    def identity(self) -> dict[str, Any]:
        """Who answers, JSON-able: endpoint_kind, model_id, revision, backend, backend_version and what else counts."""
        ...

    def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> list[Answer]:
        """Answers in the order of the requests. What goes wrong with one request is in its Answer; ChatError is raised
        only where none can be answered. `on_answer` is called with each as it comes, from the calling thread."""
        ...


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def printable(value: Any, length: int = _NAME) -> str:
    """One line, at most `length` characters, of what a server or model calls something."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:length])


def storable(text: str) -> str:
    """Text without lone surrogates, which JSON can say and UTF-8 cannot; each becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
