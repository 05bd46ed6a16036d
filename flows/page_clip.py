"""A clip as the page of `bagger browse` shows it: its videos side by side, and tabs of what is known about it.

Notable: texts of the data are hostile, see flows/page.py; what goes into markdown passes `plain`.
"""

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from store.errors import printable
from store.schema import DRIFT_PARTS, FEATURES

PLAYABLE_PROFILES = (66, 77, 88, 100)  # of H.264, 4:2:0: baseline, main, extended, high

DRIFT = (
    "How far a rollout moved away from its own real first frames, in units of how much real videos vary: about 1 is "
    "what real clips do by themselves. The rms of seven signed parts; a part below 0 means it got less."
)
# The curves behind each part, as model/drift.py compares them; what an older scorer had stands last.
BEHIND = {
    "saturation": ("chroma_spread", "saturation"),
    "exposure": ("luma",),
    "contrast": ("contrast_coarse", "contrast"),
    "detail": ("detail", "sharpness"),
    "cast": ("cr", "cb"),
    "motion": ("flow", "motion"),
    "flicker": ("flicker",),
}
MOST_CURVES = 6  # drawn unasked
LATENT, ORACLE = "latent_curve", "oracle: "


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
        rewrite_tab(clip, found["rewrite"])
    with tabs["Training"]:
        training_tab(found["uses"])
    with tabs["All facts"]:
        st.code(json.dumps(facts, indent=1, ensure_ascii=False), language=None)


def drift_tab(facts: dict[str, Any], score: dict[str, Any] | None, rollout: dict[str, Any] | None) -> None:
    """Drift, what moved, its parts as bars, and the curves that are asked for."""
    if score is None:
        st.info("Drift is measured on rollouts; this is a real video." if facts["kind"] == "seed" else "Not scored.")
        return
    values = [{"part": one, "drift": score[f"drift_{one}"]} for one in DRIFT_PARTS if known(score[f"drift_{one}"])]
    left, right = st.columns([2, 5])
    with left:
        shown = f"{score['drift']:.2f}" if known(score["drift"]) else "unknown"
        st.metric("Drift", shown, help=DRIFT, border=True)
        moved = ", ".join(filter(None, (score["drift_parts"] or "").split(","))) or "nothing"
        told = {"moved": moved, "gates": score["gates"] or "passed", "by": score["scorer"]}
        if known(score["drift_z"]):
            told["robust z"] = f"{score['drift_z']:.1f}"
        st.text("\n".join(f"{name}: {printable(value)}" for name, value in told.items()))
    with right:
        if values:
            st.altair_chart(bars(values))
        else:
            st.info("Its parts were not measured, or by an older scorer: `dvc repro` measures them anew.")
    prefix = int(rollout["prefix_frames"]) if rollout else 0
    st.caption(
        f"The rollout frame by frame, in the order it was generated: {prefix} real frames up to the line, then the "
        "model's. The corrective clip plays this from right to left."
    )
    curves = curves_of(score)
    names = st.multiselect(
        "Curves", list(curves), default=first_curves(curves, values, score["drift_parts"] or ""),
        key=f"curves-{score['rollout_id']}", help="At first those behind the parts that moved.",
    )  # fmt: skip
    if names:
        charts = [chart(name, curves[name], prefix) for name in names]
        st.altair_chart(alt.concat(*charts, columns=2), width="content")
    oracle = {key.removeprefix("oracle_"): value for key, value in score.items() if key.startswith("oracle_")}
    numbers("The toy world's oracle, which knows what should be there:", oracle)
    numbers("Beyond the drift:", {name: score[name] for name in ("seam", "naturalness_drift", "latent_drift")})
    numbers("By pretrained extractors:", measures_of(score))


def bars(values: Sequence[dict[str, Any]]) -> alt.Chart:
    """The parts of the drift, signed."""
    chart = alt.Chart(pd.DataFrame(values)).mark_bar()
    return chart.encode(
        x=alt.X("drift:Q", title="part of the drift (natural variations)"),
        y=alt.Y("part:N", sort=None, title=None, axis=alt.Axis(labelOverlap=False)),
        color=alt.condition(alt.datum.drift < 0, alt.value("#2f6fde"), alt.value("#e07a2f")),
    ).properties(height=70 + 24 * len(values))


def curves_of(score: dict[str, Any]) -> dict[str, list[float | None]]:
    """Every curve that was measured, by name: of features, of the latents, of the toy world's oracle."""
    found = {name: score[name] for name in (*FEATURES, LATENT) if score[name]}
    exact = parsed(score["oracle_curves"])
    return found | {ORACLE + str(name): curve for name, curve in exact.items() if is_curve(curve)}


def first_curves(curves: Mapping[str, Any], values: Sequence[dict[str, Any]], moved: str) -> list[str]:
    """What is drawn unasked: the curves behind the parts that moved, or if nothing did, behind the largest ones."""
    names = moved.split(",")
    parts = [part for part, directions in DRIFT_PARTS.items() if any(one and one in names for one in directions)]
    size = {one["part"]: abs(one["drift"]) for one in values}
    parts = parts or sorted(size, key=lambda part: -size[part])[:2]
    wanted = [name for part in parts for name in BEHIND[part] if name in curves]
    return (wanted or [name for name in ("saturation", "luma", "contrast", "motion") if name in curves])[:MOST_CURVES]


def chart(name: str, curve: Sequence[float | None], prefix: int) -> Any:
    """One curve, with a line where the real frames end."""
    meaning = FEATURES.get(name) or ("distance from the prefix's statistics, a chunk each" if name == LATENT else "")
    points = alt.Chart(pd.DataFrame({"frame": range(len(curve)), "value": pd.array(list(curve), "Float64")}))
    layers = [
        points.mark_line(color="#2f6fde").encode(
            x=alt.X("frame:Q", title="chunk" if name == LATENT else None, axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        )
    ]
    if name != LATENT:
        layers.append(points.mark_rule(strokeDash=[4, 3], color="#888").encode(x=alt.datum(prefix - 0.5)))
    title = alt.Title(plain(name, ":"), subtitle=textwrap.wrap(meaning, 42), fontSize=12, subtitleFontSize=10)
    return alt.layer(*layers).properties(width=235, height=80, title=title)


def numbers(caption: str, found: Mapping[str, Any]) -> None:
    """What of these is known, in one line."""
    if any(known(value) for value in found.values()):
        st.caption(caption)
        shown = (f"{key.replace('_', ' ')} {value:.3f}" for key, value in found.items() if known(value))
        st.text(" · ".join(map(printable, shown)))


def measures_of(score: dict[str, Any]) -> dict[str, Any]:
    """name -> value of the pretrained metrics."""
    found = parsed(score["measures"]).get("measures")
    rows = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return {str(one.get("name")): one.get("value") for one in rows}


def parsed(text: str | None) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_curve(curve: Any) -> bool:
    return isinstance(curve, list) and all(one is None or isinstance(one, int | float) for one in curve)


def known(value: Any) -> bool:
    """Whether it is a number that says something."""
    return isinstance(value, int | float) and math.isfinite(value)


def rewrite_tab(clip: dict[str, Any], rewrite: dict[str, Any] | None) -> None:
    """How the prompt became one of the video played backwards."""
    if "rewrite_id" not in clip:
        st.info("A seed clip has the caption of its source.")
        return
    st.caption("Played backwards, a video needs another caption. This is who wrote it, and how it was checked.")
    for label, name in (("prompt of the rollout", "source_prompt"), ("prompt of this clip", "prompt")):
        st.caption(label)
        st.code(printable(clip[name]), language=None, wrap_lines=True)
    told = {
        "reversal class": clip["reversal_class"],
        "rewriter": clip["rewriter_kind"],
        "marker": clip["marker_style"],
        "id": clip["rewrite_id"],
    }
    if rewrite is None:
        lines(told)
        st.info("The store has no table of rewrites that tells more.")
        return
    told["rewriter"] += f" {rewrite['rewriter_version']}"
    checks = [f"{one.get('name')} {'✓' if one.get('pass') else '✗'}" for one in listed(rewrite["verdicts"])]
    known = {
        "why": "; ".join(rewrite["reasons"]),
        "changed": "; ".join(f"{one.get('source')} → {one.get('target')}" for one in listed(rewrite["spans"])),
        "checks": " · ".join(checks) or "none",
        "fallback from": rewrite["fallback_from"],
        "attempts": rewrite["num_attempts"],
        "author": rewrite["author"],
        "model": rewrite["model_id"] and f"{rewrite['model_id']} {rewrite['model_revision'] or ''}",
        "tokens": rewrite["input_tokens"] and f"{rewrite['input_tokens']} in, {rewrite['output_tokens']} out",
    }
    lines(told | {name: value for name, value in known.items() if value})
    st.caption("what the rewriter answered, unedited")
    st.code(printable(rewrite["raw_output"]), language=None, wrap_lines=True)


def lines(told: Mapping[str, Any]) -> None:
    """Facts, one a line."""
    st.text("\n".join(f"{key}: {printable(str(value))}" for key, value in told.items()))


def listed(text: str | None) -> list[dict[str, Any]]:
    """A JSON list's objects; none for anything else."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


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
