"""Prompt reversal: text that is true of a clip played backwards.

Two rewriters so far. A sentence of the toy grammar is reversed exactly (`toyworld.reverse_caption`); any other prompt
takes the marker form of the paper, "A reversed video of …" (2512.12080), which is always true. What was done, by whom
and with which verdicts is kept with the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from model import toyworld

GRAMMAR_VERSION = "1"
PREFIX_VERSION = "1"


class RewriteError(ValueError):
    """A prompt that cannot be rewritten."""


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt with its provenance.

    `reversal_class` follows Retro-Actions (arXiv:1909.09422): invariant, equivariant, novel, irreversible, or unknown
    where nobody looked; of what is described, whether marked or not. `marker_style` tells what `prompt` is: `prefix`
    (it carries the marker), `inverted` (it has none, words turned), `none` (it has none and no word turned: there was
    nothing to turn, or the source's marker was taken away).
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
        style = "prefix" if _is_marked(marked) else "none"
        return Rewrite(marked, prompt, "prefix", PREFIX_VERSION, "unknown", style, "toy-grammar", marked, verdicts, 1)
    turned = toyworld.reverse_description(description)
    text = toyworld.to_text(turned)
    plain = replace(description, marked=False)
    kind = toyworld.reversal_class(plain)
    style = "prefix" if turned.marked else "none" if turned == plain else "inverted"
    back = toyworld.parse(text)
    returned = back and _meaning(toyworld.reverse_description(back))
    verdicts = (("parses", back is not None), ("round_trip", returned == _meaning(description)))
    return Rewrite(text, prompt, "toy-grammar", GRAMMAR_VERSION, kind, style, None, text, verdicts, 1)


def _meaning(description: toyworld.Description) -> toyworld.Description:
    """One form for what can be said in two: "A reversed video of … moves left" is "… moves right"."""
    plain = replace(description, marked=False)
    return toyworld.reverse_description(plain) if description.marked else description


def _is_marked(prompt: str) -> bool:
    return re.match(re.escape(toyworld.MARKER), prompt, re.IGNORECASE) is not None


def mark(prompt: str) -> str:
    """Put the marker before a prompt, or take it away again: a clip reversed twice is the clip.

    Marked twice a prompt is itself, but begins with a capital.
    """
    if _is_marked(prompt):
        rest = prompt[len(toyworld.MARKER) :]
        return rest[:1].upper() + rest[1:]
    first, _, rest = prompt.partition(" ")
    lowered = first.lower() if first in ("A", "An", "The", "Two", "Some", "One") else first
    return f"{toyworld.MARKER}{lowered}{' ' if rest else ''}{rest}"
