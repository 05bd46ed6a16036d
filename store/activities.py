"""Which run made what and used what: the runs' ids of entities, read once and looked up from either end.

Notable: a run record may name a thing on both sides, as training names its plan. Such a run used it, unless no other
run made it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.database import Store

_COLUMNS = ("run_id", "stage", "round", "used", "generated", "started_at_time")


class Activities:
    """runs: run_id -> its record, without JSON, in order of start.
    makers, users: entity -> ids of the runs that made it, that used it. made, used: the same from the run's end.
    """

    def __init__(self, store: "Store"):
        self.runs: dict[str, dict[str, Any]] = {}
        self.makers: dict[str, list[str]] = {}
        self.users: dict[str, list[str]] = {}
        self.made: dict[str, list[str]] = {}
        self.used: dict[str, list[str]] = {}
        if store.is_registry and not store.has("runs"):
            return
        rows = store.read("runs", _COLUMNS).to_pylist()
        for row in sorted(rows, key=lambda row: (row["started_at_time"], row["run_id"])):
            self.runs[row["run_id"]] = row
        claims: dict[str, list[str]] = {}
        for run_id, run in self.runs.items():
            for one in dict.fromkeys(run["generated"]):
                claims.setdefault(one, []).append(run_id)
        for one, claimants in claims.items():
            self.makers[one] = [run_id for run_id in claimants if one not in self.runs[run_id]["used"]] or claimants
            for run_id in self.makers[one]:
                self.made.setdefault(run_id, []).append(one)
        for run_id, run in self.runs.items():
            self.used[run_id] = [one for one in dict.fromkeys(run["used"]) if run_id not in self.makers.get(one, ())]
            for one in self.used[run_id]:
                self.users.setdefault(one, []).append(run_id)
