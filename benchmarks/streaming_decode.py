"""Latents to frames: diffusers' decode of a whole clip against the streaming one, milliseconds and peak memory.

    python benchmarks/streaming_decode.py [--threads 2] [--latents 21 63 126] [--chunk 3] [--repeats 2]

A small random Wan VAE that makes 4 frames of a latent, 64x64 pixels. `whole` is `vae.decode` and the conversion to
bytes; `streamed` takes chunks of latents and lets go of each piece of frames at once, as a rollout that writes a video
does. Times are taken in turns in one process a length, least (median) of the repeats. Memory is the peak of a process
that does nothing else, less what it held before decoding, so it has the working memory of one latent in it but not
weights and libraries; glibc is told to hand back what is freed, for the peak would else be that of its free lists. The
last column is the largest difference of the pixels, in [-1, 1]; with several threads the 1x1x1 convolution that
diffusers takes over the whole clip rounds differently for long clips. A minute or two on idle cores.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from model.rng import torch_generator
from model.streaming import StreamingDecoder, latent_statistics

HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: this and larger straight from the kernel, and back to it


def small_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        scale_factor_spatial=4,
    )  # fmt: skip
    return vae.eval().requires_grad_(False)


def whole(vae: AutoencoderKLWan, latents: torch.Tensor, _: int) -> None:
    mean, std = latent_statistics(vae, latents)
    pixels = vae.decode(latents * std + mean).sample
    ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().numpy()


def streamed(vae: AutoencoderKLWan, latents: torch.Tensor, chunk: int) -> None:
    decoder = StreamingDecoder(vae)
    for piece in latents.split(chunk, 2):
        decoder.decode(piece)


WAYS = {"whole": whole, "streamed": streamed}


def prepared(num_latents: int, threads: int) -> tuple[AutoencoderKLWan, torch.Tensor]:
    torch.set_num_threads(threads)
    return small_vae(), torch.randn(1, 16, num_latents, 16, 16, generator=torch_generator("benchmark"))


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def memory(way: str, num_latents: int, chunk: int, threads: int) -> float:
    """MiB that decoding adds to the process."""
    vae, latents = prepared(num_latents, threads)
    before = peak_mib()
    WAYS[way](vae, latents, chunk)
    return peak_mib() - before


@torch.no_grad()
def times(num_latents: int, chunk: int, threads: int, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each run of each way, and the largest difference of the pixels."""
    vae, latents = prepared(num_latents, threads)
    mean, std = latent_statistics(vae, latents)
    pixels = torch.cat(list(StreamingDecoder(vae).pixels(latents)), 2)  # warms up, too
    differ = (pixels - vae.decode(latents * std + mean).sample).abs().max().item()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, run in WAYS.items():
            began = time.perf_counter()
            run(vae, latents, chunk)
            found[way].append((time.perf_counter() - began) * 1e3)
    return found, differ


def apart(run: Callable[..., Any], *arguments: object, **environment: str) -> Any:
    """`run` in a process of its own."""
    os.environ.update(environment)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(run, arguments)
    finally:
        for name in environment:
            del os.environ[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--latents", type=int, nargs="+", default=[21, 63, 126])
    parser.add_argument("--chunk", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    columns = ("latents", "frames", "whole ms", "streamed ms", "ratio", "whole MiB", "streamed MiB", "ratio", "differ")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for n in args.latents:
        found, differ = apart(times, n, args.chunk, args.threads, args.repeats)
        ms = {way: f"{min(values):,.0f} ({statistics.median(values):,.0f})" for way, values in found.items()}
        ratio = min(found["whole"]) / min(found["streamed"])
        mib = {way: apart(memory, way, n, args.chunk, args.threads, **HAND_BACK) for way in WAYS}
        print(
            f"| {n} | {4 * n - 3} | {ms['whole']} | {ms['streamed']} | {ratio:.2f} "
            f"| {mib['whole']:.0f} | {mib['streamed']:.0f} | {mib['whole'] / mib['streamed']:.1f} | {differ:.1g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
