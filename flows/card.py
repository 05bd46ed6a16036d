"""The pages that tell strangers what was published: a data set's card and its croissant.json, and a model's card.

Pure functions of a `Publication` (store/publication.py) or of `ModelFacts`: no store, network, torch or clock, and
equal facts give equal bytes. The words are in dataset_card.md.jinja and model_card.md.jinja, the figures are from here.

Notable:
- Prompts, filters, licences and names of models are whatever somebody wrote, and an older publication.json is whatever
  a server sent. All of it is data: `plain` and `code` leave no character with a meaning in Markdown or HTML, YAML is
  written by a YAML library, and figures of another form than expected are left out.
- A card ends in a digest of itself, so that `untouched` knows one that no person has edited, whatever version wrote it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from store.catalog import SEED_ROUND
from store.licence import judged
from store.publication import ALL, BINS, File, Publication, Round, columns
from store.schema import DRIFT_PARTS, NO_PART

SPLITS = ("corrective", "seed", "heldout")
PICTURE = "assets/drift.png"
TAGS = ("video", "text-to-video", "autoregressive-video", "video-diffusion", "synthetic", "bagger")
DASH = "–"
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

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
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "odbl": "ODbL-1.0", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0"}

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
        if not _REPO.fullmatch(self.repo):
            raise ValueError(f"a repository is called ORG/NAME, got {self.repo!r}")


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


# ---------------------------------------------------------------- words that others wrote


def clean(text: object, most: int = 400) -> str:
    """One line of characters that show: controls and line breaks are spaces, marks that turn the direction of writing
    and halves of characters are left out; longer texts are cut."""
    kept = []
    for one in str(text):
        category = unicodedata.category(one)
        if category in ("Cc", "Zl", "Zp", "Zs"):
            kept.append(" ")
        elif category not in ("Cf", "Cs", "Co", "Cn"):
            kept.append(one)
    line = " ".join("".join(kept).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


# Characters that can mean something to Markdown or HTML, and what of a bare address makes a link.
_RISKY = re.compile(r"""[!"#$&*<>?@\[\\\]^_`{|}~]|:(?=//)|(?<=www)\.""", re.IGNORECASE)


def plain(text: object, most: int = 400) -> Markup:
    """A text as Markdown and HTML that show just these characters: what might mean something becomes its number
    (`&#124;`), which no parser takes for structure. Not for the start of a line, where `-` or `1.` make a list."""
    return Markup(_RISKY.sub(lambda found: f"&#{ord(found[0])};", clean(text, most)))


def code(text: object, most: int = 400) -> Markup:
    """The same in the type of code."""
    line = clean(text, most)
    if re.fullmatch(r"[A-Za-z0-9_./@+=-]+", line) and "www." not in line.lower():
        return Markup(f"`{line}`")
    return Markup(f"<code>{plain(line, most)}</code>") if line else Markup(DASH)


def fence(text: str, language: str = "") -> Markup:
    """A block of code, whatever backticks are in it."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{ticks}{language}\n{text}\n{ticks}")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> Markup:
    """A table; the first `left` columns are texts, the others figures."""
    lines: list[list[str]] = [
        [one if isinstance(one, Markup) else plain(one) for one in row] for row in (header, *rows)
    ]
    rule = ["---" if number < left else "---:" for number in range(len(header))]
    return Markup("\n".join("| " + " | ".join(row) + " |" for row in (lines[0], rule, *lines[1:])))


def _codes(names: Iterable[object]) -> Markup:
    return Markup(", ").join(map(code, names))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=True, keep_trailing_newline=True,
        finalize=lambda one: one if isinstance(one, Markup) else plain(one),
    )  # fmt: skip
    made.filters |= {"code": code, "codes": _codes, "fence": fence}
    return made


def _page(template: str, front: DatasetCardData | ModelCardData, **values: Any) -> str:
    """Front matter and body, and the digest of both."""
    body = _environment().get_template(template).render(table=table, **values)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    text = f"---\n{front.to_yaml()}\n---\n\n{body}\n\n"
    return text + _mark(text)


def _mark(text: str) -> str:
    return f"<!-- written by bagger; sha256 of all above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def untouched(card: str) -> bool:
    """Whether a card is as some version of this program wrote it."""
    text, comment, _ = card.rpartition("<!-- written by bagger")
    return bool(comment) and card == text + _mark(text)


_OWNED = ("configs", "size_categories", "model-index")  # of a front matter: what follows from the files


def edited(card: str, new: str) -> str:
    """A card that somebody has edited, with what of a new one's front matter the files need: theirs is everything else.

    A front matter that cannot be read is replaced.
    """
    ours = DatasetCard(new)
    try:
        theirs = DatasetCard(card)
    except (ValueError, yaml.YAMLError):
        theirs = DatasetCard(new)
        theirs.text = "\n" + re.sub(r"\A\s*---\s*?\n.*?\n---[ \t]*(\n|\Z)", "", card, count=1, flags=re.DOTALL)
    owned = {key: value for key, value in ours.data.to_dict().items() if key in _OWNED}
    front = ours.data.to_dict() | theirs.data.to_dict() | owned
    return f"---\n{DatasetCardData(**front).to_yaml()}\n---\n{theirs.text}"


# ---------------------------------------------------------------- figures, with distrust


def _counts(facts: Mapping[str, Any], name: str) -> dict[str, int]:
    """Value -> number of clips, the most frequent first, an order that publication.json does not keep."""
    found = facts.get(name)
    items = found.items() if isinstance(found, Mapping) else ()
    known = [(str(key), number) for key, number in items if type(number) is int and number > 0]
    return dict(sorted(known, key=lambda one: (-one[1], one[0])))


def _number(value: object, digits: int = 2) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _inside(value: object, path: str) -> Any:
    """What is found under `a.b` in mappings; None if nothing is."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _histogram_counts(one: Round) -> list[int] | None:
    found = _inside(one.facts, "drift.counts")
    if not isinstance(found, list) or len(found) != len(BINS) or not all(type(n) is int and n >= 0 for n in found):
        return None
    return found if sum(found) else None


def _rows(files: Iterable[File]) -> int:
    return sum(file.rows for file in files if file.split)


def _corrective(publication: Publication) -> list[Round]:
    return [one for one in publication.rounds.values() if one.name != SEED_ROUND]


def _newest(publication: Publication) -> Round:
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
    found = found or {name for one in publication.rounds.values() for name in _counts(one.facts, "licenses")}
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
    newest = _newest(publication)
    license, license_name = license_of(publication, told)
    other: dict[str, Any] = {"license_name": license_name, "license_link": f"{_url(told)}#licences"}
    other = other if license_name else {}
    front = DatasetCardData(
        license=license,
        **other,
        pretty_name=clean(told.name or told.repo.partition("/")[2], 120),
        language=["en"],
        tags=list(dict.fromkeys([*TAGS, *(clean(one, 60) for one in told.tags)])),
        annotations_creators=["machine-generated"],
        task_categories=["text-to-video"],
        size_categories=[size_category(_rows(publication.files()))],
        configs=[
            {
                "config_name": name,
                **({"default": True} if name == newest.name else {}),
                "data_files": [{"split": split, "path": list(files)} for split, files in splits.items()],
            }
            for name, splits in configs(publication).items()
        ],
    )
    corrective = _corrective(publication)
    scorers = {scorer: None for one in corrective for scorer in _counts(one.facts, "scorers") if scorer}
    split = next(iter(splits_of([newest])), SPLITS[0])
    return _page(
        "dataset_card.md.jinja", front, told=told, newest=newest.name, seed=publication.rounds.get(SEED_ROUND),
        corrective=corrective, clips=_rows(publication.files()), picture=_picture_of(publication),
        glance=_glance(publication), models=_models(corrective), samplers=_samplers(corrective),
        drift=_drift(corrective), scorers=list(scorers), columns=_columns(),
        examples=_examples(corrective), runs=_runs(publication),
        parts=_shares(corrective, "drift_part", [one for pair in DRIFT_PARTS.values() for one in pair if one]
                      + [NO_PART], {"": "not measured", NO_PART: "none moved"}),
        gates=_shares(corrective, "gates", [""], {"": "passed"}),
        classes=_shares(corrective, "reversal_class", ["invariant", "equivariant", "novel", "irreversible"]),
        styles=_shares(corrective, "marker_style", ["none", "inverted", "prefix"]),
        rewriters=_shares(corrective, "rewriter_kind", ["override", "toy-grammar", "llm", "rules", "prefix"]),
        verdicts=_shares(corrective, "verdict", ["passed"]), licenses=_licenses(publication), license=license,
        shapes=_shapes(publication), digests=_digests(publication), bins=BINS,
        load=_LOAD.format(repo=told.repo, name=newest.name, split=split), play=_PLAY,
        train=told.train or f"bagger fetch {told.repo} --revision {newest.name}\n"
                            f"dvc repro --single-item mix@{newest.name} train@{newest.name}",
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


def _url(told: Told) -> str:
    return f"{told.endpoint}/datasets/{told.repo}"


def _picture_of(publication: Publication) -> bool:
    return any(_histogram_counts(one) for one in publication.rounds.values())


def _glance(publication: Publication) -> Markup:
    rows = []
    for name, one in publication.rounds.items():
        splits = {split: _rows(files) for split, files in one.splits().items()}
        said = ", ".join(f"{split} {splits[split]:,}" for split in SPLITS if split in splits)
        where = DASH if one.where is None else code(one.where)
        rows.append([code(name), said, where, _bytes(one.files), code(one.digest[:12])])
    rows.append([code(ALL), f"{_rows(publication.files()):,} in all", Markup(DASH), _bytes(publication.files()), DASH])
    return table(["config", "clips by split", "filter", "size", "digest"], rows, left=5)


def _bytes(files: Iterable[File]) -> str:
    size = float(sum(file.bytes for file in files))
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _models(rounds: Sequence[Round]) -> Markup:
    rows = [
        [code(one.name), code(model), _number(number)]
        for one in rounds
        for model, number in _counts(one.facts, "models").items()
    ]
    return table(["round", "rolled out by", "clips"], rows, left=2) if rows else Markup("")


def _samplers(rounds: Sequence[Round]) -> Markup:
    """A row a setting, a column a round; settings that differ within a round stand side by side."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for one in rounds:
        for text in _counts(one.facts, "samplers"):
            try:
                settings = json.loads(text)
            except ValueError:
                settings = {"settings": text}
            for name, value in sorted((settings if isinstance(settings, dict) else {"settings": settings}).items()):
                shown = value if isinstance(value, str) else json.dumps(value)
                found.setdefault(str(name), {}).setdefault(one.name, {})[clean(shown, 120)] = None
    found = {name: by for name, by in found.items() if {one for values in by.values() for one in values} - _OFF}
    rows = [
        [code(name), *(Markup(", ").join(map(code, by[one.name])) if one.name in by else DASH for one in rounds)]
        for name, by in found.items()
    ]
    header = ["setting", *(code(one.name) for one in rounds)]
    return table(header, rows, left=len(header)) if rows else Markup("")


_OFF = {"", "null", "false", "0", "0.0"}  # of settings, as JSON


def _drift(rounds: Sequence[Round]) -> Markup:
    names = ("min", "q10", "median", "mean", "q90", "max")
    rows = []
    for one in rounds:
        unknown = _inside(one.facts, "drift.unknown")
        figures = [_number(_inside(one.facts, f"drift.{name}")) for name in names]
        filtered = DASH if one.where is None else code(one.where)
        rows.append([code(one.name), filtered, _number(_rows(one.files)), *figures, _number(unknown)])
    header = ["round", "filter", "clips", "min", "q10", "median", "mean", "q90", "max", "unknown"]
    return table(header, rows, left=2) if any(_inside(one.facts, "drift") for one in rounds) else Markup("")


def _shares(
    rounds: Sequence[Round], name: str, order: Sequence[str] = (), said: Mapping[str, str] | None = None
) -> Markup:
    """A row a value, a column a round: the share of its clips."""
    by_round = {one.name: _counts(one.facts, name) for one in rounds}
    values = list(dict.fromkeys(value for counts in by_round.values() for value in counts))
    values.sort(key=lambda value: order.index(value) if value in order else len(order))
    rows = []
    for value in values:
        shares = [(counts.get(value, 0), sum(counts.values())) for counts in by_round.values()]
        label = (said or {}).get(value, value or "not known")
        rows.append([label, *(f"{n / total:.1%}" if n else "0" if total else DASH for n, total in shares)])
    return table(["", *(code(one) for one in by_round)], rows) if rows else Markup("")


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


def _run_facts(publication: Publication) -> list[Mapping[str, Any]]:
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
    for run in _run_facts(publication):
        stage, told = clean(run.get("stage"), 40), []
        for path in _MATTERS.get(stage, ()):
            value = _inside(run.get("params"), path)
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
        [f"{t} frames of {w}×{h} at {fps.removesuffix('.0')} a second", _number(n)]
        for (t, w, h, fps), n in found.most_common(12)
    ]
    return table(["videos", "clips"], rows) if rows else Markup("")


_JUDGED = {"open": "lets you pass them on", "forbidden": "does not let you pass them on", "unknown": DASH}


def _licenses(publication: Publication) -> Markup:
    rows = []
    for one in publication.rounds.values():
        for name, number in _counts(one.facts, "licenses").items():
            said = code(name, 120) if name else Markup("not stated")
            rows.append([code(one.name), said, _JUDGED[judged(name or None)], _number(number)])
    header = ["round", "licence of the clip, or of the seed clip it was made of", "as this software reads it", "clips"]
    return table(header, rows, left=3) if rows else Markup("")


def _digests(publication: Publication) -> Markup:
    rows = []
    for name, one in publication.rounds.items():
        rows.append([code(name), Markup("all files"), _number(sum(file.rows for file in one.files)), code(one.digest)])
        for label, manifest in sorted(one.tables.items()):
            rows.append([code(name), code(label), _number(manifest.rows), code(manifest.digest, 80)])
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
        median = _inside(one.facts, "drift.median")
        if isinstance(median, int | float) and 0 <= median < math.inf:
            axis.axvline(_place(median, used), color="black", linewidth=1.2)
        axis.axvline(_place(1, used), color="#c0392b", linewidth=1, linestyle=":")
        said = f"{one.name}: {sum(counts):,} clips, median {_number(median)}"
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


# ---------------------------------------------------------------- croissant.json

CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "annotation": "cr:annotation", "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"}, "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isArray": "cr:isArray", "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "name": {"@container": "@language"},
    "parentField": "cr:parentField", "path": "cr:path", "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/", "recordSet": "cr:recordSet", "references": "cr:references",
    "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
_PROV_COLUMNS = {
    "was_derived_from": "prov:wasDerivedFrom",
    "was_generated_by": "prov:wasGeneratedBy",
    "model_digest": "prov:wasAttributedTo",
}


def croissant(publication: Publication, told: Told) -> dict[str, Any]:
    """croissant.json, Croissant 1.1 (docs.mlcommons.org/croissant): files with their digests, a record set a config
    with every column, and provenance in W3C PROV and Croissant's RAI vocabulary. The version is 1.K.0 of round rK:
    rounds are added, and those before stay as they are."""
    newest, (license, _) = _newest(publication), license_of(publication, told)
    spdx = _SPDX.get(license) or (license.upper() if license.startswith(("cc-", "cc0")) else None)
    owner = told.repo.partition("/")[0]
    scorers = {name for one in _corrective(publication) for name in _counts(one.facts, "scorers") if name}
    rewriters = {name for one in _corrective(publication) for name in _counts(one.facts, "rewriter_kind") if name}
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": clean(told.name or told.repo, 120),
        "description": _ABOUT,
        "url": _url(told),
        "version": f"1.{newest.name[1:]}.0",
        "license": f"https://spdx.org/licenses/{spdx}" if spdx else f"{_url(told)}#licences",
        "creator": {"@type": "Organization", "name": owner, "url": f"{told.endpoint}/{owner}"},
        **({"datePublished": clean(told.published, 40)} if told.published else {}),
        "keywords": list(dict.fromkeys([*TAGS, *(clean(one, 60) for one in told.tags)])),
        "inLanguage": "en",
        "isLiveDataset": False,
        "citeAs": BIBTEX,
        "rai:dataCollection": _COLLECTION,
        "rai:dataCollectionType": ["Synthetic data generation"],
        "rai:dataManipulationProtocol": _MANIPULATION,
        "rai:dataPreprocessingProtocol": [_PREPROCESSING],
        "rai:machineAnnotationTools": [
            *(f"drift and its parts: {clean(one, 120)}" for one in sorted(scorers)),
            *(f"rewritten prompts: {clean(one, 120)}" for one in sorted(rewriters)),
        ],
        "rai:dataLimitations": _LIMITS,
        "rai:dataUseCases": ["training autoregressive video diffusion models to recover from their own errors"],
        "distribution": [
            {
                "@type": "cr:FileObject", "@id": "repo", "name": "repo", "description": "The repository on the Hub.",
                "contentUrl": _url(told), "encodingFormat": "git+https",
                "sha256": "https://github.com/mlcommons/croissant/issues/80",  # a repository has none; the files have
            },
            *(
                {
                    "@type": "cr:FileObject", "@id": file.path, "name": file.path, "contentUrl": file.path,
                    "containedIn": {"@id": "repo"}, "encodingFormat": "application/x-parquet",
                    "contentSize": f"{file.bytes} B", "sha256": file.sha256,
                }
                for file in publication.files()
            ),
            *(
                {
                    "@type": "cr:FileSet", "@id": f"files-of-{name}", "name": f"files-of-{name}",
                    "containedIn": {"@id": "repo"}, "encodingFormat": "application/x-parquet",
                    "includes": [path for files in splits.values() for path in files],
                }
                for name, splits in configs(publication).items()
            ),
        ],
        "recordSet": [_record_set(name, publication) for name in configs(publication)],
        "prov:wasDerivedFrom": [
            *({"@id": f"{told.endpoint}/{quote(clean(one, 120))}"} for one in told.base_models),
            *({"@id": _urn(model)} for model in _models_of(_corrective(publication))),
        ],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity", "@id": _urn(run.get("run_id")),
                "prov:label": clean(f"{run.get('stage')} {run.get('round') or ''}", 80),
                "prov:wasAssociatedWith": {
                    "@type": "prov:SoftwareAgent", "prov:label": clean(run.get("was_associated_with"), 80),
                    **({"sc:version": clean(run["git_commit"], 40)} if run.get("git_commit") else {}),
                },
            }
            for run in _run_facts(publication)
        ],
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in ([], None)}


def _record_set(name: str, publication: Publication) -> dict[str, Any]:
    rounds = [one for one in publication.rounds.values() if name in (ALL, one.name)]
    what = {ALL: "All rounds.", SEED_ROUND: "Seed clips: real videos."}.get(name, f"Corrective clips of round {name}.")
    models = _models_of(rounds)
    made: dict[str, Any] = {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{what} {_rows(file for one in rounds for file in one.files):,} clips.",
        "key": {"@id": f"{name}/clip_id"},
        "field": [_field_of(name, column, kind, doc) for column, (kind, doc) in columns().items()],
    }
    if models:
        made["prov:wasAttributedTo"] = [
            {
                "@type": "prov:SoftwareAgent", "@id": _urn(model),
                "prov:label": f"SyntheticDataGenerator {clean(model, 80)}", "description": f"rolled out {number} clips",
            }
            for model, number in models.items()
        ]  # fmt: skip
    return made


def _field_of(name: str, column: str, kind: pa.DataType, doc: str) -> dict[str, Any]:
    several = pa.types.is_list(kind)
    told = "sc:VideoObject" if column == "video" else _TYPES[kind.value_type if several else kind]
    source: dict[str, Any] = {"fileSet": {"@id": f"files-of-{name}"}, "extract": {"column": column}}
    return {
        "@type": "cr:Field", "@id": f"{name}/{column}", "name": column, "description": doc, "dataType": told,
        "source": source | ({"transform": {"jsonPath": "bytes"}} if column == "video" else {}),
        **({"isArray": True, "arrayShape": "-1"} if several else {}),
        **({"equivalentProperty": _PROV_COLUMNS[column]} if column in _PROV_COLUMNS else {}),
    }  # fmt: skip


_TYPES = {
    pa.string(): "sc:Text", pa.float32(): "cr:Float32", pa.float64(): "cr:Float64", pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64", pa.bool_(): "sc:Boolean",
}  # fmt: skip


def _models_of(rounds: Iterable[Round]) -> Counter[str]:
    """Model -> clips that it rolled out."""
    found: Counter[str] = Counter()
    for one in rounds:
        found.update({name: number for name, number in _counts(one.facts, "models").items() if name})
    return found


def _urn(name: object) -> str:
    return f"urn:bagger:{quote(clean(name, 120), safe='')}"


_ABOUT = (
    "Corrective clips for autoregressive video diffusion models, made by Backwards Aggregation (BAgger): a causal "
    "model is rolled out and drifts, and its rollout is played backwards under a rewritten prompt, so that it begins "
    "in the drift and ends in real frames. With drift scores, prompts before and after, and the lineage of every clip."
)
_COLLECTION = (
    "Corrective clips are rollouts of the models named in prov:wasAttributedTo, from the first chunk of a seed clip. "
    "Seed clips, where they are published, are real videos or clips of a procedural world."
)
_MANIPULATION = (
    "A rollout is decoded, its frames are put in reverse order, and it is encoded again. Its prompt is rewritten to be "
    "true of the reversed clip, in words where that is safe and else with the marker 'A reversed video of'. Scores are "
    "taken of the rollout in generation order, before the reversal."
)
_PREPROCESSING = "Source videos are cut, scaled, cropped and resampled to one shape before anything else."
_LIMITS = [
    "Corrective clips are no natural videos: motion, cause and effect run backwards.",
    "Drift is a distance without learned weights, in units of what real clips do; it sees no objects.",
    "Failed gates are recorded and not filtered out of the files.",
]


# ---------------------------------------------------------------- the card of a model

_MEANS = {  # of metrics/rK.json, what stands in the card, in order: what it is, and whether less is better
    "drift": "drift (1: what real clips do; lower is better)",
    **{f"drift_{part}": f"{part}, signed: {up} above 0" + (f", {down} below" if down else "")
       for part, (down, up) in DRIFT_PARTS.items()},
    "latent_drift": "latent drift (lower is better)",
    "naturalness_drift": "change of naturalness, signed",
    "seam": "seam (1: none)",
    "oracle_error": "toy world: error against the truth, 0 to 1 (lower is better)",
    "oracle_object_present": "toy world: objects still there, 0 to 1 (higher is better)",
}  # fmt: skip
_TRAIN = (
    "objective", "batch_size", "lr", "warmup", "ema", "weight_decay", "clip", "shift", "timestep", "text_dropout",
    "precision", "lora", "history_sigma",
)  # fmt: skip


def model_card(facts: ModelFacts, told: Told) -> str:
    """README.md of a published model, a diffusers folder of WanPipeline."""
    metrics = {name: facts.metrics.get(name) for name in _MEANS}
    known = {name: value for name, value in metrics.items() if _number(value) != DASH}
    name = clean(told.name or told.repo.partition("/")[2], 120)
    revision = clean(facts.revision, 80) if facts.revision else None
    dataset = facts.dataset if facts.dataset and _REPO.fullmatch(facts.dataset) else None
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
    sampler = {key: value for key, value in sorted(facts.sampler.items()) if _plain_json(value) not in _OFF}
    rounds, values = {**facts.before, facts.round: facts.metrics}, _code_values(facts)
    counted = _inside(facts.metrics, "drift_part")
    shares = sorted(counted.items(), key=lambda one: -one[1]) if isinstance(counted, Mapping) else []
    return _page(
        "model_card.md.jinja", front, facts=facts, told=told, name=name, dataset=dataset, revision=revision,
        objective=_OBJECTIVES.get(str(train.get("objective")), "the objective named below"),
        settings=_settings(settings), sampler=_settings(sampler),
        mixture=_mixture(facts.mixture), length=facts.sampler.get("text_length"),
        metrics=_metrics(rounds), clips=facts.metrics.get("num_clips"), gated=facts.metrics.get("gated"),
        interval=_number(facts.metrics.get("drift_ci95")), first=next(iter(facts.before), None),
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
    settings = {name: facts.sampler[name] for name in named if _number(facts.sampler.get(name)) != DASH}
    more = ", ".join(f"{name}={value}" for name, value in {**size, "max_sequence_length": length}.items())
    said = ", ".join(f"{name}={value}" for name, value in settings.items())
    return {**size, "length": length, "more": more, "settings": said}


def _plain_json(value: object) -> str:
    return clean(value if isinstance(value, str) else json.dumps(value, default=str), 160)


def _mixture(mixture: Mapping[str, Any]) -> Markup:
    rows = []
    rounds = mixture.get("rounds")
    for name, one in (rounds if isinstance(rounds, Mapping) else {}).items():
        share = _inside(one, "share")
        drift = [_number(_inside(one, f"drift.{key}")) for key in ("min", "median", "max")]
        rows.append([
            code(name), "seed" if name == SEED_ROUND else "corrective",
            f"{share:.1%}" if isinstance(share, int | float) else DASH, _number(_inside(one, "samples")),
            _number(_inside(one, "clips")), _number(_inside(one, "mean_repeats"), 1),
            DASH if set(drift) == {DASH} else " / ".join(drift),
        ])  # fmt: skip
    header = ["round", "clips of", "share", "samples", "distinct clips", "times each", "drift: least / median / most"]
    return table(header, rows, left=2) if rows else Markup("")


def _metrics(rounds: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A row a measure, a column a round that has been evaluated."""
    there = {name: one for name, one in rounds.items() if any(_number(one.get(key)) != DASH for key in _MEANS)}
    rows = []
    for key, said in _MEANS.items():
        values = [_number(one.get(key)) for one in there.values()]
        if key == "drift":
            widths = [_number(one.get("drift_ci95")) for one in there.values()]
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
