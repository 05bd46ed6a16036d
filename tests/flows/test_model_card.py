import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from flows.card import Told
from flows.markdown import clean, edited, untouched
from flows.model_card import ModelFacts, model_card
from tests.flows.cards import HOSTILE, TOLD, front, same_structure

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
