"""The rules of prompt reversal against pairs that were written without sight of them (benchmarks/reversal.py)."""

import pytest

from benchmarks.reversal import CLASSES, LONG, judge, plain, read_pairs, sets_of, tally
from model.rewrite import rewrite
from model.rules import reverse

PAIRS = read_pairs()


def test_the_file_is_what_it_is_said_to_be():
    assert len(PAIRS) >= 300
    assert len({one["prompt"] for one in PAIRS}) == len(PAIRS)
    assert {one["class"] for one in PAIRS} == set(CLASSES)
    for kind in CLASSES:
        assert sum(one["class"] == kind for one in PAIRS) >= 100
    assert sum(len(one["prompt"].split()) >= LONG for one in PAIRS) >= 60
    assert sum("negative" in one["tags"] for one in PAIRS) >= 200
    assert not any(one["reversed"] for one in PAIRS if one["class"] == "irreversible")


@pytest.mark.parametrize("name", ["all", *sets_of(PAIRS)])
def test_a_rewrite_is_right_where_the_rules_give_one(name):
    group = PAIRS if name == "all" else [one for one in PAIRS if one["set"] == name]
    wrong = [(one["prompt"], given) for one in group for verdict, given in [judge(one)] if verdict == "wrong"]
    found = tally(group)
    assert found["precision"] >= 0.98, wrong


@pytest.mark.parametrize(("kind", "least"), [("invariant", 0.4), ("equivariant", 0.3), ("novel", 0.35)])
def test_so_many_get_one(kind, least):
    assert tally(one for one in PAIRS if one["class"] == kind)["recall"] >= least


def test_what_cannot_be_undone_is_never_rewritten():
    for pair in PAIRS:
        if pair["class"] == "irreversible":
            made = rewrite(pair["prompt"])
            assert made.marker_style == "prefix", pair["prompt"]


def test_what_moves_one_way_is_never_left_unchanged():
    for pair in PAIRS:
        if pair["class"] != "invariant":
            assert plain(rewrite(pair["prompt"]).prompt) != plain(pair["prompt"]), pair["prompt"]


def test_each_rewrite_leads_back():
    for pair in PAIRS:
        found = reverse(" ".join(pair["prompt"].split()))
        if found.prompt is not None and not found.unchanged:
            assert reverse(found.prompt).prompt == " ".join(pair["prompt"].split())
