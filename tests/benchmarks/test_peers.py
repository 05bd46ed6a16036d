"""The benchmarks compare like with like: peers given our weights, noise and schedule make our rollout."""

import argparse

import pytest
import torch

from benchmarks import measure, models, peers, training
from benchmarks.rollout import noise, ours, whole_prefix
from model.causal import causalize
from model.rollout import RolloutSettings

CLIPS, CHUNKS, CHUNK, STEPS = 2, 3, 8, 2  # 8 latents of 16 tokens: 128, so AnyFlowFAR does not pad
CPU = torch.device("cpu")
SIZE = models.SIZES["tiny"]


@pytest.fixture
def transformer():
    return models.build(SIZE, CPU, torch.float32)


@pytest.fixture
def text():
    return models.text(SIZE, CLIPS, CPU, torch.float32)


def rollout_of(transformer, text):
    settings = RolloutSettings(CHUNK, num_steps=STEPS, shift=3.0)
    return ours(causalize(transformer), SIZE, text, settings)(CHUNKS)


def test_whole_prefix(transformer, text):
    expected = rollout_of(transformer, text)
    settings = RolloutSettings(CHUNK, num_steps=STEPS, shift=3.0)
    actual = whole_prefix(transformer, noise(SIZE, CHUNKS, CHUNK, CLIPS, CPU), text, settings)
    assert measure.difference(expected, actual) <= 1e-5


def test_skyreels_chunk_by_chunk(transformer, text):
    sky = peers.SkyReels(peers.skyreels_transformer(transformer, CHUNK), STEPS, 3.0)
    given = noise(SIZE, CHUNKS, CHUNK, CLIPS, CPU)
    actual = sky.chunk_by_chunk(given, text, CHUNK)
    assert torch.equal(given, noise(SIZE, CHUNKS, CHUNK, CLIPS, CPU))  # the pipeline wrote into a copy
    assert measure.difference(rollout_of(transformer, text), actual) <= 1e-5


def test_skyreels_windows_have_the_length_asked_for(transformer, text):
    sky = peers.SkyReels(peers.skyreels_transformer(transformer, CHUNK), STEPS, 3.0)
    assert sky.windows((CLIPS, 8, 24, 8, 8), text, 10, 2).shape == (CLIPS, 8, 24, 8, 8)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_anyflow_chunk_by_chunk(transformer, text):
    far = peers.AnyFlow(peers.anyflow_transformer(transformer), STEPS, 3.0, compiled=False)
    given = noise(SIZE, CHUNKS, CHUNK, CLIPS, CPU)
    expected = rollout_of(transformer, text)
    assert measure.difference(expected, far.chunk_by_chunk(given, text, CHUNK)) <= 1e-5
    # one full chunk beside the one being made: the third sees the first compressed
    compressed = far.chunk_by_chunk(given, text, CHUNK, 2)
    assert measure.difference(expected[:, :, : 2 * CHUNK], compressed[:, :, : 2 * CHUNK]) <= 1e-5
    assert measure.difference(expected, compressed) > 1e-3


@pytest.mark.parametrize("sigmas", [[1.0, 0.6428571], [0.0005]])
def test_schedules_that_skyreels_would_truncate_are_refused(sigmas):
    with pytest.raises(ValueError, match="thousandths"):
        peers.whole_timesteps(sigmas)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step_is_skyreels(checkpointing):
    args = argparse.Namespace(
        size="tiny",
        device="cpu",
        dtype="float32",
        threads=torch.get_num_threads(),
        clips=2,
        chunks=3,
        chunk_latents=2,
        checkpointing=checkpointing,
    )
    loss, gradient = training.parts(args)
    mine, theirs = (training.gradient(training.Step(variant, args)) for variant in ("ours", "skyreels"))
    assert measure.difference(mine[loss], theirs[loss]) <= 1e-5
    assert measure.difference(mine[gradient], theirs[gradient]) <= 1e-5
