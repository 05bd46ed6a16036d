"""params.yaml: what the shipped file says, and what each mistake is told."""

import re
from pathlib import Path

import pytest

from flows.params import ParamsError, Section, load_params, set_rounds

SHIPPED = Path(__file__).parents[2] / "params.yaml"
R2 = re.search(r"r2: \{.*\}", SHIPPED.read_text()).group()
STEPS = re.search(r"(?m)^  steps: \d+ ", SHIPPED.read_text()).group()
LR = re.search(r"lr: \S+", SHIPPED.read_text()).group()
SHARE = re.search(r"corrective: [\d.]+", SHIPPED.read_text()).group()


@pytest.fixture
def edited(tmp_path):
    """Writes the shipped file with one piece of text replaced."""

    def edit(old: str, new: str) -> Path:
        text = SHIPPED.read_text()
        assert old in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return edit


def test_shipped_file_has_a_comment_on_every_knob():
    lines = SHIPPED.read_text().splitlines()
    plain = {"batch_size:", "lr:", "weight_decay:"}  # said once, or said by the name
    knobs = [line for line in lines if re.match(r"  \w+: \S", line) and "{" not in line]
    assert len(knobs) > 30
    assert not [line for line in knobs if "#" not in line and line.split()[0] not in plain]


def test_values_are_frozen():
    params = load_params(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        params.r0.steps = 1
    assert isinstance(params.train, Section)


def test_a_round_trains_as_all_do_but_for_its_own_steps(edited):
    params = load_params(edited(R2, re.sub(r"steps: \d+", "steps: 7", R2)))
    assert params.steps_of("r2") == 7
    assert params.steps_of("r0") == params.r0.steps
    assert params.rounds_until("r2") == ["r1", "r2"]
    assert params.rounds_until("r0") == []


def test_int_where_float_is_meant_is_the_same_value(edited):
    value = load_params(edited("fps: 8 ", "fps: 8.0 ")).video
    assert value == load_params(SHIPPED).video
    assert repr(load_params(SHIPPED).video.model_dump()["fps"]) == "8.0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (STEPS, "  stesp: 7 ", "r0.stesp: unknown key (value 7); did you mean r0.steps?"),
        (STEPS, "  stesp: 7 ", "r0.steps: missing"),
        ("text:\n", "texts:\n", "did you mean text?"),
        (LR, "lr: '0.002'", "train.lr: found '0.002'; expected a valid number"),
        (LR, "lr: true", "train.lr: found True; expected a valid number"),
        (LR, "lr: .nan", "train.lr: found nan; expected a finite number"),
        (LR, "lr: -1", "train.lr: found -1; expected greater than 0"),
        (STEPS, "  steps: 7.0 ", "r0.steps: found 7.0; expected a valid integer"),
        (SHARE, "corrective: 1.5", "rounds.r1.corrective: found 1.5; expected a number from 0 to 1"),
        (SHARE, "corrective: unifrom", "found 'unifrom'; expected a number from 0 to 1, or 'uniform'"),
        (SHARE, "corrective: {r1: 1.5}", "rounds.r1.corrective: found {'r1': 1.5}; expected a number from 0 to 1"),
        (SHARE, "corrective: {r2: 0.5}", "rounds.r1.corrective: found round 'r2'; expected rounds up to this one: r1"),
        (R2, R2.replace(SHARE, "corrective: {r1: 0.5, r3: 0.1}"), "found round 'r3'; expected rounds up to this one"),
        (R2, R2.replace(SHARE, "corrective: {r1: 0.5, r2: 0.6}"), "rounds.r2.corrective: found {'r1': 0.5, 'r2': 0.6}"),
        ("order: mixed", "order: shuffled", "found 'shuffled'; expected 'mixed', 'rounds' or 'ramp'"),
        ("where: null", "where: ''", "mixture.where: found ''; expected"),
        (
            "max_clips: null               # at most",
            "max_clips: 0  # at",
            "mixture.max_clips: found 0; expected greater",
        ),
        ("init: base,", "init: scratch,", "found 'scratch'; expected 'base' or 'previous'"),
        ("timestep: uniform", "timestep: normal", "found 'normal'; expected 'uniform' or 'logit_normal'"),
        ("device: auto", "device: gpu", "resources.device: found 'gpu'; expected auto, cpu, cuda"),
        (
            "prefix_chunks: 4",
            "prefix_chunks: 7",
            "corrective.prefix_chunks: found 7; expected less than clip.num_chunks",
        ),
        ("sigmas: null", "sigmas: [0.9, 0.5]", "found [0.9, 0.5]; expected noise levels that fall from 1.0"),
        ("sigmas: null", "sigmas: [1.0, 0.5]", "sampler.num_steps: found 8; expected 2, as many as sampler.sigmas"),
        ("sigmas: null", "sigmas: [1.0, 2.0]", "sampler.sigmas"),
        ("routed_chunks: null", "routed_chunks: 0", "routed_chunks: found 0; expected greater than or equal to 1"),
        ("window_chunks: 6", "window_chunks: all", "context.window_chunks: found 'all'; expected a valid integer"),
        ("relative_sink: false", "relative_sink: 1", "sampler.relative_sink: found 1; expected a valid boolean"),
        ("style: auto", "style: inverse", "rewrite.style: found 'inverse'; expected 'prefix', 'inverted' or 'auto'"),
        ("kind: none", "kind: openai", "rewrite.llm.model: found None; expected its name there, since"),
        ("kind: none", "kind: transformers", "rewrite.llm.model: found None; expected a folder or a Hub id, since"),
        ("kind: none", "kind: gpt", "rewrite.llm.kind: found 'gpt'; expected 'none', 'openai' or 'transformers'"),
        ("kind: none ", "kind: openai\n    modell: x ", "did you mean rewrite.llm.model?"),
        ("low: 0.7 ", "low: 0.999 ", "rewrite.similarity.low: found 0.999; expected at most rewrite.similarity.high"),
        ("retry_temperature: 0.4", "retry_temperature: 3", "llm.retry_temperature: found 3; expected less than"),
        ("concurrent: 8", "concurrent: 0", "resources.endpoint.concurrent: found 0; expected greater than or equal"),
        (R2, R2.replace("r1", "r0"), "rounds.r2.prev: found 'r0'; expected 'r1'"),
        (R2, R2.replace("r2", "r5"), "found r1, r3, r5; expected r1, r2, r3"),
        (R2, "r2: {}", "rounds.r2.prev: missing"),
        (R2, "r2: 5", "rounds.r2: found 5; expected a mapping with prev"),
        (R2, R2.replace("corrective", "colective"), "did you mean rounds.r2.corrective?"),
        (R2, R2.replace("r2:", "r1:"), 'found duplicate key "r1"'),
        (R2, R2.replace("{", "&same {"), "anchors and aliases"),
        ("text:\n", "text: [\n", "line "),
    ],
)
def test_mistake_is_named(edited, old, new, message):
    with pytest.raises(ParamsError) as caught:
        load_params(edited(old, new))
    assert message in str(caught.value)
    assert "params.yaml: " in str(caught.value)


def test_a_served_model_has_no_revision(edited, tmp_path):
    path = edited("kind: none ", "kind: openai ")
    text = path.read_text().replace("model: null", "model: qwen3")
    path.write_text(text.replace("revision: null  ", "revision: main  ", 1))
    with pytest.raises(ParamsError, match="rewrite.llm.revision: found 'main'; expected null with kind openai"):
        load_params(path)
    path.write_text(path.read_text().replace("kind: openai", "kind: transformers"))
    assert load_params(path).rewrite.llm.revision == "main"


def test_all_mistakes_are_named_at_once(edited):
    with pytest.raises(ParamsError) as caught:
        load_params(edited(LR, "lr: no\n  warmpu: 3"))
    assert "train.lr" in str(caught.value)
    assert "did you mean train.warmup?" in str(caught.value)


def test_missing_file_and_unknown_round():
    with pytest.raises(ParamsError, match="no such file"):
        load_params("nowhere/params.yaml")
    with pytest.raises(ParamsError, match="rounds has no 'r9'; it has r1, r2, r3"):
        load_params(SHIPPED).round("r9")


def test_set_rounds_keeps_rounds_comments_and_the_rest(edited):
    path = edited(R2, R2.replace(SHARE, "corrective: 0.25"))
    before = path.read_text()
    assert set_rounds(5, path) == ["r1", "r2", "r3", "r4", "r5"]
    third = R2.replace("r2", "r3").replace("r1", "r2")
    fourth, fifth = third.replace("r3", "r4").replace("r2", "r3"), third.replace("r3", "r5").replace("r2", "r4")
    assert path.read_text() == before.replace(f"  {third}\n", f"  {third}\n  {fourth}\n  {fifth}\n")
    assert load_params(path).round("r2").corrective == 0.25
    set_rounds(3, path)
    assert path.read_text() == before


def test_set_rounds_leaves_a_bad_file_alone(edited):
    path = edited(LR, "lr: -1")
    before = path.read_text()
    with pytest.raises(ParamsError, match="lr"):
        set_rounds(5, path)
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["params.yaml"]
    with pytest.raises(ParamsError, match="expected 1 or more"):
        set_rounds(0, path)


ROUNDS = re.search(r"(?ms)^rounds: .*?(?=\n\n)", SHIPPED.read_text()).group()


@pytest.mark.parametrize("rounds", ["", "rounds:", "rounds: {}", "rounds: 5", "rounds: [r1]", "rounds: {r1: }"])
def test_set_rounds_without_a_round_to_copy_says_what_to_write_and_that_is_right(edited, rounds):
    path = edited(ROUNDS, rounds)
    with pytest.raises(ParamsError) as caught:
        set_rounds(2, path)
    assert str(caught.value).startswith(f"{path}: rounds: found ")
    assert [file.name for file in path.parent.iterdir()] == ["params.yaml"]
    entry = re.search(r"r1: \{.*\}", str(caught.value)).group()
    path = edited(ROUNDS, f"rounds:\n  {entry}")
    assert set_rounds(2, path) == ["r1", "r2"]
    assert load_params(path).round("r2").prev == "r1"


def test_set_rounds_mends_a_gap_also_at_the_beginning(edited):
    path = edited(ROUNDS, f"rounds:\n  {R2.replace(SHARE, 'corrective: 0.25')}")
    with pytest.raises(ParamsError, match="`bagger rounds 1` mends it"):
        load_params(path)
    assert set_rounds(1, path) == ["r1"]
    assert load_params(path).round("r1").corrective == 0.25


def test_shares_by_round_are_taken_as_written_and_copied_to_new_rounds(edited):
    shares = "corrective: {r1: 0.8, r2: 0.2}"
    path = edited(R2, R2.replace(SHARE, shares))
    assert load_params(path).round("r2").corrective == {"r1": 0.8, "r2": 0.2}
    set_rounds(2, path)
    assert set_rounds(4, path) == ["r1", "r2", "r3", "r4"]
    assert load_params(path).round("r4").corrective == {"r1": 0.8, "r2": 0.2}


def test_a_ramp_starts_from_at_most_half(edited):
    path = edited("order: mixed", "order: ramp")
    assert load_params(path).mixture.order == "ramp"
    path.write_text(path.read_text().replace(R2, R2.replace(SHARE, "corrective: {r1: 0.25, r2: 0.26}")))
    with pytest.raises(ParamsError, match=r"rounds\.r2\.corrective: found 0\.51; expected at most 0\.5 with mixture"):
        load_params(path)


@pytest.mark.parametrize(("old", "new"), [(LR, "lr: -1"), (R2, "r2: 5"), (R2, "r2: {stesp: 5}")])
def test_set_rounds_names_the_file_itself(edited, old, new):
    path = edited(old, new)
    with pytest.raises(ParamsError) as caught:
        set_rounds(4, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "draft" not in str(caught.value)
