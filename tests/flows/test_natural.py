"""The unit of drift and what frames look like, fitted on a seed table of toy clips."""

import math
from pathlib import Path

import numpy as np
import pytest

from flows import natural, paths
from flows.media import media_columns
from flows.natural import NaturalError, natural_digest, read_natural, read_naturalness
from flows.scorer import project_scorer
from model import drift, features, naturalness, toyworld
from model.rng import numpy_generator
from store.schema import table_schema
from store.table import WorkingTable, read_table
from store.video import decode_video
from tests.flows.heldout import CLIPS, FRAMES, PREFIX, program, project, row

LENGTH = 8  # frames of a training clip
NO_METRICS = {"metrics": []}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def seal(rows: list[dict]) -> None:
    schema, key = table_schema("seed")
    table = WorkingTable(Path("other"), "seed", schema, key)
    table.upsert(rows)
    table.seal(paths.STORE, paths.manifest("seed"), [one["clip_id"] for one in rows])


def train(rows: list[dict]) -> list[dict]:
    """The first four are clips to train on."""
    return [one | {"split": "train"} if number < 4 else one for number, one in enumerate(rows)]


def test_the_unit_is_that_of_training_clips_cut_to_their_length(here, tiny_base, capsys):
    params = project(tiny_base, scoring=NO_METRICS)
    seal(train([row(number) for number in range(CLIPS)]))
    natural.main(params)
    videos = read_table(paths.STORE, "seed", ["video"], "split = 'train'")["video"].to_pylist()
    frames = [decode_video(video)[:LENGTH] for video in videos]
    assert read_natural("clip") == drift.fit([features.curves(one) for one in frames], PREFIX)
    looks = np.concatenate([naturalness.features(features.luma(one)) for one in frames])
    assert read_naturalness() == naturalness.fit(looks, 32, 32)
    # five held-out clips are too few for a unit of their own
    assert read_natural("evaluation") == read_natural("clip")
    assert f"5 held-out clips are {FRAMES} frames long, 8 are needed" in capsys.readouterr().err


def test_enough_long_clips_have_a_unit_of_their_own(here, tiny_base):
    params = project(tiny_base, scoring=NO_METRICS)
    seal([row(number) for number in range(8)] + [row(8 + n) | {"split": "train"} for n in range(3)])
    natural.main(params)
    longs = read_table(paths.STORE, "seed", ["video"], "split = 'heldout'")["video"].to_pylist()
    found = read_natural("evaluation")
    assert found == drift.fit([features.curves(decode_video(video)) for video in longs], PREFIX)
    assert (found.num_frames, read_natural("clip").num_frames) == (FRAMES, LENGTH)


def test_a_unit_that_is_not_there_says_what_makes_it(here):
    with pytest.raises(NaturalError, match="dvc repro natural"):
        read_natural("clip")


def test_frames_too_small_for_naturalness_still_have_drift(here, tiny_base, capsys):
    params = project(tiny_base, scoring=NO_METRICS, video={"height": 8, "width": 8})
    latents = numpy_generator("small").standard_normal((8, FRAMES, 2, 2)).astype(np.float32)
    small = [toyworld.render(program(number), FRAMES, 8) for number in range(CLIPS)]
    seal(train([row(n) | media_columns(small[n], 8.0, 12, latents, "vae-0") for n in range(CLIPS)]))
    natural.main(params)
    assert read_naturalness() is None
    assert len(natural_digest("naturalness")) == 64
    assert "frames of 8x8 have no naturalness, which needs 16 pixels a side" in capsys.readouterr().err
    scored = project_scorer(params, "clip").score(small[0], PREFIX, num_frames=FRAMES)
    assert scored.drift.drift >= 0
    assert math.isnan(scored.naturalness_drift)
