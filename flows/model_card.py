"""A published model's card: what it was trained on, how good it is, and how it has to be sampled.

A pure function of `ModelFacts`: equal facts give equal bytes. The words are in model_card.md.jinja.

Notable: params and metrics are whatever somebody wrote. Texts go through flows/markdown.py, and into code that a reader
may run go whole numbers and numbers alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from flows.card import BIBTEX, OFF, PICTURE, REPO, SIGNS, TAGS, Told, inside, license_of, numeral
from flows.markdown import DASH, clean, code, page, table
from store.catalog import SEED_ROUND
from store.publication import Publication


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a trained round.

    train: `params.train` of it; steps: optimiser steps; prefix_chunks: `corrective.prefix_chunks`. mixture: what
    data/plans/rK.json holds; metrics: metrics/rK.json; before: metrics of earlier rounds by name, {} where unknown, the
    seed training (r0) first. sampler: settings of its rollouts (`generator.sampler_settings`); video: `params.video`.
    base: what training started from, a Hub id or words. dataset: repository of the data, revision: its tag. software:
    name and version. picture: whether assets/drift.png is beside the card.
    """

    round: str
    digest: str
    train: Mapping[str, Any]
    steps: int
    mixture: Mapping[str, Any]
    metrics: Mapping[str, Any]
    before: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    prefix_chunks: int | None = None
    base: str | None = None
    dataset: str | None = None
    revision: str | None = None
    software: str | None = None
    git_commit: str | None = None
    picture: bool = False


_MEANS = {  # of metrics/rK.json, what stands in the card, in order: what it is, and whether less is better
    "drift": "drift (1: what real clips do; lower is better)",
    **{f"drift_{part}": said for part, said in SIGNS.items()},
    "latent_drift": "latent drift (lower is better)",
    "naturalness_drift": "change of naturalness, signed",
    "seam": "seam (1: none)",
    "oracle_error": "toy world: error against the truth, 0 to 1 (lower is better)",
    "oracle_object_present": "toy world: objects still there, 0 to 1 (higher is better)",
}
_TRAIN = (
    "objective", "batch_size", "lr", "warmup", "ema", "weight_decay", "clip", "shift", "timestep", "text_dropout",
    "precision", "lora", "history_sigma",
)  # fmt: skip


def model_card(facts: ModelFacts, told: Told) -> str:
    """README.md of a published model, a diffusers folder of WanPipeline."""
    metrics = {name: facts.metrics.get(name) for name in _MEANS}
    known = {name: value for name, value in metrics.items() if numeral(value) != DASH}
    name = clean(told.name or told.repo.partition("/")[2], 120)
    revision = clean(facts.revision, 80) if facts.revision else None
    dataset = facts.dataset if facts.dataset and REPO.fullmatch(facts.dataset) else None
    license, license_name = license_of(Publication({}), told)
    front = ModelCardData(
        license=license,
        license_name=license_name,
        language=["en"],
        library_name="diffusers",
        pipeline_tag="text-to-video",
        base_model=[clean(one, 120) for one in told.base_models] or None,
        datasets=[dataset] if dataset else None,
        tags=list(dict.fromkeys([*TAGS, "causal", *(clean(one, 60) for one in told.tags)])),
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-to-video", dataset_type=dataset or "custom", dataset_revision=revision,
                dataset_name="long rollouts of held-out prompts", metric_type=key, metric_name=_MEANS[key],
                metric_value=value,
            )
            for key, value in known.items()
        ] or None,
    )  # fmt: skip
    train = facts.train
    settings = {key: train[key] for key in _TRAIN if key in train and train[key] is not None}
    if train.get("objective") == "resampling_forcing" and isinstance(train.get("resampling"), Mapping):
        settings |= {f"resampling.{key}": value for key, value in train["resampling"].items()}
    sampler = {key: value for key, value in sorted(facts.sampler.items()) if _plain_json(value) not in OFF}
    rounds, values = {**facts.before, facts.round: facts.metrics}, _code_values(facts)
    counted = inside(facts.metrics, "drift_part")
    shares = sorted(counted.items(), key=lambda one: -one[1]) if isinstance(counted, Mapping) else []
    return page(
        "model_card.md.jinja", front, facts=facts, told=told, name=name, dataset=dataset, revision=revision,
        objective=_OBJECTIVES.get(str(train.get("objective")), "the objective named below"),
        settings=_settings(settings), sampler=_settings(sampler),
        mixture=_mixture(facts.mixture), length=facts.sampler.get("text_length"),
        metrics=_metrics(rounds), clips=facts.metrics.get("num_clips"), gated=facts.metrics.get("gated"),
        interval=numeral(facts.metrics.get("drift_ci95")), first=next(iter(facts.before), None),
        parts=", ".join(f"{clean(part, 40)} {share:.0%}" for part, share in shares if isinstance(share, int | float)),
        stock=_STOCK.format(repo=told.repo, **values), causal=_CAUSAL.format(repo=told.repo, **values),
        command=_COMMAND.format(repo=told.repo, folder=told.repo.partition("/")[2]), bibtex=BIBTEX, picture=PICTURE,
    )  # fmt: skip


def _settings(settings: Mapping[str, Any]) -> Markup:
    rows = [[code(key), code(_plain_json(value))] for key, value in settings.items()]
    return table(["setting", "value"], rows, left=2) if rows else Markup("")


def _code_values(facts: ModelFacts) -> dict[str, Any]:
    """What stands in the code of a model's card: whole numbers and numbers alone."""
    size = {name: facts.video.get(name) for name in ("height", "width")}
    size = {name: value if type(value) is int else 480 for name, value in size.items()}
    length = facts.sampler.get("text_length")
    length = length if type(length) is int else 512
    named = ("chunk_latents", "num_steps", "shift", "window_chunks", "sink_chunks")
    settings = {name: facts.sampler[name] for name in named if numeral(facts.sampler.get(name)) != DASH}
    more = ", ".join(f"{name}={value}" for name, value in {**size, "max_sequence_length": length}.items())
    said = ", ".join(f"{name}={value}" for name, value in settings.items())
    return {**size, "length": length, "more": more, "settings": said}


def _plain_json(value: object) -> str:
    return clean(value if isinstance(value, str) else json.dumps(value, default=str), 160)


def _mixture(mixture: Mapping[str, Any]) -> Markup:
    rows = []
    rounds = mixture.get("rounds")
    for name, one in (rounds if isinstance(rounds, Mapping) else {}).items():
        share = inside(one, "share")
        drift = [numeral(inside(one, f"drift.{key}")) for key in ("min", "median", "max")]
        rows.append([
            code(name), "seed" if name == SEED_ROUND else "corrective",
            f"{share:.1%}" if isinstance(share, int | float) else DASH, numeral(inside(one, "samples")),
            numeral(inside(one, "clips")), numeral(inside(one, "mean_repeats"), 1),
            DASH if set(drift) == {DASH} else " / ".join(drift),
        ])  # fmt: skip
    header = ["round", "clips of", "share", "samples", "distinct clips", "times each", "drift: least / median / most"]
    return table(header, rows, left=2) if rows else Markup("")


def _metrics(rounds: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A row a measure, a column a round that has been evaluated."""
    there = {name: one for name, one in rounds.items() if any(numeral(one.get(key)) != DASH for key in _MEANS)}
    rows = []
    for key, said in _MEANS.items():
        values = [numeral(one.get(key)) for one in there.values()]
        if key == "drift":
            widths = [numeral(one.get("drift_ci95")) for one in there.values()]
            values = [v if w == DASH else f"{v} ± {w}" for v, w in zip(values, widths, strict=True)]
        if set(values) - {DASH}:
            rows.append([said, *values])
    return table(["mean over clips", *(code(name) for name in there)], rows) if rows else Markup("")


_OBJECTIVES = {
    "bagger": "diffusion forcing, in which the first chunks of a corrective clip are clean context and carry no loss "
    "(BAgger)",
    "diffusion_forcing": "diffusion forcing: a noise level of its own for every frame or chunk, loss on all of them",
    "teacher_forcing": "teacher forcing: every chunk is denoised after the clean chunks before it",
    "noise_augmentation": "teacher forcing with noise on the history, of which the model is not told",
    "corrupted_history": "teacher forcing with blur, noise, gain or a cast on the history",
    "resampling_forcing": "Resampling Forcing: every chunk is denoised after a history that the model has resampled "
    "itself",
}
_STOCK = """\
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("{repo}")
prompt = "a red circle moves left over a grey background"
video = pipe(prompt, {more}).frames"""
_CAUSAL = """\
import torch

from model.causal import causalize
from model.pipeline import decode_latents, encode_prompts, load_pipeline
from model.rollout import RolloutSettings, rollout

pipe = load_pipeline("{repo}")
causalize(pipe.transformer)  # in place; the weights stay what they are
text = encode_prompts(pipe, ["a red circle moves left over a grey background"], max_length={length})
channels, ratio = pipe.transformer.config.in_channels, pipe.vae_scale_factor_spatial
nothing = torch.zeros(1, channels, 0, {height} // ratio, {width} // ratio)  # no true latents before it
settings = RolloutSettings({settings})
chunks = rollout(pipe.transformer, nothing, text, num_chunks=7, settings=settings, seeds=[0])
frames = decode_latents(pipe.vae, torch.cat(list(chunks), 2))  # uint8 [1, T, H, W, 3]"""
_COMMAND = """\
hf download {repo} --local-dir models/{folder}
bagger rollout --model models/{folder} --prompt "a red circle moves left over a grey background" \\
               --seconds 7 --out red.mp4"""
