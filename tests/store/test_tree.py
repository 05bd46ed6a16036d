import re

import pytest

from store import Store
from store.tree import edges, escaped, flat, mermaid, nodes, render_tree

EVIL = 'end"]; click n0 "javascript:x" <script>`**$$x$$`</script> %% #quot; {}()|\\\n\u2028--> n1 & "1. a" subgraph'
NODE = re.compile(r'  (n\d+)(\[|\(\[|\{\{|\[/|\[\[|\[\(|\(|>|\[\\)"([^"]*)"(\]|\]\)|\}\}|/\]|\]\]|\)\]|\)|\\\])')


def test_a_diagram_has_every_thing_once_and_every_edge(tiny):
    store = Store(tiny.store)
    for tree in (store.lineage("clip-r2-0"), store.descendants("seed-0")):
        lines = mermaid(tree).splitlines()
        assert lines[0] == "flowchart TD"
        drawn = [match for line in lines if (match := NODE.fullmatch(line))]
        names = {node["id"]: f"n{number}" for number, node in enumerate(nodes(tree))}
        assert [match[1] for match in drawn] == list(names.values())
        arrows = {tuple(line.split(" --> ")) for line in map(str.strip, lines) if " --> " in line}
        assert arrows == {(names[one["id"]], names[other["id"]]) for one, other in edges(tree)}
        assert len(lines) == 1 + len(drawn) + len(arrows) + 1
    assert any('"rollout-r1-0<br/>round: r1' in line for line in lines)


def test_arrows_lead_from_the_origin_to_what_came_of_it(tiny):
    for tree in (Store(tiny.store).lineage("rollout-r1-0"), Store(tiny.store).descendants("seed-0")):
        assert ("seed-0", "rollout-r1-0") in {(one["id"], other["id"]) for one, other in edges(tree)}


@pytest.mark.parametrize("onward", ["parents", "children"])
def test_texts_of_others_stay_within_their_label(onward):
    facts = {"prompt": EVIL, "source_path": EVIL, "stage": EVIL}
    other = {"id": EVIL, "type": "seed", "prompt": EVIL, onward: []}
    lines = mermaid({"id": "seed-1", "type": "seed", **facts, onward: [other]}).splitlines()
    assert len(lines) == 5
    for line in lines[1:3]:
        label = NODE.fullmatch(line)[3]
        assert re.fullmatch(r"([A-Za-z0-9 ,.:/+-]|#\d+;|<br/>)*", label)
    assert set(lines[3].split()) == {"n0", "n1", "-->"}


def test_nothing_steers_a_terminal():
    evil = "a\x1b[31m\u202e\x9b2J\x7f\rb"
    group = {
        "id": f"g-{evil}",
        "type": "group",
        "of": evil,
        "count": 3,
        "list": evil,
        "examples": [evil],
        "children": [],
    }
    tree = {"id": evil, "type": "seed", "prompt": evil, "extra": {evil: [evil]}, "children": [group]}
    for text in (render_tree(tree), mermaid(tree)):
        assert "b" in text
        assert all(line.isprintable() for line in text.split("\n"))


def test_facts_by_path():
    assert flat({"a": {"b": [1, {"c": None}]}, "d": [], "e": "x"}) == {"a.b.0": 1, "a.b.1.c": None, "e": "x"}


def test_an_escaped_text_is_the_text_as_numbers():
    told = escaped('a "b" <i> it\'s 1.5 é')
    assert told == "a #34;b#34; #60;i#62; it#39;s 1.5 #233;"
    assert re.sub(r"#(\d+);", lambda m: chr(int(m[1])), escaped("x" * 200)) == "x" * 69 + "…"


def test_a_long_list_is_abbreviated_for_a_terminal():
    use = {"id": "u", "type": "use", "steps": list(range(0, 100, 5)), "children": []}
    assert render_tree(use).splitlines()[1].strip() == "steps: 0, 5, 10, 15, 20, 25, 30, 35 … 95"
    use["steps"] = use["steps"][:8]
    assert render_tree(use).splitlines()[1].strip() == "steps: 0, 5, 10, 15, 20, 25, 30, 35"


def test_only_what_was_asked_for_tells_the_details():
    seed = {"id": "seed-1", "type": "seed", "prompt": "a", "vae_digest": "v", "parents": []}
    clip = {"id": "clip-1", "type": "clip", "prompt": "b", "vae_digest": "v", "parents": [seed]}
    assert render_tree(clip).splitlines() == [
        "clip clip-1",
        "│  prompt: b · vae_digest: v",
        "└─ seed seed-1",
        "      prompt: a",
    ]
