import json
from dataclasses import replace

import pytest

from flows.card import configs
from flows.croissant import CONTEXT, croissant
from store.publication import FILE, Publication, columns, parse
from tests.flows.cards import FORMS, HOSTILE, TOLD, only, poisoned


@pytest.mark.parametrize("names", [("r0",), ("r0", "r1", "r2")])
def test_croissant_is_valid_and_reads_the_files(published, names):
    mlcroissant = pytest.importorskip("mlcroissant")
    path, publication = published
    told = replace(TOLD, published="2026-11-28", base_models=("org/base",))
    found = json.loads(json.dumps(croissant(only(publication, *names), told)))
    dataset = mlcroissant.Dataset(jsonld=found, mapping={"repo": path})
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings) == (set(), set())
    assert dataset.metadata.version == f"1.{names[-1][1:]}.0"
    for name, splits in configs(only(publication, *names)).items():
        records = list(dataset.records(name))
        assert len(records) == sum(
            file.rows
            for one in publication.rounds.values()
            for file in one.files
            if file.path in sum(splits.values(), [])
        )
        assert set(records[0]) == {f"{name}/{column}" for column in columns()}
        assert records[-1][f"{name}/video"] == b"mp4 of " + records[-1][f"{name}/clip_id"]


def test_hostile_facts_leave_croissant_valid(whole):
    text = "".join(HOSTILE)
    mlcroissant = pytest.importorskip("mlcroissant")
    found = croissant(poisoned(whole, text), replace(TOLD, name=text, base_models=(text,), tags=(text,)))
    found = json.loads(json.dumps(found, ensure_ascii=False).encode())
    assert mlcroissant.Dataset(jsonld=found).metadata.ctx.issues.errors == set()


def test_croissant_tells_files_and_provenance(whole):
    found = croissant(whole, replace(TOLD, published="2026-11-28"))
    assert found["@context"] == CONTEXT
    assert "1.1" in found["conformsTo"]
    files = {one["@id"]: one for one in found["distribution"] if one["@type"] == "cr:FileObject"}
    assert {name: one.get("sha256") for name, one in files.items() if name != "repo"} == {
        file.path: file.sha256 for file in whole.files()
    }
    (model,) = whole.rounds["r2"].facts["models"]
    sets = {one["@id"]: one for one in found["recordSet"]}
    assert [one["@id"] for one in sets["r2"]["prov:wasAttributedTo"]] == [f"urn:bagger:{model}"]
    assert len(sets["all"]["prov:wasAttributedTo"]) == 2
    assert "prov:wasAttributedTo" not in sets["r0"]
    assert "urn:bagger:run-rollout-r2" in {one["@id"] for one in found["prov:wasGeneratedBy"]}
    assert {"rai:dataCollection", "rai:dataManipulationProtocol", "rai:machineAnnotationTools"} <= found.keys()


def test_equal_facts_give_equal_files(whole):
    assert croissant(parse(whole.text(), FILE), TOLD) == croissant(whole, TOLD)


def test_facts_of_any_form_are_survived(whole):
    for value in FORMS:
        one = replace(whole.rounds["r1"], facts=dict.fromkeys(whole.rounds["r1"].facts, value))
        assert croissant(Publication({"r1": one}), TOLD)["recordSet"]
