"""A prompt as the rules of reversal see it: its words, clauses, phrases that point nowhere, heads of nouns.

Notable: no parser and no tagger, whose models would be larger than all else here, but closed lists and the places of
words. It need not be right about every prompt: what it cannot place makes the rules abstain (rules.py).
"""

from __future__ import annotations

import re

from model.lexicon import ING, STOPS, THIRD, lexicon

_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\s]")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|(?<!\w)'[^']{2,}'(?!\w)|(?<!\w)‘[^’]+’(?!\w)")
ENDS = frozenset(".!?;")
_QUOTES = frozenset("\"“«'‘")
MANNERS = ("backwards", "backward", "in reverse")
TITLE = 0.8  # share of capitals from which on they say nothing of names
FOREIGN = 0.2  # share of letters outside ASCII that English may have


class Sentence:
    """One prompt, looked at word by word.

    words, low, info: as written, in lower case, and what the lexicon knows of each. opaque: words of quotes and names.
    idiom: words of phrases in which a direction is none; to_and_fro: where such a phrase begins that goes both ways.
    clause_start, clause_end: of the clause around a word; sentence: its number. still: it says that nothing moves.
    """

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.lex = lexicon()
        matches = list(_TOKEN.finditer(prompt))
        self.words = [one[0] for one in matches]
        self.low = [w.lower().replace("’", "'") for w in self.words]
        self.info = [self.lex.word(one) for one in self.low]
        self.notable = [i for i, info in enumerate(self.info) if info.notable]
        self.starts = [one.start() for one in matches]
        size = len(self.words)
        self.idiom = [False] * size
        self.opaque = [False] * size
        self.protect()
        self.bounds()
        self.idioms()

    def foreign(self) -> bool:
        """Whether the prompt has no letters, or too many that English has not."""
        if self.prompt.isascii():
            return not any(word[0].isalpha() for word in self.words)
        letters = [c for c in self.prompt if c.isalpha()]
        strange = sum(not c.isascii() for c in letters)
        return not letters or strange > FOREIGN * len(letters)

    def protect(self) -> None:
        """Marks quoted words and names; they are nouns whatever they say."""
        for quote in _QUOTED.finditer(self.prompt) if _QUOTES.intersection(self.prompt) else ():
            for i, start in enumerate(self.starts):
                if quote.start() <= start < quote.end():
                    self.opaque[i] = True
        if self.low[1:] == self.words[1:]:
            return
        capital = [word[0].isupper() for word in self.words]
        alphabetic = [i for i, word in enumerate(self.words) if word[0].isalpha()]
        content = [i for i in alphabetic if not (self.info[i].determiner or self.info[i].preposition)]
        if len(content) >= 3 and sum(capital[i] for i in content) > TITLE * len(content):
            return  # a title, or shouted: capitals say nothing
        for i in alphabetic:
            first = i == 0 or self.words[i - 1] in ENDS or self.words[i - 1] in '"“:'
            beside = self.beside(i, capital, first)
            name = capital[i] and self.low[i] != "i" and (beside if first else beside or not self.known(i))
            if name and not (first and self.low[i] in self.lex.words["determiners"] | self.lex.words["prepositions"]):
                self.opaque[i] = True

    def beside(self, i: int, capital: list[bool], first: bool) -> bool:
        """Whether another capital stands beside a word, an ampersand between them left out."""
        after = i + 2 if self.at(i + 1) == "&" else i + 1
        before = i - 2 if self.at(i - 1) == "&" else i - 1
        return (after < len(capital) and capital[after]) or (before >= 0 and capital[before] and not first)

    def known(self, i: int) -> bool:
        """Whether the table has the word at a place, so that a capital alone makes it no name."""
        word = self.low[i]
        return word in self.lex.readings or word in self.lex.adverbs or word in self.lex.kinds

    def bounds(self) -> None:
        """Where the clause of each word begins and ends, and which sentence it is in."""
        size = len(self.words)
        self.clause_start, self.clause_end, self.sentence = [], [], []
        begin, number = 0, 0
        for i in [k for k, info in enumerate(self.info) if info.stops and not self.opaque[k]]:
            if self.low[i] in ("before", "after", "as") and not self.verb_ahead(i):
                continue
            self.clause_start += [begin] * (i - begin) + [i]
            self.clause_end += [i] * (i - begin) + [i]
            self.sentence += [number] * (i + 1 - begin)
            number += self.low[i] in ENDS
            begin = i + 1
        self.clause_start += [begin] * (size - begin)
        self.clause_end += [size] * (size - begin)
        self.sentence += [number] * (size - begin)

    def verb_ahead(self, i: int) -> bool:
        """Whether a verb follows before the next stop: `after opening the door`, not `after the rain`."""
        for k in range(i + 1, len(self.words)):
            if self.words[k] in STOPS:
                return False
            if any(form in (ING, THIRD) for _, form in self.lex.readings.get(self.low[k], ())):
                return True
        return False

    def idioms(self) -> None:
        """Phrases in which a word of direction is none, or which go both ways."""
        self.to_and_fro: set[int] = set()
        for i in [k for k, info in enumerate(self.info) if info.idioms]:
            for phrase, kind in self.info[i].idioms:
                if self.low[i : i + len(phrase)] == phrase:
                    self.idiom[i : i + len(phrase)] = [True] * len(phrase)
                    if kind == "periodic":
                        self.to_and_fro.add(i)
                    break
        self.still = self.lex.still.search(" ".join(self.low)) is not None

    def at(self, i: int) -> str:
        """The word at a place in lower case; empty beyond the ends."""
        return self.low[i] if 0 <= i < len(self.low) else ""

    def before(self, i: int) -> int:
        """Index of the word before, adverbs left out; -1 at the beginning of a clause."""
        k = i - 1
        while k >= self.clause_start[i] and self.info[k].adverb:
            k -= 1
        return k if k >= self.clause_start[i] else -1

    def noun_like(self, i: int) -> bool:
        """Whether the word at a place may be a noun."""
        return 0 <= i < len(self.info) and self.info[i].noun

    def opens(self, k: int) -> bool:
        """Whether a word opens a sentence."""
        return k == 0 or self.words[k - 1] in (".", "!", "?")

    def skip_adverbs(self, k: int, end: int) -> int:
        while k < end and self.info[k].adverb:
            k += 1
        return k

    def object(self, k: int, end: int, particle: int) -> str:
        """Head of the noun that follows, '' if a preposition or the end does."""
        head = ""
        for j in range(k, end):
            word = self.low[j]
            if j == particle:
                break
            if self.idiom[j] and word not in self.lex.adverbs and not self.info[j].kinds:
                break
            if self.info[j].preposition or self.info[j].adverb or (word in self.lex.adverbs and not self.idiom[j]):
                break
            head = word
        return head

    def object_end(self, k: int, end: int) -> int:
        while k < end and not (
            self.info[k].preposition or self.info[k].adverb or self.low[k] in self.lex.adverbs
            or self.low[k] in MANNERS
        ):  # fmt: skip
            k += 1
        return k
