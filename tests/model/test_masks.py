"""Masks against their definition, spelled out frame by frame, over any chunking, window and sink."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.masks import ChunkMask, Chunks, Context, teacher_forcing_mask


@st.composite
def masks(draw):
    size = draw(st.integers(1, 4))
    chunks = Chunks(size, draw(st.none() | st.integers(1, size)))
    context = Context(draw(st.none() | st.integers(0, 4)), draw(st.integers(0, 3)))
    return ChunkMask(draw(st.integers(1, 13)), chunks, context, draw(st.booleans()))


def chunk_list(num_frames: int, chunks: Chunks) -> list[int]:
    """The chunk of each frame, counted out."""
    first = chunks.size if chunks.first is None else chunks.first
    whole = [0] * first + [1 + n // chunks.size for n in range(num_frames)]
    return whole[:num_frames]


def definition(mask: ChunkMask, query: int, key: int) -> bool:
    F, of = mask.num_frames, chunk_list(mask.num_frames, mask.chunks)
    past = of[query % F] - of[key % F]
    window = mask.context.window_chunks
    seen = past >= 1 and (window is None or past <= window or of[key % F] < mask.context.sink_chunks)
    if query < F and key < F:
        return past == 0 or seen
    if query >= F and key < F:
        return seen
    return query >= F and past == 0


@given(masks())
@settings(max_examples=200)
def test_the_rule_is_the_definition(mask):
    dense = mask.dense()
    assert dense.shape == (mask.length, mask.length)
    for query in range(mask.length):
        for key in range(mask.length):
            assert bool(dense[query, key]) == definition(mask, query, key), (query, key)


@given(masks())
@settings(max_examples=200)
def test_reaches_are_the_rule(mask):
    seen = torch.zeros(mask.length, mask.length, dtype=torch.long)
    for reach in mask.reaches():
        assert list(reach.keys) == sorted(reach.keys)
        assert reach.queries == reach.always[-1]
        for start, stop in reach.keys:
            seen[slice(*reach.queries), start:stop] += 1
        parts = torch.zeros(mask.length, dtype=torch.long)
        for start, stop in (*reach.always, *reach.history):
            parts[start:stop] += 1
        assert torch.equal(parts, seen[reach.queries[0]])
    assert torch.equal(seen, mask.dense().long())


@given(masks(), st.integers(1, 3))
@settings(max_examples=30)
def test_tokens_see_what_their_frames_see(mask, S):
    frames, tokens = mask.dense(), mask.dense(S)
    L = mask.length * S
    index = torch.arange(L) // S
    assert torch.equal(tokens, frames[index][:, index])
    from_blocks = torch.vmap(torch.vmap(mask.block_mask(S, torch.device("cpu")).mask_mod, (None, None, None, 0)),
                             (None, None, 0, None))(0, 0, torch.arange(L), torch.arange(L))  # fmt: skip
    assert torch.equal(from_blocks, tokens)
    for frame_reach, reach in zip(mask.reaches(), mask.reaches(S), strict=True):
        assert reach.queries == tuple(n * S for n in frame_reach.queries)
        assert reach.keys == tuple((a * S, b * S) for a, b in frame_reach.keys)


@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60)
def test_chunks_tile_the_frames(num_frames, size, first):
    chunks = Chunks(size, min(first, size))
    runs = chunks.runs(num_frames)
    assert [n for start, stop in runs for n in range(start, stop)] == list(range(num_frames))
    assert [chunks.index(start) for start, _ in runs] == list(range(len(runs))) == list(range(chunks.count(num_frames)))
    assert all(stop - start == size for start, stop in runs[1:-1])


def test_the_paper_s_layouts():
    """AnyFlow's 1, 3, 3, 2 and Self-Forcing's forbidden first chunk."""
    assert Chunks(3, 1).runs(9) == [(0, 1), (1, 4), (4, 7), (7, 9)]
    assert not ChunkMask(12, Chunks(3), Context(window_chunks=2)).dense()[9:, :3].any()
    both = teacher_forcing_mask(2, Chunks(1)).dense().int().tolist()
    assert both == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1 frame, not 0"):
        ChunkMask(0, Chunks(3))
    with pytest.raises(ValueError, match="chunk must have at least 1"):
        Chunks(0)
    with pytest.raises(ValueError, match=r"1\.\.3 frames"):
        Chunks(3, 4)
    with pytest.raises(ValueError, match="window_chunks must be at least 0, not -1"):
        Context(window_chunks=-1)
    with pytest.raises(ValueError, match="routed_chunks must be at least 1, not 0"):
        Context(routed_chunks=0)
