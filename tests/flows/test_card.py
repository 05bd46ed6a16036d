import json
import re
from dataclasses import replace
from functools import lru_cache

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from flows.card import (
    CONTEXT,
    LICENSES,
    ModelFacts,
    Told,
    clean,
    code,
    configs,
    croissant,
    dataset_card,
    edited,
    fence,
    histogram,
    license_of,
    model_card,
    plain,
    size_category,
    table,
    untouched,
)
from store import Store
from store.publication import BINS, FILE, Publication, columns, parse, write_round

TOLD = Told("team/bagger-toy")
HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a | b || c", "`code` ``` ```` ~~~",
    "---\n---\nlicense: mit", "x\n\n# Heading\n\n- item", "{{ 7*7 }}{% raw %}", "&anchor *anchor !!python/object:os.x",
    "${jndi:ldap://evil.example/a}", "[text](javascript:alert(1)) ![i](http://evil.example/i.png)",
    "<https://evil.example> www.evil.example http://evil.example a@evil.example", "**bold** _it_ ~~no~~ \\| \\",
    "</details> --> <!-- ]]>", "$$x$$ \\(x\\)", "\u202eright to left\u2066", "a\x00b\x1bc\x85d\u2028e", "\ud800",
    "&lt;script&gt; &#60;b&#62; &amp;", "| --- | --- |", "k: v #c", "@user #1", "'; DROP TABLE clips; --",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Files of all rounds of the tiny store, and their publication."""
    folder = tmp_path_factory.mktemp("published")
    return folder, Publication({}).with_rounds(*(write_round(Store(tiny.store), k, folder) for k in ("r0", "r1", "r2")))


@pytest.fixture(scope="module")
def whole(folder):
    return folder[1]


def only(publication, *names):
    return Publication({name: publication.rounds[name] for name in names})


def with_facts(publication, name, **facts):
    one = publication.rounds[name]
    return publication.with_rounds(replace(one, facts={**one.facts, **facts}))


def front(card):
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def tokens(card):
    """The tokens that a Markdown parser with GitHub's extensions sees in a card's text, those within lines too."""
    body = card.split("\n---\n", 1)[1]
    found = []
    for one in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body):
        found += [one, *(one.children or [])]
    return found


WORDS = ("text", "text_special", "softbreak", "inline", "code_inline", "fence")


@lru_cache(maxsize=4)
def shape(card):
    """What of a card is structure: kinds of its tokens, tags and addresses, without any words of the data."""
    return [
        (one.type, one.tag, one.attrs.get("href"), one.attrs.get("src"),
         one.content if one.type in ("html_block", "html_inline") else None)
        for one in tokens(card) if one.type not in WORDS and not one.content.startswith("<!-- written by bagger")
    ]  # fmt: skip


def same_structure(one, two):
    one, two = shape(one), shape(two)
    return next(((a, b) for a, b in zip(one, two, strict=False) if a != b), None) is None and len(one) == len(two)


def text_of(card):
    return " ".join(one.content for one in tokens(card) if one.type in ("text", "text_special", "code_inline"))


# ---------------------------------------------------------------- the card of a data set


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


def test_datasets_loads_what_the_card_lists(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Video, load_dataset

    path, publication = folder
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
    assert "bagger fetch team/bagger-toy --revision r2\ndvc repro --single-item mix@r2 train@r2" in card


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


def test_equal_facts_give_equal_cards(whole):
    again = parse(whole.text(), FILE)
    assert dataset_card(again, TOLD) == dataset_card(whole, TOLD)
    assert croissant(again, TOLD) == croissant(whole, TOLD)
    assert histogram(again) == histogram(whole)


# ---------------------------------------------------------------- words that others wrote


def poisoned(publication, text):
    """A publication in which all that others may write is `text`."""
    one = publication.rounds["r1"]
    run = dict.fromkeys(("stage", "round", "run_id", "git_commit", "was_associated_with"), text)
    counts = {text: 2}
    facts = one.facts | {
        "prompts": [{"prompt": text, "source_prompt": text}], "licenses": {text: 2, "mit": 1}, "scorers": counts,
        "models": counts, "samplers": {json.dumps({text: text}): 2, text: 1}, "gates": counts, "verdict": counts,
        "drift_part": counts, "reversal_class": counts, "marker_style": counts, "rewriter_kind": counts,
        "shapes": [{"frames": text, "height": text, "width": text, "fps": text, "clips": 2}],
        "runs": [run | {"params": {}}, run | {"run_id": "b", "stage": "score", "params": {"scorer": text}}],
    }  # fmt: skip
    tables = {name: replace(manifest, digest=text) for name, manifest in one.tables.items()}
    return Publication({"r1": replace(one, facts=facts, where=text.encode("utf-8", "replace").decode(), tables=tables)})


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
    for value in (None, 3, "x", [], [[]], [3], {}, {"a": "b"}, {"a": {}}, {"counts": "x"}, {"counts": [-1] * 14}, True):
        one = replace(whole.rounds["r1"], facts=dict.fromkeys(whole.rounds["r1"].facts, value))
        publication = Publication({"r1": one})
        assert "## Columns" in dataset_card(publication, TOLD)
        assert histogram(publication) is None
        croissant(publication, TOLD)


def test_escapes():
    assert plain("r1 · a, b: 5 %") == "r1 · a, b: 5 %"
    assert plain("a|b") == "a&#124;b"
    assert code("model-1a") == "`model-1a`"
    assert code("a|b") == "<code>a&#124;b</code>"
    assert clean("a\r\n b\t\u202e") == "a b"
    assert len(clean("x" * 999)) == 400
    assert fence("```\nx") == "````\n```\nx\n````"
    assert table(["a", "n"], [["x|y", "1"]]) == "| a | n |\n| --- | ---: |\n| x&#124;y | 1 |"


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


# ---------------------------------------------------------------- cards that people edit


def test_a_card_knows_whether_somebody_has_edited_it(whole):
    card = dataset_card(whole, TOLD)
    assert untouched(card)
    assert not untouched(card.replace("demonstration", "example"))
    assert not untouched(card + "More.\n")
    assert not untouched("# Mine\n")


def test_an_edited_card_keeps_its_words_and_gets_the_new_files(whole):
    before, new = dataset_card(only(whole, "r0", "r1"), TOLD), dataset_card(whole, TOLD)
    theirs = before.replace("pretty_name: bagger-toy", "pretty_name: Ours").replace("## Columns", "## Our columns")
    made = edited(theirs, new)
    assert front(made)["pretty_name"] == "Ours"
    assert front(made)["configs"] == front(new)["configs"]
    assert made.split("\n---\n", 1)[1] == theirs.split("\n---\n", 1)[1]
    assert edited(made, new) == made
    for broken in ("---\n[\n---\nwords\n", "---\n- a\n---\nwords\n", "words\n"):
        made = edited(broken, new)
        assert front(made)["configs"] == front(new)["configs"]
        assert made.rstrip().endswith("\nwords")


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


# ---------------------------------------------------------------- croissant.json


@pytest.mark.parametrize("names", [("r0",), ("r0", "r1", "r2")])
def test_croissant_is_valid_and_reads_the_files(folder, names):
    mlcroissant = pytest.importorskip("mlcroissant")
    path, publication = folder
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


# ---------------------------------------------------------------- the card of a model

TRAIN = {"objective": "bagger", "batch_size": 8, "lr": 0.001, "lora": None, "resampling": {"shift": 0.6}}
MIXTURE = {
    "num_samples": 8, "corrective": 0.5,
    "rounds": {
        "r0": {"samples": 4, "share": 0.5, "clips": 3, "mean_repeats": 4 / 3},
        "r1": {"samples": 4, "share": 0.5, "clips": 2, "mean_repeats": 2.0,
               "drift": {"min": 0.5, "median": 0.7, "max": 0.9, "unknown": 0}},
    },
}  # fmt: skip
METRICS = {
    "num_clips": 32, "gated": 1, "drift": 5.3021, "drift_ci95": 0.91, "drift_motion": -1.94, "drift_contrast": 3.21,
    "oracle_error": 0.74, "drift_part": {"freezing": 0.75, "none": 0.25},
}  # fmt: skip
SAMPLER = {"chunk_latents": 2, "num_steps": 2, "shift": 3.0, "window_chunks": 6, "sink_chunks": 0, "sigmas": None,
           "negative_prompt": "", "text_length": 32}  # fmt: skip
FACTS = ModelFacts(
    "r1", "model-0123", TRAIN, 700, MIXTURE, METRICS, {"r0": {"drift": 4.8}}, SAMPLER, {"height": 32, "width": 32}, 4,
    "team/base", "team/bagger-toy", "r1", "bagger 0.1.0", "a" * 40, True,
)  # fmt: skip


def test_a_models_card_tells_where_it_comes_from_and_how_good_it_is():
    card = model_card(FACTS, Told("team/model", license="apache-2.0", base_models=("team/base",)))
    told = front(card)
    assert ModelCard(card).data.to_dict() == told
    assert (told["pipeline_tag"], told["library_name"]) == ("text-to-video", "diffusers")
    assert (told["base_model"], told["datasets"], told["license"]) == (["team/base"], ["team/bagger-toy"], "apache-2.0")
    (result,) = told["model-index"][0]["results"]
    values = {one["type"]: one["value"] for one in result["metrics"]}
    assert values == {k: v for k, v in METRICS.items() if k in values}
    assert {"drift", "drift_motion", "oracle_error"} <= values.keys()
    assert "| drift (1: what real clips do; lower is better) | 4.80 | 5.30 ± 0.91 |" in card
    assert "freezing 75%" in card
    assert "| `r1` | corrective | 50.0% | 4 | 2 | 2.0 | 0.50 / 0.70 / 0.90 |" in card
    assert "](assets/drift.png)" in card
    assert untouched(card)
    assert model_card(FACTS, Told("team/model")) == model_card(FACTS, Told("team/model"))


def test_an_edited_models_card_gets_the_new_evaluation():
    theirs = model_card(FACTS, Told("team/model")).replace("## Limits", "## Our limits")
    new = model_card(replace(FACTS, metrics={"drift": 3.0}), Told("team/model"))
    made = edited(theirs, new)
    assert "## Our limits" in made
    assert front(made)["model-index"] == front(new)["model-index"]


def test_a_models_card_without_an_evaluation():
    bare = ModelFacts("r0", "model-0", {}, 5, {}, {})
    card = model_card(bare, Told("team/model"))
    assert "It has not been evaluated." in card
    assert "seed training" in card
    assert "model-index" not in front(card)
    assert "drift.png" not in card
    assert front(card)["license"] == "unknown"


@pytest.mark.parametrize("text", HOSTILE)
def test_data_stays_data_in_a_models_card(text):
    def made(text):
        told = replace(TOLD, name=text, license=text, base_models=(text,), tags=(text,), homepage=text)
        facts = replace(
            FACTS, round=text, digest=text, train=TRAIN | {"objective": text, "lora": text}, base=text, revision=text,
            mixture={"rounds": {text: {"share": text, "drift": {"min": text}}}}, software=text, git_commit=text,
            before={f"{text} 0": {"drift": 1.0}}, video={"height": text},
            sampler=SAMPLER | {"text_length": text, "shift": text, f"z {text}": text},
            metrics=METRICS | {"drift_part": {text: 1.0}, "seam": text, "num_clips": text},
        )  # fmt: skip
        return model_card(facts, told)

    card, same = made(text), made("quite harmless words")
    assert same_structure(card, same) or not clean(text)
    assert ModelCard(card).data.to_dict() == front(card)
    assert front(card).keys() == front(same).keys()
    card.encode()


def test_the_code_in_a_models_card_runs(tiny_base, one_thread):
    card = model_card(FACTS, Told("team/model"))
    (source,) = (one for one in re.findall(r"```python\n(.*?)\n```", card, re.DOTALL) if "causalize" in one)
    values: dict = {}
    exec(source.replace('"team/model"', repr(str(tiny_base))), values)
    assert values["frames"].shape[0] == 1
    assert values["frames"].shape[2:] == (32, 32, 3)
