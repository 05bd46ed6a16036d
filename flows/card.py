"""The page that tells strangers what data were published: a data set's card, and the picture of its drift.

Pure functions of a `Publication` (store/publication.py): no store, network, torch or clock, and equal facts give equal
bytes. The words are in dataset_card.md.jinja, the figures are from here.

Notable: an older publication.json is whatever a server sent, so figures of another form than expected are left out,
and every text of it goes through flows/markdown.py.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData
from markupsafe import Markup

from flows.markdown import DASH, clean, code, page, table
from store.catalog import SEED_ROUND
from store.figures import BINS
from store.licence import judged
from store.publication import ALL, File, Publication, Round, columns
from store.schema import DRIFT_PARTS, NO_PART

SPLITS = ("corrective", "seed", "heldout")
PICTURE = "assets/drift.png"
TAGS = ("video", "text-to-video", "autoregressive-video", "video-diffusion", "synthetic", "bagger")
OFF = {"", "null", "false", "0", "0.0"}  # of settings, as JSON
SIGNS = {  # of the parts of drift: what a value above and below 0 is
    part: f"{part}, signed: {up} above 0" + (f", {down} below" if down else "")
    for part, (down, up) in DRIFT_PARTS.items()
}
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

# Ids of licences that the Hub knows (huggingface.co/docs/hub/repositories-licenses).
LICENSES = frozenset(
    """afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
    openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib""".split()
)

BIBTEX = """\
@misc{po2025bagger,
  title         = {{BAgger}: Backwards Aggregation for Mitigating Drift in Autoregressive Video Diffusion Models},
  author        = {Ryan Po and Eric Ryan Chan and Changan Chen and Gordon Wetzstein},
  year          = {2025},
  eprint        = {2512.12080},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CV},
  url           = {https://arxiv.org/abs/2512.12080}
}

@misc{guo2025resampling,
  title         = {End-to-End Training for Autoregressive Video Diffusion via Self-Resampling},
  author        = {Yuwei Guo and Ceyuan Yang and Hao He and Yang Zhao and Meng Wei and Zhenheng Yang and Weilin Huang
                   and Dahua Lin},
  year          = {2025},
  eprint        = {2512.15702},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CV},
  url           = {https://arxiv.org/abs/2512.15702}
}"""


@dataclass(frozen=True)
class Told:
    """What the publisher says of a repository.

    repo: ORG/NAME. license: of the whole, the Hub's id; None: that of the clips if it is one. name: for people.
    base_models: Hub ids of what the first model was made of. train: shell commands that train with the data; None:
    those of this software. published: date, ISO 8601, for croissant.json. homepage: of this software.
    Raises ValueError for a repo that is none.
    """

    repo: str
    license: str | None = None
    name: str | None = None
    base_models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    train: str | None = None
    published: str | None = None
    homepage: str | None = None
    endpoint: str = "https://huggingface.co"

    def __post_init__(self) -> None:
        if not REPO.fullmatch(self.repo):
            raise ValueError(f"a repository is called ORG/NAME, got {self.repo!r}")


# ---------------------------------------------------------------- figures, with distrust


def counts_of(facts: Mapping[str, Any], name: str) -> dict[str, int]:
    """Value -> number of clips, the most frequent first, an order that publication.json does not keep."""
    found = facts.get(name)
    items = found.items() if isinstance(found, Mapping) else ()
    known = [(str(key), number) for key, number in items if type(number) is int and number > 0]
    return dict(sorted(known, key=lambda one: (-one[1], one[0])))


def numeral(value: object, digits: int = 2) -> str:
    """A number as it is shown; a dash for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def inside(value: object, path: str) -> Any:
    """What is found under `a.b` in mappings; None if nothing is."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _histogram_counts(one: Round) -> list[int] | None:
    found = inside(one.facts, "drift.counts")
    if not isinstance(found, list) or len(found) != len(BINS) or not all(type(n) is int and n >= 0 for n in found):
        return None
    return found if sum(found) else None


def clips_in(files: Iterable[File]) -> int:
    """Rows of data/, each a clip; those of tables/ are not counted."""
    return sum(file.rows for file in files if file.split)


def corrective_of(publication: Publication) -> list[Round]:
    """The rounds of corrective clips."""
    return [one for one in publication.rounds.values() if one.name != SEED_ROUND]


def newest_of(publication: Publication) -> Round:
    """The last round. Raises ValueError if there is none."""
    if not publication.rounds:
        raise ValueError("a publication without a round has no card")
    return list(publication.rounds.values())[-1]


def size_category(clips: int) -> str:
    """As the Hub spells it: n<1K, 1K<n<10K … n>1T; the lower end belongs to it."""
    spelled = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    above = [one for number, one in enumerate(spelled) if clips >= 1000 * 10**number]
    if not above:
        return "n<1K"
    return f"{above[-1]}<n<{spelled[len(above)]}" if len(above) < len(spelled) else "n>1T"


def splits_of(rounds: Iterable[Round]) -> dict[str, list[str]]:
    """Files by split, in the order of SPLITS."""
    found: dict[str, list[str]] = {}
    for one in rounds:
        for split, files in one.splits().items():
            found.setdefault(split, []).extend(file.path for file in files)
    return {split: found[split] for split in SPLITS if split in found}


def configs(publication: Publication) -> dict[str, dict[str, list[str]]]:
    """Config -> split -> files: one a round, by its name, and `all`."""
    found = {name: splits_of([one]) for name, one in publication.rounds.items()}
    return {**found, ALL: splits_of(publication.rounds.values())}


def license_of(publication: Publication, told: Told) -> tuple[str, str | None]:
    """Licence of the whole by the Hub's id, and the name of one that is `other`.

    What the publisher says; else that of the clips if all have one and the Hub knows it.
    """
    found = {told.license} if told.license else set()
    found = found or {name for one in publication.rounds.values() for name in counts_of(one.facts, "licenses")}
    if not found - {""}:
        return "unknown", None
    if len(found) > 1:
        return "other", "by-clip"
    stated = clean(found.pop())
    if (known := stated.lower().replace(" ", "-")) in LICENSES:
        return known, None
    return "other", re.sub(r"[^a-z0-9.]+", "-", stated.lower()).strip("-.")[:60] or "stated-in-the-card"


# ---------------------------------------------------------------- the card of a data set


def dataset_card(publication: Publication, told: Told) -> str:
    """README.md of a published data set. Raises ValueError for a publication without rounds."""
    newest = newest_of(publication)
    license, license_name = license_of(publication, told)
    other: dict[str, Any] = {"license_name": license_name, "license_link": f"{url_of(told)}#licences"}
    other = other if license_name else {}
    front = DatasetCardData(
        license=license,
        **other,
        pretty_name=clean(told.name or told.repo.partition("/")[2], 120),
        language=["en"],
        tags=list(dict.fromkeys([*TAGS, *(clean(one, 60) for one in told.tags)])),
        annotations_creators=["machine-generated"],
        task_categories=["text-to-video"],
        size_categories=[size_category(clips_in(publication.files()))],
        configs=[
            {
                "config_name": name,
                **({"default": True} if name == newest.name else {}),
                "data_files": [{"split": split, "path": list(files)} for split, files in splits.items()],
            }
            for name, splits in configs(publication).items()
        ],
    )
    corrective = corrective_of(publication)
    scorers = {scorer: None for one in corrective for scorer in counts_of(one.facts, "scorers") if scorer}
    split = next(iter(splits_of([newest])), SPLITS[0])
    return page(
        "dataset_card.md.jinja", front, told=told, newest=newest.name, seed=publication.rounds.get(SEED_ROUND),
        corrective=corrective, clips=clips_in(publication.files()), picture=_picture_of(publication),
        glance=_glance(publication), models=_counted(corrective, "models", "rolled out by"),
        samplers=_samplers(corrective), drift=_drift(corrective), scorers=list(scorers), columns=_columns(),
        examples=_examples(corrective), runs=_runs(publication),
        parts=_shares(corrective, "drift_part", [one for pair in DRIFT_PARTS.values() for one in pair if one]
                      + [NO_PART], {"": "not measured", NO_PART: "none moved"}),
        gates=_shares(corrective, "gates", [""], {"": "passed"}),
        classes=_shares(corrective, "reversal_class", ["invariant", "equivariant", "novel", "irreversible"]),
        styles=_shares(corrective, "marker_style", ["none", "inverted", "prefix"]),
        rewriters=_shares(corrective, "rewriter_kind", ["override", "toy-grammar", "llm", "rules", "prefix"]),
        verdicts=_shares(corrective, "verdict", ["passed"]), signed=_signed(corrective),
        rewrite_models=_counted(corrective, "rewrite_models", "language model"),
        licenses=_licenses(publication), license=license,
        shapes=_shapes(publication), digests=_digests(publication), bins=BINS,
        load=_LOAD.format(repo=told.repo, name=newest.name, split=split), play=_PLAY,
        train=told.train or f"bagger fetch {told.repo} --revision {newest.name}\n"
                            f"python -m flows.mix --round {newest.name} && python -m flows.train --round {newest.name}",
        trainable=newest.name != SEED_ROUND or told.train is not None, bibtex=BIBTEX, file_picture=PICTURE,
    )  # fmt: skip


_LOAD = """\
from datasets import Video, load_dataset

# revision: the data as of that round
clips = load_dataset("{repo}", "{name}", split="{split}", revision="{name}")
clips = clips.cast_column("video", Video(decode=False))  # mp4 bytes, not a decoder
clip = clips[0]
print(clip["clip_id"], clip["drift"], clip["drift_parts"], clip["prompt"])

# The same without a download of everything: rows come as they are read.
stream = load_dataset("{repo}", "{name}", split="{split}", revision="{name}", streaming=True)
stream = stream.cast_column("video", Video(decode=False))
drifted = stream.filter(lambda row: (row["drift"] or 0) > 4)

# Figures and prompts alone: of parquet only the columns that are asked for are read.
few = ["clip_id", "prompt", "drift"]
scores = load_dataset("{repo}", "{name}", split="{split}", revision="{name}", columns=few)"""
_PLAY = """\
from pathlib import Path

Path("clip.mp4").write_bytes(clip["video"]["bytes"])  # any player shows it

from torchcodec.decoders import VideoDecoder  # pip install torchcodec

frames = VideoDecoder(clip["video"]["bytes"])[:]  # uint8 [T, 3, H, W], the drifted frames first"""


def url_of(told: Told) -> str:
    """Address of the data set."""
    return f"{told.endpoint}/datasets/{told.repo}"


def _picture_of(publication: Publication) -> bool:
    return any(_histogram_counts(one) for one in publication.rounds.values())


def _glance(publication: Publication) -> Markup:
    rows = []
    for name, one in publication.rounds.items():
        splits = {split: clips_in(files) for split, files in one.splits().items()}
        said = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS if split in splits)
        where = DASH if one.where is None else code(one.where)
        rows.append([code(name), said, where, _bytes(one.files), code(one.digest[:12])])
    total = f"{clips_in(publication.files()):,} in all"
    rows.append([code(ALL), total, Markup(DASH), _bytes(publication.files()), DASH])
    return table(["config", "clips by split", "filter", "size", "digest"], rows, left=5)


def _bytes(files: Iterable[File]) -> str:
    size = float(sum(file.bytes for file in files))
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _counted(rounds: Sequence[Round], name: str, said: str) -> Markup:
    """A row a round and value: how many of its clips."""
    rows = [
        [code(one.name), code(value), numeral(number)]
        for one in rounds
        for value, number in counts_of(one.facts, name).items()
    ]
    return table(["round", said, "clips"], rows, left=2) if rows else Markup("")


def _samplers(rounds: Sequence[Round]) -> Markup:
    """A row a setting, a column a round; settings that differ within a round stand side by side."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for one in rounds:
        for text in counts_of(one.facts, "samplers"):
            try:
                settings = json.loads(text)
            except ValueError:
                settings = {"settings": text}
            for name, value in sorted((settings if isinstance(settings, dict) else {"settings": settings}).items()):
                shown = value if isinstance(value, str) else json.dumps(value)
                found.setdefault(str(name), {}).setdefault(one.name, {})[clean(shown, 120)] = None
    found = {name: by for name, by in found.items() if {one for values in by.values() for one in values} - OFF}
    rows = [
        [code(name), *(Markup(", ").join(map(code, by[one.name])) if one.name in by else DASH for one in rounds)]
        for name, by in found.items()
    ]
    header = ["setting", *(code(one.name) for one in rounds)]
    return table(header, rows, left=len(header)) if rows else Markup("")


def _drift(rounds: Sequence[Round]) -> Markup:
    names = ("min", "q10", "median", "mean", "q90", "max")
    rows = []
    for one in rounds:
        unknown = inside(one.facts, "drift.unknown")
        figures = [numeral(inside(one.facts, f"drift.{name}")) for name in names]
        filtered = DASH if one.where is None else code(one.where)
        rows.append([code(one.name), filtered, numeral(clips_in(one.files)), *figures, numeral(unknown)])
    header = ["round", "filter", "clips", "min", "q10", "median", "mean", "q90", "max", "unknown"]
    return table(header, rows, left=2) if any(inside(one.facts, "drift") for one in rounds) else Markup("")


def _shares(
    rounds: Sequence[Round], name: str, order: Sequence[str] = (), said: Mapping[str, str] | None = None
) -> Markup:
    """A row a value, a column a round: the share of its clips."""
    by_round = {one.name: counts_of(one.facts, name) for one in rounds}
    values = list(dict.fromkeys(value for counts in by_round.values() for value in counts))
    values.sort(key=lambda value: order.index(value) if value in order else len(order))
    rows = []
    for value in values:
        shares = [(counts.get(value, 0), sum(counts.values())) for counts in by_round.values()]
        label = (said or {}).get(value, value or "not known")
        rows.append([label, *(f"{n / total:.1%}" if n else "0" if total else DASH for n, total in shares)])
    return table(["", *(code(one) for one in by_round)], rows) if rows else Markup("")


def _signed(rounds: Sequence[Round]) -> Markup:
    """A row a part of the drift, a column a round: its mean over the clips."""
    found = {said: [numeral(inside(one.facts, f"parts.{part}")) for one in rounds] for part, said in SIGNS.items()}
    rows = [[said, *values] for said, values in found.items() if set(values) - {DASH}]
    return table(["mean over clips", *(code(one.name) for one in rounds)], rows) if rows else Markup("")


def _columns() -> tuple[Markup, Markup]:
    """The columns that most will want, and the others."""
    main: list[list[object]] = []
    more: list[list[object]] = []
    for name, (kind, doc) in columns().items():
        group = more if name.startswith(("oracle_", "curve_", "rewrite_", "rollout_")) else main
        (main if name in ("rollout_id", "rewrite_id") else group).append([code(name), _kind(name, kind), doc])
    header = ["column", "type", "meaning"]
    return table(header, main, left=3), table(header, more, left=3)


def _kind(name: str, kind: pa.DataType) -> str:
    if name == "video":
        return "video (mp4)"
    if pa.types.is_list(kind):
        return f"list of {_kind('', kind.value_type)}"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _examples(rounds: Sequence[Round]) -> Markup:
    rows = []
    for one in rounds[-1:]:
        for pair in _dicts(one.facts.get("prompts"))[:3]:
            rows.append([clean(pair.get("source_prompt") or DASH, 240), clean(pair.get("prompt") or DASH, 240)])
    return table(["prompt of the rollout", "prompt of the clip, its reversal"], rows, 2) if rows else Markup("")


_MATTERS = {
    "rollout": ("rollouts", "random_seed"),
    "rewrite": ("style", "llm.kind", "llm.model", "llm.revision"),
    "score": ("scorer",),
    "train": ("train.objective", "train.batch_size", "train.lr", "train.lora", "prefix_chunks"),
}


def run_facts(publication: Publication) -> list[Mapping[str, Any]]:
    """The runs behind all rounds, each once."""
    runs = [run for one in publication.rounds.values() for run in _dicts(one.facts.get("runs"))]
    found = {clean(run.get("run_id")): run for run in runs}
    order = {stage: number for number, stage in enumerate(("train", *_MATTERS))}
    names = sorted({clean(run.get("round")) for run in found.values()}, key=lambda one: (len(one), one))
    return sorted(
        found.values(),
        key=lambda run: (
            names.index(clean(run.get("round"))), order.get(str(run.get("stage")), 9), clean(run.get("run_id")),
        ),
    )  # fmt: skip


def _runs(publication: Publication) -> Markup:
    rows = []
    for run in run_facts(publication):
        stage, told = clean(run.get("stage"), 40), []
        for path in _MATTERS.get(stage, ()):
            value = inside(run.get("params"), path)
            if isinstance(value, str | int | float):
                told.append(f"{path.rpartition('.')[2]} {clean(value, 80)}")
        commit = run.get("git_commit")
        rows.append([
            code(run.get("run_id"), 80), f"{stage} {clean(run.get('round') or '', 20)}",
            clean(run.get("was_associated_with") or DASH, 60), code(clean(commit, 40)[:12]) if commit else DASH,
            ", ".join(told) or DASH,
        ])  # fmt: skip
    return table(["run", "stage", "software", "commit", "with"], rows, left=5) if rows else Markup("")


def _shapes(publication: Publication) -> Markup:
    found: Counter[tuple[str, ...]] = Counter()
    for one in publication.rounds.values():
        for shape in _dicts(one.facts.get("shapes")):
            if type(shape.get("clips")) is int:
                known = tuple(clean(shape.get(name), 20) for name in ("frames", "width", "height", "fps"))
                found[known] += shape["clips"]
    rows = [
        [f"{t} frames of {w}×{h} at {fps.removesuffix('.0')} a second", numeral(n)]
        for (t, w, h, fps), n in found.most_common(12)
    ]
    return table(["videos", "clips"], rows) if rows else Markup("")


_JUDGED = {"open": "lets you pass them on", "forbidden": "does not let you pass them on", "unknown": DASH}


def _licenses(publication: Publication) -> Markup:
    rows = []
    for one in publication.rounds.values():
        for name, number in counts_of(one.facts, "licenses").items():
            said = code(name, 120) if name else Markup("not stated")
            rows.append([code(one.name), said, _JUDGED[judged(name or None)], numeral(number)])
    header = ["round", "licence of the clip, or of the seed clip it was made of", "as this software reads it", "clips"]
    return table(header, rows, left=3) if rows else Markup("")


def _digests(publication: Publication) -> Markup:
    rows = []
    for name, one in publication.rounds.items():
        rows.append([code(name), Markup("all files"), numeral(sum(file.rows for file in one.files)), code(one.digest)])
        for label, manifest in sorted(one.tables.items()):
            rows.append([code(name), code(label), numeral(manifest.rows), code(manifest.digest, 80)])
    return table(["round", "table", "rows", "digest of the content"], rows, left=4)


# ---------------------------------------------------------------- the picture


def histogram(publication: Publication) -> bytes | None:
    """PNG of how drift is distributed, a row a round; None if no round has scores. Equal figures give equal bytes."""
    known = [(one, counts) for one in publication.rounds.values() if (counts := _histogram_counts(one))]
    if not known:
        return None
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    used = max(number for _, counts in known for number, n in enumerate(counts) if n) + 1
    edges, places = [f"{one:g}" for one in BINS[: used + 1]], range(used)
    figure = Figure(figsize=(8, 0.9 + 0.95 * len(known)), layout="constrained", dpi=110)
    axes = figure.subplots(len(known), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    shades = colormaps["viridis"]([0.1 + 0.75 * number / max(1, len(known) - 1) for number in range(len(known))])
    for axis, (one, counts), shade in zip(axes, known, shades, strict=True):
        shares = [n / sum(counts) for n in counts[:used]]
        axis.bar(places, shares, width=0.96, align="edge", color=shade, linewidth=0)
        median = inside(one.facts, "drift.median")
        if isinstance(median, int | float) and 0 <= median < math.inf:
            axis.axvline(_place(median, used), color="black", linewidth=1.2)
        axis.axvline(_place(1, used), color="#c0392b", linewidth=1, linestyle=":")
        said = f"{one.name}: {sum(counts):,} clips, median {numeral(median)}"
        axis.text(0.995, 0.92, said, transform=axis.transAxes, ha="right", va="top", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axis.tick_params(labelsize=8)
    axes[-1].set_xticks(range(len(edges)), edges)
    if used == len(BINS):
        axes[-1].set_xticks([*range(used), used], [*edges, "∞"])
    axes[-1].set_xlim(0, used)
    axes[-1].set_xlabel("drift (black: median; red, dotted: what real clips do)", fontsize=9)
    figure.supylabel("share of clips", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _place(value: float, used: int) -> float:
    """Where a value stands on an axis on which all bins are equally wide."""
    number = max(n for n, one in enumerate(BINS) if one <= value)
    wide = BINS[number + 1] - BINS[number] if number + 1 < len(BINS) else math.inf
    return min(number + (value - BINS[number]) / wide, used)
