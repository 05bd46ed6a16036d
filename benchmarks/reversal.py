"""How often the rules of prompt reversal are right, how often they have an answer, and how fast they are.

    python -m benchmarks.reversal gold                 # against pairs written one by one; --wrong shows the others
    python -m benchmarks.reversal toy                  # against the toy world's own answer, 5,000 captions
    python -m benchmarks.reversal speed                # prompts a second on one core
    python -m benchmarks.reversal checks               # of a language model's proposals, tried on right and wrong ones
    python -m benchmarks.reversal gold --file my.jsonl # other pairs: {"prompt", "class", "reversed": […]} a line

`precision` is the share of the rewrites given that stand in the pair (spelling of toward/towards and
backward/backwards aside); texts left unchanged count as rewrites. `recall` is the share of those pairs for which a
rewrite exists that got a right one; the others took the marker, which is always true. Intervals are Wilson's, of 95 %.

`tests/gold/reversals.jsonl` holds the pairs in the order in which they were written, by `set`: each set was written,
pair by pair, by a language model that had not seen the rules, and was first tried on rules that had not seen it. What
was wrong then was mended, so the figures of today are of rules that know all sets; the first figures of each set are
in docs/log.md. Twelve answers were added on a second reading.
"""

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from model import toyworld
from model.rewrite import rewrite
from model.verdicts import check

GOLD = Path(__file__).parent.parent / "tests" / "gold" / "reversals.jsonl"
CLASSES = ("invariant", "equivariant", "novel", "irreversible")
LONG = 100  # words


def read_pairs(path: Path = GOLD) -> list[dict[str, Any]]:
    """The pairs of a file: prompt, class, reversed (all accepted answers), set."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def plain(text: str) -> str:
    """A text in one spelling: case, the full stop at the end, and the s of towards and backwards do not count."""
    words = " ".join(text.casefold().replace("’", "'").split()).rstrip(".")
    return re.sub(r"\b(toward|backward|forward)s\b", r"\1", words)


def judge(pair: dict[str, Any]) -> tuple[str, str]:
    """(right, wrong or marker; what the rules gave) for a pair."""
    made = rewrite(pair["prompt"])
    if made.marker_style == "prefix":
        return "marker", made.prompt
    accepted = {plain(one) for one in pair["reversed"]}
    if pair["class"] == "invariant":
        accepted.add(plain(pair["prompt"]))
    return ("right" if plain(made.prompt) in accepted else "wrong"), made.prompt


def tally(pairs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts and shares over pairs."""
    found = Counter()
    for pair in pairs:
        verdict = judge(pair)[0]
        has_answer = bool(pair["reversed"]) or pair["class"] == "invariant"
        found[verdict] += 1
        found["answerable"] += has_answer
        found["class"] += rewrite(pair["prompt"]).reversal_class == pair["class"]
        found["pairs"] += 1
    given = found["right"] + found["wrong"]
    return {
        "pairs": found["pairs"], "rewritten": given, "wrong": found["wrong"],
        "precision": found["right"] / given if given else math.nan,
        "interval": wilson(found["right"], given),
        "recall": found["right"] / found["answerable"] if found["answerable"] else math.nan,
        "class right": found["class"] / found["pairs"] if found["pairs"] else math.nan,
    }  # fmt: skip


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927)."""
    if not total:
        return math.nan, math.nan
    share, spread = right / total, z * z / total
    middle, half = share + spread / 2, z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def gold(args: argparse.Namespace) -> None:
    """The table of `gold`."""
    pairs = read_pairs(args.file)
    groups: list[tuple[str, list[dict[str, Any]]]] = [("all", pairs)]
    groups += [(kind, [one for one in pairs if one["class"] == kind]) for kind in CLASSES]
    groups += [(f"{LONG} words or more", [one for one in pairs if len(one["prompt"].split()) >= LONG])]
    groups += [("hard negatives", [one for one in pairs if "negative" in one.get("tags", ())])]
    groups += [(f"set {name}", [one for one in pairs if one.get("set") == name]) for name in sets_of(pairs)]
    print(f"{'':20} {'pairs':>6} {'rewritten':>9} {'wrong':>6} {'precision':>22} {'recall':>7} {'class right':>11}")
    for name, group in groups:
        row = tally(group)
        low, high = row["interval"]
        share = f"{row['precision']:.3f} [{low:.3f}, {high:.3f}]" if row["rewritten"] else "-"
        recall = "-" if math.isnan(row["recall"]) else f"{row['recall']:.2f}"
        counts = f"{row['pairs']:6} {row['rewritten']:9} {row['wrong']:6}"
        print(f"{name:20} {counts} {share:>22} {recall:>7} {row['class right']:11.2f}")
    if args.wrong:
        for pair in pairs:
            verdict, given = judge(pair)
            if verdict == "wrong":
                print(f"\n{pair['prompt']}\n  gave      {given}\n  accepted  {pair['reversed']}")


def sets_of(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the sets of a file, in order."""
    return list(dict.fromkeys(one["set"] for one in pairs if "set" in one))


def toy(args: argparse.Namespace) -> None:
    """The table of `toy`."""
    rng = np.random.default_rng(0)
    exact, kinds = 0, Counter()
    for _ in range(args.count):
        program = toyworld.sample_program(rng)
        made = rewrite(toyworld.caption(program))
        exact += made.prompt == toyworld.caption(toyworld.reverse(program, 21))
        kinds[made.reversal_class] += 1
    print(f"{exact} of {args.count} exact; " + ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items())))


def speed(args: argparse.Namespace) -> None:
    """The table of `speed`: the least of so many rounds, of processor time."""
    pairs = read_pairs(args.file)
    short = [one["prompt"] for one in pairs if len(one["prompt"].split()) < 40]
    long = [one["prompt"] for one in pairs if len(one["prompt"].split()) >= LONG]
    for prompt in (*short, *long):
        rewrite(prompt)  # the table is read, words are looked up
    for name, prompts in (("under 40 words", short), (f"{LONG} words or more", long)):
        least = math.inf
        for _ in range(args.rounds):
            start = time.process_time()
            for prompt in prompts:
                rewrite(prompt)
            least = min(least, time.process_time() - start)
        words = sum(len(one.split()) for one in prompts) / len(prompts)
        print(f"{name:20} {len(prompts):5} prompts of {words:5.1f} words: {len(prompts) / least:7.0f} prompts/s")


def checks(args: argparse.Namespace) -> None:
    """The table of `checks`: shares of answers that pass, the round trip left out."""
    pairs = read_pairs(args.file)
    moving = [one for one in pairs if one["class"] != "invariant"]
    right = [(one, text, one["class"]) for one in pairs for text in one["reversed"]]
    foreign = [(one, next_["reversed"][0], one["class"]) for one, next_ in pairwise(pairs) if next_["reversed"]]
    unchanged = [(one, one["prompt"], "invariant") for one in moving]
    for name, cases in (("right answers", right), ("another pair's answer", foreign), ("left unchanged", unchanged)):
        passed = sum(
            all(one.passed for one in check(pair["prompt"], {"reversed_prompt": text, "reversal_class": kind}))
            for pair, text, kind in cases
        )
        print(f"{name:22} {passed:6} of {len(cases):6} pass: {passed / len(cases):.3f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gold", "toy", "speed", "checks"))
    parser.add_argument("--file", type=Path, default=GOLD)
    parser.add_argument("--wrong", action="store_true", help="with gold: show each rewrite that its pair does not hold")
    parser.add_argument("--count", type=int, default=5000, help="with toy: captions")
    parser.add_argument("--rounds", type=int, default=7, help="with speed")
    args = parser.parse_args()
    {"gold": gold, "toy": toy, "speed": speed, "checks": checks}[args.what](args)


if __name__ == "__main__":
    main()
