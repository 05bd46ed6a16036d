"""Rewrites by hand: `rewrites.yaml`, a file in git in which people say what a prompt is when its clip plays backwards.

A list of entries `source`, `prompt` and, if known, `class`, `author`, `reason`. An entry stands as it is: nothing
checks it, and no other rewriter is asked. Notable: in `source`, runs of blanks count as one. What is wrong in the file
is told with entry, line and key, and nothing of the file is used then.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model.rewrite import CLASSES, Override, RewriteError, even
from store.digest import digest
from store.errors import nearest

KEYS = ("source", "prompt", "class", "author", "reason")
_NEEDED = ("source", "prompt")
_SHOWN = 60  # characters of a value in messages


class OverridesError(ValueError):
    """Something in a file of rewrites by hand that cannot be used."""


def read_overrides(path: Path) -> dict[str, Override]:
    """Overrides by even source prompt; `version` is the digest of an entry. An empty file has none.

    Raises OverridesError for a file that is missing or no YAML, anchors, a key that is unknown or there twice, texts
    that are empty, no texts or hold control characters, an unknown class, and two entries of one source.
    """
    entries, lines = _parse(path)
    found: dict[str, Override] = {}
    where_of: dict[str, str] = {}
    for number, (entry, line) in enumerate(zip(entries, lines, strict=True), 1):
        where = f"entry {number} (line {line})"
        source, override = _override(f"{path}: {where}", entry)
        if source in found:
            raise OverridesError(f"{path}: {where}: source: {_shown(source)} has {where_of[source]} already")
        found[source], where_of[source] = override, where
    return found


def used_by(overrides: Mapping[str, Override], prompts: Iterable[str]) -> dict[str, Override]:
    """Those whose source is one of the prompts, by source in order."""
    sources = {even(prompt) for prompt in prompts}
    return {source: overrides[source] for source in sorted(sources & overrides.keys())}


def entry_yaml(source: str, prompt: str) -> str:
    """An entry to be pasted into the file. Raises OverridesError where the file could not hold it."""
    for key, text in (("source", source), ("prompt", prompt)):
        _text("an entry", key, text)
    return f"- source: {quoted(source)}\n  prompt: {quoted(prompt)}"


def quoted(text: str) -> str:
    """A text as YAML's double-quoted scalar, on one line, with escapes for all that could steer a terminal."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _override(where: str, entry: Any) -> tuple[str, Override]:
    if not isinstance(entry, dict):
        raise OverridesError(f"{where}: found {_shown(entry)}; expected a mapping with {', '.join(KEYS)}")
    for key in entry:
        if key not in KEYS:
            near = nearest(key, KEYS) if isinstance(key, str) else ""
            raise OverridesError(f"{where}: unknown key {_shown(key)}{near} (allowed: {', '.join(KEYS)})")
    texts = {key: _text(where, key, entry[key]) for key in KEYS if entry.get(key) is not None}
    for key in _NEEDED:
        if key not in texts:
            raise OverridesError(f"{where}: {key}: missing; expected a text")
    kind = texts.get("class")
    if kind is not None and kind not in CLASSES:
        raise OverridesError(f"{where}: class: found {_shown(kind)}; expected {', '.join(CLASSES)}")
    override = Override(texts["prompt"], digest(texts), kind, texts.get("author"), texts.get("reason"))
    return texts["source"], override


def _text(where: str, key: str, value: Any) -> str:
    """A text with runs of blanks made one."""
    if not isinstance(value, str):
        raise OverridesError(f"{where}: {key}: found {_shown(value)}; expected a text (in quotes)")
    try:
        text = even(value)
    except RewriteError:
        raise OverridesError(f"{where}: {key}: found {_shown(value)}; expected a text that is not empty") from None
    if wrong := [char for char in text if unicodedata.category(char) in ("Cc", "Cs")]:
        raise OverridesError(f"{where}: {key}: found the control character {wrong[0]!r}; expected a line of plain text")
    return text


def _parse(path: Path) -> tuple[list[Any], list[int]]:
    """Entries and the lines they begin in."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.tokens import AliasToken, AnchorToken

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise OverridesError(f"{path}: no such file; expected a list of rewrites by hand, which may be empty") from None
    except OSError as error:
        raise OverridesError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OverridesError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    yaml = YAML(typ="safe", pure=True)
    try:
        for token in yaml.scan(text):
            if isinstance(token, AnchorToken | AliasToken):
                raise OverridesError(
                    f"{path}: line {token.start_mark.line + 1}: anchors and aliases (& *) are not used here"
                )
        entries, node = yaml.load(text), yaml.compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise OverridesError(f"{path}: line {line}: {str(error.problem).splitlines()[0]}") from None
    except YAMLError as error:
        raise OverridesError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a date that is none
        if isinstance(error, OverridesError):
            raise
        raise OverridesError(f"{path}: not YAML that can be read: {type(error).__name__}") from None
    if entries is None:
        return [], []
    if not isinstance(entries, list):
        raise OverridesError(f"{path}: found {_shown(entries)}; expected a list of entries, each `- source: …`")
    return entries, [one.start_mark.line + 1 for one in node.value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
