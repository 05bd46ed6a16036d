"""What tests of cards share: hostile words, publications made of another, and how a Markdown parser sees a card."""

import json
from dataclasses import replace
from functools import lru_cache

import yaml
from markdown_it import MarkdownIt

from flows.card import Told
from store.publication import Publication

TOLD = Told("team/bagger-toy")
HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a | b || c", "`code` ``` ```` ~~~",
    "---\n---\nlicense: mit", "x\n\n# Heading\n\n- item", "{{ 7*7 }}{% raw %}", "&anchor *anchor !!python/object:os.x",
    "${jndi:ldap://evil.example/a}", "[text](javascript:alert(1)) ![i](http://evil.example/i.png)",
    "<https://evil.example> www.evil.example http://evil.example a@evil.example", "**bold** _it_ ~~no~~ \\| \\",
    "</details> --> <!-- ]]>", "$$x$$ \\(x\\)", "\u202eright to left\u2066", "a\x00b\x1bc\x85d\u2028e", "\ud800",
    "&lt;script&gt; &#60;b&#62; &amp;", "| --- | --- |", "k: v #c", "@user #1", "'; DROP TABLE clips; --",
)  # fmt: skip
FORMS = (None, 3, "x", [], [[]], [3], {}, {"a": "b"}, {"a": {}}, {"counts": "x"}, {"counts": [-1] * 14}, True)


def only(publication, *names):
    return Publication({name: publication.rounds[name] for name in names})


def with_facts(publication, name, **facts):
    one = publication.rounds[name]
    return publication.with_rounds(replace(one, facts={**one.facts, **facts}))


def front(card):
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def tokens(card):
    """The tokens that a Markdown parser with GitHub's extensions sees in a card's text, those within lines too."""
    body = card.split("\n---\n", 1)[1]
    found = []
    for one in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body):
        found += [one, *(one.children or [])]
    return found


WORDS = ("text", "text_special", "softbreak", "inline", "code_inline", "fence")


@lru_cache(maxsize=4)
def shape(card):
    """What of a card is structure: kinds of its tokens, tags and addresses, without any words of the data."""
    return [
        (one.type, one.tag, one.attrs.get("href"), one.attrs.get("src"),
         one.content if one.type in ("html_block", "html_inline") else None)
        for one in tokens(card) if one.type not in WORDS and not one.content.startswith("<!-- written by bagger")
    ]  # fmt: skip


def same_structure(one, two):
    one, two = shape(one), shape(two)
    return next(((a, b) for a, b in zip(one, two, strict=False) if a != b), None) is None and len(one) == len(two)


def text_of(card):
    return " ".join(one.content for one in tokens(card) if one.type in ("text", "text_special", "code_inline"))


def poisoned(publication, text):
    """A publication in which all that others may write is `text`."""
    one = publication.rounds["r1"]
    run = dict.fromkeys(("stage", "round", "run_id", "git_commit", "was_associated_with"), text)
    counts = {text: 2}
    facts = one.facts | {
        "prompts": [{"prompt": text, "source_prompt": text}], "licenses": {text: 2, "mit": 1}, "scorers": counts,
        "models": counts, "samplers": {json.dumps({text: text}): 2, text: 1}, "gates": counts, "verdict": counts,
        "drift_part": counts, "reversal_class": counts, "marker_style": counts, "rewriter_kind": counts,
        "rewrite_models": counts, "parts": {text: text, "motion": text, "detail": 0.5},
        "shapes": [{"frames": text, "height": text, "width": text, "fps": text, "clips": 2}],
        "runs": [run | {"params": {}}, run | {"run_id": "b", "stage": "score", "params": {"scorer": text}}],
    }  # fmt: skip
    tables = {name: replace(manifest, digest=text) for name, manifest in one.tables.items()}
    return Publication({"r1": replace(one, facts=facts, where=text.encode("utf-8", "replace").decode(), tables=tables)})
