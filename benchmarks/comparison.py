"""What helps against drift, in the toy world: all objectives and BAgger's rounds, at equal steps and at equal compute.

    python -m benchmarks.comparison run --set main --seeds 0,1,2 --workers 2
    python -m benchmarks.comparison run --set open --seeds 0,1,2 --workers 2
    python -m benchmarks.comparison run --arms bagger,df_x4 --seeds 0 --scale smoke
    python -m benchmarks.comparison report

`run` may be killed at any moment; the same command goes on: every finished piece of work is a file in
`.work/comparison/`, trainings resume from checkpoints. `report` reads what there is, merges it into
`benchmarks/results/`, from which it can be made again without the weights, and writes tables and pictures.
benchmarks/comparison_arms.py says what the arms are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.comparison_arms import ARMS, CLIP_LATENTS, SCALES, Chain, Piece, Scale, chain, chosen

STATE = Path(".work/comparison")
FINDINGS = Path("docs/findings.md")  # whose tables a report of all arms renews
CLIP_FRAMES = CLIP_LATENTS  # the toy's VAE does not compress time
# Seconds of a thousand units, and of a piece without any, until the first of its kind is done.
GUESS = {"train": 0.11, "rollouts": 0.11, "evaluation": 0.2, "clips": 20.0}


def plan(chains: Sequence[Chain]) -> dict[str, Piece]:
    """All pieces of chains, each once, parents first."""
    return {piece.id: piece for one in chains for piece in one.pieces}


class Estimate:
    """How long pieces take: by their units, and what was measured of others of their kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.amount: dict[str, float] = {}

    def learn(self, piece: Piece, seconds: float) -> None:
        """A piece took so long."""
        self.seconds[piece.kind] = self.seconds.get(piece.kind, 0.0) + seconds
        self.amount[piece.kind] = self.amount.get(piece.kind, 0.0) + self._amount(piece)

    def of(self, piece: Piece) -> float:
        """Seconds that a piece will take."""
        known = self.amount.get(piece.kind)
        rate = self.seconds[piece.kind] / known if known else GUESS[piece.kind]
        return rate * self._amount(piece)

    @staticmethod
    def _amount(piece: Piece) -> float:
        return piece.units / 1000 or 1.0


def heights(pieces: Mapping[str, Piece], seconds: Callable[[Piece], float]) -> dict[str, float]:
    """Seconds from the start of each piece to the end of the longest chain that needs it. Pieces: parents first."""
    found = {name: seconds(piece) for name, piece in pieces.items()}
    for name, piece in reversed(pieces.items()):
        for parent in (one for one in piece.parents if one in found):
            found[parent] = max(found[parent], seconds(pieces[parent]) + found[name])
    return found


_world = None  # of a worker process, made when it starts


def _start(folder: Path, scale: Scale) -> None:
    """Make a worker ready: one thread, and gone when its parent is."""
    global _world
    import torch

    from benchmarks.comparison_world import World
    from flows.process import die_with_parent

    torch.set_num_threads(1)
    if multiprocessing.parent_process() is not None:
        die_with_parent()
    _world = World(folder, scale)


def _work(piece: Piece) -> tuple[float, str]:
    """Do a piece: (seconds, what went wrong)."""
    assert _world is not None
    began = time.perf_counter()
    try:
        _world.do(piece)
    except Exception:
        return time.perf_counter() - began, traceback.format_exc()
    return time.perf_counter() - began, ""


def run(pieces: Mapping[str, Piece], folder: Path, scale: Scale, workers: int) -> dict[str, str]:
    """Do all pieces that are not there yet, seed by seed, long chains first; returns what went wrong by piece.

    workers 0: in this process. What a failed piece was needed for is left out, everything else is done.
    """
    there = {path.name.partition(".")[0] for path in (folder / "pieces").glob("[!.]*") if ".frames" not in path.name}
    missing = {name: piece for name, piece in pieces.items() if name not in there}
    estimate, errors, running = Estimate(), {}, {}
    began, total = time.perf_counter(), len(missing)
    print(f"{len(pieces)} pieces, {total} to do, {folder}", flush=True)
    if not missing:
        return {}

    def report(piece: Piece, seconds: float, error: str) -> None:
        del missing[piece.id]
        if error:
            errors[piece.id] = error
            print(f"FAILED {piece.kind} {piece.label}\n{error}", file=sys.stderr, flush=True)
        else:
            estimate.learn(piece, seconds)
            there.add(piece.id)
        left = sum(map(estimate.of, missing.values())) / max(1, workers)
        done = f"[{total - len(missing)}/{total}] {piece.kind:10} {piece.label}: {seconds:.0f} s"
        print(f"{done}; {(time.perf_counter() - began) / 60:.0f} min so far, about {left / 60:.0f} left", flush=True)

    def ready() -> list[Piece]:
        depth = heights(missing, estimate.of)
        free = [p for name, p in missing.items() if name not in running and there.issuperset(p.parents)]
        # A seed after the other: a run that is stopped early has whole ones.
        return sorted(free, key=lambda piece: (piece.seed, -depth[piece.id]))

    if workers == 0:
        _start(folder, scale)
        while some := ready():
            report(some[0], *_work(some[0]))
        return errors | _left_out(missing)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(folder, scale)) as pool:
        futures: dict[Future[tuple[float, str]], Piece] = {}
        while True:
            for piece in ready()[: workers - len(futures)]:
                futures[pool.submit(_work, piece)] = piece
                running[piece.id] = piece
            if not futures:
                break
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                piece = futures.pop(future)
                del running[piece.id]
                try:
                    report(piece, *future.result())
                except BrokenProcessPool:
                    return errors | {piece.id: "its process was killed"} | _left_out(missing)
    return errors | _left_out(missing)


def _left_out(missing: Mapping[str, Piece]) -> dict[str, str]:
    return dict.fromkeys(missing, "not done: what it needs is not there")


def chains_of(group: str | None, names: Sequence[str], seeds: Sequence[int], scale: Scale) -> list[Chain]:
    """Every arm of a set, or of those named, with every seed."""
    from benchmarks.comparison_world import prompt_digests

    prompts = prompt_digests(scale, CLIP_FRAMES)
    return [chain(arm, seed, scale, prompts) for seed in seeds for arm in chosen(group, names)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report", "plan"), help="plan: what run would do, and at which cost")
    parser.add_argument("--set", dest="group", help="main, open or extra; default: main (report: all that is there)")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=[], help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 0: this one")
    parser.add_argument("--scale", choices=SCALES, default="toy")
    parser.add_argument(
        "--results", type=Path, help="where tables go; default: benchmarks/results, for smoke the state"
    )
    parser.add_argument("--images", type=Path, help="where pictures go; default: docs/images, for smoke the state")
    args = parser.parse_args(arguments)
    from benchmarks.comparison_world import settings_digest

    scale = SCALES[args.scale]
    folder = STATE / settings_digest(scale)
    try:
        if args.action == "report":
            from benchmarks.comparison_report import report

            known = [arm for arm in ARMS.values() if not args.group or arm.group == args.group]
            names = args.arms or [arm.name for arm in known]
            results, images = Path("benchmarks/results"), Path("docs/images")
            if scale.name == "smoke":
                results, images = folder / "report", folder / "report"
            findings = None if args.results or args.images or args.arms or args.group else FINDINGS
            report(chains_of(None, names, args.seeds, scale), folder, scale, args.results or results,
                   args.images or images, findings if scale.name != "smoke" else None)  # fmt: skip
            return 0
        pieces = plan(chains_of(args.group or (None if args.arms else "main"), args.arms, args.seeds, scale))
        if args.action == "plan":
            return _tell(pieces)
        from flows.process import acquire_lock

        with acquire_lock(folder / "lock", "comparison"):
            if not (folder / "world.safetensors").is_file():
                from benchmarks.comparison_world import World

                print("making the world", flush=True)
                World(folder, scale)
            errors = run(pieces, folder, scale, args.workers)
    except ValueError as error:
        print(f"comparison: {error}", file=sys.stderr)
        return 2
    for name, error in errors.items():
        last = error.strip().splitlines()[-1]
        print(f"not done: {pieces[name].label}, {pieces[name].kind} ({name}): {last}", file=sys.stderr)
    return 1 if errors else 0


def _tell(pieces: Mapping[str, Piece]) -> int:
    estimate = Estimate()
    for kind in GUESS:
        some = [piece for piece in pieces.values() if piece.kind == kind]
        hours = sum(map(estimate.of, some)) / 3600
        print(f"{kind:10} {len(some):4} pieces, {sum(p.units for p in some) / 1e6:8.1f} M units, about {hours:.1f} h")
    return 0


if __name__ == "__main__":
    sys.exit(main())
