"""What happens to cohorts: they are calculated, edited, given members and deleted.

What their filters mean is in cohort_filters.py, how they look in definitions.py, how they list in rest.py.
Facts: query_api.md 4.3; `posthog/models/cohort/{cohort,util,sql}.py` in PostHog/posthog.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.cohort_filters import filters_sql
from posthog_emulator.deletion import AT_ONCE, checked_uuids, uuids_sql
from posthog_emulator.envelope import ApiError
from posthog_emulator.persons import PERSON_NAMESPACE
from posthog_emulator.state import Project, State

EDITABLE = {"name", "description", "filters"}


class Cohorts:
    """The cohorts of every project, and their members in ClickHouse."""

    def __init__(self, clickhouse: ClickHouse, state: State) -> None:
        self._clickhouse = clickhouse
        self._state = state

    def recalculate(self, project: Project, cohort_ids: Any) -> list[dict[str, Any]]:
        """Find the members of dynamic cohorts anew, under a version of their own that then counts.

        The members of older versions are deleted at once; PostHog does that some time later. (It no longer
        writes the rows of sign -1 that the table could collapse them with.)
        """
        dynamic = [one for one in _visible(project) if not one["is_static"]]
        if cohort_ids is not None:
            if not isinstance(cohort_ids, list):
                raise ApiError(400, "cohort_ids is a list of numbers.", attr="cohort_ids")
            dynamic = [_find(project, one, is_static=False) for one in cohort_ids]
        conditions = [filters_sql(one["filters"]) for one in dynamic]
        for cohort, condition in zip(dynamic, conditions, strict=True):
            self._calculate(project, cohort, condition)
        return [{name: one[name] for name in ("id", "version", "count")} for one in dynamic]

    def change_members(self, project: Project, cohort_id: int, *, add: Any, remove: Any) -> dict[str, int]:
        """Add people to a static cohort and remove others from it; both as often as one likes."""
        cohort = _find(project, cohort_id, is_static=True)
        leaving, joining = checked_uuids(remove), checked_uuids(add)
        rows = f"FROM person_static_cohort WHERE team_id = {project.id} AND cohort_id = {cohort_id}"
        before = self._ids(f"SELECT DISTINCT toString(person_id) {rows}")
        new = sorted(self._living(project, joining) - before)
        self._clickhouse.insert("person_static_cohort", static_cohort_rows(project.id, cohort_id, new))
        gone = set(leaving) & (before | set(new))
        if gone:
            theirs = f"person_id IN ({uuids_sql(gone)})"
            self._clickhouse.execute(f"DELETE {rows} AND {theirs} {AT_ONCE}")
        cohort["count"] = len((before | set(new)) - gone)
        if joining:
            cohort["last_calculation"] = self._now()
        return {"added": len(new), "removed": len(gone), "count": cohort["count"]}

    def edit(self, project: Project, cohort_id: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change a definition; its members and `last_calculation` stay until it is recalculated."""
        cohort = _find(project, cohort_id)
        cohort.update(changes)
        return cohort

    def delete(self, project: Project, cohort_id: int) -> dict[str, Any]:
        """Delete a cohort; the rows of its members stay, as in PostHog until it comes to delete them."""
        cohort = _find(project, cohort_id)
        cohort["deleted"] = True
        return cohort

    def _calculate(self, project: Project, cohort: dict[str, Any], condition: str) -> None:
        version = int(cohort["version"] or 0) + 1
        self._clickhouse.execute(
            "INSERT INTO cohortpeople (person_id, cohort_id, team_id, sign, version)"
            f" SELECT id, {cohort['id']}, {project.id}, 1, {version}"
            f" FROM ({_living_sql(project)}) WHERE {condition}"
        )
        rows = f"FROM cohortpeople WHERE team_id = {project.id} AND cohort_id = {cohort['id']}"
        members = len(self._ids(f"SELECT DISTINCT toString(person_id) {rows} AND version = {version}"))
        cohort.update(version=version, count=members, last_calculation=self._now(), errors_calculating=0)
        if self._ids(f"SELECT DISTINCT toString(version) {rows} AND version < {version}"):
            self._clickhouse.execute(f"DELETE {rows} AND version < {version} {AT_ONCE}")

    def _living(self, project: Project, person_ids: Sequence[str]) -> set[str]:
        if not person_ids:
            return set()
        listed = uuids_sql(person_ids)
        found = self._ids(f"SELECT toString(id) FROM ({_living_sql(project)}) WHERE id IN ({listed})")
        unknown = set(person_ids) - found
        if unknown:
            raise ApiError(400, f"No such people: {', '.join(sorted(unknown))}.", attr="add")
        return found

    def _ids(self, sql: str) -> set[str]:
        return {row[0] for row in orjson.loads(self._clickhouse.run(sql).rows_json)}

    def _now(self) -> str:
        return self._state.now().isoformat().replace("+00:00", "Z")


def static_cohort_rows(team_id: int, cohort_id: int, person_ids: Sequence[str]) -> pa.Table:
    """Members of a cohort made from a list."""
    return pa.table(
        {
            "id": [str(uuid.uuid5(PERSON_NAMESPACE, f"{cohort_id}:{one}")) for one in person_ids],
            "person_id": pa.array(person_ids, pa.string()),
            "cohort_id": pa.array([cohort_id] * len(person_ids), pa.int64()),
            "team_id": pa.array([team_id] * len(person_ids), pa.int64()),
        }
    )


def dynamic_cohort_rows(team_id: int, cohort_id: int, version: int, person_ids: Sequence[str]) -> pa.Table:
    """Members of a cohort as one calculation found them; only the newest version counts."""
    return pa.table(
        {
            "person_id": pa.array(person_ids, pa.string()),
            "cohort_id": pa.array([cohort_id] * len(person_ids), pa.int64()),
            "team_id": pa.array([team_id] * len(person_ids), pa.int64()),
            "sign": pa.array([1] * len(person_ids), pa.int8()),
            "version": pa.array([version] * len(person_ids), pa.uint64()),
        }
    )


def _living_sql(project: Project) -> str:
    return (
        "SELECT id, argMax(person.properties, person.version) AS properties FROM person"
        f" WHERE team_id = {project.id} GROUP BY id HAVING argMax(is_deleted, version) = 0"
    )


def _visible(project: Project) -> list[dict[str, Any]]:
    return [one for one in project.cohorts if not one["deleted"]]


def _find(project: Project, cohort_id: int, *, is_static: bool | None = None) -> dict[str, Any]:
    cohort = next((one for one in _visible(project) if one["id"] == cohort_id), None)
    if cohort is None:
        raise ApiError(404, f"No cohort {cohort_id!r}.")
    if is_static is not None and cohort["is_static"] != is_static:
        raise ApiError(400, f"Cohort {cohort_id} is {'not ' if is_static else ''}static.")
    return cohort
