"""The tables of the store: every column, its type and what it means.

Notable: each field carries its meaning as metadata (`doc`), each schema its version, so a table describes itself
wherever it ends up. A column is nullable only where "unknown" or "does not apply" is a possible answer.
Lineage columns have the names of W3C PROV-DM: rows are entities, runs are activities. Videos and latents are plain
large_binary, which every Arrow reader can read, not Lance's blob type (docs/store.md).
Per-round tables are named `<base>_<round>` (`rollouts_r1`); a registry, which holds the rounds of many experiments, has
one table of each kind (`rollouts`). `table_schema` knows the schema and key of any name.
"""

import re

import pyarrow as pa

SCHEMA_VERSION = 4
VERSION_KEY = b"bagger.schema_version"

LOOK_SIZE = 96  # of the embeddings in store/embedding.py
WORDS_SIZE = 96

_text, _real, _count = pa.string(), pa.float32(), pa.int32()


def _field(name: str, kind: pa.DataType, doc: str, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={b"doc": doc.encode()})


def _as_it_is(name: str, doc: str) -> pa.Field:
    """Bytes that Lance is not to compress: it would save a few per cent, and reading would take three times as long."""
    field = _field(name, pa.large_binary(), doc)
    return field.with_metadata({**field.metadata, b"lance-encoding:compression": b"none"})


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(list(fields), metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


_GENERATED = _field("was_generated_by", _text, "PROV: the activity, a run_id of table runs")
_DERIVED = _field("was_derived_from", pa.list_(_text), "PROV: ids of the entities that this one was made of")
_PROMPT = _field("prompt", _text, "caption of the video as it plays")
_REVERSAL = _field(
    "reversal_class", _text, "invariant, equivariant, novel or irreversible; unknown in rows of older schemas"
)
_MARKER = _field("marker_style", _text, "prefix, inverted or none")
_REWRITER = _field("rewriter_kind", _text, "override, toy-grammar, llm, rules or prefix")
_SHAPE = [
    _field("fps", pa.float64(), "frames per second"),
    _field("num_frames", _count, "pixel frames"),
    _field("height", _count, "pixels"),
    _field("width", _count, "pixels"),
]
_VIDEO = [
    _as_it_is("video", "mp4 bytes"),
    _field("video_sha256", _text, "sha256 of the mp4 bytes"),
    _field("frames_sha256", _text, "sha256 of the uint8 RGB frames [T,H,W,3] before encoding"),
    _as_it_is("latents", "normalised latents, float16 little-endian, C order"),
    _field("latents_shape", pa.list_(pa.int32()), "[C,F,h,w]"),
    _field("vae_digest", _text, "the VAE that made the latents"),
]
_EMBEDDINGS = [
    _field("look", pa.list_(_real, LOOK_SIZE), "embedding look@1 of the frames: colours of a grid at start and end"),
    _field("words", pa.list_(_real, WORDS_SIZE), "embedding words@1 of the prompt: hashed words and word pairs, unit"),
]
# Features of frames (model/features.py), a float a frame.
FEATURES = {
    "saturation": "mean HSV saturation, 0 to 1",
    "colorfulness": "Hasler and Süsstrunk's colourfulness, of RGB in 0 to 1",
    "cr": "mean colour difference R - Y of the coarse picture",
    "cb": "mean colour difference B - Y of the coarse picture",
    "chroma_spread": "standard deviation of the colour differences of the coarse picture",
    "luma": "mean luma, 0 to 1",
    "contrast": "standard deviation of luma, 0 to 0.5",
    "contrast_coarse": "standard deviation of luma of the coarse picture, 0 to 0.5",
    "clipped_high": "share of pixels with a channel of 250 or more",
    "clipped_low": "share of pixels with no channel above 5",
    "entropy": "entropy of the histogram of luma, bits",
    "sharpness": "logarithm of the variance of luma's Laplacian",
    "detail": "logarithm of the variance of luma's Laplacian over its mean squared gradient",
    "blur": "perceptual blur (Crete et al.), 0 to 1",
    "spectral_slope": "slope of log power on log frequency",
    "high_frequency": "share of power above 0.25 cycles a pixel",
    "lab_l": "mean CIELAB lightness, 0 to 100",
    "lab_a": "mean CIELAB a, green to red",
    "lab_b": "mean CIELAB b, blue to yellow",
    "motion": "mean absolute change of luma from the frame before, 0 to 1",
    "flow": "mean of the largest 5 % of optical-flow magnitudes, share of the short side a frame",
    "flicker": "absolute second difference of mean luma",
    "ssim_first": "SSIM to the first frame, -1 to 1",
    "naturalness": "distance of local statistics from those of seed frames, as NIQE; higher is less natural",
}
# Parts of the drift (model/drift.py): what each is called when it goes down, and up.
DRIFT_PARTS = {
    "saturation": ("under-saturating", "over-saturating"),
    "exposure": ("darkening", "over-exposing"),
    "contrast": ("losing-contrast", "gaining-contrast"),
    "detail": ("blurring", "noising"),
    "cast": ("", "color-casting"),
    "motion": ("freezing", "speeding-up"),
    "flicker": ("steadying", "flickering"),
}
NO_PART = "none"
_ORACLE = [
    _field(f"oracle_{name}", _real, f"toy world: {what}", null=True)
    for name, what in {
        "object_present": "share of the objects still there, 0 to 1",
        "count_error": "objects too many or too few",
        "color_error": "RGB distance of the objects' colours, 0 to 1.73",
        "area_error": "absolute logarithm of the objects' areas over the true ones",
        "position_error": "distance of the objects' centres from the true ones, in widths",
        "trajectory_error": "jumps of the objects' paths, RMS, in widths",
        "direction_error": "motion against the caption, 0 to 1",
        "order_error": "change of size, colour or opacity against the caption, 0 to 1",
        "background_error": "mean absolute RGB error of the background, 0 to 1",
        "error": "mean of the others, each in its own scale, 0 to 1",
    }.items()
]
_DRIFT = [
    *[
        _field(
            f"drift_{name}", _real, f"signed: {up}{f' above 0, {down} below' if down else ''}; 1 = as real clips", True
        )
        for name, (down, up) in DRIFT_PARTS.items()
    ],
    _field("drift", _real, "root mean square of the drift parts, >= 0; null if it could not be measured", null=True),
    _field("drift_z", _real, "robust z of drift among real clips", null=True),
]
_MOVED = [
    _field("drift_part", _text, "what moved most: over-saturating, darkening, freezing …; none", null=True),
    _field("drift_parts", _text, "everything that moved, most first, separated by commas", null=True),
]
_OTHER_SCORES = [
    _field("seam", _real, "change across chunk borders over that within chunks; 1 = no seam", null=True),
    _field("naturalness_drift", _real, "naturalness of the tail minus that of the real prefix, signed", null=True),
    _field("latent_drift", _real, "distance of the tail's latent statistics from the prefix's, >= 0", null=True),
]
SEED = _schema(
    _field("clip_id", _text, "seed-…"),
    _field("kind", _text, "seed"),
    _field("split", _text, "train or heldout"),
    _PROMPT,
    _field("source_path", _text, "file, relative to the source folder"),
    _field("source_sha256", _text, "sha256 of the source file"),
    _field("license", _text, "licence as the source states it", null=True),
    _field("extra", _text, "JSON of the source's other metadata columns"),
    *_SHAPE,
    *_VIDEO,
    *_EMBEDDINGS,
    _DERIVED,
    _GENERATED,
)

ROLLOUTS = _schema(
    _field("rollout_id", _text, "rollout-…"),
    _field("round", _text, "r1 …"),
    _field("seed_clip_id", _text, "the seed clip whose true first chunk is the prefix"),
    _field("model_digest", _text, "the model that generated, model-…"),
    _PROMPT,
    _field("settings", _text, "JSON of sampler and window settings"),
    _field("rng_name", _text, "name from which every random number is derived"),
    *_SHAPE,
    _field("prefix_frames", _count, "true pixel frames at the start"),
    _field("prefix_latents", _count, "true latent frames at the start"),
    _field("chunk_latents", _count, "latent frames generated at a time"),
    *_VIDEO,
    _DERIVED,
    _GENERATED,
)

SCORES = _schema(
    _field("rollout_id", _text, "rollout-…"),
    _field("round", _text, "r1 …"),
    _field("scorer", _text, "name@version"),
    *[
        _field(name, pa.list_(_real), f"{what}; a frame each, in generation order", null=True)
        for name, what in FEATURES.items()
    ],
    _field("latent_curve", pa.list_(_real), "distance of latent statistics from the prefix's; a chunk each", null=True),
    *_DRIFT,
    *_MOVED,
    *_OTHER_SCORES,
    _field("gates", _text, "hard failures, separated by commas; empty = passed"),
    *_ORACLE,
    _field("oracle_curves", _text, "toy world: JSON, measure to its curve, a frame each; null elsewhere", null=True),
    _field("measures", _text, "JSON: measures (name, value, curve) and the extractors behind them; null if none", True),
    _DERIVED,
    _GENERATED,
)

REWRITES = _schema(
    _field("rewrite_id", _text, "rewrite-…"),
    _field("prompt", _text, "caption of the clip as it plays backwards"),
    _field("source_prompt", _text, "prompt of the rollout, before rewriting"),
    _REVERSAL,
    _field("reasons", pa.list_(_text), "why that class, a sentence each"),
    _MARKER,
    _REWRITER,
    _field("rewriter_version", _text, "version of the rewriter; of an override the digest of its entry"),
    _field("fallback_from", _text, "rewriters that gave up before, in order, separated by commas", null=True),
    _field("spans", _text, "JSON list of {source, target, kind}: what was changed"),
    _field("verdicts", _text, "JSON list of {name, pass, detail}, in the order they were reached"),
    _field("num_attempts", _count, "rewriting attempts"),
    _field(
        "attempts",
        _text,
        "JSON list of every attempt: rewriter, request_digest, raw_output, error, verdicts, sampling, tokens",
    ),
    _field("raw_output", _text, "what the rewriter answered, unedited"),
    _field("model_id", _text, "the language model, as named in params", null=True),
    _field("model_revision", _text, "commit or weight digest of the model, or what the endpoint says it serves", True),
    _field("endpoint_kind", _text, "openai or transformers", null=True),
    _field("template_digest", _text, "sha256 of the instruction template", null=True),
    _field("schema_digest", _text, "sha256 of the JSON schema of answers", null=True),
    _field("sampling", _text, "JSON of temperature, top_p, max_tokens", null=True),
    _field("seed", pa.int64(), "seed of the accepted answer", null=True),
    _field("request_digest", _text, "sha256 of the canonical request whose answer was accepted", null=True),
    _field("input_tokens", _count, "of all attempts", null=True),
    _field("output_tokens", _count, "of all attempts", null=True),
    _field("seconds", pa.float64(), "time of all requests", null=True),
    _field("author", _text, "of an override: who made it", null=True),
    _field("was_derived_from", pa.list_(_text), "PROV: empty, a rewrite is made of a text"),
    _GENERATED,
)

CLIPS = _schema(
    _field("clip_id", _text, "clip-…"),
    _field("kind", _text, "corrective"),
    _field("round", _text, "r1 …"),
    _field("rollout_id", _text, "the rollout played backwards"),
    _field("seed_clip_id", _text, "the seed clip of that rollout"),
    _field("model_digest", _text, "the model of that rollout"),
    _PROMPT,
    _field("source_prompt", _text, "prompt of the rollout, before rewriting"),
    _field("rewrite_id", _text, "rewrite-…"),
    _REWRITER,
    _REVERSAL,
    _MARKER,
    *_SHAPE,
    *_VIDEO,
    *_EMBEDDINGS,
    _DERIVED,
    _GENERATED,
)


def _maybe(name: str, doc: str) -> pa.Field:
    return _field(name, _text, doc + "; null where it does not apply", null=True)


CATALOG = _schema(
    _field("clip_id", _text, "seed-… or clip-…"),
    _field("kind", _text, "seed or corrective"),
    _field("split", _text, "train or heldout"),
    _field("round", _text, "r0 for seed clips"),
    _PROMPT,
    _maybe("source_prompt", "prompt before rewriting"),
    *_DRIFT,
    *_MOVED,
    *_OTHER_SCORES,
    *_ORACLE,
    _maybe("gates", "hard failures, separated by commas; empty = passed"),
    _maybe("scorer", "what measured the drift, name@version"),
    _maybe("reversal_class", "what reversal does to the caption's meaning"),
    _maybe("marker_style", "how the prompt marks reversal"),
    _maybe("rewriter_kind", "which rewriter"),
    _maybe("verdict", "passed, or the names of the rewrite's failed checks, separated by commas"),
    _maybe("rollout_id", "parent rollout"),
    _maybe("seed_clip_id", "seed clip of the rollout"),
    _maybe("rewrite_id", "the prompt's rewrite"),
    _maybe("model_digest", "the model that generated"),
    _DERIVED,
    _GENERATED,
    _field("table", _text, "sealed table that holds the row with video and latents"),
    *_SHAPE,
    _field("video_sha256", _text, "sha256 of the mp4 bytes"),
    *_EMBEDDINGS,
)

RUNS = _schema(
    _field("run_id", _text, "run-…"),
    _field("stage", _text, "base, seed, rollout …"),
    _maybe("round", "round of the stage"),
    _field("used", pa.list_(_text), "PROV: ids of the entities that the run read"),
    _field("generated", pa.list_(_text), "PROV: ids of the entities that the run made"),
    _field("was_associated_with", _text, "PROV: the agent, this software and its version"),
    _field("started_at_time", _text, "PROV: ISO 8601"),
    _field("ended_at_time", _text, "PROV: ISO 8601"),
    _field("seconds", pa.float64(), "wall time, seconds"),
    _field("params", _text, "JSON of the stage's params"),
    _field("inputs", _text, "JSON of input digests and ids"),
    _field("outputs", _text, "JSON of output digests, ids and counts"),
    _maybe("git_commit", "commit of the code"),
    _field("packages", _text, "JSON of package versions"),
    _maybe("flow_run_id", "Prefect flow run"),
    _field("device", _text, "cpu, cuda …"),
    _field("host", _text, "machine name"),
)

USES = _schema(
    _field("use_id", _text, "PLAN_ID/CLIP_ID"),
    _field("plan_id", _text, "the mixture plan, plan-…"),
    _maybe("model_digest", "the model trained on the plan, model-…; unknown if it never was"),
    _field("clip_id", _text, "seed-… or clip-…"),
    _field("kind", _text, "seed or corrective"),
    _field("clip_round", _text, "the clip's round, r0 for seed"),
    _field("round", _text, "the round whose training this is"),
    _field("steps", pa.list_(_count), "optimiser steps that saw the clip, ascending, one entry a sample"),
)

# A registry tells experiments apart: their catalogs stand in one table.
_EXPERIMENT = _field("experiment", _text, "name that the rows were registered under")
REGISTRY_CATALOG = _schema(
    _field("entry_id", _text, "EXPERIMENT/ROUND/CLIP_ID"), _EXPERIMENT, *CATALOG
)  # fmt: skip

REGISTRATIONS = _schema(
    _field("registration_id", _text, "EXPERIMENT/ROUND"),
    _EXPERIMENT,
    _field("round", _text, "r0 for seed clips"),
    _field("clips", _count, "entries of the round in the catalog"),
    _field("digest", _text, "of the round's catalog entries, order-independent"),
    _field("registered_at", _text, "ISO 8601"),
    _maybe("git_commit", "commit of the project"),
    _maybe("dvc_lock", "sha256 of the project's dvc.lock"),
    _field("manifests", _text, "JSON of the sealed tables' content digests, by table"),
)

_ROUND_TABLES = {
    "rollouts": (ROLLOUTS, "rollout_id"),
    "rewrites": (REWRITES, "rewrite_id"),
    "scores": (SCORES, "rollout_id"),
    "clips": (CLIPS, "clip_id"),
}
_TABLES = {
    "seed": (SEED, "clip_id"),
    "catalog": (CATALOG, "clip_id"),
    "runs": (RUNS, "run_id"),
    "uses": (USES, "use_id"),
    **_ROUND_TABLES,
}
_STAGES = {"seed": "seed", "catalog": "catalog", "runs": "catalog", "uses": "catalog"}
_ROUND_STAGES = {"rollouts": "rollout", "rewrites": "rewrite", "scores": "score", "clips": "correct"}
_NAME = re.compile(r"(?P<base>rollouts|rewrites|scores|clips)_(?P<round>r[1-9][0-9]*)")


def table_schema(name: str) -> tuple[pa.Schema, str]:
    """Schema and key column of a table by name (`seed`, `rollouts_r1`, …). Raises ValueError for any other name."""
    if match := _NAME.fullmatch(name):
        return _ROUND_TABLES[match["base"]]
    if name in _TABLES:
        return _TABLES[name]
    known = "seed, rollouts_rK, rewrites_rK, scores_rK, clips_rK, catalog, runs, uses"
    raise ValueError(f"no table is called {name!r}; known: {known}")


def table_stage(name: str) -> str | None:
    """The DVC stage that writes a table: `rollouts_r1` -> `rollout@r1`; None for a registry's `rollouts`.

    Raises ValueError as `table_schema`.
    """
    table_schema(name)
    if match := _NAME.fullmatch(name):
        return f"{_ROUND_STAGES[match['base']]}@{match['round']}"
    return _STAGES.get(name)
