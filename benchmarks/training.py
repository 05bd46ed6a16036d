"""Training step: time and peak memory of frames folded into the batch against noise levels per token.

    python -m benchmarks.training --size mid
    python -m benchmarks.training --size tiny --clips 8
    python -m benchmarks.training --size wan1.3b --device cuda --dtype bfloat16 --checkpointing

One step: forward, diffusion-forcing loss (a noise level per chunk), backward, AdamW; weights are float32, and another
--dtype is autocast to. The variants have the same weights and are fed the same clips, noise and levels:
- ours: `objectives.diffusion_forcing` on the causalised transformer, masked by chunks;
- SkyReels-V2: the same function with a timestep per token inside and a dense mask; its loss and gradient are compared;
- stock Wan with a timestep per token: no mask, so it learns another (bidirectional) function.

Speed: steps in turns, in one process; `times ours` compares least with least. Memory: each variant in a process of its
own, over ONE step after weights, gradients and optimiser state are there, so that the figure is what the step itself
needs; on a CPU the growth of the process's peak resident set, on a GPU the allocator's peak above what was held.
"""

import argparse
import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measure, models, peers
from model.causal import causalize
from model.noising import noise
from model.objectives import diffusion_forcing
from model.rng import torch_generator

VARIANTS = {
    "ours": "ours",
    "skyreels": "SkyReels-V2, per token, masked",
    "stock": "stock Wan, per token, unmasked",
}


class Step:
    """A transformer, a batch and an optimiser: calling it makes one training step."""

    def __init__(self, variant: str, args: argparse.Namespace):
        size, self.device, self.dtype = measure.setting(args)
        transformer = models.build(size, self.device, torch.float32)
        F = args.chunks * args.chunk_latents
        self.clean = models.latents(size, args.clips, F, self.device, torch.float32)
        self.text = models.text(size, args.clips, self.device, torch.float32)
        generator = torch_generator("benchmark", "training")
        self.eps = torch.randn(self.clean.shape, generator=generator).to(self.device)
        # SkyReels embeds whole timesteps
        sigmas_BK = torch.randint(1, 1000, (args.clips, args.chunks), generator=generator) / 1000
        self.sigmas_BK = sigmas_BK.to(self.device)
        if variant == "skyreels":
            transformer = peers.skyreels_transformer(transformer, args.chunk_latents)
        elif variant == "ours":
            causalize(transformer)
        if args.checkpointing:
            transformer.enable_gradient_checkpointing()
        self.transformer = transformer.train()
        self._loss_of: Callable[[], torch.Tensor] = getattr(self, f"_{variant}")
        self.tokens_per_frame = size.tokens_per_frame
        self.optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-6)

    def __call__(self) -> torch.Tensor:
        """The loss, [clips]."""
        self.optimizer.zero_grad(set_to_none=False)
        loss_B = self.loss()
        loss_B.mean().backward()
        self.optimizer.step()
        return loss_B.detach()

    def loss(self) -> torch.Tensor:
        """The loss, [clips], under autocast as `model.training` has it."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._loss_of()

    def settle(self) -> None:
        """Make gradients and optimiser state, as if a step had been made, but compute nothing."""
        for parameter in self.transformer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def _ours(self) -> torch.Tensor:
        return diffusion_forcing(self.transformer, self.clean, self.text, self.eps, self.sigmas_BK)

    def _skyreels(self) -> torch.Tensor:
        def velocity(noisy: torch.Tensor, timesteps_BF: torch.Tensor) -> torch.Tensor:
            return self.transformer(noisy, timesteps_BF, self.text, enable_diffusion_forcing=True, return_dict=False)[0]

        return self._diffusion_forcing(velocity)

    def _stock(self) -> torch.Tensor:
        def velocity(noisy: torch.Tensor, timesteps_BF: torch.Tensor) -> torch.Tensor:
            timesteps_BL = timesteps_BF.repeat_interleave(self.tokens_per_frame, dim=1)
            return self.transformer(noisy, timesteps_BL, self.text, return_dict=False)[0]

        return self._diffusion_forcing(velocity)

    def _diffusion_forcing(self, velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        sigmas_BF = self.sigmas_BK.repeat_interleave(self.clean.shape[2] // self.sigmas_BK.shape[1], dim=1)
        noisy = noise(self.clean, self.eps, sigmas_BF)
        v = velocity(noisy, (1000 * sigmas_BF).round().long())
        return (v.float() - (self.eps - self.clean)).square().mean(dim=(1, 2, 3, 4))


def gradient(step: Step) -> torch.Tensor:
    """Loss and all gradients of a step, flat."""
    loss_B = step.loss()
    step.transformer.zero_grad()
    loss_B.mean().backward()
    parts = {name: x.grad for name, x in step.transformer.named_parameters() if x.grad is not None}
    flat = torch.cat([parts[name].flatten().float() for name in sorted(parts)])
    step.transformer.zero_grad()
    return torch.cat([loss_B.detach().float(), flat])


def _resident() -> int:
    """Bytes this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def memory(variant: str, args: argparse.Namespace) -> tuple[int, int]:
    """Bytes that the first step adds at its peak, and bytes held before; call it in a process of its own."""
    step = Step(variant, args)
    step.settle()
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(step.device)
        before = torch.cuda.memory_allocated(step.device)
        step()
        return torch.cuda.max_memory_allocated(step.device) - before, before
    before = _resident()
    step()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak - before, before


def memory_apart(variant: str, args: argparse.Namespace) -> tuple[int, int]:
    """`memory` in a fresh process: the peak resident set of this one would remember the others.

    glibc gives tensors of more than 64 KiB back when they are freed, so that the peak is of what was needed at once.
    """
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": str(2**16)}):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(memory, (variant, args))


def main() -> None:
    parser = measure.parser(__doc__, "mid")
    parser.add_argument("--clips", type=int, default=1, help="batch size")
    parser.add_argument("--chunks", type=int, help="5 for mid, otherwise 7")
    parser.add_argument("--chunk-latents", type=int, help="2 for mid, otherwise 3")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in every variant")
    args = parser.parse_args()
    args.chunks = args.chunks or (5 if args.size == "mid" else 7)
    args.chunk_latents = args.chunk_latents or (2 if args.size == "mid" else 3)
    device = torch.device(args.device)

    held = {variant: memory_apart(variant, args) for variant in VARIANTS}
    steps = {variant: Step(variant, args) for variant in VARIANTS}
    gradients = {variant: gradient(steps[variant]) for variant in ("ours", "skyreels")}
    compared = {"skyreels": [measure.difference(*(x[part] for x in gradients.values())) for part in parts(args)]}
    steps["stock"]()  # the others are warm
    times = measure.in_turns(steps, args.repeats, device)

    rows: list[dict[str, Any]] = []
    for variant, name in VARIANTS.items():
        least, median = measure.least_and_median(times[variant])
        loss_difference, gradient_difference = compared.get(variant, (None, None))
        rows.append(
            {
                "": name,
                "ms/step": 1e3 * least,
                "median": 1e3 * median,
                "times ours": least / min(times["ours"]),
                "step's peak, MiB": held[variant][0] / 2**20,
                "held before, MiB": held[variant][1] / 2**20,
                "ours / this": held["ours"][0] / held[variant][0],
                "loss difference": loss_difference,
                "gradient difference": gradient_difference,
            }
        )
    title = (
        f"Training step, {args.size}, {args.dtype}: {args.clips} clips of {args.chunks} chunks of {args.chunk_latents} "
        f"latents, {measure.SIZES[args.size].tokens_per_frame} tokens a latent"
        + (", gradient checkpointing" if args.checkpointing else "")
    )
    measure.report(title, rows, args, device)


def parts(args: argparse.Namespace) -> tuple[slice, slice]:
    """Where `gradient` has losses and gradients."""
    return slice(0, args.clips), slice(args.clips, None)


if __name__ == "__main__":
    main()
