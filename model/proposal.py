"""What a language model proposes as the reversed prompt: the JSON schema of its answer, and reading it.

A server that takes the schema answers in it; another may put prose, code fences or its thoughts around the JSON. One
object that fits the schema is looked for in all of that. Two that differ, as when a model repeats an answer that stood
in the prompt, are no answer.

Fields are written in the order of canonical JSON, which is also the order of thought: what turns, what stays, the
class, and only then the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.chat import canonical_json, printable

CLASSES = ("invariant", "equivariant", "novel", "irreversible")  # Retro-Actions, arXiv:1909.09422
MAX_TEXT = 100_000  # characters of an answer that are read
_MAX_STARTS = 200  # opening braces that are tried

_STRING = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMA = canonical_json(
    _object(
        changed_spans={"type": "array", "items": _object(**{"from": _STRING, "kind": _STRING, "to": _STRING})},
        preserved_entities={"type": "array", "items": _STRING},
        reversal_class={"type": "string", "enum": list(CLASSES)},
        reversed_prompt=_STRING,
        uses_marker={"type": "boolean"},
    )
)
_NAMES = ("changed_spans", "preserved_entities", "reversal_class", "reversed_prompt", "uses_marker")
SCHEMA_DIGEST = hashlib.sha256(SCHEMA.encode()).hexdigest()


class ProposalError(ValueError):
    """An answer without a proposal in it, said so that the model understands what to do better."""


@dataclass(frozen=True)
class Span:
    """Words of the source and what became of them; either may be empty."""

    source: str
    target: str
    kind: str


@dataclass(frozen=True)
class Proposal:
    """A reversed prompt as a model proposes it. Nothing about it is believed before it is checked."""

    changed_spans: tuple[Span, ...]
    preserved_entities: tuple[str, ...]
    reversal_class: str
    reversed_prompt: str
    uses_marker: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values in the form of SCHEMA, in its order."""
        return {
            "changed_spans": [{"from": s.source, "kind": s.kind, "to": s.target} for s in self.changed_spans],
            "preserved_entities": list(self.preserved_entities),
            "reversal_class": self.reversal_class,
            "reversed_prompt": self.reversed_prompt,
            "uses_marker": self.uses_marker,
        }


def parse_proposal(text: str) -> Proposal:
    """The one proposal in a model's raw output. ProposalError, with the reason, where there is none or two."""
    if len(text) > MAX_TEXT:
        raise ProposalError(f"the answer has {len(text)} characters, at most {MAX_TEXT} are read")
    found: list[Proposal] = []
    reason = "the answer has no JSON object" if text.strip() else "the answer is empty"
    for number, value in enumerate(_objects(text)):
        try:
            proposal = read_proposal(value)
        except ProposalError as error:
            reason = str(error) if number == 0 else reason
            continue
        if proposal not in found:
            found.append(proposal)
    if len(found) > 1:
        raise ProposalError("the answer has more than one JSON object of the form asked for")
    if not found:
        raise ProposalError(reason)
    return found[0]


def read_proposal(value: Any) -> Proposal:
    """A proposal from JSON as SCHEMA has it. ProposalError names the first thing that does not fit."""
    data = _fields(value, "the answer", _NAMES)
    if data["reversal_class"] not in CLASSES:
        raise ProposalError(f"reversal_class is {_shown(data['reversal_class'])}, allowed are {', '.join(CLASSES)}")
    if not isinstance(data["uses_marker"], bool):
        raise ProposalError(f"uses_marker is {_shown(data['uses_marker'])}, allowed are true and false")
    spans = []
    for number, item in enumerate(_list(data, "changed_spans")):
        span = _fields(item, f"changed_spans[{number}]", ("from", "to", "kind"))
        spans.append(Span(*(_text(span[name], f"changed_spans[{number}].{name}") for name in ("from", "to", "kind"))))
    entities = _list(data, "preserved_entities")
    return Proposal(
        changed_spans=tuple(spans),
        preserved_entities=tuple(_text(item, f"preserved_entities[{n}]") for n, item in enumerate(entities)),
        reversal_class=data["reversal_class"],
        reversed_prompt=_text(data["reversed_prompt"], "reversed_prompt"),
        uses_marker=data["uses_marker"],
    )


def _objects(text: str) -> Iterator[Any]:
    """JSON objects in a text from left to right, those inside others left out."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    at = text.find("{")
    for _ in range(_MAX_STARTS):
        if at < 0:
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _fields(value: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProposalError(f"{where} is {_shown(value)}, expected an object with {', '.join(names)}")
    if missing := [name for name in names if name not in value]:
        raise ProposalError(f"{where} lacks {', '.join(missing)}")
    if more := [printable(name, 40) for name in value if name not in names]:
        raise ProposalError(f"{where} has {', '.join(more[:5])}, which nobody asked for")
    return value


def _list(data: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(data[name], list):
        raise ProposalError(f"{name} is {_shown(data[name])}, expected a list")
    return data[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ProposalError(f"{where} is {_shown(value)}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProposalError(f"{where} is not Unicode text") from None
    return value


def _shown(value: Any) -> str:
    return printable(repr(value), 60)
