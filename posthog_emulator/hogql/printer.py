"""A HogQL SELECT as ClickHouse SQL: tables, team guards, joins, limits.

Every table of a query is guarded by the project's team_id, and only the top SELECT is limited. Expressions
are in `expressions.py`, the subqueries of lazy tables in `lazy.py`. What is not known is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from posthog_emulator.hogql.errors import HogQLError, QueryError, TableAccessDeniedError, not_emulated
from posthog_emulator.hogql.expressions import NEGATIVE, Expressions, and_sql, or_sql
from posthog_emulator.hogql.functions import find_function
from posthog_emulator.hogql.hogql_text import to_hogql
from posthog_emulator.hogql.lazy import Pushed, lazy_select, overrides_select
from posthog_emulator.hogql.literals import identifier
from posthog_emulator.hogql.parser import Node, parse_select
from posthog_emulator.hogql.recordings import RECORDING_TABLES, is_recordings, recordings_select
from posthog_emulator.hogql.schema import (
    NUMBERS,
    OLD_QUERY_LOG,
    QUERY_LOG,
    RAW_PERSONS,
    Column,
    Table,
    find_table,
)
from posthog_emulator.hogql.scope import Context, Scope, Source, Value
from posthog_emulator.hogql.session_where import BEGAN, session_bound
from posthog_emulator.hogql.sessions import (
    SESSION_TABLES,
    SESSIONS_V2,
    SESSIONS_V3,
    began_sql,
    is_sessions,
    sessions_select,
)

OFFSET_REFUSED = (
    "OFFSET is not supported on queries made with a personal API key. Use keyset pagination on the "
    "`timestamp` column instead, and for bulk data extraction, use batch exports."
)
JOINS = {
    "JOIN",
    "INNER JOIN",
    "LEFT JOIN",
    "LEFT OUTER JOIN",
    "RIGHT JOIN",
    "RIGHT OUTER JOIN",
    "FULL JOIN",
    "FULL OUTER JOIN",
    "CROSS JOIN",
}
# What PostHog appends to every query, as far as it can change a result (hogql.md, section 1).
PRINTER_SETTINGS: Mapping[str, object] = {
    "transform_null_in": 1,
    "max_ast_elements": 4_000_000,
    "max_expanded_ast_elements": 4_000_000,
}
NAMED = {"Alias", "Field", "Call"}
STATE_TABLES = {table.name: table for table in (*SESSION_TABLES, *RECORDING_TABLES)}
SET_OPERATORS = {"UNION ALL", "UNION DISTINCT", "INTERSECT", "EXCEPT"}
# Everything a SELECT of the parser can hold that is printed below; anything else is refused.
SELECT_PARTS = {
    "node", "ctes", "distinct", "select", "select_from", "prewhere", "where", "group_by", "having",
    "order_by", "limit", "offset", "limit_by",
}  # fmt: skip


@dataclass(frozen=True)
class Printed:
    """A query that can run.

    `page_rows` is set when the query has no LIMIT of its own: then its SQL asks for one row more than that.
    """

    sql: str
    columns: list[str]
    hogql: str
    page_rows: int | None


def print_query(text: str, context: Context) -> Printed:
    """Parse and print one query of the query API."""
    tree = _filled(parse_select(text), context.values)
    if not context.offset_allowed and _has_offset(tree):
        raise QueryError(OFFSET_REFUSED)
    return _Printer(context).print_top(tree)


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    """Put the values in place of their placeholders, before anything is made of the tree."""
    if isinstance(node, list):
        return [_filled(item, values) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("node") == "Placeholder":
        return {"node": "Constant", "value": _given(node["expr"], values)}
    return {name: _filled(item, values) for name, item in node.items()}


def _given(expression: Node, values: Mapping[str, Any]) -> Any:
    if expression["node"] != "Field":
        raise QueryError("You can not use expressions inside placeholders")
    name = ".".join(str(part) for part in expression["chain"])
    if name == "filters" and name not in values:
        return True
    if name not in values:
        raise QueryError(f"Unresolved placeholder: {{{name}}}")
    return values[name]


def _has_offset(node: Any) -> bool:
    """Whether an OFFSET stands anywhere but after SAMPLE."""
    if isinstance(node, list):
        return any(_has_offset(item) for item in node)
    if not isinstance(node, dict) or node.get("node") == "SampleExpr":
        return False
    if node.get("offset") is not None or node.get("offset_value") is not None:
        return True
    return any(_has_offset(item) for item in node.values())


@dataclass
class _Select:
    sql: str
    nodes: list[Node]
    columns: dict[str, Column]


class _Printer:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._expressions = Expressions(context, self._subquery)

    def print_top(self, tree: Node) -> Printed:
        limit = None
        if tree["node"] == "SelectQuery" and tree.get("limit") is None:
            limit = min(self._context.default_rows, self._context.max_rows)
            # One row more tells whether there are more (PostHog's HogQLHasMorePaginator).
            tree = {**tree, "limit": {"node": "Constant", "value": limit + 1}}
            self._context = replace(self._context, max_rows=self._context.max_rows + 1)
        select = self._select(tree, {}, is_top=True)
        names = [node["alias"] if node["node"] == "Alias" else to_hogql(node) for node in select.nodes]
        return Printed(select.sql, names, to_hogql(tree), limit)

    def _subquery(self, node: Node, scope: Scope) -> str:
        return self._select(node, scope.ctes).sql

    def _select(self, node: Node, ctes: dict[str, Node], *, is_top: bool = False) -> _Select:
        if node["node"] == "SelectSetQuery":
            return self._select_set(node, ctes, is_top=is_top)
        if node["node"] != "SelectQuery":
            raise not_emulated(f"a query that is a {node['node']}")
        unknown = [part for part, value in node.items() if value is not None and part not in SELECT_PARTS]
        if unknown:
            raise not_emulated(f"the clause {', '.join(unknown)}")
        return self._plain_select(node, _with_ctes(node, ctes), is_top=is_top)

    def _select_set(self, node: Node, ctes: dict[str, Node], *, is_top: bool) -> _Select:
        first = self._select(node["initial_select_query"], ctes, is_top=is_top)
        parts = [_in_parentheses(first.sql, node["initial_select_query"])]
        for item in node["subsequent_select_queries"]:
            if item["set_operator"] not in SET_OPERATORS:
                raise not_emulated(f"the operator {item['set_operator']}")
            branch = self._select(item["select_query"], ctes, is_top=is_top)
            parts += [item["set_operator"], _in_parentheses(branch.sql, item["select_query"])]
        sql = " ".join(parts)
        if node.get("limit") or node.get("offset"):
            sql = f"SELECT * FROM ({sql}){self._limits(node, Scope(ctes=ctes), is_top=is_top)}"
        return replace(first, sql=sql)

    def _plain_select(self, node: Node, ctes: dict[str, Node], *, is_top: bool) -> _Select:
        scope = Scope(ctes=ctes)
        joins = self._sources(node.get("select_from"), scope)
        nodes = list(self._expanded(node["select"], scope))
        values = [(item, self._expressions.print(item, scope)) for item in nodes]
        where = self._clause(node, "where", replace(scope, in_where=True))
        tail = self._tail(node, scope, is_top=is_top)
        on = [self._constraint(join, scope) for join in joins]
        prewhere = self._clause(node, "prewhere", replace(scope, in_where=True))
        pushed = self._pushed(node, scope)
        self._bound_sessions(node, scope)
        tables, guards = self._from(joins, on, scope, pushed)
        shown = _shown_aliases(nodes)
        listed = ", ".join(_with_alias(item, value, shown) for item, value in values)
        sql = f"SELECT {'DISTINCT ' if node.get('distinct') else ''}{listed}{tables}"
        sql += f" PREWHERE {prewhere}" if prewhere else ""
        condition = and_sql([*guards, *([where] if where else [])]) if guards or where else ""
        sql += f" WHERE {condition}" if condition else ""
        # What has no name is not seen from outside: posthog/hogql/resolver.py, visit_select_query.
        columns = {
            _column_name(item): Column(_column_name(item), value.kind, value.nullable)
            for item, value in values
            if item["node"] in NAMED
        }
        return _Select(sql + tail, nodes, columns)

    def _clause(self, node: Node, part: str, scope: Scope) -> str:
        return self._expressions.print(node[part], scope).sql if node.get(part) is not None else ""

    def _tail(self, node: Node, scope: Scope, *, is_top: bool) -> str:
        sql = ""
        if node.get("group_by"):
            sql += f" GROUP BY {self._listed(node['group_by'], scope)}"
        if node.get("having"):
            sql += f" HAVING {self._clause(node, 'having', scope)}"
        if node.get("order_by"):
            sql += f" ORDER BY {', '.join(self._order(item, scope) for item in node['order_by'])}"
        if node.get("limit_by"):
            sql += self._limit_by(node["limit_by"], scope)
        return sql + self._limits(node, scope, is_top=is_top)

    def _listed(self, nodes: Sequence[Node], scope: Scope) -> str:
        return ", ".join(self._expressions.print(item, scope).sql for item in nodes)

    def _order(self, node: Node, scope: Scope) -> str:
        unknown = [part for part, value in node.items() if value and part not in {"node", "expr", "order"}]
        if unknown:
            raise not_emulated(f"ORDER BY with {', '.join(unknown)}")
        return f"{self._expressions.print(node['expr'], scope).sql} {node['order']}"

    def _limit_by(self, node: Node, scope: Scope) -> str:
        offset = node.get("offset_value")
        columns = self._listed(node["exprs"], scope)
        number = self._expressions.print(node["n"], scope).sql
        skipped = f" OFFSET {self._expressions.print(offset, scope).sql}" if offset else ""
        return f" LIMIT {number}{skipped} BY {columns}"

    def _limits(self, node: Node, scope: Scope, *, is_top: bool) -> str:
        limit = node.get("limit")
        sql = ""
        if limit is not None:
            sql = f" LIMIT {self._capped(limit, scope) if is_top else self._listed([limit], scope)}"
        elif is_top and node["node"] == "SelectQuery":
            sql = f" LIMIT {min(self._context.default_rows, self._context.max_rows)}"
        if node.get("offset") is not None:
            sql += f" OFFSET {self._expressions.print(node['offset'], scope).sql}"
        return sql

    def _capped(self, limit: Node, scope: Scope) -> str:
        most = self._context.max_rows
        if limit["node"] == "Constant" and isinstance(limit["value"], int):
            return str(min(limit["value"], most))
        return f"min2({most}, {self._expressions.print(limit, scope).sql})"

    def _expanded(self, nodes: Sequence[Node], scope: Scope) -> Iterator[Node]:
        for node in nodes:
            chain = node.get("chain") or []
            if chain[-1:] != ["*"]:
                yield node
                continue
            sources = scope.sources if len(chain) == 1 else [self._source_named(chain[0], scope)]
            if not sources:
                raise QueryError("Cannot use '*' when there are no tables in the query")
            for source in sources:
                prefix = [source.name] if len(sources) > 1 or len(chain) > 1 else []
                for name, column in source.columns.items():
                    if column.in_asterisk:
                        yield {"node": "Field", "chain": [*prefix, name]}

    def _source_named(self, name: str, scope: Scope) -> Source:
        source = scope.source_named(name)
        if source is None:
            raise QueryError(f"Unable to resolve field: {name}")
        return source

    def _sources(self, join: Node | None, scope: Scope) -> list[Node]:
        """Put the tables of a FROM clause in scope; gives its joins in order."""
        joins = []
        while join is not None:
            self._check_join(join)
            source = self._source(join, scope)
            if scope.source_named(source.name):
                raise QueryError(f'Already have joined a table called "{source.name}". Can\'t redefine.')
            scope.sources.append(source)
            joins.append(join)
            join = join.get("next_join")
        return joins

    def _check_join(self, join: Node) -> None:
        if join.get("table_final"):
            raise QueryError("The FINAL keyword is not supported in HogQL as it causes slow queries")
        if join.get("column_aliases"):
            raise not_emulated("column aliases of a table")
        if join.get("join_type") and join["join_type"] not in JOINS:
            raise not_emulated(f"{join['join_type']}")

    def _source(self, join: Node, scope: Scope) -> Source:
        table = join["table"]
        if table["node"] in {"SelectQuery", "SelectSetQuery"}:
            return self._subquery_source(table, join.get("alias"), scope)
        if table["node"] != "Field":
            raise not_emulated(f"a {table['node']} as a table")
        name = ".".join(str(part) for part in table["chain"])
        if name in scope.ctes and scope.ctes[name]["node"] in {"SelectQuery", "SelectSetQuery"}:
            inner = replace(scope, ctes={key: item for key, item in scope.ctes.items() if key != name})
            return self._subquery_source(scope.ctes[name], join.get("alias") or name, inner)
        known = self._find_table(name)
        if (join.get("table_args") is not None) != (known is NUMBERS):
            raise QueryError(
                f"Table '{name}' {'requires' if known is NUMBERS else 'does not accept'} arguments"
            )
        sql_name = join.get("alias") or (name if known.is_lazy else known.stored)
        return Source(join.get("alias") or name, sql_name, self._visible(known), known)

    def _find_table(self, name: str) -> Table:
        table = STATE_TABLES.get(name) or find_table(name)
        if name in self._context.hidden_tables:
            raise QueryError(f"Unknown table `{name}`.")
        if name in self._context.denied_tables:
            raise TableAccessDeniedError(f"You don't have access to table `{name}`.")
        if table is SESSIONS_V2 and self._context.sessions_v3:
            return SESSIONS_V3
        return OLD_QUERY_LOG if table is QUERY_LOG and self._context.old_query_log else table

    def _visible(self, table: Table) -> dict[str, Column]:
        hidden = self._context.hidden_columns
        return {
            name: column for name, column in table.columns.items() if f"{table.name}.{name}" not in hidden
        }

    def _subquery_source(self, node: Node, alias: str | None, scope: Scope) -> Source:
        select = self._select(node, scope.ctes)
        source = Source(alias or f"_subquery{id(node)}", alias or "", select.columns)
        source.used["sql"] = Column(select.sql)
        return source

    def _constraint(self, join: Node, scope: Scope) -> tuple[str, str]:
        constraint = join.get("constraint")
        if constraint is None:
            return "", ""
        kind = constraint["constraint_type"]
        if kind == "USING":
            raise not_emulated("JOIN … USING")
        return kind, self._expressions.print(constraint["expr"], replace(scope, in_join=True)).sql

    def _from(
        self, joins: list[Node], on: list[tuple[str, str]], scope: Scope, pushed: Pushed
    ) -> tuple[str, list[str]]:
        """Print FROM, and the team guards that belong in WHERE rather than in ON."""
        sql, guards = "", []
        for position, (join, source, (kind, condition)) in enumerate(
            zip(joins, scope.sources, on, strict=True)
        ):
            guard = self._guard(source)
            is_left = (join.get("join_type") or "").startswith("LEFT")
            if guard and not (position and is_left):
                guards.append(guard)
            guarded = and_sql([condition, guard]) if guard and position and is_left else condition
            sql += f" {join['join_type']} " if position else " FROM "
            sql += self._table_sql(join, source, pushed)
            sql += f" {kind} {guarded}" if guarded else ""
            sql += self._override_join(source) if source.needs_overrides else ""
        return sql, guards

    def _guard(self, source: Source) -> str:
        if source.table is None or source.table.is_lazy or source.table is NUMBERS:
            return ""
        name = identifier(source.sql_name)
        team = f"equals({name}.team_id, {self._context.team_id})"
        if source.table.name != "query_log":
            return team
        # Written to ClickHouse at once, and seen when PostHog's server would have flushed its log.
        delay_us = int(self._context.query_log_delay_s * 1_000_000)
        seen = f"lessOrEquals({name}.ended_at_us, minus(toUnixTimestamp64Micro(now64(6)), {delay_us}))"
        return and_sql([team, seen])

    def _table_sql(self, join: Node, source: Source, pushed: Pushed) -> str:
        alias = f" AS {identifier(source.sql_name)}" if source.sql_name else ""
        if source.table is None:
            return f"({source.used['sql'].stored}){alias}"
        if is_sessions(source.table):
            team_id = self._context.team_id
            return f"({sessions_select(source.table, source.used, team_id, source.bound)}){alias}"
        if is_recordings(source.table):
            return f"({recordings_select(source.table, source.used, self._context.team_id)}){alias}"
        if source.table.is_lazy:
            context = self._context
            lazy = lazy_select(source.table, source.used, context.team_id, context.cohorts, pushed)
            return f"({lazy}){alias}"
        if source.table is NUMBERS:
            arguments = [self._expressions.print(item, Scope()).sql for item in join["table_args"]]
            return f"numbers({', '.join(arguments)}){alias}"
        alias = alias if source.sql_name != source.table.stored else ""
        return f"{source.table.stored}{alias}{self._sample(join)}"

    def _sample(self, join: Node) -> str:
        sample = join.get("sample")
        if not sample:
            return ""
        if sample.get("offset_value"):
            raise not_emulated("SAMPLE … OFFSET")
        return f" SAMPLE {to_hogql(sample['sample_value'])}"

    def _override_join(self, source: Source) -> str:
        override = identifier(f"{source.sql_name}__override")
        events = identifier(source.sql_name)
        return (
            f" LEFT OUTER JOIN ({overrides_select(self._context.team_id)}) AS {override} "
            f"ON equals({events}.distinct_id, {override}.distinct_id)"
        )

    def _bound_sessions(self, node: Node, scope: Scope) -> None:
        """Note what the condition says of when sessions began, for every use of `sessions`."""
        conditions = [node[part] for part in ("where", "prewhere") if node.get(part) is not None]
        for source in scope.sources:
            if source.table is None or not is_sessions(source.table):
                continue
            began = Value(began_sql(source.table), "datetime", nullable=False)
            print_part = partial(self._print_over, Scope(aliases={BEGAN: began}))
            is_v3 = source.table is SESSIONS_V3
            source.bound = session_bound(conditions, print_part, id_names_a_time=is_v3)

    def _print_over(self, scope: Scope, node: Node) -> str:
        return self._expressions.print(node, scope).sql

    def _pushed(self, node: Node, scope: Scope) -> Pushed:
        """Find what goes into the persons subquery, as PostHog does for SELECTs straight from persons."""
        first = scope.sources[0] if scope.sources else None
        if first is None or first.table is None or first.table.name != "persons":
            return Pushed()
        where = self._pushed_where(node, scope, first)
        if where:
            guard = f"equals(where_optimization.team_id, {self._context.team_id})"
            return Pushed(where=and_sql([guard, *where]))
        if len(scope.sources) > 1 or node.get("group_by"):
            return Pushed()
        inner = _inner_scope(scope, first, "person")
        orders = [
            f"argMax({self._expressions.print(_unaliased(item['expr'], scope), inner).sql}, person.version) "
            f"{item['order']}"
            for item in node.get("order_by") or []
        ]
        limit, offset = (_whole(node.get(part)) for part in ("limit", "offset"))
        return Pushed(order_by=", ".join(orders), limit=None if limit is None else limit + (offset or 0) + 1)

    def _pushed_where(self, node: Node, scope: Scope, source: Source) -> list[str]:
        if node.get("where") is None:
            return []
        inner = replace(_inner_scope(scope, source, "where_optimization"), in_where=True)
        condition = _unaliased(node["where"], scope)
        found = self._extracted(condition, inner, is_join=len(scope.sources) > 1)
        return [] if found in {None, "0", "1"} else [str(found)]

    def _extracted(self, node: Node, scope: Scope, *, is_join: bool) -> str | None:
        """Print what a condition says of persons alone: weaker than it, or None where it cannot be told.

        Follows WhereClauseExtractor (`posthog/hogql/database/schema/util/where_clause_extractor.py`). A UNION
        after IN is taken in too, as `persons_where_pushdown.py` does since 2026; before, PostHog cut such an
        answer short where `properties` were asked for, since LIMIT went inside without it.
        """
        parts = _logical_parts(node)
        if parts is not None:
            operator, items = parts
            printed = [self._extracted(item, scope, is_join=is_join) for item in items]
            if operator == "and":
                return and_sql([one for one in printed if one is not None])
            if operator == "not":
                return "1" if is_join else None if printed[0] is None else f"not({printed[0]})"
            return None if None in printed else or_sql([str(one) for one in printed])
        is_comparison = node["node"] == "CompareOperation"
        if node["node"] == "ArithmeticOperation" or (is_comparison and is_join and node["op"] in NEGATIVE):
            return "1"
        if _has_select(node["left"] if is_comparison else node):
            return None
        try:
            return self._expressions.print(node, scope).sql
        except HogQLError:
            return None  # it speaks of another table, so it stays outside


def _with_ctes(node: Node, ctes: dict[str, Node]) -> dict[str, Node]:
    found = dict(ctes)
    for cte in node.get("ctes") or []:
        if cte.get("recursive") or cte.get("columns") or cte.get("using_key"):
            raise not_emulated("recursive WITH or WITH columns")
        found[cte["name"]] = cte["expr"]
    return found


def _in_parentheses(sql: str, node: Node) -> str:
    return f"({sql})" if node["node"] == "SelectSetQuery" or " LIMIT " in sql else sql


def _shown_aliases(nodes: Sequence[Node]) -> dict[str, Node]:
    """Which column gets a name that several could have: the one that says AS, else the last."""
    shown: dict[str, Node] = {}
    for node in reversed(nodes):
        name = _column_name(node)
        if name not in shown or node["node"] == "Alias":
            shown[name] = node
    return shown


def _with_alias(node: Node, value: Value, shown: dict[str, Node]) -> str:
    name = _column_name(node)
    if node["node"] not in {"Field", "Call"} or "%" in name or shown[name] is not node:
        return value.sql
    return f"{value.sql} AS {identifier(name)}"


def _column_name(node: Node) -> str:
    if node["node"] == "Alias":
        return str(node["alias"])
    return str(node["chain"][-1]) if node["node"] == "Field" else to_hogql(node)


def _inner_scope(scope: Scope, source: Source, sql_name: str) -> Scope:
    """See the stored rows of persons under another name; what they use is not asked of the lazy table."""
    inner = Source(source.name, sql_name, source.columns, RAW_PERSONS)
    return Scope(sources=[inner], ctes=scope.ctes)


def _unaliased(node: Any, scope: Scope) -> Any:
    """Replace SELECT aliases by what they stand for, since the subquery does not know them."""
    if isinstance(node, list):
        return [_unaliased(item, scope) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("node") in {"SelectQuery", "SelectSetQuery"}:
        return node
    chain = node.get("chain") or []
    if node.get("node") == "Field" and len(chain) == 1 and chain[0] in scope.alias_nodes:
        return scope.alias_nodes[chain[0]]
    return {key: _unaliased(value, scope) for key, value in node.items()}


def _logical_parts(node: Node) -> tuple[str, list[Node]] | None:
    """AND, OR and NOT, as operators or as functions."""
    kind = node["node"]
    if kind in {"And", "Or"}:
        return kind.lower(), node["exprs"]
    if kind == "Not":
        return "not", [node["expr"]]
    if kind == "Call" and node["name"] in {"and", "or", "not"}:
        return node["name"], node["args"]
    return None


def _has_select(node: Any) -> bool:
    if isinstance(node, list):
        return any(_has_select(item) for item in node)
    if not isinstance(node, dict):
        return False
    if node.get("node") in {"SelectQuery", "SelectSetQuery"}:
        return True
    if (
        node.get("node") == "Call"
        and not node["name"].startswith("_")
        and find_function(node["name"]).aggregate
    ):
        return True
    return any(_has_select(item) for item in node.values())


def _whole(node: Node | None) -> int | None:
    return node["value"] if node and node["node"] == "Constant" and isinstance(node["value"], int) else None
