"""`bagger browse` as a person uses it: the real command, a real browser, a store with real videos."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from store import Store
from store.catalog import build_catalog
from store.digest import bytes_sha256, id_of
from store.mixture import Pool, expand, write_plan
from store.registry import register
from store.schema import DRIFT_PARTS, FEATURES
from store.video import encode_video

streamlit_testing = pytest.importorskip("streamlit.testing.v1", reason="bagger[browse] is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
COUNT = 14  # clips, more than a page holds
SIZE = 32
PATIENCE = 20_000  # ms
HOSTILE = (
    "<img src=x onerror=\"window.owned='img'\"> <script>window.owned='script'</script> **loud** :red[red] $x^2$ "
    "[a](javascript:window.owned=1) ![b](http://evil.example/b.png) it's 100% _done_"
)


def moving_square(number: int, size: int = SIZE) -> np.ndarray:
    """Frames [8, size, size, 3]."""
    frames = np.full((8, size, size, 3), 40 + 12 * number, np.uint8)
    for t in range(8):
        frames[t, 8:16, 2 * t : 2 * t + 8] = (250, 20 * number % 255, 30)
    return frames


def filmed(row: dict, number: int, name: str, size: int = SIZE) -> dict:
    video = encode_video(moving_square(number, size), fps=8)
    shape = {"num_frames": 8, "height": size, "width": size, "video": video, "video_sha256": bytes_sha256(video)}
    return {**row, **shape, "frames_sha256": bytes_sha256(name.encode())}


def build(root: Path, rows: SimpleNamespace, count: int = COUNT, drifts: float = 0.5, size: int = SIZE) -> Path:
    """A store of one round; clip n drifted n * drifts, the last two are hostile and say so."""
    prompts = [f"a red disc moves left, it's number {n}" for n in range(count - 2)] + [HOSTILE, HOSTILE]
    model, ids = id_of("model", "0" * 64), range(count)
    seed, rollout, score, clip = (
        make[0] for make in (rows.seed(), rows.rollouts("r1", model), rows.scores("r1"), rows.clips("r1", model))
    )
    videos = [filmed({}, n % 3, str(n), size) for n in range(3)]
    media = [videos[n % 3] for n in ids]
    parents = [{"rollout_id": f"rollout-{n}", "seed_clip_id": f"seed-{n}"} for n in ids]
    rows.seal(root, "seed", [seed | media[n] | {"clip_id": f"seed-{n}", "prompt": prompts[n]} for n in ids])
    rows.seal(root, "rollouts_r1", [rollout | media[n] | parents[n] | {"prompt": prompts[n]} for n in ids])
    curve = {name: np.linspace(0, 1, 8).tolist() for name in FEATURES}
    moved = {"drift_motion": -9.0, "drift_part": "freezing", "drift_parts": "freezing,color-casting"}
    exact = {"latent_curve": [0.0, 1.0], "oracle_curves": json.dumps({"error": [None, 0.5], "bad": "<b>", "x": [{}]})}
    scored = [score | curve | moved | exact | {"rollout_id": f"rollout-{n}", "drift": n * drifts} for n in ids]
    rows.seal(root, "scores_r1", scored)
    named = [
        {"clip_id": f"clip-{n}", "prompt": prompts[n], "source_prompt": prompts[n], "rewrite_id": f"rewrite-{n}"}
        for n in ids
    ]
    rewrite = rows.rewrites("r1")[0]
    said = [{"rewrite_id": f"rewrite-{n}", "raw_output": prompts[n], "reasons": [prompts[n]]} for n in ids]
    texts = [dict.fromkeys(("prompt", "source_prompt", "author"), prompts[n]) for n in ids]
    rows.seal(root, "rewrites_r1", [rewrite | texts[n] | said[n] for n in ids])
    rows.seal(root, "clips_r1", [clip | media[n] | parents[n] | named[n] for n in ids])
    pools = [Pool("corrective", "r1", "clips_r1", [f"clip-{n}" for n in ids])]
    plan = root / "plans" / "r1.parquet"
    digest = write_plan(expand(pools, 1.0, 2 * count, seed=0), plan)
    runs = [
        rows.run("correct", "r1", {}, {"rows": count}, 0),
        rows.run("train", "r1", {"plan_digest": digest}, {"model_digest": id_of("model", "1" * 64)}, 1),
    ]
    build_catalog(root / "store", ["r1"], runs, {"r1": plan})
    return root / "store"


@pytest.fixture(scope="module")
def filmed_store(tmp_path_factory, rows) -> Path:
    return build(tmp_path_factory.mktemp("browse"), rows)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    return {
        str(one.relative_to(folder)): (one.stat().st_size, one.stat().st_mtime_ns) for one in sorted(folder.rglob("*"))
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(store: Path, home: Path, port: int) -> subprocess.Popen:
    """The command, once it said where the page is."""
    command = [sys.executable, "-P", "-c", "from flows.cli import main; main()", "browse", "--no-open"]
    process = subprocess.Popen(
        [*command, "--store", str(store), "--port", str(port)],
        cwd=home, env={**os.environ, "HOME": str(home)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr.readline() == f"{store}: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    return process


def children(process: subprocess.Popen) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def served(filmed_store, tmp_path_factory):
    port = free_port()
    home = tmp_path_factory.mktemp("home")
    (home / "store").mkdir()  # a project that is a checkout has a room of that name, which is not the one to use
    (home / "store" / "__init__.py").write_text("raise ImportError('the wrong store')")
    process = start(filmed_store, home, port)
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}/", port=port, process=process, home=home)
    process.kill()
    process.communicate()


@pytest.fixture
def page(served):
    """A page of a browser that notes every request."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(PATIENCE)
        page.requests, page.alerts = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("websocket", lambda socket: page.requests.append(socket.url))
        page.on("dialog", lambda dialog: (page.alerts.append(dialog.message), dialog.dismiss()))
        yield page
        browser.close()


def count(page, number: int) -> None:
    """Waits until the page says that so many clips pass its filters."""
    page.locator(".st-key-pages", has_text=f"{number} clip").wait_for()


PLAYING = """() => {
  const videos = [...document.querySelectorAll('video')];
  return videos.length === %d && videos.every(one => one.videoWidth === 32 && !one.paused && one.currentTime > 0);
}"""


def test_a_person_filters_opens_and_reads(page, served, filmed_store):
    before = state(filmed_store)
    page.goto(served.url)
    count(page, COUNT)
    page.wait_for_function(PLAYING % 12)
    prompts = page.locator("[class*='st-key-card-'] [data-testid='stText']")
    assert prompts.first.inner_text() == HOSTILE  # the worst come first; shown as text
    first = page.evaluate("document.querySelector('video').currentTime")
    page.wait_for_function(f"document.querySelector('video').currentTime !== {first}")

    # 14 clips, drift 0 to 6.5: up to 6.4 loses one, from 0.1 another.
    low, high = (page.get_by_role("slider").nth(n) for n in range(2))
    high.press("ArrowLeft")
    count(page, COUNT - 1)
    low.press("ArrowRight")
    count(page, COUNT - 2)
    assert "drift=0.1&drift=6.4" in page.url
    page.get_by_label("Words in the prompt").fill("disc 3")
    page.keyboard.press("Enter")
    count(page, 1)

    page.locator(".st-key-open-0 button").click()
    opened = page.locator(".st-key-opened")
    opened.get_by_text("Seed clip", exact=True).wait_for()
    page.wait_for_function(PLAYING % 4)  # the card, and clip, rollout and seed clip side by side
    assert "clip=clip-3" in page.url
    opened.get_by_text("1.50", exact=True).wait_for()
    opened.locator("canvas, svg.marks").nth(1).wait_for()  # bars and curves
    page.get_by_role("tab", name="Lineage").click()
    tree = opened.get_by_text("clip clip-3").first
    tree.wait_for()
    for words in ("rollout rollout-3", "seed seed-3", "rewrite rewrite-3", "run run-correct-r1"):
        assert words in opened.inner_text()
    page.get_by_role("tab", name="Rewrite").click()
    opened.get_by_text("checks: parses ✓").wait_for()

    assert [one.name for one in served.home.iterdir()] == ["store"]
    assert {urlsplit(url).hostname for url in page.requests if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert state(filmed_store) == before


def test_an_address_opens_a_clip_and_hostile_text_stays_text(page, served):
    page.goto(served.url + "?clip=clip-13&drift=6.0&drift=6.5&sort=least+drift")
    count(page, 2)
    opened = page.locator(".st-key-opened")
    for tab in ("Rewrite", "Lineage", "All facts", "Training", "Drift"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        if tab in ("Rewrite", "Lineage"):
            opened.get_by_text("window.owned='script'").locator("visible=true").last.wait_for()
    page.wait_for_function(PLAYING % 5)
    cards = page.locator(
        "[class*='st-key-card-'] .stCaption, [class*='st-key-card-'] [data-testid='stCaptionContainer']"
    )
    assert "6.00" in cards.first.inner_text()  # least first
    assert page.evaluate(
        "[typeof window.owned, document.querySelectorAll('img[src=x], a[href^=javascript]').length]"
    ) == [
        "undefined",
        0,
    ]
    assert not page.alerts
    assert not [url for url in page.requests if "evil.example" in url]


def test_server_is_reached_from_this_machine_alone(served):
    socket.create_connection(("127.0.0.1", served.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):  # what listens on every address takes this one, too
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_ends_at_once_and_alone(filmed_store, tmp_path, how, status):
    port = free_port()
    process = start(filmed_store, tmp_path, port)
    servers = children(process)
    began = time.monotonic()
    process.send_signal(how)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 8
    assert (process.returncode, out) == (status, "")
    assert "Traceback" not in err
    assert len(servers) == 1
    for _ in range(100):  # killed by the kernel, reaped by whoever adopted it
        if not Path(f"/proc/{servers[0]}/cmdline").exists() or not Path(f"/proc/{servers[0]}/cmdline").read_bytes():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the server outlived the command")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


# ---------------------------------------------------------------- what the command refuses


def test_no_store_no_page(bagger, tmp_path):
    told = bagger("browse", "--store", tmp_path / "none", "--no-open")
    assert told.status == 1
    assert told.err.startswith(f"error: no table 'catalog' in {tmp_path / 'none'}; make it with `dvc repro catalog`")


def test_port_taken(bagger, filmed_store):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = bagger("browse", "--store", filmed_store, "--port", port, "--no-open")
    assert told.status == 1
    assert told.err.startswith(f"error: --port {port}: Address already in use; name another one")


def test_streamlit_missing(bagger, filmed_store, monkeypatch):
    monkeypatch.setitem(sys.modules, "streamlit", None)  # as where it is not installed
    told = bagger("browse", "--store", filmed_store, "--no-open")
    assert told.status == 1
    assert told.err == "error: the page needs Streamlit; get it with `pip install 'bagger[browse]'`\n"


# ---------------------------------------------------------------- the page without a browser


def run_page(store: Path, **query: str):
    script = f"from flows.page import main\nmain({str(store)!r})"
    app = streamlit_testing.AppTest.from_string(script, default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def pages(app) -> str:
    return next(one.value for one in app.markdown if "clip" in one.value and one.value.startswith("**"))


def test_missing_and_empty_store_say_what_to_run(tmp_path, rows):
    app = run_page(tmp_path / "none")
    assert not app.exception
    assert app.header[0].value == "There is no store to show yet"
    assert "dvc repro" in app.markdown[-1].value
    rows.seal(tmp_path, "seed", [])
    build_catalog(tmp_path / "store", [], [])
    app = run_page(tmp_path / "store")
    assert not app.exception
    assert app.header[0].value == "The store is empty"


def test_a_changed_store_is_seen(tmp_path, rows):
    store = build(tmp_path, rows, count=4)
    assert pages(run_page(store)) == "**4 clips**"
    shutil.rmtree(tmp_path / "work")
    build(tmp_path, rows, count=3)
    app = run_page(store)
    assert not app.exception
    assert pages(app) == "**3 clips**"


def test_clip_that_is_not_there_and_page_beyond_the_last(filmed_store):
    app = run_page(filmed_store, clip="<b>clip</b>", page="99999")
    assert not app.exception
    assert app.error[0].value == "This clip cannot be shown."
    assert pages(app) == "**14 clips**, 13 to 14"


def test_catalog_without_its_tables(tmp_path, rows):
    store = build(tmp_path, rows, count=2)
    shutil.rmtree(store / "clips_r1.lance")
    app = run_page(store)
    assert not app.exception
    assert app.error[0].value == "The catalog knows these clips, but their videos cannot be read."
    assert "dvc repro correct@r1" in app.code[-1].value


def test_seed_clip_and_training(filmed_store):
    app = run_page(filmed_store, clip="seed-3", kind="seed")
    assert not app.exception
    assert any("Drift is measured on rollouts" in one.value for one in app.info)
    app = run_page(filmed_store, clip="clip-3")
    steps = app.dataframe[0].value
    assert steps["model"].tolist() == [id_of("model", "1" * 64)]
    assert steps["times"].tolist() == [2]


def test_video_that_browsers_refuse_is_told(tmp_path, rows):
    app = run_page(build(tmp_path, rows, count=2, size=33))
    assert not app.exception
    assert len([one for one in app.warning if "many browsers do not play it" in one.value]) == 2


def test_no_drift_anywhere(tmp_path, rows):
    app = run_page(build(tmp_path, rows, count=2, drifts=0.0))
    assert not app.exception
    assert not app.slider


def test_registry_filters_by_experiment(tmp_path, rows):
    registry = tmp_path / "registry"
    for name, number in (("one", 3), ("two", 4)):
        register(Store(build(tmp_path / name, rows, count=number)), registry, name)
    app = run_page(registry)
    assert not app.exception
    assert pages(app) == "**7 clips**"  # one entry an experiment
    assert app.selectbox(key="experiment").options == ["one", "two"]
    app.selectbox(key="experiment").select("one").run()
    assert pages(app) == "**3 clips**"
    app = run_page(registry, clip="clip-1", experiment="two")
    assert not app.exception
    assert not app.error
    assert any("rollout rollout-1" in one.value for one in app.code)


def test_every_choice_filters(filmed_store):
    app = run_page(filmed_store, round="r1", drift=["0.4", "2.0"], part="color-casting", words="Disc it's")
    app.query_params["class"] = "equivariant"
    app.run()
    assert not app.exception
    assert pages(app) == "**4 clips**"
    assert [one.value for one in app.caption if one.value.startswith("r1 · **")] == [
        f"r1 · **{drift}** freezing" for drift in ("2.00", "1.50", "1.00", "0.50")
    ]
    assert pages(run_page(filmed_store, part="blurring")) == "**0 clips**"
    assert pages(run_page(filmed_store, kind="seed", words="'; -- %")) == "**0 clips**"


def test_the_curves_behind_what_moved_come_first(filmed_store):
    app = run_page(filmed_store, clip="clip-3")
    assert not app.exception
    curves = app.multiselect[0]
    assert curves.value == ["cr", "cb", "flow", "motion"]
    assert curves.options == [*(name for name in FEATURES), "latent_curve", "oracle: error"]
    assert "moved: freezing, color-casting\ngates: passed" in [one.value.rpartition("\nby")[0] for one in app.text]
    curves.set_value(["latent_curve", "oracle: error"]).run()
    assert not app.exception
    assert run_page(filmed_store, clip="clip-4").multiselect[0].value == ["cr", "cb", "flow", "motion"]


def test_what_was_not_measured_is_said(tmp_path, rows):
    """A rollout that failed a gate, and one that an older scorer measured."""
    scores = rows.scores("r1")
    for name in list(scores[0]):
        if name in FEATURES or name.startswith("drift"):
            scores[0][name] = None
    scores[0] |= {"gates": "undecodable"}
    scores[1] |= {f"drift_{part}": None for part in DRIFT_PARTS} | {"drift_z": None} | dict.fromkeys([*FEATURES][4:])
    store, model = tmp_path / "store", id_of("model", "0" * 64)
    rows.seal(tmp_path, "seed", rows.seed())
    rows.seal(tmp_path, "rollouts_r1", rows.rollouts("r1", model))
    rows.seal(tmp_path, "scores_r1", scores)
    rows.seal(tmp_path, "rewrites_r1", rows.rewrites("r1"))
    rows.seal(tmp_path, "clips_r1", rows.clips("r1", model))
    build_catalog(store, ["r1"], [])
    app = run_page(store, clip="clip-r1-0")
    assert not app.exception
    assert "r1 · drift unknown" in [one.value for one in app.caption]
    assert app.metric[0].value == "unknown"
    assert any(one.value.startswith("moved: nothing\ngates: undecodable") for one in app.text)
    assert app.multiselect[0].options == []
    app = run_page(store, clip="clip-r1-1")
    assert not app.exception
    assert any("were not measured, or by an older scorer" in one.value for one in app.info)
    assert app.multiselect[0].value == ["saturation"]
