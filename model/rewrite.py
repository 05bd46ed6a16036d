"""Prompt reversal: text that is true of a clip played backwards.

Whoever can rewrites, in this order: a person (an override), the toy grammar, which is exact, a language model whose
proposal passes every check (verdicts.py), the rules (rules.py), and at last the marker of the paper, "A reversed
video of …" (BAgger, arXiv:2512.12080), which is always true. Nothing is lost: every prompt ends with a rewrite and
with the reason for it, and everything that was tried is kept with it.

Marker styles: `prefix` puts the marker before every prompt. `inverted` turns the words wherever a rewrite is valid;
where none is, the marker stands in. `auto` does the same, and also marks prompts that name no motion: their clips
move, and nothing would say which way. No text is ever turned and marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from model import rules, toyworld
from model.lexicon import lexicon
from model.verdicts import Verdict

GRAMMAR_VERSION = "1"
PREFIX_VERSION = "1"
CLASSES = ("invariant", "equivariant", "novel", "irreversible")
Style = Literal["prefix", "inverted", "auto"]


_MARKED = rules.Span("", toyworld.MARKER.strip(), "marker")


class RewriteError(ValueError):
    """A prompt that cannot be rewritten."""


@dataclass(frozen=True)
class Attempt:
    """One try of one rewriter: what it answered and what was found of it.

    `facts` holds what is known of a language model's answer: request digest, sampling, seed, tokens, seconds, error.
    """

    rewriter: str
    prompt: str | None
    verdicts: tuple[Verdict, ...] = ()
    raw_output: str = ""
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Override:
    """A person's rewrite of one prompt; `version` is the digest of the entry."""

    prompt: str
    version: str
    reversal_class: str | None = None
    author: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Advice:
    """What a language model came to: its accepted text, its class and spans; None where it knows none; all it tried."""

    prompt: str | None
    reversal_class: str | None
    spans: tuple[rules.Span, ...]
    attempts: tuple[Attempt, ...]
    version: str


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt with its provenance.

    `reversal_class` follows Retro-Actions (arXiv:1909.09422): invariant, equivariant, novel or irreversible; of what is
    described, whether marked or not. `marker_style` tells what `prompt` is: `prefix` (it carries the marker),
    `inverted` (words turned, no marker), `none` (neither: there was nothing to turn, or the source's marker was taken
    away). `kind` is who made it: override, toy-grammar, llm, rules or prefix; `fallback_from` names who gave up before,
    in order. `verdicts` are those of the rewrite that stands, `attempts` everything that was tried, the last one it.
    """

    prompt: str
    source_prompt: str
    kind: str
    version: str
    reversal_class: str
    reasons: tuple[str, ...]
    marker_style: str
    spans: tuple[rules.Span, ...]
    verdicts: tuple[Verdict, ...]
    attempts: tuple[Attempt, ...]
    fallback_from: tuple[str, ...]
    raw_output: str
    author: str | None = None


def versions() -> dict[str, str]:
    """Version of every rewriter that needs no network; what the rules know is part of theirs."""
    words = lexicon()
    return {"toy-grammar": GRAMMAR_VERSION, "rules": f"{words.version}-{words.sha256[:12]}", "prefix": PREFIX_VERSION}


def wants_model(prompt: str, style: Style) -> bool:
    """Whether a language model has anything to say on a prompt that no person has rewritten."""
    source = even(prompt)
    return style != "prefix" and not is_marked(source) and toyworld.parse(source) is None


def rewrite(
    prompt: str, style: Style = "auto", *, override: Override | None = None, advice: Advice | None = None
) -> Rewrite:
    """The prompt of the reversed clip.

    override: what a person wrote; it stands as it is. advice: what a language model was asked before, if one was.
    Raises RewriteError for an empty prompt.
    """
    source = even(prompt)
    if override is not None:
        return _overridden(prompt, source, override)
    description = toyworld.parse(source)
    if description is not None:
        return _by_grammar(prompt, description, style)
    if is_marked(source):
        return _unmarked(prompt, source)
    ruled = rules.reverse(source)
    if style == "prefix":
        return _marked(prompt, source, ruled.reversal_class, ruled.reasons)
    if advice is not None and advice.prompt is not None:
        return _advised(prompt, source, advice)
    made = _by_rules(prompt, source, ruled, style)
    if advice is None:
        return made
    kind = made.reversal_class if made.kind == "rules" else advice.reversal_class or made.reversal_class
    return replace(
        made,
        reversal_class=kind,
        attempts=(*advice.attempts, *made.attempts),
        fallback_from=("llm", *made.fallback_from),
    )


def even(prompt: str) -> str:
    """A prompt with single spaces. Raises RewriteError if it is empty."""
    source = " ".join(prompt.split())
    if not source:
        raise RewriteError("a prompt to rewrite is empty; expected a sentence")
    return source


def _overridden(prompt: str, source: str, override: Override) -> Rewrite:
    text = even(override.prompt)
    style = "prefix" if is_marked(text) else "none" if text == source or is_marked(source) else "inverted"
    kind = override.reversal_class or rules.reverse(source).reversal_class
    verdicts = (Verdict("changed", text != source or kind == "invariant"),)
    attempt = Attempt("override", text, verdicts, override.prompt)
    reasons = (override.reason or "a person said so",)
    return Rewrite(
        text, prompt, "override", override.version, kind, reasons, style, (), verdicts, (attempt,), (), override.prompt,
        override.author,
    )  # fmt: skip


def _by_grammar(prompt: str, description: toyworld.Description, style: Style) -> Rewrite:
    """Exact in the grammar of the toy world, whichever the style."""
    plain = replace(description, marked=False)
    kind = toyworld.reversal_class(plain)
    if style == "prefix":
        turned = replace(description, marked=not description.marked)
    else:
        turned = toyworld.reverse_description(description)
    text = toyworld.to_text(turned)
    back = toyworld.parse(text)
    returned = back and _meaning(toyworld.reverse_description(back))
    verdicts = (Verdict("parses", back is not None), Verdict("round_trip", returned == _meaning(description)))
    marker = "prefix" if turned.marked else "none" if turned == plain else "inverted"
    spans = tuple(rules.Span(a, b, "grammar") for a, b in _differences(plain, turned))
    reason = {"invariant": "nothing it tells changes", "equivariant": "every motion it tells has its opposite"}.get(
        kind, "a motion it tells has no opposite"
    )
    attempt = Attempt("toy-grammar", text, verdicts, text)
    return Rewrite(
        text, prompt, "toy-grammar", GRAMMAR_VERSION, kind, (f"toy grammar: {reason}",), marker, spans, verdicts,
        (attempt,), (), text,
    )  # fmt: skip


def _by_rules(prompt: str, source: str, ruled: rules.Ruled, style: Style) -> Rewrite:
    """What the rules give, else the marker."""
    text = ruled.prompt
    if style == "inverted" and ruled.still:
        text = source  # nothing moves, so nothing is to be marked
    if text is None:
        tried = Attempt("rules", None, (Verdict("understood", False, "; ".join(ruled.reasons)),))
        return _marked(prompt, source, ruled.reversal_class, ruled.reasons, tried)
    unchanged = text == source
    verdicts = (Verdict("understood", True), Verdict("round_trip", True))
    return Rewrite(
        text, prompt, "rules", versions()["rules"], ruled.reversal_class, ruled.reasons,
        "none" if unchanged else "inverted", ruled.spans, verdicts, (Attempt("rules", text, verdicts, text),), (), text,
    )  # fmt: skip


def _differences(one: toyworld.Description, other: toyworld.Description) -> list[tuple[str, str]]:
    """What changed between two descriptions, as (before, after)."""
    if other.marked or one == other:
        return []
    pairs = [(" ".join(a), " ".join(b)) for a, b in zip(one.subjects, other.subjects, strict=True)]
    return [(a, b) for a, b in [*pairs, (one.camera, other.camera)] if a != b]


def _meaning(description: toyworld.Description) -> toyworld.Description:
    """One form for what can be said in two: "A reversed video of … moves left" is "… moves right"."""
    plain = replace(description, marked=False)
    return toyworld.reverse_description(plain) if description.marked else description


def _unmarked(prompt: str, source: str) -> Rewrite:
    text = mark(source)
    ruled = rules.reverse(even(text))
    reasons = ("its marker was taken away: reversed twice is forwards",)
    return _marked(prompt, source, ruled.reversal_class, reasons)


def _marked(prompt: str, source: str, kind: str, reasons: tuple[str, ...], *tried: Attempt) -> Rewrite:
    """The marker put before a prompt, or taken away; tried: what gave up before."""
    text = mark(source)
    marked = is_marked(text)
    verdicts = (Verdict("changed", text != source), Verdict("round_trip", mark(text).casefold() == source.casefold()))
    return Rewrite(
        text, prompt, "prefix", PREFIX_VERSION, kind, reasons, "prefix" if marked else "none",
        (_MARKED,) if marked else (), verdicts, (*tried, Attempt("prefix", text, verdicts, text)),
        tuple(one.rewriter for one in tried), text,
    )  # fmt: skip


def _advised(prompt: str, source: str, advice: Advice) -> Rewrite:
    assert advice.prompt is not None
    last = advice.attempts[-1]
    text = even(advice.prompt)
    return Rewrite(
        text, prompt, "llm", advice.version, advice.reversal_class or "novel", ("so the language model said",),
        "none" if text == source else "inverted", advice.spans, last.verdicts, advice.attempts, (), last.raw_output,
    )  # fmt: skip


def is_marked(prompt: str) -> bool:
    """Whether a prompt carries the marker."""
    return prompt[: len(toyworld.MARKER)].lower() == toyworld.MARKER.lower()


def mark(prompt: str) -> str:
    """Put the marker before a prompt, or take it away again: a clip reversed twice is the clip.

    Marked twice a prompt is itself, but begins with a capital.
    """
    if is_marked(prompt):
        rest = prompt[len(toyworld.MARKER) :]
        return rest[:1].upper() + rest[1:]
    first, _, rest = prompt.partition(" ")
    lowered = first.lower() if first in ("A", "An", "The", "Two", "Some", "One") else first
    return f"{toyworld.MARKER}{lowered}{' ' if rest else ''}{rest}"


def rewrite_all(
    prompts: Sequence[str],
    style: Style = "auto",
    *,
    overrides: Mapping[str, Override] | None = None,
    advice: Mapping[str, Advice] | None = None,
) -> list[Rewrite]:
    """`rewrite` for many prompts, in order; overrides and advice by even source prompt."""
    overrides, advice = overrides or {}, advice or {}
    return [rewrite(one, style, override=overrides.get(even(one)), advice=advice.get(even(one))) for one in prompts]
