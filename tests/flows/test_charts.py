"""What the pictures show, as far as it is decided before matplotlib draws it, and that they are drawn."""

import numpy as np
import pytest

from flows import charts
from flows.evaluated import Evaluated, part_shares
from model import drift, oracle

NAN = float("nan")


def test_a_running_mean_takes_whole_chunks_at_the_ends_too():
    comb = np.array([1.0, 3, 1, 3, 1, 3])
    assert charts.running(comb, 2).tolist() == [2.0] * 6
    assert charts.running(np.arange(6.0), 3).tolist() == [1, 1, 2, 3, 4, 4]
    assert charts.running(np.array([NAN, 2.0, NAN, NAN]), 2).tolist()[:2] == [2, 2]
    assert np.isnan(charts.running(np.array([NAN, 2.0, NAN, NAN]), 2)[2:]).all()
    assert charts.running(np.zeros(0), 2).tolist() == []


def sets(*names: str) -> dict[str, Evaluated]:
    curves = {name: np.arange(4.0) for name in names}
    row = {"clip_id": "a", "drift": 2.0, "drift_part": "freezing", "drift_parts": "freezing", "gates": ""}
    row |= {f"drift_{part}": -1.0 for part in drift.PARTS}
    return {"real": Evaluated([row], {"a": curves}, []), "r0": Evaluated([row, row], {"a": curves}, [])}


def test_twelve_panels_with_the_truth_where_it_is_known():
    exact = [f"oracle_{name}" for name in oracle.MEASURES]
    plain = [*charts.SHOWN[:8], *charts.SPARE]
    assert charts.chosen(sets(*plain, *exact), []) == list(charts.SHOWN)
    assert charts.chosen(sets(*plain), []) == plain
    assert charts.chosen(sets(*plain, *exact, "clip_score"), ["clip_score"])[8:10] == ["clip_score", "oracle_error"]
    assert charts.chosen(sets("flow"), []) == ["flow"]


def test_every_part_of_the_drift_has_its_own_hue():
    assert set(charts.HUES) == set(drift.PARTS)
    hues = [hue for pair in charts.HUES.values() for hue in pair if hue]
    assert len(hues) == len(set(hues)) == sum(bool(name) for pair in drift.NAMES.values() for name in pair)


@pytest.mark.parametrize("exact", [True, False])
def test_pictures_are_drawn_and_alike_each_time(tmp_path, exact):
    from matplotlib import pyplot

    given = sets("flow", "saturation", *(["oracle_error"] if exact else []))
    names = charts.chosen(given, [])
    lines = np.arange(6.0).reshape(2, 3)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        charts.draw_drift(given, folder / "drift.png")
        charts.draw_parts({k: part_shares(one.rows) for k, one in given.items()}, folder / "parts.png")
        charts.draw_curves(given, names, 8, 2, 2, folder / "curves.png")
        charts.draw_distance({"kid": {"real": lines, "r0": lines[:, :2]}}, 8, 8, folder / "distance.png")
        charts.draw_losses({"r0": {"seed": [(1, 0.5), (2, 0.4)], "corrective": []}}, folder / "losses.png")
    pictures = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert pictures == ["curves.png", "distance.png", "drift.png", "losses.png", "parts.png"]
    for name in pictures:
        assert pyplot.imread(tmp_path / "a" / name)[..., :3].std() > 0.05
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert pyplot.get_fignums() == []
