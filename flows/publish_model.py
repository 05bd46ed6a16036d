"""Publish a round's model to the Hugging Face Hub: the pipeline folder and a card in one commit, then a tag."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows import paths
from flows.card import Told
from flows.markdown import edited, untouched
from flows.model_card import ModelFacts, model_card
from flows.progress import counting_bar
from flows.publish import CARD, PICTURE
from store.errors import StoreError
from store.hub import Change, Published, Repo, digests, publish, refuse_foreign
from store.published import record

RECORD = "bagger.json"  # of a model folder; says which model it is


class ModelError(StoreError):
    """A model that is not there, or is none."""


@dataclass(frozen=True)
class Request:
    """What is to be published, and where; as of `flows.publish`. dataset: on the Hub, the clips it was trained on."""

    round: str
    repo: str
    private: bool | None = None
    dataset: str | None = None
    license: str | None = None
    retag: bool = False
    store: Path = paths.STORE


@dataclass
class Result:
    """What a publication came to."""

    files: list[str] = field(default_factory=list)
    where: Published | None = None
    edited: bool = False


def files_of(round: str) -> dict[str, Path]:
    """The files of a round's model by path. Raises ModelError if there is none."""
    folder = paths.model(round)
    if not (folder / RECORD).is_file():
        stage = "train_r0" if round == "r0" else f"train@{round}"
        raise ModelError(f"{folder}: no model; `dvc repro {stage}` makes it, `dvc pull {stage}` fetches it")
    inside = (path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    return {path.relative_to(folder).as_posix(): path for path in sorted(inside)}


def facts_of(request: Request) -> ModelFacts:
    """What the project knows of a model."""
    told = _json(paths.model(request.round) / RECORD)
    run = _json(Path("data/runs") / ("train_r0.json" if request.round == "r0" else f"train_{request.round}.json"))
    before = [f"r{k}" for k in range(int(request.round[1:]))]
    base = _json(paths.BASE / RECORD).get("source")
    rollouts = (_json(Path("data/runs", f"rollout_{name}.json")) for name in (request.round, *reversed(before)))
    made: dict[str, Any] = next((one["params"] for one in rollouts if one), {})
    settings = told.get("recipe", {})
    return ModelFacts(
        round=request.round, digest=told["digests"]["model"], train=run.get("params", {}).get("train", {}),
        steps=settings.get("num_steps", 0), mixture=_json(paths.plan_summary(request.round)),
        metrics=_json(paths.metrics(request.round)), before={name: _json(paths.metrics(name)) for name in before},
        sampler=made.get("settings", {}), video=made.get("video", {}),
        prefix_chunks=run.get("params", {}).get("prefix_chunks"),
        base=None if base is None else "the toy base" if base == "toy" else str(base), dataset=request.dataset,
        revision=request.round if request.dataset else None, software=f"bagger {version('bagger')}",
        git_commit=run.get("git_commit"), picture=(paths.REPORTS / "drift.png").is_file(),
    )  # fmt: skip


def to_hub(request: Request) -> Result:
    """Publish a model: one commit, its tag, read back, recorded."""
    repo = Repo(request.repo, "model")
    files: dict[str, bytes | Path] = dict(files_of(request.round))
    facts = facts_of(request)
    base = _json(paths.BASE / RECORD).get("source")
    bases = (base,) if isinstance(base, str) and base.count("/") == 1 and not Path(base).exists() else ()
    told = Told(request.repo, request.license, base_models=bases, endpoint=repo.api.endpoint)
    card = model_card(facts, told)
    if facts.picture:
        files[PICTURE] = paths.REPORTS / "drift.png"
    result = Result(sorted(files))

    def change(commit: str) -> Change | None:
        there = repo.paths(commit)
        if repo.read(RECORD, commit) == (paths.model(request.round) / RECORD).read_bytes():
            return None
        if RECORD not in there:
            refuse_foreign(repo, there, RECORD)
        old = (repo.read(CARD, commit) or b"").decode("utf-8", "replace")
        result.edited = bool(old) and not untouched(old)
        text = edited(old, card) if result.edited else card
        gone = [one for one in there if one not in files and one not in (CARD, ".gitattributes", PICTURE)]
        return Change({**files, CARD: text.encode()}, gone)

    repo.ensure(request.private)
    where = result.where = publish(repo, request.round, change, f"Model of round {request.round}", retag=request.retag)
    with counting_bar("reading back", "file") as progress:
        repo.check(digests(files_of(request.round)), where.commit, progress)
    record(request.store, repo, where.commit, request.round, model_digest=facts.digest)
    return result


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file of the project holds; nothing if it is not there."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
