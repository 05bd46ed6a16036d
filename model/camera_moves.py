"""Moves of the camera: `the camera pans left`, and those without a sentence, `slow zoom in`."""

from __future__ import annotations

from model.lexicon import BASE, ING
from model.opposites import Opposites
from model.path import Act
from model.verbs import Subject, Verb

_NOBODY = Subject(frozenset({"camera"}), 0, "camera", False)
_SHOWS = frozenset({"capture", "reveal", "show", "focus"})
_WAYS = frozenset({"in", "out", "to", "from", "around", "into"})
_THINGS = frozenset({"push", "pull", "boom", "pan", "truck", "crane"})  # nouns as well: a frying pan
_SPEEDS = frozenset("slow smooth gentle quick fast steady gradual rapid soft".split())
_NAMED = frozenset({"zoom", "dolly", "orbit", "tilt"})  # moves that are named by themselves


class CameraMoves(Opposites):
    """What the camera does; its subject is the camera, a shot, a view, or nothing at all."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.filming = -1  # the sentence whose subject is the camera

    def camera(self, act: Act) -> bool:
        """Turns a verb whose subject is the camera; False if it is not."""
        lex, lemma = self.lex, act.lemma
        shared = not act.subject.own and self.filming == self.sentence[act.place]
        films = ("camera" in act.kinds and act.subject.own) or shared
        alone = lemma in lex.camera["alone"] and act.verb.form == ING and not act.subject.own
        if not (films or alone or (lemma == "zoom" and not act.subject.own)):
            return False
        if not films or lemma in lex.camera["verbs"]:
            return self.camera_move(act)
        if lex.categories.get(lemma) in ("static", "periodic") or lemma in _SHOWS:
            return False
        self.problem("novel", f"the camera '{self.words[act.place]}': no rule turns that")
        return True

    def camera_move(self, act: Act) -> bool:
        """Turns a move of the camera; False for those that stand in the table of opposites."""
        i, end, lemma, into = act.place, act.end, act.lemma, act.lemma
        k = self.skip_adverbs(i + 1, end)
        word = self.low[k] if k < end else ""
        if (lemma, word) in self.lex.camera_pairs:
            into, direction = self.lex.camera_pairs[lemma, word]
            self.put(i, self.lex.forms[into][act.verb.form], "camera")
            self.camera_direction(k, direction, end)
        elif lemma in ("push", "pull"):
            self.problem("novel", f"'{self.words[i]}': no rule turns that move of the camera")
            return True
        elif lemma in self.lex.camera["depth"] and word in ("in", "out") and self.at(k + 1) != "of":
            self.camera_direction(k, "out" if word == "in" else "in", end)
        elif lemma in ("rise", "descend", "ascend"):
            return False
        elif not self.path(i + 1, end, "camera"):
            self.problem("novel", f"'{self.words[i]}': a move of the camera without a direction that turns")
            return True
        self.reasons.append(f"'{self.words[i]}': the camera moves the other way")
        self.record(act, into, camera=True)
        return True

    def camera_direction(self, k: int, direction: str, end: int) -> None:
        """`in` becomes `out`, with what hangs on it: `in on` becomes `out from`."""
        self.put(k, direction, "camera")
        self.path(self.linked(self.low[k], k + 1, end), end, "camera")

    def linked(self, direction: str, k: int, end: int) -> int:
        """Turns the preposition that hangs on a direction, if one does; gives where the rest begins."""
        k = self.skip_adverbs(k, end)
        if k < end and (direction, self.low[k]) in self.lex.camera_links:
            self.put(k, self.lex.camera_links[direction, self.low[k]], "camera")
            return k + 1
        if k < end and self.low[k] in ("on", "to", "from"):
            self.problem("equivariant", f"'{direction} {self.words[k]}': no rule turns that")
        return k

    def camera_words(self) -> None:
        """Turns moves that are no verb of a sentence: `zoom in`, `slow pan left`, `zoom-out`, `rack focus from …`."""
        for i in self.notable:
            word = self.low[i]
            if self.opaque[i] or i in self.verb_at:
                continue
            if word in self.lex.camera_words:
                self.put(i, self.lex.camera_words[word], "camera")
                self.linked(word.partition("-")[2], i + 1, self.clause_end[i])
                self.reasons.append(f"'{word}': the camera moves the other way")
            elif word == "focus":
                self.focus(i)
            elif any(form == BASE and lemma in self.lex.camera["alone"] for lemma, form in self.info[i].readings):
                self.camera_word(i, word)

    def focus(self, i: int) -> None:
        """`rack focus from A to B`, where `rack` is no verb."""
        if self.at(i - 1).startswith(("rack", "pull")) and i - 1 not in self.verb_at:
            if not (self.at(i + 1) == "from" and self.from_to(i + 1, self.clause_end[i], "camera")):
                self.problem("novel", f"'{self.words[i - 1]} focus': from what to what no rule can tell")

    def camera_word(self, i: int, lemma: str) -> None:
        """One move named by a noun or an imperative, if it is one."""
        k, end = self.before(i), self.clause_end[i]
        nxt = self.at(self.skip_adverbs(i + 1, end))
        directed = (lemma, nxt) in self.lex.camera_pairs or nxt in self.lex.adverbs or nxt in _WAYS
        first = k < 0 or lemma == "zoom" or self.describes(k) or self.low[k] in self.lex.camera["nouns"] | {"with"}
        if lemma in _THINGS and k >= 0:
            named = self.low[k] in self.lex.camera["nouns"] or (self.info[k].adjective and self.low[k] in _SPEEDS)
            if not named:
                if directed:
                    self.problem("novel", f"'{self.words[i]} {nxt}': it may be a thing")
                return
        if directed and (first or lemma in self.lex.camera["depth"]):
            self.camera_move(Act(Verb(i, lemma, BASE, "imperative"), end, _NOBODY))
        elif first and (nxt in self.lex.camera["shots"] or (lemma in _NAMED and nxt == "")):
            self.problem("novel", f"'{self.words[i]}': a move of the camera without a direction that turns")
