"""What the scores are worth: do they see what they should, what do they cost, do they agree with the oracle.

    python -m benchmarks.scores unit                      # the unit of drift for videos without real clips beside them
    python -m benchmarks.scores dprime                    # d' of every score for every known degradation, two beds
    python -m benchmarks.scores cost                      # CPU time beside that of a rollout, and by feature
    python -m benchmarks.scores agreement --project .     # rank correlation with the oracle over a project's rollouts

All of it prints Markdown. The beds are clips of the toy world (14 frames of 32x32, the first 2 the prefix) and clips of
natural statistics (model/injection.py; 81 frames of 64x96, the first 12); units are fitted on other clips than those
that are degraded. d' = (mean of the degraded - mean of the clean) / sqrt((variance of both) / 2).
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from model import drift, features, toyworld
from model.injection import DEGRADATIONS, RIGHT, inject, natural_clip
from model.rng import numpy_generator

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOVES = 0.5 / 32  # flow of toy clips that have something to freeze: half a pixel a frame
TOY_TIMES = 3  # as many toy clips: they cost a twentieth, and differ more
Curves = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Bed:
    """Clips of one kind by number, all of one length with one prefix."""

    name: str
    num_frames: int
    prefix_frames: int
    height: int
    width: int
    toy: bool = False

    def clip(self, number: int) -> np.ndarray:
        if not self.toy:
            return natural_clip(number, self.num_frames, self.height, self.width)
        rng = numpy_generator("scores", number)
        start = float(rng.uniform(0, toyworld.HORIZON - self.num_frames))  # as the stage `toy` draws its clips
        return toyworld.render(toyworld.sample_program(rng, start), self.num_frames, self.height)


TOY = Bed("toy", 14, 2, 32, 32, toy=True)
NATURAL = Bed("natural", 81, 12, 64, 96)
OTHERS = (Bed("shorter", 40, 6, 64, 96), Bed("longer", 161, 24, 64, 96), Bed("larger", 40, 6, 240, 416))


def curves_of(bed: Bed, number: int, kind: str | None, strength: float) -> Curves:
    """Curves of a clip, degraded or clean."""
    frames = bed.clip(number)
    if kind is not None and strength > 0:
        frames = inject(frames, kind, strength, bed.prefix_frames, number)
    return features.curves(frames)


Job = tuple[Bed, int, str | None, float]


def measure(jobs: Sequence[Job], workers: int) -> dict[Job, Curves]:
    """Curves of many clips, in `workers` processes (1: this one)."""
    if workers == 1:
        return {job: curves_of(*job) for job in jobs}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return dict(zip(jobs, pool.map(curves_of, *zip(*jobs, strict=True), chunksize=4), strict=True))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# ---- unit


def rounded(natural: drift.Natural, clips: Sequence[Curves]) -> drift.Natural:
    """The unit with its numbers rounded up to two digits, and what follows from them."""
    sigma = {name: _up(value) for name, value in natural.sigma.items()}
    sigma["flicker"] = max(sigma["flicker"], drift.FLOORS["flicker"])
    bound = {
        name: max(drift.LEAST_BOUND, _up(v * natural.sigma[name] / sigma[name])) for name, v in natural.bound.items()
    }
    unit = drift.Natural(**{**natural.to_json(), "sigma": sigma, "bound": bound})
    drifts = np.array([drift.score(clip, natural.prefix_frames, unit).drift for clip in clips])
    middle = float(np.median(drifts))
    spread, most = float(np.median(np.abs(drifts - middle))), float(np.quantile(drifts, 0.95))
    return drift.Natural(**{**unit.to_json(), "drift_median": round(middle, 2), "drift_mad": round(spread, 2),
                            "drift_95": round(most, 2)})  # fmt: skip


def _up(value: float) -> float:
    if value == drift.FLOORS["flicker"]:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 12)


def unit(args: argparse.Namespace) -> None:
    """Fit the generic unit, and try it on clips of other lengths and sizes."""
    jobs: list[Job] = [(NATURAL, number, None, 0.0) for number in range(args.clips)]
    clips = list(measure(jobs, args.workers).values())
    fitted = rounded(drift.fit(clips, NATURAL.prefix_frames), clips)
    print(f"GENERIC = {fitted}\n")
    rows = []
    for bed in (NATURAL, *OTHERS)[: 1 + args.others]:
        numbers = range(10_000, 10_000 + args.check)
        degraded: list[Job] = [(bed, n, kind, s) for kind in RIGHT for s in (0.5, 1.0) for n in numbers]
        clean: list[Job] = [(bed, n, None, 0.0) for n in range(10_000, 10_000 + 4 * args.check)]
        scores = {job: drift.score(curves, bed.prefix_frames, fitted) for job, curves in
                  measure([*clean, *degraded], args.workers).items()}  # fmt: skip
        cells = [f"{bed.name}: {bed.num_frames} frames of {bed.height}x{bed.width}"]
        cells.append(f"{np.mean([scores[job].drift_part != drift.NO_PART for job in clean]):.0%}")
        cells.append(f"{np.median([scores[job].drift for job in clean]):.2f}")
        for s in (0.5, 1.0):
            shares = {k: np.mean([scores[bed, n, k, s].drift_part == RIGHT[k] for n in numbers]) for k in RIGHT}
            least = min(shares, key=lambda k: shares[k])
            cells.append(f"{np.mean(list(shares.values())):.0%} (least {shares[least]:.0%}, {least})")
        rows.append(cells)
    print(table(["clips", "clean: a part named", "median drift", "named at 0.5", "named at 1"], rows))


# ---- dprime


def sensitivity(clean: np.ndarray, degraded: np.ndarray) -> float:
    """d' between two samples; 0 where neither varies nor differs."""
    gap = float(degraded.mean() - clean.mean())
    spread = math.sqrt((clean.var(ddof=1) + degraded.var(ddof=1)) / 2)
    return gap / spread if spread > 0 else math.copysign(math.inf, gap) if gap else 0.0


def values(curves: Curves, bed: Bed, natural: drift.Natural) -> dict[str, float]:
    """What d' is taken of: the signed last 15 % - first 15 % of every feature, the parts of the drift, the drift."""
    found = drift.score(curves, bed.prefix_frames, natural)
    deltas = {name: drift.signed15(curves[name]) for name in features.FEATURES}
    return deltas | {f"drift_{name}": part for name, part in found.parts.items()} | {"drift": found.drift}


def dprime(args: argparse.Namespace) -> None:
    """d' of features, parts and drift for each degradation; drift and names by strength."""
    for bed in (TOY, NATURAL):
        times = TOY_TIMES if bed.toy else 1
        fitting: list[Job] = [(bed, n, None, 0.0) for n in range(times * args.unit)]
        natural = drift.fit(list(measure(fitting, args.workers).values()), bed.prefix_frames)
        numbers = range(10_000, 10_000 + times * args.clips)
        clean = measure([(bed, n, None, 0.0) for n in numbers], args.workers)
        jobs: list[Job] = [(bed, n, kind, s) for kind in DEGRADATIONS for s in STRENGTHS[1:] for n in numbers]
        found = dict(clean) | measure(jobs, args.workers)
        moving = [n for n in numbers if not bed.toy or clean[bed, n, None, 0.0]["flow"].mean() >= MOVES]
        print(
            f"## {bed.name.capitalize()}: {len(numbers)} clips of {bed.num_frames} frames, {bed.height}x{bed.width}\n"
        )
        print(f"Frozen: the {len(moving)} clips that move. Unit fitted on {len(fitting)} others.\n")
        columns, by_strength = {}, []
        for kind in DEGRADATIONS:
            used = moving if kind == "freeze" else list(numbers)
            sides = [[values(found[bed, n, k, s], bed, natural) for n in used] for k, s in ((None, 0.0), (kind, 1.0))]
            columns[kind] = {
                name: sensitivity(*(np.array([one[name] for one in side]) for side in sides)) for name in sides[0][0]
            }
            cells = [kind]
            for s in STRENGTHS:
                scores = [drift.score(found[bed, n, kind if s else None, s], bed.prefix_frames, natural) for n in used]
                share = np.mean([one.drift_part == RIGHT[kind] for one in scores])
                also = np.mean([RIGHT[kind] in one.drift_parts for one in scores])
                cells.append(f"{np.mean([one.drift for one in scores]):.2f} · {share:.0%} ({also:.0%})")
            by_strength.append(cells)
        print(_sensitivities(columns))
        print("Mean drift · share of clips whose `drift_part` is the right one (that have it in `drift_parts`):\n")
        print(table(["degradation", *(f"strength {s:g}" for s in STRENGTHS)], by_strength))
        scores = [drift.score(one, bed.prefix_frames, natural) for one in clean.values()]
        named = np.mean([one.drift_part != drift.NO_PART for one in scores])
        above = np.mean([one.drift > natural.drift_95 for one in scores])
        print(f"Clean: {named:.0%} have a part named, {above:.0%} drift more than 95 % of the fitted clips.\n")


def _sensitivities(columns: Mapping[str, Mapping[str, float]]) -> str:
    """d' at full strength; the three strongest features and the strongest part of each degradation in bold."""
    marked = {}
    for kind, column in columns.items():
        order = sorted(column, key=lambda name: -abs(column[name]))
        parts = [name for name in order if name.startswith("drift_")]
        marked[kind] = {*[name for name in order if name in features.FEATURES][:3], parts[0]}
    rows = []
    for name in next(iter(columns.values())):
        cells = [f"{column[name]:+.1f}" for column in columns.values()]
        bold = [f"**{cell}**" if name in marked[kind] else cell for kind, cell in zip(columns, cells, strict=True)]
        rows.append([name, *bold])
    return table(["d'", *columns], rows)


# ---- cost


def cpu_seconds(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least CPU seconds of each, run in turns after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = cpu_clock()
            run()
            if turn:
                times[name].append(cpu_clock() - began)
    return {name: min(found) for name, found in times.items()}


def cpu_clock() -> float:
    """CPU seconds of this process so far, and of the children that it waited for (ffmpeg, which decodes)."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def cost(args: argparse.Namespace) -> None:
    """CPU time of scoring beside that of the rollouts scored, and of every feature at several sizes."""
    print(_beside_rollouts(args))
    rows = []
    for height, width in ((32, 32), (64, 96), (240, 416), (480, 832)):
        frames = natural_clip(0, args.frames, height, width)
        pieces = cpu_seconds({"all features": partial(features.curves, frames), **_pieces(frames)}, args.repeats)
        rows.append([f"{height}x{width}", *(f"{1e3 * spent / args.frames:.3g}" for spent in pieces.values())])
    columns = ["size", *pieces]
    print("CPU milliseconds a frame (frames above 256 pixels are averaged down first, `shrink`):\n")
    print(table(columns, rows))


def _pieces(frames: np.ndarray) -> dict[str, Callable[[], object]]:
    """The parts of `features.curves`, each on its own."""
    small = features.shrink(frames)
    y = features.luma(small)
    names = ("contrast", "entropy", "sharpness", "detail", "motion", "flow")
    return {
        "shrink": lambda: features.shrink(frames),
        "luma": lambda: features.luma(small),
        "saturation": lambda: features.saturation(small),
        "colorfulness": lambda: features.colorfulness(small),
        "blur": lambda: features.blur(y),
        "spectrum": lambda: features.spectrum(y),
        "ssim_first": lambda: features.ssim(y[0], y),
        **{name: partial(getattr(features, name), y) for name in names},
    }


def _beside_rollouts(args: argparse.Namespace) -> str:
    import torch

    from flows.generator import Generator
    from flows.params import load_params
    from model import latent_drift, naturalness, oracle
    from model.pipeline import encode_frames
    from store.video import decode_video, encode_video

    torch.set_num_threads(1)
    params = load_params()
    chunk, batch = params.clip.chunk_latents, params.resources.rollout_batch
    generator = Generator(args.base, params)
    programs = [toyworld.sample_program(numpy_generator("scores", "cost", n)) for n in range(batch)]
    true = np.stack([toyworld.render(one, params.clip.num_latents, params.video.height) for one in programs])
    prefix = encode_frames(generator.pipe.vae, true[:, :chunk]).detach().numpy()
    captions = [toyworld.caption(one) for one in programs]
    made = generator.generate(prefix, captions, params.clip.num_chunks, range(batch))
    videos = [encode_video(frames, params.video.fps, params.video.crf) for frames in made.frames]
    looks = np.concatenate([naturalness.features(features.luma(frames)) for frames in true])
    fitted = naturalness.fit(looks, params.video.height, params.video.width)
    curves = [features.curves(frames) for frames in made.frames]
    runs: dict[str, Callable[[], object]] = {
        "rollout": lambda: generator.generate(prefix, captions, params.clip.num_chunks, range(batch)),
        "features": lambda: [features.curves(frames) for frames in made.frames],
        "gates": lambda: [drift.gates(frames, chunk) for frames in made.frames],
        "drift": lambda: [drift.score(one, chunk, drift.GENERIC) for one in curves],
        "naturalness": lambda: [naturalness.score(features.luma(frames), fitted) for frames in made.frames],
        "latent drift": lambda: [
            latent_drift.chunk_curve(one.astype(np.float32), chunk, chunk) for one in made.latents
        ],
        "oracle": lambda: [oracle.measure(f, program) for f, program in zip(made.frames, programs, strict=True)],
        "decoding the video": lambda: [decode_video(video) for video in videos],
    }
    spent = {name: seconds / batch for name, seconds in cpu_seconds(runs, args.repeats).items()}
    decoding = spent.pop("decoding the video")
    rollout = spent.pop("rollout")
    scoring = sum(spent.values())
    lines = {"rollout": rollout, **spent, "scoring in all": scoring, "decoding the video": decoding,
             "scoring and decoding": scoring + decoding}  # fmt: skip
    rows = [[name, f"{1e3 * seconds:.2f}", f"{seconds / rollout:.1%}"] for name, seconds in lines.items()]
    length = len(made.frames[0])
    head = f"A clip of {length} frames of {params.video.height}x{params.video.width}, {batch} at once, one thread:\n\n"
    return head + table(["", "CPU ms a clip", "of the rollout"], rows)


# ---- agreement


def agree(args: argparse.Namespace) -> None:
    """Rank correlation of the scores with the oracle over a project's rollouts."""
    from benchmarks import agreement

    for title, measured in agreement.sources(args.project):
        print(f"## {title}\n")
        for heading, columns, rows in agreement.tables(measured, args.resamples):
            print(f"{heading}\n\n{table(columns, rows)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--workers", type=int, default=2, help="processes")
    one = commands.add_parser("unit", parents=[shared], help="fit the generic unit of drift")
    one.add_argument("--clips", type=int, default=256, help="clips to fit on")
    one.add_argument("--others", type=int, default=len(OTHERS), help="other lengths and sizes to try it on (slow)")
    one.add_argument("--check", type=int, default=8, help="clips to try it on, of each size and degradation")
    one.set_defaults(run=unit)
    one = commands.add_parser("dprime", parents=[shared], help="d' of every score for every known degradation")
    one.add_argument("--clips", type=int, default=24, help="clips to degrade")
    one.add_argument("--unit", type=int, default=128, help="other clips, to fit the unit on")
    one.set_defaults(run=dprime)
    one = commands.add_parser("cost", help="CPU time of scoring")
    one.add_argument("--repeats", type=int, default=5, help="turns after the warm-up; the least time counts")
    one.add_argument("--frames", type=int, default=17, help="of the clips that features are timed on")
    one.add_argument("--base", type=Path, default=Path("assets/toy-base"), help="the pipeline that rolls out")
    one.set_defaults(run=cost)
    one = commands.add_parser("agreement", help="rank correlation with the oracle")
    one.add_argument(
        "--project", type=Path, required=True, metavar="DIR", help="project with data/store and evaluation"
    )
    one.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    one.set_defaults(run=agree)
    args = parser.parse_args(arguments)
    args.run(args)


if __name__ == "__main__":
    main()
