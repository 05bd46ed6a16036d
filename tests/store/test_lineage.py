import json

import pytest

from store import Store
from store.digest import id_of
from store.lineage import lineage, render_tree
from store.table import StoreError


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
    assert (rewrite["rewriter_kind"], rewrite["reversal_class"]) == ("toy-grammar", "equivariant")
    assert rewrite["source_prompt"].startswith("a red disc moves left")
    assert rewrite["verdicts"] == [{"name": "parses", "pass": True}]
    run = parent(tree, "run")
    assert (run["id"], run["stage"], run["git_commit"]) == ("run-correct-r1", "correct", "0" * 40)
    model = parent(rollout, "model")
    assert model["id"] == tiny.models["r0"]
    assert parent(model, "model")["id"] == tiny.models["base"]
    assert [one["id"] for one in parents(parent(model, "plan"), "round")] == ["r0"]


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


def test_an_unknown_id_names_the_nearest(tiny):
    for wrong, near in (("clip-r1-9", "clip-r1-"), ("model-", "model-"), ("rollout-r2", "rollout-r2-0, rollout-r2-1")):
        with pytest.raises(StoreError, match=f"nearest: .*{near}"):
            lineage(Store(tiny.store), wrong)
    with pytest.raises(StoreError, match="no clip, rollout"):
        lineage(Store(tiny.store), "it's")


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
