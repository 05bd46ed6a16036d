"""Rollout speed against diffusers' own causal pipelines: same weights, noise and schedule, so the same outputs.

    python -m benchmarks.rollout --size mid
    python -m benchmarks.rollout --size tiny
    python -m benchmarks.rollout --size tiny --clips 32 --peers
    python -m benchmarks.rollout --size wan1.3b --device cuda --dtype bfloat16

Everything is generated from noise, with no guidance. Compared with our cached rollout, each right after a run of ours:
- the whole prefix in every forward, by our own masked forward: no cache;
- SkyReels-V2's diffusion-forcing pipeline, chunk by chunk: the whole clip, masked, in every forward;
- AnyFlowFAR's pipeline: a cache that is refilled from the whole prefix after each chunk. Once as it is, once with flex
  attention compiled, which it leaves to the user, and once with older chunks compressed (another function);
- SkyReels-V2's mode for long videos, which denoises overlapping windows whole (another function: no chunks, and a
  context of the overlap alone; beside it stands our rollout with a window of about as many latents).

`difference` is the largest over the clip, relative to our largest value; blank where the function is another.
`times ours` compares least with least. What the peers needed to take our weights and noise stands in
`benchmarks/peers.py`.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from benchmarks import measure, models, peers
from model.causal import causal_forward, causalize
from model.masks import ChunkMask
from model.rollout import RolloutSettings, chunk_noise, rollout

# By size: chunks, latents per chunk, Euler steps; latents per window and overlap of SkyReels' mode for long videos.
# 25 and 5 latents are its recommended 97 and 17 frames.
DEFAULTS = {"tiny": (28, 3, 4, 25, 5), "mid": (5, 2, 2, 8, 2), "wan1.3b": (7, 3, 4, 25, 5)}

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


def variants(args: argparse.Namespace) -> tuple[Run, Run, dict[str, Run], dict[str, Run]]:
    """Ours, ours with a window, peers of the same function, and peers of another."""
    size, device, dtype = measure.setting(args)
    settings = RolloutSettings(args.chunk_latents, num_steps=args.steps, shift=args.shift)
    windowed = RolloutSettings(
        args.chunk_latents,
        num_steps=args.steps,
        shift=args.shift,
        window_chunks=max(1, args.window_latents // args.chunk_latents - 1),
    )
    peers.whole_timesteps(settings.noise_levels())
    transformer = models.build(size, device, dtype)
    text_BSD = models.text(size, args.clips, device, dtype)
    wanted = set(args.peers)
    same: dict[str, Run] = {}
    other: dict[str, Run] = {}

    def given(run: Callable[..., torch.Tensor], *more: Any) -> Run:
        return lambda num_chunks: run(noise(size, num_chunks, args.chunk_latents, args.clips, device), text_BSD, *more)

    if "prefix" in wanted:
        same["whole prefix, no cache"] = given(lambda x, text: whole_prefix(transformer, x, text, settings))
    if "skyreels" in wanted:
        sky = peers.SkyReels(peers.skyreels_transformer(transformer, args.chunk_latents), args.steps, args.shift)
        same["SkyReels-V2 DF, chunk by chunk"] = given(sky.chunk_by_chunk, args.chunk_latents)
        other["SkyReels-V2 DF, overlapping windows"] = given(
            lambda x, text: sky.windows(x.shape, text, args.window_latents, args.overlap_latents)
        )
    if "anyflow" in wanted:
        far = peers.anyflow_transformer(transformer)
        eager, compiled = (peers.AnyFlow(far, args.steps, args.shift, compiled) for compiled in (False, True))
        same["AnyFlowFAR"] = given(eager.chunk_by_chunk, args.chunk_latents)
        same["AnyFlowFAR, flex compiled"] = given(compiled.chunk_by_chunk, args.chunk_latents)
        other["AnyFlowFAR, compiled, old chunks compressed"] = given(compiled.chunk_by_chunk, args.chunk_latents, 3)
    causalize(transformer)
    return ours(transformer, size, text_BSD, settings), ours(transformer, size, text_BSD, windowed), same, other


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
    parser.add_argument("--peers", nargs="*", default=["prefix", "skyreels", "anyflow"], help="only these")
    args = parser.parse_args()
    names = "chunks", "chunk_latents", "steps", "window_latents", "overlap_latents"
    for name, value in zip(names, DEFAULTS[args.size], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)

    cached, windowed, same, other = variants(args)
    device = torch.device(args.device)
    for name, run in {"ours": cached, "ours, windowed": windowed, **same, **other}.items():
        run(args.chunks if "compiled" in name else min(2, args.chunks))  # compiled again for other shapes

    times: dict[str, list[float]] = {"ours": []}
    outputs: dict[str, torch.Tensor] = {}

    def timed(name: str, run: Run) -> None:
        def keep() -> None:
            outputs[name] = run(args.chunks)

        times.setdefault(name, []).append(measure.seconds(keep, device))

    for _ in range(args.repeats):
        for name, run in {"ours, windowed": windowed, **same, **other}.items():
            timed("ours", cached)
            timed(name, run)

    rows = []
    for name in ("ours", *same, "ours, windowed", *other):
        least, median = measure.least_and_median(times[name])
        rows.append(
            {
                "": name,
                "ms/chunk": 1e3 * least / args.chunks,
                "median": 1e3 * median / args.chunks,
                "latents/s": args.clips * args.chunks * args.chunk_latents / least,
                "times ours": least / min(times["ours"]),
                "difference": measure.difference(outputs["ours"], outputs[name]) if name in same else None,
            }
        )
    title = (
        f"Rollout, {args.size}, {args.dtype}: {args.clips} clips of {args.chunks} chunks of {args.chunk_latents} "
        f"latents, {args.steps} steps, {measure.SIZES[args.size].tokens_per_frame} tokens a latent"
    )
    measure.report(title, rows, args, device)


if __name__ == "__main__":
    main()
