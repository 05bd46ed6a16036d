"""Reading a chat completion off the wire, whatever a server may send in its place.

Fields of another type than theirs are as good as absent; text is kept as it came, but for what UTF-8 cannot hold.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any

from model.chat import Answer, printable, storable


class CompletionError(ValueError):
    """A response that is no chat completion with a choice and a message."""


def completion(content: bytes, content_type: str) -> dict[str, Any]:
    """The JSON of a response whose first choice has a message. CompletionError for every other."""
    kind = printable(content_type.split(";")[0].strip() or "no type", 60)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise CompletionError(f"an answer that is not JSON ({kind})") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list):
        raise CompletionError("JSON that is no chat completion")
    if not choices:
        raise CompletionError("a chat completion without choices")
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        raise CompletionError("a chat completion without a message")
    return data


def answer_of(data: Mapping[str, Any], digest: str, seconds: float, tries: int) -> Answer:
    """The Answer that completion() read: the text of the first choice, or its refusal."""
    choice, usage = data["choices"][0], data.get("usage")
    message = choice["message"]
    text = next((t for t in (message.get("content"), message.get("refusal")) if isinstance(t, str) and t), "")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        request_digest=digest,
        text=storable(text),
        finish_reason=_name(choice.get("finish_reason")),
        model=_name(data.get("model")),
        revision=_name(data.get("system_fingerprint")),
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        seconds=round(seconds, 3),
        tries=tries,
    )


def retry_after(said: str) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date (RFC 9110, 10.2.3). None for anything else."""
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said.strip()).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if abs(seconds) < float("inf") else None


def _name(value: Any) -> str | None:
    return printable(value) if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
