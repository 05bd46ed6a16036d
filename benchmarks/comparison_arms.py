"""What the comparison compares: arms, their scale, and the pieces of work that each of them is made of.

Notable: a piece (a training, rollouts, corrective clips, an evaluation) is named by the digest of its recipe, and a
recipe names the pieces it is made from. So arms that begin alike share that beginning without knowing of each other:
every BAgger variant has the same first model and the same first rollouts, and differs from `bagger` in one thing.

Costs are counted, beside being measured: a unit is one token through one forward of the transformer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from model.masks import Context
from model.objectives import Objective
from store.digest import digest

CHUNK_LATENTS, NUM_CHUNKS, WINDOW = 2, 7, 6
CLIP_LATENTS = CHUNK_LATENTS * NUM_CHUNKS
TOKENS = 16  # of a latent frame: 32x32 pixels, a VAE that takes 4x4 of them, patches of 2x2
EULER_STEPS = 8
RESAMPLES = ("resampling_forcing",)
ONE_SEQUENCE = ("diffusion_forcing", "bagger")
Kind = Literal["train", "rollouts", "clips", "evaluation"]


@dataclass(frozen=True)
class Scale:
    """How much of everything. steps: of a training; rollouts: per round; clips, prompts: to train on, held out.

    `long_prompts`: the first so many prompts are rolled out to the last of `lengths` (multiples of the training
    length), the others only to the last but one. `real_clips`: those of which the unit of drift is fitted.
    """

    name: str
    steps: int
    rollouts: int
    clips: int
    prompts: int
    long_prompts: int
    real_clips: int
    lengths: tuple[int, ...] = (1, 4, 16)
    batch: int = 8


SCALES = {
    one.name: one
    for one in (
        Scale("smoke", steps=4, rollouts=4, clips=8, prompts=3, long_prompts=2, real_clips=4, lengths=(1, 2, 3)),
        Scale("small", steps=200, rollouts=96, clips=384, prompts=24, long_prompts=8, real_clips=64, batch=4),
        Scale("toy", steps=300, rollouts=128, clips=384, prompts=32, long_prompts=16, real_clips=128),
    )
}


def learns(name: str, **knobs: Any) -> Objective:
    """An objective on this comparison's chunks and context."""
    return Objective(name, chunk_latents=CHUNK_LATENTS, context=Context(WINDOW), **knobs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Arm:
    """One way to train. Round 0 learns `first` from real clips; every later round learns `objective` from them mixed
    with the corrective clips of all rounds so far.

    `steps`: how many times the scale's steps round 0 takes. `init`: where a later round starts: base or previous.
    `corrective`: share of corrective clips. `prefix_chunks`: of a corrective clip, context only. `prompts`: how
    `model.rewrite` words them, or `original` for not at all. `backwards`: False plays rollouts as they are.
    `rollout_times`: length of rollouts in training lengths, of which `window` is kept: the last training length or a
    random one. `against`: the arm it is a variant of. `every_round`: evaluate all rounds, or the last.
    """

    name: str
    told: str
    group: str
    first: Objective = field(default_factory=lambda: learns("diffusion_forcing"))
    objective: Objective = field(default_factory=lambda: learns("bagger"))
    rounds: int = 0
    steps: int = 1
    init: Literal["base", "previous"] = "base"
    corrective: float | Literal["uniform"] = 0.5
    prefix_chunks: int = 4
    prompts: Literal["auto", "prefix", "inverted", "original"] = "auto"
    backwards: bool = True
    rollout_times: int = 1
    window: Literal["last", "random"] = "last"
    against: str = "df"
    every_round: bool = True
    real: bool = False


def _arms() -> dict[str, Arm]:
    resampling = learns("resampling_forcing")
    main = [
        Arm("real", "the held-out clips themselves, through the VAE", "main", real=True),
        Arm("df", "diffusion forcing", "main"),
        *(Arm(f"df_x{n}", f"diffusion forcing, {n} times the steps", "main", steps=n) for n in (2, 4, 8)),
        Arm("teacher_forcing", "clean history", "main", learns("teacher_forcing")),
        Arm("noise_augmentation", "history with noise up to 0.2", "main",
            learns("noise_augmentation", history_sigma=0.2)),
        Arm("corrupted_history", "history with blur, noise, gain or cast up to 0.3", "main",
            learns("corrupted_history", history_sigma=0.3)),
        Arm("resampling_forcing", "history resampled by the model, chunk after chunk", "main", resampling),
        Arm("resampling_forcing_parallel", "history resampled by the model, all chunks at once", "main",
            learns("resampling_forcing", parallel=True)),
        Arm("bagger", "BAgger", "main", rounds=3),
        Arm("bagger_resampling", "BAgger's data, learned by resampling forcing", "main", resampling, resampling,
            rounds=3, against="resampling_forcing"),
    ]  # fmt: skip
    bagger = Arm("bagger", "", "open", rounds=3, against="bagger", every_round=False)

    def variant(name: str, told: str, **changes: Any) -> Arm:
        return replace(bagger, name=f"bagger_{name}", told=told, **changes)

    variants = [
        variant("previous", "rounds start from the last model", init="previous"),
        variant("share10", "10 % corrective clips", corrective=0.1),
        variant("share25", "25 % corrective clips", corrective=0.25),
        variant("share80", "80 % corrective clips", corrective=0.8),
        variant("uniform", "every clip as likely", corrective="uniform"),
        variant("rounds6", "six rounds", rounds=6),
        variant("prefix1", "a prefix of 1 chunk", prefix_chunks=1),
        variant("prefix2", "a prefix of 2 chunks", prefix_chunks=2),
        variant("prefix6", "a prefix of 6 chunks: only the real one is learned", prefix_chunks=6),
        variant("marker", "the marker before every prompt", prompts="prefix"),
        variant("noisy_prefix", "noise up to 0.5 on the drifted prefix", objective=learns("bagger", prefix_sigma=0.5)),
        variant("no_mask", "loss and noise everywhere", objective=learns("diffusion_forcing")),
        variant("long_last", "the last 7 chunks of rollouts twice as long", rollout_times=2),
        variant("long_random", "random windows of rollouts twice as long", rollout_times=2, window="random"),
        variant("forwards", "rollouts as they are, with their prompts", backwards=False, prompts="original"),
    ]
    for name, knobs in (("teacher_forcing", {}), ("corrupted_history", {"history_sigma": 0.3})):
        one = learns(name, **knobs)
        told = f"BAgger's data, learned by {name.replace('_', ' ')}"
        variants.append(variant(name, told, first=one, objective=one, against=name, every_round=True))
    longer = [
        Arm(f"corrupted_history_x{n}", f"corrupted history, {n} times the steps", "open",
            learns("corrupted_history", history_sigma=0.3), steps=n, against="corrupted_history")
        for n in (2, 4)
    ]  # fmt: skip
    extra = [variant("original_prompts", "played backwards, prompts as they were", prompts="original", group="extra")]
    return {arm.name: arm for arm in (*main, *longer, *variants, *extra)}


ARMS = _arms()


# ---------------------------------------------------------------- costs


def training_units(objective: Objective, steps: int, batch: int, latents: int = CLIP_LATENTS) -> int:
    """Units of a training: a forward counts once a token, forward and backward three times.

    Objectives with a history beside the noisy clip run twice the tokens. Resampling forcing also makes its history
    after the warm-up: chunk by chunk, `resampling_steps` forwards each and one more that the next chunk sees; or in
    parallel, `resampling_steps` forwards of two sequences.
    """
    sequences = 1 if objective.name in ONE_SEQUENCE else 2
    units = 3 * sequences * latents * steps
    if objective.name in RESAMPLES:
        resampled = sum(step / steps >= objective.resampling_warmup for step in range(steps))
        many = objective.resampling_steps
        once = 2 * latents * many if objective.parallel else latents * many + latents - objective.chunk_latents
        units += resampled * once
    return units * batch * TOKENS


def rollout_units(rollouts: int, num_chunks: int, euler_steps: int = EULER_STEPS) -> int:
    """Units of rollouts of `num_chunks` chunks with the true first: the Euler steps of every chunk that is generated,
    and one clean forward of every chunk but the last, whose keys and values the next ones see."""
    return rollouts * (num_chunks - 1) * (euler_steps + 1) * CHUNK_LATENTS * TOKENS


# ---------------------------------------------------------------- pieces


@dataclass(frozen=True)
class Piece:
    """A piece of work and the file it leaves. `label`: arm, round and seed of the first arm that wants it."""

    kind: Kind
    recipe: Mapping[str, Any]
    parents: tuple[str, ...]
    label: str
    round: int
    seed: int
    units: int

    @property
    def id(self) -> str:
        """`kind-…`: the digest of the recipe."""
        return f"{self.kind}-{digest(self.recipe)[:16]}"


@dataclass(frozen=True)
class Chain:
    """An arm with one seed: its pieces, parents first, and what is evaluated: (round, evaluation, pieces behind it)."""

    arm: str
    seed: int
    pieces: tuple[Piece, ...]
    evaluations: tuple[tuple[int, str, tuple[str, ...]], ...]


def chain(arm: Arm, seed: int, scale: Scale, prompts: Mapping[str, str]) -> Chain:
    """The pieces of an arm. `prompts`: digests of the training prompts in every style, so that styles which say the
    same are one piece of work."""
    pieces: list[Piece] = []

    def add(kind: Kind, recipe: dict[str, Any], parents: Sequence[str], round: int, units: int) -> str:
        pieces.append(Piece(kind, recipe, tuple(parents), f"{arm.name} r{round} seed {seed}", round, seed, units))
        return pieces[-1].id

    long = 0
    if len(scale.lengths) > 1:
        long = rollout_units(scale.prompts - scale.long_prompts, scale.lengths[-2] * NUM_CHUNKS)
    evaluation_units = long + rollout_units(scale.long_prompts, scale.lengths[-1] * NUM_CHUNKS)
    if arm.real:
        found = add("evaluation", {"model": "real"}, (), 0, 0)
        return Chain(arm.name, seed, tuple(pieces), ((0, found, ()),))
    model, clips, evaluations = "base", [], []
    for round in range(arm.rounds + 1):
        objective, steps = (arm.objective, scale.steps) if round else (arm.first, scale.steps * arm.steps)
        recipe: dict[str, Any] = {"objective": asdict(objective), "steps": steps, "seed": seed, "round": round}
        start = "base"
        if round:
            recipe_of_rollouts = {"model": model, "seed": seed, "round": round, "rollouts": scale.rollouts,
                                  "chunks": arm.rollout_times * NUM_CHUNKS}  # fmt: skip
            units = rollout_units(scale.rollouts, arm.rollout_times * NUM_CHUNKS)
            made = add("rollouts", recipe_of_rollouts, [model], round, units)
            window = arm.window if arm.rollout_times > 1 else "last"
            turned = {"rollouts": made, "backwards": arm.backwards, "window": window}
            clips.append(add("clips", turned, [made], round, 0))
            start = model if arm.init == "previous" else "base"
            recipe |= {"clips": list(clips), "corrective": arm.corrective, "prefix_chunks": arm.prefix_chunks,
                       "prompts": prompts[arm.prompts], "style": arm.prompts}  # fmt: skip
            # Of styles that say the same the first one's name stands for all: a recipe must not tell them apart.
            recipe["style"] = next(style for style, one in prompts.items() if one == prompts[arm.prompts])
        recipe["init"] = start
        parents = [*clips, *([start] if start != "base" else [])] if round else []
        model = add("train", recipe, parents, round, training_units(objective, steps, scale.batch))
        if round == arm.rounds or (arm.every_round and round) or not arm.rounds:
            behind = tuple(piece.id for piece in pieces if piece.kind != "evaluation")
            found = add("evaluation", {"model": model}, [model], round, evaluation_units)
            evaluations.append((round, found, behind))
    return Chain(arm.name, seed, tuple(pieces), tuple(evaluations))


def chosen(group: str | None, names: Sequence[str]) -> list[Arm]:
    """The arms of a set, or those named. Raises ValueError for an unknown one."""
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"unknown arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
    groups = {arm.group for arm in ARMS.values()}
    if group is not None and group not in groups:
        raise ValueError(f"unknown set {group!r}; there are {', '.join(sorted(groups))}")
    return [arm for arm in ARMS.values() if arm.name in names or (not names and arm.group == group)]
