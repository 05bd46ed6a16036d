"""Rewritten prompts: who rewrites in which order and style, exact in the toy grammar, always with their provenance."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from model import toyworld
from model.lexicon import lexicon
from model.rewrite import (
    CLASSES,
    Advice,
    Attempt,
    Override,
    RewriteError,
    is_marked,
    mark,
    rewrite,
    rewrite_all,
    versions,
    wants_model,
)
from model.rules import Span
from model.verdicts import Verdict

GRAMMAR = {
    "invariant": "a red square spins in place over a tan background",
    "equivariant": "a red circle moves left over a tan background",
    "irreversible": "a red circle fades out over a tan background",
}
EXACT = (Verdict("parses", True), Verdict("round_trip", True))
STYLES = ("prefix", "inverted", "auto")


# ---- the toy grammar


def test_grammar_is_exact_for_every_class():
    rng = np.random.default_rng(3)
    seen, events, turned = Counter(), set(), {}
    while len(turned) < 5_200:
        program = toyworld.sample_program(rng)
        text = toyworld.caption(program)
        gold = toyworld.caption(toyworld.reverse(program, 21))
        if turned.setdefault(text, gold) != gold:
            raise AssertionError(f"{text} has two reversals")
        events |= {shape.event for shape in program.shapes}
        seen[toyworld.reversal_class(toyworld.describe(program))] += 1
    assert set(seen) == {"invariant", "equivariant", "irreversible"}
    assert min(seen.values()) > 200
    assert events >= {*toyworld.EVENTS, *toyworld.IRREVERSIBLE}
    styles = {"invariant": "none", "equivariant": "inverted", "irreversible": "prefix"}
    for text, gold in turned.items():
        found = rewrite(text)
        assert found.prompt == gold, text
        assert (found.source_prompt, found.raw_output, found.kind) == (text, found.prompt, "toy-grammar")
        assert (found.verdicts, found.fallback_from, found.version) == (EXACT, (), versions()["toy-grammar"])
        assert found.marker_style == styles[found.reversal_class]
        assert found.reasons[0].startswith("toy grammar: ")
        assert len(found.attempts) == 1
        assert rewrite(gold).prompt == text


@pytest.mark.parametrize(("kind", "text"), GRAMMAR.items())
def test_class_says_whether_words_change(kind, text):
    found = rewrite(text)
    assert found.reversal_class == kind
    assert (found.prompt == text) == (kind == "invariant")
    assert is_marked(found.prompt) == (kind == "irreversible")
    assert rewrite(text, "inverted") == found


@pytest.mark.parametrize(("kind", "text"), GRAMMAR.items())
def test_in_the_grammar_too_a_prefix_is_put_before_everything(kind, text):
    found = rewrite(text, "prefix")
    assert found.prompt == toyworld.MARKER + text
    assert (found.reversal_class, found.marker_style, found.kind) == (kind, "prefix", "toy-grammar")
    assert found.verdicts == EXACT


def test_spans_name_what_changed():
    found = rewrite("a red circle turns blue and a white square grows over a tan background, the camera pans up")
    assert [(span.source, span.target) for span in found.spans] == [
        ("red circle turns blue", "blue circle turns red"), ("white square grows", "white square shrinks"),
        ("pans up", "pans down"),
    ]  # fmt: skip
    assert rewrite(GRAMMAR["invariant"]).spans == rewrite(GRAMMAR["irreversible"]).spans == ()


@pytest.mark.parametrize(("kind", "text"), GRAMMAR.items())
def test_a_marked_sentence_of_the_grammar_loses_its_marker_and_says_so(kind, text):
    found = rewrite(toyworld.MARKER + text)
    assert found.prompt == text
    assert (found.reversal_class, found.marker_style) == (kind, "none")
    assert found.verdicts == EXACT


def test_round_trip_fails_where_the_grammar_does(monkeypatch):
    monkeypatch.setitem(toyworld.EVENTS, "moves left", "moves up")
    assert rewrite(GRAMMAR["equivariant"]).verdicts == (Verdict("parses", True), Verdict("round_trip", False))


# ---- the marker


def test_a_marked_prompt_of_another_kind_loses_its_marker_and_says_so():
    for style in STYLES:
        found = rewrite("A reversed video of the tide", style)
        assert (found.prompt, found.marker_style, found.kind) == ("The tide", "none", "prefix")
        assert found.reasons == ("its marker was taken away: reversed twice is forwards",)
    assert rewrite("a reversed video of A reversed video of the tide").marker_style == "prefix"


def test_prompts_without_plain_words_take_the_marker_and_say_so():
    found = rewrite("A man juggles.")
    assert found.prompt == found.raw_output == "A reversed video of a man juggles."
    assert (found.kind, found.marker_style, found.reversal_class) == ("prefix", "prefix", "novel")
    assert (found.fallback_from, found.version) == (("rules",), versions()["prefix"])
    assert found.verdicts == (Verdict("changed", True), Verdict("round_trip", True))
    rules, prefix = found.attempts
    assert (rules.rewriter, rules.prompt, rules.verdicts[0].passed) == ("rules", None, False)
    assert rules.verdicts[0].detail == "; ".join(found.reasons) == "'juggles' has no plain word backwards"
    assert (prefix.rewriter, prefix.prompt) == ("prefix", found.prompt)
    assert [(span.source, span.target) for span in found.spans] == [("", "A reversed video of")]


@pytest.mark.parametrize(
    "prompt",
    [
        "A dog runs",
        "An owl lands",
        "The tide comes in",
        "Two dogs play",
        "Some rain falls",
        "One leaf drops",
        "Alice runs",
        "THE END",
        "Theodore sits",
        "A",
        "Élan vital",
        "3 cars pass",
        "犬が走る",
        "A reversed video of the tide",
    ],
)
def test_marked_twice_is_the_prompt(prompt):
    assert mark(prompt) != prompt
    assert mark(mark(prompt)) == prompt


@pytest.mark.parametrize(
    ("prompt", "marked"),
    [
        ("Alice runs", "A reversed video of Alice runs"),
        ("Two dogs", "A reversed video of two dogs"),
        ("a dog runs", "A reversed video of a dog runs"),
        ("a ReVersed VIDEO of the tide", "The tide"),
        ("A reversed video of Alice runs", "Alice runs"),
        ("A reversed videotape", "A reversed video of a reversed videotape"),
    ],
)
def test_marks(prompt, marked):
    assert mark(prompt) == marked


@pytest.mark.parametrize("prompt", ["a dog runs", "iris opens", "a reversed video of the tide"])
def test_a_capital_does_not_fail_the_round_trip(prompt):
    for style in STYLES:
        assert rewrite(prompt, style).verdicts[-1] == Verdict("round_trip", True)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\u00a0\u3000"])
def test_an_empty_prompt_is_refused(prompt):
    for call in (rewrite, wants_model):
        with pytest.raises(RewriteError, match="empty"):
            call(prompt, "auto")


def test_white_space_is_made_even_and_the_source_is_kept():
    found = rewrite("  Ein Hund\u00a0läuft\n über “Gras” 🐕 ")
    assert found.prompt == "A reversed video of Ein Hund läuft über “Gras” 🐕"
    assert found.source_prompt == "  Ein Hund\u00a0läuft\n über “Gras” 🐕 "


# ---- styles


@pytest.mark.parametrize(
    ("source", "prefix", "inverted", "auto"),
    [
        ("A ball rolls left", "prefix", "inverted", "inverted"),
        ("A dog runs out of the house", "prefix", "inverted", "inverted"),
        ("A flag sways", "prefix", "none", "none"),
        ("A vase on a table", "prefix", "none", "prefix"),  # it names no motion
        ("A man juggles", "prefix", "prefix", "prefix"),
        ("Milk pours into a glass", "prefix", "prefix", "prefix"),
        ("A man juggles while a ball rolls left", "prefix", "prefix", "prefix"),
    ],
)
def test_styles(source, prefix, inverted, auto):
    for style, expected in zip(STYLES, (prefix, inverted, auto), strict=True):
        found = rewrite(source, style)
        assert found.marker_style == expected, style
        assert is_marked(found.prompt) == (expected == "prefix")
        assert (found.prompt == source) == (expected == "none")
        assert found.kind == ("prefix" if expected == "prefix" else "rules")
        assert found.reversal_class in CLASSES
        assert found.reasons
        assert all(found.reasons)
        assert found.attempts[-1].prompt == found.prompt
        assert found.attempts[-1].verdicts == found.verdicts
        assert (found.fallback_from == ("rules",)) == (expected == "prefix" and style != "prefix")
    assert len({rewrite(source, style).reversal_class for style in STYLES}) == 1


def test_the_rules_say_what_they_did():
    found = rewrite("A ball rolls left")
    assert (found.prompt, found.kind, found.reversal_class) == ("A ball rolls right", "rules", "equivariant")
    assert [(span.source, span.target, span.kind) for span in found.spans] == [("left", "right", "direction")]
    assert found.version == versions()["rules"] == f"{lexicon().version}-{lexicon().sha256[:12]}"
    assert (found.raw_output, found.author) == ("A ball rolls right", None)


def test_nothing_is_turned_and_marked():
    for style in STYLES:
        for source in ("A ball rolls left", "A man juggles while a ball rolls left"):
            found = rewrite(source, style)
            assert not (is_marked(found.prompt) and "right" in found.prompt)


# ---- people


def test_an_override_stands_as_it_is():
    by = Override("A ball  glides right", "v1", "equivariant", "Ada", "glides is what it does")
    for style in STYLES:
        for source in ("A ball rolls left", GRAMMAR["equivariant"], "A reversed video of the tide"):
            found = rewrite(source, style, override=by, advice=advice("no"))
            assert (found.prompt, found.raw_output) == ("A ball glides right", "A ball  glides right")
            assert (found.kind, found.version, found.author) == ("override", "v1", "Ada")
            assert (found.reasons, found.reversal_class) == (("glides is what it does",), "equivariant")
            assert [one.rewriter for one in found.attempts] == ["override"]
            assert found.fallback_from == ()


@pytest.mark.parametrize(
    ("source", "text", "style", "kind", "changed"),
    [
        ("A ball rolls left", "A ball rolls right", "inverted", "equivariant", True),
        ("A ball rolls left", "A reversed video of a ball that rolls left", "prefix", "equivariant", True),
        ("A flag sways over a roof", "A flag sways over a roof", "none", "invariant", True),
        ("A ball rolls left", "A ball rolls left", "none", "equivariant", False),  # recorded, not refused
        ("A reversed video of the tide", "The tide", "none", "novel", True),
    ],
)
def test_an_override_says_what_it_is(source, text, style, kind, changed):
    found = rewrite(source, override=Override(text, "v1"))
    assert (found.marker_style, found.verdicts) == (style, (Verdict("changed", changed),))
    assert found.reasons == ("a person said so",)
    assert kind == "novel" or found.reversal_class == kind


def test_an_empty_override_is_refused():
    with pytest.raises(RewriteError, match="empty"):
        rewrite("A ball rolls left", override=Override(" ", "v1"))


# ---- language models


def advice(prompt: str | None, reversal_class: str | None = "novel") -> Advice:
    """What a model said, at its second try."""
    first = Attempt("llm", None, (Verdict("parses", False, "no JSON"),), "hm", {"error": "no JSON"})
    second = Attempt("llm", prompt, (Verdict("parses", True), Verdict("changed", prompt is not None)), "raw", {})
    return Advice(prompt, reversal_class, (Span("juggles", "unjuggles", "verb"),), (first, second), "m@1, template 1")


def test_accepted_advice_stands_before_the_rules():
    for source in ("A man juggles", "A ball rolls left"):
        found = rewrite(source, advice=advice("A man  unjuggles"))
        assert (found.prompt, found.kind, found.version) == ("A man unjuggles", "llm", "m@1, template 1")
        assert (found.reversal_class, found.marker_style, found.raw_output) == ("novel", "inverted", "raw")
        assert [one.rewriter for one in found.attempts] == ["llm", "llm"]
        assert found.verdicts == found.attempts[-1].verdicts
        assert (found.fallback_from, len(found.spans)) == ((), 1)
        assert found.reasons == ("so the language model said",)


def test_advice_that_leaves_a_prompt_as_it_is():
    found = rewrite("A flag sways over a roof", advice=advice("A flag sways over a roof", "invariant"))
    assert (found.marker_style, found.reversal_class, found.kind) == ("none", "invariant", "llm")


def test_after_advice_that_failed_the_rules_then_the_marker():
    found = rewrite("A ball rolls left", advice=advice(None))
    assert (found.prompt, found.kind, found.fallback_from) == ("A ball rolls right", "rules", ("llm",))
    assert [one.rewriter for one in found.attempts] == ["llm", "llm", "rules"]
    assert found.reversal_class == "equivariant"  # the rules are surer of what they turned
    found = rewrite("A man juggles", advice=advice(None, "irreversible"))
    assert (found.kind, found.fallback_from) == ("prefix", ("llm", "rules"))
    assert [one.rewriter for one in found.attempts] == ["llm", "llm", "rules", "prefix"]
    assert found.reversal_class == "irreversible"
    assert rewrite("A man juggles", advice=advice(None, None)).reversal_class == "novel"


def test_advice_does_not_matter_where_it_is_not_asked():
    for source in (*GRAMMAR.values(), "A reversed video of the tide"):
        assert not wants_model(source, "auto")
        assert rewrite(source, advice=advice("no")) == rewrite(source)
    assert not wants_model("A man juggles", "prefix")
    assert rewrite("A man juggles", "prefix", advice=advice("no")) == rewrite("A man juggles", "prefix")
    assert wants_model("A man juggles", "inverted")


# ---- many


def test_many_at_once_are_each_on_their_own():
    prompts = [" A  ball rolls left", "A man juggles", GRAMMAR["equivariant"], "A man juggles", "A lamp flickers"]
    overrides = {"A ball rolls left": Override("A ball rolls right, slowly", "v1")}
    said = {"A man juggles": advice("A man unjuggles"), "A lamp flickers": advice(None)}
    found = rewrite_all(prompts, overrides=overrides, advice=said)
    assert [one.kind for one in found] == ["override", "llm", "toy-grammar", "llm", "rules"]
    assert [one.source_prompt for one in found] == prompts
    assert found[1] == found[3]
    assert rewrite_all(prompts) == [rewrite(prompt) for prompt in prompts]
    assert rewrite_all([]) == []
    with pytest.raises(RewriteError, match="empty"):
        rewrite_all(["A man juggles", " "])


def test_a_rewrite_is_a_pure_function():
    for source in ("A ball rolls left", "A man juggles", *GRAMMAR.values()):
        assert rewrite(source) == rewrite(source)
        assert replace(rewrite(source), source_prompt="") == replace(rewrite(f" {source} "), source_prompt="")
