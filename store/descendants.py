"""Descendants: from any id forwards to all that it became or was used in, as one tree.

    file -> seed clip -> rollouts of it -> score, corrective clip -> uses in training -> plan -> model -> next round ...
                      -> uses in training

Notable: a use is one clip in one plan, with every optimiser step that saw it. What a model generated, what a run made
and whatever else goes into the hundreds is told as a `group`: a count, a few examples, and the command that lists it.
A group leads on to what came of its members, counted again: rollouts, corrective clips, uses in each plan, the model.
What was told once is not told again: later mentions are marked `repeated`.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from store.graph import ROWS, SCORE, Graph, Node, Thing, derived_from
from store.lineage import resolve, whole
from store.query import equals

if TYPE_CHECKING:
    from store.database import Store

_PLAIN = re.compile(r"[A-Za-z0-9._/:-]+")  # what may be pasted into a shell
FAN = 12  # so many things of a kind are told one by one
EXAMPLES = 3
_OUTCOME = ("drift", "drift_ci95", "num_clips")  # of an evaluation
_BRIEF = ("stage", "round", "started_at_time", "seconds")  # of a run that is not the one asked for


def descendants(store: "Store", any_id: str, every: bool = False) -> Node:
    """The tree {id, type, **facts, children: [tree, …]} of what a thing became or was used in.

    any_id: as `store.lineage`. every: name each member of a group instead of a few, by its id alone; what came of
    them is told of the group, not of each.
    Types are those of `store.lineage`, and `use` ({plan_id, model_digest, clip_id, round, samples, steps}; steps count
    from 0) and `group` ({of, count, examples, list}; of uses also {plan_id, model_digest, round, samples, first_step,
    last_step}). Raises StoreError as `store.lineage`.
    """
    graph = Graph(store)
    root = whole(graph, resolve(graph, any_id))
    walk = _Forwards(graph, every)
    return graph.grow(root, walk.children, "children")


class _Forwards:
    def __init__(self, graph: Graph, every: bool):
        self.graph, self.every = graph, every
        self.members: set[str] = set()  # named by a group, which tells what came of them

    def children(self, thing: Thing, is_root: bool = True) -> list[Thing]:
        """What was made of a thing, or used it."""
        graph, named = self.graph, thing.id
        if named in self.members:
            return []
        match thing.type:
            case "file":
                return self._fan(thing, "seed", "seed clips", derived_from(named))
            case "seed":
                rollouts = self._fan(thing, "rollout", "rollouts", equals("seed_clip_id", named), "seed_clip_id")
                return [*rollouts, *self._uses(named)]
            case "rollout":
                score = graph.find(named + SCORE)
                clips = self._fan(thing, "clip", "corrective clips", equals("rollout_id", named), "rollout_id")
                return [*([score] if score else []), *clips]
            case "clip":
                return self._uses(named)
            case "rewrite":
                return self._fan(thing, "clip", "corrective clips", equals("rewrite_id", named), "rewrite_id")
            case "use":
                return [graph.thing(thing.row["plan_id"], "plan")]
            case "plan":
                made = [model for run in graph.users.get(named, ()) for model in graph.made(run)]
                return [*(graph.thing(one, "model") for one in dict.fromkeys(made)), *self._users(named)]
            case "model":
                return [*self._generated(thing), *self._initialised(named), *self._users(named)]
            case "round":
                return [graph.thing(one, "plan") for one in graph.round_plans(named)]
            case "run":
                return self._products(thing) if is_root else []
            case "group":
                return self._led_to(thing)
            case "score":
                return []
        return self._users(named)

    # Uses and runs.

    def _uses(self, clip_id: str) -> list[Thing]:
        return [self.graph.thing(row["use_id"], "use") for row in self.graph.uses_of([clip_id])]

    def _users(self, named: str) -> list[Thing]:
        return [self._brief(run) for run in self.graph.users.get(named, ())]

    def _brief(self, run_id: str) -> Thing:
        run = self.graph.run_row(run_id)
        outcome = {key: run["outputs"][key] for key in _OUTCOME if key in run["outputs"]}
        return Thing(run_id, "run", {key: run.get(key) for key in _BRIEF} | outcome)

    def _initialised(self, model_id: str) -> list[Thing]:
        trained = [made for run in self.graph.users.get(model_id, ()) for made in self.graph.made(run)]
        started = [one for one in dict.fromkeys(trained) if self.graph.model_parents(one)[1] == model_id]
        return [self.graph.thing(one, "model") for one in started]

    # Fans.

    def _fan(self, parent: Thing, kind: str, of: str, where: str, column: str | None = None) -> list[Thing]:
        """The things of a type that match a filter, or a group of them."""
        found = self.graph.ids(ROWS[kind][0], where)
        if len(found) <= FAN:
            return [self.graph.thing(one, kind) for one in found]
        return [self._group(parent, kind, of, found, [(column, parent.id)] if column else [])]

    def _group(
        self,
        parent: Thing,
        kind: str,
        of: str,
        ids: list[str],
        listing: Sequence[tuple[str, str]] = (),
        rounds: str | None = None,
        facts: Node | None = None,
    ) -> Thing:
        """listing: columns and values with which `bagger clips` lists the members, or the clips made of them. rounds:
        the filter of the catalog for the rounds that they belong to."""
        where_else = [self.graph.store.uri] if self.graph.store.is_registry else []
        command = None
        if listing and all(_PLAIN.fullmatch(one) for one in (*(value for _, value in listing), *where_else)):
            condition = " and ".join(f"{column} = '{value}'" for column, value in listing)
            command = f'bagger clips{" --kind seed" * (kind == "seed")} --where "{condition}"'
            command += "".join(f" --store {one}" for one in where_else)
        told: Node = {"of": of, "count": len(ids), "list": command, **(facts or {})}
        if not self.every and kind != "use":
            told["examples"] = ids[:EXAMPLES]
        return Thing(f"{parent.id}/{of.replace(' ', '-')}", "group", told, {"kind": kind, "ids": ids, "rounds": rounds})

    def _led_to(self, group: Thing) -> list[Thing]:
        """What a group leads to: its members if all are to be named, then what came of them, together."""
        kind, ids, rounds = (group.row[key] for key in ("kind", "ids", "rounds"))
        found = self._members(kind, ids) if self.every else []
        found += [self.graph.thing(one, "round") for one in self.graph.rounds_where(rounds)] if rounds else []
        if kind == "use":
            return [*found, self.graph.thing(group.facts["plan_id"], "plan")]
        if kind == "seed" and (rollouts := self.graph.ids_among("rollouts", "seed_clip_id", ids)):
            found.append(self._group(group, "rollout", "rollouts", rollouts))
        if kind == "rollout" and (clips := self.graph.ids_among("clips", "rollout_id", ids)):
            found.append(self._group(group, "clip", "corrective clips", clips))
        if kind == "rewrite" and (clips := self.graph.ids_among("clips", "rewrite_id", ids)):
            found.append(self._group(group, "clip", "corrective clips", clips))
        if kind in ("seed", "clip"):
            found += self._trainings(group, ids)
        return found

    def _members(self, kind: str, ids: list[str]) -> list[Thing]:
        members = [Thing(one + SCORE if kind == "score" else one, kind) for one in ids]
        self.members |= {one.id for one in members}
        return members

    def _trainings(self, group: Thing, clip_ids: list[str]) -> list[Thing]:
        """Uses of a group's clips, a group for each plan."""
        plans: dict[str, list[Node]] = {}
        for row in self.graph.uses_of(clip_ids):
            plans.setdefault(row["plan_id"], []).append(row)
        found = []
        for plan, rows in plans.items():
            steps = [step for row in rows for step in row["steps"]]
            facts = {key: rows[0][key] for key in ("plan_id", "model_digest", "round")}
            facts |= {"samples": len(steps), "first_step": min(steps), "last_step": max(steps)}
            found.append(self._group(group, "use", f"uses in {plan}", [row["use_id"] for row in rows], facts=facts))
        return found

    def _generated(self, model: Thing) -> list[Thing]:
        """What a model generated, by round."""
        named = equals("model_digest", model.id)
        rounds: dict[str, list[str]] = {}
        for name in self.graph.store.tables("rollouts"):
            for row in self.graph.rows(name, named, ["round", "rollout_id"]):
                rounds.setdefault(row["round"], []).append(row["rollout_id"])
        groups = []
        for name in sorted(rounds, key=lambda one: (len(one), one)):
            where = f"{named} AND {equals('round', name)}"
            listing = [("model_digest", model.id), ("round", name)]
            of = f"rollouts of round {name}"
            groups.append(self._group(model, "rollout", of, sorted(rounds[name]), listing, where))
        return groups

    def _products(self, run: Thing) -> list[Thing]:
        """What a run made: rows of tables, counted, and the things that its record names."""
        where = equals("was_generated_by", run.id)
        found = []
        for kind, of in (
            ("seed", "seed clips"),
            ("rollout", "rollouts"),
            ("rewrite", "rewrites"),
            ("score", "scores"),
            ("clip", "corrective clips"),
        ):
            if ids := self.graph.ids(ROWS[kind][0], where):
                in_catalog = kind in ("seed", "clip")
                listing = [("was_generated_by", run.id)] if in_catalog else []
                found.append(self._group(run, kind, of, ids, listing, where if in_catalog else None))
        return [*found, *(self.graph.thing(one, one.partition("-")[0]) for one in self.graph.made(run.id))]
