import json

import pytest
from prov.model import ProvDocument

from store import Store
from store.digest import id_of
from store.graph import Graph
from store.provenance import name_of, provenance
from store.tree import nodes


def relations(document, kind, first, second):
    found = {(one[f"prov:{first}"], one[f"prov:{second}"]) for one in document.get(kind, {}).values()}
    return {tuple(one.removeprefix("bagger:") for one in pair) for pair in found}


def unordered(records):
    """Records whose lists of values, which PROV knows as sets, are in one order."""
    return {
        name: {key: sorted(one, key=str) if isinstance(one, list) else one for key, one in record.items()}
        for name, record in records.items()
    }


@pytest.fixture(scope="module")
def documents(tiny):
    store = Store(tiny.store)
    trees = {one: store.lineage(one) for one in ("clip-r2-0", "rewrite-1", "rollout-r1-1", "run-train-r2")}
    trees[tiny.models["r2"]] = store.lineage(tiny.models["r2"])
    trees |= {f"{one}>": store.descendants(one) for one in ("seed-0", "r1", tiny.models["base"], "run-correct-r1")}
    return {name: (tree, provenance(Graph(store), tree)) for name, tree in trees.items()}


def test_the_prov_library_reads_it_and_keeps_it(documents):
    for _, document in documents.values():
        text = json.dumps(document, allow_nan=False)
        read = ProvDocument.deserialize(content=text)
        again = json.loads(read.serialize())
        assert ProvDocument.deserialize(content=json.dumps(again)) == read
        for kind in set(document) - {"prefix"}:
            assert len(again[kind]) == len(document[kind]), kind
        assert unordered(again["entity"]) == unordered(document["entity"])


def test_every_thing_of_the_tree_is_there_and_nothing_dangles(documents):
    for tree, document in documents.values():
        known = {name for kind in ("entity", "activity", "agent") for name in document[kind]}
        for node in nodes(tree):
            assert node["type"] in ("group", "use") or name_of(node["id"]) in known
        ends = {
            value
            for kind in set(document) - {"prefix", "entity", "activity", "agent"}
            for record in document[kind].values()
            for key, value in record.items()
            if key.startswith("prov:") and key != "prov:role"
        }
        assert ends <= known


def test_relations_are_those_of_the_tables(documents, tiny):
    store = Store(tiny.store)
    derived, generated = {}, {}
    rewritten = {f"rewrite-{n}": {"run-rewrite-r1", "run-rewrite-r2"} for n in range(2)}
    for name in ("seed", "rollouts_r1", "rollouts_r2", "clips_r1", "clips_r2"):
        key = "rollout_id" if name.startswith("rollouts") else "clip_id"
        for row in store.read(name, [key, "was_derived_from", "was_generated_by"]).to_pylist():
            derived[row[key]], generated[row[key]] = set(row["was_derived_from"]), row["was_generated_by"]
    runs = {row["run_id"]: row for row in store.read("runs").to_pylist()}
    checked = 0
    for tree, document in documents.values():
        made_of = relations(document, "wasDerivedFrom", "generatedEntity", "usedEntity")
        made_by = relations(document, "wasGeneratedBy", "entity", "activity")
        used = relations(document, "used", "activity", "entity")
        for node in nodes(tree):
            one = node["id"]
            if one in derived:
                assert {origin for thing, origin in made_of if thing == one} == derived[one]
                assert {run for thing, run in made_by if thing == one} == {generated[one]}
                checked += 1
            if one in rewritten:
                assert {run for thing, run in made_by if thing == one} == rewritten[one]
                assert not [origin for thing, origin in made_of if thing == one]
                checked += 1
            if one in runs:
                record = document["activity"][name_of(one)]
                row = runs[one]
                assert (record["prov:startTime"], record["prov:endTime"]) == (
                    row["started_at_time"],
                    row["ended_at_time"],
                )
                assert set(row["used"]) <= {entity for run, entity in used if run == one}
                assert set(row["generated"]) == {e for e, run in made_by if run == one and e in row["generated"]}
                checked += 1
    assert checked > 40


def test_a_rewrite_is_told_whole(documents):
    _, document = documents["rewrite-1"]
    entity = document["entity"]["bagger:rewrite-1"]
    assert entity["prov:label"] == "a red disc moves right, it's number 1"
    assert (entity["bagger:model_id"], entity["bagger:verdicts.0.name"]) == ("team/tiny-llm", "parses")
    assert entity["bagger:seed"] == {"$": str(2**40 + 1), "type": "xsd:long"}
    assert entity["bagger:attempts.0.error"] == "no JSON"


def test_training_used_a_clip_at_its_steps(documents, tiny):
    tree, document = documents["seed-0>"]
    found = {
        (one["prov:activity"], one["bagger:plan"]["$"]): one["bagger:steps"]
        for one in document["used"].values()
        if one["prov:entity"] == "bagger:seed-0" and "bagger:steps" in one
    }
    uses = Store(tiny.store).read("uses", ["round", "plan_id", "steps"], where="clip_id = 'seed-0'").to_pylist()
    assert found == {
        (f"bagger:run-train-{row['round']}", f"bagger:{row['plan_id']}"): " ".join(map(str, row["steps"]))
        for row in uses
    }


def test_agents_models_and_collections(documents, tiny):
    _, document = documents["clip-r2-0"]
    assert document["agent"]["bagger:bagger%200"]["prov:type"]["$"] == "prov:SoftwareAgent"
    assert document["agent"]["bagger:host%20here"]["prov:label"] == "host here"
    associated = relations(document, "wasAssociatedWith", "activity", "agent")
    assert {("run-train-r1", "bagger%200"), ("run-train-r1", "host%20here")} <= associated
    assert ("clip-r2-0", "bagger%200") in relations(document, "wasAttributedTo", "entity", "agent")
    plan, model = id_of("plan", tiny.plans["r1"]), tiny.models["r1"]
    made_of = relations(document, "wasDerivedFrom", "generatedEntity", "usedEntity")
    assert {(model, plan), (model, tiny.models["base"]), (plan, "r0"), (plan, "r1")} <= made_of
    types = [one["$"] for one in document["entity"]["bagger:r1"]["prov:type"]]
    assert types == ["bagger:round", "prov:Collection"]
    assert ("r0", "seed-0") in relations(document, "hadMember", "collection", "entity")
    read = ProvDocument.deserialize(content=json.dumps(document))
    (clip,) = read.get_record("bagger:clip-r2-0")
    values = {str(name): value for name, value in clip.attributes}
    assert (values["bagger:num_frames"], values["bagger:drift"]) == (3, 0.4)
    assert values["prov:label"] == "a red disc moves right, it's number 0"


def test_hostile_prompts_and_ids_stay_values(tiny_copy, rows):
    evil = 'end"] <b>\n`x` prov:type: %%  \x1b[31m \u202e'
    name = 'rollout-it\'s / a: "b"%'
    row = rows.rollouts("r3", tiny_copy.models["r2"])[0] | {"rollout_id": name, "prompt": evil, "round": "r3"}
    rows.seal(tiny_copy.root, "rollouts_r3", [row])
    store = Store(tiny_copy.store)
    document = json.loads(json.dumps(provenance(Graph(store), store.lineage(name))))
    assert document["entity"][name_of(name)]["prov:label"] == evil
    read = ProvDocument.deserialize(content=json.dumps(document))
    again = json.loads(read.serialize())
    assert again["entity"][name_of(name)]["bagger:prompt"] == evil
    assert ProvDocument.deserialize(content=json.dumps(again)) == read
