"""`bagger score`: any video files, and clips of the store, whose scores are read and whose metrics are kept."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from flows import measures, score_clips
from flows.measures import parse_prefix
from flows.scorer import Scorer
from model import drift, features, metrics, naturalness
from model.extractors import load
from model.injection import inject, natural_clip
from store import Store
from store.catalog import build_catalog
from store.digest import bytes_sha256
from store.registry import register
from store.video import decode_video, encode_video, stream_video
from tests.model import tiny

ROOT = Path(__file__).parents[2]
FPS, FRAMES, PREFIX, CHUNK = 16, 57, 9, 12
HEIGHT, WIDTH = 48, 64
KINDS = {
    "bright": ("over-exposure", "over-exposing"),
    "blurred": ("blur", "blurring"),
    "frozen": ("freeze", "freezing"),
}
ROLLOUTS = 12


@pytest.fixture(scope="module")
def real():
    """Clips that nothing was done to."""
    return [natural_clip(seed, FRAMES, HEIGHT, WIDTH) for seed in range(12)]


@pytest.fixture(scope="module")
def videos(real, tmp_path_factory):
    """clean.mp4, a file for each of KINDS, and one that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    clip = real[0]
    made = {"clean": clip} | {name: inject(clip, kind, 0.9, PREFIX) for name, (kind, _) in KINDS.items()}
    for name, frames in made.items():
        (folder / f"{name}.mp4").write_bytes(encode_video(frames, FPS))
    (folder / "broken.mp4").write_bytes(b"this is no video")
    return folder


@pytest.fixture(scope="module")
def natural(real):
    """The unit of drift of these real clips, and what their frames look like."""
    curves = [features.curves(decode_video(encode_video(clip, FPS))) for clip in real]
    looks = np.concatenate([naturalness.features(features.luma(clip[::8])) for clip in real])
    unit = drift.fit(curves, PREFIX)
    return {"clip": unit.to_json(), "evaluation": unit.to_json() | {"num_frames": 2 * FRAMES},
            "naturalness": naturalness.fit(looks, HEIGHT, WIDTH)}  # fmt: skip


@pytest.fixture(scope="module")
def built(natural, real, rows, tmp_path_factory):
    """A project: params with networks that need no download, the unit of drift, and a store of one round."""
    root = tmp_path_factory.mktemp("project")
    data = root / "data"
    data.mkdir()
    (data / "natural.json").write_text(json.dumps(natural))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for role in ("subject", "background", "text", "aesthetic"):
        params["scoring"]["extractors"][role] = {"name": "random-conv", "source": None, "revision": None}
    params["resources"]["device"] = "cpu"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    networks = {"background": load("random-conv")}
    scorer = Scorer(drift.natural_of(natural["clip"]), None, ["background_consistency"], networks)
    seeds, rollouts, scores, clips = [], [], [], []
    for n in range(ROLLOUTS):
        frames = inject(real[n], "darkening", n / ROLLOUTS, PREFIX)
        shape = {"fps": float(FPS), "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}
        generated = shape | media(encode_video(frames, FPS)) | {"latents_shape": [2, 15, 1, 1], "latents": bytes(60)}
        backwards = generated | media(encode_video(frames[::-1].copy(), FPS))
        seeds.append(rows.seed()[n % 2] | shape | media(encode_video(real[n], FPS)) | {"clip_id": f"seed-{n}"})
        lineage = {"rollout_id": f"rollout-r1-{n}", "seed_clip_id": f"seed-{n}"}
        rollouts.append(
            rows.rollouts("r1", "model-0")[0] | generated | lineage
            | {"prefix_frames": PREFIX, "prefix_latents": 3, "chunk_latents": 3}
        )  # fmt: skip
        scores.append(
            {"rollout_id": f"rollout-r1-{n}", "round": "r1", "was_derived_from": [], "was_generated_by": "run-score-r1"}
            | scorer.score(decode_video(generated["video"]), PREFIX, chunk_frames=CHUNK, fps=FPS).columns()
        )
        clips.append(rows.clips("r1", "model-0")[0] | backwards | lineage | {"clip_id": f"clip-r1-{n}"})
    rows.seal(data, "rewrites_r1", rows.rewrites("r1"))
    for name, table in {"seed": seeds, "rollouts_r1": rollouts, "scores_r1": scores, "clips_r1": clips}.items():
        rows.seal(data, name, table)
    build_catalog(data / "store", ["r1"], [])
    shutil.rmtree(data / "work")
    return root


def media(video: bytes) -> dict:
    return {"video": video, "video_sha256": bytes_sha256(video)}


@pytest.fixture
def project(built, monkeypatch):
    """That project as the working folder, nothing kept yet."""
    shutil.rmtree(built / ".work", ignore_errors=True)
    monkeypatch.chdir(built)
    return built


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder as the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """Counts the videos that are decoded; `stop` after so many it is Ctrl-C."""
    seen = []

    class Counter:
        stop = None
        count = property(lambda self: len(seen))

    counter = Counter()

    def counting(decode):
        def counted(source, **settings):
            if len(seen) == counter.stop:
                raise KeyboardInterrupt
            seen.append(source)
            return decode(source, **settings)

        return counted

    for module, decode in ((measures, decode_video), (measures, stream_video), (score_clips, decode_video)):
        monkeypatch.setattr(module, decode.__name__, counting(decode))
    return counter


# ---------------------------------------------------------------- videos


def test_what_is_wrong_is_named_and_a_clean_video_is_not_accused(bagger, videos, project):
    files = [videos / f"{name}.mp4" for name in ("clean", *KINDS)]
    told = bagger("score", *files, "--unit", "clip", "--prefix", PREFIX, "--json")
    clean, *bad = json.loads(told.out)
    assert told.status == 0
    assert [row["path"] for row in (clean, *bad)] == list(map(str, files))
    assert (clean["drift_part"], clean["drift_parts"], clean["gates"]) == ("none", [], [])
    assert clean["drift"] < 2
    for row, (_, name) in zip(bad, KINDS.values(), strict=True):
        assert row["drift_part"] == row["drift_parts"][0] == name
        assert row["drift"] > 2 * clean["drift"]
        assert set(row["parts"]) == set(drift.PARTS)
        assert row["naturalness_drift"] is not None  # the project's fit is of frames of this size
    assert "unit of drift: clip" in told.err


def test_the_generic_unit_names_what_is_wrong_without_a_project(bagger, elsewhere):
    clip = natural_clip(7, height=64, width=96)
    Path("clean.mp4").write_bytes(encode_video(clip, FPS))
    for name, (kind, _) in KINDS.items():
        Path(f"{name}.mp4").write_bytes(encode_video(inject(clip, kind, 0.9, 12), FPS))
    told = bagger("score", "clean.mp4", *(f"{name}.mp4" for name in KINDS), "--json")
    rows = json.loads(told.out)
    assert [row["drift_part"] for row in rows] == ["none", *(part for _, part in KINDS.values())]
    assert rows[0]["drift"] == min(row["drift"] for row in rows)
    assert f"generic, of {drift.GENERIC.num_clips} synthetic clips" in told.err


def test_the_number_of_workers_changes_nothing(bagger, videos, elsewhere):
    ask = ["score", videos, "--json", "--deltas", "--metrics", "temporal_flickering", "--workers"]
    one, three = bagger(*ask, 1), bagger(*ask, 3)
    assert one.out == three.out
    assert len(json.loads(one.out)) == 5


def test_naturalness_is_left_out_where_frames_have_another_size(bagger, project, tmp_path):
    (tmp_path / "wide.mp4").write_bytes(encode_video(natural_clip(1, 12, 48, 80), FPS))
    (row,) = json.loads(bagger("score", tmp_path / "wide.mp4", "--json").out)
    assert (row["naturalness_drift"], row["unit"]) == (None, "generic")


def test_one_frame_has_no_drift(bagger, elsewhere):
    Path("one.mp4").write_bytes(encode_video(natural_clip(1, 1, 48, 64), FPS))
    told = bagger("score", "one.mp4", "--json")
    (row,) = json.loads(told.out)
    assert (told.status, row["drift"], row["gates"], row["num_frames"]) == (1, None, ["length"], 1)
    assert row["error"] == "one.mp4: a single frame, and drift compares later frames with the first"


def test_very_long_frames_are_refused_alone(bagger, videos, elsewhere):
    for name, height in {"long": 802, "longest": 5000}.items():
        frames = np.random.default_rng(0).integers(0, 255, (2, height, 8, 3), np.uint8)
        Path(f"{name}.mp4").write_bytes(encode_video(frames, FPS))
    told = bagger("score", videos / "clean.mp4", "long.mp4", "longest.mp4", "--json")
    rows = json.loads(told.out)
    assert [row["gates"] for row in rows] == [[], ["undecodable"], ["undecodable"]]
    assert rows[1]["error"] == "long.mp4: one side of 8x802 is more than 100 times the other"
    frames = np.random.default_rng(0).integers(0, 255, (2, 256, 25600, 3), np.uint8)  # what is let pass can be measured
    assert np.isfinite(features.flow(features.luma(frames))).all()


@pytest.mark.parametrize("text", ['{"clip": {}, "evaluation": {}}', "no JSON", "[1]"])
def test_a_foreign_or_older_natural_json_stops_only_what_needs_it(bagger, videos, elsewhere, text):
    Path("data").mkdir()
    Path("data", "natural.json").write_text(text)
    (row,) = json.loads(bagger("score", videos / "clean.mp4", "--json").out)
    assert (row["drift"] is None, row["naturalness_drift"], row["error"]) == (False, None, None)
    told = bagger("score", videos / "clean.mp4", "--unit", "clip")
    assert (told.status, told.out) == (1, "")
    assert "run `dvc repro" in told.err


def test_stored_scores_need_no_natural_json(bagger, project):
    path = project / "data/natural.json"
    kept = path.read_text()
    try:
        path.write_text("{}")
        assert json.loads(bagger("score", "--clips", "clip-r1-3", "--json").out)[0]["drift"] > 0
        assert bagger("score", "--clips", "seed-3", "--json").status == 1
    finally:
        path.write_text(kept)


def test_another_unit_is_not_for_stored_drift(bagger, project):
    told = bagger("score", "--clips", "clip-r1-3", "--unit", "generic", "--json")
    assert json.loads(told.out)[0]["unit"] == "clip"
    assert "--unit generic is for seed clips" in told.err
    assert "--unit" not in bagger("score", "--clips", "clip-r1-3", "--unit", "clip", "--json").err


def test_a_large_video_is_scored_alike_whether_it_is_read_in_pieces_or_whole(bagger, elsewhere):
    frames = np.repeat(np.repeat(natural_clip(2, 14, 66, 70), 4, 1), 4, 2)  # 264 pixels high: more than features see
    Path("large.mp4").write_bytes(encode_video(inject(frames, "darkening", 0.5, 2), FPS))
    (pieces,) = json.loads(bagger("score", "large.mp4", "--json").out)
    (whole,) = json.loads(bagger("score", "large.mp4", "--json", "--metrics", "temporal_flickering").out)
    assert whole["metrics"].keys() - pieces["metrics"].keys() == {"temporal_flickering"}
    assert {k: v for k, v in whole.items() if k != "metrics"} == {k: v for k, v in pieces.items() if k != "metrics"}


def test_without_a_project_and_with_nothing_heavy(videos, elsewhere):
    code = """
import sys
from flows.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "prefect", "dvc"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else end.code)
"""
    files = ["--video", videos / "clean.mp4", "--video", videos / "broken.mp4"]
    told = subprocess.run(
        [sys.executable, "-c", code, "score", *files, "--json"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    good, broken = json.loads(told.stdout)
    assert good["drift"] > 0
    assert (good["unit"], good["gates"], good["prefix_frames"]) == ("generic", [], 8)  # 15 % of 57
    assert (broken["drift"], broken["gates"]) == (None, ["undecodable"])
    assert "broken.mp4: ffmpeg says" in broken["error"]
    assert "unit of drift: generic" in told.stderr
    assert list(elsewhere.iterdir()) == []


def test_only_where_nothing_could_be_scored_is_it_a_failure(bagger, videos, elsewhere):
    told = bagger("score", videos / "broken.mp4", "--json")
    assert told.status == 1
    assert json.loads(told.out)[0]["gates"] == ["undecodable"]
    assert told.err.splitlines()[-1].startswith("error: ")


def test_a_folder_gives_its_videos_in_order(bagger, videos, elsewhere):
    (elsewhere / "sub").mkdir()
    for name in ("b.mp4", "sub/a.MP4", ".hidden.mp4", "notes.txt"):
        shutil.copy(videos / "clean.mp4", elsewhere / name)
    rows = json.loads(bagger("score", elsewhere, "--max-frames", 10, "--json").out)
    assert [row["path"] for row in rows] == [str(elsewhere / "b.mp4"), str(elsewhere / "sub/a.MP4")]
    assert {row["num_frames"] for row in rows} == {10}
    assert bagger("score", elsewhere / "sub" / "..", "--csv", "--max-frames", 10).out.count("\n") == 3


def test_the_table_shows_names_without_steering_the_terminal(bagger, videos, elsewhere):
    name = "evil\x1b[31m\n.mp4"
    shutil.copy(videos / "frozen.mp4", name)
    shutil.copy(videos / "broken.mp4", "also\x1b[2J.mp4")
    told = bagger("score", name, "also\x1b[2J.mp4")
    assert "\x1b" not in told.out + told.err
    assert told.out.splitlines()[0].split() == ["path", "drift", "drift_parts", "gates", *drift.PARTS]
    assert len(told.out.splitlines()) == 3
    assert json.loads(bagger("score", name, "--json").out)[0]["path"] == name


def test_a_name_that_is_not_utf_8_is_printed_as_it_is(videos, elsewhere):
    name = b"caf\xe9.mp4"
    shutil.copy(videos / "clean.mp4", os.fsdecode(name))
    told = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "score", ".", "--csv"],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    )  # fmt: skip
    assert b'\n"./' + name + b'",' in told.stdout


@pytest.mark.parametrize(
    ("text", "frames"),
    [("0.2", 20), ("20%", 20), ("12", 12), ("1.5s", 24), ("15%", 15), ("0.001", 1), ("1", 1), (".29", 29), ("1 s", 16)],
)
def test_prefix_as_share_frames_or_seconds(text, frames):
    assert parse_prefix(text).frames(100, 16.0) == frames


@pytest.mark.parametrize(
    "text", ["0", "1.0", "0.0", "100%", "-3", "2m", "", "nan", "1e-1", "0s", "9" * 400, "9" * 400 + "s"]
)
def test_a_prefix_that_is_none_teaches(bagger, videos, elsewhere, text):
    told = bagger("score", videos / "clean.mp4", f"--prefix={text}")
    assert told.status == 1
    assert "expected a share above 0 and below 1 as 0.15 or 15%" in told.err


def test_a_prefix_as_long_as_the_video_is_said(bagger, videos, elsewhere):
    told = bagger("score", videos / "clean.mp4", "--prefix", FRAMES, "--json")
    (row,) = json.loads(told.out)
    assert (told.status, row["drift"], row["gates"]) == (1, None, ["length"])
    assert f"{FRAMES} frames, and the prefix would be {FRAMES}" in told.err


def test_files_hold_every_frame_and_the_papers_deltas(bagger, videos, elsewhere):
    names = ["clean.mp4", "bright.mp4", "broken.mp4"]
    files = [videos / name for name in names]
    told = bagger("score", *files, "--prefix", PREFIX, "--chunk", CHUNK, "--out", "made", "--json", "--deltas")
    rows = json.loads(told.out)
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "curves.csv",
        "curves.png",
        "deltas.csv",
        "scores.csv",
    ]
    frames = decode_video(videos / "bright.mp4")
    curves = features.curves(frames)
    read = {name: list(csv.DictReader(open(f"made/{name}.csv", newline=""))) for name in ("curves", "deltas", "scores")}
    bright = [row for row in read["curves"] if row["path"] == str(files[1])]
    assert [row["frame"] for row in bright] == [str(t) for t in range(FRAMES)]
    assert float(bright[16]["second"]) == 1
    np.testing.assert_allclose([float(row["luma"]) for row in bright], curves["luma"], rtol=1e-6)
    assert {row["path"] for row in read["curves"]} == set(map(str, files[:2]))
    luma = next(row for row in read["deltas"] if (row["path"], row["feature"]) == (str(files[1]), "luma"))
    means = drift.chunk_curve(curves["luma"], PREFIX, CHUNK)
    expected = drift.deltas(curves["luma"], FPS) | {"slope": drift.slope(means)}
    assert luma["rolling5s"] == ""  # shorter than that
    for name in ("bagger20", "framepack15", "signed15", "slope"):
        assert float(luma[name]) == pytest.approx(expected[name], rel=1e-6)
        assert rows[1]["deltas"]["luma"][name] == pytest.approx(expected[name])
    assert [row["gates"] for row in read["scores"]] == ["", "", "undecodable"]
    assert float(read["scores"][1]["drift"]) == rows[1]["drift"]
    assert rows[1]["seam"] == pytest.approx(drift.seam(curves["motion"], PREFIX, CHUNK))
    assert Path("made/curves.png").read_bytes().startswith(b"\x89PNG")
    told = bagger("score", files[0], "--out", "made")
    assert (told.status, told.out) == (1, "")
    assert "--force replaces them" in told.err
    assert bagger("score", files[2], "--out", "made", "--force").status == 1
    assert Path("made/curves.csv").read_text().count("\n") == 1  # nothing was read: the header alone


def test_a_plot_of_any_number_of_clips_with_any_names(videos, tmp_path):
    from PIL import Image

    from flows.measures import Metrics, VideoRules, score_videos
    from flows.score_files import draw

    rules = VideoRules("generic", parse_prefix("15%"), max_frames=12)
    (one,) = score_videos({str(videos / "bright.mp4"): None}, rules, Metrics((), {}, "cpu"))
    for count in (1, 12, 13):
        clips = [type(one)(**{**vars(one), "head": {"path": f"_$a_{n}$ 名\x1b.mp4" * 9}}) for n in range(count)]
        draw(clips, tmp_path / "plot.png")
        width, height = Image.open(tmp_path / "plot.png").size
        assert width > 1000
        assert height > 600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to score"),
        (["clean.mp4", "--clips", "all"], "say what to score"),
        (["nothing.mp4"], "nothing.mp4: no such file or folder"),
        (["clean.mp4", "--metrics", "subject_consistensy"], "did you mean subject_consistency?"),
        (["clean.mp4", "--metrics", "imaging_quality"], "imaging_quality is MUSIQ"),
        (["clean.mp4", "--metrics", "clip_score"], "clip_score compares frames with a prompt"),
        (["clean.mp4", "--prompt", "a boat"], "--prompt is for --metrics clip_score"),
        (["clean.mp4", "--unit", "clip"], "run `dvc repro natural`"),
        (["clean.mp4", "--unit", "clips"], "did you mean 'clip'?"),
        (["clean.mp4", "--sort", "drift"], "--sort goes with --clips"),
        (["--clips", "all", "--prefix", "3"], "--prefix goes with videos"),
        (["clean.mp4", "--json", "--csv"], "exclude each other"),
        (["clean.mp4", "--deltas"], "--deltas goes with --json"),
        (["clean.mp4", "--force"], "--force goes with --out"),
        (["clean.mp4", "--out", "no/such"], "mkdir -p"),
        (["clean.mp4", "--out", "clean.mp4"], "is a file"),
        (["clean.mp4", "--metrics", "subject_consistency", "--extractor", "subjct=random-conv"], "expected ROLE=NAME"),
        (["clean.mp4", "--metrics", "subject_consistency", "--extractor", "subject=dinov2:./no"], "no such folder"),
        (["."], "no video in it"),
        (["--clips", "all"], "no table 'catalog'"),
    ],
)
def test_what_cannot_be_asked_is_said_before_any_work(bagger, videos, elsewhere, decoded, words, said):
    if words != ["."]:
        shutil.copy(videos / "clean.mp4", "clean.mp4")
    told = bagger("score", *words)
    assert (told.status, told.out, decoded.count) == (1, "", 0)
    assert said in told.err
    assert told.err.splitlines()[-1].startswith("error: ")


def test_metrics_of_videos_with_prompts_of_the_folder(bagger, videos, elsewhere):
    shutil.copy(videos / "clean.mp4", "a.mp4")
    shutil.copy(videos / "frozen.mp4", "b.mp4")
    extra = ["--metrics", "temporal_flickering,subject_consistency", "--extractor", "subject=random-conv"]
    clean, frozen = json.loads(bagger("score", ".", *extra, "--json", "--out", "made").out)
    assert clean["metrics"]["temporal_flickering"] < frozen["metrics"]["temporal_flickering"] <= 1
    assert clean["metrics"]["subject_consistency"] < frozen["metrics"]["subject_consistency"] <= 1 + 1e-6
    assert frozen["drift"] > clean["drift"]  # whatever a metric that likes stillness says
    with open("made/curves.csv", newline="") as file:
        assert [row["temporal_flickering"] == "" for row in csv.DictReader(file)][:2] == [True, False]
    (elsewhere / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "a red ball"}\n')
    for named in ([], ["./a.mp4"]):  # once more: the same file
        told = bagger("score", ".", *named, "--metrics", "clip_score", "--extractor", "text=random-conv")
        assert "b.mp4 has none" in told.err  # a.mp4 has a prompt


def test_the_list_of_metrics_says_what_each_needs(bagger, elsewhere):
    rows = {row["metric"]: row for row in json.loads(bagger("score", "--metrics", "list", "--json").out)}
    assert rows["clip_score"]["needs"] == "text (clip), a prompt"
    assert rows["temporal_flickering"]["needs"] == "nothing"


# ---------------------------------------------------------------- clips of the store


def test_scores_of_corrective_clips_are_those_of_the_store(bagger, project, decoded):
    found = json.loads(bagger("clips", "--where", "drift > 1", "--sort", "-drift", "--json").out)
    told = bagger("score", "--clips", "drift > 1", "--sort", "-drift", "--json")
    rows = json.loads(told.out)
    assert 1 < len(rows) < ROLLOUTS
    for row, clip in zip(rows, found, strict=True):
        assert [row[name] for name in ("clip_id", "round", "drift", "drift_part", "drift_z", "seam")] == [
            clip[name] for name in ("clip_id", "round", "drift", "drift_part", "drift_z", "seam")
        ]
        assert row["parts"]["exposure"] == clip["drift_exposure"] < 0
    assert rows[0]["drift_part"] == "darkening"
    assert decoded.count == 0
    assert not Path(".work").exists()
    (row,) = json.loads(bagger("score", "--clips", "clip-r1-3", "--limit", 1, "--json", "--deltas").out)
    assert (row["clip_id"], row["chunk_frames"], row["prefix_frames"]) == ("clip-r1-3", CHUNK, PREFIX)
    assert row["deltas"]["luma"]["slope"] < 0
    assert json.loads(bagger("score", "--clips", "drift > 1000", "--json").out) == []
    assert "did you mean 'drift'" in bagger("score", "--clips", "drfit > 1").err


def test_metrics_are_measured_in_generation_order_and_once(bagger, project, decoded):
    ask = ["score", "--clips", "all", "--kind", "all", "--limit", 4, "--metrics", "subject_consistency", "--json"]
    first = bagger(*ask)
    rows = json.loads(first.out)
    assert decoded.count == 4
    assert bagger(*ask).out == first.out
    assert decoded.count == 4
    corrective = [row for row in rows if row["kind"] == "corrective"]
    assert corrective
    files = {row["clip_id"]: row["metrics"]["subject_consistency"] for row in rows}
    name = corrective[0]["clip_id"]
    assert bagger("export", name, "--forward", "--out", "rollout.mp4", "--force").status == 0
    (forward,) = json.loads(bagger("score", "rollout.mp4", "--metrics", "subject_consistency", "--json").out)
    assert forward["metrics"]["subject_consistency"] == pytest.approx(files[name], abs=1e-6)
    seen = decoded.count
    more = json.loads(bagger(*ask[:-2], "subject_consistency,temporal_flickering", "--json").out)
    assert [row["metrics"]["subject_consistency"] for row in more] == list(files.values())
    assert all(0 < row["metrics"]["temporal_flickering"] < 1 for row in more)
    assert decoded.count == seen + 4
    # Another network is another question.
    assert bagger(*ask, "--extractor", "background=random-conv").out == first.out
    assert decoded.count == seen + 4
    told = bagger("score", "--clips", "all", "--metrics", "clip_score", "--limit", 1)
    assert (told.status, decoded.count) == (1, seen + 5)
    assert "random-conv knows no text" in told.err
    assert bagger("gc").status == 0
    assert bagger(*ask).out == first.out
    assert decoded.count == seen + 5


def test_metrics_of_the_store_are_read_if_they_are_of_the_same_network(bagger, project, decoded, tmp_path):
    ask = ["score", "--clips", "clip-r1-7", "--json"]
    (stored,) = json.loads(bagger(*ask, "--out", tmp_path / "made").out)
    (asked,) = json.loads(bagger(*ask, "--metrics", "background_consistency").out)
    assert asked["metrics"] == stored["metrics"]
    assert 0 < stored["metrics"]["background_consistency"] < 1
    assert decoded.count == 0
    with open(tmp_path / "made" / "curves.csv", newline="") as file:
        curve = [row["background_consistency"] for row in csv.DictReader(file)]
    assert curve[0] == ""
    assert np.mean([float(one) for one in curve[1:]]) == pytest.approx(stored["metrics"]["background_consistency"])
    network = f"background=clip:{tiny.save('clip', tmp_path / 'clip')}"
    (other,) = json.loads(bagger(*ask, "--metrics", "background_consistency", "--extractor", network).out)
    assert other["metrics"] != stored["metrics"]
    assert decoded.count == 1


def test_a_rollout_is_compared_with_its_own_prompt(bagger, project, tmp_path):
    folder = tiny.save("clip", tmp_path / "clip")
    ask = ["score", "--clips", "clip-r1-2", "--json", "--metrics", "clip_score", "--extractor", f"text=clip:{folder}"]
    (row,) = json.loads(bagger(*ask).out)
    (clip,) = Store("data/store").clips(where="clip_id = 'clip-r1-2'").to_pylist()
    rollout = Store("data/store").video("rollout-r1-2")
    assert clip["prompt"] != rollout["prompt"]
    frames, networks = decode_video(rollout["video"]), {"text": load("clip", folder)}
    scores = [metrics.measure(["clip_score"], frames, one["prompt"], FPS, networks)["clip_score"].value
              for one in (rollout, clip)]  # fmt: skip
    assert row["metrics"]["clip_score"] == pytest.approx(scores[0], abs=1e-6)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_seed_clips_drift_as_real_clips_do(bagger, project, decoded, natural):
    ask = ["score", "--clips", "all", "--kind", "seed"]
    rows = json.loads(bagger(*ask, "--json").out)
    assert len(rows) == decoded.count == ROLLOUTS
    assert {row["prefix_frames"] for row in rows} == {PREFIX}
    assert max(row["drift"] for row in rows) < 4
    assert np.median([row["drift"] for row in rows]) == pytest.approx(natural["clip"]["drift_median"], rel=0.05)
    assert all(row["naturalness_drift"] is not None for row in rows)
    told = bagger(*ask, "--out", "seeds", "--csv", "--sort", "clip_id")
    assert (told.status, decoded.count) == (0, ROLLOUTS)
    with open("seeds/curves.csv", newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == ROLLOUTS * FRAMES
    shutil.rmtree("seeds")
    generic = json.loads(bagger(*ask, "--unit", "generic", "--limit", 1, "--json").out)
    assert (generic[0]["unit"], generic[0]["prefix_frames"], decoded.count) == ("generic", 8, ROLLOUTS + 1)


def test_ctrl_c_keeps_what_was_measured(bagger, project, decoded):
    ask = ["score", "--clips", "all", "--metrics", "temporal_flickering", "--json"]
    decoded.stop = 10  # in the second batch
    told = bagger(*ask)
    assert (told.status, told.out) == (130, "")
    assert "the same command continues" in told.err
    decoded.stop = None
    rows = json.loads(bagger(*ask).out)
    assert decoded.count == ROLLOUTS  # each once
    shutil.rmtree(".work")
    assert json.loads(bagger(*ask).out) == rows


def test_killed_half_way_it_goes_on_to_the_same_result(bagger, project):
    ask = ["score", "--clips", "all", "--metrics", "subject_consistency,dynamic_degree_dis", "--json"]
    whole = bagger(*ask).out
    shutil.rmtree(".work")
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", *ask],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 50
    while not list(Path(".work").glob("scores/*/*.arrow")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Path(".work").glob("scores/*/*.arrow"))
    assert bagger(*ask).out == whole


def test_a_damaged_or_unreadable_rollout_is_said(bagger, tiny_copy, elsewhere):
    told = bagger("score", "--clips", "all", "--store", tiny_copy.store, "--metrics", "temporal_flickering", "--json")
    rows = json.loads(told.out)
    assert [row["metrics"]["temporal_flickering"] for row in rows] == [None] * 4
    assert [row["drift"] for row in rows] == [0.9, 0.6, 0.4, 0.1]  # what the store says
    assert "rollout-r1-0: video of" in told.err


def test_a_registry_is_asked_alike(bagger, project, decoded, tmp_path):
    register(Store("data/store"), tmp_path / "registry", "mine")
    ask = ["score", "--clips", "drift > 1", "--json", "--metrics", "temporal_flickering"]
    own = json.loads(bagger(*ask).out)
    seen = decoded.count
    rows = json.loads(bagger(*ask, "--store", tmp_path / "registry").out)
    assert {row.pop("experiment") for row in rows} == {"mine"}
    assert rows == own
    assert decoded.count == seen  # the same videos


def test_an_earlier_revision_is_asked_alike(bagger, history, monkeypatch):
    monkeypatch.chdir(history.root)
    drifts = {}
    for rev in ((), ("--rev", "first")):
        told = bagger("score", "--clips", "all", "--json", *rev)
        assert told.status == 0, told.err
        drifts[rev] = {row["clip_id"]: row["drift"] for row in json.loads(told.out)}
    assert drifts[()]["clip-r2-0"] == 1.4
    assert drifts["--rev", "first"]["clip-r2-0"] == 0.4
