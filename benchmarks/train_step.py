"""Speed of the toy-sized transformer: milliseconds a training step and a rollout chunk.

    python benchmarks/train_step.py [--threads 2] [--steps 20] [--device cpu]

Width 128, 4 layers, 16 tokens per latent frame; training on 8 clips of 14 latents with 32 text tokens, rollouts of 8
Euler steps on chunks of 2 latents with a window of 6 chunks. The least of several runs is the number to compare; the
median tells how busy the machine was. On cores shared with other work take --threads 1 (or OMP_WAIT_POLICY=passive):
two threads wait for each other there at every operation.
"""

import argparse
import statistics
import time

import torch
from diffusers import WanTransformer3DModel

from model.causal import causalize
from model.rng import torch_generator
from model.rollout import RolloutSettings, rollout
from model.training import Batch, TrainSettings, train


def toy_transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=8,
        out_channels=8,
        text_dim=64,
        freq_dim=64,
        ffn_dim=512,
        num_layers=4,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch_generator("benchmark")
    latents, text = torch.randn(8, 8, 14, 8, 8, generator=generator), torch.randn(8, 32, 64, generator=generator)
    transformer = causalize(toy_transformer())

    batch = Batch([f"clip-{b}" for b in range(8)], latents, text, [0, 4] * 4)
    settings = TrainSettings(
        num_steps=args.steps + 3, chunk_latents=2, window_chunks=6, log_every=1, device=args.device
    )
    seconds = [float(m["seconds"] or 0) for m in train(transformer, lambda _: batch, settings)][3:]
    print(
        f"training step, 8 clips: least {min(seconds) * 1e3:.0f} ms, median {statistics.median(seconds) * 1e3:.0f} ms"
    )

    for size in (1, 8, 32):
        prefix, texts = latents[:1, :, :2].repeat(size, 1, 1, 1, 1), text[:1].repeat(size, 1, 1)
        times, began = [], time.perf_counter()
        sampler = RolloutSettings(chunk_latents=2, window_chunks=6)
        for chunk in rollout(transformer, prefix, texts, 12, sampler, list(range(size))):
            chunk.sum().item()  # wait for the device
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
        least, median = min(times[6:]) * 1e3, statistics.median(times[6:]) * 1e3  # once the window is full
        print(
            f"rollout chunk, batch {size:2}: least {least:.0f} ms, median {median:.0f} ms ({least / size:.1f} a clip)"
        )


if __name__ == "__main__":
    main()
