"""The words that the rules of prompt reversal know, read from `reversal_rules.toml` and inflected.

Notable: everything about English that is a list stands in that table, nothing of it in code; this module only looks
words up. `lexicon()` reads it once per process. A word may have several readings (`rolls`: a verb, or things); which
one it has in a sentence is decided in rules.py.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("reversal_rules.toml")
BASE, THIRD, ING, PAST, PARTICIPLE = range(5)  # forms of a verb
_CLOSED = ("determiner", "preposition", "conjunction", "adverb", "copula", "modal", "adjective")
STOPS = frozenset(",:()[]–—-/.!?;")  # where a clause ends, beside conjunctions
CATEGORIES = ("static", "periodic", "novel", "irreversible")  # later ones count where a verb stands in two lists


@dataclass(frozen=True, slots=True)
class Word:
    """What the table says of one word, whichever its place: looked up once, since every rule asks it."""

    readings: tuple[tuple[str, int], ...]
    kinds: frozenset[str]
    determiner: bool
    preposition: bool
    conjunction: bool
    adverb: bool
    copula: bool
    modal: bool
    adjective: bool
    noun: bool  # it may be one
    auxiliary: bool  # adverb, copula or modal
    stops: bool  # a clause ends there
    idioms: tuple[tuple[list[str], str], ...]  # phrases that begin with it
    notable: bool  # it may be more than a thing, a colour or a function word


@dataclass(frozen=True)
class Swap:
    """A verb whose opposite is another one: `sit down` and `stand up`, seen from one of the two."""

    verb: str
    particle: str
    other: str
    other_particle: str
    subject: frozenset[str]
    object: frozenset[str]
    either: frozenset[str]
    place: frozenset[str]  # kinds, one of which must be told as the place
    links: tuple[tuple[str, str], ...]  # prepositions after it that turn too, as (here, there)
    lasting: bool
    intransitive: bool
    facing: bool  # whoever does it goes backwards


@dataclass(frozen=True)
class Lexicon:
    """Lists of `reversal_rules.toml` as look-ups; all words are in lower case.

    readings: word -> (lemma, form). forms: lemma -> its five forms. categories: lemma -> what it is backwards.
    kinds: noun -> kinds. words: closed classes by name. idioms: first word -> phrases (words, `periodic` or `static`).
    """

    version: str
    sha256: str
    readings: Mapping[str, tuple[tuple[str, int], ...]]
    forms: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, str]
    equivariant: frozenset[str]
    causative: frozenset[str]
    abstract: frozenset[str]
    companion: frozenset[str]
    spreading: frozenset[str]
    going: Mapping[str, frozenset[str]]
    kinds: Mapping[str, frozenset[str]]
    words: Mapping[str, frozenset[str]]
    idioms: Mapping[str, tuple[tuple[list[str], str], ...]]
    still: re.Pattern[str]
    swaps: Mapping[str, tuple[Swap, ...]]
    adverbs: Mapping[str, str]
    prepositions: Mapping[str, tuple[tuple[tuple[str, ...], str], ...]]
    residual: frozenset[str]
    order: frozenset[str]
    doubtful: frozenset[str]
    camera: Mapping[str, frozenset[str]]
    camera_words: Mapping[str, str]
    camera_pairs: Mapping[tuple[str, str], tuple[str, str]]
    camera_links: Mapping[tuple[str, str], str]

    def kinds_of(self, word: str) -> frozenset[str]:
        """Kinds of a noun in singular or plural; empty if the word is not known."""
        return self.kinds.get(word, frozenset())

    def moves(self, lemma: str) -> bool:
        """Whether a verb tells of a motion that may not be the same backwards."""
        going = lemma in self.going["facing"] or lemma in self.going["neutral"]
        return going or self.categories.get(lemma) in ("novel", "irreversible")

    def word(self, word: str) -> Word:
        """All about a word in lower case."""
        return _word(word)


@cache
def lexicon() -> Lexicon:
    """The table of this version of the project."""
    data = TABLE.read_bytes()
    return _read(tomllib.loads(data.decode()), hashlib.sha256(data).hexdigest())


@lru_cache(maxsize=1 << 16)  # a bound, since prompts come from outside
def _word(word: str) -> Word:
    lex = lexicon()
    flags = {name: word in lex.words[f"{name}s"] for name in _CLOSED}
    kinds = lex.kinds_of(word)
    closed = any(is_one for name, is_one in flags.items() if name != "adjective")
    no_noun = closed or word in lex.words["particles"] or word in lex.adverbs or "pronoun" in kinds
    return Word(
        readings=lex.readings.get(word, ()), kinds=kinds, noun=word[:1].isalpha() and not no_noun,
        auxiliary=any(flags[name] for name in ("adverb", "copula", "modal")),
        stops=word in STOPS or flags["conjunction"], idioms=lex.idioms.get(word, ()),
        notable=word in _telling() or word in lex.readings or word.endswith(("s", "ed", "ing", "lapse")), **flags,
    )  # fmt: skip


@cache
def _telling() -> frozenset[str]:
    """Words that are looked for beside verbs: directions, orders, things that cannot be undone, moves of the camera."""
    lex = lexicon()
    undone = {word for word, kinds in lex.kinds.items() if "irreversible" in kinds}
    return lex.residual | lex.order | undone | set(lex.camera_words) | {"focus", "followed", "preceded", "again", "to"}


def _read(table: dict[str, Any], sha256: str) -> Lexicon:
    verbs = {name: text.split() for name, text in table["verbs"].items()}
    irregular = {verb: tuple(text.split()) for verb, text in table["irregular"].items()}
    pairs = [pair for entry in table["swap"] for pair in _swaps(entry)]
    going = {name: frozenset(text.split()) for name, text in table["going"].items()}
    camera = {name: frozenset(text.split()) for name, text in table["camera"].items() if isinstance(text, str)}
    lemmas = {*(one for words in verbs.values() for one in words), *irregular, *going["facing"], *going["neutral"]}
    lemmas |= {one.verb for one in pairs} | camera["verbs"]
    forms = {verb: (verb, *(irregular.get(verb) or inflect(verb))) for verb in sorted(lemmas)}
    never = frozenset(table["words"]["nouns_only"].split())
    readings: dict[str, list[tuple[str, int]]] = {}
    for verb, all_forms in forms.items():
        for form, word in enumerate(all_forms):
            if word in never:
                continue
            if form < PARTICIPLE or word != all_forms[PAST]:
                readings.setdefault(word, []).append((verb, form))
    swaps: dict[str, list[Swap]] = {}
    for one in pairs:
        swaps.setdefault(one.verb, []).append(one)
    kinds: dict[str, set[str]] = {}
    for kind, text in table["nouns"].items():
        for noun in text.split():
            for word in (noun, plural(noun)):
                kinds.setdefault(word, set()).add(kind)
    directions = table["directions"]
    links = table["camera"]["links"]
    return Lexicon(
        version=table["version"],
        sha256=sha256,
        readings={word: tuple(found) for word, found in readings.items()},
        forms=forms,
        categories={verb: name for name in CATEGORIES for verb in verbs[name]},
        equivariant=frozenset(verbs["equivariant"]),
        causative=frozenset(verbs["causative"]),
        abstract=frozenset(verbs["abstract"]),
        companion=frozenset(verbs["companion"]),
        spreading=frozenset(verbs["spreading"]),
        going=going,
        kinds={word: frozenset(found) for word, found in kinds.items()},
        words={name: frozenset(text.split()) for name, text in table["words"].items()},
        idioms=_by_first_word(table["idioms"]),
        still=re.compile(r"\b(?:" + "|".join(map(re.escape, _phrases(table["idioms"]["still"]))) + r")\b"),
        swaps={verb: tuple(found) for verb, found in swaps.items()},
        adverbs=both_ways(directions["adverbs"]),
        prepositions={
            word: tuple(one for one in _longest_first(directions["prepositions"]) if one[0][0] == word)
            for pair in directions["prepositions"] for phrase in pair for word in phrase.split()[:1]
        },
        residual=frozenset(directions["residual"].split()),
        order=frozenset(table["idioms"]["order"].split()),
        doubtful=frozenset(directions["doubtful"].split()),
        camera=camera,
        camera_words=both_ways(table["camera"]["words"]),
        camera_pairs={(a, b): (c, d) for one, two, three, four in table["camera"]["pairs"]
                      for a, b, c, d in ((one, two, three, four), (three, four, one, two))},
        camera_links={(a, b): d for one, other in links for (a, b), (_, d) in _both(one.split(), other.split())},
    )  # fmt: skip


def _swaps(entry: Mapping[str, Any]) -> Iterable[Swap]:
    verbs, particles = entry["verbs"], entry.get("particles", ["", ""])
    links = [tuple(pair) for pair in entry.get("links", [])]
    gates = {name: frozenset(entry.get(name, ())) for name in ("subject", "object", "either", "place")}
    for here, there in ((0, 1), (1, 0)):
        yield Swap(
            verbs[here], particles[here], verbs[there], particles[there], **gates,
            links=tuple((pair[here], pair[there]) for pair in links),
            lasting=bool(entry.get("lasting")), intransitive=bool(entry.get("intransitive")),
            facing=bool(entry.get("facing")),
        )  # fmt: skip


def _phrases(text: str) -> list[str]:
    return [" ".join(one.split()) for one in text.split(";") if one.strip()]


def _by_first_word(table: Mapping[str, str]) -> dict[str, tuple[tuple[list[str], str], ...]]:
    found: dict[str, list[tuple[list[str], str]]] = {}
    for kind in ("periodic", "static"):
        for phrase in _phrases(table[kind]):
            words = phrase.split()
            found.setdefault(words[0], []).append((words, kind))
    return {word: tuple(sorted(ones, key=lambda one: -len(one[0]))) for word, ones in found.items()}


def _both(one: list[str], other: list[str]) -> Iterable[tuple[tuple[str, str], tuple[str, str]]]:
    yield (one[0], one[1]), (other[0], other[1])
    yield (other[0], other[1]), (one[0], one[1])


def both_ways(pairs: Iterable[Iterable[str]]) -> dict[str, str]:
    """{a: b, b: a} of pairs."""
    return {one: other for a, b in pairs for one, other in ((a, b), (b, a))}


def _longest_first(pairs: Iterable[Iterable[str]]) -> tuple[tuple[tuple[str, ...], str], ...]:
    found = [(tuple(one.split()), other) for one, other in both_ways(pairs).items()]
    return tuple(sorted(found, key=lambda one: -len(one[0])))


def plural(noun: str) -> str:
    """Regular plural; irregular ones stand in the table beside their singulars."""
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def inflect(verb: str) -> tuple[str, str, str, str]:
    """Third person, -ing, past and participle of a regular verb."""
    doubled = verb
    stem = verb.removeprefix("un").removeprefix("re")  # unplug
    one_syllable = len(re.findall(r"[aeiouy]+", stem)) == 1
    if one_syllable and re.search(r"(^|[^aeiou])[aeiouy][^aeiouwxy]$", verb):
        doubled = verb + verb[-1]
    if verb.endswith("ie"):
        ing = verb[:-2] + "ying"
    elif verb.endswith("e") and not re.search(r"(ee|ye|oe)$", verb):
        ing = verb[:-1] + "ing"
    else:
        ing = doubled + "ing"
    if verb.endswith("e"):
        past = verb + "d"
    elif re.search(r"[^aeiou]y$", verb):
        past = verb[:-1] + "ied"
    else:
        past = doubled + "ed"
    return plural(verb), ing, past, past
