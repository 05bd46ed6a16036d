"""The page of `bagger browse`, run by Streamlit: `streamlit run flows/page.py -- STORE`.

Notable:
- Texts of the data are hostile: prompts and whatever a rewriter said go through `st.text` and `st.code`, which know
  neither markdown nor HTML. The HTML and the one script are constants.
- The address holds the state: every filter is bound to a query parameter, `?clip=` opens a clip.
- Cached answers are named by the catalog's version, so a store that changed is seen at the next click or reload. Only
  the videos of one page are ever read.
- Every answer comes from `Store`, and nothing is written.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
import streamlit as st

from flows.page_clip import DRIFT, plain, play, show_clip
from store import Store
from store.errors import StoreError, printable
from store.filters import PART_NAMES, REVERSAL_CLASSES, round_number
from store.query import equals, plain_rows
from store.schema import NO_PART
from store.tree import render_tree

Filters = tuple[tuple[str, Any], ...]  # of Store.clips, as what a cache can name

PER_PAGE = 12
SORTS = {"worst drift": "-drift", "least drift": "drift", "lowest id": "clip_id"}
GRID_COLUMNS, GRID_COLUMNS_BESIDE = 6, 2  # the second while a clip is open
CARD = ("clip_id", "kind", "round", "prompt", "drift", "drift_part", "table", "width", "height")
BINS = 24

STYLE = """<style>
.stMainBlockContainer {padding: 4rem 2.5rem 2rem; max-width: 1700px}
[data-testid="stSidebarHeader"] {height: 2.2rem; min-height: 0; padding: 0}
video {background: #8882; border-radius: 6px; width: 100%}
[class*="st-key-card-"] {gap: .35rem}
[class*="st-key-card-"] [data-testid="stText"] {font-size: .8rem; line-height: 1.25; min-height: 2.5em}
[class*="st-key-card-"] [data-testid="stText"] span {display: -webkit-box; -webkit-line-clamp: 3;
  -webkit-box-orient: vertical; overflow: hidden; white-space: normal}
.st-key-opened pre {max-height: 30rem}
.st-key-opened pre * {font-size: .74rem}
.st-key-opened [data-testid="stText"] {font-size: .88rem}
[data-testid="stElementContainer"]:has(> .stHtml) {position: absolute}
@media (min-width: 1000px) {
  [data-testid="stColumn"]:has(.st-key-opened) {position: sticky; top: 3rem; align-self: flex-start;
    max-height: calc(100vh - 4rem); overflow-y: auto}
}
</style>"""
# Streamlit does not start a video again that moves to another place of the page.
PLAY = """<script>
if (!window.baggerPlays) {
  window.baggerPlays = true;
  const play = video => { video.muted = true; video.play().catch(() => {}); };
  document.querySelectorAll("video").forEach(play);
  new MutationObserver(changes => changes.forEach(change => change.addedNodes.forEach(node => {
    if (node.matches?.("video")) play(node);
    node.querySelectorAll?.("video").forEach(play);
  }))).observe(document.body, {childList: true, subtree: true});
}
</script>"""
SMALL = 128  # pixels: such a video is enlarged without smoothing, to look like what the model sees


# ---------------------------------------------------------------------------------------------- what the store answers


@st.cache_resource(max_entries=2, show_spinner=False)
def _store(uri: str, version: str) -> Store:
    return Store(uri)


def fresh_store(uri: str) -> tuple[Store, str]:
    """The store as it is now, and what names this state. Raises StoreError if there is no catalog."""
    catalog = Store(uri).open("catalog")
    path = Path(uri, "catalog.lance")
    place = path.stat() if path.exists() else None  # a rebuilt catalog is another folder with the same version
    version = f"{catalog.version} {(place.st_ino, place.st_mtime_ns) if place else ''}"
    return _store(uri, version), version


@st.cache_resource(max_entries=4, show_spinner="Reading the catalog …")
def overview(uri: str, version: str) -> dict[str, Any]:
    """What filters and summary need: counts by round and kind, bins of drift by round, bounds, experiments."""
    store = _store(uri, version)
    columns = ["kind", "round", "drift", *(["experiment"] if store.is_registry else [])]
    rows = store.read("catalog", columns)
    drift = rows["drift"].to_numpy(zero_copy_only=False).astype(float)
    rounds = np.array(rows["round"].to_pylist(), dtype=object)
    known = np.isfinite(drift)
    top = float(drift[known].max()) if known.any() else 0.0
    edges = np.linspace(0, top or 1, BINS + 1)
    names = sorted(set(rounds), key=round_number)
    bins, quantiles = [], {}
    for name in names:
        values = drift[known & (rounds == name)]
        if len(values):
            counts = np.histogram(values, edges)[0]
            bins += [
                {"round": name, "drift": low, "end": high, "clips": int(count)}
                for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            ]
            quantiles[name] = np.quantile(values, [0.5, 0.95])
    return {
        "clips": {name: int((rounds == name).sum()) for name in names},
        "kinds": dict(pd.Series(rows["kind"].to_pylist()).value_counts()),
        "bins": bins,
        "quantiles": quantiles,
        "top": float(np.ceil(top * 10) / 10),
        "experiments": sorted(set(rows["experiment"].to_pylist())) if store.is_registry else [],
    }


@st.cache_resource(max_entries=16, show_spinner="Looking …")
def matching(uri: str, version: str, filters: Filters, sort: str) -> pa.Table:
    """The clips that pass the filters, in order: what a card shows."""
    store = _store(uri, version)
    columns = [*CARD, *(["experiment"] if store.is_registry else [])]
    return store.clips(sort=sort, columns=columns, **dict(filters))


@st.cache_data(max_entries=16, show_spinner=False)
def videos(uri: str, version: str, clips: tuple[tuple[str, str], ...]) -> dict[str, bytes]:
    """clip_id -> mp4 bytes of (table, clip_id) pairs, one read a table."""
    store = _store(uri, version)
    found: dict[str, bytes] = {}
    for table in sorted({table for table, _ in clips}):
        where = " OR ".join(equals("clip_id", clip) for name, clip in clips if name == table)
        rows = store.read(table, ["clip_id", "video"], where=where)
        found |= dict(zip(rows["clip_id"].to_pylist(), rows["video"].to_pylist(), strict=True))
    return found


@st.cache_data(max_entries=8, show_spinner=False)
def details(uri: str, version: str, clip_id: str) -> dict[str, Any]:
    """Everything about one clip. Raises StoreError for an id that is no clip."""
    store = _store(uri, version)
    found = store.read("catalog", list(_plain_columns(store)), where=equals("clip_id", clip_id))
    if not found.num_rows:
        raise StoreError(f"no clip {clip_id!r} in {store.uri}")
    facts = plain_rows(found)[0]
    clip = store.video(clip_id)
    parts = {"seed": clip} if facts["kind"] == "seed" else {"clip": clip}
    if facts["kind"] != "seed":
        parts |= {"rollout": store.video(clip["rollout_id"]), "seed": store.video(clip["seed_clip_id"])}
    uses = store.read("uses", where=equals("clip_id", clip_id)).to_pylist() if store.has("uses") else []
    return {
        "facts": facts,
        "videos": parts,
        "score": _first(store, "scores", "rollout_id", clip.get("rollout_id")),
        "rewrite": _first(store, "rewrites", "rewrite_id", clip.get("rewrite_id")),
        "tree": render_tree(store.lineage(clip_id)),
        "uses": uses,
    }


def _plain_columns(store: Store) -> Sequence[str]:
    return [name for name in store.open("catalog").schema.names if name not in ("look", "words")]


def _first(store: Store, base: str, key: str, wanted: str | None) -> dict[str, Any] | None:
    """The row of that id in the first table of a kind that has it."""
    for name in store.tables(base) if wanted else ():
        if rows := store.read(name, where=equals(key, str(wanted))).to_pylist():
            return dict(rows[0])
    return None


# --------------------------------------------------------------------------------------------------------- what is seen


def main(uri: str) -> None:
    st.set_page_config(page_title="bagger", page_icon="🎒", layout="wide")
    st.html(STYLE)
    st.html(PLAY, unsafe_allow_javascript=True)
    try:
        _, version = fresh_store(uri)
        facts = overview(uri, version)
    except StoreError as error:
        st.header("There is no store to show yet")
        st.code(printable(str(error)), language=None, wrap_lines=True)
        st.write("Make one with `dvc repro`, or fetch a colleague's with `dvc pull`; then reload this page.")
        return
    if not facts["clips"]:
        st.header("The store is empty")
        st.write("Its catalog has no clip. `dvc repro` makes seed and corrective clips; then reload this page.")
        return
    filters, sort = sidebar(uri, facts)
    try:
        table = matching(uri, version, filters, sort)
    except StoreError as error:
        st.error("The store cannot answer this.")
        st.code(printable(str(error)), language=None, wrap_lines=True)
        return
    opened = st.query_params.get("clip")
    if opened is None:
        summary(facts)
        grid(uri, version, table, GRID_COLUMNS)
    else:
        left, right = st.columns([4, 7], gap="medium")
        with right, st.container(key="opened"):
            open_clip(uri, version, opened)
        with left:
            grid(uri, version, table, GRID_COLUMNS_BESIDE, opened)


def sidebar(uri: str, facts: dict[str, Any]) -> tuple[Filters, str]:
    """What `Store.clips` is asked: filters and sort; each is a query parameter of the page's address."""
    with st.sidebar:
        st.subheader("Clips", anchor=False)
        st.text(uri)
        experiment = None
        if facts["experiments"]:
            experiment = st.selectbox(
                "Experiment", facts["experiments"], index=None, placeholder="all", key="experiment",
                bind="query-params", on_change=first_page,
            )  # fmt: skip
        kind = st.segmented_control(
            "Kind", ["corrective", "seed"], default="corrective", key="kind", bind="query-params", on_change=first_page,
            help="Corrective: a model's rollout played backwards, from drifted frames to real ones. Seed: real videos.",
        )  # fmt: skip
        seeds = kind == "seed"
        rounds = st.pills(
            "Round", [one for one in facts["clips"] if one != "r0"], selection_mode="multi", key="round",
            bind="query-params", on_change=first_page, disabled=seeds, help="r1: made by the first model; and so on.",
        )  # fmt: skip
        drift = None
        if facts["top"] > 0:
            drift = st.slider(
                "Drift", 0.0, facts["top"], (0.0, facts["top"]), 0.1, key="drift", bind="query-params",
                on_change=first_page, disabled=seeds, help=DRIFT,
            )  # fmt: skip
        parts = st.pills(
            "What moved", PART_NAMES, selection_mode="multi", key="part", bind="query-params", on_change=first_page,
            disabled=seeds, help="Any of these, whatever else moved with it; on a clip stands what moved most.",
        )  # fmt: skip
        classes = st.pills(
            "Reversal class", REVERSAL_CLASSES, selection_mode="multi", key="class", bind="query-params",
            on_change=first_page, disabled=seeds,
            help="What playing backwards does to the caption's meaning: nothing, the opposite, …",
        )  # fmt: skip
        words = st.text_input(
            "Words in the prompt", key="words", bind="query-params", on_change=first_page, placeholder="red square"
        )
        sort = st.selectbox("First comes the", list(SORTS), key="sort", bind="query-params", on_change=first_page)
        st.caption("The address of this page keeps these choices: bookmark it, share it.")
    filters: dict[str, Any] = {"kind": kind or "all", "text": words.strip(), "experiment": experiment}
    if not seeds:
        filters |= {"round": tuple(rounds), "part": tuple(parts), "reversal_class": tuple(classes)}
        if drift is not None and drift != (0.0, facts["top"]):
            filters["drift"] = drift
    return tuple((name, value) for name, value in filters.items() if value), "clip_id" if seeds else SORTS[sort]


def summary(facts: dict[str, Any]) -> None:
    """How many clips there are, and how far the rollouts of each round drifted."""
    left, right = st.columns([5, 6], gap="large")
    with left:
        counts = " · ".join(f"{count:,} {plain(kind)}" for kind, count in facts["kinds"].items())
        st.subheader(f"{counts} clips", anchor=False)
        st.caption(
            "A **corrective clip** is a model's own rollout played backwards: it starts at frames that went wrong and "
            "ends at real ones. Training on it teaches the model the way back. **Drift** tells how far a rollout went "
            "wrong, in units of natural variation: about 1 is what real videos do by themselves."
        )
        lines = ["| round | clips | median drift | 95 % below |", "|:--|--:|--:|--:|"]
        for name, count in facts["clips"].items():
            middle, high = (f"{one:.2f}" for one in facts["quantiles"][name]) if name in facts["quantiles"] else "--"
            lines.append(f"| {plain(name)}{' (seed clips)' if name == 'r0' else ''} | {count:,} | {middle} | {high} |")
        st.markdown("\n".join(lines))
    with right:
        if facts["bins"]:
            chart = (
                alt.Chart(pd.DataFrame(facts["bins"]))
                .mark_line(interpolate="step-after", strokeWidth=2)
                .encode(
                    x=alt.X("drift:Q", title="drift (natural variations)"),
                    y=alt.Y("clips:Q", title="clips"),
                    color=alt.Color("round:N", title=None, legend=alt.Legend(orient="top-right")),
                )
                .properties(height=290, title=alt.Title("Drift of the rollouts of each round", fontSize=13))
            )
            st.altair_chart(chart)


def open_clip(uri: str, version: str, clip_id: str) -> None:
    """All about a clip, and how to close it."""
    bar = st.container(horizontal=True, vertical_alignment="center")
    with bar:
        st.code(printable(clip_id), language=None, width="content")
        st.space("stretch")
        st.button("close", icon=":material/close:", key="close", on_click=choose, args=(None,))
    try:
        found = details(uri, version, clip_id)
    except StoreError as error:
        st.error("This clip cannot be shown.")
        st.code(printable(str(error)), language=None, wrap_lines=True)
        return
    show_clip(found)


def grid(uri: str, version: str, table: pa.Table, columns: int, opened: str | None = None) -> None:
    """One page of clips, playing."""
    pages = max(1, -(-table.num_rows // PER_PAGE))
    page = min(_page(), pages)
    bar = st.container(horizontal=True, vertical_alignment="center", key="pages")
    shown = plain_rows(table.slice((page - 1) * PER_PAGE, PER_PAGE))
    with bar:
        first = (page - 1) * PER_PAGE + 1
        numbers = f", {first:,} to {first + len(shown) - 1:,}" if shown and pages > 1 else ""
        st.markdown(f"**{table.num_rows:,} {'clip' if table.num_rows == 1 else 'clips'}**{numbers}", width="stretch")
        st.button("", icon=":material/chevron_left:", key="back", disabled=page == 1, on_click=turn, args=(page - 1,))
        st.button(
            "", icon=":material/chevron_right:", key="on", disabled=page == pages, on_click=turn, args=(page + 1,)
        )
    if not shown:
        st.info("No clip passes these filters: widen the drift, or take one away.")
        return
    width, height = shown[0]["width"], shown[0]["height"]
    smooth = "pixelated" if max(width, height) <= SMALL else "auto"
    st.html(f"<style>video {{aspect-ratio: {width:d} / {height:d}; image-rendering: {smooth}}}</style>")
    try:
        found = videos(uri, version, tuple((one["table"], one["clip_id"]) for one in shown))
    except StoreError as error:
        st.error("The catalog knows these clips, but their videos cannot be read.")
        st.code(printable(str(error)), language=None, wrap_lines=True)
        return
    for start in range(0, len(shown), columns):
        places = st.columns(columns, gap="small")
        for number, (place, row) in enumerate(zip(places, shown[start : start + columns], strict=False), start):
            with place, st.container(border=True, key=f"card-{number}"):
                play(found.get(row["clip_id"], b""), f"card {number}")
                experiment = f"{plain(row['experiment'])} · " if "experiment" in row else ""
                st.caption(f"{experiment}{plain(row['round'])} · {plain(_drift(row), '*')}")
                st.text(printable(row["prompt"]))
                st.button(
                    "open", key=f"open-{number}", on_click=choose, args=(row["clip_id"],), width="stretch",
                    type="primary" if row["clip_id"] == opened else "secondary",
                )  # fmt: skip


def _drift(row: dict[str, Any]) -> str:
    """What a card says of the drift: how much, and what moved most."""
    if row["drift"] is None:
        return "real video" if row["kind"] == "seed" else "drift unknown"
    part = row["drift_part"] if row["drift_part"] != NO_PART else None
    return f"**{row['drift']:.2f}** {part or ''}"


def _page() -> int:
    text = st.query_params.get("page", "1")
    return max(1, int(text)) if text.isdecimal() and len(text) < 9 else 1


def turn(page: int) -> None:
    st.query_params["page"] = str(page)


def first_page() -> None:
    """A changed filter starts at its first page."""
    st.query_params.pop("page", None)


def choose(clip_id: str | None) -> None:
    if clip_id is None:
        st.query_params.pop("clip", None)
    else:
        st.query_params["clip"] = clip_id


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data/store")
