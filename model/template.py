"""The instruction with which a language model is asked to reverse a prompt: a versioned text, with examples.

It lies in `reversal_template.yaml` beside this file. A prompt is hostile input: it goes in as a string of a JSON
object, in which `<` and `[` are escaped, so that neither "ignore the above" nor a chat marker such as <|im_end|> or
[INST] is more than words of a description.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model.chat import canonical_json, printable, storable
from model.proposal import Proposal, ProposalError, read_proposal

TEMPLATE_FILE = Path(__file__).with_name("reversal_template.yaml")
_PLACE = "{request}"


class TemplateError(ValueError):
    """A template file that cannot be read, or lacks something."""


@dataclass(frozen=True)
class Refused:
    """An earlier answer and what was wrong with it; `answer` is empty where it could not be read."""

    answer: str
    because: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """An instruction: `system`, pairs of prompt and answer, and `user`, in which {request} stands for the request."""

    version: str
    system: str
    user: str
    examples: tuple[tuple[str, Proposal], ...]

    @cached_property
    def digest(self) -> str:
        """sha256 of all of it."""
        examples = [[prompt, answer.to_json()] for prompt, answer in self.examples]
        text = canonical_json([self.version, self.system, self.user, examples])
        return hashlib.sha256(text.encode()).hexdigest()

    def messages(self, prompt: str, refused: Iterable[Refused] = ()) -> tuple[tuple[str, str], ...]:
        """(role, content) pairs that ask to reverse a prompt, after earlier answers that were refused."""
        shown = [("system", self.system)]
        for example, answer in self.examples:
            shown.append(("user", self._asked(example, ())))
            shown.append(("assistant", json.dumps(answer.to_json(), ensure_ascii=False)))
        return (*shown, ("user", self._asked(prompt, refused)))

    def _asked(self, prompt: str, refused: Iterable[Refused]) -> str:
        earlier = [
            (f'{{"answer": {_quoted(one.answer)}, ' if one.answer else "{")
            + f'"because": [{", ".join(map(_quoted, one.because))}]}}'
            for one in refused
        ]
        more = f', "refused": [{", ".join(earlier)}]' if earlier else ""
        return self.user.replace(_PLACE, f'{{"prompt": {_quoted(prompt)}{more}}}')


def load_template(path: Path = TEMPLATE_FILE) -> Template:
    """The template in a YAML file. TemplateError names the file, the key and what is allowed there."""
    from ruamel.yaml import YAML, YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise TemplateError(f"{path}: cannot be read: {printable(' '.join(str(error).split()), 300)}") from error
    data = _mapping(data, str(path), ("version", "system", "user", "examples"))
    for key in ("version", "system", "user"):
        if not isinstance(data[key], str) or not data[key].strip():
            raise TemplateError(f"{path}: {key} is {printable(repr(data[key]), 60)}, expected text")
    if data["user"].count(_PLACE) != 1:
        raise TemplateError(f"{path}: user has {_PLACE} {data['user'].count(_PLACE)} times, expected once")
    if not isinstance(data["examples"], list):
        raise TemplateError(f"{path}: examples is no list")
    examples = []
    for number, value in enumerate(data["examples"]):
        where = f"{path}: examples[{number}]"
        example = _mapping(value, where, ("prompt", "answer"))
        if not isinstance(example["prompt"], str):
            raise TemplateError(f"{where}: prompt is {printable(repr(example['prompt']), 60)}, expected text")
        try:
            examples.append((example["prompt"], read_proposal(example["answer"])))
        except ProposalError as error:
            raise TemplateError(f"{where}: {error}") from error
    return Template(data["version"], data["system"].strip(), data["user"].strip(), tuple(examples))


def _quoted(text: str) -> str:
    """A JSON string, with no character in it that chat markers begin with."""
    quoted = json.dumps(storable(text), ensure_ascii=False)
    return quoted.replace("<", "\\u003c").replace("[", "\\u005b")


def _mapping(value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        seen = sorted(printable(key, 40) for key in value) if isinstance(value, dict) else [type(value).__name__]
        raise TemplateError(f"{where}: has {', '.join(seen) or 'nothing'}, expected {', '.join(keys)}")
    return value
