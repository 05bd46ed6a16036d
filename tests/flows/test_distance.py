"""Distances between the clips of a round and real ones: the null, what differs, and what is not enough."""

import numpy as np
import pytest

from flows.distance import FEWEST, Looks, Watcher, looks_of, over_time
from model.rng import numpy_generator
from tests.flows.heldout import project, truth

CLIPS, WINDOWS, SIZE = 24, 4, 6


def looks(name: str, shift: float = 0.0, clips: int = CLIPS, growing: bool = True) -> Looks:
    """Clips that are steady, about means of their own; shifted more and more, window by window."""
    rng = numpy_generator("looks", name)
    features = rng.standard_normal((clips, 1, SIZE)) + 0.1 * rng.standard_normal((clips, WINDOWS, SIZE))
    steps = np.linspace(0, 1, WINDOWS) if growing else np.ones(WINDOWS)
    return Looks([f"seed-{n}" for n in range(clips)], (features + shift * steps[None, :, None]).astype(np.float32))


def test_a_round_that_leaves_the_truth_leaves_the_null():
    real = looks("real")
    found = over_time(real, {"r0": looks("r0", 3.0), "r1": looks("r1")})
    for kind in ("frechet", "kid"):
        null, drifting, steady = (found[kind][name] for name in ("real", "r0", "r1"))
        assert null.shape == drifting.shape == (10, WINDOWS)
        assert drifting.mean(0)[-1] > null.max() + 1
        assert (np.diff(drifting.mean(0)) > 0).all()
        low, high = null.min(), null.max()
        assert (steady.mean(0) > low).all()
        assert (steady.mean(0) < high).all()


def test_the_truth_itself_is_the_null():
    real = looks("real")
    found = over_time(real, {"r0": real})
    for curves in found.values():
        np.testing.assert_array_equal(curves["r0"], curves["real"])


def test_only_clips_that_every_round_has_count():
    real, whole = looks("real"), looks("r0", 1.0)
    order = np.arange(CLIPS)[::-1]
    shuffled = Looks([whole.clip_ids[n] for n in order], whole.features[order])
    same = over_time(real, {"r0": shuffled})["kid"]["r0"]
    np.testing.assert_allclose(same, over_time(real, {"r0": whole})["kid"]["r0"], rtol=1e-6)
    fewer = Looks(whole.clip_ids[: FEWEST - 1], whole.features[: FEWEST - 1])
    assert over_time(real, {"r0": whole, "r1": fewer}) == {}


def test_real_clips_may_be_shorter_than_rollouts():
    real = looks("real")
    short = Looks(real.clip_ids, real.features[:, :2])
    found = over_time(short, {"r0": looks("r0", 3.0)})["kid"]
    assert found["real"].shape == (10, 2)
    assert found["r0"].shape == (10, WINDOWS)


def test_looks_are_cut_to_what_all_have():
    found = looks_of({"a": np.ones((3, 2)), "b": None, "c": np.zeros((2, 2))})
    assert found.clip_ids == ["a", "c"]
    assert found.features.shape == (2, 2, 2)
    assert looks_of({"a": None}).clip_ids == []


@pytest.mark.parametrize(("fps", "windows"), [(8, 2), (5, 4), (20, None)])
def test_a_window_is_a_second(tmp_path, monkeypatch, tiny_base, fps, windows):
    monkeypatch.chdir(tmp_path)
    watcher = Watcher(project(tiny_base, video={"fps": fps}))
    look = watcher.look(truth(0))
    assert watcher.size == fps
    assert look is None if windows is None else look.shape == (windows, 192)  # the last one ends with the clip
