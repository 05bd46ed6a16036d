"""The report's tables, on hand-made evaluations whose numbers are known."""

import csv

import pytest

from flows import tables
from flows.evaluated import Evaluated, half_width, write_rows

PARTS = ("", "freezing", "freezing,darkening", "over-saturating")


def row(number: int, drift: float, **more) -> dict:
    moved = PARTS[number]
    names = {"drift_parts": moved, "drift_part": moved.partition(",")[0] or "none", "gates": ""}
    return {"clip_id": f"seed-{number}", "prompt": "p|q", "drift": drift, **names, **more}


def segment(number: int, index: int, **values) -> dict:
    return {"clip_id": f"seed-{number}", "segment": index, "start": 5.0 * index, "end": 5.0 * index + 5, **values}


def one(shift: float, clips: int = 4, metrics: dict | None = None) -> Evaluated:
    """Clip n has drift n + shift, ΔM of n + shift percent, in segment s flow of s + shift."""
    rows = [
        row(
            n, n + shift, drift_saturation=-shift, seam=2.0, oracle_error=0.5, bagger20_saturation=(n + shift) / 100,
            bagger20_naturalness=(n + shift) / 10, signed15_saturation=-(n + shift) / 50,
            framepack15_saturation=abs(n + shift), rolling5s_saturation=None, **(metrics or {}),
        )
        for n in range(clips)
    ]  # fmt: skip
    values = {name: value for name, value in (metrics or {}).items() if not name.startswith("bagger20")}
    parts = [
        segment(n, s, flow=(s + shift) / 100, naturalness=3.0 + n, oracle_error=0.25, flicker=None, **values)
        for n in range(clips)
        for s in range(2)
    ]
    return Evaluated(rows, {}, parts)


@pytest.fixture(scope="module")
def sets():
    return {"real": one(0.0), "r0": one(2.0), "r1": one(1.0)}


def cells(text: str, section: int = 0) -> list[list[str]]:
    """Rows of the n-th table of a Markdown text, with its head, without the rule."""
    found: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("| "):
            if not before.startswith("| "):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        before = line
    table = found[section]
    assert set(table[1]) == {"---"}
    assert {len(line) for line in table} == {len(table[0])}
    return [table[0], *table[2:]]


def test_summary_has_means_and_paired_changes(sets):
    text = tables.summary(sets)
    head, real, first, second = cells(text)
    assert head == ["round", "drift", "saturation", "failed a gate"]  # nobody knows the other parts
    assert real == ["real", "1.5", "0", "0"]
    assert first == ["r0", "3.5", "-2", "0"]
    assert second == ["r1", "2.5 (-1 ± 0)", "-1 (+1 ± 0)", "0"]  # every clip by one
    assert cells(text, 1)[0] == ["round", "seam"]
    assert cells(text, 2)[0] == ["round", "error"]


def test_a_change_is_of_clips_that_both_know(sets):
    lost = one(1.0)
    lost.rows[3] |= {"drift": None}
    lost.rows[0] |= {"drift": 5.0}
    change = tables.paired(lost, sets["r0"], "drift")
    assert change.tolist() == [3.0, -1.0, -1.0]
    cell = cells(tables.summary({"real": sets["real"], "r0": sets["r0"], "r1": lost}))[3][1]
    assert cell == f"{(5 + 2 + 3) / 3:.3g} (+0.33 ± {half_width([3, -1, -1]):.2g})"


def test_parts_are_shares_of_clips(sets):
    text, rows = tables.parts(sets)
    head, real, *_ = cells(text)
    assert head == ["round", "over-saturating", "darkening", "freezing", "none"]
    assert real == ["real", "25% (25%)", "0% (25%)", "50% (50%)", "25% (25%)"]
    assert {"round": "r1", "part": "freezing", "foremost": 0.5, "moved": 0.5} in rows
    assert len(rows) == 3 * 14  # thirteen names and none


def test_baggers_table_is_the_first_fifth_minus_all(sets):
    text, rows = tables.bagger(sets)
    head, real, *_ = cells(text)
    assert head == ["round", "Δ naturalness*", "Δ saturation", "saturation, late − early", "drift in saturation"]
    spread = half_width([0, 1, 2, 3])
    assert real[1:4] == [f"-0.15 ± {spread / 10:.2g}", f"0.015 ± {spread / 100:.2g}", f"-0.03 ± {spread / 50:.2g}"]
    assert "Aesthetic quality was not measured" in text
    assert [line["round"] for line in rows] == ["real", "r0", "r1"]
    assert rows[0]["delta_naturalness"] == pytest.approx(-0.15)
    assert rows[0]["delta_saturation_ci95"] == pytest.approx(spread / 100, rel=1e-4)
    assert not any("aesthetic" in name for name in rows[0])


def test_baggers_table_has_aesthetic_quality_in_percent_if_it_was_measured():
    metrics = {"bagger20_aesthetic_quality": 0.0512, "aesthetic_quality": 0.5}
    text, rows = tables.bagger({"real": one(0.0), "r0": one(1.0, metrics=metrics)})
    head, real, first = cells(text)
    assert head[1] == "Δ Aesthetic"
    assert (real[1], first[1]) == ("", "5.12 ± 0")
    assert "was not measured" not in text
    assert rows[1]["delta_aesthetic_quality"] == pytest.approx(5.12)


def test_resampling_forcings_table_without_networks_names_what_it_has(sets):
    text, rows = tables.resampling(sets)
    head, real, first, _ = cells(text)
    assert head == ["round"] + [
        f"{span}: {name}" for span in ("0–5 s", "5–10 s") for name in ("flow ~", "naturalness ↓", "oracle error ↓")
    ]
    assert real == ["real", "0", "4.5", "0.25", "1", "4.5", "0.25"]
    assert first[1::3] == ["2", "3"]  # flow in percent
    assert "quality" not in " ".join(head)
    assert cells(text, 1)[0][2:] == ["temporal: flow ~", "visual: naturalness ↓", "truth: oracle error ↓"]
    assert [(line["round"], line["segment"]) for line in rows] == [(k, s) for k in sets for s in (0, 1)]
    assert rows[3]["flow"] == pytest.approx(0.03)
    assert rows[0]["temporal_quality"] is None


def test_a_group_of_vbench_stands_only_where_all_its_parts_do():
    some = {"subject_consistency": 0.9, "background_consistency": 0.8, "clip_score": 0.3}
    text, rows = tables.resampling({"r0": one(0.0, metrics=some)})
    assert cells(text)[0][1:5] == [
        "0–5 s: subject consistency ↑", "0–5 s: naturalness ↓", "0–5 s: clip score ↑", "0–5 s: oracle error ↓"
    ]  # fmt: skip
    assert cells(text)[1][1] == "90"
    whole = some | {"motion_smoothness": 1.0, "dynamic_degree": 1.0, "overall_consistency": 0.2}
    text, rows = tables.resampling({"r0": one(0.0, metrics=whole)})
    assert cells(text)[0][1] == "0–5 s: temporal quality ↑"
    assert cells(text)[1][1] == f"{100 * (0.9 + 0.8 + 1 + 0.5) / 3.5:.4g}"
    assert rows[0]["text_alignment"] == pytest.approx(0.25)


def test_deltas_by_definition(sets):
    text, rows = tables.deltas(sets)
    assert cells(text)[0] == ["", "real", "r0", "r1"]
    spread = f"{half_width([0, 1, 2, 3]):.2g}"
    assert cells(text)[1] == ["saturation", f"1.5 ± {spread}", f"3.5 ± {spread}", f"2.5 ± {spread}"]
    assert "## rolling5s" in text
    assert "No clip is long enough for it." in text
    assert {line["definition"] for line in rows} == {"bagger20", "framepack15", "signed15"}
    assert {line["clips"] for line in rows} == {4}


def test_a_cell_cannot_break_out_of_its_table():
    assert tables.markdown(["a"], [["x|y"]]).splitlines() == ["| a |", "| --- |", "| x\\|y |"]


def test_rows_with_different_columns_make_one_file(tmp_path):
    write_rows(tmp_path / "t.csv", [{"b": 1, "a": None}, {"c": 'x,"y"'}], ["a"])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ["", "1", ""], ["", "", 'x,"y"']]
