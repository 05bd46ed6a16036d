import json
from dataclasses import replace

import pytest

from model.chat import MAX_SEED, Answer, ChatError, Request, printable, storable

REQUEST = Request("tiny", None, "openai", (("system", "be true"), ("user", "a ball")), "{}", 0.0, 1.0, 64, 7)


def test_every_field_of_a_request_is_in_its_digest():
    changes = {
        "model": "other", "revision": "abc", "endpoint_kind": "transformers", "messages": (("user", "a ball"),),
        "schema": "[]", "temperature": 0.4, "top_p": 0.9, "max_tokens": 65, "seed": 8,
    }  # fmt: skip
    assert set(changes) == set(REQUEST.__dataclass_fields__)
    digests = {replace(REQUEST, **{name: value}).digest for name, value in changes.items()} | {REQUEST.digest}
    assert len(digests) == len(changes) + 1
    assert replace(REQUEST, temperature=0, top_p=1).digest == REQUEST.digest
    assert REQUEST.digest == "a4f01231d398159fafe358568eaefb870a8f49859c2a07a2afff3842090615aa"  # kept answers


def test_roles_and_texts_do_not_run_into_each_other():
    one = replace(REQUEST, messages=(("user", "a"), ("assistant", "b")))
    other = replace(REQUEST, messages=(("user", 'a"],["assistant","b'),))
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("temperature", 2.1), ("top_p", 0.0), ("top_p", 1.1),
     ("max_tokens", 0), ("seed", -1), ("seed", MAX_SEED + 1), ("endpoint_kind", "carrier pigeon"), ("messages", ()),
     ("messages", (("tool", "x"),)), ("messages", (("user", None),))],
)  # fmt: skip
def test_requests_that_are_none(name, value):
    with pytest.raises(ChatError, match=name):
        replace(REQUEST, **{name: value})


def test_answers_come_back_from_json():
    answer = Answer("d" * 64, "text 😀\n", None, "stop", "tiny-1", "fp", 3, 4, 0.25, 2)
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
    assert answer.is_final
    assert replace(answer, text="", finish_reason="length").is_final  # it did answer
    assert not replace(answer, error="timed out").is_final


@pytest.mark.parametrize(
    ("change", "said"),
    [({"text": None}, "text is 'None'"), ({"tries": True}, "tries"), ({"input_tokens": "3"}, "input_tokens"),
     ({"more": 1}, "more"), (None, "mapping")],
)  # fmt: skip
def test_kept_answers_that_are_none(change, said):
    data = None if change is None else {**Answer("d").to_json(), **change}
    with pytest.raises(ChatError, match=said):
        Answer.from_json(data)
    with pytest.raises(ChatError, match="seconds"):
        Answer.from_json({name: value for name, value in Answer("d").to_json().items() if name != "seconds"})


def test_text_that_utf8_cannot_hold():
    assert storable("a\ud800b\udc00 \ud83d\ude00 é 😀\x00") == "a\ufffdb\ufffd 😀 é 😀\x00"
    assert printable("a\x1b[31mb\nc" + "d" * 300, 12) == "a?[31mb?cddd"
