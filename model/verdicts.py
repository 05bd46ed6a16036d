"""Whether a rewritten prompt may stand: what is checked, in which order, and what was found.

A language model's proposal must be one line of the prompt's length and language, talk of the clip and not of the task,
be another text unless all that it names looks the same backwards, keep what is seen (things, numbers, quotes), turn
what the rules turn and the order of what happens, and lead back when it is reversed itself. Every verdict is kept with
the rewrite, also of proposals that were turned down.

Notable: the rules' own words are not asked for, only that no word that they replace stays; a rewrite that is turned
down costs a marker, one that lies costs the truth. None of this looks at the clip; a network cannot tell the direction
of a video reliably (GPT-4o: 53 % of two, AoTBench, arXiv:2506.03340).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.lexicon import lexicon
from model.rules import Ruled
from model.rules import reverse as reverse_by_rules
from model.wording import SENTENCE, is_thing, leading, opposites, pointers, things, told, turnable, words

LENGTHS = (0.5, 2.0)  # words of a rewrite over words of the prompt
SLACK = 4  # words more or less that a short prompt may always gain or lose
LEAST_KEPT = 0.9  # share of what is seen
MOST_NEW = 3  # words that were not in the prompt
MOST_VERBS = 2  # words lost that may be verbs
_ROOT = 4  # letters
LEAST_F1 = 0.8  # of words, after a round trip
_META = re.compile(
    r"\b(sure|certainly|here is|here's|here are|i'm sorry|i am sorry|i cannot|i can't|as an ai|language model|"
    r"reversed prompt|rewritten prompt|the prompt|original prompt|note that)\b|[{}`]|^\W*(answer|output|rewrite)\b",
    re.IGNORECASE,
)
_TALKS = re.compile(
    r"\b(reversed (video|clip|footage)|played (backwards?|in reverse)|in reverse order|rewind\w*|time-?reversed)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_QUOTE = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»")
_CHANGE = re.compile(r"\bto\b|lapse\b", re.IGNORECASE)  # from A to B
_SIDES = ("left", "right", "clockwise", "counterclockwise")
_PARTICLES = {"in": ("out", "back"), "on": ("off",), "to": ("from", "of")}  # elsewhere each may stand
_ACTORS = frozenset({"person", "animal", "vehicle"})
_BACKWARDS = frozenset("backwards backward reverse reverses reversing reversed back backs backing backed".split())
_FREE = frozenset(  # may come and go with a turned verb
    "backwards backward forwards forward reverse reversing back out away toward towards from into onto together "
    "apart".split()
)


@dataclass(frozen=True)
class Verdict:
    """One check: its name, whether it was passed, and what was seen where it was not."""

    name: str
    passed: bool
    detail: str = ""


def check(source: str, proposal: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Verdicts on a language model's proposal, up to the round trip; it stops at the first that fails.

    proposal: `reversal_class` and `reversed_prompt`, as the answer schema of model/template.py has them.
    """
    if proposal.get("uses_marker"):
        return (Verdict("plain_words", False, "it took the marker"),)
    text = str(proposal["reversed_prompt"])
    ruled = reverse_by_rules(" ".join(source.split()))
    verdicts = []
    for name, seen in (
        ("one_line", lambda: "" if len(text.splitlines()) <= 1 and text.strip() else "not one line of text"),
        ("length", lambda: _length(source, text)),
        ("language", lambda: _language(source, text)),
        ("no_meta", lambda: _meta(source, text)),
        ("motion", lambda: _still(source, text, str(proposal["reversal_class"]), ruled)),
        ("changed", lambda: _changed(source, text, str(proposal["reversal_class"]), ruled)),
        ("entities", lambda: _entities(source, text)),
        ("numbers", lambda: _same(_NUMBER.findall(source), _NUMBER.findall(text))),
        ("quotes", lambda: _same(_quotes(source), _quotes(text))),
        ("directions", lambda: _directions(source, text, ruled)),
        ("order", lambda: _order(source, text)),
    ):
        detail = seen()
        verdicts.append(Verdict(name, not detail, detail))
        if detail:
            break
    return tuple(verdicts)


def round_trip(source: str, returned: str | None) -> Verdict:
    """Whether the rewrite, reversed in its turn, is the prompt again: nearly its words, and exactly its directions."""
    if returned is None:
        return Verdict("round_trip", False, "the way back gave no answer")
    one, other = Counter(words(source)), Counter(words(returned))
    shared = sum((one & other).values())
    f1 = 2 * shared / max(sum(one.values()) + sum(other.values()), 1)
    if f1 < LEAST_F1:
        return Verdict(
            "round_trip", False, f"the way back shares {f1:.2f} of its words with the prompt; at least {LEAST_F1}"
        )
    detail = _same(pointers(source), pointers(returned))
    return Verdict("round_trip", not detail, detail)


def _length(source: str, text: str) -> str:
    before, after = len(words(source)), len(words(text))
    low, high = LENGTHS[0] * before - SLACK, LENGTHS[1] * before + SLACK
    return "" if low <= after <= high else f"{after} words for {before}"


def _scripts(text: str) -> set[str]:
    return {unicodedata.name(c, "UNKNOWN").partition(" ")[0] for c in text if c.isalpha()}


def _language(source: str, text: str) -> str:
    if new := _scripts(text) - _scripts(source):
        return f"letters of another script: {', '.join(sorted(new)).lower()}"
    lists = lexicon().words
    common = lists["determiners"] | lists["prepositions"] | lists["copulas"] | {"and"}
    english = [sum(word in common for word in words(one)) for one in (source, text)]
    return "not English" if english[0] >= 3 and 3 * english[1] < english[0] else ""


def _meta(source: str, text: str) -> str:
    for pattern in (_META, _TALKS):
        for found in pattern.finditer(text):
            if found[0].lower() not in source.lower():
                return f"talks of the task: {found[0]!r}"
    return ""


def _still(source: str, text: str, reversal_class: str, ruled: Ruled) -> str:
    """Whether a text that stays tells of anything that stays the same; of nothing, it is not for the model to say."""
    same = words(source) == words(text)
    return "the prompt names no motion" if same and reversal_class == "invariant" and ruled.still else ""


def _changed(source: str, text: str, reversal_class: str, ruled: Ruled) -> str:
    """Whether a rewrite is another text; the same is right where the rules and the model agree that it stays true."""
    if words(source) != words(text):
        return ""
    if ruled.prompt is not None and words(ruled.prompt) == words(text):
        same = ruled.unchanged == (reversal_class == "invariant")
        return "" if same else f"the prompt again, and not {reversal_class}"
    if reversal_class != "invariant":
        return "the prompt again, though its motion is not invariant"
    agreed = ruled.reversal_class == "invariant" and not (pointers(text) or _CHANGE.search(text))
    return "" if agreed else "the prompt again, and the rules do not see that nothing moves one way"


def _derived(one: str, other: str) -> bool:
    """Whether a word stands in another: hook, unhook."""
    return min(len(one), len(other)) >= _ROOT and (one in other or other in one)


def _entities(source: str, text: str) -> str:
    """A word that may be a verb (`light`, `surface`) may go, unless something else comes in its place."""
    lex, before, after = lexicon(), things(source), things(text)
    lost, new = before - after, after - before
    actors = [word for word in new if lex.kinds_of(word) & _ACTORS and word not in lex.readings]
    if actors:
        return f"new: {', '.join(sorted(actors))}"
    gone = {word: n for word, n in lost.items() if word not in _FREE and not any(_derived(word, one) for one in new)}
    missed = sum(n for word, n in gone.items() if word not in lex.readings)
    most = min(MOST_VERBS, sum(before.values()) / 2)
    if missed > (1 - LEAST_KEPT) * sum(before.values()) or sum(gone.values()) - missed > most:
        return f"lost: {', '.join(sorted(lost))}"
    added = [word for word in new.elements() if word not in _FREE]
    return f"new: {', '.join(sorted(added))}" if len(added) > MOST_NEW else ""


def _quotes(text: str) -> list[str]:
    return ["".join(one) for one in _QUOTE.findall(text)]


def _same(before: Sequence[str], after: Sequence[str]) -> str:
    lost, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
    parts = [f"{name}: {', '.join(sorted(found))}" for name, found in (("lost", lost), ("new", new)) if found]
    return "; ".join(parts)


def _directions(source: str, text: str, ruled: Ruled) -> str:
    """Whether all is turned that the rules turn; where they abstain, whether anything is."""
    if words(source) == words(text):
        return ""  # _changed has looked at that
    if ruled.unchanged:
        kept = pointers(source) == pointers(text)
        return "" if kept else _same(pointers(source), pointers(text)) or "what stands has changed places"
    if ruled.prompt is None:
        shared = Counter(words(source)) & Counter(words(text))
        order = [[word for word in words(one) if word in shared] for one in (source, text)]
        small = [[word for word in words(one) if not is_thing(word)] for one in (source, text)]
        return "nothing was turned" if order[0] == order[1] and small[0] == small[1] else ""
    before, wanted, seen = (Counter(turnable(one)) for one in (source, ruled.prompt, text))
    # Each can be said in other words than the rules', but no word that they replace may stay, and sides have no others.
    wrong = {word for word in before - wanted if seen[word] > wanted[word]}
    wrong |= {word for word in _SIDES if seen[word] != wanted[word]}
    for word, others in _PARTICLES.items():
        if any(_ends(span.source) == word and _ends(span.target) in others for span in ruled.spans):
            most = sum(one == word for one in words(ruled.prompt))
            wrong |= {word} if sum(one == word for one in words(text)) > most else set()
    if wanted["backwards"] > before["backwards"] and not any(w in _BACKWARDS for w in words(text)):
        wrong.add("backwards")
    return f"not turned as the rules turn it: {', '.join(sorted(wrong))}" if wrong else ""


def _ends(text: str) -> str:
    return (words(text) or [""])[-1]


def _order(source: str, text: str) -> str:
    """Where one thing is told after another, whether the rewrite tells them the other way round."""
    stays = set(SENTENCE.split(source)) & set(SENTENCE.split(text))
    one, other = told(source, stays), told(text, stays)
    if not one or not other:
        return ""
    subject = leading(source)
    first, last = one[0] - one[1] - subject, one[1] - one[0]
    kept = len(first & other[0]) + len(last & other[1])
    crossed = len((first | opposites(first)) & other[1]) + len((last | opposites(last)) & other[0])
    return "what happened first is still told first" if kept > crossed else ""
