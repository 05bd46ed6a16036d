"""The Hub on loopback answers the real clients as the Hub does, and fails as it is told to."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import Hub

ID = "lab/clips"
SMALL = {"README.md": b"---\nlicense: mit\n---\n# Clips\n", "notes/a.txt": b"a note\n"}
LARGE = {"data/train.parquet": b"PAR1 not really \0" * 100, "mark.png": b"\x89PNG"}


@pytest.fixture
def hub():
    with Hub() as hub:
        hub.add_user("ada", "hf_ada", orgs=("lab",))
        hub.add_user("ada", "hf_ada_read", orgs=("lab",), role="read")
        hub.add_user("bob", "hf_bob")
        yield hub


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """No Xet, and no waiting between the client's retries: the seconds it would have waited."""
    waits = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waits.append))
    return waits


def api(hub, token="hf_ada"):
    return HfApi(endpoint=hub.url, token=token)


def filled(hub, files=None, **more):
    """A repository of lab's with one commit of `files`."""
    api(hub).create_repo(ID, repo_type="dataset", **more)
    return push(hub, {**SMALL, **LARGE} if files is None else files)


def push(hub, files, token="hf_ada", **more):
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    made = api(hub, token).create_commit(ID, operations, commit_message="Add", repo_type="dataset", **more)
    return made.oid


def status(caught):
    return caught.value.response.status_code


def commits_sent(hub):
    return sum("/commit/" in path for _, path in hub.requests)


def at_commit(method, path):
    return "/commit/" in path


def test_a_token_says_who_its_user_is(hub):
    told = api(hub).whoami()
    assert (told["name"], [org["name"] for org in told["orgs"]]) == ("ada", ["lab"])
    assert told["auth"]["accessToken"]["role"] == "write"
    assert api(hub, "hf_ada_read").whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
        api(hub, "hf_nobody").whoami()
    assert status(caught) == 401


def test_a_repository_is_made_once_and_in_ones_own_namespace(hub, monkeypatch):
    url = api(hub).create_repo(ID, repo_type="dataset")
    assert (url, url.repo_id, url.repo_type) == (f"{hub.url}/datasets/{ID}", ID, "dataset")
    assert api(hub).create_repo(ID, repo_type="dataset", exist_ok=True) == url
    assert api(hub).create_repo("m") == f"{hub.url}/ada/m"
    for token, id, code in [
        ("hf_ada", ID, 409),
        ("hf_bob", "lab/other", 403),
        ("hf_ada_read", "lab/other", 403),
        ("hf_nobody", "lab/other", 401),
        (False, "lab/other", 401),
    ]:
        with pytest.raises(HfHubHTTPError) as caught:
            api(hub, token).create_repo(id, repo_type="dataset")
        assert status(caught) == code
        assert caught.value.response.json()["error"] == caught.value.response.headers["X-Error-Message"]
    # Where it may not create, the client is content if there is one already; its URL it knows by HF_ENDPOINT alone.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    assert api(hub, "hf_bob").create_repo(ID, repo_type="dataset", exist_ok=True) == url
    api(hub).delete_repo(ID, repo_type="dataset")
    assert not api(hub).repo_exists(ID, repo_type="dataset")


def test_a_commit_of_small_and_large_files_is_read_back(hub, tmp_path):
    first = filled(hub)
    repo = hub.repo("datasets", ID)
    assert repo.head == first
    assert {path: data for path, data in repo.files().items() if path != ".gitattributes"} == {**SMALL, **LARGE}
    assert [commit.title for commit in repo.commits] == ["Add", "initial commit"]
    assert sorted(repo.objects) == sorted(hashlib.sha256(data).hexdigest() for data in LARGE.values())
    info = api(hub).dataset_info(ID, files_metadata=True)
    assert (info.sha, info.private, info.card_data.license, info.author) == (first, False, "mit", "lab")
    assert "license:mit" in info.tags
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs and sibling.lfs.sha256) for sibling in info.siblings}
    assert sizes["mark.png"] == (4, hashlib.sha256(LARGE["mark.png"]).hexdigest())
    assert sizes["notes/a.txt"] == (7, None)
    assert api(hub).dataset_info(ID, expand=["sha"]).siblings is None
    for path, data in {**SMALL, **LARGE}.items():
        got = api(hub).hf_hub_download(ID, path, repo_type="dataset", cache_dir=tmp_path)
        assert open(got, "rb").read() == data
    git = hashlib.sha1(b"blob 7\0a note\n").hexdigest()
    assert api(hub).get_paths_info(ID, "notes/a.txt", repo_type="dataset")[0].blob_id == git


def test_headers_of_a_file_tell_its_commit_hash_and_size(hub):
    head = filled(hub)
    small = httpx2.head(f"{hub.url}/datasets/{ID}/resolve/main/notes/a.txt")
    assert small.headers["ETag"] == f'"{hashlib.sha1(b"blob 7" + bytes(1) + b"a note" + bytes([10])).hexdigest()}"'
    assert (small.status_code, small.headers["X-Repo-Commit"], small.headers["Content-Length"]) == (200, head, "7")
    again = {"If-None-Match": small.headers["ETag"]}
    assert httpx2.get(f"{hub.url}/datasets/{ID}/resolve/main/notes/a.txt", headers=again).status_code == 304
    large = httpx2.head(f"{hub.url}/datasets/{ID}/resolve/main/mark.png")
    assert (large.status_code, large.headers["X-Linked-Size"], large.headers["X-Repo-Commit"]) == (302, "4", head)
    assert large.headers["X-Linked-ETag"] == f'"{hashlib.sha256(LARGE["mark.png"]).hexdigest()}"'
    assert large.headers["Location"].startswith(hub.storage_url)
    assert httpx2.get(large.headers["Location"]).content == LARGE["mark.png"]
    # The storage wants its signature, and no token.
    assert httpx2.get(large.headers["Location"][:-1]).status_code == 403
    assert httpx2.get(large.headers["Location"], headers={"Authorization": "Bearer hf_ada"}).status_code == 400
    raw = httpx2.get(f"{hub.url}/datasets/{ID}/raw/main/mark.png")
    assert raw.text.splitlines()[::2] == ["version https://git-lfs.github.com/spec/v1", "size 4"]


@pytest.mark.parametrize("path", ["notes/a.txt", "data/train.parquet"])
def test_a_range_is_a_part_of_the_file(hub, path):
    filled(hub)
    url, data = f"{hub.url}/datasets/{ID}/resolve/main/{path}", {**SMALL, **LARGE}[path]
    for asked, part in {"2-4": data[2:5], "3-": data[3:], "-2": data[-2:], "1-99999": data[1:]}.items():
        got = httpx2.get(url, headers={"Range": f"bytes={asked}"}, follow_redirects=True)
        assert (got.status_code, got.content) == (206, part)
        start = data.rindex(part) if asked == "-2" else int(asked.split("-")[0])
        assert got.headers["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/{len(data)}"
    got = httpx2.get(url, headers={"Range": "bytes=99999-"}, follow_redirects=True)
    assert (got.status_code, got.headers["Content-Range"]) == (416, f"bytes */{len(data)}")


def test_what_is_missing_is_told_apart(hub, tmp_path):
    head = filled(hub)
    asked = {"repo_type": "dataset", "cache_dir": tmp_path}
    with pytest.raises(EntryNotFoundError) as caught:
        api(hub).hf_hub_download(ID, "none.txt", **asked)
    assert caught.value.response.headers["X-Repo-Commit"] == head
    with pytest.raises(RevisionNotFoundError):
        api(hub).hf_hub_download(ID, "README.md", revision="v9", **asked)
    with pytest.raises(RevisionNotFoundError):
        api(hub).dataset_info(ID, revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        api(hub).dataset_info("lab/none")
    with pytest.raises(EntryNotFoundError):
        list(api(hub).list_repo_tree(ID, "none", repo_type="dataset"))
    with pytest.raises(RevisionNotFoundError):
        push(hub, {"a": b"a"}, revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        api(hub).create_commit("lab/none", [CommitOperationAdd("a", b"a")], commit_message="Add", repo_type="dataset")


def test_trees_are_listed_in_pages_and_by_the_file_system(hub):
    first = filled(hub)
    second = push(hub, {"notes/deep/b.txt": b"b"})
    hub.page_size = 2
    names = {".gitattributes", "data", "notes", "notes/deep", "notes/deep/b.txt", *SMALL, *LARGE}
    paths = [entry.path for entry in api(hub).list_repo_tree(ID, repo_type="dataset", recursive=True)]
    assert sorted(paths) == sorted(names)
    assert sum("/tree/" in path for _, path in hub.requests) == 5
    under = {entry.path: entry for entry in api(hub).list_repo_tree(ID, "notes", repo_type="dataset", expand=True)}
    assert sorted(under) == ["notes/a.txt", "notes/deep"]
    assert (under["notes/a.txt"].last_commit.oid, under["notes/deep"].last_commit.oid) == (first, second)
    assert [commit.commit_id for commit in api(hub).list_repo_commits(ID, repo_type="dataset")][:2] == [second, first]
    disk = HfFileSystem(endpoint=hub.url, token="hf_ada", skip_instance_cache=True)
    notes = f"datasets/{ID}/notes"
    assert sorted(disk.ls(notes, detail=False)) == [f"{notes}/a.txt", f"{notes}/deep"]
    assert disk.glob(f"datasets/{ID}/**/*.parquet") == [f"datasets/{ID}/data/train.parquet"]
    with disk.open(f"datasets/{ID}@{first}/data/train.parquet", "rb", block_size=64) as file:
        file.seek(17)
        assert file.read(20) == LARGE["data/train.parquet"][17:37]
    assert not disk.exists(f"datasets/{ID}@{first}/notes/deep/b.txt")


def test_a_tag_keeps_what_it_named(hub, tmp_path):
    first = filled(hub)
    api(hub).create_tag(ID, tag="v1", tag_message="The first", repo_type="dataset")
    second = push(hub, {"README.md": b"---\nlicense: cc0-1.0\n---\n", "mark.png": b"\x89PNG2"})
    api(hub).create_branch(ID, branch="trial", revision="v1", repo_type="dataset")
    refs = api(hub).list_repo_refs(ID, repo_type="dataset")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "trial": first}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", first)]
    assert hub.repo("datasets", ID).tag_messages == {"v1": "The first"}
    for revision, data in {"v1": LARGE["mark.png"], "main": b"\x89PNG2", first[:7]: LARGE["mark.png"]}.items():
        got = api(hub).hf_hub_download(ID, "mark.png", repo_type="dataset", revision=revision, cache_dir=tmp_path)
        assert open(got, "rb").read() == data
    assert hub.repo("datasets", ID).files("v1")["mark.png"] == LARGE["mark.png"]
    with pytest.raises(HfHubHTTPError, match="exists already") as caught:
        api(hub).create_tag(ID, tag="v1", repo_type="dataset")
    assert status(caught) == 409
    # The client does not ask what the tag that exists names.
    api(hub).create_tag(ID, tag="v1", revision=second, repo_type="dataset", exist_ok=True)
    assert hub.repo("datasets", ID).tags == {"v1": first}
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api(hub).create_branch(ID, branch="trial", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api(hub).create_tag(ID, tag="v2", revision="none", repo_type="dataset")
    api(hub).delete_tag(ID, tag="v1", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api(hub).delete_tag(ID, tag="v1", repo_type="dataset")
    api(hub).delete_branch(ID, branch="trial", repo_type="dataset")
    assert list(hub.repo("datasets", ID).branches) == ["main"]


def test_the_same_changes_make_the_same_commits(hub):
    with Hub() as other:
        other.add_user("ada", "hf_ada", orgs=("lab",))
        assert filled(other) == filled(hub)
        assert push(other, {"a.txt": b"1"}) != push(hub, {"a.txt": b"2"})


def test_a_commit_upon_another_head_is_refused(hub):
    first = filled(hub)
    theirs = hub.commit_as("bob", hub.repo("datasets", ID), {"theirs.txt": b"1"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since. Please refresh and try again.") as caught:
        push(hub, {"mine.txt": b"2"}, parent_commit=first)
    assert status(caught) == 412
    assert hub.repo("datasets", ID).head == theirs.oid
    push(hub, {"mine.txt": b"2"}, parent_commit=theirs.oid[:7])
    assert {"mine.txt", "theirs.txt"} < set(hub.repo("datasets", ID).files())
    assert [commit.author for commit in hub.repo("datasets", ID).commits] == ["ada", "bob", "ada", "ada"]


def test_of_two_writers_upon_one_head_one_is_told(hub):
    head, outcomes = filled(hub), []
    ready = threading.Barrier(2)
    hub.call_before(at_commit, ready.wait, times=2)

    def write(name):
        try:
            outcomes.append(push(hub, {name: name.encode()}, parent_commit=head))
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a.txt", "b.txt")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 412 in outcomes
    assert hub.repo("datasets", ID).head in outcomes
    assert len(hub.repo("datasets", ID).commits) == 3


def test_somebody_may_commit_just_before_a_request(hub):
    head = filled(hub)
    repo = hub.repo("datasets", ID)
    hub.call_at(2, lambda: hub.commit_as("bob", repo, {"notes/a.txt": None}))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        push(hub, {"b.txt": b"b"}, parent_commit=head)  # preupload, commit
    assert "notes/a.txt" not in repo.files()


def test_private_is_as_if_it_were_not_there(hub, tmp_path):
    filled(hub, private=True)
    assert api(hub).dataset_info(ID).private
    assert api(hub, "hf_ada_read").dataset_info(ID).private
    for token, code in [(False, 401), ("hf_bob", 404)]:
        with pytest.raises(RepositoryNotFoundError) as caught:
            api(hub, token).dataset_info(ID)
        assert (status(caught), caught.value.response.headers["X-Error-Code"]) == (code, "RepoNotFound")
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).hf_hub_download(ID, "mark.png", repo_type="dataset", cache_dir=tmp_path)
    api(hub).update_repo_settings(ID, private=False, repo_type="dataset")
    assert not api(hub, False).dataset_info(ID).private
    with pytest.raises(HfHubHTTPError) as caught:
        api(hub, "hf_bob").update_repo_settings(ID, private=True, repo_type="dataset")
    assert status(caught) == 403


def test_only_members_with_a_write_token_write(hub):
    head = filled(hub)
    for token, why in [("hf_bob", "create_pr=1"), ("hf_ada_read", "you must use a write token")]:
        with pytest.raises(HfHubHTTPError, match=why) as caught:
            push(hub, {"a.txt": b"a"}, token)
        assert status(caught) == 403
        with pytest.raises(HfHubHTTPError) as caught:
            api(hub, token).create_tag(ID, tag="v1", repo_type="dataset")
        assert status(caught) == 403
        with pytest.raises(HfHubHTTPError):
            api(hub, token).auth_check(ID, repo_type="dataset", write=True)
        api(hub, token).auth_check(ID, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        push(hub, {"a.txt": b"a"}, False)
    with pytest.raises(BadRequestError, match="no pull requests"):
        push(hub, {"a.txt": b"a"}, create_pr=True)
    assert hub.repo("datasets", ID).head == head


def test_an_object_is_put_once_for_each_repository(hub):
    filled(hub)

    def puts():
        return sum(method == "PUT" for method, _ in hub.requests)

    assert puts() == len(LARGE)
    push(hub, {"copy.bin": LARGE["mark.png"]})
    assert puts() == len(LARGE)
    api(hub).create_repo("lab/other", repo_type="dataset")
    add = [CommitOperationAdd("copy.bin", LARGE["mark.png"])]
    api(hub).create_commit("lab/other", add, commit_message="Add", repo_type="dataset")
    assert puts() == len(LARGE) + 1
    copy = [CommitOperationCopy("mark.png", "copy2.bin"), CommitOperationCopy("notes/a.txt", "notes/b.txt")]
    api(hub).create_commit(ID, copy, commit_message="Copy", repo_type="dataset")
    files = hub.repo("datasets", ID).files()
    assert (files["copy2.bin"], files["notes/b.txt"]) == (LARGE["mark.png"], SMALL["notes/a.txt"])


def test_a_model_is_kept_beside_data_of_the_same_name(hub, tmp_path):
    filled(hub)
    api(hub).create_repo(ID)
    api(hub).upload_file(path_or_fileobj=b"\0" * 9, path_in_repo="a/w.safetensors", repo_id=ID)
    assert api(hub).model_info(ID).sha == hub.repo("models", ID).head != hub.repo("datasets", ID).head
    assert os.path.getsize(api(hub).hf_hub_download(ID, "a/w.safetensors", cache_dir=tmp_path)) == 9


def test_other_content_than_announced_is_refused(hub):
    api(hub).create_repo(ID, repo_type="dataset")
    for size, sent in [(4, b"evil"), (3, b"good"), (5, b"good")]:
        wanted = {"oid": hashlib.sha256(b"good").hexdigest(), "size": size}
        asked = {"operation": "upload", "transfers": ["basic"], "objects": [wanted], "hash_algo": "sha256"}
        batch = httpx2.post(
            f"{hub.url}/datasets/{ID}.git/info/lfs/objects/batch",
            json=asked,
            headers={"Authorization": "Bearer hf_ada"},
        ).json()
        put = httpx2.put(batch["objects"][0]["actions"]["upload"]["href"], content=sent)
        assert (put.status_code, "XAmzContentSHA256Mismatch" in put.text) == (400, True)
    assert hub.repo("datasets", ID).objects == {}


def test_a_pointer_to_nothing_is_refused(hub):
    api(hub).create_repo(ID, repo_type="dataset")
    add = CommitOperationAdd("a.bin", b"never put\0")
    add._upload_mode, add._should_ignore, add._is_uploaded = "lfs", False, True
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        api(hub).create_commit(ID, [add], commit_message="Add", repo_type="dataset")
    assert len(hub.repo("datasets", ID).commits) == 1


def test_what_did_not_change_is_not_committed(hub):
    head = filled(hub)
    sent = commits_sent(hub)
    assert push(hub, {**SMALL, **LARGE}) == head
    assert commits_sent(hub) == sent  # the client stays away
    push(hub, {**SMALL, "new.txt": b"new"})
    assert hub.repo("datasets", ID).commits[0].tree["README.md"].data == SMALL["README.md"]


def test_files_and_folders_are_deleted_and_ignored(hub):
    filled(hub)
    gone = [CommitOperationDelete("notes/"), CommitOperationDelete("mark.png")]
    api(hub).create_commit(ID, gone, commit_message="Delete", commit_description="Old.", repo_type="dataset")
    assert sorted(hub.repo("datasets", ID).files()) == [".gitattributes", "README.md", "data/train.parquet"]
    assert hub.repo("datasets", ID).commits[0].message == "Old."
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api(hub).delete_file("mark.png", ID, repo_type="dataset")
    push(hub, {".gitignore": b"*.tmp\n", "a.tmp": b"a", "b.txt": b"b"})
    assert {"b.txt", "a.tmp"} & set(hub.repo("datasets", ID).files()) == {"b.txt"}


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ("license: mitt", '"license" must be one of'),
        ("a: [", "YAML"),
        ("- a", "must be of type object"),
        ("configs: {a: b}", '"configs" must be an array'),
        ("configs: [{data_files: a}]", "config_name"),
        ("configs: [{config_name: a, data_files: [{path: a}]}]", "data_files"),
        ("size_categories: [big]", "size_categories"),
        ("size_categories: 5", "size_categories"),
        ("license: [{a: b}]", "license"),
    ],
)
def test_a_wrong_card_is_refused(hub, card, why):
    api(hub).create_repo(ID, repo_type="dataset")
    with pytest.raises(ValueError, match="Invalid metadata in README.md") as caught:
        push(hub, {"README.md": f"---\n{card}\n---\n".encode()})
    assert why in str(caught.value)
    assert commits_sent(hub) == 0


def test_a_card_without_metadata_is_warned_of(hub):
    api(hub).create_repo(ID, repo_type="dataset")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(hub, {"README.md": b"# Clips\n"})


def test_statuses_are_answered_instead_of_work(hub, slept):
    head = filled(hub)
    for how, code in [("500", 500), ("429", 429), ("401", 401), ("403", 403)]:
        hub.fail(match=at_commit, how=how)
        with pytest.raises(HfHubHTTPError) as caught:  # a commit is sent once
            push(hub, {"a.txt": b"a"})
        assert status(caught) == code
        assert hub.repo("datasets", ID).head == head
    assert slept == []
    hub.fail(at=1, how="500", times=2)
    hub.retry_after = 7
    hub.fail(at=3, how="429")
    assert push(hub, {"a.txt": b"a"}) == hub.repo("datasets", ID).head  # preupload is tried again
    assert slept == [1, 2, 8]


def test_a_connection_is_dropped_before_or_after_the_work(hub, slept):
    head = filled(hub)
    sent = commits_sent(hub)
    hub.fail(match=at_commit, how="drop")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(hub, {"a.txt": b"a"})
    assert hub.repo("datasets", ID).head == head
    hub.fail(match=at_commit, how="drop_after")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(hub, {"a.txt": b"a"}, parent_commit=head)
    assert hub.repo("datasets", ID).commits[0].parent == head
    assert commits_sent(hub) == sent + 2
    hub.fail(match=at_commit, how="500_after")
    with pytest.raises(HfHubHTTPError, match="500"):
        push(hub, {"b.txt": b"b"})
    assert "b.txt" in hub.repo("datasets", ID).files()
    assert slept == []
    hub.fail(match=lambda method, path: method == "PUT", how="drop")
    push(hub, {"b.bin": b"\0"})
    assert slept == [1]
    hub.fail(match=lambda method, path: "/tag/" in path, how="drop_after")
    with pytest.raises(httpx2.RemoteProtocolError):
        api(hub).create_tag(ID, tag="v1", repo_type="dataset")
    assert hub.repo("datasets", ID).tags == {"v1": hub.repo("datasets", ID).head}


def test_a_download_is_asked_for_again(hub, tmp_path, slept):
    filled(hub)
    asked = {"repo_id": ID, "filename": "mark.png", "repo_type": "dataset", "cache_dir": tmp_path}
    hub.fail(match=lambda method, path: method == "HEAD", how="500", times=7)
    with pytest.raises(LocalEntryNotFoundError):  # once without, and once with five retries
        api(hub).hf_hub_download(**asked)
    assert slept == [1, 2, 4, 8, 8]
    hub.fail(match=lambda method, path: method == "GET", how="drop")
    assert open(api(hub).hf_hub_download(**asked), "rb").read() == LARGE["mark.png"]


def test_a_request_that_breaks_off_is_not_worked_on(hub):
    head, before = filled(hub), len(hub.requests)
    line = json.dumps({"key": "header", "value": {"summary": "Half"}}).encode() + b"\n"
    for kind, body in [
        ("Content-Length: 9999", line),
        ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(line), line)),
    ]:
        with socket.create_connection(("127.0.0.1", int(hub.url.rsplit(":")[-1]))) as link:
            who = "Host: hub\r\nAuthorization: Bearer hf_ada"
            link.sendall(f"POST /api/datasets/{ID}/commit/main HTTP/1.1\r\n{who}\r\n{kind}\r\n\r\n".encode() + body)
            link.shutdown(socket.SHUT_WR)
            assert link.recv(100) == b""
    assert (hub.repo("datasets", ID).head, len(hub.requests)) == (head, before)


def test_a_server_that_stopped_serves_nobody_and_comes_back(hub):
    head, url = filled(hub), hub.url
    hub.stop()
    for _ in range(3):  # connections that were kept from before, and a new one
        with pytest.raises(httpx2.TransportError):
            api(hub).dataset_info(ID)
    assert hub.start().url == url
    assert api(hub).dataset_info(ID).sha == head


def test_a_wrong_plan_is_refused(hub):
    for wrong in ({"how": "200", "at": 1}, {"how": "500"}, {"how": "500", "at": 1, "match": at_commit}):
        with pytest.raises(ValueError, match=r"200|either"):
            hub.fail(**wrong)
    with pytest.raises(ValueError, match="admin"):
        hub.add_user("eve", "hf_eve", role="admin")


LOAD = """
import json, os, sys
from datasets import Video, load_dataset
told = {}
for revision in ("v1", None):
    plain = load_dataset(sys.argv[1], "pairs", revision=revision)
    for name, split in plain.items():
        assert isinstance(split.features["video"], Video), split.features
        rows = split.cast_column("video", Video(decode=False))
        told[f"{revision} {name}"] = [(row["clip_id"], row["video"]["bytes"].decode()) for row in rows]
    streamed = load_dataset(sys.argv[1], "pairs", revision=revision, streaming=True, split="train")
    assert isinstance(streamed.features["video"], Video), streamed.features
    rows = streamed.cast_column("video", Video(decode=False))
    told[f"{revision} streamed"] = [(row["clip_id"], row["video"]["bytes"].decode()) for row in rows]
print(json.dumps(told))
"""


def parquet(rows):
    """Clips with a column that says it is a video, as `datasets` writes it."""
    video = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    videos = pa.array([{"bytes": data, "path": None} for _, data in rows], video)
    features = {"clip_id": {"dtype": "string", "_type": "Value"}, "video": {"_type": "Video"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"clip_id": [name for name, _ in rows], "video": videos}).replace_schema_metadata(about)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


CARD = """---
license: cc-by-4.0
configs:
- config_name: pairs
  data_files:
  - split: train
    path: pairs/train-*.parquet
  - split: heldout
    path: pairs/heldout-*.parquet
---
# Clips
"""


@pytest.mark.parametrize("private", [False, True])
def test_datasets_loads_a_tag_and_the_head_plain_and_streaming(hub, tmp_path, private):
    files = {
        "README.md": CARD.encode(),
        "pairs/train-0.parquet": parquet([("c1", b"one"), ("c2", b"two")]),
        "pairs/heldout-0.parquet": parquet([("c3", b"three")]),
    }
    filled(hub, files, private=private)
    api(hub).create_tag(ID, tag="v1", repo_type="dataset")
    push(hub, {"pairs/train-1.parquet": parquet([("c4", b"four")])})
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_TOKEN", None)
    if private:
        environment["HF_TOKEN"] = "hf_ada_read"
    ran = subprocess.run([sys.executable, "-c", LOAD, ID], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    old, new = [["c1", "one"], ["c2", "two"]], [["c1", "one"], ["c2", "two"], ["c4", "four"]]
    held = [["c3", "three"]]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "v1 train": old,
        "v1 heldout": held,
        "v1 streamed": old,
        "None train": new,
        "None heldout": held,
        "None streamed": new,
    }
