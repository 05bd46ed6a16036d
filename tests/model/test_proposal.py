import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.proposal import CLASSES, SCHEMA, Proposal, ProposalError, Span, parse_proposal, read_proposal

GOOD = Proposal((Span("left", "right", "direction"),), ("ball",), "equivariant", "A ball rolls right. 😀", False)
TEXT = json.dumps(GOOD.to_json())
OTHER = json.dumps({**GOOD.to_json(), "reversed_prompt": "something else"})


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        json.dumps(GOOD.to_json(), indent=2, ensure_ascii=False),
        f"```json\n{TEXT}\n```",
        f"Here is the reversed prompt:\n\n{TEXT}\n\nIs there anything else?",
        f"<think>A {{ball}} turns, so {{'left'}} {{}} becomes right.</think>{TEXT}",
        f'{{"note": 1}} {TEXT}',
        f"{TEXT}\n{TEXT}",
        f"{{ {TEXT}",
    ],
)
def test_one_proposal_is_found_in_what_is_around_it(text):
    assert parse_proposal(text) == GOOD


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        ("I'm sorry, but I can't help with that.", "has no JSON object"),
        (TEXT[:-20], "the answer lacks changed_spans"),
        (f"{TEXT} or {OTHER}", "more than one JSON object"),
        ('{"reversed_prompt": "a ball"}', "lacks changed_spans, preserved_entities, reversal_class, uses_marker"),
        (json.dumps({**GOOD.to_json(), "mood": "calm"}), "has mood, which nobody asked for"),
        (json.dumps({**GOOD.to_json(), "reversal_class": "odd"}), "reversal_class is 'odd', allowed are invariant,"),
        (json.dumps({**GOOD.to_json(), "reversal_class": ["novel"]}), "reversal_class is"),
        (json.dumps({**GOOD.to_json(), "uses_marker": 0}), "uses_marker is 0"),
        (json.dumps({**GOOD.to_json(), "reversed_prompt": None}), "reversed_prompt is None, expected a string"),
        (json.dumps({**GOOD.to_json(), "reversed_prompt": "\ud800"}), "reversed_prompt is not Unicode text"),
        (json.dumps({**GOOD.to_json(), "changed_spans": {}}), "changed_spans is {}, expected a list"),
        (json.dumps({**GOOD.to_json(), "changed_spans": ["left"]}), r"changed_spans\[0\] is 'left', expected an"),
        (json.dumps({**GOOD.to_json(), "preserved_entities": [1]}), r"preserved_entities\[0\] is 1"),
        (TEXT[:-1] + ', "uses_marker": true}', "the answer lacks changed_spans"),  # a key is given twice
        ("{" * 50_000, "no JSON object"),
        ('{"a":' * 20_000, "no JSON object"),
        ("x" * 100_001, "100001 characters"),
        ("[1, 2]", "no JSON object"),
    ],
)  # fmt: skip
def test_what_is_no_proposal(text, said):
    with pytest.raises(ProposalError, match=said) as seen:
        parse_proposal(text)
    assert str(seen.value).isprintable()


def test_the_schema_says_what_is_read():
    schema = json.loads(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(GOOD.to_json(), schema)
    assert list(GOOD.to_json()) == list(schema["properties"]) == schema["required"]
    assert schema["properties"]["reversal_class"]["enum"] == list(CLASSES)

    def objects(node):
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for value in node.values():
                yield from objects(value)

    for node in objects(schema):  # as strict mode wants it
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(CLASSES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "to", "kind", "x"]), inner),
    max_leaves=8,
)

VALIDATOR = jsonschema.validators.validator_for(json.loads(SCHEMA))(json.loads(SCHEMA))


@given(st.fixed_dictionaries(dict.fromkeys(GOOD.to_json(), _values)))
def test_reading_agrees_with_the_schema(data):
    try:
        VALIDATOR.validate(data)
        fits = True
    except jsonschema.ValidationError:
        fits = False
    try:
        assert read_proposal(data).to_json() == data
        assert fits
    except ProposalError:
        assert not fits


@given(st.text(max_size=40), st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=3))
def test_proposals_come_back(prompt, spans):
    proposal = Proposal(tuple(Span(*span) for span in spans), (prompt,), "novel", prompt, True)
    assert parse_proposal(json.dumps(proposal.to_json())) == proposal
