"""Prompt reversal: text that is true of a clip played backwards.

Two rewriters so far. A sentence of the toy grammar is reversed exactly (`toyworld.reverse_caption`); any other prompt
takes the marker form of the paper, "A reversed video of …" (2512.12080), which is always true. What was done, by whom
and with which verdicts is kept with the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model import toyworld

GRAMMAR_VERSION = "1"
PREFIX_VERSION = "1"


class RewriteError(ValueError):
    """A prompt that cannot be rewritten."""


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt with its provenance.

    `reversal_class` follows Retro-Actions (arXiv:1909.09422): invariant, equivariant, novel, irreversible, or unknown
    where nobody looked. `marker_style`: `inverted` (the words turned), `prefix` (the marker), `none` (nothing to turn).
    `verdicts` are (name, passed) in the order they were reached.
    """

    prompt: str
    source_prompt: str
    kind: str
    version: str
    reversal_class: str
    marker_style: str
    fallback_from: str | None
    raw_output: str
    verdicts: tuple[tuple[str, bool], ...]
    attempts: int


def rewrite(prompt: str) -> Rewrite:
    """The prompt of the reversed clip. Raises RewriteError for an empty prompt."""
    source = " ".join(prompt.split())
    if not source:
        raise RewriteError("a prompt to rewrite is empty; expected a sentence")
    description = toyworld.parse(source)
    if description is None:
        marked = mark(source)
        verdicts = (("changed", marked != source), ("round_trip", mark(marked).casefold() == source.casefold()))
        return Rewrite(
            marked, prompt, "prefix", PREFIX_VERSION, "unknown", "prefix", "toy-grammar", marked, verdicts, 1
        )
    text = toyworld.to_text(toyworld.reverse_description(description))
    kind = toyworld.reversal_class(description)
    style = "none" if kind == "invariant" else "prefix" if kind == "irreversible" else "inverted"
    back = toyworld.reverse_caption(text)
    verdicts = (("parses", back is not None), ("round_trip", back == toyworld.to_text(description)))
    return Rewrite(text, prompt, "toy-grammar", GRAMMAR_VERSION, kind, style, None, text, verdicts, 1)


def mark(prompt: str) -> str:
    """Put the marker before a prompt, or take it away again: a clip reversed twice is the clip.

    Marked twice a prompt is itself, but begins with a capital.
    """
    if re.match(re.escape(toyworld.MARKER), prompt, re.IGNORECASE):
        rest = prompt[len(toyworld.MARKER) :]
        return rest[:1].upper() + rest[1:]
    first, _, rest = prompt.partition(" ")
    lowered = first.lower() if first in ("A", "An", "The", "Two", "Some", "One") else first
    return f"{toyworld.MARKER}{lowered}{' ' if rest else ''}{rest}"
