"""`bagger reverse` and `bagger rewrites`: what they print where, and how they end."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.overrides import read_overrides
from store import Store
from store.registry import register
from tests.chat_server import MODEL, ChatServer, Reply, error, prompt_of
from tests.flows.test_cli import LIGHT, ROOT, spent
from tests.model import tiny_chat

BALL = "a red ball rolls to the left"
GLASS = "a glass shatters"
TOY = "a red circle moves left over a grey background"
PATHS = {"PYTHONPATH": str(ROOT)}
HOSTILE = "a \x1b[31mball\u202e rolls to the left"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """No project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("flows.rewriter.RETRIES", 0)
    return tmp_path


@pytest.fixture
def server():
    with ChatServer() as started:
        yield started


# ---------------------------------------------------------------- reverse


def test_one_prompt_is_a_small_block(bagger):
    told = bagger("reverse", BALL)
    assert (told.status, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[:3] == ["class     equivariant", "style     inverted", "reversed  a red ball rolls to the right"]
    assert lines[3].startswith("by        rules ")


def test_many_are_a_line_each(bagger):
    told = bagger("reverse", BALL, GLASS, TOY)
    assert told.out.splitlines() == [
        "class         style     reversed",
        "equivariant   inverted  a red ball rolls to the right",
        "irreversible  prefix    A reversed video of a glass shatters",
        "equivariant   inverted  a red circle moves right over a grey background",
    ]


def test_explain_tells_why_what_changed_and_what_was_tried(bagger):
    told = bagger("reverse", BALL, GLASS, "--explain").out
    assert "changed   left → right (direction)" in told
    assert "check     round_trip passed" in told
    assert "prompt      a glass shatters" in told
    assert "why         'shatters' cannot be undone" in told
    assert "instead of  rules" in told
    assert "tried       rules: understood failed: 'shatters' cannot be undone" in told


def test_json_is_one_array_of_objects(bagger):
    told = bagger("reverse", BALL, GLASS, "--json")
    one, other = json.loads(told.out)
    assert (one["prompt"], one["reversed"]) == (BALL, "a red ball rolls to the right")
    assert (one["class"], one["style"], one["kind"], one["fallback_from"]) == ("equivariant", "inverted", "rules", [])
    assert one["spans"] == [{"source": "left", "target": "right", "kind": "direction"}]
    assert all(set(check) == {"name", "pass", "detail"} for check in one["verdicts"])
    assert one["reasons"]
    assert other["fallback_from"] == ["rules"]
    assert [attempt["rewriter"] for attempt in other["attempts"]] == ["rules", "prefix"]
    assert json.loads(bagger("reverse", BALL, "--json").out) == [one]


@pytest.mark.parametrize(("style", "marker"), [("auto", "inverted"), ("inverted", "inverted"), ("prefix", "prefix")])
def test_style(bagger, style, marker):
    assert json.loads(bagger("reverse", BALL, "--style", style, "--json").out)[0]["style"] == marker


def test_a_file_has_a_prompt_a_line(bagger, folder):
    (folder / "p.txt").write_bytes(f"\ufeff{BALL}\r\n\n   \n# {GLASS}\n  {TOY}".encode())
    found = json.loads(bagger("reverse", "--file", "p.txt", "--json").out)
    assert [one["prompt"] for one in found] == [BALL, f"# {GLASS}", f"  {TOY}"]
    assert found[2]["kind"] == "toy-grammar"


def test_standard_input(bagger, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(f"{BALL}\n{GLASS}\n".encode())))
    assert len(bagger("reverse", "--file", "-").out.splitlines()) == 3


def test_what_a_person_wrote_counts_and_is_said(bagger, folder):
    (folder / "rewrites.yaml").write_text(f"- {{source: {GLASS}, prompt: a glass mends, author: Ada}}")
    told = bagger("reverse", f"  {GLASS}", BALL, "--explain")
    assert "by        override" in told.out
    assert "(Ada)" in told.out
    assert told.err == "rewrites.yaml: 1 rewrites by hand, used for 1 of 2 prompts\n"
    (folder / "rewrites.yaml").write_text("- {source: a}")
    told = bagger("reverse", BALL)
    assert (told.status, told.out) == (1, "")
    assert told.err == "error: rewrites.yaml: entry 1 (line 1): prompt: missing; expected a text\n"


@pytest.mark.parametrize("form", [[], ["--explain"], ["--json"], ["again"]])
def test_hostile_prompts_do_not_steer_a_terminal(bagger, form):
    told = bagger("reverse", HOSTILE, *form)
    assert told.status == 0
    assert all(char.isprintable() or char == "\n" for char in told.out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to reverse; give a PROMPT, or --file FILE"),
        ([""], "PROMPT 1: found ''; expected a sentence"),
        ([BALL, " "], "PROMPT 2: found ' '"),
        ([BALL, "--file", "p.txt"], "PROMPT and --file exclude each other"),
        (["--file", "none.txt"], "--file none.txt: cannot be read: No such file"),
        (["--file", "."], "--file .: cannot be read: Is a directory"),
        (["--file", "bad.txt"], "--file bad.txt: line 2: not UTF-8 text: invalid start byte at byte 3 of the line"),
        (["--file", "empty.txt"], "--file empty.txt: no prompt in empty.txt"),
        ([BALL, "--style", "prefixed"], "--style 'prefixed': expected auto, prefix, inverted, did you mean 'prefix'?"),
        ([BALL, "--url", "http://x"], "--url says where a model is served; name it: --model NAME"),
        ([BALL, "--model", "a", "--local", "b"], "--model and --local exclude each other"),
        ([BALL, "--model", ""], "--model: found ''"),
        ([BALL, "--local", "./nowhere"], "nowhere: no such folder"),
        ([BALL, "--model", "a", "--url", "http://127.0.0.1:9/v1"], "127.0.0.1:9"),
        ([BALL, "--model", "a", "--url", "ftp://x"], "ftp"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(bagger, folder, arguments, said):
    (folder / "bad.txt").write_bytes(b"a ball\na \xff\n")
    (folder / "empty.txt").write_bytes(b" \n\n")
    told = bagger("reverse", *arguments)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert said in told.err


def test_it_imports_nothing_heavy_and_answers_at_once(folder):
    (folder / "p.txt").write_text(f"{BALL}\n" * 100)
    heavy = LIGHT.replace('"torch",', '"torch", "lance", "pyarrow", "openai", "ruamel.yaml",')
    for arguments in (["--help"], [BALL], ["--file", "p.txt", "--json"]):
        seconds = []
        for _ in range(2):
            began = spent()
            command = [sys.executable, "-P", "-c", heavy, "reverse", *arguments]
            told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | PATHS)
            seconds.append(spent() - began)
            assert (told.returncode, told.stderr) == (0, "")
        assert min(seconds) < 3, seconds  # about 0.5 s on an idle machine


def test_a_server_is_asked_first(bagger, server):
    server.say(Reply(text="I'm sorry"), to=GLASS)
    told = bagger("reverse", BALL, GLASS, TOY, BALL, "--model", MODEL, "--url", server.url, "--json")
    assert told.status == 0, told.err
    ball, glass, toy, again = json.loads(told.out)
    assert (ball["kind"], ball["reversed"]) == ("llm", "a red ball rolls to the right")
    assert ball == again
    assert ball["attempts"][-1]["tokens"] == {"input": 11, "output": 7}
    assert (glass["kind"], glass["fallback_from"]) == ("prefix", ["llm", "rules"])
    assert toy["kind"] == "toy-grammar"
    assert {prompt_of(one.user) for one in server.seen} == {BALL, GLASS}  # the rules know the way back
    explained = bagger("reverse", GLASS, "--model", MODEL, "--url", server.url, "--explain").out
    assert "instead of  llm, rules" in explained
    assert "tried       llm: parses failed: " in explained


def test_a_server_that_does_not_know_the_model(bagger, server):
    told = bagger("reverse", BALL, "--model", "other", "--url", server.url)
    assert told.status == 1
    assert "other" in told.err
    assert told.err.count("\n") == 1


def test_a_question_without_an_answer_leaves_it_to_the_rules(bagger, server):
    server.say(error(500, "out of memory"), to=GLASS)
    told = bagger("reverse", BALL, GLASS, "--model", MODEL, "--url", server.url, "--json")
    ball, glass = json.loads(told.out)
    assert ball["kind"] == "llm"
    assert glass["kind"] == "prefix"
    assert "500" in glass["attempts"][0]["error"]


def test_weights_in_this_process(bagger, folder):
    """Random ones, whose answers are JSON and nonsense: the rules have the last word."""
    tiny_chat.save(folder / "model", context=16384)
    (one,) = json.loads(bagger("reverse", BALL, "--local", "model", "--json").out)
    assert one["kind"] in ("rules", "llm")
    tried = [attempt for attempt in one["attempts"] if attempt["rewriter"] == "llm"]
    assert tried
    assert all(attempt["model"] == "model" for attempt in tried)


# ---------------------------------------------------------------- rewrites


def test_all_rewrites_each_once_with_its_rounds(bagger, tiny):
    told = bagger("rewrites", "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    head, *lines = [line.split() for line in told.out.splitlines()]
    assert head == ["rewrite_id", "round", "kind", "class", "style", "source", "prompt"]
    assert [line[:5] for line in lines] == [
        ["rewrite-0", "r1,r2", "toy-grammar", "equivariant", "none"],
        ["rewrite-1", "r1,r2", "llm", "equivariant", "none"],
    ]
    second = bagger("rewrites", "--store", tiny.store, "--round", "r2").out.splitlines()[1:]
    assert [line.split()[1] for line in second] == ["r2", "r2"]


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--kind", "llm"], ["rewrite-1"]),
        (["--kind", "llm", "--kind", "toy-grammar"], ["rewrite-0", "rewrite-1"]),
        (["--class", "novel"], []),
        (["--style", "none"], ["rewrite-0", "rewrite-1"]),
        (["--fallback"], ["rewrite-1"]),
        (["--rejected"], ["rewrite-1"]),
        (["--limit", 1], ["rewrite-0"]),
        (["--limit", 0], []),
    ],
)
def test_what_each_option_selects(bagger, tiny, arguments, ids):
    told = bagger("rewrites", "--store", tiny.store, "--json", *arguments)
    assert [one["rewrite_id"] for one in json.loads(told.out)] == ids
    shown = bagger("rewrites", "--store", tiny.store, *arguments)
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ids
    assert shown.err == ("" if ids else "no such rewrites\n")


def test_rejected_says_why_and_json_all(bagger, tiny):
    told = bagger("rewrites", "--store", tiny.store, "--rejected")
    assert told.out.splitlines()[0].endswith("because")
    assert told.out.splitlines()[1].endswith("llm: no JSON")
    (one,) = json.loads(bagger("rewrites", "--store", tiny.store, "--rejected", "--json").out)
    assert [attempt["error"] for attempt in one["attempts"]] == ["no JSON", None]
    assert one["sampling"]["temperature"] == 0.7
    assert one["verdicts"][0]["name"] == "parses"
    assert one["spans"][0]["source"] == "left"


def test_summary(bagger, tiny):
    rows = json.loads(bagger("rewrites", "--store", tiny.store, "--summary", "--json").out)
    found = {(row["group"], row["name"]): (row["count"], row["share"]) for row in rows}
    assert found["class", "equivariant"] == (2, 1.0)
    assert found["kind", "llm"] == (1, 0.5)
    assert found["check passed", "parses"] == (1, 1.0)
    assert found["cost", "input_tokens"] == (600, None)
    assert found["cost", "seconds"] == (1.25, None)
    told = bagger("rewrites", "--store", tiny.store, "--summary")
    assert told.out.splitlines()[0].split() == ["group", "name", "count", "share"]
    assert bagger("rewrites", "--store", tiny.store, "--summary", "--kind", "prefix").err == "no such rewrites\n"


def test_yaml_can_be_pasted(bagger, tiny_copy, rows, folder):
    sources = [HOSTILE.replace("\x1b", ""), 'a "quoted" \\ one: # {x} 😀', "a \x1b[31m one"]
    made = rows.rewrites("r1")[1]
    rows.seal(tiny_copy.root, "rewrites_r1", [made | {"rewrite_id": f"rewrite-{n}", "source_prompt": source}
                                             for n, source in enumerate(sources)])  # fmt: skip
    told = bagger("rewrites", "--store", tiny_copy.store, "--round", "r1", "--yaml")
    assert all(char.isprintable() or char == "\n" for char in told.out + told.err)
    assert told.err.startswith("rewrite-2 is left out: an entry: source: found the control character")
    (folder / "r.yaml").write_text((ROOT / "rewrites.yaml").read_text() + told.out)
    assert {source: one.prompt for source, one in read_overrides(folder / "r.yaml").items()} == {
        " ".join(source.split()): made["prompt"] for source in sources[:2]
    }
    assert "#   llm: no JSON" in told.out


def test_a_registry(bagger, tiny, folder):
    register(Store(tiny.store), folder / "registry", "reach")
    assert len(json.loads(bagger("rewrites", "--store", folder / "registry", "--json").out)) == 4
    told = bagger("rewrites", "--store", folder / "registry", "--round", "r2", "--json")
    found = [(one["rewrite_id"], one["round"]) for one in json.loads(told.out)]
    assert found == [("rewrite-0", "r2"), ("rewrite-1", "r2")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--round", "r9"], "no table 'rewrites_r9'"),
        (["--store", "nowhere"], "nowhere"),
        (["--kind", "rule"], "'rule': expected override, toy-grammar, llm, rules, prefix, did you mean 'rules'?"),
        (["--class", "nowel"], "did you mean 'novel'?"),
        (["--style", "auto"], "--style 'auto': expected prefix, inverted, none"),
        (["--yaml", "--json"], "--yaml and --json exclude each other"),
        (["--yaml", "--summary"], "--yaml and --summary exclude each other"),
    ],
)
def test_a_wrong_question_is_one_line_and_status_1(bagger, tiny, arguments, said):
    told = bagger("rewrites", "--store", tiny.store, *arguments)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert said in told.err
