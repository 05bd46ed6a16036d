"""One video to a file: what it holds, what the model saw, and what is there when it ends early."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from flows.generator import Generator
from flows.params import load_params
from flows.video import CtrlC, Request, RequestError, make
from model.pipeline import encode_frames, load_pipeline, num_frames, read_record, save_base
from model.rollout import RolloutError
from store.latents import pack_latents, unpack_latents
from store.video import decode_video, encode_video

ROOT = Path(__file__).parents[2]
FPS, CHUNK = 8, 2
PROMPT = "a red disc moves left"
STREAM = Generator.stream


def write_params(root: Path, **values: object) -> None:
    """The project's own params in a folder, with other values for some keys; few steps, so that tests are quick."""
    text = (ROOT / "params.yaml").read_text()
    for key, value in {"fps": FPS, "chunk_latents": CHUNK, "num_steps": 2, "device": "cpu", **values}.items():
        text, count = re.subn(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", text)
        assert count == 1, key
    (root / "params.yaml").write_text(text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def wan_base(tiny_base, tmp_path_factory):
    """The tiny pipeline with a VAE as Wan's: 4 frames to a latent, but for the first."""
    pipe = load_pipeline(tiny_base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.vae = AutoencoderKLWan(
            base_dim=8, z_dim=8, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
            latents_mean=[0.0] * 8, latents_std=[1.0] * 8, scale_factor_temporal=4, scale_factor_spatial=4,
        ).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "wan"
    save_base(pipe, folder, {"kind": "base", "source": "tiny, with time compressed"})
    return folder


@pytest.fixture(params=["tiny_base", "wan_base"])
def base(request):
    """Folders of pipelines with either kind of VAE."""
    return request.getfixturevalue(request.param)


def request(model: Path, **options: object) -> Request:
    settings = {"model": model, "out": Path("a.mp4"), "seconds": 1.0, "seed": 0, "prompt": PROMPT, "prompts": None,
                "start": None, "extend": None, "store": Path("store")}  # fmt: skip
    return Request(**(settings | options))


def made(model: Path, **options: object) -> SimpleNamespace:
    """A video made in this process: frames, the line told, what stopped it."""
    asked = request(model, **options)
    with CtrlC() as ctrl_c:
        done = make(asked, load_params(), ctrl_c)
    return SimpleNamespace(frames=decode_video(asked.out), line=done.line, stopped=done.stopped)


def as_stored(frames: np.ndarray) -> np.ndarray:
    """Frames after the way through an mp4 of the project's quality."""
    return decode_video(encode_video(frames, FPS, load_params().video.crf))


def expected(generator: Generator, prefix_CFhw: np.ndarray, num_chunks: int, seed: int = 0) -> np.ndarray:
    """The frames of `Generator.generate`, which decodes the whole clip at once."""
    return generator.generate(prefix_CFhw[None], [PROMPT], num_chunks, [seed]).frames[0]


def moving(num: int, height: int = 32, width: int = 32) -> np.ndarray:
    """A smooth clip [T,H,W,3] whose frames all differ."""
    t, y, x = np.meshgrid(np.arange(num), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin(0.2 * x + 0.4 * t), np.cos(0.15 * y - 0.3 * t), np.sin(0.1 * (x + y) + 0.2 * t)]
    return (127.5 + 100 * np.stack(waves, -1)).round().astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of every frame."""
    return np.abs(a.astype(int) - b).mean((1, 2, 3))


# ---------------------------------------------------------------- what the file holds


def test_text_to_video_is_what_generate_makes(project, base):
    asked = 17 / FPS
    found = made(base, seconds=asked, seed=3)
    ratio = 1 if base.name == "base" else 4
    num_chunks = {1: 9, 4: 3}[ratio]
    whole = expected(Generator(base, load_params()), np.zeros((8, 0, 8, 8), np.float32), num_chunks, seed=3)
    assert len(whole) == {1: 18, 4: 21}[ratio]
    assert np.array_equal(found.frames, as_stored(whole))
    assert found.line.startswith(f"a.mp4: {len(whole)} frames, {round(len(whole) / FPS, 2):g} s, by model-")
    assert found.line.endswith(f"({base}) from noise, seed 3, {PROMPT!r}")
    assert [one.name for one in project.iterdir() if "a.mp4" in one.name] == ["a.mp4"]


@pytest.fixture
def store(project, tiny_base, rows):
    """Sealed seed clips, the first of the tiny pipeline's VAE."""
    latents = np.random.default_rng(0).normal(size=(8, 6, 8, 8)).astype(np.float32)
    data, shape = pack_latents(latents)
    seeds = rows.seed()[:2]
    vae = read_record(tiny_base)["digests"]["components"]["vae"]
    seeds[0] |= {"latents": data, "latents_shape": shape, "vae_digest": vae, "prompt": PROMPT}
    rows.seal(project, "seed", seeds)
    return SimpleNamespace(path=project / "store", latents=unpack_latents(data, shape))


def test_a_seed_clip_is_continued_as_generate_does(store, tiny_base):
    found = made(tiny_base, start="seed-0", prompt=None, store=store.path, seconds=1)
    whole = expected(Generator(tiny_base, load_params()), store.latents[:, :CHUNK], 4)
    assert np.array_equal(found.frames, as_stored(whole))
    assert found.line.endswith(f"after the first chunk of seed-0, seed 0, {PROMPT!r}")
    assert len(made(tiny_base, start="seed-0", prompt=None, store=store.path, seconds=0.1).frames) == 2 * CHUNK


# (frames given, those that the model sees): whole chunks of 2 latents, 6 chunks at most
EXTENDED = {1: [(5, 4), (17, 12)], 4: [(5, 5), (12, 5), (30, 29), (60, 45)]}


@pytest.mark.parametrize(
    ("ratio", "length", "seen"), [(ratio, *one) for ratio, some in EXTENDED.items() for one in some]
)
def test_a_video_is_extended_from_its_very_end(project, tiny_base, wan_base, capsys, ratio, length, seen):
    model = {1: tiny_base, 4: wan_base}[ratio]
    source = project / "given.mp4"
    source.write_bytes(encode_video(moving(length), FPS, crf=0))
    given = decode_video(source)
    found = made(model, extend=source, seconds=1.3)
    added = {1: 12, 4: 16}[ratio]  # 11 frames are asked for
    assert len(found.frames) == length + added
    assert f"{length} frames at 8 a second, of which the model sees the last {seen}" in capsys.readouterr().err
    assert f"a.mp4: {length + added} frames, " in found.line
    assert f"after the {length} frames of {source} ({round(added / FPS, 2):g} s added), seed 0" in found.line

    generator = Generator(model, load_params())
    vae = generator.pipe.vae
    prefix = encode_frames(vae, given[None, length - seen :])[0].numpy()
    assert num_frames(vae, prefix.shape[1]) == seen
    whole = expected(generator, prefix, prefix.shape[1] // CHUNK + added // (ratio * CHUNK))
    assert len(whole) == seen + added
    assert np.array_equal(found.frames, as_stored(np.concatenate([given, whole[seen:]])))
    assert difference(found.frames[:length], moving(length)).max() < 4


def test_a_given_video_is_scaled_cropped_and_resampled(project, tiny_base):
    """60x44 at 24 frames a second, odd in everything, and found again in the file."""
    source = project / "given.mkv"
    source.write_bytes(encode_video(moving(31, 44, 60), 24, crf=0))
    given = decode_video(source, height=32, width=32, fps=FPS)
    assert 9 <= len(given) <= 11
    found = made(tiny_base, extend=source, seconds=0.5)
    assert found.frames.shape == (len(given) + 4, 32, 32, 3)
    assert difference(found.frames[: len(given)], given).max() < 4


def test_the_context_decides_how_much_is_seen(project, tiny_base, capsys):
    source = project / "given.mp4"
    source.write_bytes(encode_video(moving(21), FPS))
    for window, sink, seen in (("null", 0, 20), (3, 1, 8), (0, 0, 2)):
        write_params(project, window_chunks=window, sink_chunks=sink)
        assert len(made(tiny_base, extend=source, seconds=0.2).frames) == 23
        assert f"sees the last {seen}\n" in capsys.readouterr().err


def test_a_video_may_be_extended_in_place(project, tiny_base):
    source = project / "a.mp4"
    source.write_bytes(encode_video(moving(6), FPS))
    given = decode_video(source)
    assert np.array_equal(made(tiny_base, extend=source, out=source).frames[:6], as_stored(given)[:6])


# ---------------------------------------------------------------- prompts


def texts_of(monkeypatch) -> dict[int, str]:
    """Is filled with what the model is told to show, by chunk."""
    told: dict[int, str] = {}

    def listen(self, prefix, prompts, num_chunks, seed):
        told.update(prompts)
        return STREAM(self, prefix, prompts, num_chunks, seed)

    monkeypatch.setattr(Generator, "stream", listen)
    return told


def test_prompts_change_at_the_nearest_chunk(project, store, tiny_base, monkeypatch, capsys):
    path = project / "story.txt"
    path.write_text(f"# chunks are 0.25 s\n0 {PROMPT}\n\n0:00.6 a blue disc\x1b[2J grows\n1.25 a disc\n")
    told = texts_of(monkeypatch)
    found = made(tiny_base, prompt=None, prompts=path, seconds=1.5)
    assert told == {0: PROMPT, 2: "a blue disc\x1b[2J grows", 5: "a disc"}
    said = capsys.readouterr().err
    assert f"0 s {PROMPT}\n0.5 s (asked for 0.6 s) a blue disc [2J grows\n1.25 s a disc\n" in said
    assert found.line.endswith(f"seed 0, 3 prompts of {path}")
    alone = made(tiny_base, seconds=1.5, out=Path("alone.mp4")).frames
    same = difference(found.frames, alone)
    assert same[:4].max() < 2 < same[4:].max()  # the second prompt is at work from its chunk on

    told.clear()
    made(tiny_base, prompt=None, prompts=path, seconds=1.5, start="seed-0", store=store.path)
    assert told == {0: PROMPT, 2: "a blue disc\x1b[2J grows", 5: "a disc"}  # the true chunk counts

    told.clear()
    source = project / "given.mp4"
    source.write_bytes(encode_video(moving(7), FPS))
    made(tiny_base, prompt=None, prompts=path, seconds=1.5, extend=source)
    assert told == {0: PROMPT, 3 + 2: "a blue disc\x1b[2J grows", 3 + 5: "a disc"}  # after three chunks given


def test_a_prompt_beyond_the_end_is_told_before_anything_is_written(project, tiny_base):
    path = project / "story.txt"
    path.write_text("0 a disc\n9 a square\n")
    with pytest.raises(ValueError, match=r"line 2: found 9 s; expected less than 1 s, where the video ends"):
        made(tiny_base, prompt=None, prompts=path)
    assert not any("a.mp4" in one.name for one in project.iterdir())


# ---------------------------------------------------------------- what cannot be made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": Path("a.txt")}, "--prompt and --prompts exclude each other"),
        ({"start": "seed-0", "extend": Path("a.mp4")}, "--start and --extend exclude each other"),
        ({"prompt": None, "extend": Path("a.mp4")}, "nothing to show"),
        ({"prompt": "  "}, "--prompt is empty"),
        ({"seconds": float("nan")}, "--seconds: found nan"),
    ],
)
def test_a_request_that_makes_no_sense(options, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        request(Path("models/r1"), **options)


def test_a_video_that_cannot_be_extended(project, wan_base):
    short, text = project / "short.mp4", project / "list.mp4"
    short.write_bytes(encode_video(moving(4), FPS))
    text.write_text("#EXTM3U\nfile:///etc/passwd\n")
    for source, said in (
        (short, "short.mp4: found 4 frames at 8 a second, 0.5 s; expected a chunk or more to continue: 5 frames, 0.6"),
        (text, "list.mp4"),
        (project / "no.mp4", "no such file"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            made(wan_base, extend=source)
    assert not any("a.mp4" in one.name for one in project.iterdir())


# ---------------------------------------------------------------- ended early


def break_after(monkeypatch, num_pieces: int, error: BaseException) -> None:
    """Let the model fail once it has given so many pieces."""

    def failing(self, *arguments):
        pieces = STREAM(self, *arguments)
        for _ in range(num_pieces):
            yield next(pieces)
        raise error

    monkeypatch.setattr(Generator, "stream", failing)


@pytest.mark.parametrize(
    ("error", "stopped"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RolloutError("rollout: chunk 2 is not finite (seeds 0)"), RequestError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ],
)
def test_what_was_generated_is_kept(project, tiny_base, monkeypatch, error, stopped):
    whole = made(tiny_base, seconds=1).frames
    break_after(monkeypatch, 2, error)
    found = made(tiny_base, seconds=1)
    assert isinstance(found.stopped, stopped)
    assert found.line.startswith("a.mp4: stopped after 4 of 8 frames, 0.5 s, by model-")
    assert len(found.frames) == 4
    assert difference(found.frames, whole[:4]).max() < 3  # B-frames look ahead, so not to the bit
    if stopped is RequestError:
        assert str(found.stopped) == f"{tiny_base}: the model broke down: {error}"

    source = project / "given.mp4"
    source.write_bytes(encode_video(moving(5), FPS))
    found = made(tiny_base, extend=source)
    assert found.line.startswith("a.mp4: stopped after 7 of 13 frames, 0.88 s")  # the first piece is the prefix
    assert "after the 5 frames of" in found.line
    assert "(0.25 s added)" in found.line


def test_without_a_generated_frame_nothing_is_left(project, store, tiny_base, monkeypatch):
    before = {one.name for one in project.iterdir()}
    break_after(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        made(tiny_base)
    break_after(monkeypatch, 1, RolloutError("rollout: chunk 1 is not finite (seeds 0)"))
    with pytest.raises(RequestError, match="the model broke down: rollout: chunk 1"):
        made(tiny_base, start="seed-0", store=store.path)
    assert {one.name for one in project.iterdir()} == before
    out = project / "old.mp4"
    out.write_text("mine")
    with pytest.raises(RequestError):
        made(tiny_base, start="seed-0", store=store.path, out=out)
    assert out.read_text() == "mine"


@pytest.fixture
def sigint():
    """Presses Ctrl-C; puts back what a test does to it."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_what_is_being_written(sigint):
    written = []

    def write(ctrl_c: CtrlC) -> None:
        with ctrl_c.held():
            sigint()
            written.append("whole")
        written.append("too much")

    with CtrlC() as ctrl_c:
        with pytest.raises(KeyboardInterrupt):
            write(ctrl_c)
        sigint()
    sigint()  # the second and the third are ignored
    assert written == ["whole"]


def test_ctrl_c_breaks_off_what_is_computed_but_not_the_end(sigint):
    before = signal.getsignal(signal.SIGINT)
    with CtrlC():
        pass
    assert signal.getsignal(signal.SIGINT) is before
    with CtrlC(), pytest.raises(KeyboardInterrupt):
        sigint()
    with CtrlC() as ctrl_c:
        ctrl_c.hold()
        sigint()


# As in a terminal, whatever the test runner's parent did to the signal.
MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.cli import main
main()
"""


def test_ctrl_c_leaves_a_video_that_plays(project, tiny_base):
    """As a terminal sends it, to the command and all its children, while frames come; and pressed in anger."""
    command = ["rollout", "--model", str(tiny_base), "--prompt", PROMPT, "--seconds", "100000", "--out", "a.mp4"]
    running = subprocess.Popen(
        [sys.executable, "-c", MAIN, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while not any(one.name != "a.mp4" and "a.mp4" in one.name and one.stat().st_size for one in project.iterdir()):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < limit
            time.sleep(0.05)
        while running.poll() is None and time.monotonic() < limit:
            os.killpg(running.pid, signal.SIGINT)
            time.sleep(0.02)
        out, err = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    frames = decode_video(Path("a.mp4"))
    assert len(frames) >= CHUNK
    assert len(frames) % CHUNK == 0
    assert out.startswith(f"a.mp4: stopped after {len(frames)} of 800000 frames, ")
    assert [one.name for one in project.iterdir() if "a.mp4" in one.name] == ["a.mp4"]
