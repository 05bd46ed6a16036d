"""Where things lie, relative to the project's root: the same names that dvc.yaml gives to its stages."""

from pathlib import Path

STORE = Path("data/store")
INGEST_REPORT = Path("data/ingest_report.csv")
PLANS = Path("data/plans")
NATURAL = Path("data/natural.json")
CATALOG_MANIFEST = Path("data/catalog.json")
BASE = Path("models/base")
REPORTS = Path("reports")
OVERRIDES = Path("rewrites.yaml")
ANSWERS = Path("data/answers")


def manifest(table: str) -> Path:
    """Manifest of a sealed table."""
    return Path("data/manifests", f"{table}.json")


def answers(round: str) -> Path:
    """What a language model answered, as far as a round's rewrites came of it."""
    return ANSWERS / f"{round}.jsonl"


def plan(round: str) -> Path:
    """Mixture plan of a round; its summary lies beside it."""
    return PLANS / f"{round}.parquet"


def plan_summary(round: str) -> Path:
    """What a round's mixture plan amounts to."""
    return PLANS / f"{round}.json"


def sample(round: str, step: int) -> Path:
    """What a training showed after a step."""
    return Path("samples", round, f"step-{step:06d}.mp4")


def model(round: str) -> Path:
    """Pipeline folder of a round."""
    return Path("models", round)


def losses(round: str) -> Path:
    """Logged training losses of a round."""
    return Path("metrics", "losses", f"{round}.csv")


def evaluation(round: str) -> Path:
    """Long rollouts of a round: videos, curves.csv, scores.csv."""
    return Path("evaluation", round)


def metrics(round: str) -> Path:
    """Summary of a round's evaluation, for `dvc metrics`."""
    return Path("metrics", f"{round}.json")
