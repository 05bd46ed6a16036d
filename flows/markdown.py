"""Markdown of what others wrote: words made harmless, tables, pages from templates, and the mark of a page.

Notable:
- Prompts, filters and names are whatever somebody wrote. `plain` and `code` leave no character with a meaning in
  Markdown or HTML, a template's values pass through `plain` unless they are Markup, and YAML is written by a library.
- A page ends in a digest of itself, so that `untouched` knows one that no person has edited, whatever version wrote it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

DASH = "–"  # of what is not known

# ---------------------------------------------------------------- words


def clean(text: object, most: int = 400) -> str:
    """One line of characters that show: controls and line breaks are spaces, marks that turn the direction of writing
    and halves of characters are left out; longer texts are cut."""
    kept = []
    for one in str(text):
        category = unicodedata.category(one)
        if category in ("Cc", "Zl", "Zp", "Zs"):
            kept.append(" ")
        elif category not in ("Cf", "Cs", "Co", "Cn"):
            kept.append(one)
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


# Characters that can mean something to Markdown or HTML, and what of a bare address makes a link.
_RISKY = re.compile(r"""[!"#$&*<>?@\[\\\]^_`{|}~]|:(?=//)|(?<=www)\.""", re.IGNORECASE)


def plain(text: object, most: int = 400) -> Markup:
    """A text as Markdown and HTML that show just these characters: what might mean something becomes its number
    (`&#124;`), which no parser takes for structure. Not for the start of a line, where `-` or `1.` make a list."""
    return Markup(_RISKY.sub(lambda found: f"&#{ord(found[0])};", clean(text, most)))


def code(text: object, most: int = 400) -> Markup:
    """The same in the type of code."""
    line = clean(text, most)
    if re.fullmatch(r"[A-Za-z0-9_./@+=-]+", line) and "www." not in line.lower():
        return Markup(f"`{line}`")
    return Markup(f"<code>{plain(line, most)}</code>") if line else Markup(DASH)


def fence(text: str, language: str = "") -> Markup:
    """A block of code, whatever backticks are in it."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{ticks}{language}\n{text}\n{ticks}")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> Markup:
    """A table; the first `left` columns are texts, the others figures."""
    lines: list[list[str]] = [
        [one if isinstance(one, Markup) else plain(one) for one in row] for row in (header, *rows)
    ]
    rule = ["---" if number < left else "---:" for number in range(len(header))]
    return Markup("\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:])))


def codes(names: Iterable[object]) -> Markup:
    """Several in the type of code, between commas."""
    return Markup(", ").join(map(code, names))


# ---------------------------------------------------------------- pages


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=True, keep_trailing_newline=True,
        finalize=lambda one: one if isinstance(one, Markup) else plain(one),
    )  # fmt: skip
    made.filters |= {"code": code, "codes": codes, "fence": fence}
    return made


def page(template: str, front: DatasetCardData | ModelCardData, **values: Any) -> str:
    """Front matter and body, and the digest of both."""
    body = _environment().get_template(template).render(table=table, **values)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    text = f"---\n{front.to_yaml()}\n---\n\n{body}\n\n"
    return text + _mark(text)


def _mark(text: str) -> str:
    return f"<!-- written by bagger; sha256 of all above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def untouched(card: str) -> bool:
    """Whether a card is as some version of this program wrote it."""
    text, comment, _ = card.rpartition("<!-- written by bagger")
    return bool(comment) and card == text + _mark(text)


_OWNED = ("configs", "size_categories", "model-index")  # of a front matter: what follows from the files


def edited(card: str, new: str) -> str:
    """A card that somebody has edited, with what of a new one's front matter the files need: theirs is everything else.

    A front matter that cannot be read is replaced.
    """
    ours = DatasetCard(new)
    try:
        theirs = DatasetCard(card)
    except (ValueError, yaml.YAMLError):
        theirs = DatasetCard(new)
        theirs.text = "\n" + re.sub(r"\A\s*---\s*?\n.*?\n---[ \t]*(\n|\Z)", "", card, count=1, flags=re.DOTALL)
    owned = {key: value for key, value in ours.data.to_dict().items() if key in _OWNED}
    front = ours.data.to_dict() | theirs.data.to_dict() | owned
    return f"---\n{DatasetCardData(**front).to_yaml()}\n---\n{theirs.text}"
