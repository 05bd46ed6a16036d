"""store/hub.py against a server that speaks the Hub's protocol, asked by the real client."""

import threading

import pytest

from store.digest import bytes_sha256
from store.hub import Change, HubError, Overtaken, Repo, foreign, publish, refuse_foreign

LARGE = b"PAR1" + bytes(range(256)) * 40
NAME = "lab/clips"


def made(hub, **files):
    """A repository with files, as (Repo, its head)."""
    repo = Repo(NAME)
    repo.ensure(None)
    if files:
        repo.commit(Change({name.replace("_", "."): data for name, data in files.items()}), repo.info()[0], "first")
    return repo, repo.info()[0]


def test_a_new_repository_is_private_and_holds_nothing_foreign(hub):
    repo, head = made(hub)
    assert hub.repo("datasets", NAME).private
    assert foreign(repo.paths(head)) == []
    assert repo.ensure(None) is True


def test_files_come_back_as_they_went(hub, tmp_path):
    repo, head = made(hub)
    (tmp_path / "a").write_bytes(LARGE)
    commit = repo.commit(Change({"x/a.parquet": tmp_path / "a", "b.txt": b"small"}), head, "two files", "why")
    assert repo.paths(commit) == [".gitattributes", "b.txt", "x/a.parquet"]
    assert (repo.read("b.txt", commit), repo.read("none", commit)) == (b"small", None)
    assert repo.download("x/a.parquet", commit, tmp_path / "down").read_bytes() == LARGE
    repo.check({"x/a.parquet": bytes_sha256(LARGE), "b.txt": bytes_sha256(b"small")}, commit)
    with pytest.raises(HubError, match=r"b\.txt read back is not what was sent"):
        repo.check({"b.txt": bytes_sha256(b"other")}, commit)
    with pytest.raises(HubError, match=r"lacks c\.txt"):
        repo.check({"c.txt": bytes_sha256(b"other")}, commit)
    gone = repo.commit(Change({}, ["b.txt"]), commit, "less")
    assert repo.paths(gone) == [".gitattributes", "x/a.parquet"]


def test_a_commit_on_another_parent_is_none(hub):
    repo, head = made(hub)
    hub.commit_as("ada", hub.repo("datasets", NAME), {"c.txt": b"faster"})
    with pytest.raises(Overtaken):
        repo.commit(Change({"b.txt": b"slower"}), head, "late")
    assert "b.txt" not in hub.repo("datasets", NAME).files()


def test_tags_stay_unless_told_to_move(hub):
    repo, head = made(hub)
    assert repo.tag("r1", head) == head
    later = repo.commit(Change({"b.txt": b"1"}), head, "later")
    assert repo.tag("r1", head) == head
    assert repo.tag("r1", later) == head
    assert repo.tag("r1", later, move=True) == later
    assert hub.repo("datasets", NAME).tags == {"r1": repo.tagged("r1")} == {"r1": later}
    assert repo.tagged("r2") is None


def add(name: str, data: bytes):
    """A change that adds a file, unless it is there."""

    def change(commit: str):
        return None if repo_of().read(name, commit) == data else Change({name: data})

    repo_of = lambda: Repo(NAME)  # noqa: E731
    return change


def test_publishing_again_does_nothing(hub):
    repo, _ = made(hub)
    first = publish(repo, "r1", add("a.txt", b"1"), "one")
    before = len(hub.requests)
    again = publish(repo, "r1", add("a.txt", b"1"), "one")
    assert (first.made, again.made) == (True, False)
    assert (first.commit, first.tag) == (again.commit, again.tag)
    assert {method for method, _ in hub.requests[before:]} <= {"GET", "HEAD"}


def test_a_tag_that_was_not_made_is_made_on_its_own_commit(hub):
    repo, _ = made(hub)
    hub.fail(match=lambda method, path: "/tag/" in path, how="500")
    with pytest.raises(HubError, match="answered 500"):
        publish(repo, "r1", add("a.txt", b"1"), "one")
    commit = repo.info()[0]
    publish(repo, "r2", add("b.txt", b"2"), "two")
    found = publish(repo, "r1", add("a.txt", b"1"), "one")
    assert (found.commit, found.tag, found.made) == (commit, commit, False)


def test_a_commit_whose_answer_was_lost_is_not_made_again(hub):
    repo, _ = made(hub)
    hub.fail(match=lambda method, path: "/commit/" in path, how="drop_after")
    with pytest.raises(HubError, match="cannot reach"):
        publish(repo, "r1", add("a.txt", b"1"), "one")
    found = publish(repo, "r1", add("a.txt", b"1"), "one")
    assert not found.made
    assert [one.title for one in hub.repo("datasets", NAME).commits][0] == "one"
    assert len(hub.repo("datasets", NAME).commits) == 2


def test_a_changed_state_is_a_new_commit_and_moves_no_tag_unasked(hub):
    repo, _ = made(hub)
    first = publish(repo, "r1", add("a.txt", b"1"), "one")
    second = publish(repo, "r1", add("a.txt", b"2"), "two")
    assert second.made
    assert second.tag == first.commit
    third = publish(repo, "r1", add("a.txt", b"2"), "two", retag=True)
    assert not third.made
    assert third.tag == third.commit == second.commit


def test_of_two_at_once_both_are_there(hub):
    repo, _ = made(hub)
    threads = [
        threading.Thread(target=publish, args=(Repo(NAME), f"r{n}", add(f"{n}.txt", b"%d" % n), f"round {n}"))
        for n in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = hub.repo("datasets", NAME)
    assert {"0.txt", "1.txt", "2.txt", "3.txt"} <= set(found.files())
    for n in range(4):
        assert found.files(f"r{n}")[f"{n}.txt"] == b"%d" % n


def test_somebody_who_is_always_faster(hub):
    repo, _ = made(hub)
    faster = lambda: hub.commit_as("ada", hub.repo("datasets", NAME), {"x.txt": str(len(hub.requests)).encode()})  # noqa: E731
    hub.call_before(lambda method, path: "/commit/" in path, faster, times=100)
    with pytest.raises(HubError, match="tried 8 times"):
        publish(repo, "r1", add("a.txt", b"1"), "one")


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    "name", ["clips", "a/b/c", "../x", "lab/..", "lab/a--b", "lab/", "lab/x.git", "lab/a b", "-/x"]
)
def test_names_that_are_none(name):
    with pytest.raises(HubError, match="a repository is called ORG/NAME"):
        Repo(name)


def test_without_a_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="takes a token: log in with `hf auth login`, or set HF_TOKEN"):
        Repo(NAME).ensure(None)


def test_with_a_wrong_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="does not accept the token") as told:
        Repo(NAME).ensure(None)
    assert "hf_wrong" not in str(told.value)
    assert told.value.__cause__ is None


@pytest.mark.parametrize("token", ["hf_eve", "hf_read"])
def test_a_token_that_may_not_write(hub, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=r"the token may not create .*lab/clips; one with write access to lab may"):
        Repo(NAME).ensure(None)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    Repo(NAME).ensure(False)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=r"the token may not write to .*lab/clips"):
        publish(Repo(NAME), "r1", add("a.txt", b"1"), "one")


def test_a_private_repository_of_others_is_not_told_from_none(hub, monkeypatch):
    made(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_eve")
    assert Repo(NAME).info() is None
    with pytest.raises(HubError, match="no dataset lab/clips at .* may not see it"):
        Repo(NAME).resolve("r1")


def test_a_public_repository_is_not_taken_for_a_private_one(hub):
    Repo(NAME).ensure(False)
    with pytest.raises(HubError, match="is public: say --public"):
        Repo(NAME).ensure(True)
    assert Repo(NAME).ensure(None) is False


def test_an_unknown_revision_names_the_tags(hub):
    repo, head = made(hub)
    repo.tag("r1", head)
    with pytest.raises(HubError, match=r"has no revision 'r9'; its tags: r1"):
        repo.resolve("r9")
    assert repo.resolve("r1") == repo.resolve("main") == head


def test_other_files_are_not_ours_to_add_to(hub):
    repo, head = made(hub, README_md=b"mine")
    with pytest.raises(HubError, match=r"holds other files \(README\.md\)"):
        refuse_foreign(repo, repo.paths(head), "publication.json")


@pytest.mark.parametrize(
    ("how", "said"), [("429", "limits how often"), ("500", "answered 500"), ("drop", "cannot reach")]
)
@pytest.mark.parametrize("part", ["/preupload/", "/objects/batch", "/store/", "/commit/", "/tag/", "/refs"])
def test_whatever_fails_is_told_and_finished_by_the_same_call(hub, how, said, part):
    repo, _ = made(hub)
    hub.fail(match=lambda method, path: part in path, how=how, times=20)
    change = add("a.parquet", LARGE)
    with pytest.raises(HubError, match=said) as told:
        publish(repo, "r1", change, "one")
    assert "hf_ada" not in str(told.value)
    hub.heal()
    publish(repo, "r1", change, "one")
    found = hub.repo("datasets", NAME)
    assert found.files("r1")["a.parquet"] == LARGE
    assert len(found.commits) == 2


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot reach http://127\.0\.0\.1:9 to read lab/clips"):
        Repo(NAME).info()
