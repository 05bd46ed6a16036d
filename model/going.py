"""Going and turning: which way it goes backwards in time, and who goes backwards then.

Whatever has a front (a person, an animal, a vehicle) and goes forwards, goes backwards when time runs backwards: it
does not turn round. Things without a front go the other way, and so does whatever turns about itself.
"""

from __future__ import annotations

from model.draft import Span
from model.path import Act, Path
from model.sentence import MANNERS
from model.verbs import FACELESS, FACING

_ROTATING = frozenset({"rotate", "spin", "revolve", "turn", "circle", "orbit", "swivel", "twirl", "swirl", "roll"})
_CYCLES = frozenset("bike bikes bicycle bicycles tricycle unicycle".split())
_THINGS_RUN = frozenset({"sail"})  # that things without a front do too
_VERTICAL = frozenset({"up", "down", "upward", "upwards", "downward", "downwards"})
_PASSED = FACING | {"camera", "terrain", "scenery"}
_WAYS = frozenset("into out onto off toward towards away".split())


class Going(Path):
    """Motion from one place to another, and about an axis."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.cue = self.still  # something was named that looks the same backwards

    def going(self, act: Act) -> bool:
        """Turns a verb of going; False if it is none."""
        going, i, lemma = self.lex.going, act.place, act.lemma
        if (lemma not in going["facing"] and lemma not in going["neutral"]) or "camera" in act.kinds:
            return False
        word = self.words[i]
        if any(i < k < act.end for k in self.to_and_fro):
            if act.kinds & FACELESS or lemma in going["leaping"]:
                self.cue = True
                self.reasons.append(f"'{word}': to and fro, the same backwards")
            else:
                self.problem("novel", f"'{word}': who goes to and fro turns round each time")
            return True
        adrift = lemma in ("float", "drift")
        if adrift and act.kinds & {"animal", "person", "pronoun"}:
            self.problem("novel", f"'{word}': the rules do not know whether '{act.subject.head}' goes forwards")
            return True
        adrift = adrift and bool(act.kinds & {"craft", "hovering"})  # wherever its bow points
        has_front, has_none = bool(act.kinds & FACING) and not adrift, bool(act.kinds & FACELESS) or adrift
        by_itself = lemma in going["facing"] and lemma not in going["leaping"]  # who walks has a front
        if not has_front and has_none and by_itself and lemma not in _THINGS_RUN:
            return False
        obj = self.carried(act)
        vertical = has_front and not by_itself and _VERTICAL.intersection(self.low[i + 1 : act.end])
        if vertical or (lemma == "roll" and act.kinds & {"person", "pronoun", "animal"}):
            self.problem("novel", f"'{word}': whether '{act.subject.head}' turns round, the rules cannot tell")
        elif obj is None:
            self.problem("novel", f"'{word}' is done to something, and no rule turns it")
        elif has_none and not has_front:
            if self.path(i + 1, act.end, "faceless"):
                self.reasons.append(f"'{word}': moves the other way")
                self.record(act)
            self.cue = True
        elif not has_front and "name" not in act.kinds:
            self.problem("novel", f"'{word}': the rules do not know whether '{act.subject.head}' has a front")
        else:
            start = self.object_end(i + 1, act.end) if obj else i + 1
            wheels = "vehicle" in (self.lex.kinds_of(obj) if obj else act.kinds)
            cycle = (obj or act.subject.head) in _CYCLES
            self.facing(act, start, "in reverse" if wheels and not cycle and lemma != "fly" else "backwards")
        return True

    def carried(self, act: Act) -> str | None:
        """What goes with the subject: the horse that is ridden, the street that is crossed.

        Empty if there is nothing; None if the verb is done to something that does not: walks a dog, moves a chair.
        """
        first = self.skip_adverbs(act.place + 1, act.end)
        obj = self.object(act.place + 1, act.end, -1)
        takes = act.lemma in self.lex.going["carried"] or act.lemma in ("cross", "circle")
        if takes or (act.lemma == "pass" and self.lex.kinds_of(obj) & _PASSED):
            return obj
        if first >= act.end or self.opaque[first] or self.idiom[first] or self.low[first] in MANNERS:
            return ""
        if self.info[first].adjective:
            return ""
        return None if self.info[first].determiner or self.noun_like(first) else ""

    def facing(self, act: Act, start: int, manner: str, *, turned: bool = False) -> bool:
        """Something with a front goes: `backwards` comes, or goes where it stands already; then the way turns.

        start: where the way begins. turned: the verb is an opposite that was turned already (enters, exits).
        """
        i, end, word = act.place, act.end, self.words[act.place]
        k = self.skip_adverbs(start, end)
        if k < end and self.low[k] in ("left", "right") and not self.idiom[k]:
            self.put(k, self.lex.adverbs[self.low[k]], "direction")
            k += 1
        there = next((one for one in MANNERS if self.low[k:end][: len(one.split())] == one.split()), "")
        begin = k + len(there.split())
        way = self.low[begin:end]
        if act.lemma in self.lex.going["leaping"] and (
            not way or way[0] in ("in", "on") or ("to" in way) != ("from" in way)
        ):
            self.problem("novel", f"'{' '.join([word, *way[:1]])}': from where to where is not said")
            return True
        if there == "backward" and "away" not in way:
            self.put(k, "forward", "manner")
        elif there:
            self.put(k, "", "manner", len(there.split()))
        elif way[:1] != ["forward"]:  # which the path turns
            manner = "backward" if "toward" in way else manner
            self.after[k - 1 if k > i else i] = manner
            self.spans.append(Span("", manner, "manner"))
        self.path(begin, end, "facing", "toward" if there == "backward" else "towards")
        self.classes.add("novel")
        self.reasons.append(
            f"'{word}': what has a front goes {'forwards' if there else 'backwards'} when time is turned"
        )
        if not turned:
            self.record(act)
        return True

    def rotation(self, act: Act) -> bool:
        """`spins clockwise`, `turns left`, `turns her head to the left`; False if it is none of that."""
        i, end = act.place, act.end
        if act.lemma not in _ROTATING:
            return False
        sense = next((k for k in range(i + 1, end) if self.low[k] in ("clockwise", "counterclockwise")), None)
        if sense is not None:
            self.path(self.object_end(i + 1, end), end, "faceless")
            self.reasons.append(f"'{self.words[i]}': the sense of rotation turns")
            self.record(act)
            return True
        if act.lemma != "turn":
            return False
        if self.low[i + 1 : end] == ["around"]:
            self.cue = True
            return True
        obj = self.object(i + 1, end, -1)
        if obj and "body" not in self.lex.kinds_of(obj):
            return False
        if not obj and act.kinds & {"vehicle", "craft"}:
            if not _WAYS.intersection(self.low[i:end]):
                self.problem("novel", f"'{self.words[i]}': how it turns backwards has no plain word")
                return True
            return self.facing(act, i + 1, "in reverse" if "vehicle" in act.kinds else "backwards")
        start = self.object_end(i + 1, end) if obj else self.skip_adverbs(i + 1, end)
        if not (self.at(start) in ("left", "right") or self.aside(start, end)) or not self.path(start, end, "faceless"):
            return False
        self.reasons.append(f"'{self.words[i]}': turns the other way")
        self.record(act, lasting=False)
        return True

    def swinging(self, act: Act) -> bool:
        """`swings open`, `slides closed`: a door that opens one way closes the other."""
        k = self.skip_adverbs(act.place + 1, act.end)
        if k >= act.end or self.low[k] not in ("open", "closed", "shut"):
            return False
        if act.lemma in ("be", "stay", "remain", "hold", "keep", "stand", "lie"):
            return False
        words = f"{self.words[act.place]} {self.words[k]}"
        if self.low[k] == "shut" or act.lemma not in ("swing", "slide", "creak") or "openable" not in act.kinds:
            self.problem("equivariant", f"'{words}': no rule turns that")
            return True
        self.put(k, "closed" if self.low[k] == "open" else "open", "opposite")
        self.reasons.append(f"'{words}': it closes where it opened")
        self.record(act, lasting=False)
        return True
