"""Prompts with times: what a file may say, and which chunk a time means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.schedule import Prompt, ScheduleError, Timing, read_prompts, schedule


@pytest.mark.parametrize(
    ("seconds", "fps", "chunk", "ratio", "expected"),
    [
        (0.001, 8, 3, 1, 1),
        (0.375, 8, 3, 1, 1),  # 3 frames
        (0.376, 8, 3, 1, 2),
        (3, 8, 3, 1, 8),
        (0.7, 10, 7, 1, 1),  # 0.7 * 10 is a little more than 7 in floats
        (81 / 16, 16, 3, 4, 7),  # Wan: 81 frames are 21 latents
        (82 / 16, 16, 3, 4, 8),
        (9 / 16, 16, 3, 4, 1),  # 9 frames are 3 latents
        (10 / 16, 16, 3, 4, 2),
    ],
)
def test_seconds_are_rounded_up_to_whole_chunks(seconds, fps, chunk, ratio, expected):
    assert Timing(fps, ratio * chunk, ratio - 1).chunks_for(seconds) == expected


timings = st.builds(
    lambda fps, chunk, ratio, whole: Timing(fps, chunk * ratio, ratio - 1 if whole else 0),
    st.sampled_from([8.0, 16.0, 30000 / 1001]), st.integers(1, 5), st.sampled_from([1, 4, 8]), st.booleans(),
)  # fmt: skip


@given(timings, st.integers(1, 300))
def test_whole_chunks_are_as_many_as_fit(timing, num_frames):
    whole = timing.whole_chunks(num_frames)
    assert timing.begins(whole) <= num_frames < timing.begins(whole + 1)
    assert timing.chunks_for(num_frames / timing.fps) == whole + (timing.begins(whole) < num_frames)


@given(timings, st.floats(0, 30), st.integers(1, 40))
def test_a_time_means_the_nearest_border(timing, seconds, num_chunks):
    distances = [abs(timing.begins(chunk) / timing.fps - seconds) for chunk in range(num_chunks)]
    assert distances[timing.nearest(seconds, num_chunks)] == pytest.approx(min(distances), abs=1e-6)


def test_of_two_borders_as_near_the_earlier():
    timing = Timing(8, 4, 0)
    assert [timing.nearest(s, 9) for s in (0.25, 0.26, 0.75, 0.76)] == [0, 1, 1, 2]
    assert timing.nearest(99, 9) == 8


times = st.lists(st.integers(1, 100_000), unique=True, max_size=6).map(sorted)


@given(times, st.data())
def test_a_file_says_what_was_meant(tmp_path_factory, milliseconds, data):
    """In seconds or minutes, between comments, with any line ends and blanks."""
    path = tmp_path_factory.mktemp("prompts") / "story.txt"
    seconds = [0, *(one / 1000 for one in milliseconds)]
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    lines, expected = [], []
    for one in seconds:
        lines += data.draw(st.lists(st.sampled_from(["", "   ", "# 3 a comment", "  #"]), max_size=2))
        clock = data.draw(st.sampled_from([f"{one:.3f}", f"{int(one // 60)}:{one % 60:06.3f}"]))
        text = data.draw(st.sampled_from(["a red disc", "1:30 is a time", "ein großer Kreis", "#1 of two"]))
        lines.append(f"{data.draw(st.sampled_from(['', ' ']))}{clock}\t {text} ")
        expected.append((text, pytest.approx(one), len(lines)))
    mark = data.draw(st.sampled_from(["", "\ufeff"]))
    path.write_bytes((mark + end.join(lines)).encode())
    assert [(one.text, one.seconds, one.line) for one in read_prompts(path)] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompt in it; expected lines as `0 a red disc"),
        ("# only\n\n", "no prompt in it"),
        ("a red disc", "line 1: found 'a'; expected a time, as 64.5 (seconds) or 1:04.5, then a prompt"),
        ("\n\n-1 a disc", "line 3: found '-1'"),
        ("1:5 a disc", "line 1: found '1:5'"),
        ("1:75 a disc", "line 1: found '1:75'"),
        ("1:02:03 a disc", "line 1: found '1:02:03'"),
        ("inf a disc", "line 1: found 'inf'"),
        ("1e3 a disc", "line 1: found '1e3'"),
        ("\N{ARABIC-INDIC DIGIT ZERO} a disc", "line 1: found"),
        ("0 a disc\n2.5", "line 2: found '2.5' alone; expected a prompt"),
        ("1.5 a disc", "line 1: found 1.5 s; expected 0 for the first"),
        ("0 a\n# c\n0:04 b\n4.0 c", "line 4: found 4 s; expected more than the 4 s of line 3"),
        ("0 a\n4 b\n0:03.5 c", "line 3: found 3.5 s; expected more than the 4 s of line 2"),
        (b"0 a disc\n1 \xff\xfe", "not UTF-8 text: invalid start byte at byte 11"),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path, text, said):
    path = tmp_path / "story.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScheduleError) as error:
        read_prompts(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    for path, said in ((tmp_path / "no.txt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ScheduleError, match=f"{path}: cannot be read: {said}"):
            read_prompts(path)


def test_prompts_fall_on_chunks(tmp_path):
    path = tmp_path / "story.txt"
    wan = Timing(16, 12, 3)  # borders at 0, 9, 21, 33 … frames
    prompts = [Prompt("a", 0, 1), Prompt("b", 0.9, 2), Prompt("c", 33 / 16, 3), Prompt("d", 3.5, 5)]
    expected = {0: "a", 1: "b", 3: "c", 4: "d"}  # the last is nearest to where all ends, and begins a chunk earlier
    assert {chunk: one.text for chunk, one in schedule(prompts, wan, 5, path).items()} == expected
    with pytest.raises(ScheduleError, match="line 5: found 3.5 s; expected less than 2.81 s, where the video ends"):
        schedule(prompts, wan, 4, path)
    close = [*prompts[:2], Prompt("c", 0.92, 7)]
    with pytest.raises(ScheduleError, match=r"lines 2 and 7: 0.9 s and 0.92 s both fall on 0.56 s.* 0.75 s long"):
        schedule(close, wan, 5, path)
    # what is added to a video is counted without the short first chunk
    two = [Prompt("a"), Prompt("b", 1.1, 2)]
    assert list(schedule(two, wan, 5, path)) == [0, 2]
    assert list(schedule(two, Timing(16, 12, 0), 5, path)) == [0, 1]
