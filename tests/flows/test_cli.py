"""`bagger` as people use it: what it prints where, how it ends, what it leaves behind."""

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import lance
import numpy as np
import pytest

from store.latents import pack_latents
from store.schema import CATALOG, SCHEMA_VERSION, VERSION_KEY
from store.table import read_table
from store.video import decode_video, probe

ROOT = Path(__file__).parents[2]


def process(code: str, *arguments: object, **settings) -> subprocess.CompletedProcess:
    """A fresh Python that runs `code` on a command line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **settings)


MAIN = "from flows.cli import main; main()"


# ---------------------------------------------------------------- clips


def test_table_elsewhere_than_in_a_terminal_is_plain_and_whole(bagger, tiny):
    told = bagger("clips", "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    assert told.out.splitlines() == [
        "clip_id    round  drift  reversal_class  prompt",
        "clip-r1-0  r1       0.9  equivariant     a red disc moves right, it's number 0",
        "clip-r1-1  r1       0.6  equivariant     a red disc moves right, it's number 1",
        "clip-r2-0  r2       0.4  equivariant     a red disc moves right, it's number 0",
        "clip-r2-1  r2       0.1  equivariant     a red disc moves right, it's number 1",
    ]


@pytest.mark.parametrize(("width", "id_whole"), [(20, False), (60, True), (100, True)])
def test_table_in_a_terminal_fits_it_and_cuts_nothing(bagger, tiny, monkeypatch, width, id_whole):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    told = bagger("clips", "--store", tiny.store, "--limit", 1, "--columns", "clip_id,round,source_prompt")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", told.out).splitlines()
    assert max(map(len, lines)) <= width
    assert ("clip-r1-0" in " ".join(lines)) == id_whole
    assert "…" not in told.out
    prompt = "a red disc moves left, it's number 0"
    body = "".join(lines).partition("─")[2]
    assert sorted(re.sub("[ ─]", "", body)) == sorted(f"clip-r1-0r1{prompt}".replace(" ", ""))


@pytest.mark.parametrize(
    ("sort", "first"),
    [(["--sort", "-drift"], "clip-r1-0"), (["--sort=-drift"], "clip-r1-0"), (["--sort", "drift"], "clip-r2-1")],
)
def test_sort_takes_a_column_with_a_minus(bagger, tiny, sort, first):
    told = bagger("clips", "--store", tiny.store, "--json", *sort, "--limit", 1)
    assert [one["clip_id"] for one in json.loads(told.out)] == [first]


def test_json_is_one_array_of_flat_objects_and_nothing_else(bagger, tiny):
    told = bagger("clips", "--store", tiny.store, "--kind", "all", "--json")
    assert told.err == ""
    found = json.loads(told.out)
    assert len(found) == 8
    assert {"clip_id", "kind", "round", "prompt", "drift"} <= set(found[0])
    assert {type(value) for one in found for value in one.values()} <= {str, int, float, type(None)}
    assert found == json.loads(bagger("clips", "--store", tiny.store, "--kind", "all", "--json").out)
    assert bagger("clips", "--store", tiny.store, "--where", "drift > 99", "--json").out == "[]\n"


def test_what_each_option_selects(bagger, tiny):
    def ids(*arguments):
        told = bagger("clips", "--store", tiny.store, "--json", *arguments)
        return [one["clip_id"] for one in json.loads(told.out)]

    assert ids("--round", "r2") == ["clip-r2-0", "clip-r2-1"]
    assert ids("--round", "r0", "--limit", 2) == ["seed-0", "seed-1"]
    assert ids("--kind", "all", "--at", "r1") == ["clip-r1-0", "clip-r1-1", *(f"seed-{n}" for n in range(4))]
    assert ids("--where", "drift > 0.3 and prompt like '%it''s number 0'") == ["clip-r1-0", "clip-r2-0"]
    two = bagger("clips", "--store", tiny.store, "--json", "--limit", 1, "--columns", "drift, CLIP_ID,drift")
    assert json.loads(two.out) == [{"drift": 0.9, "clip_id": "clip-r1-0"}]
    shown = bagger("clips", "--store", tiny.store, "--limit", 1, "--columns", "oracle_color_error, CLIP_ID")
    assert shown.out.splitlines()[1].split() == ["0.25", "clip-r1-0"]


def test_nothing_found_says_so_beside_the_empty_table(bagger, tiny):
    told = bagger("clips", "--store", tiny.store, "--where", "drift > 99")
    assert (told.status, told.out.split(), told.err) == (
        0,
        "clip_id round drift reversal_class prompt".split(),
        "no such clips\n",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--where", "1=1; DROP TABLE catalog"], "where '1=1; DROP TABLE catalog'"),
        (["--where", "clip_id IN (SELECT clip_id FROM runs)"], "not allowed|is not one|SELECT"),
        (["--where", "drift > 0) OR (1 = 1"], "where"),
        (["--where", "length(prompt) > 3"], "is not allowed in a filter"),
        (["--where", "driftt > 1"], "did you mean 'drift'"),
        (["--sort", "-drfit"], "no column 'drfit', did you mean 'drift'"),
        (["--columns", "clip_id,promt"], "no column 'promt', did you mean 'prompt'"),
        (["--columns", ""], "no column ''"),
        (["--kind", "seeds"], "did you mean 'seed'"),
        (["--round", "r9"], "no round 'r9' in the catalog; it holds r0, r1, r2"),
        (["--at", "r9"], "no tag 'r9'"),
        (["--limit", "-1"], "limit must be 0 or more"),
        (["--store", "nowhere"], "no table 'catalog' in nowhere; make it with `dvc repro catalog`"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_mistake_is_one_line_on_standard_error_and_status_1(bagger, tiny, arguments, said, form):
    told = bagger("clips", "--store", tiny.store, *form, *arguments)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert any(one in told.err for one in said.split("|"))


def test_a_store_of_a_newer_schema_is_refused_and_left_as_it_was(bagger, tiny_copy):
    path = tiny_copy.store / "catalog.lance"
    newer = CATALOG.with_metadata({VERSION_KEY: str(SCHEMA_VERSION + 1).encode()})
    shutil.rmtree(path)
    lance.write_dataset(newer.empty_table(), str(path))
    before = sorted(one for one in tiny_copy.root.rglob("*"))
    for command in (["clips"], ["clips", "--json"], ["lineage", "clip-r1-0"]):
        told = bagger(*command, "--store", tiny_copy.store)
        assert (told.status, told.out) == (1, "")
        assert f"newer bagger (store schema {SCHEMA_VERSION + 1}" in told.err
    assert sorted(one for one in tiny_copy.root.rglob("*")) == before


def test_a_command_line_that_cannot_be_read_is_status_2(bagger, tiny):
    for arguments, said in (
        (["clip"], "No such command 'clip'. Did you mean 'clips'? (see `bagger --help`)"),
        (["clips", "--srot", "drift"], "(see `bagger clips --help`)"),
        (["clips", "--limit", "many"], "--limit"),
        (["lineage"], "ID"),
        (["export", "clip-r1-0"], "--out"),
        (["rounds", "two"], "N"),
    ):
        told = bagger(*arguments)
        assert (told.status, told.out) == (2, "")
        assert told.err.startswith("error: ")
        assert said in told.err
        assert told.err.count("\n") == 1


def test_traceback_on_request(bagger, tiny):
    told = bagger("--traceback", "clips", "--store", tiny.store, "--sort", "drfit")
    assert told.status == 1
    assert told.err.startswith("Traceback")
    assert told.err.splitlines()[-1].startswith("error: no column 'drfit'")


# ---------------------------------------------------------------- light, and polite to pipes

LIGHT = """
import sys
from flows.cli import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "prefect", "dvc"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else end.code)
"""


def spent() -> float:
    """CPU seconds of children: other tests run beside, and a clock would count them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_questions_and_help_import_nothing_heavy_and_answer_at_once(tiny):
    for arguments in (["--help"], ["clips", "--store", tiny.store], ["lineage", "clip-r2-0", "--store", tiny.store]):
        seconds = []
        for _ in range(2):
            began = spent()
            told = process(LIGHT, *arguments)
            seconds.append(spent() - began)
            assert (told.returncode, told.stderr) == (0, "")
        assert min(seconds) < 3, seconds  # about 0.3 and 0.6 s on an idle machine


def test_a_reader_that_leaves_is_no_news(tiny):
    for buffered in ("", "1"):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as closed:
            told = subprocess.run(
                [sys.executable, "-c", MAIN, "clips", "--store", str(tiny.store), "--json"],
                cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60,
                env={**os.environ, "PYTHONUNBUFFERED": buffered},
            )  # fmt: skip
        assert (told.returncode, told.stderr) == (141, "")


def test_a_terminal_of_few_letters_gets_the_tree_all_the_same(tiny):
    told = process(MAIN, "lineage", "clip-r1-0", "--store", tiny.store, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (told.returncode, told.stderr) == (0, "")
    assert "rollout rollout-r1-0" in told.stdout


def test_help_and_version_teach(bagger):
    told = bagger("--help")
    assert told.status == 0
    assert "bagger clips --sort -drift --limit 5" in told.out
    assert bagger().out.strip() == told.out.strip()
    for command in ("clips", "lineage", "export", "rollout", "rounds"):
        told = bagger(command, "--help")
        assert told.status == 0
        assert f"Examples:\n    bagger {command}" in told.out
        assert max(map(len, told.out.splitlines())) <= 110
    assert bagger("--version").out == f"bagger {version('bagger')}\n"


# ---------------------------------------------------------------- lineage


def test_lineage_is_a_tree_down_to_the_seed_clip(bagger, tiny):
    told = bagger("lineage", "clip-r2-1", "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    for fact in (
        "clip clip-r2-1",
        "└─",
        "rollout rollout-r2-1",
        "num_steps=8",
        "seed seed-1",
        tiny.models["r1"],
        "rewrite",
    ):
        assert fact in told.out


def test_lineage_json_is_flat_and_keeps_the_tree(bagger, tiny):
    told = bagger("lineage", "clip-r2-1", "--store", tiny.store, "--json")
    assert told.err == ""
    found = json.loads(told.out)
    assert {type(value) for one in found for value in one.values()} <= {str, int, float, bool, type(None)}
    assert (found[0]["id"], found[0]["child"]) == ("clip-r2-1", None)
    known = {one["id"] for one in found}
    assert all(one["child"] in known for one in found[1:])
    by_type = {one["type"]: one for one in reversed(found)}
    assert {"clip", "rollout", "seed", "model", "plan", "round", "rewrite", "run"} <= set(by_type)
    assert by_type["rollout"]["settings.num_steps"] == 8
    assert by_type["rollout"]["child"] == "clip-r2-1"
    assert by_type["seed"]["child"] == "rollout-r2-1"
    assert by_type["rewrite"]["verdicts.0.pass"] is True


def test_an_unknown_id_is_told_its_neighbours(bagger, tiny, tmp_path):
    for command in (["lineage", "clip-r2-9"], ["export", "clip-r2-9", "--out", tmp_path / "a.mp4"]):
        told = bagger(*command, "--store", tiny.store)
        assert (told.status, told.out) == (1, "")
        assert "'clip-r2-9'" in told.err
        assert "nearest: clip-r2-" in told.err
    assert list(tmp_path.iterdir()) == []


def test_lineage_forward_tells_rollouts_uses_and_steps(bagger, tiny):
    told = bagger("lineage", "seed-1", "--forward", "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    for fact in (
        "seed seed-1",
        "├─ rollout rollout-r1-1",
        "clip clip-r2-1",
        "steps: ",
        "2 rollouts of round r1",
        "below)",
    ):
        assert fact in told.out
    found = json.loads(bagger("lineage", "seed-1", "--forward", "--store", tiny.store, "--json").out)
    assert {type(value) for one in found for value in one.values()} <= {str, int, float, bool, type(None)}
    assert (found[0]["id"], found[0]["parent"]) == ("seed-1", None)
    known = {one["id"] for one in found}
    assert all(one["parent"] in known and "child" not in one for one in found[1:])
    use = next(one for one in found if one["type"] == "use" and one["round"] == "r0")
    assert use["samples"] == sum(key.startswith("steps.") for key in use) > 0
    every = json.loads(bagger("lineage", tiny.models["r0"], "--forward", "--all", "--store", tiny.store, "--json").out)
    assert {"rollout-r1-0", "rollout-r1-1"} <= {one["id"] for one in every}


def test_lineage_as_a_diagram_and_as_prov_here_or_in_a_file(bagger, tiny, tmp_path):
    for form in ("--mermaid", "--prov", "--json"):
        for way in ([], ["--forward"]):
            told = bagger("lineage", "seed-0", *way, form, "--store", tiny.store)
            out = tmp_path / f"out{form}{way}"
            assert bagger("lineage", "seed-0", *way, form, "--store", tiny.store, "--out", out).out == ""
            assert (told.status, told.err, out.read_text()) == (0, "", told.out)
            again = bagger("lineage", "seed-0", form, "--store", tiny.store, "--out", out)
            assert (again.status, again.err) == (1, f"error: --out {out}: is there already; --force replaces it\n")
            assert bagger("lineage", "seed-0", form, "--store", tiny.store, "--out", out, "--force").status == 0
    assert bagger("lineage", "seed-0", "--mermaid", "--store", tiny.store).out.startswith("flowchart TD\n")
    document = json.loads(bagger("lineage", "seed-0", "--prov", "--store", tiny.store).out)
    assert document["activity"]["bagger:run-seed"]["prov:startTime"].startswith("2026-01-01T00:00:01")
    for wrong, said in (
        (["--mermaid", "--prov"], "ask for one of them"),
        (["--all"], "add --forward"),
        (["--out", tmp_path / "no/where.mmd"], "mkdir -p"),
        (["--out", tmp_path], "is a folder"),
    ):
        told = bagger("lineage", "seed-0", *wrong, "--store", tiny.store)
        assert (told.status, told.out) == (1, "")
        assert said in told.err


def test_lineage_takes_the_beginning_of_an_id(bagger, tiny):
    model = tiny.models["r1"]
    assert bagger("lineage", model[:14], "--store", tiny.store).out.startswith(f"model {model}\n")
    told = bagger("lineage", "run-train", "--store", tiny.store)
    assert (told.status, told.err.count("\n")) == (1, 1)
    assert "run-train-r0, run-train-r1, run-train-r2; give more digits" in told.err


# ---------------------------------------------------------------- export


@pytest.mark.parametrize(
    ("name", "forward", "stored"),
    [
        ("clip-r1-0", [], "clip-r1-0"),
        ("clip-r2-1", ["--forward"], "rollout-r2-1"),
        ("rollout-r1-1", [], "rollout-r1-1"),
        ("seed-3", [], "seed-3"),
    ],
)
def test_export_writes_the_stored_bytes(bagger, tiny, tmp_path, name, forward, stored):
    out = tmp_path / "it's.mp4"
    told = bagger("export", name, *forward, "--out", out, "--store", tiny.store)
    assert (told.status, told.err) == (0, "")
    assert told.out.startswith(f"{out}: {stored}, 3 frames, 0.375 s, ")
    assert out.read_bytes() == f"mp4 of {stored}".encode()
    assert [one.name for one in tmp_path.iterdir()] == [out.name]


def test_export_replaces_nothing_unless_told(bagger, tiny, tmp_path):
    out = tmp_path / "clip.mp4"
    out.write_text("mine")
    command = ["export", "clip-r1-0", "--store", tiny.store, "--out"]
    told = bagger(*command, out)
    assert (told.status, told.out, out.read_text()) == (1, "", "mine")
    assert f"--out {out}: is there already; --force replaces it" in told.err
    assert bagger(*command, out, "--force").status == 0
    assert out.read_bytes() == b"mp4 of clip-r1-0"
    for target, said in ((tmp_path / "no" / "clip.mp4", "there is no folder"), (tmp_path, "is a folder")):
        told = bagger(*command, target)
        assert told.status == 1
        assert said in told.err
    assert [one.name for one in tmp_path.iterdir()] == ["clip.mp4"]


def test_export_of_what_has_no_video(bagger, tiny, tmp_path):
    out = tmp_path / "a.mp4"
    for name, options, said in (
        (tiny.models["r1"], [], "is a model, which has no video"),
        ("seed-0", ["--forward"], "leave out --forward"),
        ("rollout-r1-0", ["--forward"], "leave out --forward"),
        ("x' OR '1'='1", [], "no clip"),
    ):
        told = bagger("export", name, *options, "--out", out, "--store", tiny.store)
        assert (told.status, told.out) == (1, "")
        assert said in told.err
    assert not out.exists()


def test_export_notices_a_damaged_video(bagger, rows, tmp_path):
    seeds = rows.seed()
    seeds[1]["video"] = b"something else"
    rows.seal(tmp_path, "seed", seeds)
    told = bagger("export", "seed-1", "--out", tmp_path / "a.mp4", "--store", tmp_path / "store")
    assert told.status == 1
    assert "seed-1: the stored video is damaged" in told.err
    assert not (tmp_path / "a.mp4").exists()


# ---------------------------------------------------------------- rounds


def test_rounds_rewrites_params(bagger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = bagger("rounds", 2)
    assert (told.status, told.err) == (1, "error: params.yaml: no such file; run this from the project's root folder\n")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    told = bagger("rounds", 2)
    assert (told.status, told.out) == (0, "params.yaml: rounds r1, r2 (`dvc repro` computes what is new)\n")
    assert bagger("rounds", 2).out == "params.yaml: rounds r1, r2 (as before)\n"
    before = (tmp_path / "params.yaml").read_bytes()
    told = bagger("rounds", 0)
    assert (told.status, told.out) == (1, "")
    assert "expected 1 or more" in told.err
    assert (tmp_path / "params.yaml").read_bytes() == before


# ---------------------------------------------------------------- rollout


@pytest.fixture
def project(tiny_base, tmp_path, monkeypatch):
    """A project's root with params.yaml (chunks of 3 latents, 8 frames a second) and a model."""
    text = (ROOT / "params.yaml").read_text()
    text = re.sub(r"chunk_latents: \d+", "chunk_latents: 3", re.sub(r"  fps: \d+", "  fps: 8", text))
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "r1").symlink_to(tiny_base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rollout_from_noise(bagger, project, tiny_base):
    command = ["rollout", "--model", "models/r1", "--prompt", "a red disc", "--seconds", 0.5, "--out"]
    told = bagger(*command, "a.mp4")
    assert told.status == 0, told.err
    digest = json.loads((tiny_base / "bagger.json").read_text())["digests"]["model"]
    assert told.out == f"a.mp4: 6 frames, 0.75 s, by {digest} (models/r1) from noise, seed 0, 'a red disc'\n"
    assert "rollout: 2/2 chunk" in told.err
    assert decode_video(Path("a.mp4")).shape == (6, 32, 32, 3)
    assert probe(Path("a.mp4")).fps == 8
    bagger(*command, "again.mp4")
    bagger(*command, "other.mp4", "--seed", 1)
    assert Path("again.mp4").read_bytes() == Path("a.mp4").read_bytes() != Path("other.mp4").read_bytes()
    told = bagger(*command, "a.mp4")
    assert told.status == 1
    assert "--force replaces it" in told.err


def test_rollout_continues_a_seed_clip(bagger, project, tiny_base, rows):
    vae = json.loads((tiny_base / "bagger.json").read_text())["digests"]["components"]["vae"]
    seeds = rows.seed()[:2]
    data, shape = pack_latents(np.random.default_rng(0).normal(size=(8, 21, 8, 8)))
    seeds[0] |= {"latents": data, "latents_shape": shape, "vae_digest": vae}
    rows.seal(project, "seed", seeds)
    command = ["rollout", "--model", "models/r1", "--store", "store", "--start", "seed-0", "--seconds", 0.1, "--out"]
    told = bagger(*command, "a.mp4")
    assert told.status == 0, told.err
    assert "a.mp4: 6 frames" in told.out  # the real chunk and, though so few seconds are asked for, one generated
    assert "after the first chunk of seed-0, seed 0" in told.out
    assert told.out.endswith(f"{seeds[0]['prompt']!r}\n")
    bagger(*command, "b.mp4", "--seed", 1)
    a, b = (decode_video(Path(name)).astype(int) for name in ("a.mp4", "b.mp4"))
    difference = np.abs(a - b).mean((1, 2, 3))
    assert difference[:3].max() < 3 < difference[3:].min()  # the first chunk is the clip's own, whatever the seed

    for start, said in (("seed-1", "encoded by another VAE"), ("seed-9", "no row seed-9, did you mean 'seed-1'")):
        told = bagger(*command[:6], start, *command[7:], "c.mp4")
        assert (told.status, told.out) == (1, "")
        assert said in told.err
    assert not Path("c.mp4").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "a disc", "--seconds", "0"], "--seconds: found 0; expected more than 0"),
        (["--prompt", "a disc", "--seconds", "inf"], "--seconds: found inf"),
        (["--prompt", " ", "--seconds", "1"], "--prompt is empty"),
        (["--seconds", "1"], "give --prompt TEXT or --prompts FILE, or --start CLIP_ID"),
        (["--seconds", "1", "--extend", "b.mp4"], "give --prompt TEXT or --prompts FILE"),
        (["--prompt", "a disc", "--prompts", "a.txt", "--seconds", "1"], "--prompt and --prompts exclude each other"),
        (["--prompts", "a.txt", "--seconds", "1"], "a.txt: cannot be read: No such file"),
        (["--prompt", "a disc", "--seconds", "1", "--extend", "b.mp4"], "b.mp4: no such file"),
        (["--prompt", "a disc", "--seconds", "1", "--out", "no/a.mp4"], "there is no folder no"),
        (["--prompt", "a disc", "--seconds", "1", "--out", "a.gif"], "found the ending '.gif'; expected .mp4"),
        (["--prompt", "a disc", "--seconds", "1", "--start", "seed-0"], "no table 'seed' in data/store"),
        (["--prompt", "a disc", "--seconds", "1", "--model", "models/r7"], "models/r7: no bagger.json"),
    ],
)
def test_rollout_refuses_before_it_generates(bagger, project, options, said):
    told = bagger("rollout", "--model", "models/r1", "--out", "a.mp4", *options)
    assert (told.status, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert said in told.err
    assert not Path("a.mp4").exists()


def test_rollout_that_ends_early_says_what_is_kept_and_why(bagger, project, tiny_base, monkeypatch):
    from flows.generator import Generator
    from model.rollout import RolloutError

    stream = Generator.stream
    command = ["rollout", "--model", "models/r1", "--prompt", "a red disc", "--seconds", 1, "--out", "a.mp4", "--force"]
    for error, after, status, out, err in (
        (RolloutError("chunk 1 is not finite"), 1, 1, "a.mp4: stopped after 3 of 9 frames, 0.38 s, ",
         "\nerror: models/r1: the model broke down: chunk 1 is not finite\n"),
        (KeyboardInterrupt(), 2, 130, "a.mp4: stopped after 6 of 9 frames, 0.75 s, ", ""),
        (KeyboardInterrupt(), 0, 130, "", "\na.mp4: stopped before the first frame; nothing was written\n"),
    ):  # fmt: skip

        def failing(*arguments, error=error, after=after):
            yield from itertools.islice(stream(*arguments), after)
            raise error

        monkeypatch.setattr(Generator, "stream", failing)
        told = bagger(*command)
        assert told.status == status
        assert told.out.startswith(out)
        assert told.out.count("\n") == bool(out)
        assert told.err.endswith(err)
    assert len(decode_video(Path("a.mp4"))) == 6  # the one of before: the last run wrote none


def test_the_fixture_s_store_was_only_read(tiny):
    assert read_table(tiny.store, "catalog").num_rows == 8
