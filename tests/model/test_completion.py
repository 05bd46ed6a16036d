import json
import time
from email.utils import formatdate

import pytest

from model.completion import CompletionError, answer_of, completion, retry_after

BODY = {
    "model": "tiny-1",
    "system_fingerprint": "fp",
    "choices": [{"message": {"role": "assistant", "content": "text"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}


def read(**changes):
    return answer_of(completion(json.dumps({**BODY, **changes}).encode(), "application/json"), "d", 0.12345, 2)


def test_a_completion():
    answer = read()
    assert (answer.text, answer.finish_reason, answer.model, answer.revision) == ("text", "stop", "tiny-1", "fp")
    assert (answer.input_tokens, answer.output_tokens, answer.seconds, answer.tries) == (3, 4, 0.123, 2)


@pytest.mark.parametrize("odd", [None, 5, True, -1, 2**40, ["x"], {"x": 1}])
def test_fields_of_another_type_are_absent(odd):
    answer = read(model=odd, system_fingerprint=odd, usage=odd)
    assert (answer.text, answer.model, answer.revision, answer.input_tokens) == ("text", None, None, None)
    assert read(usage={"prompt_tokens": odd}).input_tokens == (5 if odd == 5 else None)
    answer = read(choices=[{"message": {"content": odd, "refusal": odd}, "finish_reason": odd}])
    assert (answer.text, answer.finish_reason) == ("", None)


def test_names_are_short_and_printable():
    answer = read(model="a\x1b[31m\n" + "b" * 500)
    assert answer.model.startswith("a?[31m?b")
    assert len(answer.model) == 200


def test_a_refusal_is_what_was_said():
    assert read(choices=[{"message": {"content": None, "refusal": "No."}}]).text == "No."


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", r"not JSON \(text/html\)"), (b"\xff\xfe{", "not JSON"), (b"[" * 10_000, "not JSON"),
     (b"1" * 10_000, "not JSON"), (b"null", "no chat completion"), (b'{"choices": null}', "no chat completion"),
     (b'{"choices": []}', "without choices"), (b'{"choices": [1]}', "without a message"),
     (b'{"choices": [{"message": "text"}]}', "without a message")],
)  # fmt: skip
def test_what_is_no_completion(body, said):
    with pytest.raises(CompletionError, match=said):
        completion(body, "text/html; charset=utf-8")


def test_retry_after_in_all_its_forms():
    assert retry_after("2.5") == 2.5
    assert retry_after("-3") == 0
    assert 8 < retry_after(formatdate(time.time() + 10, usegmt=True)) < 11
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for nonsense in ("", "soon", "inf", "nan", "Wed, 99 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 99999999 07:28:00 GMT"):
        assert retry_after(nonsense) is None
