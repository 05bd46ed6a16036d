"""Order of events: what happened last comes first."""

from __future__ import annotations

from model.camera_moves import CameraMoves
from model.lexicon import BASE, ING, STOPS, THIRD
from model.path import Event


class Sequence(CameraMoves):
    """Several events in one prompt: at the same time, or one after the other."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.standing: list[tuple[int, int]] = []  # verbs that look the same backwards, and their forms

    def order(self) -> None:
        """What happened last comes first."""
        events = sorted(self.events, key=lambda one: one.verb)
        linked: set[int] = set()
        position = 0
        while position < len(events):
            chain = [events[position]]
            while position + 1 < len(events):
                follows = self.follows(chain[-1], events[position + 1], linked)
                if follows is None:
                    self.problem("equivariant", "several things happen, and their order is not plain")
                    return
                if not follows:
                    break
                chain.append(events[position + 1])
                position += 1
            position += 1
            if len(chain) > 1 and not self.reorder(chain):
                return
        for i in self.notable:
            word = self.low[i]
            if word in self.lex.order and i not in linked and not self.opaque[i]:
                self.problem("novel", f"'{self.words[i]}': an order of events that the rules do not follow")
        for i, form in self.standing:  # takes off her hat and smiles
            happened = [one for one in events if one.verb < i and self.sentence[one.verb] == self.sentence[i]]
            static = self.lex.categories.get(self.verb_at[i].lemma) == "static"
            if (
                form != ING
                and self.before(i) < 0
                and any((static or not one.lasting) and one.form == form for one in happened)
            ):
                self.problem("equivariant", f"'{self.words[i]}' comes after something that happens")

    def separator(self, event: Event) -> tuple[int, list[str]]:
        """Where the words that join an event to the one before begin, and these words."""
        k = event.subject
        while k > 0 and self.low[k - 1] in (
            ",",
            "and",
            "then",
            "finally",
            "before",
            "after",
            "as",
            "while",
            "when",
            "but",
            ";",
        ):
            k -= 1
        return k, self.low[k : event.subject]

    def follows(self, one: Event, other: Event, linked: set[int]) -> bool | None:
        """Whether `other` comes after `one` in time; None if nobody can tell."""
        lasting = one.lasting and other.lasting
        if self.sentence[one.verb] != self.sentence[other.verb]:
            if one.camera != other.camera:
                return False
            return False if lasting and not one.camera else None
        start, words = self.separator(other)
        own = other.subject != other.start
        if any(word in ("then", "finally", "before", "after") for word in words):
            linked.update(range(start, other.subject))
            return None if one.camera != other.camera and not own else True
        if self.fronted(one):
            linked.add(one.start - 1)
            return True if own else None
        k = one.subject - 1
        if k >= 0 and self.low[k] in ("as", "while") and self.opens(k):
            return False
        later = {self.low[k] for k in range(other.verb, len(self.low)) if self.sentence[k] == self.sentence[other.verb]}
        if words == [","] and one.camera and other.camera and later & {"then", "finally"}:
            return True  # pans left, tilts up, then zooms in
        if "as" in words or "while" in words or one.camera or other.camera:
            return False
        if words == [","] and other.form == ING and one.form != ING:
            return False  # enters the church, walking slowly
        if "when" in words or not words:
            return False if lasting else None
        if lasting:
            return False
        return True if not own else None

    def fronted(self, event: Event) -> bool:
        """`After turning off the radio, the boy …`"""
        k = event.subject - 1
        return k >= 0 and self.low[k] in ("after", "before") and self.opens(k)

    def reorder(self, chain: list[Event]) -> bool:
        """Events in reverse order: the phrases of their verbs change places, or the whole clauses."""
        for one, other in zip(chain, chain[1:], strict=False):
            one.end = self.separator(other)[0]
        last = chain[-1]
        last.end = next(
            (k for k in range(last.verb, len(self.words)) if self.words[k] in STOPS or self.low[k] in ("while", "as")),
            len(self.words),
        )
        own = [one.subject != one.start and not one.pronoun for one in chain]
        whole = all(own)
        if not whole and any(own[1:]) and not (len(chain) == 2 and self.fronted(chain[0])):
            self.problem("equivariant", "several things happen, and who does what would not be plain")
            return False
        if len({one.form for one in chain}) > 1:
            if whole or any(one.form not in (BASE, THIRD, ING) or not one.into for one in chain):
                self.problem("equivariant", "several things happen, told in different forms of the verb")
                return False
            for one, other in zip(chain, reversed(chain), strict=True):
                text = self.lex.forms[one.into][other.form]
                self.out[one.verb] = f"{text} {one.tail}".rstrip()
        parts = [range(one.subject if whole else one.start, one.end) for one in chain]
        if self.refers_back(parts):
            self.problem("equivariant", "a word would stand before what it refers to")
            return False
        size = len(parts)
        for n in range(size // 2):
            a, b = parts[n], parts[size - 1 - n]
            self.swap(a.start, a.stop, b.start, b.stop, "order")
        self.reasons.append("what happened last comes first")
        return True

    def refers_back(self, parts: list[range]) -> bool:
        for n, part in enumerate(parts):
            for k in part:
                if self.low[k] in ("it", "them", "him", "itself", "one", "there"):
                    return True
                if self.low[k] == "the" and k + 1 < part.stop:
                    noun = self.low[self.object_end(k + 1, part.stop) - 1]
                    for m, other in enumerate(parts):
                        if m != n and noun in [self.low[j] for j in other]:
                            return True
        return False
