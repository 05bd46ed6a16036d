"""A long rollout over a sliding window: is a chunk late as cheap as a chunk early, and does memory stay flat?

    python -m benchmarks.long_rollout
    python -m benchmarks.long_rollout --compile
    python -m benchmarks.long_rollout --size mid --latents 60 --window-chunks 3

By default it runs to 10,002 latents, ten times past the end of stock Wan's rotary table. The last chunks and those just
after the window has filled are timed in turns: a rollout that has come far and one that has just begun, chunk by chunk
side by side, so that a machine that slows down slows both. Memory is the process's, in the long rollout, at both
places. `--compile` compiles the transformer's blocks (one kind of block: a graph counts once for all layers) and counts
the graphs made in all of it.
"""

import resource
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend

from benchmarks import measure, models
from model.causal import causalize
from model.rollout import RolloutSettings, rollout


class CountingBackend:
    """A torch.compile backend that counts the graphs it hands on."""

    def __init__(self, name: str):
        self.backend = lookup_backend(name)
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.graphs += 1
        return self.backend(graph, inputs)


def resident(device: torch.device) -> float:
    """MiB that this process holds now; on a GPU, that its tensors hold there."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = measure.parser(__doc__, "tiny")
    parser.add_argument("--latents", type=int, default=10_002, help="length of the rollout")
    parser.add_argument("--chunk-latents", type=int, default=3)
    parser.add_argument("--window-chunks", type=int, default=7)
    parser.add_argument("--sink-chunks", type=int, default=0)
    parser.add_argument("--relative-sink", action="store_true")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--stretch", type=int, help="chunks of each stretch; by default a tenth of all")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    args = parser.parse_args()
    size, device, dtype = measure.setting(args)
    num_chunks = -(-args.latents // args.chunk_latents)
    stretch = args.stretch or max(1, num_chunks // 10)
    settings = RolloutSettings(
        args.chunk_latents,
        num_steps=args.steps,
        window_chunks=args.window_chunks,
        sink_chunks=args.sink_chunks,
        relative_sink=args.relative_sink,
    )
    transformer = causalize(models.build(size, device, dtype))
    backend = CountingBackend(args.backend)
    if args.compile:
        transformer.compile_repeated_blocks(backend=backend)
    empty = torch.zeros(1, size.config["in_channels"], 0, size.latent_height, size.latent_width)
    text_BSD = models.text(size, 1, device, dtype)

    def chunks() -> Iterator[torch.Tensor]:
        return rollout(transformer, empty, text_BSD, num_chunks, settings, [0])

    # The window's last chunk to enter it has to leave it again before all is as it stays.
    settled = min(args.sink_chunks + 2 * args.window_chunks + 1, num_chunks - stretch)
    late, early = chunks(), chunks()
    held = [resident(device) for _ in islice(late, num_chunks - stretch)]
    for _ in islice(early, settled):
        pass
    times = measure.in_turns({"early": partial(next, early), "late": partial(next, late)}, stretch, device)
    medians = {name: measure.least_and_median(values)[1] for name, values in times.items()}
    rows = [
        {
            "": name,
            "chunks": f"{start}..{start + stretch - 1}",
            "ms/chunk, median": 1e3 * medians[name],
            "least": 1e3 * min(times[name]),
            "times early": medians[name] / medians["early"],
            "memory, MiB": memory,
        }
        for name, start, memory in (
            ("early", settled, held[settled - 1]),
            ("late", num_chunks - stretch, held[-1]),
        )
    ]
    title = (
        f"Long rollout, {args.size}, {args.dtype}: {num_chunks * args.chunk_latents} latents in chunks of "
        f"{args.chunk_latents}, window {args.window_chunks} chunks, sink {args.sink_chunks}, {args.steps} steps"
        + (f"; blocks compiled, {backend.graphs} graphs" if args.compile else "")
    )
    measure.report(title, rows, args, device, graphs=backend.graphs if args.compile else None)


if __name__ == "__main__":
    main()
