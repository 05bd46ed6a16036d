"""The one error of the store that is the user's to mend, and how texts are told to a person."""

import difflib
import itertools
from collections.abc import Iterable, Sequence

MOST_COMPARED = 2000  # names that a wrong one is compared with: it takes 40 µs each


class StoreError(ValueError):
    """A user-facing error of the store; the message names the table or file, what was seen and how to mend it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean …?' for error messages; empty if nothing is near."""
    matches = difflib.get_close_matches(word, itertools.islice(known, MOST_COMPARED), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def printable(text: str) -> str:
    """The text on one line, with a space for all that could steer a terminal: escapes, line ends, bidi marks."""
    return "".join(char if char.isprintable() else " " for char in text)


def few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
