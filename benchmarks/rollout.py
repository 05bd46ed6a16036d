"""Rollout speed against diffusers' own causal pipelines: same weights, noise and schedule, so the same outputs.

    python -m benchmarks.rollout --size mid
    python -m benchmarks.rollout --size tiny
    python -m benchmarks.rollout --size tiny --clips 32 --peers
    python -m benchmarks.rollout --size wan1.3b --device cuda --dtype bfloat16

Everything is generated from noise, with no guidance. Compared with our cached rollout, each right after a run of ours:
- the whole prefix in every forward, by our own masked forward: no cache;
- SkyReels-V2's diffusion-forcing pipeline, chunk by chunk: the whole clip, masked, in every forward;
- AnyFlowFAR's pipeline: a cache that is refilled from the whole prefix after each chunk. As it is its attention is not
  compiled, which it leaves to the user; `anyflow` compiles it; `anyflow-compressed` compresses older chunks as released
  (another function);
- SkyReels-V2's mode for long videos, which denoises overlapping windows whole (another function: no chunks, and a
  context of the overlap alone; beside it stands our rollout with a window of about as many latents).

`difference` is the largest over the clip, relative to our largest value; blank where the function is another.
`times ours` is a run's time over that of our run just before, the median of the rounds. A latent is four frames of
Wan's video. What the peers needed to take our weights and noise stands in `benchmarks/peers.py`.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from diffusers import ModelMixin, WanTransformer3DModel

from benchmarks import measure, models, peers
from model.causal import causal_forward, causalize
from model.masks import ChunkMask
from model.rollout import RolloutSettings, chunk_noise, rollout

PEERS = ("prefix", "skyreels", "anyflow", "anyflow-compressed", "anyflow-eager")

# SkyReels recommends windows of 97 frames that overlap by 17: 25 and 5 latents.
DEFAULTS: dict[str, dict[str, Any]] = {
    "tiny": {"chunks": 28, "chunk_latents": 3, "steps": 4, "window_latents": 25, "overlap_latents": 5, "peers": PEERS},
    "mid": {"chunks": 5, "chunk_latents": 2, "steps": 2, "window_latents": 8, "overlap_latents": 2, "peers": PEERS[:3]},
    "wan1.3b": {
        "chunks": 7,
        "chunk_latents": 3,
        "steps": 4,
        "window_latents": 25,
        "overlap_latents": 5,
        "peers": PEERS[:4],
    },
}

Run = Callable[[int], torch.Tensor]  # number of chunks -> latents [B, C, F, h, w]


def noise(size: models.Size, num_chunks: int, chunk_latents: int, clips: int, device: torch.device) -> torch.Tensor:
    """The noise [B, C, F, h, w] that rollouts of the seeds 0, 1, ... begin their chunks from."""
    shape = size.config["in_channels"], chunk_latents, size.latent_height, size.latent_width
    return torch.cat([chunk_noise(range(clips), index, shape) for index in range(num_chunks)], dim=2).to(device)


def ours(
    transformer: WanTransformer3DModel, size: models.Size, text_BSD: torch.Tensor, settings: RolloutSettings
) -> Run:
    """Our cached rollout."""
    B = len(text_BSD)
    empty = torch.zeros(B, size.config["in_channels"], 0, size.latent_height, size.latent_width)

    def run(num_chunks: int) -> torch.Tensor:
        return torch.cat(list(rollout(transformer, empty, text_BSD, num_chunks, settings, range(B))), dim=2)

    return run


@torch.no_grad()
def whole_prefix(
    transformer: WanTransformer3DModel, noise_BCFhw: torch.Tensor, text_BSD: torch.Tensor, settings: RolloutSettings
) -> torch.Tensor:
    """The rollout without a cache: clean past and current chunk run together, block-causally, in every step."""
    B, _, F = noise_BCFhw.shape[:3]
    clean = noise_BCFhw[:, :, :0]
    for start, stop in settings.chunks.runs(F):
        x, sigmas_BF = noise_BCFhw[:, :, start:stop], torch.zeros(B, stop, device=noise_BCFhw.device)
        for sigma, next_sigma in pairwise(settings.noise_levels()):
            sigmas_BF[:, start:] = sigma
            v = causal_forward(
                transformer,
                torch.cat([clean, x], dim=2).to(text_BSD.dtype),
                sigmas_BF,
                text_BSD,
                positions_F=range(stop),
                mask=ChunkMask(stop, settings.chunks),
            )
            x = x + (next_sigma - sigma) * v[:, :, start:].float()
        clean = torch.cat([clean, x], dim=2)
    return clean


@dataclass(frozen=True)
class Variant:
    """Something to time. `same`: its output is to be ours. `warm`: chunks to warm up with, None for all."""

    name: str
    run: Run
    same: bool = True
    warm: int | None = 2


def variants(args: argparse.Namespace) -> list[Variant]:
    """Ours first, then those of `PEERS` that are wanted."""
    size, device, dtype = measure.setting(args)
    settings = RolloutSettings(args.chunk_latents, num_steps=args.steps, shift=args.shift)
    windowed = replace(settings, window_chunks=max(1, args.window_latents // args.chunk_latents - 1))
    peers.whole_timesteps(settings.noise_levels())
    transformer = models.build(size, device, dtype)
    text_BSD = models.text(size, args.clips, device, dtype)
    transformers: list[ModelMixin] = [transformer]
    found = [Variant("ours", ours(transformer, size, text_BSD, settings))]

    def given(run: Callable[..., torch.Tensor], *more: Any) -> Run:
        return lambda num_chunks: run(noise(size, num_chunks, args.chunk_latents, args.clips, device), text_BSD, *more)

    if "prefix" in args.peers:
        found.append(Variant("whole prefix, no cache", given(partial(whole_prefix, transformer), settings)))
    if "skyreels" in args.peers:
        transformers.append(peers.skyreels_transformer(transformer, args.chunk_latents))
        sky = peers.SkyReels(transformers[-1], args.steps, args.shift)
        windows = given(lambda x, text: sky.windows(x.shape, text, args.window_latents, args.overlap_latents))
        found += [
            Variant("SkyReels-V2 DF, chunk by chunk", given(sky.chunk_by_chunk, args.chunk_latents)),
            Variant("SkyReels-V2 DF, overlapping windows", windows, same=False),
            Variant("ours, windowed", ours(transformer, size, text_BSD, windowed), same=False),
        ]
    if {"anyflow", "anyflow-eager", "anyflow-compressed"} & set(args.peers):
        transformers.append(peers.anyflow_transformer(transformer))
        eager, compiled = (peers.AnyFlow(transformers[-1], args.steps, args.shift, c) for c in (False, True))
        # compiled again for other numbers of chunks, hence warmed up with all of them
        anyflow = {
            "anyflow-eager": Variant("AnyFlowFAR as it is", given(eager.chunk_by_chunk, args.chunk_latents)),
            "anyflow": Variant(
                "AnyFlowFAR, attention compiled", given(compiled.chunk_by_chunk, args.chunk_latents), warm=None
            ),
            "anyflow-compressed": Variant(
                "AnyFlowFAR, compiled, old chunks compressed",
                given(compiled.chunk_by_chunk, args.chunk_latents, 3),
                same=False,
                warm=None,
            ),
        }
        found += [variant for key, variant in anyflow.items() if key in args.peers]
    causalize(transformer)
    if args.compile:
        for one in transformers:
            one.compile_repeated_blocks()
        found = [replace(variant, warm=None) for variant in found]
    return found


def main() -> None:
    parser = measure.parser(__doc__, "mid")
    parser.add_argument("--clips", type=int, default=1, help="batch size")
    parser.add_argument("--chunks", type=int, help="chunks of the rollout")
    parser.add_argument("--chunk-latents", type=int)
    parser.add_argument("--steps", type=int, help="Euler steps a chunk")
    parser.add_argument("--window-latents", type=int, help="SkyReels' window for long videos")
    parser.add_argument("--overlap-latents", type=int)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compile the blocks of every transformer")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="only these; for mid the slowest two are left out")
    args = parser.parse_args()
    for name, value in DEFAULTS[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)

    cached, *others = found = variants(args)
    device = torch.device(args.device)
    for variant in found:
        variant.run(args.chunks if variant.warm is None else min(variant.warm, args.chunks))

    times: dict[str, list[float]] = {variant.name: [] for variant in found}
    outputs: dict[str, torch.Tensor] = {}

    def timed(variant: Variant) -> None:
        def keep() -> None:
            outputs[variant.name] = variant.run(args.chunks)

        times[variant.name].append(measure.seconds(keep, device))

    beside: dict[str, list[float]] = {variant.name: [] for variant in found}
    for _ in range(args.repeats):
        for variant in others or [cached]:
            timed(cached)
            timed(variant)
            beside[variant.name].append(times[variant.name][-1] / times["ours"][-1])

    rows = []
    for variant in found:
        least, median = measure.least_and_median(times[variant.name])
        same = variant.same and variant is not cached
        rows.append(
            {
                "": variant.name,
                "ms/chunk": 1e3 * least / args.chunks,
                "median": 1e3 * median / args.chunks,
                "latents/s": args.clips * args.chunks * args.chunk_latents / least,
                "times ours": None if variant is cached else statistics.median(beside[variant.name]),
                "difference": measure.difference(outputs["ours"], outputs[variant.name]) if same else None,
            }
        )
    title = (
        f"Rollout, {args.size}, {args.dtype}: {args.clips} clips of {args.chunks} chunks of {args.chunk_latents} "
        f"latents, {args.steps} steps, {measure.SIZES[args.size].tokens_per_frame} tokens a latent"
        + (", blocks compiled" if args.compile else "")
    )
    measure.report(title, rows, args, device)


if __name__ == "__main__":
    main()
