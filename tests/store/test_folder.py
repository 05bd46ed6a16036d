import json
import os
import tempfile
from pathlib import Path

import pytest

from store.digest import canonical_json
from store.folder import Folder, FolderError, read_folder


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def jsonl(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")


def reasons(folder: Folder) -> dict[str, str]:
    return {entry.file_or_row: entry.reason for entry in folder.rejected}


def test_jsonl_columns_become_fields_and_extra(tmp_path):
    put(tmp_path, "a.mp4", "b.webm")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "b.webm", "caption": " a dog ", "split": "Test", "license": "CC0", "fps": 8, "tags": ["x", None]},
        {"file_name": "a.mp4", "text": "a cat", "prompt": "unused", "split": "train"},
    )
    folder = read_folder(tmp_path)
    assert [(c.file, c.caption, c.split, c.license, c.extra) for c in folder.clips] == [
        ("a.mp4", "a cat", "train", None, {"prompt": "unused"}),
        ("b.webm", "a dog", "heldout", "CC0", {"fps": 8, "tags": ["x", None]}),
    ]
    assert folder.clips[0].path.read_bytes() == b"a.mp4"
    assert folder.rejected == []


def test_csv_with_bom_crlf_quotes_and_newlines(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    text = (
        '\ufefffile_name,text,license\r\na.mp4,"one, two ""three""",MIT\r\n'
        'b.mp4,"over\r\ntwo lines",\r\nc.mp4,unquoted \u2028 stays\x0b whole,\r\n'
    )
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    clips = read_folder(tmp_path).clips
    assert [clip.caption for clip in clips] == [
        'one, two "three"',
        "over\r\ntwo lines",
        "unquoted \u2028 stays\x0b whole",
    ]
    assert [clip.license for clip in clips] == ["MIT", None, None]


def test_jsonl_with_bom(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.mp4", "text": "a \xe2\x80\xa8 b"}\r\n')
    assert read_folder(tmp_path).clips[0].caption == "a \u2028 b"


def test_csv_and_jsonl_together_and_in_subfolders(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4", "sub/deep/c.mp4", "sub/d.mp4", "e.mp4")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.mp4", "text": "from jsonl"},
        {"file_name": "sub/d.mp4", "text": "d"},
    )
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,from csv\nb.mp4,b\n")
    (tmp_path / "sub/deep/metadata.csv").write_text("file_name,prompt\nc.mp4,c\n../../e.mp4,e\n")
    folder = read_folder(tmp_path)
    assert {clip.file: clip.caption for clip in folder.clips} == {
        "a.mp4": "from jsonl", "b.mp4": "b", "sub/deep/c.mp4": "c", "sub/d.mp4": "d", "e.mp4": "e",
    }  # fmt: skip
    assert reasons(folder) == {"metadata.csv:2": "duplicate: 'a.mp4' is already named by metadata.jsonl:1"}


def test_every_bad_row_is_rejected_with_its_reason(tmp_path):
    put(tmp_path, "ok.mp4", "empty.mp4", "number.mp4", "split.mp4", "orphan.mov", "dup.mp4", "half.mp4", ".hidden.mp4")
    (tmp_path / "folder.mp4").mkdir()
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "ok.mp4", "text": "ok"},
        {"file_name": "gone.mp4", "text": "x"},
        {"file_name": "empty.mp4", "text": "  ", "caption": None},
        {"file_name": "number.mp4", "text": 7},
        {"file_name": "split.mp4", "text": "x", "split": "trian"},
        {"file_name": "dup.mp4", "text": "x"},
        {"file_name": "./x/../dup.mp4", "text": "y"},
        {"file_name": "folder.mp4", "text": "x"},
        {"text": "no file"},
        '{"file_name": "ok.mp4", "text": ',
        "[1]",
        '{"file_name": "ok.mp4", "text": "x", "score": NaN}',
        '{"file_name": "half.mp4", "text": "\\ud800"}',
        {"file_name": "a\0b.mp4", "text": "x"},
        {"file_name": "n" * 5000, "text": "x"},
        "[" * 100_000,
        '{"file_name": "ok.mp4", "text": "x", "score": 1e999}',
        '{"file_name": "ok.mp4", "text": "x", "tags": [{"score": -1e999}]}',
        '{"file_name": "ok.mp4", "text": "x", "score": ' + "9" * 5000 + "}",
    )
    folder = read_folder(tmp_path)
    assert [clip.file for clip in folder.clips] == ["dup.mp4", "ok.mp4"]
    expected = {
        2: "missing", 3: "no caption", 4: "saw int 7", 5: "saw 'trian'", 7: "already named by metadata.jsonl:6",
        8: "not a file", 9: "saw None", 10: "not readable as JSON", 11: "saw list", 12: "NaN is not JSON",
        13: "lone surrogate", 14: "cannot be a file here", 15: "cannot be a file here", 16: "not readable as JSON",
        17: "1e999 is too large", 18: "-1e999 is too large", 19: "not readable as JSON",
    }  # fmt: skip
    found = reasons(folder)
    for line, reason in expected.items():
        assert reason in found.pop(f"metadata.jsonl:{line}")
    assert found == {"orphan.mov": "no metadata row names it", "half.mp4": "no metadata row names it"}
    assert [entry.file_or_row for entry in folder.rejected[-3:]] == [
        "metadata.jsonl:18", "metadata.jsonl:19", "orphan.mov",
    ]  # fmt: skip


def test_what_json_gives_has_a_canonical_form(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4")
    deep = "[" * 2000 + "]" * 2000
    rows = (
        {"file_name": "a.mp4", "text": "x", "score": 1.7e308},
        f'{{"file_name": "b.mp4", "text": "x", "k": {deep}}}',
    )
    jsonl(tmp_path / "metadata.jsonl", *rows)
    folder = read_folder(tmp_path)
    assert canonical_json(folder.clips[0].extra) == '{"score":1.7e+308}'
    assert "not readable as JSON" in reasons(folder)["metadata.jsonl:2"]


@pytest.fixture
def public_folder():
    """A folder that any user may enter, and a process that is not root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        user = os.geteuid()
        yield Path(name)
        os.seteuid(user)


def test_a_video_that_may_not_be_read_is_rejected(public_folder):
    put(public_folder, "a.mp4", "b.mp4")
    jsonl(public_folder / "metadata.jsonl", *({"file_name": name, "text": "x"} for name in ("a.mp4", "b.mp4")))
    (public_folder / "b.mp4").chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may read everything
    folder = read_folder(public_folder)
    assert [clip.file for clip in folder.clips] == ["a.mp4"]
    assert reasons(folder) == {"metadata.jsonl:2": "'b.mp4' cannot be read: Permission denied"}


def test_nothing_outside_the_folder_is_read(tmp_path):
    root = tmp_path / "videos"
    put(tmp_path, "secret.mp4", "videos/ok.mp4", "videos/real.mp4", "videos-too/b.mp4", "elsewhere/c.mp4")
    (tmp_path / "elsewhere/metadata.csv").write_text("file_name,text\nc.mp4,secret\n")
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "in.mp4").symlink_to("real.mp4")
    (root / "again.mp4").symlink_to("real.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "outside").symlink_to(tmp_path / "elsewhere")
    (root / "sub").mkdir()
    (root / "sub/metadata.csv").symlink_to(tmp_path / "elsewhere/metadata.csv")
    names = ["ok.mp4", "../secret.mp4", str(root / "ok.mp4"), "out.mp4", "in.mp4", "again.mp4", "../videos-too/b.mp4"]
    names += ["outside/c.mp4", "loop.mp4", "sub/../../secret.mp4", "..", "."]
    jsonl(root / "metadata.jsonl", *({"file_name": name, "text": "x"} for name in names))
    folder = read_folder(root)
    assert [clip.file for clip in folder.clips] == ["in.mp4", "ok.mp4"]
    found = reasons(folder)
    for line, reason in {
        2: "leads out", 3: "is absolute", 4: "symlink out", 6: "already named by metadata.jsonl:5", 7: "leads out",
        8: "symlink out", 9: "cannot be a file", 10: "leads out", 11: "leads out",
    }.items():  # fmt: skip
        assert reason in found[f"metadata.jsonl:{line}"]
    assert "symlink out" in found["sub/metadata.csv"]
    assert "symlink out" in found["out.mp4"]
    assert not any("secret" in clip.caption for clip in folder.clips)


def test_a_folder_reached_through_a_symlink_is_fine(tmp_path):
    put(tmp_path, "videos/a.mp4")
    jsonl(tmp_path / "videos/metadata.jsonl", {"file_name": "a.mp4", "text": "x"})
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    assert len(read_folder(tmp_path / "link").clips) == 1


def test_unicode_names_in_either_spelling(tmp_path):
    decomposed, composed = "cafe\u0301.mp4", "caf\u00e9.mp4"
    put(tmp_path, decomposed, "видео/猫 🐈.mp4")
    jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": composed, "text": "é"},
        {"file_name": "видео/猫 🐈.mp4", "text": "猫"},
    )
    folder = read_folder(tmp_path)
    assert [clip.file for clip in folder.clips] == [decomposed, "видео/猫 🐈.mp4"]
    assert all(clip.path.is_file() for clip in folder.clips)


def test_a_name_that_is_not_utf8_is_rejected_and_printable(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "b\udcff.mp4").write_bytes(b"x")
    jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.mp4", "text": "x"})
    (entry,) = read_folder(tmp_path).rejected
    assert "not UTF-8" in entry.reason
    entry.file_or_row.encode()


def test_heldout_share_is_stable_when_the_folder_grows(tmp_path):
    names = [f"{i}.mp4" for i in range(400)]
    put(tmp_path, *names)
    jsonl(tmp_path / "metadata.jsonl", *({"file_name": name, "text": name} for name in names[:300]))
    before = {clip.file: clip.split for clip in read_folder(tmp_path, heldout=0.2).clips}
    jsonl(tmp_path / "metadata.jsonl", *({"file_name": name, "text": name} for name in reversed(names)))
    after = {clip.file: clip.split for clip in read_folder(tmp_path, heldout=0.2).clips}
    assert before.items() <= after.items()
    assert 50 <= sum(split == "heldout" for split in after.values()) <= 110
    assert {clip.split for clip in read_folder(tmp_path, heldout=0).clips} == {"train"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_clips_still_train_and_evaluate(tmp_path, count):
    names = [f"{i}.mp4" for i in range(count)]
    put(tmp_path, *names)
    jsonl(tmp_path / "metadata.jsonl", *({"file_name": name, "text": name} for name in names))
    for heldout in (0.01, 0.99):
        splits = {clip.split for clip in read_folder(tmp_path, heldout).clips}
        assert len(splits) == min(count, 2)


def test_rows_without_a_split_train_where_others_have_one(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text,split\na.mp4,a,validation\nb.mp4,b,\nc.mp4,c,train\n")
    assert [clip.split for clip in read_folder(tmp_path, heldout=0.9).clips] == ["heldout", "train", "train"]


def test_csv_rows_of_another_length_are_rejected(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,a, with a comma\nb.mp4\nc.mp4,c\n")
    folder = read_folder(tmp_path)
    assert [clip.file for clip in folder.clips] == ["c.mp4"]
    assert reasons(folder)["metadata.csv:2"].startswith("has 3 fields, the header 2")
    assert reasons(folder)["metadata.csv:3"].startswith("has 1 fields")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", b"file_name;text\na.mp4;x\n", r"separated by commas; saw 'file_name;text'"),
        ("metadata.csv", b"", "no header"),
        ("metadata.csv", b"file_name,text,text\na.mp4,x,y\n", "twice"),
        (
            "metadata.csv",
            b'file_name,text\na.mp4,"never closed\nb.mp4,x\n',
            r"metadata.csv: after line 1: not readable as csv",
        ),
        ("metadata.csv", "file_name,text\na.mp4,é\n".encode("latin-1"), "not UTF-8"),
        ("metadata.jsonl", b"", "no clip left, 1 rejected"),
        ("metadata.jsonl", b'{"file_name": "gone.mp4", "text": "x"}', r"metadata.jsonl:1: 'gone.mp4' is missing"),
        ("readme.txt", b"", r"no metadata.jsonl or metadata.csv in it \(1 videos\)"),
    ],
)
def test_a_folder_without_clips_says_why(tmp_path, name, content, said):
    put(tmp_path, "a.mp4")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FolderError, match=said):
        read_folder(tmp_path)


def test_wrong_arguments(tmp_path):
    put(tmp_path, "a.mp4")
    with pytest.raises(FolderError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(FolderError, match="not a folder"):
        read_folder(tmp_path / "a.mp4")
    with pytest.raises(FolderError, match=r"\[0, 1\), saw 1"):
        read_folder(tmp_path, heldout=1)
