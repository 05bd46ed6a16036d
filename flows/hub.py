"""Stage `hub`: videos and captions of a data set on the Hugging Face Hub as a folder, as any user's folder would be."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.command import command, say
from flows.params import Params
from flows.progress import progress_bar
from flows.stage import Stage, path_digest
from store.folder import VIDEO_SUFFIXES

FOLDER = Path("data/hub")
NOTE = "README.txt"


class HubSourceError(ValueError):
    """A data set that cannot be reached, or lacks what params.yaml names."""


def main(params: Params) -> None:
    wanted = params.hub
    with Stage("hub", params={"hub": wanted}) as stage:
        folder = stage.work / "hub"
        folder.mkdir(parents=True, exist_ok=True)
        if wanted.repo is None:
            (folder / NOTE).write_text("Empty: hub.repo in params.yaml names no data set.\n", encoding="utf-8")
        else:
            commit, rows = open_rows(params)
            folder = stage.work / f"hub-{commit}"  # what an earlier run has left of another commit is not continued
            folder.mkdir(exist_ok=True)
            stage.outputs = {"repo": wanted.repo, "commit": commit}
            count = fill(folder, rows, params, commit, stage.label)
            if not count:
                raise HubSourceError(f"params.yaml: hub.split: {wanted.repo} has no row in {wanted.split!r}")
            stage.outputs["clips"] = count
            say(f"hub: {count} videos of {wanted.repo} at {commit[:12]}")
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(FOLDER, ignore_errors=True)
        os.replace(folder, FOLDER)
        stage.outputs["digest"] = path_digest(FOLDER)


def open_rows(params: Params) -> tuple[str, Iterator[Mapping[str, Any]]]:
    """The commit that the revision names now, and the rows of the split, streaming. Raises HubSourceError."""
    from datasets import DownloadConfig, Video, get_dataset_config_names, get_dataset_split_names, load_dataset

    from store.hub import Repo

    wanted = params.hub
    assert wanted.repo is not None
    repo = Repo(wanted.repo)
    commit = repo.resolve(wanted.revision)
    where = f"{wanted.repo} at {wanted.revision}"
    try:
        names = get_dataset_config_names(wanted.repo, revision=commit)
        config = wanted.config or ("default" if "default" in names else names[0])
        _known("hub.config", config, names, where)
        _known("hub.split", wanted.split, get_dataset_split_names(wanted.repo, config, revision=commit), where)
        rows = load_dataset(wanted.repo, config, split=wanted.split, revision=commit, streaming=True,
                            download_config=DownloadConfig(max_retries=3))  # fmt: skip
    except HubSourceError:
        raise
    except Exception as error:  # whatever a file of others makes of its readers
        raise HubSourceError(f"{where} cannot be read as a data set: {str(error).strip().splitlines()[0]}") from error
    features = rows.features or {}
    named = {"hub.video": wanted.video, "hub.caption": wanted.caption}
    for knob, column in {**named, **({"hub.license": wanted.license} if wanted.license else {})}.items():
        _known(knob, column, list(features), where)
    if not isinstance(features[wanted.video], Video):
        kind = type(features[wanted.video]).__name__
        raise HubSourceError(f"params.yaml: hub.video: column {wanted.video!r} of {where} is a {kind}, not a Video")
    return commit, iter(rows.cast_column(wanted.video, Video(decode=False)))


def _known(knob: str, value: str, known: list[str], where: str) -> None:
    if value not in known:
        raise HubSourceError(f"params.yaml: {knob}: found {value!r}; {where} has {', '.join(known)}")


def fill(folder: Path, rows: Iterator[Mapping[str, Any]], params: Params, commit: str, label: str) -> int:
    """Write videos and metadata.jsonl; what an earlier run has written is not written again. Gives how many."""
    from datasets.utils.file_utils import xopen

    wanted = params.hub
    told = []
    with progress_bar(wanted.max_clips or 0, label, "clip") as bar:
        for number, row in enumerate(itertools.islice(rows, wanted.max_clips)):
            video = row[wanted.video] or {}
            ending = Path(str(video.get("path") or "")).suffix.lower()
            name = f"{number:06d}{ending if ending in VIDEO_SUFFIXES else '.mp4'}"
            path = folder / name
            if not path.is_file():
                data = video.get("bytes")
                if data is None and video.get("path"):
                    with xopen(str(video["path"]), "rb") as file:
                        data = file.read()
                draft = path.with_suffix(".part")
                draft.write_bytes(data or b"")
                draft.replace(path)
            entry = {"file_name": name, "text": row[wanted.caption], "source": f"{wanted.repo}@{commit}", "row": number}
            if wanted.license:
                entry["license"] = row[wanted.license]
            told.append(entry)
            bar.update(1)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, sort_keys=True, default=str) + "\n" for entry in told)
    return len(told)


if __name__ == "__main__":
    command(main)
