"""A clip as the page of `bagger browse` shows it: its videos side by side, and tabs of what is known about it.

Notable: texts of the data are hostile, see flows/page.py; what goes into markdown passes `plain`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from store.errors import printable
from store.filters import drift_parts
from store.schema import CATALOG

PARTS = tuple(drift_parts(CATALOG))
PLAYABLE_PROFILES = (66, 77, 88, 100)  # of H.264, 4:2:0: baseline, main, extended, high

DRIFT = (
    "How far a rollout moved away from its own real first frames, in units of how much real videos vary: about 1 is "
    "what real clips do by themselves. The rms of four signed parts; a part below 0 means it got less."
)
UNITS = {  # as in model/features.py
    "saturation": "colourfulness, 0 to 1",
    "contrast": "spread of luma, 0 to 0.5",
    "sharpness": "fine detail, nepers",
    "motion": "change of luma a frame, 0 to 1",
}


def show_clip(found: dict[str, Any]) -> None:
    """A clip beside its rollout and its seed clip, and all that is known about it."""
    facts, parts, score = found["facts"], found["videos"], found["score"]
    titles = {
        "clip": ("Corrective clip", "what the model trains on: drifted → real"),
        "rollout": ("Rollout", "as the model generated it: real → drifted"),
        "seed": ("Seed clip", "the real video it set out from"),
    }
    for place, (name, row) in zip(st.columns(3), parts.items(), strict=False):
        with place, st.container(gap="xsmall", key=f"video-{name}"):
            st.markdown(f"**{titles[name][0]}**")
            play(row["video"], titles[name][0])
            st.caption(titles[name][1])
            st.text(printable(row["prompt"]))
    clip = next(iter(parts.values()))
    length = f"{clip['num_frames']} frames, {clip['num_frames'] / clip['fps']:.3g} s at {clip['fps']:.3g} fps"
    st.caption(f"{plain(facts['round'])} · {length}, {clip['width']} x {clip['height']} pixels, in a loop")
    names = ["Drift", "Lineage", "Rewrite", "Training", "All facts"]
    tabs = dict(zip(names, st.tabs(names), strict=True))
    with tabs["Drift"]:
        drift_tab(facts, score, parts.get("rollout"))
    with tabs["Lineage"]:
        st.caption("What it was made of, back to the source file and the first model.")
        st.code(found["tree"], language=None)
    with tabs["Rewrite"]:
        rewrite_tab(clip)
    with tabs["Training"]:
        training_tab(found["uses"])
    with tabs["All facts"]:
        st.code(json.dumps(facts, indent=1, ensure_ascii=False), language=None)


def drift_tab(facts: dict[str, Any], score: dict[str, Any] | None, rollout: dict[str, Any] | None) -> None:
    """Drift, its parts as bars, and the curve of every part."""
    if score is None:
        st.info("Drift is measured on rollouts; this is a real video." if facts["kind"] == "seed" else "Not scored.")
        return
    values = [{"part": one, "drift": score[f"drift_{one}"]} for one in PARTS]
    left, right = st.columns([2, 5])
    with left:
        st.metric("Drift", f"{score['drift']:.2f}", help=DRIFT, border=True)
        gate = printable(score["gate"])
        st.text(f"gate: {gate or 'passed'}\nby {printable(score['scorer'])}")
    with right:
        bars = (
            alt.Chart(pd.DataFrame(values))
            .mark_bar()
            .encode(
                x=alt.X("drift:Q", title="part of the drift (natural variations)"),
                y=alt.Y("part:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False)),
                color=alt.condition(alt.datum.drift < 0, alt.value("#2f6fde"), alt.value("#e07a2f")),
            )
            .properties(height=165)
        )
        st.altair_chart(bars)
    prefix = int(rollout["prefix_frames"]) if rollout else 0
    st.caption(
        f"The rollout frame by frame, in the order it was generated: {prefix} real frames up to the line, then the "
        "model's. The corrective clip plays this from right to left."
    )
    curves = pd.DataFrame(
        [
            {"curve": f"{one}: {UNITS[one]}", "frame": n, "value": value}
            for one in PARTS
            for n, value in enumerate(score[one])
        ]
    )
    lines = alt.Chart(curves).mark_line(color="#2f6fde").encode(
        x=alt.X("frame:Q", title=None, axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
    )  # fmt: skip
    rule = alt.Chart(curves).mark_rule(strokeDash=[4, 3], color="#888").encode(x=alt.datum(prefix - 0.5))
    facets = alt.layer(lines, rule).properties(width=235, height=80).facet(
        facet=alt.Facet("curve:N", sort=[f"{one}: {UNITS[one]}" for one in PARTS], title=None), columns=2
    )  # fmt: skip
    st.altair_chart(facets.resolve_scale(y="independent"), width="content")
    oracle = {key.removeprefix("oracle_"): value for key, value in score.items() if key.startswith("oracle_")}
    if any(value is not None for value in oracle.values()):
        st.caption("The toy world's oracle, which knows what should be there:")
        st.text(
            " · ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in oracle.items() if value is not None)
        )


def rewrite_tab(clip: dict[str, Any]) -> None:
    """How the prompt became one of the video played backwards."""
    if "rewrite_id" not in clip:
        st.info("A seed clip has the caption of its source.")
        return
    st.caption("Played backwards, a video needs another caption. This is who wrote it, and how it was checked.")
    for label, name in (("prompt of the rollout", "source_prompt"), ("prompt of this clip", "prompt")):
        st.caption(label)
        st.code(printable(clip[name]), language=None, wrap_lines=True)
    verdicts = " · ".join(f"{one['name']} {'✓' if one['pass'] else '✗'}" for one in json.loads(clip["verdicts"]))
    told = {
        "reversal class": clip["reversal_class"],
        "rewriter": f"{clip['rewriter_kind']} {clip['rewriter_version']}",
        "marker": clip["marker_style"],
        "fallback from": clip["fallback_from"] or "-",
        "checks": verdicts or "none",
        "attempts": clip["attempts"],
        "id": clip["rewrite_id"],
    }
    st.text("\n".join(f"{key}: {printable(str(value))}" for key, value in told.items()))
    st.caption("what the rewriter answered, unedited")
    st.code(printable(clip["raw_output"]), language=None, wrap_lines=True)


def training_tab(uses: Sequence[dict[str, Any]]) -> None:
    """Which models saw the clip, and at which steps."""
    if not uses:
        st.info("No training has used this clip, or the store has no table `uses` yet.")
        return
    st.caption("Every model that trained on this clip, and the optimiser steps that saw it.")
    rows = [
        {
            "round": one["round"],
            "model": one["model_digest"] or "not trained yet",
            "times": len(one["steps"]),
            "steps": ", ".join(map(str, one["steps"])),
        }
        for one in sorted(uses, key=lambda one: (len(one["round"]), one["round"]))
    ]
    st.dataframe(rows, hide_index=True, height="content")


def play(video: bytes, what: str) -> None:
    """A video in a loop, or why it does not play. what: says which, and differs from every other one of the page."""
    if reason := unplayable(video):
        st.warning(reason, icon=":material/videocam_off:")
    if video:
        st.video(video, loop=True, autoplay=True, muted=True, alt=what)


def unplayable(video: bytes) -> str | None:
    """Why a browser may show nothing: not an mp4 with H.264, or one with undivided colour (a side of odd length)."""
    place = video.find(b"avcC")
    if place < 0 or len(video) < place + 6:
        return "no H.264 video: a browser cannot play it"
    profile = video[place + 5]
    if profile in PLAYABLE_PROFILES:
        return None
    return f"H.264 profile {profile}, not 4:2:0 (a side is odd?): many browsers do not play it; `bagger export` it"


def plain(text: str, keep: str = "") -> str:
    """A short text without what markdown or Streamlit would read as a sign."""
    return re.sub(rf"[^\w .{re.escape(keep)}-]", " ", printable(text))
