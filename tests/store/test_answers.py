"""The log of answers: nothing that was added is lost, whatever else is in the file or happens to the process."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
from hypothesis import strategies as st

from store.answers import AnswerLog
from store.errors import StoreError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_answers_are_there_again_and_the_first_stays(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    log = AnswerLog(path)
    assert (len(log), "a" in log, log.get("a")) == (0, False, None)
    assert not path.exists()  # nothing is written before there is an answer
    log.add("a", {"text": "left", "tokens": {"input": 3}})
    log.add("b", {"text": "right"})
    log.add("a", {"text": "another"})
    for one in (log, AnswerLog(path), AnswerLog(str(path))):
        assert (len(one), "a" in one, "c" in one) == (2, True, False)
        assert one.get("a") == {"text": "left", "tokens": {"input": 3}}
    assert len(path.read_bytes().splitlines()) == 2
    log.get("a")["tokens"]["input"] = 7
    assert log.get("a")["tokens"] == {"input": 3}


@hypothesis.settings(max_examples=50, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(answers=st.dictionaries(st.text(), st.dictionaries(st.text(), JSON, max_size=3), max_size=5))
def test_any_answer_is_one_line_and_comes_back_as_it_was(tmp_path_factory, answers):
    path = tmp_path_factory.mktemp("any") / "answers.jsonl"
    log = AnswerLog(path)
    for digest, answer in answers.items():
        log.add(digest, answer)
    again = AnswerLog(path)
    assert {digest: again.get(digest) for digest in answers} == answers
    assert len(again) == len(answers) == (path.read_bytes().count(b"\n") if answers else 0)


def test_a_model_s_worst_texts_are_kept(tmp_path):
    log = AnswerLog(tmp_path / "a.jsonl")
    evil = '\ud800 half a pair, \u2028 and \x85 line ends, \x00, \x1b[31m, "}\n{'
    log.add("a", {"text": evil})
    assert AnswerLog(log.path).get("a") == {"text": evil}
    assert log.path.read_bytes().isascii()


@pytest.mark.parametrize("torn", [b"{", b'{"answer":{},"digest":"b"}', b"\x00" * 100_000, b"\xff"])
def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_answer(tmp_path, torn):
    path = tmp_path / "a.jsonl"
    AnswerLog(path).add("a", {"n": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    log = AnswerLog(path)
    assert (len(log), "b" in log) == (1, False)
    assert path.read_bytes() == whole + torn  # reading changes nothing
    log.add("b", {"n": 2})
    assert path.read_bytes() == whole + b'{"answer":{"n":2},"digest":"b"}\n'
    path.write_bytes(torn)  # and nothing else
    AnswerLog(path).add("b", {"n": 2})
    assert path.read_bytes() == b'{"answer":{"n":2},"digest":"b"}\n'


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "null", '{"digest": "b"}', '{"digest": "b", "answer": 1}', '{"digest": 1, "answer": {}}',
     '{"digest": "b", "answer": {}, "more": 1}', "[" * 100_000, "\ufffd"],
)  # fmt: skip
def test_any_other_broken_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    AnswerLog(path).add("a", {"n": 1})
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    for asked in (lambda: AnswerLog(path), lambda: AnswerLog(tmp_path / "b.jsonl", also=[path])):
        with pytest.raises(StoreError, match=r"a\.jsonl, line 2 is no answer: expected .*, got b'") as caught:
            asked()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


def test_other_files_are_read_only_and_come_after_its_own(tmp_path):
    mine, theirs = AnswerLog(tmp_path / "mine"), AnswerLog(tmp_path / "theirs")
    mine.add("both", {"of": "mine"})
    theirs.add("both", {"of": "theirs"})
    theirs.add("one", {"of": "theirs"})
    before = theirs.path.read_bytes()
    log = AnswerLog(tmp_path / "mine", also=[tmp_path / "theirs"])
    log.add("one", {"of": "nobody"})  # there is one already
    log.add("new", {"of": "mine"})
    assert [log.get(one)["of"] for one in ("both", "one", "new")] == ["mine", "theirs", "mine"]
    assert theirs.path.read_bytes() == before
    assert len(AnswerLog(tmp_path / "mine")) == 2
    with pytest.raises(StoreError, match=r"no file of answers .*gone"):
        AnswerLog(tmp_path / "mine", also=[tmp_path / "gone"])


def test_what_is_no_answer_is_refused_and_nothing_is_written(tmp_path):
    log = AnswerLog(tmp_path / "a.jsonl")
    for digest, answer, error in (
        ("a", {"n": float("nan")}, ValueError),
        ("a", ["no", "dict"], TypeError),
        (7, {}, TypeError),
        ("a", {"n": {1}}, TypeError),
    ):
        with pytest.raises(error):
            log.add(digest, answer)
    assert not log.path.exists()
    assert len(log) == 0


def test_a_file_that_cannot_be_read_or_written_is_the_user_s_to_mend(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="cannot read answers from"):
        AnswerLog(tmp_path)
    log = AnswerLog(tmp_path / "file" / "a.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write answers to .*file"):
        log.add("a", {})
    log = AnswerLog(tmp_path / "a.jsonl")
    log.add("a", {})

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            log.add("b", {})
    assert "b" not in log
    log.add("c", {})
    assert [one in AnswerLog(log.path) for one in "abc"] == [True, False, True]


def test_threads_share_a_log(tmp_path):
    log = AnswerLog(tmp_path / "a.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: log.add(str(n % 50), {"n": n % 50, "text": "x" * 500}), range(200)))
    again = AnswerLog(log.path)
    assert len(again) == len(log) == 50
    assert all(again.get(str(n))["n"] == n for n in range(50))
    assert log.path.read_bytes().count(b"\n") == 50


def add_many(path, first, pipe) -> None:
    log = AnswerLog(path)
    pipe.send("ready")
    for n in range(first, first + 100_000):
        log.add(str(n), {"text": "x" * 300})
        pipe.send(n)


def test_killed_processes_lose_nothing_that_was_added(tmp_path):
    """Two that write one file at once, both killed: every answer of which they told is there."""
    context = multiprocessing.get_context("forkserver")
    path, started = tmp_path / "a.jsonl", []
    for first in (0, 1_000_000):
        ours, theirs = context.Pipe()
        process = context.Process(target=add_many, args=(path, first, theirs))
        process.start()
        theirs.close()
        assert ours.recv() == "ready"
        started.append((process, ours))
    time.sleep(0.2)
    told = set()
    for process, ours in started:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                told.add(ours.recv())
        except EOFError:
            pass
    assert any(n < 1_000_000 for n in told)
    assert any(n >= 1_000_000 for n in told)
    log = AnswerLog(path)
    assert {str(n) for n in told} <= {json.loads(line)["digest"] for line in log._lines.values()}
    log.add("last", {})
    assert "last" in AnswerLog(path)
