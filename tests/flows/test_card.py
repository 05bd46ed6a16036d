import re
from dataclasses import replace

import pytest
from huggingface_hub import DatasetCard

from flows.card import LICENSES, SIGNS, Told, dataset_card, histogram, license_of, size_category
from flows.markdown import clean
from store.figures import BINS
from store.publication import FILE, Publication, columns, parse
from tests.flows.cards import FORMS, HOSTILE, TOLD, front, only, poisoned, same_structure, text_of, with_facts


@pytest.mark.parametrize("names", [("r1",), ("r0",), ("r0", "r1", "r2"), ("r2",)])
def test_front_matter_lists_exactly_the_files_of_the_publication(whole, names):
    publication = only(whole, *names)
    card = dataset_card(publication, TOLD)
    told = front(card)
    assert DatasetCard(card).data.to_dict() == told
    assert [one["config_name"] for one in told["configs"]] == [*names, "all"]
    assert [one["config_name"] for one in told["configs"] if one.get("default")] == [names[-1]]
    for one in told["configs"]:
        rounds = (
            publication.rounds.values() if one["config_name"] == "all" else [publication.rounds[one["config_name"]]]
        )
        listed = {part["split"]: part["path"] for part in one["data_files"]}
        assert listed == {
            split: [file.path for k in rounds for file in k.files if file.split == split]
            for split in {file.split for k in rounds for file in k.files if file.split}
        }
    assert told["size_categories"] == ["n<1K"]
    assert told["task_categories"] == ["text-to-video"]


def test_datasets_loads_what_the_card_lists(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Video, load_dataset

    path, publication = published
    (path / "README.md").write_text(dataset_card(publication, TOLD))
    every = load_dataset(str(path), "all", cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in every.items()} == {"corrective": 4, "seed": 3, "heldout": 1}
    stream = load_dataset(str(path), streaming=True)  # the newest round
    first = next(iter(stream["corrective"].cast_column("video", Video(decode=False))))
    assert first["video"] == {"bytes": b"mp4 of clip-r2-0", "path": "clip-r2-0.mp4"}
    few = load_dataset(str(path), "r1", split="corrective", columns=["clip_id", "drift"], cache_dir=str(tmp_path))
    assert few[0] == {"clip_id": "clip-r1-0", "drift": pytest.approx(0.9)}


def test_every_column_and_every_digest_stands_in_the_card(whole):
    card = dataset_card(whole, TOLD)
    said = text_of(card)
    for name, (_, doc) in columns().items():
        assert f"| `{name}` |" in card, name
        assert clean(doc) in said, name
    for one in whole.rounds.values():
        assert one.digest in card
        assert all(manifest.digest in card for manifest in one.tables.values())
    for model in whole.rounds["r2"].facts["models"]:
        assert model in card
    assert {"2512.12080", "2512.15702"} <= set(re.findall(r"eprint\s+= {(.*)}", card))
    assert card.count('revision="r2"') == 4
    assert "bagger fetch team/bagger-toy --revision r2\n" in card
    assert "python -m flows.mix --round r2 && python -m flows.train --round r2" in card


def test_what_is_not_there_is_not_told(whole):
    seed = dataset_card(only(whole, "r0"), TOLD)
    assert "## Drift" not in seed
    assert "## Train with it" not in seed
    assert "assets/drift.png" not in seed
    unscored = {key: value for key, value in whole.rounds["r1"].facts.items() if not key.startswith("drift")}
    card = dataset_card(Publication({"r1": replace(whole.rounds["r1"], facts=unscored)}), TOLD)
    assert "assets/drift.png" not in card
    assert "## Prompts" in card
    assert "The seed clips themselves are not in this repository" in card
    bare = dataset_card(Publication({"r1": replace(whole.rounds["r1"], facts={})}), TOLD)
    assert "## Columns" in bare
    with pytest.raises(ValueError, match="without a round"):
        dataset_card(Publication({}), TOLD)


def test_a_filter_is_told(whole):
    card = dataset_card(Publication({"r1": replace(whole.rounds["r1"], where="drift < 20 OR prompt = 'a|b'")}), TOLD)
    assert "drift < 20 OR prompt = 'a|b'" in text_of(card)


def test_parts_and_models_of_rewrites_are_told_where_they_are_known(whole):
    card = dataset_card(whole, TOLD)
    assert "| mean over clips | `r1` | `r2` |" in card
    assert "| saturation, signed: over-saturating above 0, under-saturating below | 0.15 | 0.15 |" in card
    assert f"| `r1` | `team/tiny-llm@{'c' * 40}` | 1 |" in card
    known = whole.rounds["r1"].facts
    older = {key: value for key, value in known.items() if key not in ("parts", "rewrite_models")}
    assert older.keys() != known.keys()
    one = dataset_card(whole.with_rounds(replace(whole.rounds["r1"], facts=older)), TOLD)
    assert "| saturation, signed: over-saturating above 0, under-saturating below | – | 0.15 |" in one
    none = dataset_card(Publication({"r1": replace(whole.rounds["r1"], facts=older)}), TOLD)
    assert "saturation, signed" not in none
    assert "Language models" not in none
    odd = {"motion": float("nan"), "cast": True, "detail": "0.3", "flicker": -1.5, "smell": 2.0}
    card = dataset_card(only(with_facts(whole, "r1", parts=odd), "r1"), TOLD)
    assert [one for one in SIGNS if f"| {SIGNS[one]} |" in card] == ["flicker"]


def test_equal_facts_give_equal_cards(whole):
    again = parse(whole.text(), FILE)
    assert dataset_card(again, TOLD) == dataset_card(whole, TOLD)
    assert histogram(again) == histogram(whole)


# ---------------------------------------------------------------- words that others wrote


@pytest.mark.parametrize("text", HOSTILE)
def test_data_stays_data(whole, text):
    told = replace(TOLD, name=text, base_models=(text,), tags=(text,), homepage=text)
    harmless = "quite harmless words"
    calm = replace(told, name=harmless, base_models=(harmless,), tags=(harmless,), homepage=harmless)
    card = dataset_card(poisoned(whole, text), told)
    same = dataset_card(poisoned(whole, harmless), calm)
    assert same_structure(card, same) or not clean(text)
    if clean(text):
        assert clean(text) in text_of(card)
    assert front(card)["pretty_name"] == clean(text)
    assert front(card).keys() == front(same).keys()
    assert front(card)["license"] == "other"
    assert front(card)["configs"] == front(same)["configs"]
    assert DatasetCard(card).data.to_dict() == front(card)
    card.encode()


def test_facts_of_any_form_are_survived(whole):
    for value in FORMS:
        one = replace(whole.rounds["r1"], facts=dict.fromkeys(whole.rounds["r1"].facts, value))
        publication = Publication({"r1": one})
        assert "## Columns" in dataset_card(publication, TOLD)
        assert histogram(publication) is None


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a b/c", "a/b`", "../x", "a/<b>", ""])
def test_a_repository_has_a_name_of_harmless_characters(repo):
    with pytest.raises(ValueError, match="ORG/NAME"):
        Told(repo)


# ---------------------------------------------------------------- licences, sizes


@pytest.mark.parametrize(
    ("clips", "said"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (10_000, "10K<n<100K"), (10**6, "1M<n<10M"),
     (10**9 - 1, "100M<n<1B"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")],
)  # fmt: skip
def test_sizes_are_spelled_as_the_hub_does(clips, said):
    assert size_category(clips) == said


@pytest.mark.parametrize(
    ("counts", "told", "expected"),
    [
        ({"": 4}, None, ("unknown", None)),
        ({"CC0-1.0": 4}, None, ("cc0-1.0", None)),
        ({"Apache 2.0": 4}, None, ("apache-2.0", None)),
        ({"Pexels License": 4}, None, ("other", "pexels-license")),
        ({"CC0-1.0": 3, "": 1}, None, ("other", "by-clip")),
        ({"CC0-1.0": 3, "MIT": 1}, "cc-by-4.0", ("cc-by-4.0", None)),
        ({}, None, ("unknown", None)),
    ],
)
def test_the_licence_is_that_of_the_clips_if_it_is_one(whole, counts, told, expected):
    publication = only(with_facts(whole, "r1", licenses=counts), "r1")
    assert license_of(publication, replace(TOLD, license=told)) == expected
    found = front(dataset_card(publication, replace(TOLD, license=told)))
    assert (found["license"], found.get("license_name")) == expected
    assert found["license"] in LICENSES | {"other"}


# ---------------------------------------------------------------- the picture


def test_the_picture_has_a_row_for_each_scored_round(whole):
    import io

    from PIL import Image

    one, two = (Image.open(io.BytesIO(histogram(only(whole, *names)))) for names in (("r1",), ("r0", "r1", "r2")))
    assert one.format == "PNG"
    assert two.height > one.height
    assert "Software" not in one.info
    assert histogram(only(whole, "r0")) is None
    drift = whole.rounds["r1"].facts["drift"] | {"counts": [0] * (len(BINS) - 1) + [2], "median": 1e9}
    assert histogram(with_facts(whole, "r1", drift=drift))
