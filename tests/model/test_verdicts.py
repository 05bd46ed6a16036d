"""Checks of a rewrite, in their order: what each lets through, and what it turns down."""

import pytest

from model.rules import reverse
from model.verdicts import Verdict, check, round_trip

CHECKS = (
    "one_line", "length", "language", "no_meta", "motion", "changed", "entities", "numbers", "quotes", "directions",
    "order",
)  # fmt: skip
STREET = "A man in a red coat walks along a street with 3 lamps, then sits down on a bench"


def proposal(text: str, reversal_class: str = "equivariant", **changes) -> dict:
    return {"reversed_prompt": text, "reversal_class": reversal_class, "uses_marker": False, **changes}


def failure(source: str, text: str, reversal_class: str = "equivariant") -> str:
    """Name of the check that fails, "" if none does."""
    verdicts = check(source, proposal(text, reversal_class))
    assert all(verdict.passed for verdict in verdicts[:-1])
    assert tuple(verdict.name for verdict in verdicts) == CHECKS[: len(verdicts)]
    last = verdicts[-1]
    assert last.passed == (not last.detail)
    return "" if last.passed else last.name


def detail(source: str, text: str, reversal_class: str = "equivariant") -> str:
    return check(source, proposal(text, reversal_class))[-1].detail


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("A ball rolls left", "A ball rolls right"),
        ("A ball rolls left", "a ball rolls to the right."),
        ("The camera pans left, 4k, film grain", "The camera pans right, 4k, film grain"),
        ("A dog walks left", "A dog walks backwards to the right"),
        ("A car drives into a garage", "A car reverses out of a garage"),
        ("A car drives into a garage", "A car backs out of a garage"),
        ("The camera orbits clockwise around a statue", "The camera orbits counter-clockwise around a statue"),
        ("The camera orbits clockwise around a statue", "The camera orbits anticlockwise around a statue"),
        ("A man opens the door, then sits down", "A man stands up, then closes the door"),
        ("After opening the door, a man sits down", "After standing up, a man closes the door"),
        ("A man opens the door before sitting down", "A man stands up before closing the door"),
        ("A man sits down after opening the door", "A man closes the door after standing up"),
        ("A paper boat rises. Then it turns left.", "A paper boat turns right. Then it sinks."),
        ("A disc turns from red to blue", "A disc turns from blue to red"),
        ("A zorb turns from pale to dark", "A zorb turns from dark to pale"),  # no rule knows it
        ("a phone screen lights up in a dim room", "a phone screen goes dark in a dim room"),
        ("He takes the coat off the hook", "He puts the coat on the hook"),
        ("Lanterns float upward into the sky", "Lanterns float down out of the sky"),
        ("Two astronauts walk toward each other", "Two astronauts walk backwards away from one another"),
    ],
)
def test_a_good_rewrite_passes_every_check(source, text):
    assert failure(source, text) == ""
    assert [verdict.name for verdict in check(source, proposal(text))] == list(CHECKS)


@pytest.mark.parametrize("source", [STREET, "The camera pans left", "A box on a table, the lid slowly opening"])
def test_what_the_rules_write_passes(source):
    found = reverse(source)
    assert found.prompt is None or failure(source, found.prompt, found.reversal_class) == ""


def test_the_first_failure_stops():
    verdicts = check("A ball rolls left", proposal("I'm sorry, I can't:\n4 cats"))
    assert [(v.name, v.passed) for v in verdicts] == [("one_line", False)]
    verdicts = check("3 balls roll left", proposal("Sure: 4 balls roll left"))
    assert [(v.name, v.passed) for v in verdicts] == [
        ("one_line", True), ("length", True), ("language", True), ("no_meta", False)
    ]  # fmt: skip


def test_the_marker_is_no_plain_words():
    marked = proposal("A reversed video of a ball that rolls left", uses_marker=True)
    assert check("A ball rolls left", marked) == (Verdict("plain_words", False, "it took the marker"),)


# ---- one check after the other


@pytest.mark.parametrize("text", ["", "   ", "\n", "A ball\nrolls right", "A ball\u2028rolls right", "A\r\nball"])
def test_one_line(text):
    assert failure("A ball rolls left", text) == "one_line"


def test_length():
    assert failure("A ball rolls left", "A ball rolls right " * 10) == "length"
    assert failure(f"{STREET} under the old trees of the park", "A bench") == "length"
    assert detail("A ball rolls left", "a " * 13 + "ball") == "14 words for 4"
    assert failure("A ball rolls left", "A ball rolls slowly back along to the right") == ""


@pytest.mark.parametrize(
    "text",
    [
        "A ball rolls вправо",
        "球が右に転がる",
        "Ａ ball rolls right",
        "A bаll rolls right",
    ],  # the last with a Cyrillic а
)
def test_another_script(text):
    assert failure("A ball rolls left", text) == "language"


def test_another_language():
    source = "A ball rolls left past a dog in the yard"
    assert failure(source, "Ein Ball rollt rechts vorbei am Hund im Hof") == "language"
    assert failure("A café by the sea, a ball rolls left", "A café by the sea, a ball rolls right") == ""
    assert failure("東京 street, a ball rolls left", "東京 street, a ball rolls right") == ""


@pytest.mark.parametrize(
    "text",
    [
        "Sure! A ball rolls right",
        "Here is the clip: a ball rolls right",
        "I'm sorry, but I can't help with that",
        "As an AI I see a ball roll right",
        "Reversed prompt: a ball rolls right",
        "Answer: a ball rolls right",
        '{"reversed_prompt": "a ball rolls right"}',
        "A ball rolls right `",
        "A reversed video of a ball that rolls left",
        "A ball rolls left, played in reverse",
        "A ball rolls right, time-reversed",
        "Rewinding: a ball rolls left",
    ],
)
def test_talk_of_the_task(text):
    assert failure("A ball rolls left", text) == "no_meta"


def test_what_the_prompt_says_itself_is_no_talk_of_the_task():
    source = 'A sign "Here is the answer", a ball rolls left'
    assert failure(source, 'A sign "Here is the answer", a ball rolls right') == ""
    assert failure(source, 'Sure: a sign "Here is the answer", a ball rolls right') == "no_meta"


def test_unchanged_text_of_invariant_motion():
    for same in ("A flag sways over a roof", "a flag sways over a roof.", "A  flag sways over a roof"):
        assert failure("A flag sways over a roof", same, "invariant") == ""
    assert failure("A flag sways over a roof", "A flag sways over a roof", "equivariant") == "changed"


def test_unchanged_text_where_the_rules_do_not_agree():
    for source in ("A ball rolls left", "A man juggles", "Rain falls", "A zorb glorps", "The camera zooms in"):
        assert failure(source, source, "invariant") == "changed", source
        assert failure(source, source, "novel") == "changed", source
    for source in ("A skyline from day to night", "Timelapse of a skyline", "Two zorbs, one on the left"):
        assert failure(source, source, "invariant") in ("changed", "motion"), source


def test_unchanged_text_of_a_prompt_that_names_no_motion_is_not_for_the_model():
    assert reverse("A vase on a table").still
    assert failure("A vase on a table", "A vase on a table", "invariant") == "motion"


def test_unchanged_text_that_is_its_own_reversal():
    source = "A ball rolls left, then a ball rolls right"
    assert reverse(source).prompt == source
    assert failure(source, source, "equivariant") == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A man in a red coat walks right past Bob", "alice"),
        ("A man in a coat walks right past Alice", "red"),
        ("A man in a red coat and a dog walk right past Alice", "dog"),
        ("A child in a red coat walks right past Alice", "child"),
        ("A man in a red silk coat, a hat, a scarf and wooden gloves walks right past Alice", "hat"),
        ("A man in a coat walks right past a", "red"),
    ],
)
def test_entities_are_kept(text, word):
    source = "A man in a red coat walks left past Alice"
    assert failure(source, text) == "entities"
    assert word in detail(source, text)
    assert failure(source, "A man in a red coat walks backwards to the right past Alice") == ""


def test_words_that_may_be_verbs_may_go_but_not_be_exchanged():
    assert failure("A submarine lights up the sea", "A submarine goes dark in the sea") == ""
    assert failure("A train moves left", "A bus moves right") == "entities"


@pytest.mark.parametrize(
    "text",
    [
        "4 dogs watch a ball that rolls right",
        "dogs watch a ball that rolls right",
        "three dogs watch a ball that rolls right",
        "3 dogs watch 2 balls that roll right",
    ],
)
def test_numbers_are_kept(text):
    source = "3 dogs watch a ball that rolls left"
    assert failure(source, text) == "numbers"
    assert failure(source, "3 dogs watch a ball that rolls right") == ""


def test_times_and_decimals_are_one_number():
    source = "A ball rolls left for 2.5 m at 12:30"
    assert failure(source, "A ball rolls right for 2.5 m at 12:30") == ""
    assert failure(source, "A ball rolls right for 5.2 m at 12:30") == "numbers"


@pytest.mark.parametrize(("one", "other"), ['""', "“”", "«»"])
def test_quotes_are_kept(one, other):
    source = f"A ball rolls left under a sign that says {one}TURN LEFT{other}"
    assert failure(source, f"A ball rolls right under a sign that says {one}TURN LEFT{other}") == ""
    assert failure(source, f"A ball rolls right under a sign that says {one}TURN RIGHT{other}") == "quotes"
    assert failure(source, "A ball rolls right under a sign that says TURN LEFT") == "quotes"


@pytest.mark.parametrize(
    ("source", "text", "word"),
    [
        ("A ball rolls left", "A ball rolls upward", "right"),
        ("A ball rolls left slowly", "A ball slowly rolls left", "left"),
        ("A red ball rolls left", "A ball, red, rolls left", "left"),
        ("The camera orbits clockwise around a vase", "The camera orbits around a vase", "counterclockwise"),
        ("A dog runs out of the house", "A dog runs backwards out of the house", "out"),
        ("The camera zooms in on a poster", "The camera zooms in from a poster", "in"),
        ("A woman turns on the lamp", "A woman now turns on the lamp", "on"),
        ("The camera zooms in while a door opens", "The camera zooms out while a door opens", "open"),
        ("The camera zooms in while a door opens", "The camera zooms in while a door closes", "in"),
        ("A ball rolls left and a box rises", "A ball rolls left and a box sinks", "left"),
        ("A dog walks left", "A dog walks right", "backwards"),
        ("A car drives into a garage", "A car drives out of a garage", "backwards"),
        ("A man walks to the door", "A man walks backwards to the door", "to"),
    ],
)
def test_directions_that_are_not_turned_or_half_turned(source, text, word):
    assert failure(source, text) == "directions"
    assert word in detail(source, text)


def test_directions_of_what_does_not_move_stay():
    source = "A flag sways on the left of a statue facing right"
    assert failure(source, "On the left of a statue facing right, a flag sways", "invariant") == ""
    assert failure(source, "A flag sways on the right of a statue facing left", "invariant") == "directions"


def test_where_the_rules_abstain_something_must_be_turned():
    source = "A red zorb glorps on the roof"
    assert reverse(source).prompt is None
    assert failure(source, "A crimson zorb glorps on the roof") in ("entities", "directions")
    assert failure(source, "a red zorb glorps on the roof, cinematic") == "directions"
    assert failure(source, "A red zorb glorps down from the roof") == ""


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("A man opens the door, then sits down", "A man closes the door, then stands up"),
        ("A man opens the door. Then he sits down.", "A man closes the door. Then he stands up."),
        ("The dog crosses the yard, then lies down in its basket",
         "The dog crosses the yard backwards, then gets up from its basket"),
        ("After opening the door, a man sits down", "After closing the door, a man stands up"),
        ("A man opens the door before sitting down", "A man closes the door before standing up"),
        ("Before sitting down, a man opens the door", "A man closes the door, then stands up"),
        ("A man sits down after opening the door", "After closing the door, a man stands up"),
        ("The drawer slides out, the lid opens, and finally an owl rises",
         "The drawer slides in, the lid closes, and finally an owl sinks"),
        ("A quiet room. The zorb glorps out, then the lamp blinks.",
         "A quiet room. The zorb glorps in, then the lamp blinks."),
    ],
)  # fmt: skip
def test_order_that_is_told_the_old_way(source, text):
    assert failure(source, text) == "order"


def test_order_of_what_stays_is_no_order_of_events():
    source = "A room in the last light before sunset. A balloon rises in front of the tower."
    assert failure(source, "A room in the last light before sunset. A balloon sinks in front of the tower.") == ""


# ---- the way back


def test_round_trip():
    source = "A ball rolls left past a red house"
    for same in (source, "a ball rolls left past a red house.", "A ball rolls left past the red house"):
        assert round_trip(source, same) == Verdict("round_trip", True)
    assert round_trip(source, "A ball rolls right past a red house").detail == "lost: left; new: right"
    assert (
        round_trip(source, "A box goes left").detail
        == "the way back shares 0.33 of its words with the prompt; at least 0.8"
    )
    assert round_trip(source, None) == Verdict("round_trip", False, "the way back gave no answer")
    assert not round_trip(source, "").passed


# ---- hostile input


@pytest.mark.parametrize(
    "text", ["\x00", "(((((", "[" * 400, "left " * 3000, "\u202eleft", "'" * 300, "then " * 300, "\ud83d", "before ,"]
)
def test_no_text_breaks_the_checks(text):
    for source, rewritten in ((text, "A ball rolls right"), ("A ball rolls left", text), (text, text)):
        verdicts = check(source, proposal(rewritten))
        assert verdicts
        assert all(isinstance(verdict, Verdict) for verdict in (*verdicts, round_trip(source, rewritten)))
