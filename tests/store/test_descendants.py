import json
import re
import shutil
from graphlib import TopologicalSorter
from types import SimpleNamespace

import lance
import pyarrow as pa
import pytest

from store import Store, graph
from store.catalog import build_catalog
from store.descendants import EXAMPLES, FAN, descendants
from store.digest import bytes_sha256, id_of
from store.lineage import lineage
from store.mixture import read_plan
from store.provenance import provenance
from store.schema import REGISTRY_CATALOG, table_schema
from store.table import StoreError, read_table
from store.tree import edges, nodes, render_tree


def children(tree, kind):
    return [one for one in tree["children"] if one["type"] == kind]


def child(tree, kind):
    (found,) = children(tree, kind)
    return found


def ids(tree):
    return {node["id"] for node in nodes(tree)}


def every_id(store, root):
    """Every id that the tables of a project or registry hold, and the rounds given."""
    columns = {"clip_id", "rollout_id", "rewrite_id", "model_digest", "plan_id", "use_id", "run_id"}
    lists = {"was_derived_from", "used", "generated"}
    found = set(root)
    for name in store.names():
        for row in store.read(
            name, [one for one in store.open(name).schema.names if one in columns | lists]
        ).to_pylist():
            found |= {row[one] for one in columns & set(row)} | {x for one in lists & set(row) for x in row[one] or ()}
            if name.startswith("scores"):
                found.add(row["rollout_id"] + "/score")
    return sorted(found - {None})


def walk(tree):
    yield tree
    for one in tree.get("children", tree.get("parents", [])):
        yield from walk(one)


def test_a_seed_clip_becomes_rollouts_and_is_trained_on(tiny):
    tree = descendants(Store(tiny.store), "seed-1")
    assert [one["id"] for one in children(tree, "rollout")] == ["rollout-r1-1", "rollout-r2-1"]
    rollout = children(tree, "rollout")[0]
    assert child(rollout, "score")["drift"] == 0.6
    assert child(rollout, "clip")["id"] == "clip-r1-1"
    uses = children(tree, "use")
    assert [one["round"] for one in uses] == ["r0", "r1", "r2"]
    assert [one["plan_id"] for one in uses] == [id_of("plan", tiny.plans[one]) for one in ("r0", "r1", "r2")]
    assert [one["model_digest"] for one in uses] == [tiny.models[one] for one in ("r0", "r1", "r2")]
    plan = child(uses[0], "plan")
    assert child(plan, "model")["id"] == tiny.models["r0"]
    assert [one["id"] for one in children(plan, "run")] == ["run-train-r0"]


def test_steps_are_the_positions_in_the_plan_by_batches(tiny):
    store = Store(tiny.store)
    seen = 0
    for name, path in tiny.files.items():
        plan, digest = read_plan(path)
        clips = plan["clip_id"].to_pylist()
        for clip in set(clips):
            uses = [one for one in nodes(descendants(store, clip)) if one["id"] == f"{id_of('plan', digest)}/{clip}"]
            (use,) = uses
            steps = [position // 4 for position, one in enumerate(clips) if one == clip]
            assert (use["steps"], use["samples"], use["model_digest"]) == (steps, len(steps), tiny.models[name])
            seen += len(steps)
    assert seen == 36


def test_a_clip_that_no_plan_holds_has_no_future(tiny):
    assert descendants(Store(tiny.store), "seed-3")["children"] == []


def test_a_model_generates_is_trained_on_from_and_used(tiny):
    tree = descendants(Store(tiny.store), tiny.models["r0"])
    group = child(tree, "group")
    assert (group["of"], group["count"]) == ("rollouts of round r1", 2)
    assert group["examples"] == ["rollout-r1-0", "rollout-r1-1"]
    assert group["list"] == f"bagger clips --where \"model_digest = '{tiny.models['r0']}' and round = 'r1'\""
    assert child(group, "round")["id"] == "r1"
    assert (child(group, "group")["of"], child(group, "group")["count"]) == ("corrective clips", 2)
    assert [one["id"] for one in children(tree, "run")] == ["run-rollout-r1"]
    named = child(descendants(Store(tiny.store), tiny.models["r0"], every=True), "group")
    assert [one["id"] for one in children(named, "rollout")] == ["rollout-r1-0", "rollout-r1-1"]
    assert [one["id"] for one in children(child(named, "group"), "clip")] == ["clip-r1-0", "clip-r1-1"]
    base = descendants(Store(tiny.store), tiny.models["base"])
    assert [one["id"] for one in children(base, "model")] == [tiny.models[one] for one in ("r0", "r1", "r2")]
    assert {one["id"] for one in children(base, "run")} == {f"run-train-{one}" for one in ("r0", "r1", "r2")}


def test_a_run_made_counted_rows_and_named_things(tiny):
    tree = descendants(Store(tiny.store), "run-correct-r2")
    assert [(one["of"], one["count"]) for one in children(tree, "group")] == [("corrective clips", 2)]
    assert tree["packages"] == {"numpy": "2"}
    assert child(child(tree, "group"), "round")["id"] == "r2"
    assert [(g["of"], g["count"]) for g in children(descendants(Store(tiny.store), "run-score-r1"), "group")] == [
        ("scores", 2)
    ]
    assert child(descendants(Store(tiny.store), "run-train-r1"), "model")["id"] == tiny.models["r1"]
    assert child(descendants(Store(tiny.store), "run-mix-r1"), "plan")["id"] == id_of("plan", tiny.plans["r1"])


def test_files_rewrites_rounds_and_plans(tiny):
    file = id_of("file", bytes_sha256(b"2"))
    tree = descendants(Store(tiny.store), file)
    assert (tree["type"], tree["source_path"]) == ("file", "videos/2.mp4")
    assert child(tree, "seed")["id"] == "seed-2"
    run = descendants(Store(tiny.store), "run-rewrite-r2")
    group = child(run, "group")
    assert (group["of"], group["count"], group["examples"]) == ("rewrites", 2, ["rewrite-0", "rewrite-1"])
    assert [(one["of"], one["count"]) for one in children(group, "group")] == [("corrective clips", 4)]
    rewrite = descendants(Store(tiny.store), "rewrite-1")
    assert [one["id"] for one in children(rewrite, "clip")] == ["clip-r1-1", "clip-r2-1"]
    plans = {name: id_of("plan", digest) for name, digest in tiny.plans.items()}
    assert [one["id"] for one in children(descendants(Store(tiny.store), "r1"), "plan")] == [plans["r1"], plans["r2"]]
    assert {one["id"] for one in children(descendants(Store(tiny.store), "r0"), "plan")} == set(plans.values())
    assert child(descendants(Store(tiny.store), plans["r2"]), "model")["id"] == tiny.models["r2"]


def test_backwards_and_forwards_tell_the_same_edges(tiny):
    """Over all ids: each edge of one direction is found in the other, and together they have no circle."""
    store = Store(tiny.store)
    known = every_id(store, ["r0", "r1", "r2"])
    back = {one: lineage(store, one) for one in known}
    forth = {one: descendants(store, one, every=True) for one in known}
    below = {one: {node["id"] for node in walk(tree)} for one, tree in forth.items()}
    above = {one: {node["id"] for node in walk(tree)} for one, tree in back.items()}
    plan_uses = {}
    for row in store.read("uses", ["use_id", "plan_id"]).to_pylist():
        plan_uses.setdefault(row["plan_id"], set()).add(row["use_id"])
    backwards = set()
    for tree in back.values():
        for origin, product in edges(tree):
            if origin["type"] != "group":
                backwards.add((origin["id"], product["id"]))
            elif not origin.get("repeated"):  # what it counts is what the table holds
                assert origin["count"] == len(plan_uses[product["id"]])
                backwards |= {(use, product["id"]) for use in plan_uses[product["id"]]}
    forwards = {(a["id"], b["id"]) for tree in forth.values() for a, b in direct(tree)}
    assert len(backwards) > 80
    assert {(use, plan) for plan, uses in plan_uses.items() for use in uses} <= backwards & forwards
    for origin, product in sorted(backwards):
        assert product in below[origin], f"{product} was made of {origin}, which does not tell"
    for origin, product in sorted(forwards - backwards):
        assert origin in above[product], f"{origin} became {product}, which does not tell"
    TopologicalSorter({one: {a for a, b in backwards | forwards if b == one} for one in known}).prepare()


def direct(tree):
    """The edges of a forward tree without groups: what a group holds came of the group's parent."""
    for origin, product in edges(tree):
        if origin["type"] != "group" and product["type"] != "group":
            yield origin, product
        if product["type"] == "group" and origin["type"] != "group":
            yield from ((origin, one) for one in product["children"] if one["type"] != "group")


def test_everything_is_told_once_and_is_json(tiny):
    for one in ("seed-0", tiny.models["base"], "run-seed", "clip-r1-0", "r0"):
        tree = descendants(Store(tiny.store), one)
        told = [node["id"] for node in nodes(tree)]
        assert len(told) == len(set(told))
        assert all(node["id"] in told and node["children"] == [] for node in walk(tree) if node.get("repeated"))
        assert json.loads(json.dumps(tree)) == tree


def test_the_tree_says_where_a_thing_is_told(tiny):
    marks = set()
    for tree in (lineage(Store(tiny.store), "clip-r2-0"), descendants(Store(tiny.store), "seed-0")):
        lines = render_tree(tree).splitlines()
        told = {line.split()[-1]: number for number, line in enumerate(lines) if "(see " not in line}
        for number, line in enumerate(lines):
            if match := re.search(r"(\S+)  \(see (above|below)\)$", line):
                marks.add(match[2])
                assert match[2] == ("above" if number > told[match[1]] else "below")
    assert marks == {"above", "below"}
    assert any(line.endswith("├─ 2 rollouts of round r1") for line in lines)


def test_a_large_fan_is_counted_and_says_how_to_list_it(tiny_copy, rows):
    store = tiny_copy.store
    many = [
        row | {"rollout_id": f"rollout-r3-{n:02d}", "seed_clip_id": "seed-3", "round": "r3"}
        for n, row in enumerate(rows.rollouts("r3", tiny_copy.models["r2"]) * (FAN - 5))
    ]
    rows.seal(tiny_copy.root, "rollouts_r3", many)
    group = child(descendants(Store(store), "seed-3"), "group")
    assert (group["of"], group["count"], len(group["examples"])) == ("rollouts", len(many), EXAMPLES)
    assert group["list"] == "bagger clips --where \"seed_clip_id = 'seed-3'\""
    named = child(descendants(Store(store), "seed-3", every=True), "group")
    assert [one["id"] for one in named["children"]] == [row["rollout_id"] for row in many]


WIDE = "model-" + "d" * 16


@pytest.fixture(scope="module")
def wide(tiny, rows, tmp_path_factory):
    """The tiny store with a round r3 of 300 rollouts of the held-out seed-3, whose clips WIDE was trained on."""
    copy = SimpleNamespace(root=tmp_path_factory.mktemp("wide") / "copy")
    shutil.copytree(tiny.root, copy.root)
    copy.store = copy.root / "store"
    model, names = tiny.models["r2"], [f"{n:03d}" for n in range(300)]

    def many(row, **ids):
        filled = [{key: one.format(n) for key, one in ids.items()} for n in names]
        return [row | {"seed_clip_id": "seed-3"} | one | {"round": "r3"} for one in filled]

    rollouts = many(rows.rollouts("r3", model)[0], rollout_id="rollout-w{}")
    clips = many(rows.clips("r3", model)[0], clip_id="clip-w{}", rollout_id="rollout-w{}", rewrite_id="rewrite-w{}")
    for number, one in enumerate(clips):
        one["was_derived_from"] = [rollouts[number]["rollout_id"], one["rewrite_id"]]
    scores = many(rows.scores("r2")[0], rollout_id="rollout-w{}")
    rewrites = many(rows.rewrites("r3")[0], rewrite_id="rewrite-w{}")
    for one in (*scores, *rewrites):
        del one["seed_clip_id"]
    for one in rewrites:
        del one["round"]
    rows.seal(copy.root, "rewrites_r3", rewrites)
    rows.seal(copy.root, "rollouts_r3", rollouts)
    rows.seal(copy.root, "scores_r3", scores)
    rows.seal(copy.root, "clips_r3", clips)
    made = [rows.run(stage, "r3", {}, {}, 40) for stage in ("rollout", "correct")]
    train = rows.run("train", "r3", {"plan_digest": "f" * 64}, {"model_digest": WIDE}, 50)
    build_catalog(copy.store, ["r1", "r2", "r3"], [*tiny.runs, *made, train])
    uses = [
        {
            "use_id": f"plan-{'f' * 16}/{one['clip_id']}", "plan_id": f"plan-{'f' * 16}", "model_digest": WIDE,
            "clip_id": one["clip_id"], "kind": "corrective", "clip_round": "r3", "round": "r3",
            "steps": [number, 1000 - number],
        }
        for number, one in enumerate(clips)
    ]  # fmt: skip
    old = read_table(copy.store, "uses")
    shutil.rmtree(copy.store / "uses.lance")
    table = pa.concat_tables([old, pa.Table.from_pylist(uses, old.schema)])
    lance.write_dataset(table, str(copy.store / "uses.lance"))
    return copy


@pytest.mark.parametrize("every", [False, True])
def test_a_group_leads_on_to_the_models_trained_on_what_came_of_it(wide, every):
    tree = descendants(Store(wide.store), "seed-3", every=every)
    group = child(tree, "group")
    clips = child(group, "group")
    use = child(clips, "group")
    assert [(one["of"], one["count"]) for one in (group, clips)] == [("rollouts", 300), ("corrective clips", 300)]
    assert (use["count"], use["samples"], use["first_step"], use["last_step"]) == (300, 600, 0, 1000)
    assert (use["model_digest"], use["round"]) == (WIDE, "r3")
    assert child(child(use, "plan"), "model")["id"] == WIDE
    assert [len(children(one, kind)) for one, kind in ((group, "rollout"), (clips, "clip"), (use, "use"))] == (
        [300 * every] * 3
    )


@pytest.mark.parametrize("root", ["seed-3", "run-rollout-r3", "run-correct-r3"])
def test_whatever_became_many_things_tells_the_model(wide, root):
    assert WIDE in ids(descendants(Store(wide.store), root))


def test_the_number_of_scans_does_not_grow_with_the_members(wide, monkeypatch):
    scans = []
    counted = graph.scan
    monkeypatch.setattr(graph, "scan", lambda *args, **more: scans.append(args[0].uri) or counted(*args, **more))
    tree = descendants(Store(wide.store), "seed-3", every=True)
    assert len(ids(tree)) > 900
    assert len(scans) < 100
    scans.clear()
    document = provenance(graph.Graph(Store(wide.store)), tree)
    assert sum("bagger:steps" in one for one in document["used"].values()) == 300
    assert len(document["entity"]) > 900
    assert len(scans) < 100


def test_a_hostile_id_is_no_command(tiny_copy, rows):
    evil = "model-'\"; $(rm -rf .)`"
    rows.seal(tiny_copy.root, "rollouts_r3", [one | {"round": "r3"} for one in rows.rollouts("r3", evil)])
    group = child(descendants(Store(tiny_copy.store), evil), "group")
    assert group["count"] == 2
    assert "list" not in group


def test_an_unknown_id_names_the_nearest(tiny):
    with pytest.raises(StoreError, match="nearest: clip-r1-0, clip-r1-1"):
        descendants(Store(tiny.store), "clip-r1-9")


# ---------------------------------------------------------------- in a registry


@pytest.fixture(scope="module")
def registry(tiny, tmp_path_factory):
    """`full` holds all of the tiny store, `half` its seed clips and first round, `other` a round r1 of its own."""
    folder = tmp_path_factory.mktemp("registry")
    store = Store(tiny.store)

    def write(name, table):
        schema = REGISTRY_CATALOG if name == "catalog" else table_schema(name)[0]
        lance.write_dataset(table.select(schema.names).cast(schema), str(folder / f"{name}.lance"))

    for name in ("seed", "runs", "uses"):
        write(name, read_table(tiny.store, name))
    for base in ("rollouts", "rewrites", "scores", "clips"):
        write(base, pa.concat_tables([read_table(tiny.store, f"{base}_{one}") for one in ("r1", "r2")]))
    catalog = store.read("catalog").to_pylist()
    entries = [row | {"experiment": "full"} for row in catalog]
    entries += [row | {"experiment": "half"} for row in catalog if row["round"] != "r2"]
    foreign = {"experiment": "other", "was_generated_by": "run-elsewhere", "model_digest": "model-elsewhere"}
    entries += [row | foreign | {"clip_id": row["clip_id"] + "x"} for row in catalog if row["round"] == "r1"]
    for row in entries:
        row["entry_id"] = f"{row['experiment']}/{row['round']}/{row['clip_id']}"
        row["table"] = row["table"].partition("_")[0]
    write("catalog", pa.Table.from_pylist(entries, REGISTRY_CATALOG))
    return folder


def test_registry_rounds_are_an_experiments_own(registry, tiny):
    store = Store(registry)
    assert store.is_registry
    tree = lineage(store, "clip-r2-0")
    assert tree["experiments"] == ["full"]
    found = {node["id"]: node for node in nodes(tree)}
    assert {one for one, node in found.items() if node["type"] == "round"} == {
        "full/r0",
        "half/r0",
        "full/r1",
        "half/r1",
    }
    assert (found["full/r1"]["clips"], found["half/r1"]["kind"]) == (2, "corrective")
    assert found["seed-0"]["experiments"] == ["full", "half"]
    assert {tiny.models["r0"], tiny.models["base"], "rollout-r2-0", "rewrite-0", "run-train-r1"} <= set(found)
    assert found["rollout-r2-0"]["score"]["drift"] == pytest.approx(0.4)
    assert [one["id"] for one in lineage(store, "other/r1")["parents"]] == ["model-elsewhere", "run-elsewhere"]


def test_registry_forwards(registry, tiny):
    store = Store(registry)
    plans = {name: id_of("plan", digest) for name, digest in tiny.plans.items()}
    assert [one["id"] for one in children(descendants(store, "half/r1"), "plan")] == [plans["r1"], plans["r2"]]
    assert children(descendants(store, "other/r1"), "plan") == []
    group = child(descendants(store, tiny.models["r0"]), "group")
    assert (group["of"], group["count"]) == ("rollouts of round r1", 2)
    assert [one["id"] for one in children(group, "round")] == ["full/r1", "half/r1"]
    trained = children(child(group, "group"), "group")
    assert [(one["plan_id"], one["count"]) for one in trained] == [(plans["r1"], 2), (plans["r2"], 2)]
    assert group["list"].endswith(f" --store {registry}")
    seed = descendants(store, "seed-1")
    assert [one["id"] for one in children(seed, "rollout")] == ["rollout-r1-1", "rollout-r2-1"]
    assert [one["round"] for one in children(seed, "use")] == ["r0", "r1", "r2"]


def test_registry_unknown_rounds(registry):
    store = Store(registry)
    for wrong, near in (("r1", "; nearest: full/r1, half/r1, other/r1$"), ("half/r2", "; nearest: half/r0, half/r1$")):
        with pytest.raises(StoreError, match=f"no clip, rollout.*{near}"):
            descendants(store, wrong)
    with pytest.raises(StoreError, match="'nobody/r1'"):
        descendants(store, "nobody/r1")
