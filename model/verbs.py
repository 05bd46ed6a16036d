"""Who does what in a prompt: its verbs, the role of each, and their subjects.

A word such as `rolls` or `building` may be a verb or a thing; its neighbours tell. A doubt is better decided for the
verb: one that the rules do not know makes them abstain, one that they overlook would make a false text.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.lexicon import BASE, ING, THIRD
from model.sentence import Sentence

CHANGING = frozenset({"change", "turn", "transition", "shift", "morph", "transform", "fade", "go", "switch"})
FACING = frozenset({"person", "animal", "vehicle", "craft", "pronoun", "hovering"})
FACELESS = frozenset({"faceless", "shape", "aloft", "sun", "light", "text", "body", "openable"})
_DOERS = FACING | FACELESS | {"name", "camera", "terrain", "scenery"}
_BETWEEN = frozenset({"seen", "shown", "that", "which", "who"})  # subject and verb
_OPENERS = frozenset({"there", "then", "finally", "first", "next", "see"})
_COUNTED = frozenset({"two", "three", "four", "five", "several", "many", "these", "those", "both", "few"})
_PLURALS = frozenset("people men women children kids police cattle fish sheep deer feet hands".split())
_ONWARDS = frozenset("from into onto toward towards away off up down left right out forward".split())
_ADVERBIAL = frozenset(
    "inside outside behind above below beneath underneath nearby around across up down out off".split()
)
_MODELS = frozenset({"paper", "toy", "origami", "model", "cardboard"})
_SINGULAR = frozenset({"a", "an", "one"})
_NAME = frozenset({"name"})


@dataclass(frozen=True)
class Subject:
    """Who does it: kinds of its head (lexicon), where its words begin, and whether they stand in the verb's clause."""

    kinds: frozenset[str]
    start: int
    head: str
    own: bool


@dataclass(frozen=True)
class Verb:
    """A verb at a place.

    role: verb, attribute (a falling leaf), infinitive, imperative, passive (is lowered) or stative (is painted).
    """

    place: int
    lemma: str
    form: int
    role: str


class Verbs(Sentence):
    """The verbs of a prompt in order, and by place; `last` is the subject that a pronoun or nothing refers to."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.last = Subject(frozenset(), 0, "", False)
        self.verbs: list[Verb] = []
        self.verb_at: dict[int, Verb] = {}
        self.find_verbs()

    def find_verbs(self) -> None:
        """Fills `verbs` and `verb_at`, from left to right: each may decide what a later word is."""
        self._seen: set[tuple[int, int]] = set()  # sentences and forms of their verbs
        for i in self.notable:
            if self.opaque[i] or self.idiom[i]:
                continue
            for lemma, form in self.info[i].readings:
                role = self.role(i, lemma, form)
                if role:
                    if role == "verb":
                        self._seen.add((self.sentence[i], form))
                    self.verb_at[i] = Verb(i, lemma, form, role)
                    self.verbs.append(self.verb_at[i])
                    break

    def role(self, i: int, lemma: str, form: int) -> str:
        """Role of a word read as that form of that verb; empty if it is none here."""
        k = self.before(i)
        if form == ING:
            return self.role_of_ing(i, k, lemma)
        if form in (THIRD, BASE):
            before = self.verb_at.get(k)
            if before is not None and before.role == "verb" and before.lemma != "be":
                return ""  # its object: loading boxes
            return self.role_of_third(i, k) if form == THIRD else self.role_of_base(i, k, lemma)
        return self.role_of_past(i, k, lemma)

    def describes(self, k: int) -> bool:
        """Whether the word at k belongs to a noun that follows: a, her, red; `that` only where no noun precedes it."""
        if k < 0:
            return False
        info = self.info[k]
        relative = self.low[k] == "that" and self.noun_like(k - 1)
        return (info.determiner and not relative) or (info.adjective and not info.kinds)

    def whose(self, k: int) -> frozenset[str]:
        """Kinds of the noun at k, if there is one."""
        if k < 0:
            return frozenset()
        if self.at(k - 1) in _MODELS and self.info[k].kinds & {"vehicle", "craft"}:
            return frozenset({"toy"})  # whether it has a front, nobody says
        if self.low[k] == "car" and self.at(k - 1) in ("cable", "funicular"):
            return frozenset({"faceless"})
        return _NAME if self.opaque[k] else self.info[k].kinds

    def role_of_ing(self, i: int, k: int, lemma: str) -> str:
        """`running`: an attribute before a noun, else a verb; `building` only after somebody who builds."""
        things = self.lex.words["things"]
        if self.describes(k) or ((k < 0 or self.info[k].preposition) and self.noun_like(i + 1)):
            if self.noun_like(i + 1) and self.clause_end[i] > i + 1:
                return "attribute"
            return "" if k >= 0 and self.info[k].determiner else "verb"
        doer = k >= 0 and (self.info[k].copula or bool(self.whose(k) & _DOERS) or self.at(i - 1) in ("seen", "shown"))
        if k >= 0 and not doer and self.info[k].noun and self.noun_like(i + 1) and i + 1 < self.clause_end[i]:
            return "attribute"  # upturned rowing boats
        if self.low[i] in things and not (k >= 0 and self.info[k].copula):
            going = k < 0 and (lemma in self.lex.going["facing"] or lemma in self.lex.going["neutral"])
            after = k < 0 and self.at(self.clause_start[i] - 1) in ("before", "after", "while", "when", "as")
            return "verb" if going or after or self.acts(i, self.whose(k)) else ""
        return "verb"

    def role_of_third(self, i: int, k: int) -> str:
        """`rolls`: a verb after a noun, and after `and` where it joins another one."""
        if k < 0:
            return "verb" if (self.sentence[i], THIRD) in self._seen and self.joined(i) else ""
        if self.low[k] in ("another", "other", "each", "one"):
            return "verb"
        if self.describes(k) or (self.info[k].preposition and self.low[k] not in _ADVERBIAL):
            return ""
        kinds, whose = self.info[i].kinds, self.whose(k)
        last = self.verbs[-1] if self.verbs else None
        if kinds and last is not None and last.role == "verb" and last.place >= self.clause_start[i]:
            return ""  # climbs stone steps
        if kinds and not whose & (FACING | {"name", "camera"}):  # street lights, ocean waves
            lonely = "irreversible" in kinds and not whose & (FACELESS | {"raisable"})
            noun = lonely or self.at(self.clause_start[i]) not in _SINGULAR
            if i + 1 < len(self.info) and self.info[i + 1].determiner:
                return "verb"  # hands a parcel
            if noun or (i + 1 < len(self.info) and any(form == BASE for _, form in self.info[i + 1].readings)):
                return ""
        return "verb"

    def role_of_base(self, i: int, k: int, lemma: str) -> str:
        """`roll`: a verb after a plural, a pronoun or a modal, an imperative at the beginning of a clause."""
        if k < 0:
            if lemma in self.lex.camera["alone"] or self.info[i].adjective:
                return ""  # zoom in: camera_moves.py; slow motion
            if (self.sentence[i], BASE) in self._seen and self.joined(i):
                return "verb"
            return "imperative" if self.orders(i, lemma) else ""
        if self.info[k].modal:
            return "infinitive" if self.low[k] == "to" else "verb"
        pronoun = "pronoun" in self.info[k].kinds and self.low[k] not in ("his", "her", "it", "he", "she")
        if pronoun or self.plural(k):
            return "verb"
        head = self.head(self.clause_start[i], i)
        first = not self.verbs or self.verbs[-1].place < self.clause_start[i]
        closed = not self.noun_like(i + 1)
        return "verb" if 0 <= head != k and closed and first and self.plural(head) else ""

    def role_of_past(self, i: int, k: int, lemma: str) -> str:
        """`rolled`: a state after `is` where it tells one, a passive otherwise; a verb where something follows it."""
        lists = self.lex.words
        if self.describes(k) and self.noun_like(i + 1):
            return ""  # a closed door
        if k >= 0 and self.info[k].copula:
            still = self.lex.categories.get(lemma) in ("static", "periodic") or self.low[i] in lists["resulting"]
            return "stative" if still and self.low[k] != "being" else "passive"
        if k < 0 or self.low[k] in ("have", "has", "had", "having") or self.low[i] in lists["naming"]:
            return "stative"
        if self.noun_like(k) or "pronoun" in self.info[k].kinds:
            onwards = i + 1 < len(self.low) and (self.low[i + 1] in _ONWARDS or self.info[i + 1].determiner)
            return "verb" if onwards else "stative"
        return "stative"

    def acts(self, i: int, whose: frozenset[str]) -> bool:
        """Whether what stands before a word such as `building` or `setting` can do it."""
        head = self.head(self.clause_start[i], i)
        if head >= 0:
            whose = whose | (_NAME if self.opaque[head] else self.info[head].kinds)
        return bool(whose & _DOERS) or self.at(i - 1) in ("seen", "shown")

    def orders(self, i: int, lemma: str) -> bool:
        """Whether a clause begins with an order: `fly over the city`; not with a thing: `light on a wall`."""
        lex = self.lex
        moves = lemma in lex.going["facing"] or lemma in lex.going["neutral"] or lemma in CHANGING or lemma in lex.swaps
        if not moves or self.info[i].kinds or self.info[i].adjective or i + 1 == len(self.info):
            return False
        follows = self.info[i + 1]
        return follows.preposition or follows.determiner or follows.adverb

    def head(self, begin: int, end: int) -> int:
        """Index of the head of [begin, end): the last word before a preposition or verb; `dogs` of `a pair of dogs`."""
        lists = self.lex.words
        begin = self.skip_adverbs(begin, end)
        if begin >= end:
            return -1
        if self.info[begin].preposition:
            return end - 1
        for k in range(begin + 1, end):
            joins = self.low[k] == "of" and (
                self.low[k - 1] in lists["collectives"] or self.low[k - 1] in lists["pictures"]
            )
            if (self.info[k].preposition and not joins) or (k in self.verb_at and self.verb_at[k].role != "attribute"):
                return k - 1
        return end - 1

    def joined(self, i: int) -> bool:
        """Whether a comma, `and` or `then` stands right before the clause: a second verb of the same subject."""
        return self.at(self.clause_start[i] - 1) in (",", "and", "then", "but", "while")

    def plural(self, k: int) -> bool:
        """Whether the noun at `k` is a plural: people, dogs, two samurai; not grass, and not a verb."""
        word = self.low[k]
        before = self.before(k)
        if word in _PLURALS or (before >= 0 and self.low[before] in _COUNTED and self.info[k].kinds):
            return True
        if not word.endswith("s") or word.endswith("ss") or word in self.lex.words["plurals"] or self.opaque[k]:
            return False
        if before < 0:
            return True
        verb = self.info[k].readings and not self.info[k].kinds and self.noun_like(before)
        return not verb and self.low[before] not in ("a", "an")

    def subject(self, i: int) -> Subject:
        """What does it: the head of the words before the verb in its clause, or the subject before."""
        begin, end = self.clause_start[i], i
        while end > begin and (self.info[end - 1].auxiliary or self.low[end - 1] in _BETWEEN):
            end -= 1
        while begin < end and (self.info[begin].adverb or self.low[begin] in _OPENERS):
            begin += 1
        shared = any(k in self.verb_at and self.verb_at[k].role == "verb" for k in range(begin, end))
        if shared or begin >= end or (end - begin == 1 and self.low[begin] == "where"):
            return Subject(self.last.kinds, i, self.last.head, False)
        place = self.head(begin, end)
        head, kinds = self.low[place], self.whose(place)
        if head in ("it", "they", "them", "itself") and self.last.head:
            kinds = self.last.kinds | ({"pronoun"} if self.last.kinds & FACING else frozenset())
        return Subject(kinds, begin, head, True)
