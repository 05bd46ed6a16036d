import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from store import video
from store.video import VideoError, VideoWriter, decode_video, encode_video, ffmpeg, probe, stream_video


def smooth_clip(num_frames: int = 21, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((num_frames, height, width, 3))
    smooth = gaussian_filter(noise, (0.5, 3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


def make(path: Path, *arguments: str, source: str = "testsrc=size=64x48:rate=10:duration=1") -> Path:
    """A file that ffmpeg itself wrote."""
    command = [ffmpeg(), "-v", "error", "-y", "-f", "lavfi", "-i", source, "-threads", "1", *arguments, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_round_trip_keeps_the_picture_and_the_facts():
    frames = smooth_clip()
    data = encode_video(frames, fps=8, crf=8)
    assert psnr(frames, decode_video(data, height=32, width=32)) > 40
    info = probe(data)
    assert (info.width, info.height, info.fps, info.codec, info.rotation) == (32, 32, 8, "h264", 0)
    assert info.duration == pytest.approx(21 / 8, abs=0.01)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (20, 200, 100)])
def test_colours_survive(colour):
    """A wrong matrix or range on one of the two sides shifts saturated colours by 10 to 20 levels."""
    frames = np.broadcast_to(np.uint8(colour), (3, 32, 32, 3))
    decoded = decode_video(encode_video(frames, 8)).astype(int)
    assert np.abs(decoded - np.array(colour)).max() <= 3


def test_equal_frames_give_equal_bytes():
    frames = smooth_clip()
    assert encode_video(frames, 8) == encode_video(frames.copy(), 8)
    assert encode_video(frames, 8) != encode_video(frames[::-1], 8)


@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 31, 32), (5, 32, 29), (3, 17, 15), (4, 2, 2), (300, 16, 16)])
def test_any_size_and_length(shape):
    frames = smooth_clip(*shape)
    decoded = decode_video(encode_video(frames, 29.97))
    assert decoded.shape == frames.shape
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous
    assert psnr(frames, decoded) > 25


def test_a_small_clip_costs_little_more_than_the_process():
    frames = smooth_clip()
    data = encode_video(frames, 8)

    def best(action) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times)

    spawn = best(lambda: subprocess.run([ffmpeg(), "-version"], capture_output=True))
    assert best(lambda: encode_video(frames, 8)) < spawn + 0.2
    assert best(lambda: decode_video(data, height=32, width=32)) < spawn + 0.2


CODECS = {
    "vp9.webm": ["-c:v", "libvpx-vp9", "-cpu-used", "8"],
    "mpeg4.mp4": ["-c:v", "mpeg4"],
    "mpeg4.avi": ["-c:v", "mpeg4"],
    "mjpeg.mov": ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"],
    "ten_bit.mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p10le"],
    "hevc.mkv": ["-c:v", "libx265", "-x265-params", "log-level=none:pools=none:frame-threads=1"],
    "mpeg2.mpg": ["-c:v", "mpeg2video", "-r", "25"],
    "late_index.mp4": ["-c:v", "libx264"],
    "fragmented.mp4": ["-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov"],
}


@pytest.mark.parametrize("name", CODECS)
def test_whatever_people_have_decodes_from_file_and_from_bytes(tmp_path, name):
    path = make(tmp_path / name, "-pix_fmt", "yuv420p", *CODECS[name])  # a later -pix_fmt wins
    frames = decode_video(path, height=48, width=64)
    assert len(frames) == (25 if name == "mpeg2.mpg" else 10)
    reference = decode_video(make(tmp_path / "reference.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv420p"))
    assert psnr(reference[0], frames[0]) > 25
    assert np.array_equal(decode_video(path.read_bytes(), height=48, width=64), frames)


def test_sound_and_cover_pictures_are_ignored(tmp_path):
    plain = make(tmp_path / "plain.mp4", "-c:v", "libx264")
    cover = make(tmp_path / "cover.png", "-frames:v", "1", source="color=red:size=99x77")
    both = tmp_path / "both.mp4"
    arguments = [ffmpeg(), "-v", "error", "-i", cover, "-i", plain, "-f", "lavfi", "-i", "sine=duration=1"]
    arguments += ["-map", "0", "-map", "1", "-map", "2", "-c:v", "copy", "-c:a", "aac"]
    subprocess.run([*arguments, "-disposition:v:0", "attached_pic", both], check=True, capture_output=True)
    assert (probe(both).width, probe(both).codec) == (64, "h264")
    assert np.array_equal(decode_video(both), decode_video(plain))
    sound = tmp_path / "sound.mp4"
    subprocess.run([ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", sound], check=True)
    with pytest.raises(VideoError, match=r"sound\.mp4: ffmpeg says: Stream map '.*' matches no streams"):
        decode_video(sound)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_metadata_is_applied(tmp_path, degrees, turns):
    upright = make(tmp_path / "upright.mp4", "-c:v", "libx264", "-crf", "4")
    turned = tmp_path / "turned.mp4"
    rotate = [ffmpeg(), "-v", "error", "-display_rotation:v:0", str(degrees), "-i", upright, "-c", "copy", turned]
    subprocess.run(rotate, check=True, capture_output=True)
    expected = np.rot90(decode_video(upright), turns, axes=(1, 2))
    info = probe(turned)
    assert (info.height, info.width) == expected.shape[1:3]
    assert info.rotation == -degrees % 360
    assert psnr(expected, decode_video(turned)) > 35


def test_cover_resize_and_centre_crop(tmp_path):
    """A wide picture, thirds in red, green and blue: a square crop about the centre is green, not squeezed."""
    parts = "".join(f"color={name}:size=60x60:duration=0.3[{name}];" for name in ("red", "green", "blue"))
    parts += "[red][green][blue]hstack=3"
    path = make(tmp_path / "wide.mkv", "-c:v", "ffv1", source=parts)
    square = decode_video(path, height=20, width=20)
    assert square[:, :, 2:-2, 0].max() < 20
    assert square[:, :, 2:-2, 2].max() < 20
    whole = decode_video(path, height=20, width=60)
    assert whole[0, 10, 5, 0] > 200
    assert whole[0, 10, 55, 2] > 200


def test_non_square_pixels_are_made_square(tmp_path):
    path = make(tmp_path / "wide.mp4", "-vf", "setsar=2", "-c:v", "libx264")
    assert (probe(path).width, probe(path).height) == (128, 48)
    assert decode_video(path).shape[1:3] == (48, 128)


def test_resampling_in_time_and_variable_rates(tmp_path):
    counter = "geq=lum='16+T*100':cb=128:cr=128"
    path = make(tmp_path / "a.mkv", "-vf", counter, "-c:v", "ffv1", source="color=black:size=16x16:rate=20:duration=2")
    assert len(decode_video(path)) == 40
    assert len(decode_video(path, fps=5)) == 10
    assert len(decode_video(path, fps=40)) == 80
    assert np.array_equal(decode_video(path, max_frames=7), decode_video(path)[:7])
    # Drop three of every four frames in the first second only: 5 + 20 frames, still 2 seconds.
    variable = f"{counter},select='gte(t,1)+not(mod(n,4))'"
    path = make(tmp_path / "b.mkv", "-vf", variable, "-fps_mode", "vfr", "-c:v", "ffv1",
                source="color=black:size=16x16:rate=20:duration=2")  # fmt: skip
    assert len(decode_video(path)) == 25
    steady = decode_video(path, fps=10)[:, 8, 8, 0].astype(int)
    assert len(steady) == 20
    assert abs(steady[10] - decode_video(path)[5, 8, 8, 0]) <= 1  # the picture of second 1 stays at second 1


def test_hostile_files_are_refused_by_name(tmp_path):
    good = make(tmp_path / "good.mp4", "-c:v", "libx264")
    files = {
        "text.mp4": b"hello, I am a text file\n" * 40,
        "empty.mp4": b"",
        "concat.mp4": f"ffconcat version 1.0\nfile {good.name}\n".encode(),
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n".encode(),
        "noise.mp4": np.random.default_rng(0).bytes(4000),
        "picture.mp4": make(tmp_path / "picture.png", "-frames:v", "1").read_bytes(),
        "svg.mp4": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
        "sub.mp4": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        for action in (probe, decode_video, lambda p: decode_video(p, height=8, width=8)):
            with pytest.raises(VideoError) as caught:
                action(tmp_path / name)
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)
        with pytest.raises(VideoError, match=f"video of {len(content)} bytes"):
            decode_video(content, height=8, width=8)
    for name in ("picture.png", "gone.mp4", "."):
        with pytest.raises(VideoError, match=name):
            decode_video(tmp_path / name)
    for url in ("http://127.0.0.1:9/a.mp4", "concat:good.mp4|good.mp4", "file:good.mp4"):
        with pytest.raises(VideoError, match="no such file"):
            decode_video(url)


def test_awkward_file_names_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = encode_video(smooth_clip(3), 8)
    for name in ("-y.mp4", "a:b.mp4", "%03d.mp4", "猫 'quoted' \"x\".mp4", "tcp:x", "a\nb.mp4"):
        Path(name).write_bytes(data)
        assert len(decode_video(name, height=32, width=32)) == 3
        assert probe(name).width == 32


@pytest.mark.parametrize("late_index", [False, True])
def test_a_cut_or_damaged_mp4_is_never_taken_for_a_shorter_clip(tmp_path, late_index):
    data = encode_video(smooth_clip(), 8)
    if late_index:
        data = make(tmp_path / "late.mp4", "-c:v", "libx264", "-g", "4").read_bytes()
    for end in [1, 7, 20, len(data) // 3, len(data) // 2, len(data) - 500, len(data) - 100, len(data) - 1]:
        with pytest.raises(VideoError):
            decode_video(data[:end], height=32, width=32)
    damaged = bytearray(data)
    start = data.index(b"mdat") + 4 + 900  # past the encoder's own note
    damaged[start : start + 400] = b"\xff" * 400
    with pytest.raises(VideoError):
        decode_video(bytes(damaged), height=32, width=32)


def test_a_cut_webm_is_refused(tmp_path):
    data = make(tmp_path / "a.webm", "-c:v", "libvpx-vp9", "-cpu-used", "8").read_bytes()
    with pytest.raises(VideoError, match="prematurely"):
        decode_video(data[: len(data) // 2])


@pytest.mark.parametrize(("count", "piece"), [(1, 16), (16, 16), (17, 16), (40, 7)])
def test_a_stream_gives_the_same_frames_in_pieces(tmp_path, count, piece):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(smooth_clip(count, 31, 48), 8))
    pieces = list(stream_video(path, piece=piece))
    assert [len(one) for one in pieces[:-1]] == [piece] * (len(pieces) - 1)
    assert np.array_equal(np.concatenate(pieces), decode_video(path))
    few = np.concatenate(list(stream_video(path, max_frames=5)))
    assert np.array_equal(few, decode_video(path, max_frames=5))


def test_pieces_of_large_frames_are_few(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(smooth_clip(20, 32, 48), 8))
    for most, sizes in ((3.5, [3, 3, 3, 3, 3, 3, 2]), (0.5, [1] * 20)):
        monkeypatch.setattr("store.video.PIECE_BYTES", int(most * 32 * 48 * 3))
        pieces = list(stream_video(path))
        assert [len(one) for one in pieces] == sizes
        assert np.array_equal(np.concatenate(pieces), decode_video(path))


def test_a_name_that_is_not_utf_8(tmp_path):
    frames = smooth_clip(3, 32, 48)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff.mp4"))
    path.write_bytes(encode_video(frames, 8))
    assert probe(path).width == 48
    assert np.array_equal(decode_video(path), np.concatenate(list(stream_video(path))))
    path.write_bytes(b"no video")
    with pytest.raises(VideoError, match="caf"):
        decode_video(path)


def test_a_stream_of_a_damaged_video_ends_in_an_error(tmp_path):
    path = tmp_path / "clip.mp4"
    data = bytearray(encode_video(np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8), 8))
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"clip\.mp4: ffmpeg says"):
        list(stream_video(path))
    path.write_text("no video")
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        list(stream_video(path))
    with pytest.raises(VideoError, match="no such file"):
        list(stream_video(tmp_path / "none.mp4"))


def test_a_stream_that_is_left_leaves_no_process(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(smooth_clip(64, 64, 64), 8))
    stream = stream_video(path, piece=2)
    next(stream)
    stream.close()
    mine = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert "clip.mp4" not in mine


def test_a_clip_too_long_for_memory_is_refused(monkeypatch):
    data = encode_video(smooth_clip(), 8)
    monkeypatch.setattr(video, "MAX_DECODED_BYTES", 10 * 32 * 32 * 3)
    with pytest.raises(VideoError, match="pass max_frames"):
        decode_video(data)
    assert len(decode_video(data, max_frames=5)) == 5


@pytest.mark.parametrize(
    ("frames", "fps", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), 8, "float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), 8, r"\[0, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), 8, r"\[8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "saw 0"),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan"), "saw nan"),
    ],
)
def test_wrong_frames_are_refused(frames, fps, said):
    with pytest.raises(VideoError, match=said):
        encode_video(frames, fps)


# ---------------------------------------------------------------- written while it is made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def children() -> set[int]:
    """Processes that this one started and has not collected."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(map(int, task.read_text().split()))
    return found


def write_pieces(path: Path, pieces: Iterable[np.ndarray], error: type[BaseException] | None = None) -> None:
    with VideoWriter(path, fps=8, crf=1) as writer:
        for piece in pieces:
            writer.write(piece)
        if error is not None:
            raise error


def boxes(data: bytes) -> list[str]:
    """Kinds of an mp4's outermost boxes, in order."""
    kinds, position = [], 0
    while position < len(data):
        kinds.append(data[position + 4 : position + 8].decode())
        position += int.from_bytes(data[position : position + 4])
    return kinds


@pytest.mark.parametrize("shape", [(21, 32, 32), (21, 31, 32), (5, 2, 2), (40, 90, 120)])
def test_a_video_in_pieces_is_the_video_at_once(tmp_path, shape):
    frames, path = smooth_clip(*shape), tmp_path / "clip.mp4"
    with VideoWriter(path, fps=8, crf=16) as writer:
        for piece in np.split(frames, [1, 3, 4]):
            writer.write(piece)
            assert not path.exists()
    assert writer.num_frames == len(frames)
    assert names(tmp_path) == ["clip.mp4"]
    assert path.read_bytes() == encode_video(frames, 8, 16)
    kinds = boxes(path.read_bytes())
    assert kinds.index("moov") < kinds.index("mdat")


def test_what_was_given_may_be_changed_afterwards(tmp_path):
    frames = smooth_clip(64, 64, 64)
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        buffer = frames[:32].copy()
        for part in (frames[:32], frames[32:]):
            buffer[:] = part
            writer.write(buffer)
            buffer[:] = 0
    assert (tmp_path / "a.mp4").read_bytes() == encode_video(frames, 8)


def test_what_was_interrupted_is_kept_if_asked(tmp_path):
    frames = smooth_clip()
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        try:
            writer.write(frames[:9])
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            writer.finish()
        assert (tmp_path / "a.mp4").read_bytes() == encode_video(frames[:9], 8)
        writer.finish()  # twice is once
        with pytest.raises(VideoError, match=r"a\.mp4: is finished"):
            writer.write(frames)
    assert names(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("there", [False, True])
def test_an_exception_leaves_what_was_there(tmp_path, error, there):
    before = children()
    if there:
        (tmp_path / "a.mp4").write_text("older")
    with pytest.raises(error):
        write_pieces(tmp_path / "a.mp4", [smooth_clip(9, 64, 64)] * 9, error)
    assert names(tmp_path) == (["a.mp4"] if there else [])
    assert not there or (tmp_path / "a.mp4").read_text() == "older"
    assert children() <= before


def test_no_frames_make_no_video(tmp_path):
    with pytest.raises(VideoError, match=r"a\.mp4: no frames"):
        write_pieces(tmp_path / "a.mp4", [])
    assert names(tmp_path) == []


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(VideoError, match=r"a\.mp4: frames are \(32, 16\) \(width, height\), saw \(16, 32\)"):
        write_pieces(tmp_path / "a.mp4", [smooth_clip(2, 16, 32), smooth_clip(2, 32, 16)])
    assert names(tmp_path) == []


def test_a_path_that_cannot_be_a_file_is_refused_at_once(tmp_path):
    with pytest.raises(VideoError, match="is a folder"):
        VideoWriter(tmp_path, fps=8)
    with pytest.raises(VideoError, match="no folder .*gone"):
        VideoWriter(tmp_path / "gone" / "a.mp4", fps=8)


@pytest.mark.parametrize("name", ["-y.mp4", "a:b.mp4", "%03d.mp4", "猫 'quoted'.mkv", "a\nb", ".hidden.mp4"])
def test_awkward_names_are_written_to(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    frames = smooth_clip(3)
    with VideoWriter(name, fps=8) as writer:
        writer.write(frames)
    assert names(tmp_path) == [name]
    assert Path(name).read_bytes() == encode_video(frames, 8)


def noise(num_frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 128, 128, 3), np.uint8)


BROKEN = {  # what goes before ffmpeg, and what is said of it
    "full": ("ulimit -f 64; trap '' XFSZ", "File too large"),
    "killed": ("(sleep 0.3; kill -9 $$) &", r"nothing \(exit status -9\)"),
    "wordy": ("head -c 300000 /dev/zero >&2; echo >&2; echo '[error] no such mood' >&2; exit 3", "no such mood"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_ffmpeg_says_is_raised_and_nothing_is_left(tmp_path, monkeypatch, kind):
    """An ffmpeg whose disk is full, that dies, or that says more than a pipe holds, as do the pieces it is given."""
    before, binary = children(), ffmpeg()
    start, said = BROKEN[kind]
    script = tmp_path / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(f'#!/bin/bash\n{start}\nexec {shlex.quote(binary)} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    (tmp_path / "out").mkdir()
    with pytest.raises(VideoError, match=rf"a\.mp4: ffmpeg says: .*{said}"):
        write_pieces(tmp_path / "out" / "a.mp4", (noise(8, seed) for seed in range(99)))
    assert names(tmp_path / "out") == []
    assert children() <= before


ROLLOUT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
import numpy as np
from store.video import VideoWriter
keep = sys.argv[2] == "keep"
with VideoWriter(sys.argv[1], fps=8) as writer:
    try:
        for piece in range(10**6):
            writer.write(np.full((3, 48, 64, 3), piece % 256, np.uint8))
            if piece == 9:
                print("thirty frames", flush=True)
            if piece >= 9:
                time.sleep(0.01)
    except KeyboardInterrupt:
        if keep:
            writer.finish()
            print(writer.num_frames, flush=True)
        raise
"""


def start_rollout(path: Path, keep: str) -> subprocess.Popen:
    """A process group of its own, as a shell gives every command, once it has written thirty frames."""
    process = subprocess.Popen(
        [sys.executable, "-c", ROLLOUT, str(path), keep], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "thirty frames\n"
    return process


@pytest.mark.parametrize("keep", ["keep", "drop"])
def test_ctrl_c_reaches_us_but_not_ffmpeg(tmp_path, keep):
    process = start_rollout(tmp_path / "a.mp4", keep)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    if keep == "drop":
        assert names(tmp_path) == []
        return
    assert names(tmp_path) == ["a.mp4"]
    frames = decode_video(tmp_path / "a.mp4")
    assert len(frames) >= int(out) >= 30
    assert np.abs(frames[:, 0, 0, 0].astype(int) - np.arange(len(frames)) // 3).max() <= 2


def test_a_killed_process_leaves_a_playable_draft(tmp_path):
    process = start_rollout(tmp_path / "a.mp4", "keep")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (draft,) = tmp_path.iterdir()
    assert draft.name == f".a.mp4.{process.pid}.mp4"
    for _ in range(200):  # ffmpeg needs a moment after the end of its input
        try:
            frames = decode_video(draft)
            break
        except VideoError:
            time.sleep(0.05)
    assert len(frames) >= 27  # the last piece may not have left the process
    assert probe(draft).fps == 8


def test_import_is_light():
    code = "import sys, store.pictures; print([m for m in ('torch', 'matplotlib', 'PIL', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
