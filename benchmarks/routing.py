"""History routing against dense attention: the time of one attention layer as the history grows.

    python -m benchmarks.routing
    python -m benchmarks.routing --tokens-per-chunk 4680 --history 20 --repeats 3

Rollout: the queries of one chunk against its history and itself, routed to k past chunks, or dense to all of them in
one scaled-dot-product attention. Training: forward and backward of a whole block-causal clip; dense is one such
attention a chunk, over exactly the keys it sees. Times include pooling, routing and merging. Queries and keys are
random, which spreads the picks evenly over the chunks. `attended` is the share of the visible keys that a query attends
to: one over it would be the ratio if routing cost nothing. On cores shared with other work set OMP_WAIT_POLICY=passive,
or take --threads 1.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks import measure
from model.masks import ChunkMask, Chunks, Reach
from model.rng import torch_generator
from model.routing import routed_attention


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, reaches: Sequence[Reach]) -> torch.Tensor:
    """Of reaches whose keys are one run each."""
    outs = []
    for reach in reaches:
        (run,) = reach.keys
        seen = (q[:, slice(*reach.queries)], k[:, slice(*run)], v[:, slice(*run)])
        outs.append(functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in seen)).transpose(1, 2))
    return torch.cat(outs, dim=1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-chunk", type=int, nargs="+", default=[512, 1560])
    parser.add_argument("--history", type=int, nargs="+", default=[4, 8, 16, 20, 32, 64], help="chunks, in a rollout")
    parser.add_argument("--clip", type=int, nargs="*", default=[7, 21], help="chunks, in training")
    parser.add_argument("--clip-tokens", type=int, default=512, help="tokens per chunk, in training")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(measure.DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table and the settings there as well")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    generator = torch_generator("benchmark")

    def randn(length: int) -> torch.Tensor:
        x = torch.randn(1, length, args.heads, args.head_size, generator=generator)
        return x.to(device, measure.DTYPES[args.dtype])

    def compare(kind: str, tokens: int, reaches: Sequence[Reach], variants: Mapping[str, Callable[[], object]]) -> dict:
        for run in variants.values():
            run()
        times = measure.in_turns(variants, args.repeats, device)
        milliseconds = {name: [1e3 * s for s in measure.least_and_median(values)] for name, values in times.items()}
        seen = sum(len(reach.always) + min(args.top_k, len(reach.history)) for reach in reaches)
        return {
            "": kind,
            "chunks": len(reaches) if len(reaches) > 1 else len(reaches[0].history),
            "tokens per chunk": tokens,
            "dense ms": milliseconds["dense"][0],
            "median": milliseconds["dense"][1],
            "routed ms": milliseconds["routed"][0],
            "median ": milliseconds["routed"][1],
            "ratio": milliseconds["dense"][0] / milliseconds["routed"][0],
            "attended": seen / sum(len(reach.always) + len(reach.history) for reach in reaches),
        }

    def rollout(tokens: int, history: int) -> dict:
        q, k, v = randn(tokens), randn((history + 1) * tokens), randn((history + 1) * tokens)
        last = ChunkMask(history + 1, Chunks(1)).reaches()[-1].times(tokens)
        reaches = [last._replace(queries=(0, tokens))]
        variants = {
            "dense": lambda: dense_attention(q, k, v, reaches),
            "routed": lambda: routed_attention(q, k, v, reaches, args.top_k),
        }
        with torch.no_grad():
            return compare("rollout", tokens, reaches, variants)

    def training(tokens: int, clip: int) -> dict:
        q, k, v, grad = (randn(clip * tokens) for _ in range(4))
        inputs = tuple(x.requires_grad_() for x in (q, k, v))
        reaches = [reach.times(tokens) for reach in ChunkMask(clip, Chunks(1)).reaches()]
        variants = {
            "dense": lambda: torch.autograd.grad(dense_attention(q, k, v, reaches), inputs, grad),
            "routed": lambda: torch.autograd.grad(routed_attention(q, k, v, reaches, args.top_k), inputs, grad),
        }
        return compare("training", tokens, reaches, variants)

    rows = [rollout(tokens, history) for tokens in args.tokens_per_chunk for history in args.history]
    rows += [training(args.clip_tokens, clip) for clip in args.clip]
    title = f"one attention layer, {args.heads} heads of {args.head_size}, {args.dtype}, k = {args.top_k}"
    measure.report(title, rows, args, device)


if __name__ == "__main__":
    main()
