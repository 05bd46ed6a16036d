"""Actions that have an opposite, `sit down` and `stand up`, and changes from one state to another."""

from __future__ import annotations

from model.going import Going
from model.lexicon import Swap
from model.path import Act
from model.verbs import CHANGING, FACING

_BOUND = frozenset({"up", "down", "off", "out", "away"})  # particles that make another verb: close up, fold away
_BOUND_BARE = frozenset({"in", "on", "over"})  # where no noun follows them: closes in
_VERTICAL = frozenset({"rise", "sink", "climb", "raise", "lower"})  # not of these
_IDIOMATIC = frozenset({"from", "out", "into", "off", "up", "down"})  # from behind
_PLACED = frozenset({"in", "at", "into", "onto", "against", "beside", "by", "next", "under", "behind"})
_ALIVE = frozenset({"grow", "shrink", "expand", "contract"})  # what people and animals do otherwise
_WAYS = frozenset({"to", "from", "into", "onto", "toward", "towards", "above", "around", "half"})


class Opposites(Going):
    """Verbs of the table of opposites, where its gates are met."""

    def opposite(self, act: Act, *, passive: bool = False) -> bool:
        """Turns a verb into its opposite; False if the table has none that fits."""
        word = self.words[act.place]
        for swap in self.lex.swaps.get(act.lemma, ()):
            place = self.particle(act, swap)
            if place is None:
                continue
            begin = act.place + 1 if place != act.place + 1 else place + len(swap.particle.split())
            obj = act.subject.head if passive else self.object(begin, act.end, place)
            if not self.gates(swap, act, obj) or (swap.intransitive and obj):
                continue
            if swap.lasting and swap.subject and obj and not swap.particle:
                self.problem("equivariant", f"'{word} … {obj}': no rule turns how it ends")
                return True
            told = range(begin, self.object_end(begin, act.end))
            if passive or not obj:
                told = range(act.subject.start, act.place)
            if any(self.low[k] in self.lex.words["resulting"] for k in told):
                self.problem("equivariant", f"'{word}': its object is told in the state before")
                return True
            self.turn(act, swap, place)
            return True
        return False

    def particle(self, act: Act, swap: Swap) -> int | None:
        """Where the particle stands: right after the verb, or after its object; at the verb where none is needed."""
        after = self.skip_adverbs(act.place + 1, act.end)
        if not swap.particle:
            word = self.low[after] if after < act.end else ""
            bare = after + 1 >= act.end or self.info[after + 1].preposition
            other = (word in _BOUND or (word in _BOUND_BARE and bare)) and swap.verb not in _VERTICAL
            return None if other else act.place
        words = swap.particle.split()
        parted = bool(swap.object or swap.either)  # picks the cup up; but not: lies face down
        for k in range(act.place + 1, act.end if parted else min(act.end, after + 1)):
            if self.low[k : k + len(words)] == words and k + len(words) <= act.end:
                return k
            if k > act.place + 1 and self.info[k].preposition and self.low[k] != "of":
                return None
        return None

    def gates(self, swap: Swap, act: Act, obj: str) -> bool:
        """Whether subject and object are of the kinds that the table asks for."""
        kinds = self.lex.kinds_of(obj)
        if swap.subject and not act.kinds & swap.subject:
            return False
        if swap.object and not kinds & swap.object:
            return False
        if swap.either and not (kinds if obj else act.kinds) & swap.either:
            return False
        if swap.place and not any(swap.place & self.info[k].kinds for k in range(act.place + 1, act.end)):
            return False
        return not (act.kinds & {"animal", "person"} and swap.verb in _ALIVE)

    def turn(self, act: Act, swap: Swap, place: int) -> None:
        """Puts the opposite in the place of a verb and its particle, and turns the prepositions that hang on it."""
        i, size = act.place, len(swap.particle.split())
        target = self.lex.forms[swap.other][act.verb.form]
        tail = "" if swap.particle else swap.other_particle
        if target != self.low[i]:
            self.put(i, f"{target} {tail}".rstrip(), "opposite")
        if swap.particle:
            self.put(place, swap.other_particle, "opposite", size)
        after = max(place + size, i + 1)
        for here, there in swap.links:
            k = next((k for k in range(after, act.end) if self.low[k] == here and not self.used[k]), None)
            if k is not None:
                self.put(k, there, "opposite")
        first = self.skip_adverbs(after, act.end)
        posture = swap.links and not swap.object and first < act.end and self.low[first] in _PLACED
        if posture or any(
            self.low[k] == "above" or (self.idiom[k] and self.low[k] in _IDIOMATIC) for k in range(after, act.end)
        ):
            self.problem("equivariant", f"'{self.words[i]}': whether what follows turns too, no rule tells")
        if swap.lasting:
            self.path(after, act.end, "faceless")
        if (not swap.lasting or "sun" in act.kinds) and any(
            self.low[k] in _WAYS and not self.used[k] for k in range(after, act.end)
        ):
            self.problem("equivariant", f"'{self.words[i]}': where it comes from or goes to has no rule")
        if swap.facing:
            self.facing(act, self.object_end(after, act.end), "backwards", turned=True)
        one, other = (f"{a} {b}".rstrip() for a, b in ((swap.verb, swap.particle), (swap.other, swap.other_particle)))
        self.reasons.append(f"'{one}' is '{other}' backwards")
        self.record(act, swap.other, tail, lasting=swap.lasting)

    def change(self, act: Act) -> bool:
        """`turns from red to blue`, `day turns into night`; False if it is no such change."""
        i, end = act.place, act.end
        k = self.skip_adverbs(i + 1, end)
        if act.lemma == "rack" and self.at(k) == "focus":
            k += 1
        elif act.lemma not in CHANGING or (act.lemma == "go" and act.kinds & FACING):
            return False
        if k >= end or not (self.low[k] == "from" or (self.low[k] == "into" and act.subject.own)):
            return False
        if self.low[k] == "from":
            if not self.from_to(k, end, "state"):
                return False
        else:
            stop = next((j for j in range(k + 2, end) if self.info[j].preposition), end)
            if stop < end and any(self.info[j].determiner for j in range(k + 1, stop)):
                return False  # a ladybug on a leaf
            before, after = self.bare(act.subject.start, i), self.bare(k + 1, stop)
            if not before or not after:
                return False
            goes = act.lemma == "turn" and act.kinds & FACING and not self.info[after[1] - 1].kinds & FACING
            if goes:
                return False  # turns into a side street
            if any("maturing" in self.info[part[1] - 1].kinds for part in (before, after)):
                self.problem("irreversible", f"'{self.words[i]} into': things that only change one way")
                return True
            self.explain(k, k + 1)
            self.swap(*before, *after, "state")
        self.reasons.append(f"'{self.words[i]}': the change runs the other way")
        self.record(act)
        return True

    def bare(self, begin: int, end: int) -> tuple[int, int] | None:
        """A noun phrase without its article, if it is as plain as that."""
        while end > begin and self.info[end - 1].adverb:
            end -= 1
        if begin < end and self.info[begin].determiner:
            begin += 1
        plain = all(self.noun_like(k) or self.opaque[k] or self.low[k].isdigit() for k in range(begin, end))
        return (begin, end) if begin < end and plain else None
