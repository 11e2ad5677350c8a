"""What a name means inside one SELECT: its tables, its aliases, its lambdas, and the project it runs for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posthog_emulator.hogql.errors import QueryError, ResolutionError
from posthog_emulator.hogql.parser import Node
from posthog_emulator.hogql.schema import Column, Table


@dataclass(frozen=True)
class Context:
    """Everything about the asker that changes the SQL."""

    team_id: int
    timezone: str = "UTC"
    converts_timezone: bool = True
    overrides_person_id: bool = True
    max_rows: int = 50_000
    default_rows: int = 100
    offset_allowed: bool = False
    hidden_columns: Sequence[str] = ()
    hidden_tables: Sequence[str] = ()
    denied_tables: Sequence[str] = ()
    query_log_delay_s: float = 0.0
    old_query_log: bool = False
    sessions_v3: bool = False
    cohorts: Sequence[tuple[int, int]] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """One printed expression and what is known of it.

    `column` is set for a bare datetime column: the SQL without its time zone wrapper.
    """

    sql: str
    kind: str = ""
    nullable: bool = True
    has_timestamp: bool = False
    column: str = ""


@dataclass
class Source:
    """One table of a FROM clause, and the columns that the query uses of it."""

    name: str
    sql_name: str
    columns: Mapping[str, Column]
    table: Table | None = None
    used: dict[str, Column] = field(default_factory=dict)
    needs_overrides: bool = False
    bound: str = ""  # of the stored rows of `sessions`, from the query's condition

    @property
    def is_events(self) -> bool:
        """Whether its rows are events, whose timestamps PostHog never wraps in null checks."""
        return self.table is not None and self.table.name == "events"


@dataclass
class Scope:
    """The names one SELECT can see."""

    sources: list[Source] = field(default_factory=list)
    aliases: dict[str, Value] = field(default_factory=dict)
    alias_nodes: dict[str, Node] = field(default_factory=dict)
    ctes: dict[str, Node] = field(default_factory=dict)
    lambdas: tuple[str, ...] = ()
    in_where: bool = False
    in_join: bool = False
    in_hint: bool = False
    in_aggregate: str = ""

    def source_named(self, name: str) -> Source | None:
        """Find a table by the name the query gives it."""
        return next((source for source in self.sources if source.name == name), None)

    def source_with(self, name: str) -> Source | None:
        """Find the one table that has a column or a group of columns of this name."""
        found = [source for source in self.sources if has_column(source, name)]
        if len(found) > 1:
            raise ResolutionError(f"Ambiguous query. Found multiple sources for field: {name}")
        return found[0] if found else None


def has_column(source: Source, name: str) -> bool:
    """Whether a table knows this name."""
    return name in source.columns or (source.table is not None and name in source.table.groups)


def find_column(source: Source, chain: Sequence[Any]) -> tuple[Column, Sequence[Any]]:
    """Follow `column.key` or `group.column.key` into a table; gives the column and the keys left over."""
    name = str(chain[0])
    groups = source.table.groups if source.table else {}
    if name in source.columns:
        return source.columns[name], chain[1:]
    if name in groups and len(chain) > 1 and chain[1] in groups[name]:
        return groups[name][str(chain[1])], chain[2:]
    raise QueryError(f"Unable to resolve field: {'.'.join(str(part) for part in chain)}")
