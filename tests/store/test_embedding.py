import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.embedding import look, words
from store.schema import LOOK_SIZE, WORDS_SIZE

NOISE = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)


def distance(one, other):
    return float(np.linalg.norm(one - other))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (7, 16, 24), (100, 33, 4)])
def test_look_takes_clips_of_any_size(shape):
    frames = np.full((*shape, 3), 255, np.uint8)
    assert look(frames).dtype == np.float32
    assert look(frames) == pytest.approx(np.full(LOOK_SIZE, 0.5))
    assert look(frames * 0) == pytest.approx(np.full(LOOK_SIZE, -0.5))


def test_look_is_the_mean_colour_of_each_cell_at_start_and_end():
    want = [part.reshape(3, 4, 4, 4, 6, 3).mean((0, 2, 4)) / 255 - 0.5 for part in (NOISE[:3], NOISE[-3:])]
    assert look(NOISE) == pytest.approx(np.ravel(want), abs=1e-6)


def test_look_knows_start_from_end_and_does_not_mind_a_little_noise():
    ramp = np.linspace(0, 255, 12).astype(np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    noisy = np.clip(ramp.astype(int) + np.random.default_rng(0).integers(-8, 9, ramp.shape), 0, 255).astype(np.uint8)
    assert distance(look(ramp), look(noisy)) < 0.1 < 1 < distance(look(ramp), look(ramp[::-1]))


def test_words_are_near_where_texts_share_words():
    left = words("a red circle moves left over a grey background")
    assert np.linalg.norm(left) == pytest.approx(1)
    assert distance(left, words("A red CIRCLE moves left, over the grey background!")) == 0
    right, other = words("a red circle moves right over a grey background"), words("two blue squares fade away")
    assert 0 < distance(left, right) < distance(left, other)


@given(st.text(max_size=200))
def test_words_take_any_text(text):
    vector = words(text)
    assert vector.shape == (WORDS_SIZE,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or not vector.any()


def test_embeddings_do_not_change():
    """Stored vectors are compared with new ones: another formula is another name and another column."""
    assert np.arange(WORDS_SIZE) @ words("a red circle moves left") == pytest.approx(57.828563, abs=1e-4)
    assert np.arange(LOOK_SIZE) @ look(NOISE) == pytest.approx(29.042755, abs=1e-4)
