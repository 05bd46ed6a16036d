"""rewrites.yaml: what a person may say there, and what each mistake is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.overrides import OverridesError, entry_yaml, quoted, read_overrides, used_by
from model.rewrite import rewrite

SHIPPED = Path(__file__).parents[2] / "rewrites.yaml"


@pytest.fixture
def read(tmp_path):
    def run(text: str | bytes):
        path = tmp_path / "rewrites.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_overrides(path)

    return run


def test_the_shipped_file_is_empty_and_its_example_is_right(read):
    text = SHIPPED.read_text()
    assert read_overrides(SHIPPED) == {}
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("#   ") and line[4:6] in ("- ", "  "))
    (source,) = found = read(example)
    assert found[source].author == "Ada"
    assert rewrite(source, override=found[source]).prompt == found[source].prompt


@pytest.mark.parametrize("text", ["", "[]", "# nothing\n", "---\n", "\ufeff[]", "null"])
def test_nothing_is_no_override(read, text):
    assert read(text) == {}


def test_an_entry_says_all_that_is_known(read):
    found = read(
        "- source: '  a  ship\n    sails in '\n  prompt: a ship sails out\n"
        "- source: a dog\n  prompt: >-\n    a dog\n    walks\n  class: novel\n  author: Ada\n  reason: so it is\n"
    )
    assert list(found) == ["a ship sails in", "a dog"]
    ship, dog = found.values()
    assert (ship.prompt, ship.reversal_class, ship.author, ship.reason) == ("a ship sails out", None, None, None)
    assert (dog.prompt, dog.reversal_class, dog.author, dog.reason) == ("a dog walks", "novel", "Ada", "so it is")


def test_a_version_is_of_the_entry_alone(read):
    one = read("- {source: a, prompt: b}")["a"].version
    assert read("- {source: x, prompt: y}\n# more\n- prompt: 'b'\n  source: ' a'\n  class: null")["a"].version == one
    others = [f"- {{source: a, prompt: b, {more}}}" for more in ("author: c", "reason: c", "class: novel")]
    versions = {read(text)["a"].version for text in (*others, "- {source: a, prompt: c}")} | {one}
    assert len(versions) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", "found {'a': 1}; expected a list of entries"),
        ("just text", "found 'just text'; expected a list"),
        ("- 5", "entry 1 (line 1): found 5; expected a mapping with source, prompt, class"),
        ("# first\n- {source: a, prompt: b}\n\n- {source: c}", "entry 2 (line 4): prompt: missing"),
        ("- {prompt: b}", "entry 1 (line 1): source: missing"),
        ("- {source: a, prompt: 5}", "prompt: found 5; expected a text (in quotes)"),
        ("- {source: a, prompt: yes, author: true}", "author: found True; expected a text"),
        ("- {source: 2026-01-01, prompt: b}", "source: found datetime.date(2026, 1, 1); expected a text"),
        ("- {source: a, prompt: [b]}", "prompt: found ['b']; expected a text"),
        ("- {source: a, prompt: ''}", "prompt: found ''; expected a text that is not empty"),
        ("- {source: ' ', prompt: b}", "source: found ' '; expected a text that is not empty"),
        ("- {source: a, prompt: b, reason: ''}", "reason: found ''; expected a text that is not empty"),
        ("- {source: a, promt: b}", "unknown key 'promt', did you mean 'prompt'? (allowed: source, prompt, class"),
        ("- {source: a, prompt: b, 7: c}", "unknown key 7 (allowed"),
        ("- {source: a, prompt: b, class: other}", "class: found 'other'; expected invariant, equivariant, novel, irr"),
        ("- {source: a, prompt: b}\n- {source: ' a ', prompt: c}", "entry 2 (line 2): source: 'a' has entry 1"),
        ("- {source: a, source: b}", 'line 1: found duplicate key "source"'),
        ("- &x {source: a, prompt: b}\n- *x", "line 1: anchors and aliases (& *) are not used here"),
        ("- {source: a, prompt: &x b}", "line 1: anchors and aliases"),
        ('- {source: a, prompt: "b\\e[31m"}', "prompt: found the control character '\\x1b'"),
        ('- {source: "a\\0", prompt: b}', "source: found the control character '\\x00'"),
        ('- {source: "\\ud83d", prompt: b}', "source: found the control character '\\ud83d'"),
        ("- {source: a\x1b, prompt: b}", "not YAML"),
        ("- {source: a", "line 1: "),
        ("---\n[]\n---\n[]", "line 3: "),
        ("- !!python/object/apply:os.system [ls]", "line 1: could not determine a constructor"),
        ("- !!binary aGk=", "entry 1 (line 1): found b'hi'"),
        ("- {source: 2026-99-99, prompt: b}", "not YAML that can be read"),
        ("[" * 5000, "not YAML that can be read"),
        (b"- {source: \xff}", "not UTF-8 text: invalid start byte at byte 11"),
    ],
)
def test_a_mistake_is_named_with_file_and_place(read, tmp_path, text, said):
    with pytest.raises(OverridesError) as caught:
        read(text)
    assert str(caught.value).startswith(f"{tmp_path / 'rewrites.yaml'}: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_file_or_a_folder(tmp_path):
    with pytest.raises(OverridesError, match="no such file; expected a list"):
        read_overrides(tmp_path / "none.yaml")
    with pytest.raises(OverridesError, match="cannot be read"):
        read_overrides(tmp_path)


def test_those_that_are_used(read):
    found = read("- {source: b c, prompt: x}\n- {source: a, prompt: x}\n- {source: d, prompt: x}")
    assert list(used_by(found, ["  b\tc", "a", "e"])) == ["a", "b c"]


@given(st.text(min_size=1))
def test_what_is_written_is_read_again(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    assert quoted(text).isprintable()
    try:
        entry = entry_yaml(text, f"{text} backwards")
    except OverridesError:
        return
    path.write_text(f"{entry}\n", encoding="utf-8")
    assert {source: one.prompt for source, one in read_overrides(path).items()} == {
        " ".join(text.split()): " ".join(f"{text} backwards".split())
    }
