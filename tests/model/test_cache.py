"""The cache as a container: what it keeps, what it lets go, and that a past which someone needs is never written to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cache import KVCache
from model.masks import ChunkMask, Chunks, Context

S, LIKE = 2, torch.empty(1, 2, 4)  # tokens per frame; batch, heads, head size


def forward(cache: KVCache, frames: int, value: float):
    """One forward whose keys are `value` and whose values are -`value`; what each layer attended to."""
    own = torch.full((1, frames * S, 2, 4), value)
    return [layer.update(own + index, -own) for index, layer in enumerate(cache.begin(frames, S, LIKE))]


def keys(cache: KVCache) -> list[int]:
    """The value of each token of past, in order."""
    layer = cache.begin(1, S, LIKE)[0]
    k, v = layer.get()
    assert torch.equal(k, -v)
    return [int(x) for x in k[0, :, 0, 0]]


@given(
    st.integers(1, 3), st.none() | st.integers(1, 3), st.none() | st.integers(0, 3), st.integers(0, 2),
    st.integers(1, 9), st.booleans(),
)  # fmt: skip
@settings(max_examples=150)
def test_it_holds_what_the_mask_shows(size, first, window, sink, count, grad):
    chunks, context = Chunks(size, first and min(first, size)), Context(window, sink)
    cache = KVCache(2, context)
    num_frames = chunks.run(count - 1)[1]
    reaches = ChunkMask(num_frames, chunks, context).reaches()
    with torch.set_grad_enabled(grad):
        for index, reach in enumerate(reaches):
            frames = reach.queries[1] - reach.queries[0]
            forward(cache, frames, -7)  # a denoising step, forgotten
            k, v = forward(cache, frames, index + 1)[0]
            expected = [chunks.index(f) + 1 for start, stop in reach.keys for f in range(start, stop) for _ in range(S)]
            assert [int(x) for x in k[0, :, 0, 0]] == expected
            assert torch.equal(k, -v)
            own = cache.reach()
            assert own.queries == (0, frames * S)
            assert len(own.history) == len(reach.history)
            assert len(own.always) == len(reach.always)
            assert own.always[-1][1] == own.keys[-1][1] == len(expected)
            cache.commit()
    assert cache.num_tokens == len(keys(cache))
    if window is not None:
        assert cache._storage[0][0].shape[1] <= (window + sink + 1) * size * S + size * S


@torch.no_grad()
def test_a_past_lent_to_a_backward_is_never_written_to():
    cache = KVCache(1, Context(2, 1))
    for value in (1, 2, 3):
        forward(cache, 1, value)
        cache.commit()
    layer = cache.begin(1, S, LIKE)[0]
    with torch.enable_grad():
        layer = cache.begin(1, S, LIKE)[0]
    before = [x.clone() for x in layer.get()]
    cache.forget()  # the storage is lent: what comes next gets one of its own
    for value in (4, 5, 6, 7):
        forward(cache, 1, value)
        cache.commit()
    assert all(torch.equal(a, b) for a, b in zip(layer.get(), before, strict=True))
    for value in (8, 9):
        with torch.enable_grad():
            layer = cache.begin(1, S, LIKE)[0]
        before = [x.clone() for x in layer.get()]
        forward(cache, 1, value)
        cache.commit()  # which evicts
        assert all(torch.equal(a, b) for a, b in zip(layer.get(), before, strict=True))


def test_several_chunks_of_one_forward_leave_one_by_one():
    cache = KVCache(1, Context(2))
    own = torch.arange(3.0).repeat_interleave(2 * S).view(1, -1, 1, 1).expand(1, -1, 2, 4)
    cache.begin(6, S, LIKE)[0].update(own, -own)
    cache.commit([2, 2, 2])
    assert keys(cache) == [1] * 4 + [2] * 4
    assert cache.chunks == [2, 2]


def test_a_travelling_sink_moves_from_where_it_was_made():
    moved = []

    def advance(k, frames):
        moved.append(frames)
        return k + 100 * frames

    cache = KVCache(1, Context(1, 1), advance)
    for value in (1, 2, 3, 4):
        forward(cache, 3, value)
        cache.commit()
    assert moved == [3, 6]
    k, v = cache.begin(3, S, LIKE)[0].get()
    assert [int(x) for x in k[0, ::6, 0, 0]] == [601, 4]
    assert [int(x) for x in v[0, ::6, 0, 0]] == [-1, -4]


@torch.no_grad()
def test_storage_stops_growing_with_a_window():
    cache = KVCache(1, Context(3))
    seen = set()
    for value in range(20):
        forward(cache, 2, value)
        cache.commit()
        seen.add(cache._storage[0][0].data_ptr() if value > 5 else 0)
    assert len(seen) == 2


def test_texts_are_kept_for_the_very_same_tensor_until_a_reset():
    cache, text = KVCache(2), torch.zeros(1, 3, 4)
    cache.text_layers(text)[0].k = torch.ones(1)
    cache.forget()
    assert cache.text_layers(text)[0].k is not None
    assert cache.text_layers(text.clone())[0].k is None
    cache.text_layers(text)[0].k = torch.ones(1)
    cache.reset()
    assert cache.text_layers(text)[0].k is None


@torch.no_grad()
def test_what_was_pending_in_another_shape_is_forgotten():
    cache = KVCache(1)
    cache.begin(3, S, LIKE)
    (layer,) = cache.begin(3, 1, LIKE)
    assert layer.k.shape == (1, 3, 2, 4)
    (layer,) = cache.begin(3, S, torch.empty(2, 2, 4, dtype=torch.float64))
    assert layer.k.shape == (2, 6, 2, 4)
    assert layer.k.dtype == torch.float64


def test_recomputing_an_earlier_forward_leaves_the_pending_one_alone():
    cache, own = KVCache(1), torch.ones(1, S, 2, 4)
    (earlier,) = cache.begin(1, S, LIKE)
    earlier.update(own, own)
    with torch.no_grad():
        cache.begin(1, S, LIKE)[0].update(2 * own, -2 * own)
    earlier.update(own, own)  # as a checkpointed block does in backward
    cache.commit()
    assert keys(cache) == [2] * S


def test_mistakes_are_named():
    cache = KVCache(1)
    with pytest.raises(RuntimeError, match="nothing to commit"):
        cache.commit()
    forward(cache, 3, 1)
    with pytest.raises(ValueError, match=r"\[1, 1\] frames are not the 3 frames"):
        cache.commit([1, 1])
    cache.commit()
    with pytest.raises(RuntimeError, match="nothing to commit"):
        cache.commit()
    with pytest.raises(ValueError, match="holds 2 tokens per frame, batch 1"):
        cache.begin(3, S + 1, LIKE)
    with pytest.raises(ValueError, match=r"this forward has 2 tokens per frame, batch 2"):
        cache.begin(3, S, torch.empty(2, 2, 4))
