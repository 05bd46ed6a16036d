"""The training loop: AdamW, warm-up and cosine, gradient clipping, EMA, checkpoints that resume to the bit.

Notable:
- Step n is a function of (weights after n-1 steps, batch n, names): noise comes from generators named by
  (seed, step), the learning rate from the step number. So a run killed anywhere and started again ends in
  the very weights of an uninterrupted one (same machine, same number of threads).
- There is one loss, `objectives.bagger`; a seed row is a row without a prefix.
- The transformer that comes back holds the EMA weights.

Shapes: B batch, F latent frames, C channels, h w latent size, S text tokens, D width.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from model import checkpoint
from model.causal import causalize
from model.masks import Context
from model.objectives import Density, bagger, sample_sigmas
from model.rng import torch_generator

Metrics = dict[str, float | int | None]


class TrainingError(ValueError):
    """Training cannot go on or cannot resume; the message names the step and what to do."""


@dataclass(frozen=True)
class Batch:
    """Rows of one step: latents [B, C, F, h, w], text embeddings [B, S, D], prefix chunks per row (0 = seed row)."""

    clip_ids: Sequence[str]
    latents_BCFhw: torch.Tensor
    text_BSD: torch.Tensor
    prefix_chunks: Sequence[int]

    def __post_init__(self) -> None:
        sizes = [len(self.clip_ids), len(self.latents_BCFhw), len(self.text_BSD), len(self.prefix_chunks)]
        if len(set(sizes)) != 1 or sizes[0] == 0:
            raise ValueError(f"clip_ids, latents, text and prefix_chunks must be equally many rows, got {sizes}")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the weights, and (last five) how the run is carried out.

    `text_dropout` is the share of rows whose text becomes `empty_text_SD`. `ema_decay` is reached gradually (see
    `ema_decay_at`). `precision` bfloat16 means autocast over float32 weights; on CPU it is slower, not faster.
    """

    num_steps: int
    seed: int = 0
    chunk_latents: int = 3
    window_chunks: int | None = None
    sink_chunks: int = 0
    routed_chunks: int | None = None
    shift: float = 3.0
    density: Density = "uniform"
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_learning_rate: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    ema_decay: float = 0.995
    text_dropout: float = 0.0
    precision: str = "float32"
    device: str = "cpu"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("num_steps", self.num_steps, 1, math.inf),
            ("chunk_latents", self.chunk_latents, 1, math.inf),
            ("warmup_steps", self.warmup_steps, 0, math.inf),
            ("ema_decay", self.ema_decay, 0, 1),
            ("text_dropout", self.text_dropout, 0, 1),
            ("checkpoint_every", self.checkpoint_every, 1, math.inf),
            ("log_every", self.log_every, 1, math.inf),
        ):
            if not low <= value <= high:
                raise ValueError(f"training setting {name} must be in {low}..{high}, not {value}")
        for name, number in (("learning_rate", self.learning_rate), ("shift", self.shift), ("clip", self.grad_clip)):
            if not number > 0:
                raise ValueError(f"training setting {name} must be above 0, not {number}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"training setting precision must be float32 or bfloat16, not {self.precision!r}")
        _ = self.context  # which checks the rest

    @property
    def context(self) -> Context:
        """What a chunk attends to of its past."""
        return Context(self.window_chunks, self.sink_chunks, self.routed_chunks)

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the weights, JSON-able: a checkpoint of another recipe is not resumed."""
        carried = ("device", "gradient_checkpointing", "checkpoint_every", "log_every")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in carried}


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Rate of step 0..num_steps-1: a linear warm-up, then half a cosine from the peak to the final rate."""
    peak, final, warmup = settings.learning_rate, settings.final_learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.num_steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay_at(step: int, ema_decay: float) -> float:
    """Decay of step 0, 1, …: min(ema_decay, (1 + step) / (10 + step)), so that a short run forgets its start."""
    return min(ema_decay, (1 + step) / (10 + step))


def step_loss(
    transformer: WanTransformer3DModel,
    batch: Batch,
    step: int,
    settings: TrainSettings,
    empty_text_SD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of each row [B] of one step; its randomness is named by (settings.seed, step). Drawn on the CPU."""
    device = next(transformer.parameters()).device
    clean, text = batch.latents_BCFhw.float(), batch.text_BSD.float()
    B, _, F = clean.shape[:3]
    if F % settings.chunk_latents:
        raise TrainingError(f"clips have {F} latent frames, not a multiple of chunk_latents={settings.chunk_latents}")
    generator = torch_generator("train", settings.seed, step)
    sigmas_BK = sample_sigmas(B, F // settings.chunk_latents, generator, settings.density, settings.shift)
    eps = torch.randn(clean.shape, generator=generator)
    if settings.text_dropout:
        if empty_text_SD is None:
            raise TrainingError("text_dropout needs the embedding of the empty prompt (empty_text_SD)")
        drop_B = torch.rand(B, generator=generator) < settings.text_dropout
        text = torch.where(drop_B[:, None, None].to(text.device), empty_text_SD.float().to(text.device), text)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        return bagger(
            transformer,
            clean.to(device),
            text.to(device),
            eps.to(device),
            sigmas_BK.to(device),
            torch.tensor(batch.prefix_chunks),
            context=settings.context,
        )


def train(
    transformer: WanTransformer3DModel,
    batches: Callable[[int], Batch],
    settings: TrainSettings,
    checkpoint_dir: Path | None = None,
    progress: Callable[[Metrics], None] | None = None,
    *,
    empty_text_SD: torch.Tensor | None = None,
) -> list[Metrics]:
    """Train in place for `num_steps` steps; `batches(step)` gives the batch of step 0, 1, ….

    The transformer is causalized if it is not, and holds the EMA weights, in eval mode, on return. With a
    `checkpoint_dir` the run resumes from the newest readable checkpoint there. Returns (and tells `progress`) every
    `log_every`-th step's metrics: step (counted from 1), loss, loss_seed, loss_corrective (None without such rows),
    grad_norm, learning_rate, seconds. Raises TrainingError on a non-finite loss or gradient, naming the batch's clips,
    and on a checkpoint of another recipe.
    """
    causalize(transformer).to(settings.device).train()
    transformer.gradient_checkpointing = settings.gradient_checkpointing
    weights = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    params = list(weights.values())
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(
        params, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    start, metrics = _resume(checkpoint_dir, settings, weights, ema, optimizer)

    for step in range(start, settings.num_steps):
        began = time.perf_counter()
        batch = batches(step)
        rows_B = step_loss(transformer, batch, step, settings, empty_text_SD)
        rows_B.mean().backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(params, settings.grad_clip, foreach=True).item()
        losses = rows_B.detach().tolist()
        if not math.isfinite(grad_norm) or not all(map(math.isfinite, losses)):
            # the weights are still those of the last step
            raise TrainingError(
                f"step {step + 1}: loss {sum(losses) / len(losses)}, gradient norm {grad_norm}; "
                f"clips of this batch: {', '.join(batch.clip_ids)}"
            )
        rate = learning_rate_at(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - ema_decay_at(step, settings.ema_decay))
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.num_steps:
            logged = _metrics(step + 1, batch, losses, grad_norm, rate, time.perf_counter() - began)
            metrics.append(logged)
            if progress:
                progress(logged)
        if checkpoint_dir and ((step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.num_steps):
            checkpoint.save(checkpoint_dir, _snapshot(step + 1, settings, weights, ema, optimizer, metrics))

    with torch.no_grad():
        torch._foreach_copy_(params, ema)
    transformer.gradient_checkpointing = False
    transformer.eval()
    return metrics


def _metrics(step: int, batch: Batch, losses: list[float], grad_norm: float, rate: float, seconds: float) -> Metrics:
    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    kinds = [bool(prefix) for prefix in batch.prefix_chunks]
    return {
        "step": step,
        "loss": mean(losses),
        "loss_seed": mean([loss for loss, corrective in zip(losses, kinds, strict=True) if not corrective]),
        "loss_corrective": mean([loss for loss, corrective in zip(losses, kinds, strict=True) if corrective]),
        "grad_norm": grad_norm,
        "learning_rate": rate,
        "seconds": seconds,
    }


def _snapshot(
    step: int,
    settings: TrainSettings,
    weights: dict[str, torch.nn.Parameter],
    ema: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    metrics: list[Metrics],
) -> checkpoint.Checkpoint:
    tensors: dict[str, torch.Tensor] = {}
    for (name, param), average in zip(weights.items(), ema, strict=True):
        tensors[f"model/{name}"] = param
        tensors[f"ema/{name}"] = average
        for key, value in optimizer.state[param].items():  # step, exp_avg, exp_avg_sq
            tensors[f"optimizer.{key}/{name}"] = value
    return checkpoint.Checkpoint(step, tensors, {"recipe": settings.recipe(), "metrics": metrics})


def _resume(
    folder: Path | None,
    settings: TrainSettings,
    weights: dict[str, torch.nn.Parameter],
    ema: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[Metrics]]:
    """Load the newest checkpoint into the run; returns its step count and metrics (0 and none without one)."""
    found = checkpoint.latest(folder) if folder else None
    if found is None:
        return 0, []
    theirs, ours = found.record["recipe"], settings.recipe()
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        seen = ", ".join(f"{key}: {theirs.get(key)} there, {ours.get(key)} now" for key in differing)
        raise TrainingError(f"{folder} holds a run with other settings ({seen}); to start afresh: rm -r {folder}")
    names = {name.partition("/")[2] for name in found.tensors}
    if names != weights.keys():
        raise TrainingError(f"{folder} holds a run of another transformer; to start afresh: rm -r {folder}")
    with torch.no_grad():
        for (name, param), average in zip(weights.items(), ema, strict=True):
            param.copy_(found.tensors[f"model/{name}"])
            average.copy_(found.tensors[f"ema/{name}"])
            state = {key: found.tensors[f"optimizer.{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            # clones: loaded tensors are views into one mapped file
            optimizer.state[param] = {key: value.clone().to(param.device) for key, value in state.items()}
    return found.step, found.record["metrics"]
