"""params.yaml as frozen, strictly typed objects.

Read once per process. There are no defaults in code: the file is the one place where a value stands, so a missing key
is an error like an unknown or ill-typed one, and every error names the file, the key, the value seen, what is allowed
and, for an unknown key, the nearest known one.

Every round states its own settings in full, so that a DVC stage depends on the one value it uses.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import AliasToken, AnchorToken

PARAMS_FILE = Path("params.yaml")


class ParamsError(ValueError):
    """A value in params.yaml that cannot be used; the message says which, and what is allowed."""


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
    return name


Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Text = Annotated[str, Field(min_length=1)]
Device = Annotated[str, AfterValidator(_check_device)]


class Section(BaseModel):
    """A mapping in params.yaml: frozen, no unknown keys, an int is welcome where a float is meant and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Video(Section):
    """Size, rate and quality of every stored clip."""

    height: Count
    width: Count
    fps: Positive
    crf: Annotated[int, Field(ge=0, le=51)]


class Clip(Section):
    """Length of a training example, in chunks of latent frames."""

    chunk_latents: Count
    num_chunks: Annotated[int, Field(ge=2)]

    @property
    def num_latents(self) -> int:
        """Latent frames of a training clip."""
        return self.chunk_latents * self.num_chunks


class TextSettings(Section):
    """How prompts are encoded."""

    max_length: Count


class Toy(Section):
    """How much of the toy world is made; lengths in pixel frames, size in pixels."""

    num_train: Count
    num_heldout: Count
    train_frames: Count
    heldout_frames: Count
    size: Annotated[int, Field(ge=8)]


class Hub(Section):
    """A data set on the Hugging Face Hub: where it is, and which columns hold what."""

    repo: Text | None
    revision: Text
    config: Text | None
    split: Text
    video: Text
    caption: Text
    license: Text | None
    max_clips: Count | None


class Seed(Section):
    """Where the seed clips come from."""

    source: Text
    heldout: Annotated[float, Field(ge=0, lt=1)]
    heldout_frames: Count


class Base(Section):
    """The pretrained pipeline: `toy`, or a folder, or a Hub id at a revision."""

    source: Text
    revision: Text


class Context(Section):
    """How much of its past a chunk sees, in training and in sampling alike."""

    window_chunks: Number | None
    sink_chunks: Number
    routed_chunks: Count | None


class Sampler(Section):
    """How the causal model generates a chunk."""

    num_steps: Count
    sigmas: list[Share] | None
    shift: Positive
    renoise: bool
    guidance: Annotated[float, Field(allow_inf_nan=False)]
    negative_prompt: str
    history_guidance: Annotated[float, Field(allow_inf_nan=False)]
    history_sigma: Share
    context_sigma: Share
    relative_sink: bool
    recompute_window: bool

    @field_validator("sigmas")
    @classmethod
    def _falls(cls, sigmas: list[float] | None) -> list[float] | None:
        if sigmas is not None and (sigmas[:1] != [1] or any(a <= b for a, b in pairwise((*sigmas, 0)))):
            raise ValueError("expected noise levels that fall from 1.0, 0 left out")
        return sigmas


class Resampling(Section):
    """How Resampling Forcing makes its history."""

    shift: Positive
    steps: Count
    warmup: Share
    parallel: bool


class Train(Section):
    """What all training runs share; see params.yaml for each knob."""

    objective: Literal[
        "bagger", "diffusion_forcing", "teacher_forcing", "noise_augmentation", "corrupted_history",
        "resampling_forcing",
    ]  # fmt: skip
    batch_size: Count
    lr: Positive
    warmup: Number
    ema: Decay
    weight_decay: NotNegative
    clip: Positive
    shift: Positive
    timestep: Literal["uniform", "logit_normal"]
    text_dropout: Share
    precision: Literal["float32", "bfloat16"]
    lora: Count | None
    history_sigma: Share
    resampling: Resampling
    log_every: Count


class Corrective(Section):
    """How corrective clips are learned from."""

    prefix_chunks: Count
    prefix_sigma: Share


class Mixture(Section):
    """Which corrective clips take part in a training, how often, and in which order; of all rounds."""

    where: Text | None
    max_clips: Count | None
    max_repeats: Count | None
    order: Literal["mixed", "rounds", "ramp"]


class SeedTraining(Section):
    """Round r0: training on seed clips alone."""

    steps: Count


class RoundSettings(Section):
    """One entry of `rounds`: complete, so that a DVC stage can depend on the one value it uses."""

    prev: Text
    rollouts: Count
    corrective: Share | Literal["uniform"] | dict[str, Share]
    init: Literal["base", "previous"]
    steps: Count


class LanguageModel(Section):
    """Which language model is asked for reversed prompts, and how."""

    kind: Literal["none", "openai", "transformers"]
    model: Text | None
    revision: Text | None
    temperature: Temperature
    retry_temperature: Temperature
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Count
    retries: Number


class Similarity(Section):
    """An encoder of texts, and how near a model's rewrite must be to the prompt, as cosine."""

    source: Text | None
    revision: Text | None
    low: Cosine
    high: Cosine


class Entailment(Section):
    """A classifier of natural language inference that judges a model's rewrites."""

    source: Text | None
    revision: Text | None


class Rewriting(Section):
    """How prompts are turned into ones of clips that play backwards."""

    style: Literal["prefix", "inverted", "auto"]
    llm: LanguageModel
    similarity: Similarity
    entailment: Entailment


class Extractor(Section):
    """A pretrained network: its kind in model/extractors.py, and a folder or a Hub id at a revision."""

    name: Text
    source: Text | None
    revision: Text | None


class Extractors(Section):
    """Which network fills which role of the pretrained metrics (model/metrics.py)."""

    subject: Extractor
    background: Extractor
    text: Extractor
    aesthetic: Extractor
    aesthetic_head: Text | None


class Scoring(Section):
    """What is measured beside the scores that need no weights."""

    metrics: list[Text]
    extractors: Extractors
    distance: Extractor | None


class Evaluation(Section):
    """Long rollouts on held-out prompts."""

    num_prompts: Count
    num_chunks: Annotated[int, Field(ge=2)]


class EndpointSettings(Section):
    """Where a language model is served, and how hard it may be asked. Answers do not depend on it."""

    url: Text
    concurrent: Count
    per_minute: Positive | None
    timeout: Positive


class Resources(Section):
    """How the work is spread over the machine. Never part of an id, and no DVC stage depends on it.

    It may change the last bits of a result, as another machine may: which clips share a batch, threads, device.
    """

    workers: Count
    rollout_batch: Count
    checkpoint_every: Count
    keep_checkpoints: Count
    sample_every: Count | None
    loader_workers: Number
    processes: Count | Literal["auto"]
    sharding: Literal["replicate", "shard"]
    micro_batch: Count | None
    gradient_checkpointing: bool
    device: Device
    compile: bool
    endpoint: EndpointSettings


class Params(Section):
    """The whole of params.yaml. Compare and pass sections of it; `model_dump()` gives plain values for ids."""

    random_seed: int
    video: Video
    clip: Clip
    text: TextSettings
    toy: Toy
    hub: Hub
    seed: Seed
    base: Base
    context: Context
    sampler: Sampler
    train: Train
    corrective: Corrective
    mixture: Mixture
    r0: SeedTraining
    rounds: dict[str, RoundSettings]
    rewrite: Rewriting
    scoring: Scoring
    evaluation: Evaluation
    resources: Resources

    @model_validator(mode="after")
    def _check_chain(self) -> Params:
        """The rounds are r1 … rK, each after the one before it: no gap, no branch."""
        names = sorted(self.rounds, key=lambda name: (len(name), name))
        expected = [f"r{k}" for k in range(1, len(names) + 1)]
        if not names:
            raise ValueError("rounds: no round; expected at least r1 (`bagger rounds 1` says what to write)")
        for seen, wanted in zip(names, expected, strict=True):
            if seen != wanted:
                raise ValueError(
                    f"rounds: found {', '.join(names)}; expected {', '.join(expected)} without a gap "
                    f"(`bagger rounds {len(names)}` mends it)"
                )
        for k, name in enumerate(expected, start=1):
            prev = self.rounds[name].prev
            if prev != f"r{k - 1}":
                raise ValueError(f"rounds.{name}.prev: found {prev!r}; expected 'r{k - 1}', the round before it")
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> Params:
        """A step for each of the noise levels."""
        levels = self.sampler.sigmas
        if levels is not None and len(levels) != self.sampler.num_steps:
            raise ValueError(
                f"sampler.num_steps: found {self.sampler.num_steps}; expected {len(levels)}, as many as sampler.sigmas"
            )
        return self

    @model_validator(mode="after")
    def _check_prefix(self) -> Params:
        """A corrective clip keeps at least one chunk with a loss."""
        if self.corrective.prefix_chunks >= self.clip.num_chunks:
            raise ValueError(
                f"corrective.prefix_chunks: found {self.corrective.prefix_chunks}; expected less than "
                f"clip.num_chunks = {self.clip.num_chunks}: the rest of the clip carries the loss"
            )
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> Params:
        """Shares by round are of rounds that there are by then, and leave room for seed clips that grow fewer."""
        for name, settings in self.rounds.items():
            check_shares(f"rounds.{name}.corrective", settings.corrective, name, self.mixture.order)
        return self

    @model_validator(mode="after")
    def _check_rewriters(self) -> Params:
        """A language model has a name, a server's no revision, and the band of similarity a width."""
        llm, near = self.rewrite.llm, self.rewrite.similarity
        if llm.kind != "none" and llm.model is None:
            named = "its name there" if llm.kind == "openai" else "a folder or a Hub id"
            raise ValueError(f"rewrite.llm.model: found None; expected {named}, since rewrite.llm.kind is {llm.kind}")
        if llm.kind == "openai" and llm.revision is not None:
            raise ValueError(
                f"rewrite.llm.revision: found {llm.revision!r}; expected null with kind openai: it names what a folder "
                "or Hub id is at, and a server's name of a model says it all"
            )
        if near.low > near.high:
            raise ValueError(
                f"rewrite.similarity.low: found {near.low}; expected at most rewrite.similarity.high = {near.high}"
            )
        return self

    @property
    def round_names(self) -> list[str]:
        """r1 … rK in order, without r0."""
        return self.rounds_until(f"r{len(self.rounds)}")

    def rounds_until(self, name: str) -> list[str]:
        """r1 … up to and with `name`; none for r0."""
        return [f"r{k}" for k in range(1, int(name[1:]) + 1)]

    def round(self, name: str) -> RoundSettings:
        """A corrective round by name.

        Raises:
            ParamsError: there is no such round (r0 is no corrective round: it has the section `r0`).
        """
        if name not in self.rounds:
            raise ParamsError(f"{PARAMS_FILE}: rounds has no {name!r}; it has {', '.join(self.rounds)}")
        return self.rounds[name]

    def steps_of(self, name: str) -> int:
        """Optimiser steps of a round, r0 included."""
        return self.r0.steps if name == "r0" else self.round(name).steps


def check_shares(key: str, corrective: float | str | Mapping[str, float], name: str, order: str) -> None:
    """Whether a round can be mixed so; `key` is what an error calls the share. Raises ValueError."""
    from store.mixture import whole_share  # params are read where nothing is mixed, too

    if isinstance(corrective, str):
        return
    shares = corrective if isinstance(corrective, Mapping) else {name: corrective}
    until = [f"r{k}" for k in range(1, int(name[1:]) + 1)]
    for one in shares:
        if one not in until:
            raise ValueError(f"{key}: found round {one!r}; expected rounds up to this one: {', '.join(until)}")
    whole = whole_share(shares)
    if whole > 1:
        raise ValueError(f"{key}: found {shares}, {float(whole):g} in all; expected at most 1, the rest is seed")
    if order == "ramp" and 2 * whole > 1:
        raise ValueError(
            f"{key}: found {float(whole):g}; expected at most 0.5 with mixture.order ramp, which ends at twice that"
        )


def load_params(path: Path | str = PARAMS_FILE) -> Params:
    """params.yaml, checked.

    Raises:
        ParamsError: no such file, not YAML, an anchor or a duplicate key, an unknown, missing or unusable value. All
            unusable values are named at once.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run this from the project's root folder") from None
    values = _parse(text, path)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = [_explain(item, values) for item in error.errors()]
        raise ParamsError("\n       ".join(f"{path}: {problem}" for problem in dict.fromkeys(problems))) from None


def set_rounds(count: int, path: Path | str = PARAMS_FILE) -> list[str]:
    """Rewrites the `rounds` mapping to r1 … r<count>; rounds that stay are kept, new ones copy the one before.

    A missing r1 copies the first round that is there.

    Returns:
        The names of the rounds.

    Raises:
        ParamsError: count below 1, no round to copy, or a file that could not be used afterwards (it is then left as
            it was).
    """
    path = Path(path)
    if count < 1:
        raise ParamsError(f"rounds: found {count}; expected 1 or more")
    before = path.read_text(encoding="utf-8")
    _parse(before, path)
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.Representer = _Nulls
    document = yaml.load(before)
    rounds = document.get("rounds")
    last = next((one for one in rounds.values() if isinstance(one, dict)), None) if isinstance(rounds, dict) else None
    if last is None:
        raise ParamsError(
            f"{path}: rounds: found {'no round' if rounds in (None, {}) else repr(rounds)}; with none to copy "
            "settings from, write the first one: `rounds:` and, indented on the line below it, such as "
            "`r1: {prev: r0, rollouts: 256, corrective: 0.5, init: base, steps: 350}`"
        )
    names = [f"r{k}" for k in range(1, count + 1)]
    for name in [name for name in rounds if name not in names]:
        del rounds[name]
    for k, name in enumerate(names):
        if not isinstance(rounds.setdefault(name, yaml.map()), dict):
            continue  # load_params names it
        entry = rounds[name]
        for key in RoundSettings.model_fields:
            if key in last:
                entry.setdefault(key, copy.deepcopy(last[key]))  # one mapping in two places would become an anchor
        entry["prev"] = f"r{k}"
        entry.fa.set_flow_style()
        last = entry
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            yaml.dump(document, stream)
        load_params(draft)
        draft.replace(path)
    except ParamsError as error:
        raise ParamsError(str(error).replace(str(draft), str(path))) from None
    finally:
        draft.unlink(missing_ok=True)
    return names


class _Nulls(RoundTripRepresenter):
    """Writes null as `null`, where ruamel would leave nothing."""


_Nulls.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def _parse(text: str, path: Path) -> dict[str, Any]:
    """YAML 1.2, as DVC reads it, without what DVC would not keep (anchors) or would hide (duplicate keys)."""
    yaml = YAML(typ="safe", pure=True)
    try:
        for token in yaml.scan(text):
            if isinstance(token, AnchorToken | AliasToken):
                raise ParamsError(
                    f"{path}: line {token.start_mark.line + 1}: anchors and aliases (& *) are not used here, "
                    "`dvc exp run -S` would expand them"
                )
        values = yaml.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = str(error.problem).splitlines()[0]
        raise ParamsError(f"{path}: line {line}: {problem}") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: found {type(values).__name__}; expected a mapping of sections")
    return values


def _explain(item: Any, values: dict[str, Any]) -> str:
    """One pydantic error in the words of the file."""
    loc: tuple[Any, ...] = item["loc"]
    kind, seen = item["type"], item["input"]
    if kind == "value_error" and not loc:  # the whole-file checks above, which name their key themselves
        return str(item["ctx"]["error"])
    path = _path_in(loc, values)
    key = ".".join(path)
    if path[:1] == ("rounds",) and path[2:3] == ("corrective",):  # a union: pydantic reports each of its branches
        key, seen = ".".join(path[:3]), values["rounds"][path[1]]["corrective"]
        return f"{key}: found {seen!r}; expected a number from 0 to 1, or 'uniform', or such numbers by round"
    if kind == "extra_forbidden":
        allowed = _keys_of(path[:-1])
        near = difflib.get_close_matches(path[-1], allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {'.'.join((*path[:-1], near[0]))}?" if near else ""
        return f"{key}: unknown key (value {seen!r}){hint} (allowed here: {', '.join(allowed)})"
    if kind == "missing":
        return f"{'.'.join(map(str, loc))}: missing"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key}: found {seen!r}; expected a mapping with {', '.join(_keys_of(path)) or 'one entry per round'}"
    rule = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key}: found {seen!r}; expected {rule.removeprefix('expected ')}"


def _path_in(loc: tuple[Any, ...], values: Any) -> tuple[str, ...]:
    """The part of pydantic's location that is a path of keys in the file (it appends the branches of a union)."""
    path: list[str] = []
    for part in loc:
        if not isinstance(values, dict) or part not in values:
            break
        values = values[part]
        path.append(str(part))
    return tuple(path)


def _keys_of(path: tuple[str, ...]) -> list[str]:
    """Keys allowed in the section at a path."""
    if path[:1] == ("rounds",):
        return list(RoundSettings.model_fields) if len(path) == 2 else []
    model: type[BaseModel] = Params
    for part in path:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
