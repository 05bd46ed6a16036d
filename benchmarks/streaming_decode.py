"""Latents to frames: diffusers' decode of a whole clip against the streaming one, milliseconds and peak memory.

    python benchmarks/streaming_decode.py [--threads 2] [--latents 21 63 126] [--chunk 3] [--repeats 2]

A small random Wan VAE that makes 4 frames of a latent, 64x64 pixels. `whole` is `vae.decode` and the conversion to
bytes; `streamed` takes chunks of latents and lets go of each piece of frames at once, as a rollout that writes a video
does. Every measurement is a process of its own (spawned), one after the other; the least of the repeats counts. Memory
is the peak of the process less what it held before decoding, so it has the working memory of one latent in it but not
weights and libraries; it is measured apart from time, with glibc told to hand back what is freed, for the peak would
else be that of its free lists. The last column is the largest difference of the pixels, in [-1, 1]; with several
threads the 1x1x1 convolution that diffusers takes over the whole clip rounds differently for long clips.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time

import torch
from diffusers import AutoencoderKLWan

from model.rng import torch_generator
from model.streaming import StreamingDecoder, latent_statistics

HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: this and larger straight from the kernel, and back to it


def small_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1], num_res_blocks=1,
                            temperal_downsample=[True, True], scale_factor_spatial=4).eval()  # fmt: skip


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def measure(way: str, num_latents: int, chunk: int, threads: int) -> tuple[float, float, float]:
    """Milliseconds, MiB on top of what stood before, and for `whole` the largest difference to the streamed pixels."""
    torch.set_num_threads(threads)
    vae = small_vae()
    latents = torch.randn(1, 16, num_latents, 16, 16, generator=torch_generator("benchmark"))
    mean, std = latent_statistics(vae, latents)
    decoder = StreamingDecoder(vae)
    before = peak_mib()
    decoder.decode(latents[:, :, :2])  # what PyTorch sets up once is memory, but not time
    decoder.reset()
    began = time.perf_counter()
    if way == "streamed":
        for piece in latents.split(chunk, 2):
            decoder.decode(piece)
        return (time.perf_counter() - began) * 1e3, peak_mib() - before, 0.0
    pixels = vae.decode(latents * std + mean).sample
    ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().numpy()
    ms, mib = (time.perf_counter() - began) * 1e3, peak_mib() - before
    return ms, mib, (torch.cat(list(decoder.pixels(latents)), 2) - pixels).abs().max().item()


def apart(*arguments: object, **environment: str) -> tuple[float, float, float]:
    """`measure` in a process of its own."""
    os.environ.update(environment)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure, arguments)
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
        ms, mib, differ = {}, {}, 0.0
        for way in ("whole", "streamed"):
            found = [apart(way, n, args.chunk, args.threads) for _ in range(args.repeats)]
            ms[way] = min(times for times, _, _ in found)
            differ = max(differ, *(difference for _, _, difference in found))
            mib[way] = apart(way, n, args.chunk, args.threads, **HAND_BACK)[1]
        whole, streamed = ms["whole"], ms["streamed"]
        print(
            f"| {n} | {4 * n - 3} | {whole:,.0f} | {streamed:,.0f} | {whole / streamed:.2f} "
            f"| {mib['whole']:.0f} | {mib['streamed']:.0f} | {mib['whole'] / mib['streamed']:.1f} | {differ:.1g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
