"""A Hugging Face Hub on loopback, for the real `huggingface_hub` and `datasets` clients, and misbehaving when told to.

    with Hub() as hub:
        hub.add_user("ada", "hf_ada", orgs=("lab",))
        api = HfApi(endpoint=hub.url, token="hf_ada")       # in this process (with Xet off), or
        subprocess.run(..., env={**os.environ, **hub.environment, "HF_TOKEN": "hf_ada", "HF_HOME": fresh})
        hub.fail(match=lambda method, path: "/commit/" in path, how="drop_after")

Notable:
- Two servers, as on the real Hub: the endpoint, and a storage with signed addresses of another origin. Large (LFS)
  files are put there, and `resolve` redirects there. The storage refuses a token sent to it, and content of another
  size or SHA-256 than was announced.
- Every commit keeps its whole tree, so that old commits and tags can be read. Objects belong to one repository.
- `hub.requests` is what came in at either server, in order. `fail`, `call_at` and `call_before` act on what is next.
- No gating, no pull requests, no Xet, no git.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import pathspec
from ruamel.yaml import YAML, YAMLError

LARGE = 10 * 1024 * 1024  # bytes; more cannot be a regular file
LFS_SUFFIXES = """7z arrow avro bin bz2 ckpt ftz gz h5 joblib lz4 mds mlmodel model msgpack npy npz onnx ot parquet pb
    pickle pkl pt pth rar safetensors tar tflite tgz wasm xz zip zst pcm sam raw aac flac mp3 ogg wav bmp gif png tiff
    jpg jpeg webp mp4 webm""".split()
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LICENSES = set(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl mpl-2.0 odc-by odbl openmdw-1.0 openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license gemma llama2 llama3 llama3.1
    llama3.2 llama3.3 llama4 unknown other""".split()
)
SIZES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B 1B<n<10B 10B<n<100B 100B<n<1T n>1T".split()
MESSAGES = {  # of the statuses that `fail` answers; others are told by their name
    500: "Internal Error - We're working hard to fix this as soon as possible!",
    429: "We had to rate limit you. Please wait and try again.",
    401: "Invalid credentials in Authorization header",
    403: "you must use a write token to upload to a repository",
    412: "A commit has happened since. Please refresh and try again.",
}

Match = Callable[[str, str], bool]


class Refusal(Exception):
    """An answer that is an error. code: the X-Error-Code by which clients tell one 404 from another."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] = {}, **body: Any):
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        line = message.replace("\n", " ").encode("ascii", "replace").decode()
        self.answer = Answer(status, as_json({"error": message, **body}), {"X-Error-Message": line, **named, **headers})


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What came in. path: as it was sent, without the query."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise Refusal(400, "Unexpected token in JSON") from None

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass(frozen=True)
class User:
    """Who a token speaks for."""

    name: str
    token: str = field(repr=False)
    orgs: tuple[str, ...]
    role: str


@dataclass(frozen=True)
class File:
    """One version of a file, as git knows it: its content, or (lfs) a pointer to its content."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob(self) -> bytes:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return pointer.encode() if self.lfs else self.data

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A tree and where it came from. number: how many commits the repository had before."""

    number: int
    parent: str | None
    tree: dict[str, File]
    title: str
    message: str
    author: str
    date: str

    @cached_property
    def oid(self) -> str:
        of = [tree_id(self.tree, ""), self.parent, self.title, self.message, self.number]
        return hashlib.sha1(json.dumps(of).encode()).hexdigest()


class Repo:
    """A repository, read without a client. kind: `datasets` or `models`. tags: commits by name. objects: the content of
    large files by SHA-256, whether a commit names them or not."""

    def __init__(self, kind: str, id: str, private: bool, author: str):
        self.kind, self.id, self.private = kind, id, private
        self.tags: dict[str, str] = {}
        self.tag_messages: dict[str, str] = {}
        self.branches: dict[str, str] = {}
        self.history: dict[str, Commit] = {}
        self.objects: dict[str, bytes] = {}
        self.created = now()
        self.add("main", {".gitattributes": File(GITATTRIBUTES, False)}, "initial commit", "", author)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def path(self) -> str:
        return f"{'datasets/' if self.kind == 'datasets' else ''}{self.id}"

    @property
    def head(self) -> str:
        return self.branches["main"]

    @property
    def commits(self) -> list[Commit]:
        """The commits of main, the newest first."""
        return list(self.log(self.head))

    def log(self, oid: str | None) -> Iterator[Commit]:
        while oid:
            yield self.history[oid]
            oid = self.history[oid].parent

    def find(self, revision: str) -> Commit:
        """The commit of a branch, a tag, an id or the beginning of one."""
        name = re.sub("^refs/(heads|tags)/", "", revision)
        oid = self.branches.get(name) or self.tags.get(name)
        if oid is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            oid = next((oid for oid in self.history if oid.startswith(revision)), None)
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.history[oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.find(revision).tree.items()}

    def is_large(self, path: str, size: int, sample: bytes, commit: Commit) -> bool:
        """Whether a file belongs into the storage: by .gitattributes, by its size, or since it is not text."""
        lines = commit.tree.get(".gitattributes", File(b"", False)).data.decode().splitlines()
        large = [line.split()[0] for line in lines if "filter=lfs" in line]
        return size > LARGE or b"\0" in sample or matches(large, path)

    def add(self, branch: str, tree: dict[str, File], title: str, message: str, author: str) -> Commit:
        commit = Commit(len(self.history), self.branches.get(branch), tree, title, message, author, now())
        self.history[commit.oid] = commit
        self.branches[branch] = commit.oid
        self.objects.update({file.sha256: file.data for file in tree.values() if file.lfs})
        return commit

    def entry(self, path: str, commit: Commit, expand: bool) -> dict[str, Any]:
        """A file or a folder as `tree` and `paths-info` show it."""
        file = commit.tree.get(path)
        if file is None:
            shown = {"type": "directory", "oid": tree_id(commit.tree, path + "/"), "size": 0, "path": path}
        else:
            shown = {"type": "file", "oid": file.oid, "size": len(file.data), "path": path}
            if file.lfs:
                shown["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.blob)}
        if expand:
            last = commit
            for older in self.log(commit.parent):
                if below(older.tree, path) != below(commit.tree, path):
                    break
                last = older
            shown["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        return shown


@dataclass
class Rule:
    """Something that is to happen to requests to come: from a number on, or to those that match."""

    at: int
    match: Match
    times: int
    how: str = ""
    call: Callable[[], Any] | None = None


class Hub:
    """The server.

    page_size: entries a page of `tree` and `commits`. retry_after: the seconds that a 429 asks for.
    """

    def __init__(self, page_size: int = 1000, retry_after: int = 0):
        self.page_size, self.retry_after = page_size, retry_after
        self.requests: list[tuple[str, str]] = []
        self.errors: list[BaseException] = []  # of the server itself
        self._lock = threading.RLock()
        self._secret = secrets.token_bytes()
        self._users: dict[str, User] = {}
        self._repos: dict[tuple[str, str], Repo] = {}
        self._rules: list[Rule] = []
        self._servers: list[ThreadingHTTPServer] = []
        self._ports: tuple[int, ...] = (0, 0)

    def start(self) -> Hub:
        """Listen: at free ports at first, at the same ones after a `stop`."""
        for port, storage in zip(self._ports, (False, True), strict=True):
            handler = type("Bound", (Handler,), {"hub": self, "storage": storage})
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self._servers.append(server)
        self._ports = tuple(server.server_port for server in self._servers)
        self.url, self.storage_url = (f"http://127.0.0.1:{port}" for port in self._ports)
        return self

    def stop(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self.stop()
        if self.errors and kind is None:
            raise self.errors[0]

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs besides HF_HOME and, if it has one, HF_TOKEN."""
        on = ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS", "DISABLE_UPDATE_CHECK")
        return {
            "HF_ENDPOINT": self.url,
            **{f"HF_HUB_{name}": "1" for name in on},
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` would count at Amazon
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def add_user(self, name: str, token: str, orgs: tuple[str, ...] = (), role: str = "write") -> User:
        """A user, or one more token of a user. role: `write` or `read`."""
        if role not in ("write", "read"):
            raise ValueError(f"role is {role!r}, not write or read")
        with self._lock:
            self._users[token] = User(name, token, orgs, role)
        return self._users[token]

    def remove_token(self, token: str) -> None:
        with self._lock:
            del self._users[token]

    def repo(self, kind: str, id: str) -> Repo:
        """kind: `datasets` or `models`. `KeyError` where there is none."""
        return self._repos[kind, id]

    def commit_as(
        self, user: str, repo: Repo, files: Mapping[str, bytes | None], title: str = "Change", branch: str = "main"
    ) -> Commit:
        """Somebody's change, without a client and without a check. A file of None is deleted."""
        with self._lock:
            head = repo.find(branch)
            tree = dict(head.tree)
            for path, data in files.items():
                if data is None:
                    del tree[path]
                else:
                    tree[path] = File(data, repo.is_large(path, len(data), data[:512], head))
            return repo.add(branch, tree, title, "", user)

    def fail(self, *, how: str, at: int | None = None, match: Match | None = None, times: int = 1) -> None:
        """Let the `at`-th request from now (and those after it, `times` in all), or the next ones that match, fail.

        how: an error's status (`500`, `429`, `401`, `403`, ...), to answer that instead of doing the work; `drop`, to
        close the connection instead; `500_after` or `drop_after`, to do the same with the work done.
        """
        if not re.fullmatch("([45][0-9][0-9]|drop)(_after)?", how):
            raise ValueError(f"how is {how!r}, not a status of 400 to 599 or drop, with or without _after")
        self._plan(at, match, times, how=how)

    def heal(self) -> None:
        """Forget what was to fail or to be called."""
        with self._lock:
            self._rules = []

    def call_at(self, at: int, call: Callable[[], Any]) -> None:
        """Call just before the `at`-th request from now is handled, outside the server's lock."""
        self._plan(at, None, 1, call=call)

    def call_before(self, match: Match, call: Callable[[], Any], times: int = 1) -> None:
        """Call just before the next requests that match are handled, outside the server's lock."""
        self._plan(None, match, times, call=call)

    def _plan(self, at: int | None, match: Match | None, times: int, **what: Any) -> None:
        if (at is None) == (match is None):
            raise ValueError("give either at or match")
        with self._lock:
            self._rules.append(Rule(len(self.requests) + (at or 0), match or (lambda *_: True), times, **what))

    def receive(self, request: Request, storage: bool) -> Answer | None:
        """The answer to a request; None to hang up."""
        if not self._servers:
            return None  # stopped: a connection from before must not be served
        with self._lock:
            self.requests.append((request.method, request.path))
            number = len(self.requests)
            due = [rule for rule in self._rules if rule.at <= number and rule.match(request.method, request.path)]
            for rule in due:
                rule.times -= 1
            self._rules = [rule for rule in self._rules if rule.times > 0]
        for rule in due:
            if rule.call:
                rule.call()
        what, _, after = next((rule.how for rule in due if rule.how), "").partition("_")
        with self._lock:
            answer = self._answer(request, STORAGE_ROUTES if storage else ROUTES) if after or not what else None
        if what == "drop":
            return None
        return self._injected(int(what)) if what else answer

    def _injected(self, status: int) -> Answer:
        wait = {
            "RateLimit": f'"api";r=0;t={self.retry_after}',
            "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
            "Retry-After": str(self.retry_after),
        }
        message = MESSAGES.get(status) or HTTPStatus(status).phrase
        return Refusal(status, message, headers=wait if status == 429 else {}).answer

    def _answer(self, request: Request, routes: list[tuple[str, re.Pattern[str], Any]]) -> Answer:
        try:
            for methods, pattern, act in routes:
                if request.method in methods.split() and (found := pattern.fullmatch(request.path)):
                    parts = {name: unquote(part) for name, part in found.groupdict().items() if part is not None}
                    answer = act(self, request, **parts)
                    return answer if isinstance(answer, Answer) else Answer(200, as_json(answer))
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            return refusal.answer

    # who may do what

    def _user(self, request: Request) -> User | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self._users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self._users.get(token)

    def _known(self, request: Request) -> User:
        user = self._user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def _read(self, request: Request, kind: str, id: str) -> Repo:
        """The repository, if this user may read it: no answer tells a private one from none."""
        user, repo = self._user(request), self._repos.get((kind, id))
        if repo is None or (repo.private and not (user and repo.namespace in (user.name, *user.orgs))):
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def _write(self, request: Request, kind: str, id: str, otherwise: str = "Forbidden") -> Repo:
        repo, user = self._read(request, kind, id), self._user(request)
        if user is None:
            # Over https clients take every 401 of a repository for RepoNotFound; over http they need to be told.
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if repo.namespace not in (user.name, *user.orgs):
            raise Refusal(403, otherwise)
        if user.role != "write":
            raise Refusal(403, "you must use a write token to upload to a repository")
        return repo

    # the account and its repositories

    def whoami(self, request: Request) -> Any:
        user = self._known(request)
        orgs = [{"type": "org", "id": oid_of(name), "name": name, "roleInOrg": "write"} for name in user.orgs]
        token = {"displayName": user.name, "role": user.role, "createdAt": now()}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "id": oid_of(user.name), "name": user.name, "orgs": orgs, "auth": auth}

    def create_repo(self, request: Request) -> Any:
        user, asked = self._known(request), request.json()
        kind, name = f"{asked.get('type') or 'model'}s", asked.get("name") or ""
        namespace = asked.get("organization") or user.name
        if kind not in ("datasets", "models"):
            raise Refusal(400, f"this server has datasets and models, no {kind}")
        if not re.fullmatch(r"(?!.*(--|\.\.))[\w][\w.-]{0,95}(?<![.-])", name):
            raise Refusal(400, f"Invalid repo name: {name}")
        if user.role != "write" or namespace not in (user.name, *user.orgs):
            raise Refusal(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"')
        id = f"{namespace}/{name}"
        private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        exists = (kind, id) in self._repos
        repo = self._repos.setdefault((kind, id), self._repos.get((kind, id)) or Repo(kind, id, private, user.name))
        url = f"{self.url}/{repo.path}"
        if exists:
            raise Refusal(409, f"You already created this {kind[:-1]} repo: {id}", url=url)
        return {"url": url, "name": id, "id": oid_of(repo.path)}

    def delete_repo(self, request: Request) -> Any:
        user, asked = self._known(request), request.json()
        id = f"{asked.get('organization') or user.name}/{asked.get('name')}"
        repo = self._write(request, f"{asked.get('type') or 'model'}s", id)
        del self._repos[repo.kind, repo.id]
        return {"success": True}

    def settings(self, request: Request, kind: str, id: str) -> Any:
        repo, asked = self._write(request, kind, id), request.json()
        if asked.get("gated"):
            raise Refusal(400, "this server gates nothing")
        visibility = asked.get("visibility", "private" if asked.get("private", repo.private) else "public")
        if visibility not in ("public", "private"):
            raise Refusal(400, '"visibility" must be one of [public, private]')
        repo.private = visibility == "private"
        return {"private": repo.private, "visibility": visibility}

    def auth_check(self, request: Request, kind: str, id: str, write: str = "") -> Any:
        (self._write if write else self._read)(request, kind, id)
        return {}

    def validate_yaml(self, request: Request) -> Any:
        self._user(request)
        asked = request.json()
        errors, warnings = ([{"message": text} for text in texts] for texts in check_card(asked.get("content", "")))
        if errors:
            raise Refusal(400, "; ".join(error["message"] for error in errors), errors=errors, warnings=warnings)
        return {"errors": errors, "warnings": warnings}

    # reading

    def info(self, request: Request, kind: str, id: str, revision: str = "main") -> Any:
        repo = self._read(request, kind, id)
        commit = repo.find(revision)
        card = read_card(commit.tree["README.md"].data.decode("utf-8", "replace")) if "README.md" in commit.tree else {}
        card = card if isinstance(card, dict) else {}
        licenses = card.get("license") or []
        tags = [f"license:{name}" for name in ([licenses] if isinstance(licenses, str) else licenses)]
        siblings: list[dict[str, Any]] = []
        for path, file in sorted(commit.tree.items()):
            siblings.append({"rfilename": path})
            if request.flag("blobs"):
                siblings[-1] |= {"blobId": file.oid, "size": len(file.data)}
                if file.lfs:
                    lfs = {"sha256": file.sha256, "size": len(file.data), "pointerSize": len(file.blob)}
                    siblings[-1]["lfs"] = lfs
        whole = {
            "_id": oid_of(repo.path)[:24],
            "id": id,
            **({"modelId": id} if kind == "models" else {}),
            "author": repo.namespace,
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repo.created,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [*tags, *(card["tags"] if isinstance(card.get("tags"), list) else []), "region:us"],
            **({"cardData": card} if card else {}),
            "siblings": siblings,
            "usedStorage": sum(map(len, repo.objects.values())),
        }
        expand = request.query.get("expand", []) + request.query.get("expand[]", [])
        return {name: whole[name] for name in ("_id", "id", *expand) if name in whole} if expand else whole

    def refs(self, request: Request, kind: str, id: str) -> Any:
        repo = self._read(request, kind, id)

        def shown(where: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in names.items()]

        found = {"branches": shown("heads", repo.branches), "converts": [], "tags": shown("tags", repo.tags)}
        return {**found, "pullRequests": []} if request.flag("include_prs") else found

    def log(self, request: Request, kind: str, id: str, revision: str) -> Answer:
        repo = self._read(request, kind, id)
        shown = [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author, "avatar": ""}],
                "date": commit.date,
                "formatted": {"title": commit.title, "message": commit.message},
            }
            for commit in repo.log(repo.find(revision).oid)
        ]
        return self._page(request, shown, self.page_size)

    def tree(self, request: Request, kind: str, id: str, revision: str, path: str = "") -> Answer:
        repo = self._read(request, kind, id)
        commit, prefix = repo.find(revision), path.strip("/") + "/" if path.strip("/") else ""
        within = [name for name in commit.tree if name.startswith(prefix)]
        if prefix and not within:
            raise Refusal(404, f'{path} does not exist on "{revision}"', "EntryNotFound")
        names = {name for name in with_folders(within) if len(name) > len(prefix)}
        if not request.flag("recursive"):
            names = {name for name in names if "/" not in name[len(prefix) :]}
        expand = request.flag("expand")
        shown = [repo.entry(name, commit, expand) for name in sorted(names)]
        return self._page(request, shown, min(self.page_size, 50) if expand else self.page_size)

    def _page(self, request: Request, entries: list[Any], size: int) -> Answer:
        start = int(request.query.get("cursor", ["0"])[0])
        headers = {}
        if start + size < len(entries):
            query = urlencode({**request.query, "cursor": start + size}, doseq=True)
            headers = {"Link": f'<{self.url}{request.path}?{query}>; rel="next"'}
        return Answer(200, as_json(entries[start : start + size]), headers)

    def paths_info(self, request: Request, kind: str, id: str, revision: str) -> Any:
        repo = self._read(request, kind, id)
        commit = repo.find(revision)
        asked = request.json() if request.body.startswith(b"{") else parse_qs(request.body.decode())
        paths, expand = [path.strip("/") for path in asked.get("paths", [])], str(asked.get("expand", "")).lower()
        if len(paths) > 1000:
            raise Refusal(413, "too many parameters")
        names = with_folders(commit.tree)
        return [repo.entry(path, commit, "true" in expand) for path in paths if path in names]

    def resolve(self, request: Request, id: str, how: str, revision: str, path: str, dataset: str = "") -> Answer:
        repo = self._read(request, "datasets" if dataset else "models", id)
        commit = repo.find(revision)
        head = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        file = commit.tree.get(path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", head)
        if file.lfs and how == "resolve":
            linked = {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": f'"{file.sha256}"'}
            location = self._signed("GET", f"/store/{repo.kind}/{repo.id}/{file.sha256}")
            return Answer(302, b"", {**head, **linked, "Location": location})
        name = quote(path.split("/")[-1])
        head["Content-Disposition"] = f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"
        return content(request, file.blob, file.oid, head)

    # writing

    def tag(self, request: Request, kind: str, id: str, revision: str) -> Any:
        repo = self._write(request, kind, id)
        if request.method == "DELETE":
            if revision not in repo.tags:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            del repo.tags[revision], repo.tag_messages[revision]
            return {}
        asked = request.json()
        name, commit = asked.get("tag") or "", repo.find(revision)
        if not re.fullmatch(r"(?!refs/|/)[^\s~^:?*\[\\]+(?<![/.])", name):
            raise Refusal(400, f"Invalid reference for a tag: {name}")
        if name in repo.tags:
            raise Refusal(409, "Tag reference exists already")
        repo.tags[name], repo.tag_messages[name] = commit.oid, asked.get("message", "")
        return {}

    def branch(self, request: Request, kind: str, id: str, name: str) -> Any:
        repo = self._write(request, kind, id)
        if request.method == "DELETE":
            if name == "main":
                raise Refusal(403, "Cannot delete the default branch")
            if name not in repo.branches:
                raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
            del repo.branches[name]
            return {}
        if name.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {name}")
        if name in repo.branches:
            raise Refusal(409, "Reference already exists")
        repo.branches[name] = repo.find(request.json().get("startingPoint") or "main").oid
        return {}

    def _writable_branch(self, request: Request, kind: str, id: str, revision: str) -> tuple[Repo, Commit]:
        if request.flag("create_pr"):
            raise Refusal(400, "this server opens no pull requests")
        suggestion = "pass `create_pr=1` as a query parameter to create a Pull Request"
        repo = self._write(request, kind, id, suggestion)
        if revision not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, repo.find(revision)

    def preupload(self, request: Request, kind: str, id: str, revision: str) -> Any:
        repo, head = self._writable_branch(request, kind, id, revision)
        asked = request.json()
        ignored = head.tree[".gitignore"].data.decode() if ".gitignore" in head.tree else ""
        ignored = asked.get("gitIgnore", ignored).splitlines()
        files = []
        for file in asked["files"]:
            path, there = file["path"], head.tree.get(file["path"])
            large = repo.is_large(path, file["size"], base64.b64decode(file.get("sample", "")), head)
            known = {"oid": there.sha256 if there.lfs else there.oid} if there else {}
            mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": matches(ignored, path)}
            files.append({"path": path, **mode, **known})
        return {"files": files, "commitOid": head.oid}

    def commit(self, request: Request, kind: str, id: str, revision: str) -> Any:
        repo, head = self._writable_branch(request, kind, id, revision)
        try:
            first, *rest = [json.loads(line) for line in request.body.splitlines() if line.strip()]
            summary = first["value"]["summary"] if first["key"] == "header" else ""
        except (ValueError, KeyError):
            raise Refusal(400, "the body must be lines of JSON, a header first") from None
        if not summary:
            raise Refusal(400, '"summary" is not allowed to be empty')
        parent = first["value"].get("parentCommit")
        if parent and not (len(parent) >= 7 and head.oid.startswith(parent)):
            raise Refusal(412, MESSAGES[412])
        tree = dict(head.tree)
        for line in rest:
            self._change(repo, tree, line["key"], line["value"])
        if "README.md" in tree and tree["README.md"] != head.tree.get("README.md"):
            errors, _ = check_card(tree["README.md"].data.decode("utf-8", "replace"))
            if errors:
                raise Refusal(400, "Invalid metadata in README.md.\n" + "\n".join(f"- {text}" for text in errors))
        made = repo.add(revision, tree, summary, first["value"].get("description", ""), self._known(request).name)
        url = f"{self.url}/{repo.path}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""}

    def _change(self, repo: Repo, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
        """One line of a commit, done to `tree`."""
        path = value["path"].rstrip("/")
        if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise Refusal(400, f"Invalid path: {path}")
        if key == "file":
            encoded = value.get("encoding") == "base64"
            data = base64.b64decode(value["content"]) if encoded else value["content"].encode()
            if len(data) > LARGE:
                raise Refusal(400, f"Your push was rejected because it contains files larger than 10 MiB: {path}")
            tree[path] = File(data, False)
        elif key == "lfsFile":
            stored = repo.objects.get(value["oid"])
            if stored is None or len(stored) != value.get("size", len(stored)) or value["algo"] != "sha256":
                why = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
                raise Refusal(400, f"{why} Offending file: - {path}")
            tree[path] = File(stored, True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in tree if name == path or (key == "deletedFolder" and name.startswith(path + "/"))]
            if not gone:
                thing = "file" if key == "deletedFile" else "folder"
                raise Refusal(404, f"A {thing} with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del tree[name]
        else:
            raise Refusal(400, f"this server does not know the operation {key}")

    # large files

    def lfs_batch(self, request: Request, id: str, dataset: str = "") -> Any:
        repo, asked = self._write(request, "datasets" if dataset else "models", id), request.json()
        if asked.get("operation") != "upload":
            raise Refusal(400, "this server answers uploads alone")
        objects = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            shown: dict[str, Any] = {"oid": oid, "size": size}
            if not re.fullmatch("[0-9a-f]{64}", oid) or size < 0:
                shown["error"] = {"code": 422, "message": "Invalid object"}
            elif oid not in repo.objects:
                put = self._signed("PUT", f"/store/{repo.kind}/{repo.id}/{oid}", f"size={size}")
                verify = f"{self.url}/{repo.path}.git/info/lfs/verify"
                shown["actions"] = {name: {"href": href} for name, href in (("upload", put), ("verify", verify))}
            objects.append(shown)
        return {"transfer": "basic", "objects": objects}

    def lfs_verify(self, request: Request, id: str, dataset: str = "") -> Any:
        repo, asked = self._write(request, "datasets" if dataset else "models", id), request.json()
        stored = repo.objects.get(asked.get("oid"))
        if stored is None or len(stored) != asked.get("size"):
            raise Refusal(404, "Object does not exist or has another size")
        return {}

    def _key(self, method: str, path: str, query: str) -> str:
        return hmac.new(self._secret, f"{method} {path} {query}".encode(), "sha256").hexdigest()

    def _signed(self, method: str, path: str, query: str = "") -> str:
        key = self._key(method, path, query)
        return f"{self.storage_url}{path}?{query + '&' if query else ''}X-Amz-Signature={key}"

    def store(self, request: Request, kind: str, id: str, oid: str) -> Answer:
        """The storage: what holds a signed address may put and get, and nothing else counts."""
        if request.headers.get("Authorization"):
            raise Refusal(400, "InvalidArgument: only one auth mechanism allowed")
        method, size = "GET" if request.method == "HEAD" else request.method, request.query.get("size", [""])[0]
        expected = self._key(method, request.path, f"size={size}" if size else "")
        if not hmac.compare_digest(request.query.get("X-Amz-Signature", [""])[0], expected):
            raise Refusal(403, "SignatureDoesNotMatch")
        if method == "GET":
            repo = self._repos.get((kind, id))
            if repo is None or oid not in repo.objects:
                raise Refusal(404, "NoSuchKey")
            return content(request, repo.objects[oid], oid, {"Accept-Ranges": "bytes"})
        if len(request.body) != int(size) or hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "XAmzContentSHA256Mismatch: the content is not what was announced")
        if (kind, id) not in self._repos:
            raise Refusal(404, "NoSuchBucket")
        self._repos[kind, id].objects[oid] = request.body
        return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def _routes(lines: str) -> list[tuple[str, re.Pattern[str], Any]]:
    """`METHODS path function`, where {name} is one part of a path, {id} is two and {path} what is left."""
    parts = {
        "kind": "datasets|models",
        "id": "[^/]+/[^/]+?",
        "path": ".+",
        "how": "resolve|raw",
        "dataset": "datasets/",
        "write": "/write",
        "revision": "refs/[^/]+/[^/]+|[^/]+",
    }
    routes = []
    for line in lines.strip().splitlines():
        methods, path, act = line.rsplit(maxsplit=2)
        pattern = re.sub("{([a-z]+)}", lambda name: f"(?P<{name[1]}>{parts.get(name[1], '[^/]+')})", path)
        routes.append((methods, re.compile(pattern), getattr(Hub, act)))
    return routes


ROUTES = _routes(r"""
    GET /api/whoami-v2 whoami
    POST /api/repos/create create_repo
    DELETE /api/repos/delete delete_repo
    POST /api/validate-yaml validate_yaml
    GET /api/{kind}/{id} info
    GET /api/{kind}/{id}/revision/{revision} info
    GET /api/{kind}/{id}/auth-check{write}? auth_check
    PUT /api/{kind}/{id}/settings settings
    GET /api/{kind}/{id}/refs refs
    POST DELETE /api/{kind}/{id}/tag/{revision} tag
    POST DELETE /api/{kind}/{id}/branch/{name} branch
    GET /api/{kind}/{id}/commits/{revision} log
    GET /api/{kind}/{id}/tree/{revision}(?:/{path})? tree
    POST /api/{kind}/{id}/paths-info/{revision} paths_info
    POST /api/{kind}/{id}/preupload/{revision} preupload
    POST /api/{kind}/{id}/commit/{revision} commit
    POST /{dataset}?{id}\.git/info/lfs/objects/batch lfs_batch
    POST /{dataset}?{id}\.git/info/lfs/verify lfs_verify
    GET HEAD /{dataset}?{id}/{how}/{revision}/{path} resolve
""")
STORAGE_ROUTES = _routes("GET HEAD PUT /store/{kind}/{id}/{oid} store")


class Handler(BaseHTTPRequestHandler):
    """HTTP for a Hub."""

    hub: Hub
    storage: bool
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        try:
            self._handle(self._body())
        except ConnectionError:  # the client went away
            self.close_connection = True

    def _handle(self, body: bytes) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, url.path, query, self.headers, body)
        try:
            answer = self.hub.receive(request, self.storage)
        except Exception as error:
            self.hub.errors.append(error)
            answer = Refusal(500, f"this server broke: {error!r}").answer
        if answer is None:
            self.close_connection = True
            return
        trace = self.headers.get("X-Amzn-Trace-Id", "")
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "X-Request-Id": f"Root=1;{trace}",
            **answer.headers,
        }
        self.send_response(answer.status)
        for name, value in {**headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _body(self) -> bytes:
        """The whole body: half of one, from a client that was killed, must not be worked on."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._exactly(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            chunks.append(self._exactly(size + 2)[:-2])
        self._exactly(2)
        return b"".join(chunks)

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size) if size >= 0 else b""
        if len(data) != size:
            raise ConnectionError("the body ended early")
        return data

    def log_message(self, format: str, *args: Any) -> None:
        pass


def content(request: Request, data: bytes, etag: str, headers: dict[str, str]) -> Answer:
    """Bytes, or the range of them that was asked for."""
    headers = {**headers, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
    if etag in request.headers.get("If-None-Match", ""):
        return Answer(304, b"", headers)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if not found or found.groups() == ("", ""):
        return Answer(200, data, headers)
    first, last = found.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= stop:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def read_card(text: str) -> Any:
    """The YAML between the two lines of dashes that a README begins with; None without them, or an error."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        return YAML(typ="safe").load(found[1]) if found else None
    except YAMLError as error:
        return ValueError(str(error))


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the YAML of a README."""
    card = read_card(text)
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if isinstance(card, ValueError):
        return [f"bad indentation or syntax in YAML: {card}"], []
    if not isinstance(card, dict):
        return ['"value" must be of type object'], []
    errors = []
    licenses = card.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if not isinstance(name, str) or name not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    for name in ("tags", "task_categories", "size_categories"):
        value = card.get(name, [])
        if not isinstance(value, (str, list)) or not all(isinstance(item, str) for item in value):
            errors.append(f'"{name}" must be an array of strings')
        elif name == "size_categories" and not set([value] if isinstance(value, str) else value) <= set(SIZES):
            errors.append(f'"size_categories" must be one of [{", ".join(SIZES)}]')
    return errors + check_configs(card.get("configs", [])), []


def check_configs(configs: Any) -> list[str]:
    if not isinstance(configs, list):
        return ['"configs" must be an array']
    errors = []
    for n, config in enumerate(configs):
        if not isinstance(config, dict):
            errors.append(f'"configs[{n}]" must be of type object')
            continue
        if not isinstance(config.get("config_name"), str):
            errors.append(f'"configs[{n}].config_name" is required and must be a string')
        files = config.get("data_files", [])
        for item in files if isinstance(files, list) else [files]:
            globs = item.get("path") if isinstance(item, dict) else item
            named = isinstance(item.get("split"), str) if isinstance(item, dict) else True
            if not named or not globs or not all(isinstance(glob, str) for glob in globs):
                errors.append(f'"configs[{n}].data_files" must be a pattern, patterns, or an array of split and path')
    return errors


def matches(patterns: list[str], path: str) -> bool:
    return pathspec.GitIgnoreSpec.from_lines(patterns).match_file(path)


def below(tree: dict[str, File], path: str) -> dict[str, File]:
    return {name: file for name, file in tree.items() if name == path or name.startswith(path + "/")}


def with_folders(paths: Any) -> set[str]:
    """Paths, and every folder that they lie in."""
    return {"/".join(parts[:n]) for parts in (path.split("/") for path in paths) for n in range(1, len(parts) + 1)}


def tree_id(tree: dict[str, File], prefix: str) -> str:
    """A digest of what lies in a folder (not git's)."""
    return oid_of("\n".join(f"{path} {file.oid}" for path, file in sorted(tree.items()) if path.startswith(prefix)))


def oid_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def as_json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
