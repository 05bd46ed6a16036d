import math

import numpy as np
import pytest

from model.latent_drift import SD_FLOOR, LatentDriftError, chunk_curve, parts, statistics, vae_curve

C, h, w, PREFIX, CHUNK, CHUNKS = 8, 8, 6, 3, 3, 6
F = PREFIX + CHUNK * CHUNKS


def clip(seed: int = 0) -> np.ndarray:
    """Latents [C, F, h, w] whose every chunk, the prefix too, has the same values at other places."""
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.normal(0, 0.5, (C, 1)), rng.uniform(0.3, 1.2, (C, 1)), (C, CHUNK * h * w))
    chunks = [rng.permuted(values, axis=1).reshape(C, CHUNK, h, w) for _ in range(1 + CHUNKS)]
    return np.concatenate(chunks, axis=1)


def changed(latents: np.ndarray, chunk: int, scale: np.ndarray | float, shift: np.ndarray | float) -> np.ndarray:
    """One chunk's contrast about each channel's mean scaled, and its mean shifted."""
    scale, shift = (np.broadcast_to(x, C).reshape(C, 1, 1, 1) for x in (scale, shift))
    result = latents.copy()
    part = result[:, PREFIX + (chunk - 1) * CHUNK :][:, :CHUNK]
    mean = part.mean((1, 2, 3), keepdims=True)
    part[:] = mean + scale * (part - mean) + shift
    return result


def curve(latents: np.ndarray) -> np.ndarray:
    return chunk_curve(latents, PREFIX, CHUNK)


def test_chunks_of_the_prefix_s_statistics_do_not_drift():
    assert curve(clip()) == pytest.approx(np.zeros(1 + CHUNKS), abs=1e-9)


def test_the_prefix_is_chunk_zero_and_zero_whatever_follows():
    latents = np.random.default_rng(1).normal(2, 3, (C, F, h, w))
    assert curve(latents).shape == (1 + CHUNKS,)
    assert curve(latents)[0] == 0
    assert (curve(latents)[1:] > 0).all()


@pytest.mark.parametrize("shift", [-0.7, 0.01, 2.0])
def test_a_shift_of_every_channel_is_its_own_size_and_of_its_chunk_alone(shift):
    expected = np.zeros(1 + CHUNKS)
    expected[4] = abs(shift)
    assert curve(changed(clip(), 4, 1, shift)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [0.25, 0.9, 3.0])
def test_a_scaled_contrast_is_the_logarithm_of_its_factor(scale):
    assert curve(changed(clip(), 2, scale, 0))[2] == pytest.approx(abs(math.log(scale)))


def test_halving_is_as_far_as_doubling():
    assert curve(changed(clip(), 1, 0.5, 0))[1] == pytest.approx(curve(changed(clip(), 1, 2, 0))[1])


def test_one_channel_of_eight_counts_an_eighth_in_the_square():
    scale, shift = np.ones(C), np.zeros(C)
    scale[2], shift[5] = math.e, 3
    assert curve(changed(clip(), 3, scale, shift))[3] == pytest.approx(math.sqrt((1 + 9) / C))


def test_parts_are_signed_and_by_channel():
    shift = np.linspace(-1, 1, C)
    means, spreads = parts(changed(clip(), 5, 0.5, shift), PREFIX, CHUNK)
    assert means.shape == spreads.shape == (1 + CHUNKS, C)
    assert means[5] == pytest.approx(shift)
    assert spreads[5] == pytest.approx(np.full(C, -math.log(2)))


def test_grows_with_strength():
    for scale, shift in ((0.2, 0), (-0.15, 0), (0, 0.3), (0, -0.3), (0.1, 0.2)):
        strengths = [curve(changed(clip(), 6, 1 + k * scale, k * shift))[6] for k in range(6)]
        assert (np.diff(strengths) > 0).all(), (scale, shift)


def test_places_do_not_matter_so_that_freezing_is_not_seen():
    latents = clip()
    frozen = latents.copy()
    frozen[:, PREFIX:] = np.tile(latents[:, :PREFIX], (1, CHUNKS, 1, 1))
    assert curve(frozen) == pytest.approx(np.zeros(1 + CHUNKS), abs=1e-12)


def test_a_prefix_of_several_chunks_is_one_reference():
    latents = clip()
    whole = chunk_curve(latents, 2 * PREFIX, CHUNK)
    assert whole.shape == (CHUNKS,)
    mean = latents[:, : 2 * PREFIX].mean((1, 2, 3))
    assert statistics(latents, 2 * PREFIX, CHUNK)[0][0] == pytest.approx(mean)


def test_only_a_prefix_is_a_curve_of_one():
    assert chunk_curve(clip()[:, :PREFIX], PREFIX, CHUNK).tolist() == [0]


def test_against_the_vae_in_closed_form():
    rng = np.random.default_rng(3)
    white = rng.normal(size=(C, F, h, w))
    for start in range(0, F, CHUNK):
        part = white[:, start : start + CHUNK]
        part -= part.mean((1, 2, 3), keepdims=True)
        part /= part.std((1, 2, 3), keepdims=True)
    assert vae_curve(white, PREFIX, CHUNK) == pytest.approx(np.zeros(1 + CHUNKS), abs=1e-9)
    assert vae_curve(2 * white + 1, PREFIX, CHUNK) == pytest.approx(np.full(1 + CHUNKS, math.hypot(1, math.log(2))))


def test_latents_normalised_by_another_vae_are_in_its_units():
    raw = changed(clip(), 2, 1, 0.6)
    assert curve(raw / 3)[2] == pytest.approx(0.2)
    assert curve(changed(clip(), 2, 2, 0) / 3)[2] == pytest.approx(math.log(2))


def test_constant_channels_are_finite_and_at_the_floor():
    latents = clip()
    latents[0] = 0.5
    assert curve(latents) == pytest.approx(np.zeros(1 + CHUNKS), abs=1e-9)
    latents = clip()
    latents[:, PREFIX : PREFIX + CHUNK] = latents[:, :PREFIX].mean((1, 2, 3), keepdims=True)
    sd = latents[:, :PREFIX].std((1, 2, 3))
    assert curve(latents)[1] == pytest.approx(math.sqrt(np.mean(np.log(sd / SD_FLOOR) ** 2)))


def test_float16_as_kept_gives_nearly_the_same():
    latents = changed(clip(), 3, 1.3, 0.2)
    assert curve(latents.astype(np.float16)) == pytest.approx(curve(latents), abs=1e-3)


def test_large_float16_latents_do_not_overflow():
    assert curve(np.full((C, F, h, w), 60_000, np.float16)).tolist() == [0] * (1 + CHUNKS)


@pytest.mark.parametrize(
    ("shape", "prefix", "chunk"),
    [((C, 20, h, w), 3, 3), ((C, 21, h, w), 0, 3), ((C, 21, h, w), 22, 3), ((C, 21, h, w), 3, 0)],
)
def test_ragged_chunks_are_refused(shape, prefix, chunk):
    with pytest.raises(LatentDriftError, match=f"{shape[1]} latent frames are not {prefix} and then chunks of {chunk}"):
        chunk_curve(np.zeros(shape), prefix, chunk)


@pytest.mark.parametrize("latents", [np.zeros((F, h, w)), np.zeros((C, F, h, w), np.uint8), np.zeros((C, F, 0, w))])
def test_what_is_not_latents_is_refused(latents):
    with pytest.raises(LatentDriftError, match="must be float"):
        chunk_curve(latents, PREFIX, CHUNK)


def test_the_first_frame_that_is_not_finite_is_named():
    latents = clip()
    latents[2, 11, 0, 0] = np.inf
    latents[0, 14, 0, 0] = np.nan
    with pytest.raises(LatentDriftError, match="not finite, from latent frame 11"):
        vae_curve(latents, PREFIX, CHUNK)
