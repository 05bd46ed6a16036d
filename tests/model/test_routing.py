"""Routed attention against a dense masked one with the same picks, and against its definition, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model import routing
from model.masks import ChunkMask, Chunks, Context, Reach
from model.routing import FLASH, PLAIN, pool, route, routed_attention

KERNELS = {"flash": FLASH, "plain": PLAIN}
H = 8


@st.composite
def cases(draw):
    """A mask and what else there is to vary."""
    size = draw(st.integers(1, 3))
    chunks = Chunks(size, draw(st.none() | st.integers(1, size)))
    context = Context(draw(st.none() | st.integers(0, 5)), draw(st.integers(0, 2)))
    mask = ChunkMask(draw(st.integers(1, 13)), chunks, context, draw(st.booleans()))
    return mask, *(draw(st.integers(1, most)) for most in (3, 4, 3, 2))  # S, top_k, N, B


def tensors(mask: ChunkMask, S: int, N: int, B: int, dtype=torch.float32, number: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (B, mask.length * S, N, H)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(number)]


def tokens(mask: ChunkMask, S: int) -> list[Reach]:
    return [reach.times(S) for reach in mask.reaches()]


def masked(q, k, v, reaches, top_k):
    """Attention under the dense mask of the runs always seen and those picked."""
    mask_BNLM = torch.zeros(q.shape[0], q.shape[2], q.shape[1], k.shape[1], dtype=torch.bool)
    for reach in reaches:
        here = slice(*reach.queries)
        for start, stop in reach.always:
            mask_BNLM[:, :, here, start:stop] = True
        if reach.history:
            picks_BLNJ = route(q[:, here], pool(k, reach.history), top_k)
            for j, (start, stop) in enumerate(reach.history):
                mask_BNLM[:, :, here, start:stop] |= picks_BLNJ[..., j].transpose(1, 2)[..., None]
    return attention(q, k, v, mask_BNLM)


def attention(q, k, v, mask):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def with_gradients(function, tensors, grad):
    inputs = [x.detach().requires_grad_() for x in tensors]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_near(ours, theirs, tolerance):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@given(cases())
@settings(max_examples=40)
def test_values_and_gradients_are_those_of_the_masked_dense_attention(kernel, dtype, tolerance, case):
    mask, S, top_k, N, B = case
    *qkv, grad = tensors(mask, S, N, B, dtype, number=4)
    reaches = tokens(mask, S)
    ours = with_gradients(lambda *x: routed_attention(*x, reaches, top_k, KERNELS[kernel]), qkv, grad)
    assert_near(ours, with_gradients(lambda *x: masked(*x, reaches, top_k), qkv, grad), tolerance)


@pytest.mark.parametrize("picked", [False, True], ids=["joined", "picked one by one"])
@given(cases())
@settings(max_examples=40)
def test_with_every_chunk_picked_it_is_dense_attention(picked, case):
    mask, S, _, N, B = case
    *qkv, grad = tensors(mask, S, N, B, number=4)
    reaches = tokens(mask, S)
    with pytest.MonkeyPatch.context() as patch:
        if picked:  # what is otherwise spared where there is nothing to choose
            patch.setattr(routing, "_joined", lambda reach, top_k: reach)
        ours = with_gradients(lambda *x: routed_attention(*x, reaches, mask.num_frames), qkv, grad)
    assert_near(ours, with_gradients(lambda *x: attention(*x, mask.dense(S)), qkv, grad), 1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_definition(top_k):
    """Python numbers only: means, the best of them, one softmax."""
    mask, S = ChunkMask(8, Chunks(2, 1), Context(sink_chunks=1), with_noisy=True), 2
    qkv = tensors(mask, S, 2, 1, torch.float64)
    out = routed_attention(*qkv, tokens(mask, S), top_k)
    q, k, v = (x[0].tolist() for x in qkv)

    def dot(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True))

    for reach in tokens(mask, S):
        for token in range(*reach.queries):
            for n in range(2):
                means = [
                    [sum(k[m][n][h] for m in range(*run)) / (run[1] - run[0]) for h in range(H)]
                    for run in reach.history
                ]
                best = sorted(range(len(means)), key=lambda j: -dot(q[token][n], means[j]))[:top_k]  # noqa: B023
                seen = [m for run in (*reach.always, *(reach.history[j] for j in best)) for m in range(*run)]
                weights = [math.exp(dot(q[token][n], k[m][n]) / math.sqrt(H)) for m in seen]
                expected = [
                    sum(w * v[m][n][h] for w, m in zip(weights, seen, strict=True)) / sum(weights) for h in range(H)
                ]
                assert out[0, token, n].tolist() == pytest.approx(expected, abs=1e-12)


def test_kernels_agree_on_many_tokens():
    """Past the fused kernel's block sizes (512 keys, 256 queries), in runs of unlike lengths."""
    runs = [(0, 500), (500, 1100), (1100, 1600), (1600, 2200)]
    reaches = [Reach((0, 600), (runs[3],), tuple(runs[:3]))]
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, length, 2, H, generator=generator) for length in (600, 2200, 2200, 600))
    ours, theirs = (
        with_gradients(lambda *x, kernel=kernel: routed_attention(*x, reaches, 1, kernel), [q, k, v], grad)
        for kernel in (FLASH, PLAIN)
    )
    assert_near(ours, theirs, 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision(kernel):
    mask, S = ChunkMask(9, Chunks(2), Context(sink_chunks=1)), 4
    *qkv, grad = tensors(mask, S, 2, 2, torch.bfloat16, number=4)
    reaches = tokens(mask, S)
    ours = with_gradients(lambda *x: routed_attention(*x, reaches, 2, KERNELS[kernel]), qkv, grad)
    assert all(x.dtype == torch.bfloat16 for x in ours)
    exact = with_gradients(lambda *x: masked(*x, reaches, 2), [x.double() for x in qkv], grad.double())
    assert_near([x.double() for x in ours], exact, 0.03)


@given(cases())
@settings(max_examples=40)
def test_a_rollout_attends_as_training_does(case):
    """The chunk's queries alone, and keys that end where the chunk does."""
    mask, S, top_k, N, B = case
    q, k, v = tensors(mask, S, N, B)
    reaches = tokens(mask, S)
    out = routed_attention(q, k, v, reaches, top_k)
    for reach in reaches:
        start, stop = reach.queries
        rolled = routed_attention(
            q[:, start:stop], k[:, :stop], v[:, :stop], [reach._replace(queries=(0, stop - start))], top_k
        )
        torch.testing.assert_close(rolled, out[:, start:stop], rtol=1e-6, atol=1e-6)


def test_a_batch_is_its_items_one_by_one():
    mask = ChunkMask(14, Chunks(2), Context(sink_chunks=1), with_noisy=True)
    q, k, v = tensors(mask, 3, 2, 3)
    together = routed_attention(q, k, v, tokens(mask, 3), 2)
    for b in range(3):
        alone = routed_attention(*(x[b : b + 1] for x in (q, k, v)), tokens(mask, 3), 2)
        torch.testing.assert_close(alone, together[b : b + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_past_does_not_see_the_future(kernel):
    mask, S = ChunkMask(14, Chunks(2)), 3
    reaches = tokens(mask, S)
    q, k, v = tensors(mask, S, 2, 1)
    out = routed_attention(q, k, v, reaches, 2, KERNELS[kernel])
    for reach in reaches:
        start = reach.queries[0]
        for x in (q, k, v):
            changed = x.clone()
            changed[:, start:] += 1
            again = routed_attention(*(changed if y is x else y for y in (q, k, v)), reaches, 2, KERNELS[kernel])
            assert torch.equal(again[:, :start], out[:, :start])


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_the_tokens_that_picked_a_chunk_see_its_values(kernel):
    mask, S = ChunkMask(12, Chunks(2)), 4
    reaches = tokens(mask, S)
    q, k, v = tensors(mask, S, 2, 2)
    out = routed_attention(q, k, v, reaches, 2, KERNELS[kernel])
    here, history = slice(*reaches[-1].queries), reaches[-1].history
    picks = route(q[:, here], pool(k, history), 2)
    for j, run in enumerate(history):
        changed = v.clone()
        changed[:, slice(*run)] += 1
        differs = (routed_attention(q, k, changed, reaches, 2, KERNELS[kernel]) != out).any(-1)[:, here]
        assert torch.equal(differs, picks[..., j])


def test_routes_are_the_best_chunks_and_among_equals_the_earlier():
    pooled = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])[None, :, None, None]  # [1, 5, 1, 1]
    query = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None]
    picks = {k: route(query, pooled, k)[0, :, 0].int().tolist() for k in (1, 2, 4, 5, 6)}
    assert picks[1] == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert picks[2] == [[0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]
    assert picks[4] == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert picks[5] == picks[6] == [[1] * 5] * 3


def test_each_head_and_token_picks_for_itself():
    q, k, _ = tensors(ChunkMask(10, Chunks(1)), 4, 3, 2)
    picks = route(q, pool(k, [(4 * j, 4 * j + 4) for j in range(10)]), 3)
    assert picks.shape == (2, 40, 3, 10)
    assert torch.equal(picks.sum(-1), torch.full((2, 40, 3), 3))
    assert len(picks.flatten(0, 2).unique(dim=0)) > 50


def test_without_gradients_nothing_is_kept():
    mask = ChunkMask(8, Chunks(2))
    inputs = [x.requires_grad_() for x in tensors(mask, 2, 2, 1)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        with torch.no_grad():
            out = routed_attention(*inputs, tokens(mask, 2), 1)
        assert out.grad_fn is None
        assert not kept
        assert torch.equal(routed_attention(*inputs, tokens(mask, 2), 1), out)
        assert kept


def test_checkpointed_gradients_are_the_same():
    mask = ChunkMask(9, Chunks(2), Context(sink_chunks=1), with_noisy=True)
    *qkv, grad = tensors(mask, 2, 2, 2, number=4)

    def attend(*x):
        return routed_attention(*x, tokens(mask, 2), 2)

    plain = with_gradients(attend, qkv, grad)
    again = with_gradients(lambda *x: checkpoint(attend, *x, use_reentrant=False), qkv, grad)
    assert all(torch.equal(x, y) for x, y in zip(plain, again, strict=True))


def test_strides_do_not_matter():
    mask, S = ChunkMask(9, Chunks(2)), 2
    qkv = tensors(mask, S, 2, 2)
    reaches, grad = tokens(mask, S), torch.ones(1).expand(qkv[0].shape)
    strided = [x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0) for x in qkv]
    assert all(x.stride(-1) != 1 for x in strided)
    ours = with_gradients(lambda *x: routed_attention(*x, reaches, 2), strided, grad)
    assert_near(ours, with_gradients(lambda *x: routed_attention(*x, reaches, 2), qkv, grad.contiguous()), 1e-6)


def test_what_does_not_fit_is_refused():
    mask = ChunkMask(6, Chunks(2))
    q, k, v = tensors(mask, 2, 1, 1)
    reaches = tokens(mask, 2)
    with pytest.raises(ValueError, match="top_k must be at least 1 chunk, not 0"):
        routed_attention(q, k, v, reaches, 0)
    for wrong in ([], reaches[:-1], reaches[1:], reaches[::2], reaches[::-1]):
        with pytest.raises(ValueError, match="must follow each other from 0 to 12"):
            routed_attention(q, k, v, wrong, 1)
    with pytest.raises(ValueError, match="see keys up to 12, but k has only 11"):
        routed_attention(q, k[:, :-1], v[:, :-1], reaches, 1)
