"""History routing: each token and head attends to the k past chunks that match it best.

Resampling Forcing's (2512.15702), in three steps. *Pool*: a past chunk is represented by the mean of its keys as
attention uses them, rotary phases included. *Route*: a query picks the k chunks of largest dot product; nothing is
learnt here, nothing differentiated. *Attend*: to the chunks it picked and to what it always sees (its own chunk, the
sink), under ONE softmax over the union, so that k = all is dense attention.

What is notable is how the union is attended to without a mask. The queries are sorted by the chunk they picked, each k
times; a chunk and head then serve their own queries in dense attention, and a query's partial results are merged by
their log-sum-exps. In the backward pass every call is given the merged output and log-sum-exp in place of its own. Its
probabilities then are those of the one softmax (ring attention rests on the same identity), so its gradients are exact
and just add up. One of two kernels makes the calls: `FLASH`, PyTorch's fused one for CPUs, or `PLAIN`, the same in
matrix products for any device, which holds one call's scores at a time.

Shapes: B batch, L query tokens, M key tokens, N heads, H head size, J past chunks to pick from; R = B*L*N rows of
queries and E = R*k picks of one reach, sorted by batch item, chunk, head and token.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from model.masks import Reach, Run

Part = tuple[torch.Tensor, torch.Tensor]  # output [..., H] and log-sum-exp [...] over some of the keys
Place = tuple[slice, slice, slice]  # of a tensor [B, M, N, H]: which items, keys and heads

GROUP = 8  # attentions in one call: enough to keep some cores busy, few enough for their keys to stay in cache


class Kernel(NamedTuple):
    """Attention of q to k, v, all [B, N, tokens, H], that tells its log-sum-exp [B, N, L].

    `forward(q, k, v)` -> out, lse; `backward(grad, q, k, v, out, lse)` -> gradients of q, k, v. With the out and lse
    of more keys than k holds, the gradients are the share of k in the whole.
    """

    forward: Callable[..., Part]
    backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def pool(k_BMNH: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
    """The mean key of each run [B, J, N, H], float32 at least."""
    return torch.stack([k_BMNH[:, start:stop].mean(1, dtype=_wide(k_BMNH)) for start, stop in runs], dim=1)


@torch.no_grad()
def route(q_BLNH: torch.Tensor, pooled_BJNH: torch.Tensor, top_k: int) -> torch.Tensor:
    """Which chunks each query picks: bool [B, L, N, J], min(top_k, J) of them true; among equals the earlier chunk.

    The set Omega(q_i) of 2512.15702. Its mean over tokens is how often each chunk is routed to.
    """
    scores = torch.einsum("blnh,bjnh->blnj", q_BLNH.to(pooled_BJNH.dtype), pooled_BJNH)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)


@torch.compiler.disable  # how many queries a chunk gets depends on the data
def routed_attention(
    q_BLNH: torch.Tensor,
    k_BMNH: torch.Tensor,
    v_BMNH: torch.Tensor,
    reaches: Sequence[Reach],
    top_k: int,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Attention [B, L, N, H] of each token to its reach's `always` runs and the `top_k` best of its `history` runs.

    Reaches are in tokens: their queries index q, in order and without gaps, and their runs index k and v. In training
    all three are the same clip; in a rollout q is one chunk, and k, v are [past | that chunk]. With no more than top_k
    history runs this is dense attention. Differentiable in q, k, v. Raises ValueError when top_k < 1 or the reaches do
    not fit the tensors.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1 chunk, not {top_k}")
    stops = [reach.queries[1] for reach in reaches]
    if [reach.queries[0] for reach in reaches] != [0, *stops[:-1]] or stops[-1:] != [q_BLNH.shape[1]]:
        raise ValueError(
            f"the queries of the reaches must follow each other from 0 to {q_BLNH.shape[1]}, the length of q; "
            f"they are {[reach.queries for reach in reaches]}"
        )
    if (last := max(reach.keys[-1][1] for reach in reaches)) > k_BMNH.shape[1]:
        raise ValueError(f"the reaches see keys up to {last}, but k has only {k_BMNH.shape[1]}")
    q, k, v = q_BLNH, k_BMNH, v_BMNH
    if torch.is_autocast_enabled(q.device.type):  # as it does for PyTorch's own attention
        q, k, v = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (q, k, v))
    # The fused kernel reads a head's features as one row.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    plan = [_joined(reach, top_k) for reach in reaches]
    runs = sorted({run for reach in plan for run in reach.history})
    pooled = dict(zip(runs, pool(k.detach(), runs).unbind(1), strict=True)) if runs else {}
    picks = [
        route(q[:, slice(*reach.queries)], torch.stack([pooled[run] for run in reach.history], dim=1), top_k)
        for reach in plan
        if reach.history
    ]
    if kernel is None:
        kernel = FLASH if q.device.type == "cpu" else PLAIN
    with torch.autocast(q.device.type, enabled=False):
        out: torch.Tensor = _RoutedAttention.apply(q, k, v, plan, kernel, *picks)
    return out


def _joined(reach: Reach, top_k: int) -> Reach:
    """The same, in as few `always` runs as can be; without history where there is nothing to pick."""
    if len(reach.history) <= top_k:
        return reach._replace(always=reach.keys, history=())
    return reach._replace(always=reach._replace(history=()).keys)


class _All:
    """A branch of attention, to a run that every query attends to, in one call.

    `places` of each call's keys; `keys` puts keys and values from there side by side; `pack` gives each call's queries,
    or whatever there is one of for each query; `unpack` turns what the calls gave back into [B, L, N, ...], as many as
    each query was in calls.
    """

    def __init__(self, run: Run) -> None:
        self.places: list[list[Place]] = [[(slice(None), slice(*run), slice(None))]]

    def keys(self, places: list[Place], k: torch.Tensor, v: torch.Tensor) -> Sequence[torch.Tensor]:
        return [x[places[0]].transpose(1, 2) for x in (k, v)]

    def pack(self, x_BLN: torch.Tensor) -> Sequence[torch.Tensor]:
        return [x_BLN.transpose(1, 2)]

    def unpack(self, packed: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return [packed[0].transpose(1, 2)]


class _Picked:
    """The branch of the runs that were picked: each batch item, run and head is an attention with queries of its own.

    Called one by one, they would wait for threads more than work. So GROUP of them make a call, neighbours in their
    number of queries, as all get rows of zeros up to the largest; runs of another length are called apart.
    """

    def __init__(self, runs: Sequence[Run], picks_BLNJ: torch.Tensor) -> None:
        B, L, N, _ = self.shape = picks_BLNJ.shape
        places = [(slice(b, b + 1), slice(*run), slice(n, n + 1)) for b, run, n in product(range(B), runs, range(N))]
        lengths = [keys.stop - keys.start for _, keys, _ in places]
        sizes: list[int] = picks_BLNJ.sum(1).transpose(1, 2).flatten().tolist()
        groups: list[list[int]] = []
        for i in sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (lengths[i], sizes[i])):
            if not groups or len(groups[-1]) == GROUP or lengths[groups[-1][0]] != lengths[i]:
                groups.append([])
            groups[-1].append(i)
        self.places = [[places[i] for i in group] for group in groups]
        self.padded = [(len(group), 1, sizes[group[-1]]) for group in groups]

        shifts, packed = [-start for start in accumulate([0, *sizes[:-1]])], 0
        for group, (_, _, size) in zip(groups, self.padded, strict=True):
            for i in group:
                shifts[i] += packed
                packed += size
        item, _, head, token = picks_BLNJ.permute(0, 3, 2, 1).nonzero(as_tuple=True)
        rows_E = (item * L + token) * N + head
        shifts_E = rows_E.new_tensor(shifts).repeat_interleave(rows_E.new_tensor(sizes), output_size=len(rows_E))
        packed_E = torch.arange(len(rows_E), device=rows_E.device) + shifts_E
        # Row R is of zeros: gradients of zero make what stands in for queries add nothing to those of keys.
        self.rows = rows_E.new_full((packed,), B * L * N).index_copy_(0, packed_E, rows_E)
        # Sorted by row, the k picks of each are neighbours.
        self.packed_kR = packed_E[rows_E.argsort(stable=True)].view(B * L * N, -1).T.contiguous()
        self.buffer: torch.Tensor | None = None

    def keys(self, places: list[Place], k: torch.Tensor, v: torch.Tensor) -> Sequence[torch.Tensor]:
        # Copied together they are read faster; into memory in use, as fresh pages would cost as much as is gained.
        heads = [x[place].transpose(1, 2) for x in (k, v) for place in places]
        size = len(heads) * heads[0].numel()
        if self.buffer is None or self.buffer.numel() < size:
            self.buffer = k.new_empty(size)
        return torch.cat(heads, out=self.buffer[:size].view(len(heads), *heads[0].shape[1:])).chunk(2)

    def pack(self, x_BLN: torch.Tensor) -> Sequence[torch.Tensor]:
        x_R = x_BLN.flatten(0, 2)
        x = torch.cat([x_R, x_R.new_zeros(1, *x_R.shape[1:])]).index_select(0, self.rows)
        parts = x.split([heads * size for heads, _, size in self.padded])
        return [part.view(*padded, *x.shape[1:]) for part, padded in zip(parts, self.padded, strict=True)]

    def unpack(self, packed: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        x = torch.cat([part.flatten(0, 2) for part in packed])
        return [x.index_select(0, at_R).view(*self.shape[:3], *x.shape[1:]) for at_R in self.packed_kR]


def _branches(plan: list[Reach], picks: Sequence[torch.Tensor]) -> Iterator[tuple[slice, list["_All | _Picked"]]]:
    """The queries of each reach and the branches that make up its union."""
    rest = iter(picks)
    for reach in plan:
        picked = [_Picked(reach.history, next(rest))] if reach.history else []
        yield slice(*reach.queries), [*map(_All, reach.always), *picked]


class _RoutedAttention(torch.autograd.Function):
    """`picks`: the routes of those reaches of the plan that have history."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: list[Reach],
        kernel: Kernel,
        *picks: torch.Tensor,
    ) -> torch.Tensor:
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=_wide(q))
        for here, branches in _branches(plan, picks):
            parts: list[Part] = []
            for branch in branches:
                calls = zip(branch.pack(q[:, here]), branch.places, strict=True)
                outs, lses = zip(*(kernel.forward(x, *branch.keys(places, k, v)) for x, places in calls), strict=True)
                parts.extend(zip(branch.unpack(outs), branch.unpack(lses), strict=True))
            out[:, here], lse[:, here] = _merge(parts)
        ctx.save_for_backward(q, k, v, out, lse, *picks)
        ctx.plan, ctx.kernel = plan, kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse, *picks = ctx.saved_tensors
        grad = grad.contiguous()
        # A gradient is the sum over many calls, so it is not kept in half precision.
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v))
        for here, branches in _branches(ctx.plan, picks):
            for branch in branches:
                calls = zip(branch.places, *(branch.pack(x[:, here]) for x in (grad, q, out, lse)), strict=True)
                of_queries = []
                for places, grad_part, q_part, out_part, lse_part in calls:
                    keys = branch.keys(places, k, v)
                    dq, dk, dv = ctx.kernel.backward(grad_part, q_part, *keys, out_part, lse_part)
                    of_queries.append(dq)
                    for total, part in ((grad_k, dk), (grad_v, dv)):
                        for place, of_place in zip(places, part.chunk(len(places)), strict=True):
                            total[place].add_(of_place.transpose(1, 2))
                for dq in branch.unpack(of_queries):
                    grad_q[:, here].add_(dq)
        return (grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, *(None for _ in picks))


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _merge(parts: Iterable[Part]) -> Part:
    """Attention over the union of disjoint sets of keys: each part weighs what its keys weigh in the one softmax."""
    outs, lses = zip(*parts, strict=True)
    lse = torch.stack(lses).logsumexp(0)
    return sum(out * (part - lse).exp().unsqueeze(-1) for out, part in zip(outs, lses, strict=True)), lse


def _plain_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
    scores = _scores(q, k)
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v.to(lse.dtype), lse


def _plain_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
    probabilities = (_scores(q, k) - lse.unsqueeze(-1)).exp()
    grad_scores = probabilities * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return grad_scores @ k, grad_scores.mT @ q, probabilities.mT @ grad


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q.to(_wide(q)) @ k.to(_wide(k)).mT * q.shape[-1] ** -0.5


def _flash_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse


def _flash_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_q, grad_k, grad_v = backward(grad, q, k, v, out, lse, dropout_p=0.0, is_causal=False)
    return grad_q, grad_k, grad_v


FLASH = Kernel(_flash_forward, _flash_backward)
PLAIN = Kernel(_plain_forward, _plain_backward)
