"""The stage `rewrite@rK`: which prompts become what, whose answers are kept, and that no model is asked twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from flows import paths, rewrite
from flows.batches import FlowRun
from flows.overrides import OverridesError
from flows.params import load_params
from flows.rewriter import row_of
from flows.server import HOME
from model.chat import ChatError
from model.rewrite import Attempt, versions
from model.rewrite import rewrite as reverse
from store.answers import AnswerLog
from store.table import read_manifest, read_table
from tests.chat_server import MODEL, ChatServer, Reply, answer, error, prompt_of
from tests.model.test_entailment import save as save_network

ROOT = Path(__file__).parents[2]
TOY = "a red circle moves left over a grey background"
ROLLS = [f"a {color} ball rolls to the left" for color in ("blue", "green", "red", "white")]
SHATTERS = "a glass shatters"
BASE = "model-" + "0" * 16


@pytest.fixture
def server():
    with ChatServer() as started:
        yield started


@pytest.fixture
def project(tmp_path, monkeypatch, rows):
    """An empty project; `seal(round, prompts)` gives a round rollouts with these prompts, `params(…)` sets params."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "rewrites.yaml").write_text("[]\n")
    (tmp_path / "params.yaml").write_text((ROOT / "tests" / "smoke.yaml").read_text())

    def seal(round: str, prompts: list[str]) -> None:
        (one, _) = rows.rollouts(round, BASE)
        rollouts = [one | {"rollout_id": f"rollout-{round}-{n}", "prompt": text} for n, text in enumerate(prompts)]
        rows.seal(tmp_path / "data", f"rollouts_{round}", rollouts)

    def params(server: ChatServer | None = None, style: str = "auto", **llm):
        path = tmp_path / "params.yaml"
        yaml = YAML()
        values = yaml.load(path.read_text())
        values["rewrite"]["style"] = style
        if server is not None:
            values["rewrite"]["llm"] |= {"kind": "openai", "model": MODEL, **llm}
            values["resources"]["endpoint"]["url"] = server.url
        yaml.dump(values, path)
        return load_params()

    return SimpleNamespace(root=tmp_path, seal=seal, params=params)


@pytest.fixture
def run(project, monkeypatch):
    """Runs the stage in this process, without Prefect; gives its rows by source prompt."""

    def in_turn(name, batches, work, *, report, workers, unit):
        for batch in batches:
            work(batch)
        return FlowRun([None] * len(batches), "flow-run")

    monkeypatch.setattr(rewrite, "run_batches", in_turn)
    monkeypatch.setattr("flows.rewriter.RETRIES", 0)

    def stage(params=None, round: str = "r1") -> dict[str, dict]:
        rewrite.main(params or project.params(), round)
        return told(round)

    return stage


def told(round: str = "r1") -> dict[str, dict]:
    found = read_table(paths.STORE, f"rewrites_{round}").to_pylist()
    return {row["source_prompt"]: row for row in found}


def asked(server: ChatServer) -> Counter[str]:
    return Counter(prompt_of(one.user) for one in server.seen)


def outputs(round: str = "r1") -> dict:
    return json.loads(Path(f"data/runs/rewrite_{round}.json").read_text())["outputs"]


# ------------------------------------------------------------------------------------------------------ without a model


def test_every_distinct_prompt_has_one_row_with_its_provenance(project, run, capsys):
    project.seal("r1", [TOY, SHATTERS, ROLLS[0], TOY, SHATTERS])
    rows = run()
    assert list(rows) == sorted(rows, key=lambda source: rows[source]["rewrite_id"])
    names = ("rewriter_kind", "marker_style", "reversal_class")
    assert {source: tuple(row[name] for name in names) for source, row in rows.items()} == {
        TOY: ("toy-grammar", "inverted", "equivariant"),
        SHATTERS: ("prefix", "prefix", "irreversible"),
        ROLLS[0]: ("rules", "inverted", "equivariant"),
    }
    assert rows[TOY]["prompt"] == TOY.replace("left", "right")
    assert rows[SHATTERS]["prompt"] == "A reversed video of a glass shatters"
    ruled = rows[ROLLS[0]]
    assert ruled["prompt"] == ROLLS[0].replace("left", "right")
    assert ruled["rewriter_version"] == versions()["rules"]
    assert json.loads(ruled["spans"]) == [{"source": "left", "target": "right", "kind": "direction"}]
    assert [set(one) for one in json.loads(ruled["verdicts"])] == [{"name", "pass", "detail"}] * 2
    assert rows[SHATTERS]["fallback_from"] == "rules"
    assert rows[SHATTERS]["num_attempts"] == len(json.loads(rows[SHATTERS]["attempts"])) == 2
    assert rows[SHATTERS]["reasons"]
    record = json.loads(Path("data/runs/rewrite_r1.json").read_text())
    assert {row["was_generated_by"] for row in rows.values()} == {record["run_id"]}
    assert all(row[name] is None for row in rows.values() for name in ("model_id", "seconds", "seed", "request_digest"))
    assert paths.answers("r1").read_bytes() == b""
    said = capsys.readouterr().err
    assert "rewrite-r1: 3 prompts: 1 by " in said
    assert "language model" not in said
    assert [path for path in Path(".work").iterdir() if path.is_dir()] == []


def test_equal_runs_give_equal_manifests_and_style_decides(project, run):
    project.seal("r1", [TOY, ROLLS[0]])
    run()
    first = read_manifest(paths.manifest("rewrites_r1"))
    run()
    assert read_manifest(paths.manifest("rewrites_r1")) == first
    rows = run(project.params(style="prefix"))
    assert {row["marker_style"] for row in rows.values()} == {"prefix"}
    assert read_manifest(paths.manifest("rewrites_r1")).digest != first.digest


def test_knobs_of_a_model_that_nobody_asks_change_nothing(project, run):
    project.seal("r1", [ROLLS[0]])
    before = run()[ROLLS[0]]
    params = project.params()
    llm = params.rewrite.llm.model_copy(update={"max_tokens": 7})
    changed = params.model_copy(update={"rewrite": params.rewrite.model_copy(update={"llm": llm}), "random_seed": 9})
    assert run(changed)[ROLLS[0]] == before


def test_what_a_person_wrote_stands(project, run, capsys):
    hand = f"""\
- source: "  {ROLLS[1]} "
  prompt: "a green ball comes rolling in from the left"
  class: novel
  author: Ada
  reason: it was thrown
- {{source: nobody has this, prompt: nor this}}
"""
    project.seal("r1", [ROLLS[0], f"{ROLLS[1]}  ", TOY])
    before = run()
    Path("rewrites.yaml").write_text("- {source: nobody has this, prompt: nor this}")
    assert run() == before  # entries of other prompts are no part of it
    Path("rewrites.yaml").write_text(hand)
    capsys.readouterr()
    rows = run()
    row = rows[f"{ROLLS[1]}  "]
    assert row["prompt"] == row["raw_output"] == "a green ball comes rolling in from the left"
    assert (row["rewriter_kind"], row["reversal_class"], row["author"]) == ("override", "novel", "Ada")
    assert row["reasons"] == ["it was thrown"]
    assert len(row["rewriter_version"]) == 64
    assert row["rewrite_id"] != before[f"{ROLLS[1]}  "]["rewrite_id"]
    assert rows[TOY]["rewrite_id"] == before[TOY]["rewrite_id"]
    assert "1 by override" in (said := capsys.readouterr().err)
    assert "(1 of 2 entries of rewrites.yaml used)" in said


def test_a_bad_file_of_overrides_leaves_the_table_as_it_was(project, run):
    project.seal("r1", [TOY])
    before = run()
    Path("rewrites.yaml").write_text("- {source: a, promt: b}")
    with pytest.raises(OverridesError, match=r"rewrites.yaml: entry 1 \(line 1\): unknown key 'promt', did you mean"):
        run()
    assert told() == before


def test_an_empty_prompt_is_named_with_its_rollout(project, run):
    project.seal("r1", [TOY, "  "])
    with pytest.raises(rewrite.PromptsError, match="rollouts_r1: the prompt of rollout-r1-1 is empty"):
        run()


# --------------------------------------------------------------------------------------------------------- with a model


def test_a_model_is_asked_about_what_no_one_knows_better(project, run, server, capsys):
    Path("rewrites.yaml").write_text(f"- {{source: {ROLLS[3]}, prompt: by hand}}")
    project.seal("r1", [TOY, *ROLLS, "A reversed video of a dog that runs"])
    rows = run(project.params(server))
    assert set(ROLLS[:3]) <= set(asked(server))
    assert not {TOY, ROLLS[3], "A reversed video of a dog that runs"} & set(asked(server))
    row = rows[ROLLS[0]]
    assert (row["rewriter_kind"], row["prompt"]) == ("llm", ROLLS[0].replace("left", "right"))
    assert (row["model_id"], row["endpoint_kind"]) == (MODEL, "openai")
    assert json.loads(row["sampling"]) == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256}
    assert row["request_digest"] in AnswerLog(paths.answers("r1"))
    assert len(row["template_digest"]) == len(row["schema_digest"]) == 64
    attempts = json.loads(row["attempts"])
    assert row["num_attempts"] == len(attempts)
    assert attempts[-1]["request_digest"] == row["request_digest"]
    assert attempts[-1]["served_model"] == f"{MODEL}-2026"
    assert json.loads(row["raw_output"])["reversed_prompt"] == row["prompt"]
    assert (row["input_tokens"], row["output_tokens"]) == (11 * len(attempts), 7 * len(attempts))
    assert row["seconds"] >= 0
    assert row["seed"] == attempts[-1]["seed"] >= 0
    assert all(one["pass"] for one in json.loads(row["verdicts"]))
    made = outputs()
    assert made["new_answers"] == made["answers"] == len(AnswerLog(paths.answers("r1")))
    assert made["unanswered"] == 0
    assert "3 prompts, with 0 answers kept from before" in (said := capsys.readouterr().err)
    assert "3 accepted, 0 not" in said


def test_a_rebuild_asks_nothing_and_gives_the_same_bytes(project, run, server):
    server.say(Reply(text="I'm sorry, I cannot help with that."), to=SHATTERS)
    project.seal("r1", [*ROLLS, SHATTERS])
    run(project.params(server))
    manifest, answers = read_manifest(paths.manifest("rewrites_r1")), paths.answers("r1").read_bytes()
    count = len(server.seen)
    assert count > 4
    for _ in range(2):
        run(project.params(server))
        assert len(server.seen) == count
        assert read_manifest(paths.manifest("rewrites_r1")) == manifest
        assert paths.answers("r1").read_bytes() == answers
        assert outputs()["new_answers"] == 0
    digests = [json.loads(line)["digest"] for line in answers.splitlines()]
    assert digests == sorted(set(digests))


def test_a_rebuild_needs_no_server(project, run, server):
    project.seal("r1", ROLLS)
    before = run(project.params(server))
    params = project.params(server)
    endpoint = params.resources.endpoint.model_copy(update={"url": "http://127.0.0.1:9/v1"})
    away = params.model_copy(update={"resources": params.resources.model_copy(update={"endpoint": endpoint})})
    assert run(away) == before
    paths.answers("r1").unlink()
    with pytest.raises(ChatError, match="127.0.0.1:9"):
        run(away)
    assert told() == before  # as it was


def test_another_round_takes_answers_of_this_one_and_keeps_its_own(project, run, server):
    project.seal("r1", ROLLS[:2])
    project.seal("r2", ROLLS[1:3])
    first = run(project.params(server))
    server.seen.clear()
    second = run(project.params(server), "r2")
    assert ROLLS[1] not in asked(server)
    assert ROLLS[2] in asked(server)
    assert second[ROLLS[1]]["rewrite_id"] == first[ROLLS[1]]["rewrite_id"]
    assert outputs("r2")["new_answers"] < outputs("r2")["answers"]
    paths.answers("r1").unlink()
    server.seen.clear()
    run(project.params(server), "r2")
    assert not server.seen


def test_a_model_that_does_not_pass_is_asked_again_then_the_rules_have_it(project, run, server, capsys):
    server.say(Reply(text=json.dumps(answer("a cat sleeps"))), to=ROLLS[0])
    server.say(Reply(text="no JSON here"), to=SHATTERS)
    project.seal("r1", [ROLLS[0], ROLLS[1], SHATTERS])
    rows = run(project.params(server))
    row = rows[ROLLS[0]]
    assert (row["rewriter_kind"], row["fallback_from"]) == ("rules", "llm")
    assert row["prompt"] == ROLLS[0].replace("left", "right")
    attempts = json.loads(row["attempts"])
    assert [one["rewriter"] for one in attempts] == ["llm", "llm", "rules"]  # retries: 1
    assert any(not one["pass"] and one["detail"] for one in attempts[0]["verdicts"])
    assert [one["sampling"] and one["sampling"]["temperature"] for one in attempts] == [0.0, 0.4, None]
    assert row["model_id"] == MODEL
    assert row["request_digest"] is row["seed"] is row["sampling"] is None
    assert row["input_tokens"] == 22
    assert (rows[SHATTERS]["rewriter_kind"], rows[SHATTERS]["fallback_from"]) == ("prefix", "llm,rules")
    assert rows[ROLLS[1]]["rewriter_kind"] == "llm"
    said = capsys.readouterr().err
    assert "1 accepted, 2 not and rewritten 1 by " in said


def test_a_question_without_an_answer_is_asked_again_by_the_next_run(project, run, server, capsys):
    server.say(error(500, "out of memory"), to=ROLLS[2])
    project.seal("r1", ROLLS)
    rows = run(project.params(server))
    row = rows[ROLLS[2]]
    assert (row["rewriter_kind"], row["fallback_from"], row["seconds"]) == ("rules", "llm", None)
    assert "500" in json.loads(row["attempts"])[0]["error"]
    assert outputs()["unanswered"] == 1
    assert "1 questions got no answer; `dvc repro -f rewrite@r1` asks them again" in capsys.readouterr().err
    manifest = read_manifest(paths.manifest("rewrites_r1"))
    run(project.params(server))
    assert read_manifest(paths.manifest("rewrites_r1")) == manifest
    server._scripts.clear()
    server.seen.clear()
    rows = run(project.params(server))
    assert set(asked(server)) <= {ROLLS[2], ROLLS[2].replace("left", "right")}
    assert rows[ROLLS[2]]["rewriter_kind"] == "llm"


def test_other_settings_ask_anew(project, run, server):
    project.seal("r1", ROLLS[:1])
    first = run(project.params(server))
    server.seen.clear()
    second = run(project.params(server, max_tokens=99))
    assert server.seen
    assert second[ROLLS[0]]["rewrite_id"] != first[ROLLS[0]]["rewrite_id"]


def test_networks_judge_too(project, run, server, tmp_path):
    encoder = save_network(tmp_path / "encoder", "AutoModel")
    classifier = save_network(tmp_path / "nli", "AutoModelForSequenceClassification")
    prompt = "a red ball moves left"
    project.seal("r1", [prompt])
    params = project.params(server)
    judges = {
        "similarity": params.rewrite.similarity.model_copy(update={"source": str(encoder), "low": -1.0, "high": 1.0}),
        "entailment": params.rewrite.entailment.model_copy(update={"source": str(classifier)}),
    }

    def judged(**more) -> dict:
        rewriting = params.rewrite.model_copy(update=judges | more)
        return run(params.model_copy(update={"rewrite": rewriting}))[prompt]

    row = judged()
    verdicts = {one["name"]: one for one in json.loads(row["attempts"])[0]["verdicts"]}
    assert verdicts["embedding_band"]["pass"]
    assert "entailment 0." in verdicts["not_entailed"]["detail"]
    record = json.loads(Path("data/runs/rewrite_r1.json").read_text())
    assert {"similarity", "entailment", "llm", "template", "schema"} <= set(record["inputs"])
    row = judged(similarity=judges["similarity"].model_copy(update={"low": -1.0, "high": -1.0}))
    assert (row["rewriter_kind"], row["fallback_from"]) == ("rules", "llm")
    failed = [one["name"] for one in json.loads(row["attempts"])[0]["verdicts"] if not one["pass"]]
    assert failed == ["embedding_band"]


# ------------------------------------------------------------------------------------------------------------- for real


def start(root: Path) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "PREFECT_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.rewrite", "--round", "r1"], cwd=root,
        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.timeout(400)
def test_a_killed_run_is_finished_by_asking_only_what_is_missing(project, server, prefect_home):
    shutil.copytree(prefect_home, HOME)
    prompts = [f"a {color} ball number {n} rolls to the left" for n in range(8) for color in ("red", "green", "blue")]
    project.seal("r1", prompts)
    params = project.params(server)
    server.delay = 0.4
    process = start(project.root)
    deadline = time.monotonic() + 150
    while not (logs := [path for path in Path(".work").glob("rewrite-r1-*/answers.jsonl") if lines(path) >= 6]):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    kept = lines(logs[0])
    assert not paths.manifest("rewrites_r1").exists()
    assert len(AnswerLog(logs[0])) == kept < len(prompts)
    time.sleep(0.5)
    server.seen.clear()
    server.delay = 0.0
    process = start(project.root)
    _, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    assert f"with {kept} answers kept from before" in said
    made = outputs()
    assert len(server.seen) == made["answers"] - kept
    assert made["rewrites"] == len(prompts)
    assert made["unanswered"] == 0
    assert len(AnswerLog(paths.answers("r1"))) == made["answers"]
    assert [path for path in Path(".work").iterdir() if path.is_dir()] == []
    rows = told()
    assert {row["rewriter_kind"] for row in rows.values()} == {"llm"}
    assert params.rewrite.llm.kind == "openai"


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_rows_take_any_rewrite(project):
    """Facts of a model that tell little, as of an attempt that was never answered."""
    made = reverse(SHATTERS)
    lost = Attempt("llm", None, (), "", {"request_digest": "a" * 64, "error": "timed out", "seconds": 3.5})
    row = row_of(replace(made, attempts=(lost, *made.attempts), fallback_from=("llm", "rules")), "run-0", ())
    assert row["seconds"] is None
    assert row["input_tokens"] is None
    assert row["rewrite_id"] != row_of(made, "run-0", ())["rewrite_id"]
