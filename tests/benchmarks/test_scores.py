"""The benchmark of the scores runs, and its statistics are what they say: rank correlations, intervals, d'."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks import agreement, scores
from benchmarks.agreement import AgreementError
from model import drift, oracle
from model.rng import numpy_generator
from tests.conftest import rollout_rows, score_rows, seal

CLIPS, FRAMES, PREFIX = 24, 9, 3


def test_rank_correlation_is_spearmans_with_ties_and_with_weights():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(0, 1, 40)
    y += 0.5 * x
    one = np.zeros(40)
    weights = rng.integers(0, 4, (5, 40))
    found = agreement.rank_correlation(x, y, one, np.concatenate([np.ones((1, 40)), weights]))
    assert found[0] == pytest.approx(spearmanr(x, y).statistic)
    for value, count in zip(found[1:], weights, strict=True):
        assert value == pytest.approx(spearmanr(np.repeat(x, count), np.repeat(y, count)).statistic)
    assert np.isnan(agreement.rank_correlation(np.ones(40), y, one, np.ones((1, 40)))).all()


def test_pooling_does_not_thank_a_score_for_telling_rounds_apart():
    rng = np.random.default_rng(1)
    groups = np.repeat([0, 1, 2], 60)
    x, y = (10 * groups + rng.normal(0, 1, 180) for _ in range(2))
    assert spearmanr(x, y).statistic > 0.8
    assert abs(agreement.rank_correlation(x, y, groups, np.ones((1, 180)))[0]) < 0.2
    within = x + 3 * rng.permutation(3)[groups]
    assert agreement.rank_correlation(x, within, groups, np.ones((1, 180)))[0] == pytest.approx(1)


def test_sensitivity_by_hand():
    clean, degraded = np.array([0.0, 2.0]), np.array([4.0, 8.0])  # variances 2 and 8
    assert scores.sensitivity(clean, degraded) == pytest.approx(5 / np.sqrt(5))
    assert scores.sensitivity(degraded, clean) == -scores.sensitivity(clean, degraded)
    assert scores.sensitivity(clean * 0, clean * 0) == 0
    assert scores.sensitivity(clean * 0, clean * 0 - 1) == -np.inf


def project(root, rounds=("r1", "r2")) -> None:
    """Rollouts whose drift is their oracle error but for a little noise, and whose exposure says nothing of it."""
    for name in rounds:
        rng = numpy_generator("agreement-test", name)
        wrong = rng.random(CLIPS)
        parents, rows = rollout_rows(name, "model-0")[0], score_rows(name)[0]
        ids = [f"rollout-{name}-{n}" for n in range(CLIPS)]
        seal(root / "data", f"rollouts_{name}", [
            parents | {"rollout_id": one, "seed_clip_id": f"seed-{n}", "prefix_frames": PREFIX, "num_frames": FRAMES}
            for n, one in enumerate(ids)
        ])  # fmt: skip
        curves = [
            json.dumps({"error": [None] * 7 + [wrong[n]] * 2, "object_present": [1 - wrong[n]] * FRAMES})
            for n in range(CLIPS)
        ]
        seal(root / "data", f"scores_{name}", [
            rows | {"rollout_id": one, "drift": wrong[n] + 0.1 * rng.random(), "drift_exposure": rng.normal(),
                    "drift_detail": -wrong[n], "ssim_first": np.linspace(1, 1 - wrong[n], FRAMES).tolist(),
                    "latent_drift": None if n % 2 else -wrong[n], "naturalness_drift": None,
                    "oracle_error": 0.5, "oracle_curves": curves[n]}
            for n, one in enumerate(ids)
        ])  # fmt: skip
        folder = root / "evaluation" / name
        folder.mkdir(parents=True)
        with (folder / "scores.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip_id", "drift", "signed15_ssim_first", "oracle_error", "oracle_count_error"])
            writer.writerows([f"seed-{n}", wrong[n], -wrong[n], wrong[n] ** 2, ""] for n in range(CLIPS))


def test_agreement_over_a_project(tmp_path, capsys):
    project(tmp_path)
    found = dict(agreement.sources(tmp_path))
    short, long = found["Rollouts of the training length"], found["Long rollouts"]

    rho, low, high = agreement.correlate(short, "drift", "oracle error", ["r1", "r2"], 400)
    assert 0.85 < low < rho < high <= 1
    assert (rho, low, high) == agreement.correlate(short, "drift", "oracle error", ["r1", "r2"], 400)
    low, high = agreement.correlate(short, "|exposure|", "oracle error", ["r1", "r2"], 400)[1:]
    assert low < 0 < high
    for score in ("|detail|", "ssim_first falls"):
        assert agreement.correlate(short, score, "oracle object_present", ["r2"], 50)[0] == pytest.approx(1), score
    assert agreement.correlate(short, "latent_drift", "oracle error", ["r1"], 50)[0] == pytest.approx(-1)
    assert np.isnan(agreement.correlate(short, "naturalness_drift", "oracle error", ["r1"], 50)).all()
    assert agreement.correlate(long, "ssim_first falls", "oracle error", ["r1"], 50)[0] == pytest.approx(1)
    assert np.isnan(agreement.correlate(long, "drift", "oracle count_error", ["r1"], 50)).all()
    assert list(short.values) == [*agreement.SCORES, *(f"oracle {one}" for one in oracle.MEASURES)]

    scores.main(["agreement", "--project", str(tmp_path), "--resamples", "50"])
    printed = capsys.readouterr().out
    assert "| score | r1 (24) | r2 (24) | all (48) |" in printed
    assert "| naturalness_drift | – | – | – |" in printed
    assert printed.count("## ") == 2
    with pytest.raises(AgreementError, match="has neither data/store/scores_rK nor evaluation"):
        list(agreement.sources(tmp_path / "data"))


def test_a_bed_is_scored(monkeypatch, capsys):
    monkeypatch.setattr(scores, "NATURAL", scores.Bed("natural", 18, 4, 32, 48))
    scores.main(["dprime", "--clips", "3", "--unit", "6", "--workers", "1"])
    printed = capsys.readouterr().out
    assert "## Toy: 9 clips of 14 frames, 32x32" in printed
    lines = {line.split(" | ")[0].strip("| "): line for line in printed.split("## Natural")[1].splitlines()}
    assert lines["saturation"].split(" | ")[1].strip("*").startswith("+")
    darkening = [float(lines[name].split(" | ")[3].strip("*")) for name in ("luma", "drift_exposure", "drift")]
    assert darkening[0] < -2 > darkening[1]
    assert darkening[2] > 1
    assert "| **" in lines["luma"]
    assert lines["darkening"].split(" | ")[5].endswith("100% (100%) |")

    scores.main(["unit", "--clips", "8", "--check", "1", "--others", "0", "--workers", "1"])
    fitted = capsys.readouterr().out
    assert fitted.startswith(f"GENERIC = Natural(scorer='{drift.SCORER}', prefix_frames=4, num_frames=18, num_clips=8")


def test_rounded_units_are_no_smaller_and_not_much_larger():
    clips = [scores.curves_of(scores.Bed("natural", 16, 4, 32, 48), n, None, 0.0) for n in range(8)]
    fitted = drift.fit(clips, 4)
    rounded = scores.rounded(fitted, clips)
    for name in drift.PARTS:
        assert fitted.sigma[name] <= rounded.sigma[name] <= 1.1 * fitted.sigma[name]
        limit = fitted.bound[name] * fitted.sigma[name]
        assert limit - 1e-9 <= rounded.bound[name] * rounded.sigma[name] <= 1.2 * limit
    assert rounded.drift_median == pytest.approx(fitted.drift_median, rel=0.1)


def test_cpu_time_counts_work_and_not_waiting():
    import time

    spent = scores.cpu_seconds({"wait": lambda: time.sleep(0.05), "work": lambda: sum(range(2_000_000))}, 2)
    assert spent["wait"] < 0.02 < spent["work"] + 0.02
    assert spent["work"] > 2 * spent["wait"]
