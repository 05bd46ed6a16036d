"""`bagger clips` and `bagger stats`: options, what they print and the files they write."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store import Store
from store.digest import bytes_sha256
from store.schema import CATALOG, REGISTRY_CATALOG
from store.table import read_table
from store.video import decode_video, encode_video

ROOT = Path(__file__).parents[2]
PROMPTS = {
    "clip-r1-0": '=HYPERLINK("http://x")',
    "clip-r1-1": "two\nlines\r\nand, a comma; \x1b[31m 'q' \"Q\" \u202e",
    "clip-r2-0": " +1 leading space, 日本語 \t",
    "clip-r2-1": "a red disc\rmoves",
}


@pytest.fixture(scope="module")
def hostile(tiny, tmp_path_factory):
    """A store whose catalog has prompts that are no good to a terminal, a spreadsheet or a CSV."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = read_table(tiny.store, "catalog").to_pylist()
    for row in rows:
        row["prompt"] = PROMPTS.get(row["clip_id"], row["prompt"])
    lance.write_dataset(pa.Table.from_pylist(rows, CATALOG), str(folder / "catalog.lance"))
    return folder


def movie(number: int, frames: int) -> bytes:
    """mp4 of a grey that grows darker, of its own brightness for each number."""
    levels = 40 + 12 * number - 3 * np.arange(frames, dtype=np.uint8)
    return encode_video(np.broadcast_to(levels[:, None, None, None], (frames, 16, 16, 3)).astype(np.uint8), 8.0)


@pytest.fixture(scope="module")
def films(rows, tmp_path_factory):
    """A store of one round whose videos can be played: two seed clips of 5 frames, rollouts and clips of 4."""
    from store.catalog import build_catalog

    root = tmp_path_factory.mktemp("films")
    made = {"seed": rows.seed()[:2], "rollouts_r1": rows.rollouts("r1", "model-0"), "scores_r1": rows.scores("r1")}
    made |= {"clips_r1": rows.clips("r1", "model-0"), "rewrites_r1": rows.rewrites("r1")}
    for number, (name, table) in enumerate(made.items()):
        for place, row in enumerate(table):
            if "video" in row:
                frames = 5 if name == "seed" else 4
                row["video"] = movie(number * 4 + place, frames)
                row |= {"video_sha256": bytes_sha256(row["video"]), "num_frames": frames}
        rows.seal(root, name, table)
    build_catalog(root / "store", ["r1"], [])
    return root / "store"


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--round", "r1", "--round", "r2"], {"round": ["r1", "r2"]}),
        (["--round", "r0", "--round", "r2"], {"round": ["r0", "r2"]}),
        (["--kind", "all", "--at", "r1"], {"kind": "all", "at": "r1"}),
        (["--drift", "0.4:0.6"], {"drift": (0.4, 0.6)}),
        (["--drift", "0.6:"], {"drift": (0.6, None)}),
        (["--drift", ":0.4"], {"drift": (None, 0.4)}),
        (["--drift", "-1:.4"], {"drift": (-1, 0.4)}),
        (["--part", "freezing", "--part", "darkening"], {"part": ["freezing", "darkening"]}),
        (
            ["--part", "darkening"],
            {"where": "drift_parts = 'over-saturating,darkening'"},
        ),  # not the one that moved most
        (["--part", "none"], {"where": "drift_part = 'none'"}),
        (["--where", "drift_parts like '%darkening%'"], {"part": "darkening"}),
        (["--run", "run-correct-r1", "--run", "run-train-r0"], {"run": ["run-correct-r1", "run-train-r0"]}),
        (["--text", "disc NUMBER 1"], {"text": "disc number 1"}),
        (["--class", "equivariant"], {"reversal_class": "equivariant"}),
        (["--class", "novel", "--class", "unknown"], {"reversal_class": ["novel", "unknown"]}),
        (["--verdict", "parses"], {"verdict": "parses"}),
        (["--verdict", "passed", "--where", "drift > 0.5"], {"verdict": "passed", "where": "drift > 0.5"}),
    ],
)
def test_an_option_is_the_store_s_filter(bagger, tiny, options, asked):
    store = Store(tiny.store)
    told = bagger("clips", "--store", tiny.store, "--json", *options)
    assert told.status == 0, told.err
    assert [row["clip_id"] for row in json.loads(told.out)] == store.clips(**asked)["clip_id"].to_pylist()
    assert bagger("clips", "--store", tiny.store, "--count", *options).out == f"{store.count(**asked)}\n"
    as_json = bagger("clips", "--store", tiny.store, "--count", "--json", *options)
    assert json.loads(as_json.out) == [{"clips": store.count(**asked)}]
    told = bagger("stats", "--store", tiny.store, "--json", *options)
    assert sum(row["clips"] for row in json.loads(told.out)) == store.count(**asked)


def test_like(bagger, tiny):
    told = bagger("clips", "--store", tiny.store, "--like", "clip-r1-0")
    assert told.status == 0, told.err
    lines = [line.split() for line in told.out.splitlines()]
    assert lines[0] == ["clip_id", "round", "distance", "drift", "reversal_class", "prompt"]
    assert [line[0] for line in lines[1:]] == ["clip-r2-0", "clip-r1-1", "clip-r2-1"]  # by number, then by id
    assert lines[1][2] == "0"
    told = bagger(
        "clips", "--store", tiny.store, "--like", "a disc moves LEFT", "--kind", "all", "--limit", 3, "--json"
    )
    found = json.loads(told.out)
    assert all(row["clip_id"].startswith("seed-") for row in found)
    assert [row["distance"] for row in found] == sorted(row["distance"] for row in found)
    told = bagger("clips", "--store", tiny.store, "--like", "clip-r1-0", "--embedding", "words", "--json", "--limit", 1)
    assert json.loads(told.out)[0]["clip_id"] == "clip-r2-0"


def test_columns_all_and_embeddings_are_flat(bagger, tiny):
    told = bagger("clips", "--store", tiny.store, "--columns", "all", "--limit", 1)
    assert told.out.split()[: len(CATALOG) - 2] == [name for name in CATALOG.names if name not in ("look", "words")]
    told = bagger("clips", "--store", tiny.store, "--columns", "clip_id,words", "--limit", 1, "--json")
    (row,) = json.loads(told.out)
    stored = Store(tiny.store).clips(columns=["words"], limit=1)["words"].to_pylist()[0]
    np.testing.assert_array_equal(np.float32(row["words"].split()), np.float32(stored))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json", "--csv"], "--json and --csv exclude each other"),
        (["--json", "--out", "a.csv"], "--json and --out exclude each other"),
        (["--count", "--csv"], "--count and --csv exclude each other"),
        (["--count", "--out", "a.csv"], "--count and --out exclude each other"),
        (["--count", "--like", "a disc"], "--count and --like exclude each other"),
        (["--count", "--sort", "drift"], "--count and --sort exclude each other"),
        (["--count", "--limit", "0"], "--count and --limit exclude each other"),
        (["--count", "--columns", "drift"], "--count and --columns exclude each other"),
        (["--like", "a disc", "--sort", "drift"], "--like and --sort exclude each other"),
        (["--embedding", "look"], "give --like, too"),
        (["--out", "a.png", "--columns", "drift"], "--out a.png and --columns exclude each other"),
        (["--with-video", "--out", "a.csv"], "--with-video goes with --out FILE.parquet"),
        (["--with-video"], "--with-video goes with --out FILE.parquet"),
        (["--force"], "--force goes with --out FILE"),
        (["--out", "a.gif"], "'.gif'; expected .csv, .json, .parquet, .png or .mp4"),
        (["--out", "no/a.csv"], "there is no folder no"),
        (["--drift", "2"], "--drift '2': expected LOW:HIGH"),
        (["--drift", ":"], "expected LOW:HIGH"),
        (["--drift", "a:b"], "expected LOW:HIGH"),
        (["--drift", "3:2"], "at least 3.0 and at most 2.0"),
        (["--drift", "nan:"], "finite"),
        (["--part", "freezin"], "did you mean 'freezing'"),
        (["--class", "equivarant"], "did you mean 'equivariant'"),
        (["--verdict", "grammar"], "there are passed, parses"),
        (["--run", "run-9"], "no run 'run-9'"),
        (["--experiment", "a"], "experiment tells apart what a registry holds"),
        (["--text", " "], "text takes words"),
        (["--like", "clip-r9-9"], "no clip 'clip-r9-9' to be like"),
        (["--like", "a disc", "--embedding", "loks"], "did you mean 'look'"),
    ],
)
def test_contradictions_and_mistakes_are_one_line(bagger, tiny, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    told = bagger("clips", "--store", tiny.store, *options)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


HOSTILE = ["'", "a' OR '1'='1", '"', "\\", "%", "\x1b[31mred", "\u202e", "日本語", "x" * 9000, ";--", "a\nb", "\udcff"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_options_are_values(bagger, tiny, text):
    before = sorted(tiny.root.rglob("*"))
    for option in (
        "--round",
        "--kind",
        "--run",
        "--part",
        "--class",
        "--verdict",
        "--at",
        "--sort",
        "--columns",
        "--where",
    ):
        told = bagger("clips", "--store", tiny.store, option, text)
        assert (told.status, told.out) == (1, "")
        assert told.err.startswith("error: ")
        assert "\x1b" not in told.err
        assert told.err.count("\n") == 1
    for option in ("--text", "--like"):
        told = bagger("clips", "--store", tiny.store, option, text)
        assert told.status == 0 or told.err.startswith("error: "), told.err
    assert sorted(tiny.root.rglob("*")) == before


# ---------------------------------------------------------------- texts and files


def test_csv_gives_every_text_back(bagger, hostile):
    told = bagger("clips", "--store", hostile, "--csv", "--columns", "clip_id,prompt,drift,oracle_color_error")
    assert told.status == 0, told.err
    rows = list(csv.reader(io.StringIO(told.out, newline="")))
    assert rows[0] == ["clip_id", "prompt", "drift", "oracle_color_error"]
    assert {row[0]: row[1] for row in rows[1:]} == PROMPTS
    assert [row[2:] for row in rows[1:]] == [["0.9", "0.25"], ["0.6", ""], ["0.4", "0.25"], ["0.1", ""]]


@pytest.mark.parametrize("columns", [[], ["--columns", "prompt,drift,num_frames,gates,was_derived_from,clip_id"]])
def test_files_agree_row_by_row(bagger, hostile, tmp_path, columns):
    options = ["clips", "--store", hostile, "--kind", "all", "--sort", "-drift", *columns]
    for ending in ("csv", "json", "parquet"):
        told = bagger(*options, "--out", tmp_path / f"a.{ending}")
        assert (told.status, told.err) == (0, "")
        assert told.out == f"{tmp_path / f'a.{ending}'}: 8 clips\n"
    from_json = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(bagger(*options, "--json").out) == from_json
    with open(tmp_path / "a.csv", newline="") as file:
        from_csv = list(csv.DictReader(file))
    parquet = pq.read_table(tmp_path / "a.parquet")
    assert parquet.column_names == list(from_json[0]) == list(from_csv[0])
    assert len(parquet) == len(from_csv) == len(from_json) == 8
    for texts, values, stored in zip(from_csv, from_json, parquet.to_pylist(), strict=True):
        for name, value in values.items():
            assert texts[name] == ("" if value is None else str(value)), name
            held = " ".join(stored[name]) if isinstance(stored[name], list) else stored[name]
            assert held == (np.float32(value) if parquet.schema.field(name).type == pa.float32() and value else value)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.csv", "a.json", "a.parquet"]


def test_parquet_with_videos(bagger, films, tmp_path):
    out = tmp_path / "a.parquet"
    told = bagger("clips", "--store", films, "--kind", "all", "--columns", "drift,prompt", "--with-video", "--out", out)
    assert told.status == 0, told.err
    table = pq.read_table(out)
    assert table.column_names == ["drift", "prompt", "video"]
    found = Store(films).clips(kind="all")["clip_id"].to_pylist()
    assert table["video"].to_pylist() == [Store(films).video(name)["video"] for name in found]


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), -1).mean(1)


def test_contact_sheet(bagger, films, tmp_path):
    from PIL import Image

    told = bagger("clips", "--store", films, "--kind", "all", "--out", tmp_path / "a.png")
    assert told.status == 0, told.err
    assert "the first" not in told.err
    with Image.open(tmp_path / "a.png") as image:
        width, height = image.size
        pixels = np.asarray(image)
    assert (width, height) == (5 * (16 * 6 + 2), 4 * (16 * 6 + 2 + 18))
    names = Store(films).clips(kind="all")["clip_id"].to_pylist()
    for place, name in enumerate(names):
        frame = pixels[place * 116 + 18 + 10 : place * 116 + 18 + 90, 10:90]
        first = decode_video(Store(films).video(name)["video"])[0]
        assert abs(frame.mean() - first.mean()) < 2


def test_grid_of_corrective_clips_beside_their_rollouts_and_seeds(bagger, films, tmp_path):
    told = bagger("clips", "--store", films, "--out", tmp_path / "a.mp4")
    assert told.status == 0, told.err
    assert told.out == f"{tmp_path / 'a.mp4'}: 2 clips\n"
    frames = decode_video(tmp_path / "a.mp4").astype(int)
    assert len(frames) == 5  # the longest of the clips
    store = Store(films)
    height = frames.shape[1]
    rows = [store.clips(columns=[name])[name].to_pylist() for name in ("clip_id", "rollout_id", "seed_clip_id")]
    cell = 16 * 8 + 2
    for i, names in enumerate(rows):
        for j, name in enumerate(names):
            y = height - (3 - i) * cell + 40
            x = frames.shape[2] - (2 - j) * cell + 40
            shown = brightness(frames[:, y : y + 40, x : x + 40])
            video = brightness(decode_video(store.video(name)["video"]))
            held = np.append(video, [video[-1]] * (5 - len(video)))
            assert np.abs(shown - held).max() < 3, (i, j)
    seeds = bagger("clips", "--store", films, "--kind", "seed", "--out", tmp_path / "b.mp4")
    assert seeds.status == 0, seeds.err
    both = bagger("clips", "--store", films, "--kind", "all", "--out", tmp_path / "c.mp4")
    assert (both.status, both.out) == (1, "")
    assert "not both; choose with --kind" in both.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_pictures_of_many_clips_show_the_first_and_say_so(bagger, films, tmp_path, monkeypatch):
    from flows import clip_files

    monkeypatch.setattr(clip_files, "PICTURES", {".png": 3, ".mp4": 1})
    out = tmp_path / "a.png"
    told = bagger("clips", "--store", films, "--kind", "all", "--out", out)
    assert told.out == f"{out}: 3 clips\n"
    assert f"{out}: the first 3 clips; more match, --limit N shows more\n" in told.err
    told = bagger("clips", "--store", films, "--kind", "all", "--limit", 4, "--out", out, "--force")
    assert told.out == f"{out}: 4 clips\n"
    assert "the first" not in told.err


def test_a_file_is_replaced_only_if_told_and_written_whole_or_not_at_all(bagger, films, tiny, tmp_path):
    out = tmp_path / "a.csv"
    out.write_text("mine")
    told = bagger("clips", "--store", films, "--out", out)
    assert (told.status, out.read_text()) == (1, "mine")
    assert "--force replaces it" in told.err
    assert bagger("clips", "--store", films, "--out", out, "--force").status == 0
    assert out.read_text().startswith('"clip_id",')
    for ending in ("png", "mp4"):
        broken = tmp_path / f"b.{ending}"
        broken.write_text("mine")
        told = bagger("clips", "--store", tiny.store, "--out", broken, "--force")  # its videos are no videos
        assert (told.status, told.out, broken.read_text()) == (1, "", "mine")
        told = bagger("clips", "--store", films, "--where", "drift > 99", "--out", broken, "--force")
        assert (told.status, told.out, broken.read_text()) == (1, "", "mine")
        assert "no such clips, so there is nothing to show" in told.err
    told = bagger("clips", "--store", films, "--where", "drift > 99", "--out", tmp_path / "c.parquet")
    assert told.out == f"{tmp_path / 'c.parquet'}: 0 clips\n"
    assert len(pq.read_table(tmp_path / "c.parquet")) == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.csv", "b.mp4", "b.png", "c.parquet"]


def test_a_damaged_or_missing_video_leaves_no_file(bagger, rows, films, tmp_path):
    import shutil

    shutil.copytree(films, tmp_path / "store")
    table = read_table(films, "clips_r1")
    for damage, said in (
        (table.set_column(table.column_names.index("video"), "video", pa.array([b"x", b"y"], pa.large_binary())),
         "clip-r1-0: the stored video is damaged"),
        (table.slice(1), "clip-r1-0: table clips_r1 does not hold it; `bagger audit`"),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "store" / "clips_r1.lance")
        damage = pa.Table.from_arrays([column.combine_chunks() for column in damage.columns], schema=table.schema)
        lance.write_dataset(damage, str(tmp_path / "store" / "clips_r1.lance"))
        for options in (["a.parquet", "--with-video"], ["a.png"], ["a.mp4"]):
            told = bagger("clips", "--store", tmp_path / "store", "--out", tmp_path / options[0], *options[1:])
            assert (told.status, told.out) == (1, "")
            assert said in told.err
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


# ---------------------------------------------------------------- stats


def test_stats_by_round(bagger, tiny):
    told = bagger("stats", "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[0].split("  ")[:3] == ["round", "clips", "gated"]
    assert [line.split()[0] for line in lines[1:]] == ["r1"] * 8 + ["r2"] * 8
    assert lines[1].split() == ["r1", "2", "0.0%", "drift", "0.6", "0.63", "0.75", "0.87", "0.9", "0.75"]
    assert max(map(len, lines)) <= 80
    (r1, r2) = json.loads(bagger("stats", "--store", tiny.store, "--json").out)
    assert (r1["round"], r1["clips"], r1["gated"], r1["drift_q10"], r1["drift_motion_median"]) == (
        "r1",
        2,
        0,
        0.63,
        0.15,
    )
    assert {type(value) for value in r2.values()} <= {str, int, float}
    (head, *rows) = csv.reader(io.StringIO(bagger("stats", "--store", tiny.store, "--csv").out))
    assert head == list(r1)
    assert rows == [[str(value) for value in row.values()] for row in (r1, r2)]


def test_stats_by_several_columns(bagger, tiny):
    forms = (["--by", "kind,round"], ["--by", "kind", "--by", " ROUND"])
    for form in forms:
        told = json.loads(bagger("stats", "--store", tiny.store, "--kind", "all", "--json", *form).out)
        assert [(row["kind"], row["round"], row["clips"]) for row in told] == [
            ("corrective", "r1", 2), ("corrective", "r2", 2), ("seed", "r0", 4)
        ]  # fmt: skip
        assert (told[2]["gated"], told[2]["drift_median"]) == (None, None)
    table = bagger("stats", "--store", tiny.store, "--kind", "seed").out.splitlines()
    assert [line.split() for line in table[1:]] == [["r0", "4", "-", "drift", *"------"]]
    told = bagger("stats", "--store", tiny.store, "--by", "drift")
    assert (told.status, told.out) == (1, "")
    assert "by takes columns of texts, which drift is not" in told.err


# ---------------------------------------------------------------- registry, revisions, weight


def test_a_registry_shows_the_experiment(bagger, tiny, tmp_path):
    rows = read_table(tiny.store, "catalog").to_pylist()
    entries = [
        {"entry_id": f"{name}/{row['round']}/{row['clip_id']}", "experiment": name, **row}
        for name in ("one", "two")
        for row in rows
    ]
    lance.write_dataset(pa.Table.from_pylist(entries, REGISTRY_CATALOG), str(tmp_path / "catalog.lance"))
    told = bagger("clips", "--store", tmp_path, "--round", "r1", "--experiment", "two")
    assert [line.split()[:3] for line in told.out.splitlines()] == [
        ["clip_id", "experiment", "round"], ["clip-r1-0", "two", "r1"], ["clip-r1-1", "two", "r1"]
    ]  # fmt: skip
    assert bagger("clips", "--store", tmp_path, "--count", "--at", "r1").out == "4\n"
    told = json.loads(bagger("stats", "--store", tmp_path, "--by", "experiment,round", "--json").out)
    assert [(row["experiment"], row["round"], row["clips"]) for row in told] == [
        ("one", "r1", 2), ("one", "r2", 2), ("two", "r1", 2), ("two", "r2", 2)
    ]  # fmt: skip


WEIGHT = """
import sys
from flows.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "lancedb", "PIL", "sqlglot", "duckdb", "ffmpeg", "pyarrow.parquet"} & set(sys.modules)
    print("imported", sorted(heavy), file=sys.stderr)
    sys.exit(end.code)
"""


@pytest.mark.parametrize(
    ("options", "imported"),
    [
        (["clips", "--round", "r1", "--drift", "0.1:", "--text", "disc", "--verdict", "passed", "--sort", "drift"], []),
        (["clips", "--like", "clip-r1-0", "--csv"], []),
        (["stats", "--json"], []),
        (["clips", "--where", "drift > 0.5", "--count"], ["sqlglot"]),
    ],
)
def test_only_what_is_needed_is_imported(tiny, options, imported):
    command = [sys.executable, "-c", WEIGHT, *options, "--store", str(tiny.store)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, f"imported {imported}\n")
