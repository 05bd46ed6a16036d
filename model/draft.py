"""What becomes of a prompt: words replaced, added and moved, each change on record, and what speaks against it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.verbs import Verbs


@dataclass(frozen=True)
class Span:
    """What was changed: `kind` is camera, direction, opposite, state, manner, order …; `source` may be empty."""

    source: str
    target: str
    kind: str


class Draft(Verbs):
    """A prompt that is being turned.

    problems, reasons: what the rules cannot turn, and why they turn the rest. classes: of the motions met. used: words
    of direction that are accounted for. out, after, moves: words as they become, words added behind them, ranges that
    change places.
    """

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.problems: list[str] = []
        self.reasons: list[str] = []
        self.classes: set[str] = set()
        self.spans: list[Span] = []
        self.used = list(self.idiom)
        self.out = list(self.words)
        self.after: dict[int, str] = {}
        self.moves: list[tuple[int, int, int, int]] = []

    def problem(self, kind: str, reason: str) -> None:
        """Something that the rules cannot turn, of a reversal class."""
        self.classes.add(kind)
        self.problems.append(reason)

    def explain(self, begin: int, end: int) -> None:
        """Directions in [begin, end) are orientation or position."""
        for k in range(begin, end):
            self.used[k] = True

    def put(self, i: int, text: str, kind: str, count: int = 1) -> None:
        """Replaces `count` words from i by a text."""
        source = " ".join(self.words[i : i + count])
        if self.words[i][0].isupper() and text:
            text = text[0].upper() + text[1:]
        self.out[i] = text
        for k in range(i + 1, i + count):
            self.out[k] = ""
        self.used[i : i + count] = [True] * count
        self.spans.append(Span(source, text, kind))

    def swap(self, a: int, b: int, c: int, d: int, kind: str) -> None:
        """Words [a, b) and [c, d) change places."""
        self.moves.append((a, b, c, d))
        self.used[a:b] = [True] * (b - a)
        self.used[c:d] = [True] * (d - c)
        left, right = " ".join(self.words[a:b]), " ".join(self.words[c:d])
        self.spans.append(Span(f"{left} … {right}", f"{right} … {left}", kind))

    def text(self) -> str:
        order = list(range(len(self.words)))
        for a, b, c, d in sorted(self.moves, key=lambda one: one[0] - one[3]):  # the widest first
            at, bt, ct, dt = (order.index(k) if k < len(order) else len(order) for k in (a, b, c, d))
            if b < len(self.words):
                bt = at + (b - a)
            dt = ct + (d - c)
            order = [*order[:at], *order[ct:dt], *order[bt:ct], *order[at:bt], *order[dt:]]
        pieces: list[str] = []
        for place, k in enumerate(order):
            word = self.out[k]
            if not word:
                continue
            if k != place and self.opens(place) and self.words[place][0].isupper():
                word = word[0].upper() + word[1:]
            elif k != place and self.opens(k) and not self.opaque[k] and self.low[k] != "i":
                word = word[0].lower() + word[1:]
            pieces.append(word if not pieces or (k and self.glued(k)) else " " + word)
            if k in self.after:
                pieces.append(" " + self.after[k])
        return self.articles("".join(pieces))

    def glued(self, k: int) -> bool:
        """Whether no space stands before a word of the prompt."""
        return self.starts[k] == self.starts[k - 1] + len(self.words[k - 1])

    def articles(self, text: str) -> str:
        """`a` and `an` before words that have changed; others stay as they were written."""

        def fix(match: re.Match[str]) -> str:
            article, gap, word = match[1], match[2], match[3]
            if re.search(rf"\b{article}{gap}{re.escape(word)}\b", self.prompt, re.IGNORECASE):
                return match[0]
            right = "an" if word[0].lower() in "aeiou" else "a"
            return (right.capitalize() if article[0].isupper() else right) + gap + word

        return re.sub(r"\b(an?|An?)(\s)([A-Za-z][\w'’\-]*)", fix, text)
