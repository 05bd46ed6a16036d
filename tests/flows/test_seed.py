"""Stage `seed` on a user's folder: what people have becomes clips, and what does not is named with its reason."""

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import lance
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from flows import catalog, correct, evaluate, mix, natural, report, rewrite, rollout, score, train
from flows.command import command
from flows.params import load_params
from flows.seed import main
from flows.server import HOME, prefect_server
from store import Store
from store.latents import unpack_latents
from store.schema import SCHEMA_VERSION, VERSION_KEY
from store.table import content_manifest, read_manifest, read_table
from store.video import decode_video, ffmpeg, probe

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "tests" / "smoke.yaml"


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory, prefect_home):
    """One Prefect server for all stages of this file."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("server"))
    shutil.copytree(prefect_home, HOME)
    try:
        with prefect_server() as url:
            yield url
    finally:
        os.chdir(before)


def make(
    path: Path, *options: str, source: str = "testsrc2=size=64x48:rate=10:duration=2", sound: bool = False
) -> None:
    """A video that ffmpeg itself wrote: of the size, rate and length that `source` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = ["-f", "lavfi", "-i", source] + (["-f", "lavfi", "-i", "sine=duration=2"] if sound else [])
    command = [ffmpeg(), "-v", "error", "-y", *inputs, "-threads", "1", *options, str(path)]
    subprocess.run(command, check=True, capture_output=True)


def turned(upright: Path, path: Path) -> None:
    """The same video, to be shown turned by 90 degrees."""
    command = [
        ffmpeg(),
        "-v",
        "error",
        "-y",
        "-display_rotation:v:0",
        "90",
        "-i",
        str(upright),
        "-c",
        "copy",
        str(path),
    ]
    subprocess.run(command, check=True, capture_output=True)


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight good videos of every sort and six bad ones, with captions in csv, jsonl and a sub-folder of its own."""
    root = tmp_path_factory.mktemp("videos")
    make(root / "h264.mp4", *H264)
    make(root / "long.mp4", *H264, source="testsrc2=size=48x48:rate=8:duration=4")
    make(
        root / "sound.mkv",
        *H264,
        "-c:a",
        "aac",
        "-shortest",
        source="testsrc=size=80x60:rate=30:duration=2",
        sound=True,
    )
    make(root / "mpeg4.avi", "-c:v", "mpeg4", source="testsrc2=size=100x40:rate=25:duration=2")
    make(
        root / "sub" / "vp9.webm",
        "-c:v",
        "libvpx-vp9",
        "-cpu-used",
        "8",
        source="testsrc=size=40x90:rate=12:duration=2",
    )
    make(
        root / "sub" / "odd.mp4",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv444p",
        source="testsrc=size=33x51:rate=8:duration=2",
    )
    make(root / "slow.mov", *H264, source="testsrc2=size=64x64:rate=2:duration=3")
    left_bright = "color=black:size=64x32:rate=8:duration=2,drawbox=x=0:y=0:w=32:h=32:color=white:t=fill"
    make(root / "upright.mp4", *H264, source=left_bright)
    turned(root / "upright.mp4", root / "turned.mp4")
    (root / "upright.mp4").unlink()
    make(root / "short.mp4", *H264, source="testsrc=size=32x32:rate=8:duration=0.5")
    make(root / "untold.mp4", *H264)
    make(root / "silent.mp4", *H264)
    whole = (root / "h264.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "text.mp4").write_text("this is no video")
    shutil.copy(root / "h264.mp4", root / "twin.mp4")
    shutil.copy(root / "long.mp4", root / "leak.mp4")

    rows = [
        {"file_name": "h264.mp4", "text": "a test card", "license": "CC0-1.0", "author": "somebody"},
        {"file_name": "long.mp4", "text": "a long test card", "split": "validation"},
        {"file_name": "turned.mp4", "text": "a white half"},
        {"file_name": "slow.mov", "text": "a slow test card"},
        {"file_name": "short.mp4", "text": "half a second"},
        {"file_name": "cut.mp4", "text": "cut short"},
        {"file_name": "text.mp4", "text": "no video"},
        {"file_name": "silent.mp4", "text": "  "},
        {"file_name": "nowhere.mp4", "text": "there is no such file"},
        {"file_name": "twin.mp4", "text": "a test card", "split": "train"},
        {"file_name": "leak.mp4", "text": "a test card to train on", "split": "train"},
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "metadata.csv").write_text(
        'file_name,text\nsound.mkv,"a test card, with a tone"\nmpeg4.avi,a wide test card\n'
    )
    (root / "sub" / "metadata.csv").write_text(
        "file_name,caption,split\nvp9.webm,a tall card,train\nodd.mp4,an odd card,test\n"
    )
    return root


@pytest.fixture
def project(tmp_path, tiny_base, monkeypatch):
    """A project folder with a base and params, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(tiny_base)
    write_params(source="nowhere")
    return tmp_path


def write_params(source: Path | str, rounds: int = 2) -> None:
    yaml = YAML()
    values = yaml.load(SMOKE.read_text())
    values["seed"]["source"] = str(source)
    for number in range(rounds + 1, 3):
        del values["rounds"][f"r{number}"]
    with Path("params.yaml").open("w") as file:
        yaml.dump(values, file)


@pytest.fixture
def seed(monkeypatch, capsys):
    """Runs the stage's command in this process, as `python -m flows.seed` does; gives what it said."""

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process of `made`: the last bits of latents depend on it

    def run(*, fails: bool = False) -> str:
        monkeypatch.setattr("sys.argv", ["flows.seed"])
        capsys.readouterr()
        if fails:
            with pytest.raises(SystemExit) as ended:
                command(main)
            assert ended.value.code == 1
        else:
            command(main)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    yield run
    torch.set_num_threads(threads)


def ingest_report() -> dict[str, tuple[str, str]]:
    with Path("data/ingest_report.csv").open(newline="") as file:
        return {row["file"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}


def error_of(said: str) -> str:
    """The one error that a stage ended with; no traceback before it."""
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return said[said.index(lines[0]) :].strip()


@contextmanager
def left_as_it_was(*paths: str):
    """Nothing in these folders changes, not even a time."""

    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for path in paths for p in [Path(path), *sorted(Path(path).rglob("*"))]}

    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module")
def made(folder, tiny_base, tmp_path_factory) -> Path:
    """The project after `seed` on the folder. Shared: read only."""
    root, before = tmp_path_factory.mktemp("made"), Path.cwd()
    (root / "models").mkdir()
    (root / "models" / "base").symlink_to(tiny_base)
    os.chdir(root)
    try:
        write_params(source=folder)
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", "flows.seed"], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        (root / "said").write_text(done.stderr)
    finally:
        os.chdir(before)
    return root


KEPT = {
    "h264.mp4": "train", "long.mp4": "heldout", "sound.mkv": "train", "mpeg4.avi": "train", "slow.mov": "train",
    "sub/vp9.webm": "train", "sub/odd.mp4": "heldout", "turned.mp4": "train",
}  # fmt: skip


def test_whatever_people_have_becomes_clips_of_one_size_and_rate(made):
    rows = {row["source_path"]: row for row in read_table(made / "data/store", "seed").to_pylist()}
    assert {file: row["split"] for file, row in rows.items()} == KEPT
    for file, row in rows.items():
        frames = decode_video(row["video"])
        # training clips have the training length, held-out ones what they have, up to the evaluation's
        wanted = 16 if row["split"] == "heldout" else 8
        assert frames.shape == (wanted, 32, 32, 3), file
        assert (row["fps"], row["num_frames"], row["height"], row["width"]) == (8, wanted, 32, 32)
        assert probe(row["video"]).fps == 8
        assert probe(row["video"]).codec == "h264"
        assert row["latents_shape"] == [8, 8, 8, 8]
        assert np.isfinite(unpack_latents(row["latents"], row["latents_shape"])).all()
    assert rows["sound.mkv"]["prompt"] == "a test card, with a tone"
    assert rows["h264.mp4"]["license"] == "CC0-1.0"
    assert json.loads(rows["h264.mp4"]["extra"]) == {"author": "somebody"}
    manifest = read_manifest(made / "data/manifests/seed.json")
    assert manifest.rows == len(KEPT)
    assert content_manifest(made / "data/store", "seed") == manifest


def test_rotation_and_rate_of_the_source_count(made):
    rows = {row["source_path"]: row for row in read_table(made / "data/store", "seed").to_pylist()}
    picture = decode_video(rows["turned.mp4"]["video"])[0].mean(-1)
    halves = [part.mean() for part in (picture[:14], picture[18:], picture[:, :14], picture[:, 18:])]
    assert abs(halves[0] - halves[1]) > 200  # left and right have become top and bottom
    assert abs(halves[2] - halves[3]) < 10
    slow = decode_video(rows["slow.mov"]["video"]).astype(int)
    changes = np.abs(np.diff(slow, axis=0)).mean((1, 2, 3))
    assert (changes > 3).sum() <= 2  # 2 pictures a second: a second's 8 frames show two or three of them


def test_whatever_is_no_clip_is_named_with_its_reason(made):
    report = {}
    with (made / "data/ingest_report.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["file"] not in report
            report[row["file"]] = (row["status"], row["reason"])
    kept = {file for file, (status, reason) in report.items() if status == "kept" and not reason}
    rejected = {file: reason for file, (status, reason) in report.items() if status == "rejected"}
    assert kept == set(KEPT)
    assert len(kept) + len(rejected) == len(report)
    expected = {
        "short.mp4": "4 frames at 8 a second, a training clip needs 8",
        "cut.mp4": "cut short",
        "text.mp4": "ffmpeg says",
        "metadata.jsonl:8": "no caption",
        "metadata.jsonl:9": "'nowhere.mp4' is missing",
        "untold.mp4": "no metadata row names it",
        "twin.mp4": "the same video with the same caption as h264.mp4",
        "leak.mp4": "the same video is held out as long.mp4",
    }
    assert set(rejected) == set(expected)
    for file, reason in expected.items():
        assert reason in rejected[file]
    said = (made / "said").read_text()
    assert "seed: 6 clips to train on, 2 held out, 8 rejected" in said
    assert "data/ingest_report.csv" in said


def test_again_gives_the_same_table(made, project, folder, seed):
    write_params(source=folder)
    seed()
    assert Path("data/manifests/seed.json").read_bytes() == (made / "data/manifests/seed.json").read_bytes()
    assert Path("data/ingest_report.csv").read_bytes() == (made / "data/ingest_report.csv").read_bytes()


def test_the_loop_turns_on_a_users_folder(made, project, folder, seed):
    """Every later stage, in this process: no toy world, so no oracle, and prompts get the mark of a reversed video."""
    shutil.copytree(made / "data", "data")
    write_params(source=folder, rounds=1)
    Path("rewrites.yaml").touch()
    params = load_params()
    natural.main(params)
    mix.main(params, "r0")
    train.main(params, "r0")
    evaluate.main(params, "r0")
    for stage in (rollout, score, rewrite, correct, mix, train, evaluate):
        stage.main(params, "r1")
    catalog.main(params)
    report.main(params)
    store = Store()
    found = store.clips(round="r1").to_pylist()
    assert len(found) == params.round("r1").rollouts
    assert {clip["source_prompt"] for clip in found} <= {row["prompt"] for row in store.clips(kind="seed").to_pylist()}
    assert all(clip["prompt"].lower().startswith("a reversed video of") for clip in found)
    assert all(clip["drift"] >= 0 and clip["oracle_color_error"] is None for clip in found)
    assert {"drift_by_round.csv", "drift.png", "grid.mp4"} <= {path.name for path in Path("reports").iterdir()}


@pytest.fixture
def with_store(made, project) -> Path:
    """A project that has a store already."""
    shutil.copytree(made / "data", "data")
    return project


def test_no_clip_left_is_one_error_and_the_store_stays(with_store, folder, tmp_path, seed):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("text.mp4", "cut.mp4", "short.mp4"):
        shutil.copy(folder / name, bad)
    names = ("text.mp4", "cut.mp4", "short.mp4", "nowhere.mp4")
    rows = "".join(json.dumps({"file_name": name, "text": "bad"}) + "\n" for name in names)
    (bad / "metadata.jsonl").write_text(rows)
    write_params(source=bad)
    with left_as_it_was("data/store", "data/manifests"):
        error = error_of(seed(fails=True))
    assert error.startswith(f"error: {bad}: no clip left to train on (4 rejected)")
    assert "short.mp4: 4 frames at 8 a second, a training clip needs 8" in error
    assert {name: status for name, (status, _) in ingest_report().items()} == {
        "text.mp4": "rejected", "cut.mp4": "rejected", "short.mp4": "rejected", "metadata.jsonl:4": "rejected",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no metadata.jsonl or metadata.csv in it"),
        ({"metadata.csv": "name;caption\n"}, "needs the columns file_name and text"),
        ({"metadata.jsonl": '{"file_name": "nowhere.mp4", "text": "x"}\n'}, "no clip left, 1 rejected"),
    ],
)
def test_no_metadata_or_no_video_is_one_error(with_store, tmp_path, files, message, seed):
    (tmp_path / "bad").mkdir()
    for name, text in files.items():
        (tmp_path / "bad" / name).write_text(text)
    write_params(source=tmp_path / "bad")
    with left_as_it_was("data/store", "data/manifests"):
        error = error_of(seed(fails=True))
    assert str(tmp_path / "bad") in error
    assert message in error


def test_missing_folder_is_one_error(project, seed):
    assert error_of(seed(fails=True)) == "error: nowhere: no such folder"


def test_unknown_param_is_one_error_with_the_nearest_key(with_store, folder, seed):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("heldout: 0.1", "heldout: 0.1, sorce: here"))
    with left_as_it_was("data"):
        error = error_of(seed(fails=True))
    assert "params.yaml: seed.sorce: unknown key (value 'here'); did you mean seed.source?" in error
    assert not Path(".work").exists()


def test_store_of_a_newer_schema_is_left_alone(with_store, folder, seed):
    path = "data/store/seed.lance"
    table = lance.dataset(path).to_table()
    shutil.rmtree(path)
    metadata = {**(table.schema.metadata or {}), VERSION_KEY: b"99"}
    lance.write_dataset(table.replace_schema_metadata(metadata), path)
    write_params(source=folder)
    with left_as_it_was("data/store", "data/manifests"):
        error = error_of(seed(fails=True))
    assert f"was written by a newer bagger (store schema 99, this one reads up to {SCHEMA_VERSION})" in error


def test_interrupted_seed_keeps_what_it_had(project, folder, tmp_path, seed):
    """A batch that has landed is not done again: the second run opens no video of it."""
    rows = [{"file_name": f"{n}.mp4", "text": f"card {n}", "split": "test" if n == 0 else "train"} for n in range(3)]
    own = tmp_path / "own"
    own.mkdir()
    for n in range(3):
        make(own / f"{n}.mp4", *H264, source=f"testsrc2=size={32 + 2 * n}x32:rate=8:duration=2")
    (own / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_params(source=own)
    Path("data/manifests").mkdir(parents=True)
    Path("data/manifests/seed.json").mkdir()  # in the way of the very last step
    (Path("data/manifests/seed.json") / "x").touch()
    with pytest.raises(OSError, match="seed.json"):
        seed()
    shutil.rmtree("data/manifests/seed.json")
    said = seed()
    assert "seed: continues what an interrupted run left" in said
    assert "3/3" in said.splitlines()[1]
    assert read_manifest(Path("data/manifests/seed.json")).rows == 3
