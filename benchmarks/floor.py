"""Where the time of a rollout chunk and of a training step goes, and how far above the machine's floor they are.

    python -m benchmarks.floor --size mid
    python -m benchmarks.floor --size tiny --clips 8
    python -m benchmarks.floor --size wan1.3b --device cuda --dtype bfloat16

First the machine: the rate of matrix products (square, and of the model's own shapes), of attention, and the bandwidth
of a copy. Then a chunk of a cached rollout with its window full, and a training step: the floating-point operations
they count, their floor (those operations at the best measured matmul rate), the time they take, and where it goes by
kind of operator. `outside operators` is Python, dispatch and waiting: the time that no operator's own time accounts
for. Shares come from a run under the profiler, which slows small operators down more than large ones; times come from
runs without.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks import measure, models
from benchmarks.training import Step
from model.causal import causalize
from model.rollout import RolloutSettings, rollout

KINDS = {  # the first kind with a part of the operator's name wins
    "attention": ("attention", "flex", "flash", "fmha"),
    "matrix products": ("mm", "linear", "convolution", "cutlass", "nvjet"),
    "copies": ("copy", "clone", "cat", "contiguous", "Memcpy", "index", "fill", "zero", "repeat"),
    "elementwise and norms": (
        "add", "mul", "sub", "div", "norm", "gelu", "silu", "pow", "mean", "rsqrt", "sum", "neg", "sqrt", "cos", "sin",
        "exp", "square", "elementwise", "reduce", "foreach", "complex", "lerp", "addc",
    ),
}  # fmt: skip


def kind(operator: str) -> str:
    """The class of an operator's name."""
    return next((name for name, parts in KINDS.items() if any(part in operator for part in parts)), "other operators")


def counted_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""

    def forward(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    operators = torch.ops.aten
    cpu = {  # torch counts the GPU's kernels only
        operators._scaled_dot_product_flash_attention_for_cpu: forward,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=cpu) as counter:
        run()
    return counter.get_total_flops()


def shares(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of the wall time by kind of operator."""
    activities = [ProfilerActivity.CUDA] if device.type == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=activities) as record:
        wall = measure.seconds(run, device)
    spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
    for event in record.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        spent[kind(event.key)] += own / 1e6
    spent["outside operators"] = wall - sum(spent.values())
    return {name: seconds / wall for name, seconds in spent.items()}


def least(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Least seconds of several runs after one that does not count."""
    run()
    return min(measure.seconds(run, device) for _ in range(repeats))


def rates(size: models.Size, num_tokens: int, past: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of matrix products and attention on `num_tokens` queries, GB/s of a copy (bytes read and written)."""
    heads, head_dim = size.config["num_attention_heads"], size.config["attention_head_dim"]
    width, ffn = heads * head_dim, size.config["ffn_dim"]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(device, dtype)

    found = {}
    for name, (rows, inner, columns) in {
        "square matmul, GFLOP/s": (2048, 2048, 2048),
        "projection matmul, GFLOP/s": (num_tokens, width, width),
        "feed-forward matmul, GFLOP/s": (num_tokens, width, ffn),
    }.items():
        run = partial(functional.linear, random(rows, inner), random(columns, inner))
        found[name] = 2e-9 * rows * inner * columns / least(run, 10, device)
    q = random(1, num_tokens, heads, head_dim).transpose(1, 2)
    k, v = (random(1, past + num_tokens, heads, head_dim).transpose(1, 2) for _ in range(2))
    flops = 4e-9 * num_tokens * (past + num_tokens) * width
    found["attention, GFLOP/s"] = flops / least(partial(functional.scaled_dot_product_attention, q, k, v), 5, device)
    large = torch.zeros(2**26, device=device)
    found["copy, GB/s"] = 2e-9 * 4 * large.numel() / least(partial(large.clone().copy_, large), 5, device)
    return found


def work(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What is profiled: the next chunk of a rollout with a full window, and a training step."""
    size, device, _ = measure.setting(args)
    transformer = causalize(models.build(size, device, dtype))
    text_BSD = models.text(size, args.clips, device, dtype)
    settings = RolloutSettings(args.chunk_latents, num_steps=args.steps, window_chunks=args.window_chunks)
    prefix = models.latents(size, args.clips, args.chunk_latents * (args.window_chunks + 1), device, dtype)
    endless = rollout(transformer, prefix, text_BSD, 10**9, settings, list(range(args.clips)))

    step = Step("ours", argparse.Namespace(**vars(args) | {"chunks": args.train_chunks, "checkpointing": False}))
    return {"rollout chunk": partial(next, endless), "training step": step}


def main() -> None:
    parser = measure.parser(__doc__, "mid")
    parser.add_argument("--clips", type=int, default=1, help="batch size")
    parser.add_argument("--chunk-latents", type=int, help="2 for mid, otherwise 3")
    parser.add_argument("--window-chunks", type=int, default=6)
    parser.add_argument("--train-chunks", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="Euler steps a chunk")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.chunk_latents = args.chunk_latents or (2 if args.size == "mid" else 3)
    size, device, dtype = measure.setting(args)

    num_tokens = size.tokens_per_frame * args.chunk_latents
    measured = rates(size, args.clips * num_tokens, args.window_chunks * num_tokens, device, dtype)
    measure.report("The machine", [measured], argparse.Namespace(json=None), device)
    best = max(rate for name, rate in measured.items() if "matmul" in name)

    rows = []
    for name, run in work(args, dtype).items():
        seconds = least(run, args.repeats, device)
        gflops = 1e-9 * counted_flops(run)
        rows.append(
            {
                "": name,
                "ms": 1e3 * seconds,
                "GFLOP": gflops,
                "GFLOP/s": gflops / seconds,
                "floor, ms": 1e3 * gflops / best,
                "times floor": seconds * best / gflops,
                **{f"{part}, %": 100 * share for part, share in shares(run, device).items()},
            }
        )
    title = (
        f"Floor, {args.size}, {args.dtype}: {args.clips} clips, chunks of {args.chunk_latents} latents, window "
        f"{args.window_chunks} chunks, {args.steps} steps and the clean pass; training on {args.train_chunks} chunks"
    )
    measure.report(title, rows, args, device, machine_rates=measured)


if __name__ == "__main__":
    main()
