"""The words of a prompt as the checks of a rewrite see them: things, directions, what may be verbs, what comes first.

Notable: nothing here parses; words are sorted by the table of the rules (lexicon.py), so a word that may be a verb or a
thing counts as both. Functions take any text and never raise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Set
from functools import lru_cache
from itertools import takewhile

from model.lexicon import lexicon

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_ORDER = re.compile(r"\b(?:and then|then|finally|before|after)\b", re.IGNORECASE)
_FUNCTION = ("determiners", "prepositions", "conjunctions", "copulas", "modals", "adverbs")
SENTENCE = re.compile(r"(?<=[.!?;])\s+")
_POINTING = frozenset(
    "it one other another larger bigger smaller brighter dimmer darker lighter wider narrower taller shorter".split()
)
_ONE_SPELLING = {
    other: one
    for one, others in {
        "left": "leftward leftwards right-to-left", "right": "rightward rightwards left-to-right",
        "up": "upward upwards", "down": "downward downwards", "in": "inward inwards", "out": "outward outwards",
        "towards": "toward", "backwards": "backward reverse", "forwards": "forward",
        "counterclockwise": "anticlockwise counter-clockwise anti-clockwise",
    }.items()
    for other in others.split()
}  # fmt: skip


def words(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def things(text: str) -> Counter[str]:
    """What is seen: words that are no function words, directions, adverbs or mere verbs; plurals cut short."""
    return Counter(stem(word) for word in words(text) if not word.isdigit() and is_thing(word))


@lru_cache(maxsize=1 << 16)  # a bound, since prompts come from outside
def is_thing(word: str) -> bool:
    """Whether a word in lower case names or describes something, though it may be a verb elsewhere."""
    lex = lexicon()
    kinds = lex.kinds_of(word)
    small = any(word in lex.words[name] for name in _FUNCTION)
    if small or word in lexicon().residual or word in _POINTING or "pronoun" in kinds:
        return False
    return bool(kinds) or word not in lex.readings


def pointers(text: str) -> list[str]:
    """Words of direction, in one spelling."""
    return [_ONE_SPELLING.get(w, w) for w in words(text) if w in lexicon().residual]


def turnable(text: str) -> list[str]:
    """Words of direction, and what may be verbs, in one form each."""
    lex = lexicon()
    return [
        _ONE_SPELLING.get(word, word) if word in lexicon().residual else stem(word)
        for word in words(text)
        if word in lexicon().residual or word in lex.readings
    ]


def told(text: str, stays: Set[str]) -> tuple[set[str], set[str]] | None:
    """Words of what is told to happen first and of what happens last, in the first sentence outside `stays` that has a
    word of order; None where there is none."""
    before = ""
    for sentence in SENTENCE.split(text):
        found = _ORDER.search(sentence)
        if found and sentence not in stays:
            break
        before = sentence
    else:
        return None
    word, begins = found[0].lower(), not sentence[: found.start()].strip()
    if begins:  # "After X, Y" or "X. Then Y"
        steps = sentence[found.end() :].split(",", 1) if word in ("before", "after") else [before, sentence]
    elif "finally" in sentence.lower():
        steps = _ORDER.sub(",", sentence).split(",")
    else:
        steps = _ORDER.split(sentence)
    steps = [step for step in steps if step.strip(" ,")]
    if len(steps) < 2:
        return None
    if word in ("before", "after") and (word == "before") == begins:  # "Before X, Y" and "X after Y"
        steps = steps[::-1]
    first, last = ({*things(step), *turnable(step)} for step in (steps[0], steps[-1]))
    return first, last


def leading(text: str) -> set[str]:
    """Words before the first that can only be a verb: a subject stays in front, whatever it does first."""
    return {stem(w) for w in takewhile(lambda w: is_thing(w) or w not in lexicon().readings, words(text))}


def opposites(verbs: set[str]) -> set[str]:
    """Verbs that the rules may put for these, but for these themselves."""
    return {swap.other for verb in verbs for swap in lexicon().swaps.get(verb, ())} - verbs


def stem(word: str) -> str:
    """One form of a noun's or a verb's forms."""
    readings = lexicon().readings.get(word)
    return readings[0][0] if readings else word.removesuffix("'s").removesuffix("s")
