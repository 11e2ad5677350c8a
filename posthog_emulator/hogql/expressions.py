"""HogQL expressions as ClickHouse SQL: fields, properties, comparisons, functions, dates.

It prints what PostHog's printer prints in meaning, not letter by letter. SELECTs, joins and limits are in
`printer.py`. Rules: hogql.md, sections 1 to 5.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from posthog_emulator.hogql import literals
from posthog_emulator.hogql.errors import QueryError, not_emulated
from posthog_emulator.hogql.functions import Function, check_arguments, find_function
from posthog_emulator.hogql.parser import Node
from posthog_emulator.hogql.schema import Column
from posthog_emulator.hogql.scope import Context, Scope, Source, Value, find_column

ARITHMETIC = {"+": "plus", "-": "minus", "*": "multiply", "/": "divide", "%": "modulo"}
COMPARISONS = {
    "==": "equals",
    "!=": "notEquals",
    "<": "less",
    ">": "greater",
    "<=": "lessOrEquals",
    ">=": "greaterOrEquals",
    "like": "like",
    "ilike": "ilike",
    "not like": "notLike",
    "not ilike": "notILike",
    "in": "in",
    "not in": "notIn",
    "=~": "match",
    "!~": "match",
    "=~*": "match",
    "!~*": "match",
}
NEGATIVE = {"!=", "not like", "not ilike", "not in", "!~", "!~*"}
RANGES = {"<", ">", "<=", ">="}
SECONDS_LITERAL = re.compile(r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?$")
FRACTION_LITERAL = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,6}$")
DATES = {"date", "datetime"}


class Expressions:
    """Prints expressions for one asker."""

    def __init__(self, context: Context, print_subquery: Callable[[Node, Scope], str]) -> None:
        self._context = context
        self._print_subquery = print_subquery
        # PostHog/posthog printer `_get_timezone`: without conversion everything is UTC, literals too.
        self._zone = literals.text(context.timezone if context.converts_timezone else "UTC")

    def print(self, node: Node, scope: Scope) -> Value:
        """Print one expression."""
        printer = getattr(self, f"_{node['node']}", None)
        if printer is None:
            raise not_emulated(f"the expression {node['node']}")
        value: Value = printer(node, scope)
        return value

    def _Constant(self, node: Node, _scope: Scope) -> Value:  # noqa: N802
        value = node["value"]
        if node.get("value_type") == "number" and value in ("Infinity", "-Infinity", "NaN"):
            value = float(value)
        kinds = {bool: "bool", int: "number", float: "number", str: "text", list: "array"}
        return Value(literals.literal(value), kinds.get(type(value), ""), value is None)

    def _Alias(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        value = self.print(node["expr"], scope)
        scope.aliases[node["alias"]] = replace(value, sql=literals.identifier(node["alias"]), column="")
        scope.alias_nodes[node["alias"]] = node["expr"]
        return replace(value, sql=f"{value.sql} AS {literals.identifier(node['alias'])}", column="")

    def _SelectQuery(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        return Value(f"({self._print_subquery(node, scope)})")

    _SelectSetQuery = _SelectQuery

    def _Tuple(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        items = [self.print(item, scope) for item in node["exprs"]]
        sql = f"tuple({_joined(items)})"
        return Value(sql, "tuple", _any_nullable(items), _has_timestamp(items))

    def _Array(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        items = [self.print(item, scope) for item in node["exprs"]]
        return Value(f"[{_joined(items)}]", "array", nullable=False, has_timestamp=_has_timestamp(items))

    def _Lambda(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        inner = replace(scope, lambdas=(*scope.lambdas, *node["args"]))
        names = ", ".join(literals.identifier(name) for name in node["args"])
        return Value(f"({names}) -> {self.print(node['expr'], inner).sql}")

    def _TupleAccess(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        chain = self._property_chain(node, scope)
        if chain is not None:
            return self._field(chain, scope)
        return Value(f"tupleElement({self.print(node['tuple'], scope).sql}, {int(node['index'])})")

    def _ArrayAccess(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        chain = self._property_chain(node, scope)
        if chain is not None:
            return self._field(chain, scope)
        index = self.print(node["property"], scope).sql
        return Value(f"arrayElement({self.print(node['array'], scope).sql}, {index})")

    def _property_chain(self, node: Node, scope: Scope) -> list[object] | None:
        """Turn `properties['a'].b[1]` into one chain, if it starts at a JSON column."""
        if node["node"] == "Field":
            value = self._resolve(node["chain"], scope)
            return list(node["chain"]) if value[1].kind == "json" else None
        if node["node"] == "TupleAccess":
            start, key = node["tuple"], node["index"]
        elif node["node"] == "ArrayAccess" and node["property"]["node"] == "Constant":
            start, key = node["array"], node["property"]["value"]
        else:
            return None
        chain = self._property_chain(start, scope)
        return None if chain is None else [*chain, key]

    def _Field(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        return self._field(node["chain"], scope)

    def _field(self, chain: Sequence[object], scope: Scope) -> Value:
        name = str(chain[0])
        if name in scope.lambdas:
            if len(chain) > 1:
                raise not_emulated("fields of lambda arguments")
            return Value(literals.identifier(name))
        source, column, keys = self._resolve(chain, scope)
        if source is None:
            return self._of_alias(name, column, keys, scope)
        value = self._column(source, column, chain)
        if not keys:
            return value
        if column.kind != "json":
            raise QueryError(f"Unable to resolve field: {'.'.join(str(part) for part in chain)}")
        return Value(_property_sql(value.sql, keys), "text")

    def _of_alias(self, name: str, column: Column, keys: Sequence[object], scope: Scope) -> Value:
        if name in scope.aliases:
            value = scope.aliases[name]
            if not keys:
                return value
            if value.kind != "json":
                raise QueryError(f"Unable to resolve field: {column.stored}")
            return Value(_property_sql(value.sql, keys), "text")
        inner = replace(scope, ctes={key: node for key, node in scope.ctes.items() if key != name})
        return self.print(scope.ctes[name], inner)

    def _resolve(
        self, chain: Sequence[object], scope: Scope
    ) -> tuple[Source | None, Column, Sequence[object]]:
        """Find what a chain names, in PostHog's order: table, alias, column, then a WITH … AS name."""
        name = str(chain[0])
        source = scope.source_named(name) if len(chain) > 1 else None
        if source is not None:
            return (source, *find_column(source, chain[1:]))
        if name in scope.aliases:
            return None, Column(name, scope.aliases[name].kind), chain[1:]
        source = scope.source_with(name)
        if source is not None:
            return (source, *find_column(source, chain))
        if name in scope.ctes and scope.ctes[name]["node"] not in {"SelectQuery", "SelectSetQuery"}:
            return None, Column(name), chain[1:]
        raise QueryError(f"Unable to resolve field: {name}")

    def _column(self, source: Source, column: Column, chain: Sequence[object]) -> Value:
        if source.is_events and column.stored == "person_id" and _is_override(source, chain):
            return self._person_id(source)
        name = column.stored if source.table and not source.table.is_lazy else _name_in(source, column)
        source.used[name] = column
        sql = literals.identifier(name)
        if source.sql_name:
            sql = f"{literals.identifier(source.sql_name)}.{sql}"
        has_timestamp = source.is_events and column.stored == "timestamp"
        if column.kind != "datetime" or source.table is None:
            return Value(sql, column.kind, column.nullable, has_timestamp)
        shown = f"toTimeZone({sql}, {self._zone})" if self._context.converts_timezone else sql
        return Value(shown, "datetime", column.nullable, has_timestamp, column=sql)

    def _person_id(self, source: Source) -> Value:
        events = literals.identifier(source.sql_name)
        if not self._context.overrides_person_id:
            return Value(f"{events}.person_id", "uuid", nullable=False)
        source.needs_overrides = True
        override = literals.identifier(f"{source.sql_name}__override")
        sql = f"if(not(empty({override}.distinct_id)), {override}.person_id, {events}.person_id)"
        return Value(sql, "uuid", nullable=False)

    def _And(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        items = [self.print(item, scope) for item in node["exprs"]]
        return Value(and_sql([item.sql for item in items]), "bool", False, _has_timestamp(items))

    def _Or(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        items = [self.print(item, scope) for item in node["exprs"]]
        return Value(or_sql([item.sql for item in items]), "bool", False, _has_timestamp(items))

    def _Not(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        value = self.print(node["expr"], scope)
        return Value(f"not({value.sql})", "bool", value.nullable, value.has_timestamp)

    def _ArithmeticOperation(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        left, right = self.print(node["left"], scope), self.print(node["right"], scope)
        kind = "datetime" if {left.kind, right.kind} & DATES and "interval" in {left.kind, right.kind} else ""
        both = [left, right]
        sql = f"{ARITHMETIC[node['op']]}({left.sql}, {right.sql})"
        return Value(sql, kind or "number", _any_nullable(both), _has_timestamp(both))

    def _BetweenExpr(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        value, low, high = (self.print(node[part], scope) for part in ("expr", "low", "high"))
        sql = f"({value.sql}{' NOT' if node['negated'] else ''} BETWEEN {low.sql} AND {high.sql})"
        parts = [value, low, high]
        if _any_nullable(parts) and not _has_timestamp(parts) and not (scope.in_join or scope.in_hint):
            sql = f"ifNull({sql}, {int(bool(node['negated']))})"
        return Value(sql, "bool", nullable=False, has_timestamp=_has_timestamp(parts))

    def _CompareOperation(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        operation = node["op"]
        if operation not in COMPARISONS:
            raise not_emulated(f"the operator {operation!r}")
        if folded := _folded(node):
            return Value(folded, "bool", nullable=False)
        left, right = self.print(node["left"], scope), self.print(node["right"], scope)
        has_timestamp = left.has_timestamp or right.has_timestamp
        if scope.in_where and operation in RANGES:
            left, right = self._on_bare_column(node, left, right)
        sql = _comparison_sql(operation, left.sql, right.sql)
        if not (scope.in_join or scope.in_hint or has_timestamp):
            sql = _two_valued(operation, node, left, right, sql)
        return Value(sql, "bool", nullable=False, has_timestamp=has_timestamp)

    def _on_bare_column(self, node: Node, left: Value, right: Value) -> tuple[Value, Value]:
        """Move the time zone from a column to the literal it is compared with, so that indexes work."""
        if left.column and not right.column:
            return replace(left, sql=left.column), self._zoned_literal(node["right"], right)
        if right.column and not left.column:
            return self._zoned_literal(node["left"], left), replace(right, sql=right.column)
        return left, right

    def _zoned_literal(self, node: Node, value: Value) -> Value:
        if value.kind != "text" or node["node"] != "Constant":
            return value
        if not self._context.converts_timezone:
            return value
        return replace(value, sql=f"toDateTime64({value.sql}, 6, {self._zone})")

    def _Call(self, node: Node, scope: Scope) -> Value:  # noqa: N802
        name = node["name"]
        if node.get("filter_expr") or node.get("order_by") or node.get("within_group"):
            raise not_emulated(f"FILTER or ORDER BY inside {name}(...)")
        if name == "_caseWithExpression":
            return Value(f"caseWithExpression({_joined(self._arguments(node, scope))})")
        function = find_function(name)
        check_arguments(function, name, len(node["args"]), len(node.get("params") or []))
        if function.aggregate and scope.in_aggregate:
            outer = scope.in_aggregate
            raise QueryError(f"Aggregation '{name}' cannot be nested inside another aggregation '{outer}'.")
        arguments = self._arguments(node, _inside(function, name, scope))
        if node.get("distinct") and not function.aggregate:
            raise QueryError(f"DISTINCT can only be used with aggregate functions, not '{name}'")
        sql = self._call_sql(function, node, arguments)
        return Value(
            sql, _kind(function, arguments), _is_nullable(function, arguments), _has_timestamp(arguments)
        )

    def _arguments(self, node: Node, scope: Scope) -> list[Value]:
        is_count = node["name"].lower() == "count"
        return [
            Value("*") if is_count and item.get("chain") == ["*"] else self.print(item, scope)
            for item in node["args"]
        ]

    def _call_sql(self, function: Function, node: Node, arguments: list[Value]) -> str:
        name = function.name
        if name == "concat":
            texts = [_as_text(item, given) for item, given in zip(arguments, node["args"], strict=True)]
            return f"concat({', '.join(texts)})"
        if name in {"toDateTime", "toDate"}:
            return self._to_date_sql(name, node["args"][0], arguments)
        if function.zoned:
            return self._zoned_sql(function, arguments)
        if name == "toDecimal":
            return (
                f"accurateCastOrNull({arguments[0].sql}, {literals.text(f'Decimal64({arguments[1].sql})')})"
            )
        if name == "toStartOfWeek" and len(arguments) == 1:
            return f"toStartOfWeek({arguments[0].sql}, 0)"
        parameters = node.get("params")
        listed = f"({', '.join(self._parameter(item) for item in parameters)})" if parameters else ""
        distinct = "DISTINCT " if node.get("distinct") else ""
        suffix = f", {function.suffix}" if function.suffix else ""
        return f"{function.clickhouse}{listed}({distinct}{_joined(arguments)}{suffix})"

    def _parameter(self, node: Node) -> str:
        return self.print(node, Scope()).sql

    def _to_date_sql(self, name: str, node: Node, arguments: list[Value]) -> str:
        value = arguments[0]
        if name == "toDate":
            return f"{'toDate' if value.kind in DATES else 'toDateOrNull'}({value.sql})"
        if len(arguments) == 2:
            typed = value.kind in {*DATES, "number"}
            return (
                f"toDateTime({value.sql}, {arguments[1].sql})"
                if typed
                else f"parseDateTime64BestEffortOrNull({value.sql}, 6, {arguments[1].sql})"
            )
        given = node["value"] if node["node"] == "Constant" else None
        if isinstance(given, str):
            return _datetime_literal(given, value.sql, self._zone)
        if value.kind in {*DATES, "number"}:
            return f"toDateTime({value.sql}, {self._zone})"
        return f"parseDateTime64BestEffortOrNull({value.sql}, 6, {self._zone})"

    def _zoned_sql(self, function: Function, arguments: list[Value]) -> str:
        items = [item.sql for item in arguments]
        if function.name == "toDateTime64" or function.clickhouse.startswith("parseDateTime64"):
            # (x), (x, precision) or (x, precision, zone); the parsers take (x) or (x, zone).
            if function.name != "toDateTime64":
                items = [items[0], "6", *items[1:]]
            items = [*items, "6", self._zone][: max(3, len(items))] if len(items) == 1 else items
            items = [*items, self._zone] if len(items) == 2 else items
        elif function.name == "now":
            items = ["6", items[0] if items else self._zone]
        elif len(items) < function.most or function.name == "UUIDv7ToDateTime":
            items = [*items, self._zone]
        return f"{function.clickhouse}({', '.join(items)})"


def and_sql(items: Sequence[str]) -> str:
    """Join conditions, folding constants as PostHog does."""
    if "0" in items:
        return "0"
    left = [item for item in items if item != "1"]
    return left[0] if len(left) == 1 else f"and({', '.join(left)})" if left else "1"


def or_sql(items: Sequence[str]) -> str:
    """Join alternatives, folding constants as PostHog does."""
    if "1" in items:
        return "1"
    left = [item for item in items if item != "0"]
    return left[0] if len(left) == 1 else f"or({', '.join(left)})" if left else "0"


def _is_override(source: Source, chain: Sequence[object]) -> bool:
    parts = [str(part) for part in chain]
    parts = parts[1:] if parts[0] == source.name and len(parts) > 1 else parts
    return parts[0] in {"person_id", "person"}


def _name_in(source: Source, column: Column) -> str:
    return next((name for name, known in source.columns.items() if known is column), column.stored)


def _property_sql(sql: str, keys: Sequence[object]) -> str:
    """PostHog's property access without materialised columns: always Nullable(String)."""
    if 0 in keys:
        raise QueryError("SQL indexes start from one, not from zero. E.g: array.1")
    path = ", ".join(literals.literal(key) for key in keys)
    return f"replaceRegexpAll(nullIf(nullIf(JSONExtractRaw({sql}, {path}), ''), 'null'), '^\"|\"$', '')"


def _folded(node: Node) -> str:
    left, right = node["left"], node["right"]
    if node["op"] not in {"==", "!="} or left["node"] != "Constant" or right["node"] != "Constant":
        return ""
    return str(int((left["value"] == right["value"]) == (node["op"] == "==")))


def _comparison_sql(operation: str, left: str, right: str) -> str:
    if operation.endswith("*"):
        right = f"concat('(?i)', {right})"
    sql = f"{COMPARISONS[operation]}({left}, {right})"
    return f"not({sql})" if operation.startswith("!~") else sql


def _two_valued(operation: str, node: Node, left: Value, right: Value, sql: str) -> str:
    """Make a comparison true or false where ClickHouse would say NULL."""
    nulls = [part for part in ("left", "right") if _is_null(node[part])]
    if operation in {"==", "!="} and nulls:
        other = right.sql if nulls[0] == "left" else left.sql
        return f"{'isNull' if operation == '==' else 'isNotNull'}({other})"
    if operation == "in" or not (left.nullable or right.nullable):
        return sql
    if operation == "not in":
        return f"ifNull({sql}, 1)" if left.nullable else sql
    constant = "Constant" in {node["left"]["node"], node["right"]["node"]}
    if operation == "==" and not constant:
        return f"ifNull({sql}, isNull({left.sql}) and isNull({right.sql}))"
    if operation == "!=" and not constant:
        return f"ifNull({sql}, isNotNull({left.sql}) or isNotNull({right.sql}))"
    return f"ifNull({sql}, {int(operation in NEGATIVE)})"


def _is_null(node: Node) -> bool:
    return node["node"] == "Constant" and node["value"] is None


def _datetime_literal(given: str, sql: str, zone: str) -> str:
    if SECONDS_LITERAL.match(given):
        return f"toDateTime({sql}, {zone})"
    if FRACTION_LITERAL.match(given):
        return f"toDateTime64({sql}, 6, {zone})"
    return f"parseDateTime64BestEffort({sql}, 6, {zone})"


def _as_text(value: Value, node: Node) -> str:
    """How PostHog hands arguments to concat: nothing may be NULL."""
    if node["node"] == "Constant":
        return (
            "''" if node["value"] is None else value.sql if value.kind == "text" else f"toString({value.sql})"
        )
    return f"ifNull(toString({value.sql}), '')"


def _inside(function: Function, name: str, scope: Scope) -> Scope:
    return replace(
        scope,
        in_where=False,
        in_hint=scope.in_hint or function.name == "indexHint",
        in_aggregate=name if function.aggregate else scope.in_aggregate,
    )


def _kind(function: Function, arguments: Sequence[Value]) -> str:
    return arguments[0].kind if function.kind == "same" else function.kind


def _is_nullable(function: Function, arguments: Sequence[Value]) -> bool:
    if function.name == "concat":
        return False
    return not function.kind or _any_nullable(arguments)


def _any_nullable(values: Sequence[Value]) -> bool:
    return any(value.nullable for value in values)


def _has_timestamp(values: Sequence[Value]) -> bool:
    return any(value.has_timestamp for value in values)


def _joined(values: Sequence[Value]) -> str:
    return ", ".join(value.sql for value in values)
