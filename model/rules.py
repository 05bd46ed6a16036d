"""Rules of prompt reversal: text for a clip played backwards, wherever the rules understand all that moves in it.

Notable: closed world. Every verb and every word of direction must be understood, in its place, or the rules abstain,
and the prompt takes the marker (rewrite.py): a rewrite that turns half of what happens is worse than none. What
fires is an involution by construction: a text is only given if reversing it gives the prompt again, letter for
letter.

The truth that is kept: whatever has a front and goes forwards goes backwards when time runs backwards; it does not
turn round. So `a dog runs out of the house` becomes `a dog runs backwards into the house`, while a ball simply rolls
the other way. Directions after verbs of standing (`leans forward`, `faces left`) are orientation and stay.

One analysis is built up in layers, each a module: sentence (words, clauses, verbs), draft (what is changed), going,
opposites, camera_moves, sequence, and this one, which decides. All words are in `reversal_rules.toml`; what the
classes mean: docs/reversal.md, after Retro-Actions (arXiv:1909.09422).
"""

from __future__ import annotations

from dataclasses import dataclass

from model.draft import Span
from model.lexicon import ING
from model.path import Act
from model.sequence import Sequence
from model.verbs import CHANGING, FACING, Subject, Verb

_RANKS = ("irreversible", "novel", "equivariant", "invariant")  # the first that something in the prompt is
_NOT = frozenset({"not", "never", "doesn't", "don't", "without", "no"})
_SIDES = frozenset({"the", "his", "her", "its", "their", "far", "upper", "lower", "bottom", "top"})  # the left
_ONWARDS = frozenset("to into onto against from by through off out up down".split())
_BODILY = frozenset("up down left right forward forwards backward backwards back away over around out".split())
_TRAVELS = frozenset("from to into onto toward towards across along through over past".split())
_POINTING = frozenset("face stare gaze look watch squint glance lean lie slope glare beam peer".split())
_REACHING = frozenset("toward towards into onto away out".split())
_LAPSE = ("timelapse", "time-lapse", "hyperlapse")
_EMPTY = frozenset({"be", "have", "capture", "feature", "show", "depict"})  # static, but it says nothing
_ONE = frozenset({"a", "an", "one", "he", "she", "it", "each", "every", "another"})


@dataclass(frozen=True)
class Ruled:
    """What the rules make of a prompt: `prompt` is None where they abstain.

    unchanged: every motion named was understood, and backwards each looks the same. still: no motion is named at all.
    `reversal_class` is invariant, equivariant, novel or irreversible; a motion the rules do not know counts as novel.
    """

    prompt: str | None
    reversal_class: str
    reasons: tuple[str, ...]
    spans: tuple[Span, ...] = ()
    unchanged: bool = False
    still: bool = False


def reverse(prompt: str) -> Ruled:
    """The prompt of the clip played backwards, by rules; `prompt` must have even white space. Never raises."""
    first = _Analysis(prompt).run()
    if first.prompt is None or first.unchanged:
        return first
    back = _Analysis(first.prompt).run()
    if back.prompt != prompt:
        return Ruled(None, first.reversal_class, (*first.reasons, "reversed twice, it would not be the prompt again"))
    return first


class _Analysis(Sequence):
    """One pass over one prompt."""

    def run(self) -> Ruled:
        """What the rules make of the prompt, before it is tried the other way."""
        if self.foreign():
            return Ruled(None, "novel", ("the rules know English alone",))
        self.things()
        self.camera_words()
        for position, verb in enumerate(self.verbs):
            if "irreversible" in self.classes:
                return self.result()  # nothing else can change that
            later = (one.place for one in self.verbs[position + 1 :] if one.role != "stative")
            self.understand(verb, min(self.clause_end[verb.place], next(later, len(self.words))))
        self.unknown_words()
        self.retold()
        self.left_over()
        if not self.problems:
            self.order()
        return self.result()

    def result(self) -> Ruled:
        """The answer that problems, changes and classes amount to."""
        if self.spans:
            self.classes.add("equivariant")
        kind = next((one for one in _RANKS if one in self.classes), "invariant")
        if self.problems:
            return Ruled(None, "novel" if kind == "invariant" else kind, tuple(dict.fromkeys(self.problems)))
        reasons = tuple(dict.fromkeys(self.reasons))
        if self.spans:
            return Ruled(self.text(), kind, reasons, tuple(self.spans))
        doubtful = self.doubtful()
        if self.cue and not doubtful:
            return Ruled(self.prompt, "invariant", reasons, unchanged=True)
        return Ruled(None, "invariant", ("it names no motion",), still=not doubtful and not self.verbs)

    def doubtful(self) -> bool:
        """Whether something may move of which only a noun tells: a peaceful walk, a time-lapse."""
        if self.still:
            return False
        things = self.lex.words["things"]
        for i in self.notable:
            word = self.low[i]
            if word.startswith(_LAPSE):
                return True
            if i in self.verb_at or self.opaque[i] or self.info[i].kinds:
                continue
            for lemma, form in self.info[i].readings:
                if self.lex.moves(lemma) and (form == ING or word not in things):
                    return True
        return False

    def things(self) -> None:
        """Things whose presence is an event that cannot be undone: rain, smoke; not a rain coat."""
        for i in self.notable:
            if "irreversible" in self.info[i].kinds and not self.opaque[i] and i not in self.verb_at:
                follows = self.info[i + 1] if i + 1 < len(self.info) else None
                if follows is None or not follows.kinds or follows.readings:
                    self.problem("irreversible", f"'{self.words[i]}' cannot be undone")

    # -------------------------------------------------------------------------------------------------- one verb

    def understand(self, verb: Verb, end: int) -> None:
        """Turns a verb, or says why it stays, or why nobody can tell. What belongs to it ends before `end`."""
        i, category = verb.place, self.lex.categories.get(verb.lemma, "novel")
        undone = "irreversible" if category == "irreversible" else "novel"
        if verb.role == "attribute":
            plain = self.low[i] in self.lex.words["describing"] or self.low[i] in self.lex.words["things"]
            if category not in ("static", "periodic") and not plain:
                self.problem(undone, f"'{self.words[i]} {self.at(i + 1)}' moves in a way the rules do not turn")
            return
        if verb.role == "stative" or self.denied(verb):
            self.explain(i + 1, end)
            return
        if verb.lemma == "be" and self.skip_adverbs(i + 1, len(self.words)) in self.verb_at:
            return  # an auxiliary
        act = Act(verb, end, self.subject(i))
        if verb.role == "passive" and self.opposite(act, passive=True):
            pass
        elif verb.role in ("passive", "imperative", "infinitive"):
            self.problem(undone, f"'{self.words[i]}': the rules turn no {verb.role}s")
        elif self.stands(act, category):
            self.explain(i + 1, end)
            self.cue = True
        elif not (
            self.camera(act)
            or self.opposite(act)
            or self.change(act)
            or self.swinging(act)
            or self.rotation(act)
            or self.going(act)
        ):
            self.by_category(act, category)
        self.remember(act.subject)

    def denied(self, verb: Verb) -> bool:
        """`never moves`, `does not`: nothing happens."""
        before = self.before(verb.place)
        denied = before >= 0 and self.low[before] in _NOT
        return denied or (verb.lemma == "do" and self.at(verb.place + 1) == "not")

    def stands(self, act: Act, category: str) -> bool:
        """Whether the verb only describes: a road climbs, a tower rises, a sign reads, light plays on a wall."""
        i, lemma, kinds = act.place, act.lemma, act.kinds
        if act.subject.head in ("nothing", "nobody"):
            return True
        if lemma in ("read", "say", "spell") and kinds & {"scenery", "text", "device"} and i + 1 < len(self.words):
            if self.opaque[i + 1] or self.low[i + 1] == ":":
                return True
        if lemma == "point" and not kinds & {"person", "pronoun", "animal"}:
            return True
        if lemma in self.lex.companion and act.verb.form == ING and not act.subject.own:
            return True
        if lemma == "come" and self.at(i + 1) != "from":
            return False
        if lemma in self.lex.abstract and "scenery" in kinds and not kinds & FACING:
            changes = any(self.low[k] in ("from", "to") or self.low[k].isdigit() for k in range(i + 1, act.end))
            return not changes and not (lemma in ("turn", "shift", "run") and i + 1 < act.end)
        if "terrain" not in kinds or not act.subject.own or kinds & {"faceless", "openable"}:
            return False
        changes = lemma in CHANGING and self.at(self.skip_adverbs(i + 1, act.end)) in ("from", "into")
        return (lemma in self.lex.abstract or category == "static") and not changes

    def remember(self, subject: Subject) -> None:
        """A subject that what follows may refer to."""
        if subject.own and not subject.kinds & {"pronoun", "camera"}:
            self.last = subject
        if subject.own:
            self.filming = self.sentence[subject.start] if "camera" in subject.kinds else -1

    def by_category(self, act: Act, category: str) -> None:
        """A verb that no rule turns."""
        i, lemma, word = act.place, act.lemma, self.words[act.place]
        if category == "irreversible":
            self.problem("irreversible", f"'{word}' cannot be undone")
        elif category == "novel":
            known = lemma in self.lex.equivariant
            why = "has an opposite, but which one the rules cannot tell" if known else "has no plain word backwards"
            self.problem("equivariant" if known else "novel", f"'{word}' {why}")
        elif category == "static" and self.done_to(act):
            self.problem("novel", f"'{word} {self.at(i + 1)} …' is done to something, and no rule turns it")
        elif category == "periodic" and self.travels(act):
            self.problem("novel", f"'{word}': it may go somewhere")
        elif category == "static" and self.reaches(act):
            self.problem("novel", f"'{word}': it may go somewhere")
        elif category == "static" and self.moves_body(act):
            self.problem("equivariant", f"'{word} {self.at(i + 1)}' may be a motion")
        elif category == "static" and self.follows_from(act):
            self.problem("novel", f"'{word}' may follow from what happens before it")
        else:
            self.standing.append((i, act.verb.form))
            if category == "periodic":
                self.reasons.append(f"'{word}': the same backwards")
                self.cue = True
            else:
                self.explain(i + 1, act.end)
                self.reasons.append(f"'{word}': nothing moves")
                self.cue = self.cue or lemma not in _EMPTY

    def done_to(self, act: Act) -> bool:
        """`hangs her coat on a hook`, which is an action, where `a coat hangs` is none."""
        k = act.place + 1
        if act.lemma not in self.lex.causative or k >= act.end:
            return False
        thing = act.kinds & FACING and self.noun_like(k) and not self.info[k].adjective
        return bool(self.info[k].determiner or thing)

    def travels(self, act: Act) -> bool:
        """`swings from branch to branch`, `rotates from west to east`, where `a flag waves` stays where it is."""
        words = [self.low[k] for k in range(act.place + 1, act.end) if not self.idiom[k]]
        return ("from" in words and "to" in words) or bool(act.kinds & FACING and _TRAVELS.intersection(words))

    def reaches(self, act: Act) -> bool:
        """`extends toward the sphere`, where `leans`, `faces` and `looks toward` only point."""
        words = {self.low[k] for k in range(act.place + 1, act.end) if not self.idiom[k]}
        from_to = {"from", "to"} <= words
        return act.lemma not in _POINTING and (from_to or bool(words & _REACHING))

    def moves_body(self, act: Act) -> bool:
        """`sits up`, `looks down`, which happen, where `looking down` tells how somebody stands."""
        k = self.skip_adverbs(act.place + 1, act.end)
        return act.verb.form != ING and k < act.end and self.low[k] in _BODILY and not self.idiom[k]

    def follows_from(self, act: Act) -> bool:
        """`turns on the lamp, light filling the room`."""
        if act.lemma not in self.lex.spreading or act.verb.form != ING:
            return False
        number = self.sentence[act.place]
        return any(self.sentence[one.verb] == number and not one.lasting for one in self.events)

    # -------------------------------------------------------------------------------------------- what is left over

    def unknown_words(self) -> None:
        """Words that look like verbs and stand in no list."""
        lists = self.lex.words
        for i in self.notable:
            word, info = self.low[i], self.info[i]
            if i in self.verb_at or self.opaque[i] or info.readings or info.kinds or not word.isalpha():
                continue
            k = self.before(i)
            if word.endswith("ing"):
                unknown = len(word) > 4 and word not in lists["things"]
            elif word.endswith("ed"):  # is rubbed against; not: is muted and soft
                unknown = k >= 0 and self.info[k].copula and self.at(i + 1) in _ONWARDS
                unknown = unknown and word not in lists["resulting"]
            elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in lists["plurals"]:
                unknown = self.may_do(i, k)
            else:
                unknown = False
            if unknown:
                self.problem("novel", f"'{self.words[i]}' is not a word the rules know")

    def may_do(self, i: int, k: int) -> bool:
        """Whether an unknown word in -s stands where a verb would: a man juggles."""
        if k < 0 or self.info[k].adjective or not (self.noun_like(k) or "pronoun" in self.info[k].kinds):
            return False
        begin = self.clause_start[i]
        if any(self.info[j].preposition or j in self.verb_at for j in range(begin, i)):
            return False
        return self.low[begin] in _ONE or bool(self.info[k].kinds & {"person", "animal", "vehicle", "pronoun"})

    def retold(self) -> None:
        """Words that tell of an order or of a second time: followed by, again."""
        for i in self.notable:
            word = self.low[i]
            if word in ("followed", "preceded") and self.at(i + 1) == "by":
                self.problem("equivariant", f"'{word} by': an order of events that the rules do not follow")
            elif word == "again" and self.spans:
                self.problem("equivariant", "'again': something happens twice")

    def left_over(self) -> None:
        """A word of direction that nothing has explained: better the marker than a half-turned text."""
        for i in self.notable:
            word = self.low[i]
            if word in self.lex.residual and not self.used[i] and not self.opaque[i]:
                if not (word in ("left", "right") and self.at(i - 1) in _SIDES):
                    self.problem("novel", f"'{self.words[i]}': no rule understands it here")
            elif word == "to" and self.spans and not self.used[i] and not self.opaque[i] and self.verbless(i):
                self.problem("novel", f"'{self.at(i - 1)} to {self.at(i + 1)}': it may tell a change")

    def verbless(self, i: int) -> bool:
        """Whether no verb stands in the clause around a word."""
        return not any(k in self.verb_at for k in range(self.clause_start[i], self.clause_end[i]))
