from flows.card import dataset_card
from flows.markdown import clean, code, edited, fence, plain, table, untouched
from tests.flows.cards import TOLD, front, only


def test_escapes():
    assert plain("r1 · a, b: 5 %") == "r1 · a, b: 5 %"
    assert plain("a|b") == "a&#124;b"
    assert code("model-1a") == "`model-1a`"
    assert code("a|b") == "<code>a&#124;b</code>"
    assert clean("a\r\n b\t\u202e") == "a b"
    assert len(clean("x" * 999)) == 400
    assert fence("```\nx") == "````\n```\nx\n````"
    assert table(["a", "n"], [["x|y", "1"]]) == "| a | n |\n| --- | ---: |\n| x&#124;y | 1 |"


# ---------------------------------------------------------------- cards that people edit


def test_a_card_knows_whether_somebody_has_edited_it(whole):
    card = dataset_card(whole, TOLD)
    assert untouched(card)
    assert not untouched(card.replace("demonstration", "example"))
    assert not untouched(card + "More.\n")
    assert not untouched("# Mine\n")


def test_an_edited_card_keeps_its_words_and_gets_the_new_files(whole):
    before, new = dataset_card(only(whole, "r0", "r1"), TOLD), dataset_card(whole, TOLD)
    theirs = before.replace("pretty_name: bagger-toy", "pretty_name: Ours").replace("## Columns", "## Our columns")
    made = edited(theirs, new)
    assert front(made)["pretty_name"] == "Ours"
    assert front(made)["configs"] == front(new)["configs"]
    assert made.split("\n---\n", 1)[1] == theirs.split("\n---\n", 1)[1]
    assert edited(made, new) == made
    for broken in ("---\n[\n---\nwords\n", "---\n- a\n---\nwords\n", "words\n"):
        made = edited(broken, new)
        assert front(made)["configs"] == front(new)["configs"]
        assert made.rstrip().endswith("\nwords")
