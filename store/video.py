"""Video files in and out: mp4 from frames, frames from any local video.

Frames are uint8 RGB arrays [T, H, W, 3] (T pixel frames, H height, W width) everywhere. Notable:

- One ffmpeg process a clip, single-threaded: for a 32x32 clip the cost is the process spawn. No ffprobe is needed, the
  binary that imageio-ffmpeg carries has none.
- A video can be written while its frames are made: memory stays flat, and the file appears when it is finished. Ctrl-C
  does not reach ffmpeg, and where this process is killed ffmpeg still finishes the hidden draft beside it.
- Encoding is bit-reproducible on one ffmpeg binary; another version may write other bytes for the same frames, which is
  why tables keep a digest of the frames next to the digest of the file.
- Decoding treats every file as hostile: local files only, containers by whitelist (a text file or a playlist renamed to
  .mp4 is refused, also one that names other files), and whatever ffmpeg calls an error rejects the clip. A file that
  decodes "mostly" would otherwise put grey blocks or a short clip into a data set.
"""

import io
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ffmpeg as ffmpeg_commands
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


Source = Path | str | bytes

# Containers of real video. Playlists (hls, concat, dash) and still images (png_pipe, image2) are left out on purpose.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,flv,ogg,asf"
MAX_DECODED_BYTES = 4 * 2**30  # of one clip, as RGB: about 3,500 frames of 832x480
PIECE_BYTES = 2**26  # of frames that stream_video holds at once; one frame, where that is more
SCALER = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
# Constant timestamps make ffmpeg pass every frame on once; its option for that changed its name over the years.
EVERY_FRAME = "settb=1/25,setpts=N,fps=25"
SQUARE_PIXELS = f"scale=w='max(1,round(iw*if(sar,sar,1)))':h=ih:flags={SCALER},setsar=1,format=rgb24"


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file and what ffmpeg said."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of its first video stream. Width and height are pixels as shown, after rotation."""

    width: int
    height: int
    fps: float | None  # average; None where the container does not say
    duration: float | None  # seconds; None where the container does not say
    codec: str
    rotation: int  # degrees clockwise that a player turns the stored picture: 0, 90, 180 or 270


def ffmpeg() -> str:
    """Path of the ffmpeg binary: the one on PATH, else the one that imageio-ffmpeg carries."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise VideoError("no ffmpeg binary found; install ffmpeg or `pip install imageio-ffmpeg`") from error


def encode_video(frames: np.ndarray, fps: float, crf: int = 12) -> bytes:
    """mp4 of frames [T, H, W, 3] as VideoWriter makes it; the same bytes for the same input.

    Raises VideoError for another dtype, shape or rate.
    """
    with tempfile.TemporaryDirectory(prefix="bagger-video-") as folder:
        target = Path(folder, "clip.mp4")
        with VideoWriter(target, fps=fps, crf=crf) as writer:
            writer.write(frames)
        return target.read_bytes()


class VideoWriter:
    """Writes an mp4 (H.264, faststart, BT.709 limited range) piece by piece, while its frames are made.

        with VideoWriter("out.mp4", fps=8) as writer:
            for frames in pieces:
                writer.write(frames)

    The file appears at `path` when the block ends or `finish` is called, whole, in place of one that was there. A block
    left by an exception leaves nothing, unless `finish` was called before: so `except KeyboardInterrupt` within the
    block decides whether the frames so far become a video. Memory does not grow with the number of frames.

    Even sizes are yuv420p, which every player shows. Where a side is odd the chroma cannot be halved, and padding or
    cropping would change the clip: those are yuv444p, which browsers may refuse and everything else plays.

    `num_frames` counts what was written. Every method raises VideoError with what ffmpeg said when it has failed.
    """

    def __init__(self, path: Path | str, *, fps: float, crf: int = 12):
        """Raises VideoError for a rate outside (0, 1000], or a path that cannot be a file."""
        if not 0 < fps <= 1000:
            raise VideoError(f"fps must be in (0, 1000], saw {fps!r}")
        self.path = Path(path).absolute()
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise VideoError(f"{path}: {'is a folder' if self.path.is_dir() else f'no folder {self.path.parent}'}")
        self.num_frames = 0
        self._fps, self._crf = fps, crf
        # What a killed process leaves; with its number, so that two that write to one path do not mix their frames.
        self._draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.mp4")
        self._size: tuple[int, int] | None = None
        self._encoder: _Encoder | None = None
        self._finished = False

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if self._encoder is not None:
                self._encoder.close()
            if not self._finished:
                self._draft.unlink(missing_ok=True)

    def write(self, frames: np.ndarray) -> None:
        """Append frames, uint8 [T, H, W, 3] with T >= 1, all of the size of the first.

        Returns while they are being encoded; waits for the piece before. What was written once this has returned will
        be in the file. Raises VideoError for another dtype, shape or size, and after `finish`.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise VideoError(f"frames must be uint8 [T, H, W, 3] with T >= 1, saw {frames.dtype} {list(frames.shape)}")
        if self._finished:
            raise VideoError(f"{self.path}: is finished and takes no more frames")
        height, width = frames.shape[1:3]
        if self._encoder is None:
            self._encoder = _Encoder(_encoding(self._draft, width, height, self._fps, self._crf), str(self.path))
            self._size = (width, height)
        if self._size != (width, height):
            raise VideoError(f"{self.path}: frames are {self._size} (width, height), saw {(width, height)}")
        self._encoder.take(frames)
        self.num_frames += len(frames)

    def finish(self) -> None:
        """Make the frames so far the file at `path`. Raises VideoError, and leaves no file, where there are none."""
        if self._finished:
            return
        if self._encoder is None:
            raise VideoError(f"{self.path}: no frames to make a video of")
        self._encoder.finish()
        try:
            self._draft.replace(self.path)
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._finished = True


class _Encoder:
    """An ffmpeg process and the thread that feeds it.

    A session of its own keeps Ctrl-C from ffmpeg. The thread keeps it from the pipe: KeyboardInterrupt is raised in the
    main thread only, so a piece that was handed over reaches ffmpeg whole.
    """

    def __init__(self, command: Any, name: str):
        self._name = name
        self._said = tempfile.TemporaryFile(prefix="bagger-video-")  # a pipe that nobody reads could fill up
        # No -xerror: ffmpeg is to finish the file also where a killed process leaves it with a part of a frame.
        self._process = subprocess.Popen(
            _arguments(command, "error"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            bufsize=0,
            start_new_session=True,
        )
        self._thread = ThreadPoolExecutor(1, "video-writer")
        self._sent: Future[None] = Future()
        self._sent.set_result(None)

    def take(self, frames: np.ndarray) -> None:
        """Hand frames over, once those before are with ffmpeg."""
        if self._sent.exception() is not None:
            self.finish()
        self._sent = self._thread.submit(self._send, frames.tobytes())

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        left = memoryview(data)
        while left:
            left = left[self._process.stdin.write(left) :]

    def finish(self) -> None:
        """Wait until ffmpeg has written everything. Raises VideoError unless it has."""
        self._end()
        self._said.seek(0)
        _raise_errors(self._said.read(), self._process.returncode, self._name)
        if self._sent.exception() is not None:
            raise VideoError(f"{self._name}: ffmpeg ended before the frames did")

    def close(self) -> None:
        """Stop ffmpeg where it has not finished, and let go of everything."""
        self._process.kill()
        self._end()
        self._thread.shutdown()
        self._said.close()

    def _end(self) -> None:
        # In its turn, after every piece: also after one whose handing over was interrupted.
        assert self._process.stdin is not None
        self._thread.submit(self._process.stdin.close).result()
        self._process.wait()


def _encoding(target: Path, width: int, height: int, fps: float, crf: int) -> Any:
    """The command that makes an mp4 of raw frames."""
    pixels = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    rate = str(Fraction(fps).limit_denominator(1001))
    frames = ffmpeg_commands.input(
        "pipe:0", format="rawvideo", pix_fmt="rgb24", video_size=(width, height), framerate=rate
    )
    # Not to a pipe: faststart moves the index to the front at the end.
    return frames.output(
        f"file:{target}",
        format="mp4",
        vf=f"scale=out_color_matrix=bt709:out_range=tv:flags={SCALER},format={pixels}",
        vcodec="libx264",
        preset="veryfast",
        crf=crf,
        threads=1,
        movflags="+faststart",
        map_metadata=-1,
        fflags="+bitexact",
        **{"flags:v": "+bitexact"},
        colorspace="bt709",
        color_primaries="bt709",
        color_trc="bt709",
        color_range="tv",
    ).overwrite_output()


def decode_video(
    source: Source,
    *,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
) -> np.ndarray:
    """Frames [T, height, width, 3] of the first video stream of a local file or of a file's bytes.

    Rotation metadata and non-square pixels are applied, then the picture is resized to cover height x width and cropped
    about its centre; without both the size stays. With fps the frames are resampled in time (nearest); without it they
    are all kept as stored, also where the rate varies. At most max_frames are read. Sound is ignored.
    Raises VideoError for whatever is not an intact video, naming the file.
    """
    if (height is None) != (width is None):
        raise VideoError(f"height and width go together, saw height={height!r}, width={width!r}")
    name = _name(source)
    filters = [f"fps={Fraction(fps).limit_denominator(1001)}" if fps else EVERY_FRAME, SQUARE_PIXELS]
    if height is not None:
        cover = f"scale=w={width}:h={height}:force_original_aspect_ratio=increase:flags={SCALER}"
        filters[1:] = [filters[1].removesuffix(",format=rgb24"), f"{cover},format=rgb24,crop={width}:{height}"]
    output: dict[str, Any] = {"fs": MAX_DECODED_BYTES}
    if max_frames is not None:
        output["frames:v"] = max_frames
    with _opened(source) as (url, stdin, protocol):
        raw = _ffmpeg(_decoding(url, protocol, filters, output), name, stdin=stdin)
    if len(raw) >= MAX_DECODED_BYTES:
        raise VideoError(f"{name}: more than {MAX_DECODED_BYTES} bytes of frames; cut it or pass max_frames")
    header = re.match(rb"P6\n(\d+) (\d+)\n255\n", raw)
    if not header:
        raise VideoError(f"{name}: no frames in it")
    width, height = int(header[1]), int(header[2])
    size = len(header[0]) + height * width * 3
    if len(raw) % size:
        raise VideoError(f"{name}: ffmpeg stopped within a frame")
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, size)[:, len(header[0]) :]
    return pictures.copy().reshape(-1, height, width, 3)


def stream_video(path: Path | str, *, max_frames: int | None = None, piece: int = 16) -> "Iterator[np.ndarray]":
    """The frames that decode_video gives of a file, in pieces [piece or fewer, H, W, 3], of a video of any length.

    Memory does not grow with the number of frames, and pieces of large ones have fewer of them: PIECE_BYTES at most.
    Raises VideoError as decode_video, but only where the damage is met: pieces before it have been given by then.
    """
    name = _name(path)
    output = {} if max_frames is None else {"frames:v": max_frames}
    with _opened(Path(path)) as (url, _, protocol), tempfile.TemporaryFile(prefix="bagger-video-") as said:
        command = _decoding(url, protocol, [EVERY_FRAME, SQUARE_PIXELS], output)
        process = subprocess.Popen(
            _arguments(command, "error", "-xerror", "-nostdin"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            header = b"".join(process.stdout.readline() for _ in range(3))
            size = re.fullmatch(rb"P6\n(\d+) (\d+)\n255\n", header)
            width, height = (int(size[1]), int(size[2])) if size else (0, 0)
            step, raw = len(header) + height * width * 3, header
            piece = max(1, min(piece, PIECE_BYTES // step)) if size else piece
            while size and raw:
                raw += process.stdout.read(piece * step - len(raw))
                if len(raw) % step:
                    break  # ffmpeg says why, below
                pictures = np.frombuffer(raw, np.uint8).reshape(-1, step)
                if (pictures[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
                    raise VideoError(f"{name}: its frames change their size")
                yield pictures[:, len(header) :].reshape(-1, height, width, 3)
                raw = process.stdout.read(1)
            process.stdout.close()  # nothing more is read, so that ffmpeg does not wait for it
            process.wait()
            said.seek(0)
            _raise_errors(said.read(), process.returncode, name)
            if not size or raw:
                raise VideoError(f"{name}: {'ffmpeg stopped within a frame' if size else 'no frames in it'}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def probe(source: Source) -> VideoInfo:
    """What the container says, without decoding. Raises VideoError where there is no video stream."""
    name = _name(source)
    with _opened(source) as (url, stdin, protocol):
        command = _input(url, protocol).output("pipe:1", format="null", map="0:V:0", vcodec="copy", t=0)
        said = _ffmpeg(command, name, stdin=stdin, level="info")
    # Metadata of the file is printed deeper (4 spaces and more), so a title cannot pose as a stream.
    streams = re.findall(r"^  Stream #0:.*?: Video: .*(?:\n    .*)*", said.decode(errors="replace"), re.MULTILINE)
    stream = next((text for text in streams if "(attached pic)" not in text.splitlines()[0]), "")
    line, *below = stream.splitlines() or [""]
    size = re.search(r", (\d+)x(\d+)\b", line)
    codec = re.search(r": Video: (\w+)", line)
    if not size or not codec:
        raise VideoError(f"{name}: no video stream")
    width, height = int(size[1]), int(size[2])
    if shape := re.search(r"\bSAR (\d+):(\d+)", line):
        width = max(1, round(width * int(shape[1]) / int(shape[2])))
    turned = re.search(r"^\s+display ?matrix: rotation of (-?[\d.]+)", "\n".join(below), re.MULTILINE | re.IGNORECASE)
    rotation = round(-float(turned[1])) % 360 if turned else 0  # ffmpeg prints anticlockwise degrees
    if rotation % 180 == 90:
        width, height = height, width
    rate = re.search(r", ([\d.]+)(k?) fps\b", line)
    length = re.search(rb"^  Duration: (\d+):(\d+):([\d.]+)", said, re.MULTILINE)
    return VideoInfo(
        width=width,
        height=height,
        fps=float(rate[1]) * (1000 if rate[2] else 1) if rate else None,
        duration=int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3]) if length else None,
        codec=codec[1],
        rotation=rotation,
    )


def _decoding(url: str, protocol: str, filters: list[str], output: dict[str, Any]) -> Any:
    """The command that prints PPM pictures one after the other: RGB whose size stands before each frame."""
    return _input(url, protocol).output(
        "pipe:1", format="image2pipe", vcodec="ppm", map="0:V:0", vf=",".join(filters), **output
    )


def _input(url: str, protocol: str) -> Any:
    return ffmpeg_commands.input(
        url, protocol_whitelist=protocol, format_whitelist=CONTAINERS, threads=1, err_detect="+crccheck"
    )


def _ffmpeg(command: Any, name: str, *, stdin: bytes | None = None, level: str = "error") -> bytes:
    """Run a command; its stdout, or with level 'info' what it logged. Anything logged as an error raises VideoError."""
    stopper: tuple[str, ...] = () if stdin is not None else ("-nostdin",)
    done = subprocess.run(
        _arguments(command, level, "-xerror", *stopper),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        check=False,
    )
    _raise_errors(done.stderr, done.returncode, name)
    if level == "error":
        return done.stdout
    return re.sub(rb"^\[info\] |(?<=\n)\[info\] ", b"", done.stderr)


def _arguments(command: Any, level: str, *flags: str) -> list[str]:
    flags = ("-hide_banner", "-loglevel", f"level+{level}", "-filter_threads", "1", *flags)
    return list(command.global_args(*flags).compile(cmd=ffmpeg()))


def _raise_errors(said: bytes, status: int, name: str) -> None:
    """VideoError with ffmpeg's own words where it logged an error or ended with another status than 0."""
    lines = said.decode(errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"(\[[^\]]+ @ \w+\] )*\[(error|fatal|panic)\]", line)]
    if status or errors:
        words = re.sub(r"\[[^\]]*(?: @ 0x[0-9a-f]+|error|fatal|panic)\] *", "", (errors or lines or ["nothing"])[0])
        raise VideoError(f"{name}: ffmpeg says: {words.strip()[:300]} (exit status {status})")


def _name(source: Source) -> str:
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def _opened(source: Source) -> "Iterator[tuple[str, bytes | None, str]]":
    """(url, stdin, protocol) for ffmpeg. Bytes go through a pipe where the index comes first, else through a file."""
    name = _name(source)
    if isinstance(source, bytes):
        if _index_first(io.BytesIO(source), len(source), name):
            yield "pipe:0", source, "pipe"
            return
        with tempfile.NamedTemporaryFile(prefix="bagger-video-") as file:
            file.write(source)
            file.flush()
            yield f"file:{file.name}", None, "file"
        return
    path = Path(source).absolute()
    if not path.is_file():
        raise VideoError(f"{name}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as stream:
            _index_first(stream, path.stat().st_size, name)
    except OSError as error:
        raise VideoError(f"{name}: cannot be read: {error.strerror}") from error
    with _named(path) as named:
        yield f"file:{named}", None, "file"


@contextmanager
def _named(path: Path) -> "Iterator[Path]":
    """The path, or a link to it where its name is not UTF-8, which ffmpeg-python cannot make a command of."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="bagger-video-") as folder:
            link = Path(folder, "video")
            link.symlink_to(path)
            yield link
    else:
        yield path


def _index_first(stream: Any, total: int, name: str) -> bool:
    """Whether this is an mp4 whose index (moov) precedes its media (mdat). Raises VideoError for one cut short.

    ffmpeg takes an mp4 that ends on a packet's border for a shorter clip and says nothing; the boxes know their sizes.
    """
    if total == 0:
        raise VideoError(f"{name}: the file is empty")
    kinds: list[bytes] = []
    position = 0
    while position + 8 <= total:
        stream.seek(position)
        header = stream.read(16)
        size, kind = int.from_bytes(header[:4]), header[4:8]
        if not kinds and kind not in (b"ftyp", b"moov", b"wide", b"free", b"skip", b"mdat", b"styp"):
            return False  # another container
        if size == 1:
            size = int.from_bytes(header[8:16])
        elif size == 0:  # up to the end of the file
            size = total - position
        if size < 8 or position + size > total:
            box = kind.decode("latin-1")
            raise VideoError(f"{name}: cut short: its {box!r} box needs {position + size} bytes, the file has {total}")
        kinds.append(kind)
        position += size
    return b"moov" in kinds and (b"mdat" not in kinds or kinds.index(b"moov") < kinds.index(b"mdat"))
