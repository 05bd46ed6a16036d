"""The way that something goes: which words say where to, and which way that is backwards in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.draft import Draft
from model.lexicon import BASE, ING
from model.verbs import Subject, Verb

Mover = Literal["facing", "faceless", "camera"]

# Words that are directions wherever they stand after a verb; others only right after it.
_ANYWHERE = frozenset(
    "forward backward upward downward upwards downwards leftward rightward leftwards rightwards inward outward inwards "
    "outwards clockwise counterclockwise".split()
)
_REFERRING = frozenset({"another", "other", "others", "as", "it's", "it", "its", "them", "their", "him", "her", "his"})
_SIDES = frozenset("left right front back top bottom side other behind above end edge".split())
_PARTS = frozenset("of side edge corner hand half wall lane".split())  # to the left of …, to the left edge
_OWNERS = frozenset({"the", "her", "his", "its", "their"})
_ONWARDS = frozenset("into out from off away up down straight back".split())
_PLACES = frozenset({"behind", "under", "beneath", "below", "underneath"})
PROGRESSIVE = 5  # form of `is opening`, which has no other form to take


@dataclass(frozen=True)
class Act:
    """A verb with its subject; what belongs to it ends before the word at `end`."""

    verb: Verb
    end: int
    subject: Subject

    @property
    def place(self) -> int:
        """Index of the verb."""
        return self.verb.place

    @property
    def lemma(self) -> str:
        """Base form of the verb."""
        return self.verb.lemma

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of the subject."""
        return self.subject.kinds


@dataclass
class Event:
    """A verb that the rules turn: a span of words from `start` to `end`, whose subject stands in [subject, start)."""

    verb: int
    start: int
    form: int
    camera: bool
    lasting: bool  # it may go on while something else happens
    subject: int  # where its subject begins; `start` if it shares the one before
    pronoun: bool
    into: str  # the verb that it becomes
    tail: str  # what is written with that verb
    end: int = 0


class Path(Draft):
    """Directions after verbs, and the events that they belong to."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.events: list[Event] = []

    def record(self, act: Act, into: str = "", tail: str = "", *, camera: bool = False, lasting: bool = True) -> None:
        """Keeps an event for the order of events. into: the verb that it becomes, if another."""
        start, form = act.place, act.verb.form
        while start > self.clause_start[act.place] and (self.info[start - 1].adverb or self.info[start - 1].copula):
            start -= 1
        if form == ING and any(self.info[k].copula for k in range(start, act.place)):
            form = PROGRESSIVE
        begin = act.subject.start if act.subject.own else start
        pronoun = act.subject.head in ("he", "she", "it", "they")
        self.events.append(Event(act.place, start, form, camera, lasting, begin, pronoun, into or act.lemma, tail))

    def path(self, k: int, end: int, mover: Mover, toward: str = "towards") -> int:
        """Turns the directions in [k, end); gives how many were turned. What it cannot tell is a problem.

        toward: what `away from` becomes for a facing mover, of two spellings.
        """
        count, fresh = 0, True  # fresh: a bare `left` or `up` would be a direction here
        ways = 0  # prepositions turned
        while k < end:
            word = self.low[k]
            if self.opaque[k] or self.idiom[k]:
                if self.idiom[k] and word in _ONWARDS:
                    self.problem("novel", f"'{word} {self.at(k + 1)} {self.at(k + 2)}': no rule turns it")
                    return count
                k, fresh = k + 1, False
                continue
            if self.info[k].adverb or (word == "together" and mover == "facing"):  # they walk together either way
                self.explain(k, k + 1)
                k += 1
                continue
            if word in ("up", "down") and self.level(k + 1, end):
                self.problem("novel", f"'{word} the street': whether that is a slope, nobody says")
                return count
            if word == "from" and self.from_to(k, end, "direction"):
                k, fresh, count = max(self.moves[-1][3], k + 1), True, count + 1
                continue
            if word == "from" and any(self.low[j] in ("to", "into") for j in range(end, self.clause_end[k])):
                self.problem("equivariant", f"'from {self.at(k + 1)} …': no rule follows where it leads")
                return count
            if word == "to" and self.aside(k, end):
                if ways:
                    self.problem("equivariant", "a way of two parts, whose order would turn")
                    return count
                self.put(k + 2, self.lex.adverbs[self.low[k + 2]], "direction")
                self.explain(k, k + 2)
                k, fresh, count, ways = k + 3, True, count + 1, ways + 1
                continue
            phrase = self.preposition(k, end)
            if phrase is not None:
                ways += 1
                if ways > 1:
                    self.problem("equivariant", f"'{self.words[k]}': a way of two parts, whose order would turn")
                    return count
                if not self.turn_preposition(k, end, phrase, mover, toward):
                    return count
                k, fresh, count = k + len(phrase[0]), False, count + 1
                continue
            if self.is_direction(word, fresh, mover) and not self.reaches_up(k, mover):
                self.put(k, self.lex.adverbs[word], "direction")
                k, fresh, count = k + 1, True, count + 1
                continue
            if reason := self.unclear(k, end, fresh, mover):
                self.problem("novel", reason)
                return count
            k, fresh = k + 1, False
        return count

    def level(self, k: int, end: int) -> bool:
        """Whether a street or a corridor follows: `down the street` may say along it, and no more."""
        stop = next((j for j in range(k, end) if self.info[j].preposition), end)
        return any("level" in self.info[j].kinds for j in range(k, stop))

    def reaches_up(self, k: int, mover: Mover) -> bool:
        """`walks up to the counter`, in which nobody climbs."""
        return mover == "facing" and self.low[k] == "up" and self.at(k + 1) == "to"

    def is_direction(self, word: str, fresh: bool, mover: Mover) -> bool:
        """Whether a word is a bare direction: `moves left`, `drifts apart`."""
        if word not in self.lex.adverbs or not (fresh or word in _ANYWHERE):
            return False
        if word in ("ahead", "back"):
            return mover == "camera"
        return mover != "facing" or word not in ("apart", "together")

    def unclear(self, k: int, end: int, fresh: bool, mover: Mover) -> str:
        """Why a word leaves the way open; empty if it does not."""
        word = self.low[k]
        if self.reaches_up(k, mover):
            return "'up to': where to is said, and where from is not"
        if mover == "camera":
            return f"'{word}': where to is not said" if word in self.lex.doubtful - _PLACES else ""
        if (
            word in ("in", "out")
            and fresh
            and (k + 1 == end or self.info[k + 1].preposition or self.info[k + 1].adverb)
        ):
            return f"'{word}': where to is not said"
        if word == "apart" and mover == "facing":
            return f"'{word}': no rule turns it"
        if word in ("to", "from", "into", "onto", "toward", "towards"):
            return f"'{word}': what follows it the rules do not know"
        return f"'{word}' may be where the way ends" if word in self.lex.doubtful else ""

    def preposition(self, k: int, end: int) -> tuple[tuple[str, ...], str] | None:
        """The preposition of a way at k and its opposite: (`out`, `of`) and `into`."""
        for phrase, other in self.lex.prepositions.get(self.low[k], ()):
            size = len(phrase)
            if k + size < end and tuple(self.low[k : k + size]) == phrase:
                noun = self.noun_like(k + size) or self.info[k + size].determiner or self.opaque[k + size]
                pronoun = "pronoun" in self.info[k + size].kinds or self.low[k + size] == "each"
                return (phrase, other) if noun or pronoun else None
        return None

    def turn_preposition(self, k: int, end: int, found: tuple[tuple[str, ...], str], mover: Mover, toward: str) -> bool:
        """Turns a preposition; False if that is a problem."""
        phrase, other = found
        if self.info[k - 1].preposition and not self.used[k - 1]:
            self.problem("novel", f"'{self.words[k - 1]} {self.words[k]}': no rule turns it")
            return False
        if phrase == ("to",):
            nxt = self.info[k + 1]
            if not nxt.kinds and any(form == BASE for _, form in nxt.readings):
                self.problem("novel", f"'to {self.low[k + 1]}': a purpose cannot be turned")
                return False
            if any(self.at(j) in _SIDES for j in range(k + 1, min(k + 4, end))):
                self.problem("novel", f"'{' '.join(self.words[k : k + 4])}': where it was before is not said")
                return False
        if mover == "facing":
            if phrase == ("back", "from"):
                self.problem("novel", "'back from': where it was is not said")
                return False
            if phrase == ("away", "from"):
                other = toward
            elif phrase in (("toward",), ("towards",)):
                other = "away from"
        self.put(k, other, "direction", len(phrase))
        return True

    def aside(self, k: int, end: int) -> bool:
        """Whether `to the left` stands at k, and not `to the left of something`."""
        if k + 2 >= end or self.low[k + 1] not in _OWNERS or self.low[k + 2] not in ("left", "right"):
            return False
        return k + 3 >= end or self.low[k + 3] not in _PARTS

    def from_to(self, k: int, end: int, kind: str) -> bool:
        """`from A to B` at k becomes `from B to A`; False if it is not that, or cannot be turned."""
        middle = next((j for j in range(k + 2, end) if self.low[j] in ("to", "into") and not self.opaque[j]), None)
        if middle is None or middle + 1 >= end:
            return False
        first = self.info[middle + 1]
        if not (first.kinds or first.adjective or self.low[middle + 1] in self.lex.adverbs) and any(
            form == BASE for _, form in first.readings
        ):
            return False  # from here to see …
        if any(self.low[j] in _REFERRING for j in range(middle + 1, end)):
            self.problem("equivariant", "a word would stand before what it refers to")
            return False
        stop = middle + 2
        if any(self.info[j].preposition and self.low[j] != "of" for j in range(k + 1, middle)):
            stop = end  # from the cup in front to the woman behind
        while stop < end and not self.info[stop].adverb and (not self.info[stop].preposition or self.low[stop] == "of"):
            stop += 1
        if any((j in self.verb_at and self.verb_at[j].role == "verb") or j in self.to_and_fro for j in range(k, stop)):
            self.problem("equivariant", "something happens where it comes from or leads to")
            return False
        if stop < end and any(self.info[j].determiner for j in range(middle + 1, stop)):
            self.problem("equivariant", f"'{self.words[stop]}': it may belong to where it leads")
            return False
        self.explain(middle, middle + 1)
        self.swap(k + 1, middle, middle + 1, stop, kind)
        return True
