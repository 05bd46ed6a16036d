"""Rewritten prompts: exact in the grammar of the toy world, marked elsewhere, always with their provenance."""

import numpy as np
import pytest

from model import toyworld
from model.rewrite import RewriteError, mark, rewrite

GRAMMAR = {
    "invariant": "a red square spins in place over a tan background",
    "equivariant": "a red circle moves left over a tan background",
    "irreversible": "a red circle fades out over a tan background",
}


def test_grammar_is_exact_for_every_class():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(400):
        program = toyworld.sample_program(rng)
        text = toyworld.caption(program)
        found = rewrite(text)
        assert found.prompt == toyworld.caption(toyworld.reverse(program, 21))
        assert (found.source_prompt, found.raw_output, found.kind) == (text, found.prompt, "toy-grammar")
        assert found.verdicts == (("parses", True), ("round_trip", True))
        assert found.fallback_from is None
        seen.add((found.reversal_class, found.marker_style))
    assert seen == {("invariant", "none"), ("equivariant", "inverted"), ("irreversible", "prefix")}


@pytest.mark.parametrize(("kind", "text"), GRAMMAR.items())
def test_class_says_whether_words_change(kind, text):
    found = rewrite(text)
    assert found.reversal_class == kind
    assert (found.prompt == text) == (kind == "invariant")
    assert found.prompt.startswith(toyworld.MARKER) == (kind == "irreversible")


@pytest.mark.parametrize(("kind", "text"), GRAMMAR.items())
def test_a_marked_sentence_of_the_grammar_loses_its_marker_and_says_so(kind, text):
    found = rewrite(toyworld.MARKER + text)
    assert found.prompt == text
    assert (found.reversal_class, found.marker_style) == (kind, "none")
    assert found.verdicts == (("parses", True), ("round_trip", True))


def test_a_marked_prompt_of_another_kind_loses_its_marker_and_says_so():
    found = rewrite("A reversed video of the tide")
    assert (found.prompt, found.marker_style, found.kind) == ("The tide", "none", "prefix")
    assert rewrite("a reversed video of A reversed video of the tide").marker_style == "prefix"


def test_round_trip_fails_where_the_grammar_does(monkeypatch):
    monkeypatch.setitem(toyworld.EVENTS, "moves left", "moves up")
    assert rewrite(GRAMMAR["equivariant"]).verdicts == (("parses", True), ("round_trip", False))


def test_other_prompts_take_the_marker_and_say_so():
    found = rewrite("The tide comes in.")
    assert found.prompt == found.raw_output == "A reversed video of the tide comes in."
    assert (found.kind, found.marker_style, found.reversal_class) == ("prefix", "prefix", "unknown")
    assert (found.fallback_from, found.version, found.attempts) == ("toy-grammar", "1", 1)
    assert found.verdicts == (("changed", True), ("round_trip", True))


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
    assert dict(rewrite(prompt).verdicts)["round_trip"]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\u00a0\u3000"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(RewriteError, match="empty"):
        rewrite(prompt)


def test_white_space_is_made_even_and_the_source_is_kept():
    found = rewrite("  Ein Hund\u00a0läuft\n über “Gras” 🐕 ")
    assert found.prompt == "A reversed video of Ein Hund läuft über “Gras” 🐕"
    assert found.source_prompt == "  Ein Hund\u00a0läuft\n über “Gras” 🐕 "
