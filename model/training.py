"""The training loop: AdamW, warm-up and cosine, gradient clipping, EMA, checkpoints that resume to the bit.

Notable:
- Step n is a function of (weights after n-1 steps, batch n, names): the noise of a row comes from generators named by
  (seed, step, row), the learning rate from the step number. So a run killed anywhere and started again ends in
  the very weights of an uninterrupted one (same machine, threads and processes), and one that goes on with another
  number of processes differs in rounding alone.
- There is one loop for all objectives (`model.objectives`) and for one process or many (`model.parallel`).
- The transformer that comes back holds the EMA weights.

Shapes: B batch, F latent frames, C channels, h w latent size, S text tokens, D width.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from model import checkpoint, parallel
from model.causal import causalize
from model.objectives import Objective
from model.parallel import ALONE, Sharding, Team
from model.rng import torch_generator

Metrics = dict[str, float | int | None]


class TrainingError(ValueError):
    """Training cannot go on or cannot resume; the message names the step and what to do."""


class TrainingStopped(Exception):
    """Training was asked to stop and has saved a checkpoint; the message says how far it came."""


@dataclass(frozen=True)
class Batch:
    """A process's rows of one step: latents [B, C, F, h, w], text embeddings [B, S, D], prefix chunks per row.

    `prefix_chunks`: 0 for a seed row. `rows`: the rows' numbers in the whole batch of the step; None: 0, 1, ….
    """

    clip_ids: Sequence[str]
    latents_BCFhw: torch.Tensor
    text_BSD: torch.Tensor
    prefix_chunks: Sequence[int]
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", range(len(self.clip_ids)))
        fields = (self.clip_ids, self.latents_BCFhw, self.text_BSD, self.prefix_chunks, self.rows)
        sizes = [len(one) for one in fields if one is not None]
        if len(set(sizes)) != 1 or sizes[0] == 0:
            raise ValueError(f"clip_ids, latents, text, prefix_chunks and rows must be equally many, got {sizes}")

    def __len__(self) -> int:
        return len(self.clip_ids)

    def parts(self, size: int | None) -> Iterator["Batch"]:
        """In parts of at most `size` rows; None: as one."""
        size = size or len(self)
        for start in range(0, len(self), size):
            cut = slice(start, start + size)
            yield Batch(
                self.clip_ids[cut], self.latents_BCFhw[cut], self.text_BSD[cut], self.prefix_chunks[cut],
                self.rows[cut] if self.rows is not None else None,
            )  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the weights, and (from `device` on) how the run is carried out.

    `text_dropout` is the share of rows whose text becomes `empty_text_SD`. `ema_decay` is reached gradually (see
    `ema_decay_at`). `precision` bfloat16 means autocast over float32 weights; on a CPU it is slower, not faster.
    `lora_rank` is part of the recipe alone: who has given the transformer adapters (`model.lora`) says so here.
    `micro_batch`: rows of a forward, fewer for less memory; None: all rows of the process at once.
    """

    num_steps: int
    seed: int = 0
    objective: Objective = field(default_factory=Objective)
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_learning_rate: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    ema_decay: float = 0.995
    text_dropout: float = 0.0
    precision: str = "float32"
    lora_rank: int | None = None
    device: str = "cpu"
    gradient_checkpointing: bool = False
    micro_batch: int | None = None
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    sample_every: int | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("num_steps", self.num_steps, 1, math.inf),
            ("warmup_steps", self.warmup_steps, 0, math.inf),
            ("ema_decay", self.ema_decay, 0, 1),
            ("text_dropout", self.text_dropout, 0, 1),
            ("micro_batch", self.micro_batch or 1, 1, math.inf),
            ("checkpoint_every", self.checkpoint_every, 1, math.inf),
            ("keep_checkpoints", self.keep_checkpoints, 1, math.inf),
            ("log_every", self.log_every, 1, math.inf),
            ("sample_every", self.sample_every or 1, 1, math.inf),
        ):
            if not low <= value <= high:
                raise ValueError(f"training setting {name} must be in {low}..{high}, not {value}")
        for name, number in (("learning_rate", self.learning_rate), ("grad_clip", self.grad_clip)):
            if not number > 0:
                raise ValueError(f"training setting {name} must be above 0, not {number}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"training setting precision must be float32 or bfloat16, not {self.precision!r}")

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the weights, JSON-able: a checkpoint of another recipe is not resumed."""
        carried = ("device", "gradient_checkpointing", "micro_batch", "checkpoint_every", "keep_checkpoints",
                   "log_every", "sample_every")  # fmt: skip
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
    """Loss of each row [B] of one step; its randomness is named by (settings.seed, step, row). Drawn on the CPU."""
    device = torch.device(settings.device)
    clean, text = batch.latents_BCFhw.to(device).float(), batch.text_BSD.to(device).float()

    def generators(use: str) -> list[torch.Generator]:
        return [torch_generator("train", settings.seed, step, row, use) for row in batch.rows or ()]

    if settings.text_dropout:
        if empty_text_SD is None:
            raise TrainingError("text_dropout needs the embedding of the empty prompt (empty_text_SD)")
        draws = [torch.rand((), generator=generator).item() for generator in generators("text")]
        dropped_B = torch.tensor([draw < settings.text_dropout for draw in draws], device=device)
        text = torch.where(dropped_B[:, None, None], empty_text_SD.to(device).float(), text)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        return settings.objective.rows(
            transformer, clean, text, torch.tensor(batch.prefix_chunks), generators, step / settings.num_steps
        )


def train(
    transformer: WanTransformer3DModel,
    batches: Callable[[int], Iterable[Batch]],
    settings: TrainSettings,
    checkpoint_dir: Path | None = None,
    progress: Callable[[list[Metrics]], None] | None = None,
    *,
    empty_text_SD: torch.Tensor | None = None,
    team: Team = ALONE,
    sharding: Sharding = "replicate",
    stop: Callable[[], bool] = lambda: False,
    sample: Callable[[int], None] | None = None,
) -> list[Metrics]:
    """Train in place for `num_steps` steps; `batches(k)` iterates over this process's rows of steps k, k+1, ….

    The transformer is causalized if it is not, spread over the team, and holds the EMA weights, in eval mode, on
    return. With a `checkpoint_dir` the run resumes from the newest readable checkpoint there. Returns, and shows
    `progress` as they grow, every `log_every`-th step's metrics: step (counted from 1), loss, loss_seed,
    loss_corrective (None without such rows), grad_norm, learning_rate, seconds, and wait, the seconds of these in which
    the batch was not there yet. `sample(step)` is called every `sample_every` steps, with the EMA weights in place.

    When `stop()` is true in any process, a checkpoint is saved and TrainingStopped raised. Raises TrainingError on a
    non-finite loss or gradient, naming the batch's clips, and on a checkpoint of another recipe.
    """
    causalize(transformer).to(settings.device).train()
    transformer.gradient_checkpointing = settings.gradient_checkpointing
    parallel.spread(transformer, team, sharding)
    weights = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    params = list(weights.values())
    ema = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(
        params, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    start, metrics = _resume(checkpoint_dir, settings, weights, ema, optimizer)

    def save(step: int) -> None:
        if checkpoint_dir:
            snapshot = _snapshot(step, settings, weights, ema, optimizer, metrics, keep=team.rank == 0)
            if team.rank == 0:
                checkpoint.save(checkpoint_dir, snapshot, settings.keep_checkpoints)
            team.wait()

    coming = iter(batches(start)) if start < settings.num_steps else iter(())
    for step in range(start, settings.num_steps):
        began = time.perf_counter()
        batch = next(coming, None)
        if batch is None:
            raise TrainingError(f"step {step + 1}: the data ends here, {settings.num_steps} steps were asked for")
        waited = time.perf_counter() - began
        losses: list[float] = []
        parts = list(batch.parts(settings.micro_batch))
        for part in parts:
            parallel.sync_gradients(transformer, part is parts[-1])
            rows_B = step_loss(transformer, part, step, settings, empty_text_SD)
            (rows_B.sum() / len(batch)).backward()
            losses += rows_B.detach().tolist()
        grad_norm = parallel.full(torch.nn.utils.clip_grad_norm_(params, settings.grad_clip, foreach=True)).item()
        finite = math.isfinite(grad_norm) and all(map(math.isfinite, losses))
        if team.any(not finite):  # the weights are still those of the last step
            raise TrainingError(_not_finite(step, grad_norm, team.gather((list(batch.clip_ids), losses))))
        rate = learning_rate_at(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - ema_decay_at(step, settings.ema_decay))
        done, last = step + 1, step + 1 == settings.num_steps
        if done % settings.log_every == 0 or last:
            rows = team.gather(list(zip(batch.prefix_chunks, losses, strict=True)))
            seconds = time.perf_counter() - began
            metrics.append(_metrics(done, [row for part in rows for row in part], grad_norm, rate, seconds, waited))
            if progress:
                progress(metrics)
        stopping = team.any(stop()) and not last
        if done % settings.checkpoint_every == 0 or last or stopping:
            save(done)
        if stopping:
            raise TrainingStopped(f"stopped after step {done} of {settings.num_steps}")
        if sample and settings.sample_every and done % settings.sample_every == 0 and not last:
            _with_average(transformer, params, ema, sample, done)

    _put(transformer, params, ema)
    transformer.gradient_checkpointing = False
    transformer.eval()
    return metrics


def _with_average(
    transformer: WanTransformer3DModel,
    params: list[torch.nn.Parameter],
    ema: list[torch.Tensor],
    sample: Callable[[int], None],
    step: int,
) -> None:
    """Call `sample(step)` while the transformer holds the EMA weights; it is left as it was, to the bit."""
    own = [p.detach().clone() for p in params]
    _put(transformer, params, ema)
    try:
        transformer.eval()
        sample(step)
    finally:
        _put(transformer, params, own)
        transformer.train()


@torch.no_grad()
def _put(transformer: WanTransformer3DModel, params: list[torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    for param, value in zip(params, values, strict=True):
        param.copy_(value)
    parallel.weights_changed(transformer)


def _not_finite(step: int, grad_norm: float, of_ranks: list[tuple[list[str], list[float]]]) -> str:
    rows = [row for ids, losses in of_ranks for row in zip(ids, losses, strict=True)]
    guilty = [clip for clip, loss in rows if not math.isfinite(loss)]
    mean = sum(loss for _, loss in rows) / len(rows)
    found = f"step {step + 1}: loss {mean}, gradient norm {grad_norm}; "
    found += f"not finite for {', '.join(guilty)}; " if guilty else ""
    return f"{found}clips of this batch: {', '.join(clip for clip, _ in rows)}"


def _metrics(
    step: int, rows: list[tuple[int, float]], grad_norm: float, rate: float, seconds: float, waited: float
) -> Metrics:
    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "step": step,
        "loss": mean([loss for _, loss in rows]),
        "loss_seed": mean([loss for prefix, loss in rows if not prefix]),
        "loss_corrective": mean([loss for prefix, loss in rows if prefix]),
        "grad_norm": grad_norm,
        "learning_rate": rate,
        "seconds": seconds,
        "wait": waited,
    }


def _snapshot(
    step: int,
    settings: TrainSettings,
    weights: dict[str, torch.nn.Parameter],
    ema: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    metrics: list[Metrics],
    *,
    keep: bool,
) -> checkpoint.Checkpoint:
    """All that a run is made of; gathered one tensor at a time, and kept where `keep` (the others only take part)."""
    tensors: dict[str, torch.Tensor] = {}
    for (name, param), average in zip(weights.items(), ema, strict=True):
        state = {f"optimizer.{key}/{name}": value for key, value in optimizer.state[param].items()}
        for key, value in {f"model/{name}": param, f"ema/{name}": average, **state}.items():
            whole = parallel.full(value.detach())
            if keep:
                tensors[key] = whole.cpu()
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
    theirs, ours = _flat(found.record["recipe"]), _flat(settings.recipe())
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        seen = ", ".join(f"{key}: {theirs.get(key)} there, {ours.get(key)} now" for key in differing)
        raise TrainingError(f"{folder} holds a run with other settings ({seen}); to start afresh: rm -r {folder}")
    names = {name.partition("/")[2] for name in found.tensors}
    if names != weights.keys():
        raise TrainingError(f"{folder} holds a run of another transformer; to start afresh: rm -r {folder}")
    for (name, param), average in zip(weights.items(), ema, strict=True):
        parallel.fill(param, found.tensors[f"model/{name}"])
        parallel.fill(average, found.tensors[f"ema/{name}"])
        state = {key: found.tensors[f"optimizer.{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        # copies: loaded tensors are views into one mapped file
        optimizer.state[param] = {key: parallel.like(param.detach(), value) for key, value in state.items()}
    return found.step, found.record["metrics"]


def _flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested recipe with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
