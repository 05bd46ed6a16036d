import json
import shutil

import pytest

from store import Store
from store.catalog import build_catalog
from store.digest import bytes_sha256, id_of
from store.lineage import lineage
from store.table import StoreError
from store.tree import render_tree


def walk(tree):
    yield tree
    for parent in tree["parents"]:
        yield from walk(parent)


def parents(tree, kind):
    return [one for one in tree["parents"] if one["type"] == kind]


def parent(tree, kind):
    (found,) = parents(tree, kind)
    return found


def test_a_corrective_clip_of_round_1(tiny):
    tree = lineage(Store(tiny.store), "clip-r1-1")
    assert (tree["type"], tree["round"], tree["drift"]) == ("clip", "r1", 0.6)
    rollout = parent(tree, "rollout")
    assert rollout["id"] == "rollout-r1-1"
    assert rollout["settings"] == {"num_steps": 8, "shift": 3.0}
    assert rollout["rng_name"] == "rollout/r1/1"
    assert rollout["score"]["scorer"] == "handmade@1"
    seed = parent(rollout, "seed")
    assert (seed["id"], seed["split"], seed["source_path"]) == ("seed-1", "train", "videos/1.mp4")
    assert parent(seed, "run")["stage"] == "seed"
    rewrite = parent(tree, "rewrite")
    assert (rewrite["rewriter_kind"], rewrite["reversal_class"]) == ("llm", "equivariant")
    assert rewrite["source_prompt"].startswith("a red disc moves left")
    assert rewrite["verdicts"] == [{"name": "parses", "pass": True, "detail": ""}]
    assert [one["error"] for one in rewrite["attempts"]] == ["no JSON", None]
    assert "run-rewrite-r1" in [one["id"] for one in parents(rewrite, "run")]
    run = parent(tree, "run")
    assert (run["id"], run["stage"], run["git_commit"]) == ("run-correct-r1", "correct", "0" * 40)
    model = parent(rollout, "model")
    assert model["id"] == tiny.models["r0"]
    assert parent(model, "model")["id"] == tiny.models["base"]
    assert [one["id"] for one in parents(parent(model, "plan"), "round")] == ["r0"]


def test_a_rewrite_tells_how_it_came_about_and_which_runs_made_it(tiny):
    store = Store(tiny.store)
    tree = lineage(store, "rewrite-1")
    row = store.read("rewrites_r1", ids=["rewrite-1"]).to_pylist()[0]
    told = {key: value for key, value in tree.items() if key not in ("id", "type", "parents")}
    known = {key: value for key, value in row.items() if value is not None and not key.startswith("was_")}
    texts = ("spans", "verdicts", "attempts", "sampling")
    del known["rewrite_id"]
    assert told == known | {key: json.loads(known[key]) for key in texts}
    assert (tree["seed"], tree["sampling"]["temperature"]) == (2**40 + 1, 0.7)
    assert tree["attempts"][1]["tokens"] == {"input": 300, "output": 40}
    assert [one["id"] for one in tree["parents"]] == ["run-rewrite-r1", "run-rewrite-r2"]
    assert "author" not in lineage(store, "rewrite-0")
    assert lineage(store, "run-rewrite-r1")["stage"] == "rewrite"


def test_in_the_tree_of_a_clip_a_rewrite_tells_the_chief_facts(tiny):
    store = Store(tiny.store)
    text = render_tree(lineage(store, "clip-r1-1"))
    start = text.index("rewrite rewrite-1")
    brief = text[start : text.index("run run-rewrite-r1", start)]
    for shown in ("source_prompt: ", "reversal_class: ", "rewriter_kind: llm", "fallback_from: toy-grammar",
                  "model_id: team/tiny-llm", "verdicts: name=parses, pass=True"):  # fmt: skip
        assert shown in brief
    for hidden in ("attempts", "raw_output", "spans", "reasons", "_digest", "seed:", "tokens", "sampling", "seconds"):
        assert hidden not in brief
    whole = render_tree(lineage(store, "rewrite-1"))
    for shown in ("num_attempts: 2", "attempts: ", "error=no JSON", "template_digest: ", "seed: 1099511627777",
                  "reasons: 'moves left' turns into 'moves right'", "spans: source=left, target=right"):  # fmt: skip
        assert shown in whole


def test_a_rewrite_without_its_table_is_known_from_the_catalog(tiny_copy):
    for name in ("rewrites_r1", "rewrites_r2"):
        shutil.rmtree(tiny_copy.store / f"{name}.lance")
    tree = lineage(Store(tiny_copy.store), "rewrite-1")
    assert (tree["rewriter_kind"], tree["parents"]) == ("llm", [])
    assert tree["prompt"].endswith("right, it's number 1")


def test_the_beginning_of_a_rewrite_s_id_will_do(tiny_copy, rows):
    made = [one | {"rewrite_id": f"rewrite-{n}bcde"} for n, one in enumerate(rows.rewrites("r3"))]
    rows.seal(tiny_copy.root, "rewrites_r3", made)
    rows.seal(tiny_copy.root, "rewrites_r4", made)
    store = Store(tiny_copy.store)
    assert lineage(store, "rewrite-1bcd")["id"] == "rewrite-1bcde"
    with pytest.raises(StoreError, match="nearest: rewrite-0, rewrite-0bcde"):
        lineage(store, "rewrite-0x")


def test_round_2_reaches_its_models_mixture_and_round_1(tiny):
    tree = lineage(Store(tiny.store), "clip-r2-0")
    model = parent(parent(tree, "rollout"), "model")
    assert (model["id"], model["round"]) == (tiny.models["r1"], "r1")
    plan = parent(model, "plan")
    assert plan["id"] == id_of("plan", tiny.plans["r1"])
    assert (plan["num_samples"], plan["corrective"], plan["rounds"]["r1"]["samples"]) == (12, 0.5, 6)
    first, second = parents(plan, "round")
    assert (first["id"], first["kind"], first["clips"]) == ("r0", "seed", 4)
    assert (second["id"], second["kind"], second["clips"]) == ("r1", "corrective", 2)
    assert parent(second, "model")["id"] == tiny.models["r0"]
    assert not any(node["id"].startswith("clip-r1") for node in walk(tree)), "mixtures are told by round"


def test_everything_is_told_once(tiny):
    nodes = list(walk(lineage(Store(tiny.store), "clip-r2-0")))
    told = [node["id"] for node in nodes if not node.get("repeated")]
    assert len(told) == len(set(told))
    assert all(node["id"] in told and node["parents"] == [] for node in nodes if node.get("repeated"))


def test_any_id_has_a_lineage_and_it_is_json(tiny):
    ids = {
        "seed-3": "seed",
        "rollout-r2-1": "rollout",
        "rewrite-1": "rewrite",
        tiny.models["r2"]: "model",
        tiny.plans["r2"]: "plan",
        id_of("plan", tiny.plans["r2"]): "plan",
        "run-train-r2": "run",
        "r2": "round",
    }
    for one, kind in ids.items():
        tree = lineage(Store(tiny.store), one)
        assert (tree["type"], tree["id"]) == (kind, one if len(one) != 64 else id_of("plan", one))
        assert json.loads(json.dumps(tree)) == tree
    train = lineage(Store(tiny.store), "run-train-r2")
    assert [one["id"] for one in train["parents"]] == [tiny.models["base"], id_of("plan", tiny.plans["r2"])]
    assert train["outputs"] == {"model_digest": tiny.models["r2"]}
    assert [one["type"] for one in lineage(Store(tiny.store), tiny.models["r2"])["parents"]] == ["plan", "model", "run"]


def test_files_scores_and_uses_have_ids_too(tiny):
    store = Store(tiny.store)
    sha = bytes_sha256(b"1")
    file = lineage(store, id_of("file", sha))
    assert (file["type"], file["source_path"], file["source_sha256"]) == ("file", "videos/1.mp4", sha)
    assert parent(lineage(store, "seed-1"), "file")["id"] == file["id"]
    assert lineage(store, sha)["id"] == file["id"]
    score = lineage(store, "rollout-r2-1/score")
    assert (score["type"], score["scorer"], score["drift"]) == ("score", "handmade@1", 0.1)
    assert [one["id"] for one in score["parents"]] == ["rollout-r2-1", "run-score-r2"]
    plan = id_of("plan", tiny.plans["r1"])
    use = lineage(store, f"{plan}/clip-r1-0")
    assert (use["type"], use["round"], use["samples"]) == ("use", "r1", len(use["steps"]))
    assert parent(use, "clip")["id"] == "clip-r1-0"


def test_tables_of_run_records_connect_runs(tiny_copy, rows):
    """What run records call by a sealed table's digest is one thing to its maker and to its users."""
    digest, foreign = "ab" * 32, "cd" * 32
    made = rows.run("seed", None, {"clips": foreign}, {"table": "seed", "digest": digest}, 1)
    used = rows.run("rollout", "r1", {"model": tiny_copy.models["r0"], "seed": digest}, {"rows": 2}, 2)
    build_catalog(tiny_copy.store, ["r1", "r2"], [made, used])
    store = Store(tiny_copy.store)
    tree = lineage(store, "run-rollout-r1")
    assert [one["type"] for one in tree["parents"]] == ["model", "table"]
    table = parent(tree, "table")
    assert (table["id"], table["name"]) == (id_of("table", digest), "seed")
    assert parent(table, "run")["id"] == "run-seed"
    assert lineage(store, digest)["id"] == table["id"]
    (source,) = lineage(store, "run-seed")["parents"]
    assert (source["id"], source["note"]) == ("clips-" + foreign[:16], "known from the records of runs alone")


def test_a_plan_is_made_by_mixing_though_training_names_it_too(tiny_copy, rows):
    plan = tiny_copy.plans["r0"]
    mix = rows.run("mix", "r0", {}, {"plan_digest": plan, "summary": {"rounds": {"r0": {}}}}, 9)
    train = rows.run(
        "train", "r0", {"plan_digest": plan}, {"plan_digest": plan, "model_digest": "model-" + "a" * 16}, 1
    )
    build_catalog(tiny_copy.store, ["r1", "r2"], [mix, train])
    store = Store(tiny_copy.store)
    assert [one["id"] for one in parents(lineage(store, id_of("plan", plan)), "run")] == ["run-mix-r0"]
    assert [one["id"] for one in lineage(store, "run-train-r0")["parents"]] == [id_of("plan", plan)]


def test_a_store_without_training_use_answers(tiny_copy):
    shutil.rmtree(tiny_copy.store / "uses.lance")
    store = Store(tiny_copy.store)
    rounds = parents(lineage(store, id_of("plan", tiny_copy.plans["r2"])), "round")
    assert [one["id"] for one in rounds] == ["r0", "r1", "r2"]
    assert [one["type"] for one in store.descendants("seed-1")["children"]] == ["rollout", "rollout"]


def test_the_beginning_of_an_id_will_do(tiny):
    store = Store(tiny.store)
    for kind in ("r0", "r1", "r2", "base"):
        model = tiny.models[kind]
        assert lineage(store, model[:12])["id"] == model
    plan, file = id_of("plan", tiny.plans["r1"]), id_of("file", bytes_sha256(b"3"))
    assert lineage(store, plan[:10])["id"] == plan
    assert lineage(store, file[:10])["id"] == file
    with pytest.raises(
        StoreError, match="'run-train' is the beginning of several ids: run-train-r0, run-train-r1, run-"
    ):
        lineage(store, "run-train")
    with pytest.raises(StoreError, match="no clip, rollout"):
        lineage(store, model[:9])  # three digits are too few


def test_an_unknown_id_names_the_nearest(tiny):
    for wrong, near in (("clip-r1-9", "clip-r1-"), ("model-", "model-"), ("rollout-r2", "rollout-r2-0, rollout-r2-1")):
        with pytest.raises(StoreError, match=f"nearest: .*{near}"):
            lineage(Store(tiny.store), wrong)
    with pytest.raises(StoreError, match="no clip, rollout"):
        lineage(Store(tiny.store), "it's")


def test_ids_of_others_steer_no_error_message(tiny_copy, rows):
    evil = [
        one | {"rollout_id": f"rollout-evil\x1b[31m\u202e{n}"} for n, one in enumerate(rows.rollouts("r3", "model-x"))
    ]
    rows.seal(tiny_copy.root, "rollouts_r3", evil)
    for asked in ("rollout-evil", "rollout-evil9"):
        with pytest.raises(StoreError, match="rollout-evil .*31m") as caught:
            lineage(Store(tiny_copy.store), asked)
        assert str(caught.value).isprintable()


def test_a_use_is_made_of_its_clip_and_a_plan_of_its_uses(tiny):
    store = Store(tiny.store)
    plan = id_of("plan", tiny.plans["r1"])
    count = store.open("uses").count_rows(f"plan_id = '{plan}'")
    assert [(one["of"], one["count"]) for one in parents(lineage(store, plan), "group")] == [("uses of clips", count)]
    assert [one["type"] for one in lineage(store, f"{plan}/clip-r1-0")["parents"]] == ["clip"]


def test_the_tree_for_a_terminal(tiny):
    text = render_tree(lineage(Store(tiny.store), "clip-r2-0"))
    lines = text.splitlines()
    assert lines[0] == "clip clip-r2-0"
    assert any(line.endswith(" · drift: 0.4") for line in lines)
    assert "│  prompt: a red disc moves right, it's number 0" in lines
    assert "├─ rollout rollout-r2-0" in lines
    assert "│  ├─ seed seed-0" in lines
    assert "│  │  settings: num_steps=8, shift=3" in lines
    assert any(line.endswith("round r0  (see above)") for line in lines)
    assert lines[-1].startswith("      ")
    assert "└─ run run-correct-r2" in text


def test_texts_of_others_neither_steer_the_terminal_nor_add_lines():
    evil = "red\x1b[31m\n└─ run run-forged\u202e\x9b2J\r\u2028"
    facts = {"prompt": evil, "source_path": evil, "extra": {evil: [evil, 1]}}
    text = render_tree({"id": "seed-1", "type": "seed", **facts, "parents": []})
    lines = text.split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert "prompt: red [31m └─ run run-forged" in lines[1]
