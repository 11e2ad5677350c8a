"""Which stored sessions a query reads: the part of its condition that bounds when sessions began.

A stored session is sorted by the time in its id. PostHog compares that time wherever a query compares a start
or an end with a constant, three days to either side: **a session that goes on longer than that after its id
is lost to a query by `$end_timestamp`**. All else reads every session. What would make PostHog's extractor do
something unknown is refused. Facts: in PostHog/posthog,
`posthog/hogql/database/schema/util/where_clause_extractor.py`, `posthog/hogql/helpers/timestamp_visitor.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posthog_emulator.hogql.errors import HogQLError, not_emulated
from posthog_emulator.hogql.parser import Node

BUFFER_DAYS = 3
# Names alone decide, in whatever table: a join's events bound its sessions too.
TIMES = {"$start_timestamp", "$end_timestamp", "min_timestamp", "timestamp", "min_first_timestamp"}
SESSION_IDS = {"id", "session_id", "$session_id"}
STARTS_OF = {"toStartOfDay", "toStartOfWeek", "toStartOfMonth", "toStartOfQuarter", "toStartOfYear"}
KEEPS_A_TIME = {"toDateTime", "toTimeZone", "assumeNotNull", *STARTS_OF}
KEEPS_A_CONSTANT = {"toDateTime", "toDateTime64", "toTimeZone", "assumeNotNull"}
NOW = {"today", "now", "yesterday"}
SUMS = {"minus", "add"}
FLIPPED = {"==": "==", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
COMPARING_CALLS = {
    "equals": "==",
    "less": "<",
    "lessOrEquals": "<=",
    "greater": ">",
    "greaterOrEquals": ">=",
}
# The name that stands for the stored time in what `print_node` is given.
BEGAN = "session began"


@dataclass(frozen=True)
class _Bounds:
    """What a condition says of the stored time: SQL, or nothing."""

    sql: str = ""


def session_bound(conditions: list[Node], print_node: Callable[[Node], str], *, id_names_a_time: bool) -> str:
    """Build the condition on the stored time; empty if all sessions are read."""
    found = [_bounds(node, print_node, id_names_a_time) for node in conditions]
    return _joined("and", [one.sql for one in found if one.sql])


def _bounds(node: Node, print_node: Callable[[Node], str], by_id: bool) -> _Bounds:
    kind = node["node"]
    if kind in {"Not", "BetweenExpr"}:
        raise _unknown("NOT" if kind == "Not" else "BETWEEN")
    if kind == "Alias":
        return _bounds(node["expr"], print_node, by_id)
    if kind in {"And", "Or"}:
        return _of_all(kind, node["exprs"], print_node, by_id)
    if kind == "Call" and node["name"] in {"and", "or"}:
        return _of_all(node["name"].title(), node["args"], print_node, by_id)
    if kind == "Call" and node["name"] in COMPARING_CALLS and len(node["args"]) == 2:
        left, right = node["args"]
        return _of_comparison(COMPARING_CALLS[node["name"]], left, right, print_node, by_id)
    if kind == "CompareOperation":
        return _of_comparison(node["op"], node["left"], node["right"], print_node, by_id)
    if kind == "Call" and any(_has_comparison(one) for one in node["args"]):
        raise _unknown(f"{node['name']}(...) of a comparison")
    return _Bounds()


def _unknown(what: str) -> HogQLError:
    # The extractor makes comparisons it does not understand true, and would negate just that.
    return not_emulated(f"{what} in a condition on sessions, since what PostHog reads then is not known")


def _has_comparison(node: Any) -> bool:
    if isinstance(node, list):
        return any(_has_comparison(one) for one in node)
    if not isinstance(node, dict):
        return False
    is_one = node.get("node") in {"CompareOperation", "BetweenExpr", "Not", "And", "Or"}
    return is_one or any(_has_comparison(one) for one in node.values())


def _of_all(kind: str, nodes: list[Node], print_node: Callable[[Node], str], by_id: bool) -> _Bounds:
    found = [_bounds(node, print_node, by_id).sql for node in nodes]
    if kind == "Or" and not all(found):
        return _Bounds()
    return _Bounds(_joined(kind.lower(), [one for one in found if one]))


def _of_comparison(
    operation: str, left: Node, right: Node, print_node: Callable[[Node], str], by_id: bool
) -> _Bounds:
    if _is_constant(left) and _is_constant(right):
        return _Bounds()
    if operation in FLIPPED and _is_constant(left):
        left, right, operation = right, left, FLIPPED[operation]
    if operation not in FLIPPED or not _is_constant(right):
        return _Bounds()
    if _is_time(left):
        return _Bounds(_around(operation, print_node(_on_stored(left)), print_node(right)))
    if operation == "==" and by_id and _names_session_id(left):
        return _Bounds(f"equals({print_node(_on_stored(None))}, {_time_in_id(print_node(right))})")
    return _Bounds()


def _around(operation: str, began: str, constant: str) -> str:
    buffer = f"toIntervalDay({BUFFER_DAYS})"
    from_then = f"greaterOrEquals({began}, minus({constant}, {buffer}))"
    until_then = f"lessOrEquals({began}, plus({constant}, {buffer}))"
    if operation == "==":
        return f"and({from_then}, {until_then})"
    return from_then if operation in {">", ">="} else until_then


def _time_in_id(text: str) -> str:
    number = f"toUInt128(accurateCastOrNull({text}, 'UUID'))"
    return f"fromUnixTimestamp64Milli(toUInt64(bitShiftRight({number}, 80)))"


def _is_time(node: Node) -> bool:
    kind = node["node"]
    if kind == "Field":
        return node["chain"][-1] in TIMES
    if kind == "Alias":
        return _is_time(node["expr"])
    if kind == "ArithmeticOperation":
        return _is_shifted(node["left"], node["right"])
    if kind == "Call" and node["name"] in KEEPS_A_TIME:
        return _is_time(node["args"][0])
    return kind == "Call" and node["name"] in SUMS and _is_shifted(*node["args"][:2])


def _is_shifted(left: Node, right: Node) -> bool:
    return (_is_time(left) and _is_constant(right)) or (_is_time(right) and _is_constant(left))


def _is_constant(node: Node) -> bool:
    kind = node["node"]
    if kind == "Constant":
        return True
    if kind == "Alias":
        return _is_constant(node["expr"])
    if kind == "ArithmeticOperation":
        return _is_constant(node["left"]) and _is_constant(node["right"])
    if kind in {"Tuple", "Array"}:
        return all(_is_constant(one) for one in node["exprs"])
    return kind == "Call" and _is_constant_call(node)


def _is_constant_call(node: Node) -> bool:
    name, arguments = node["name"], node["args"]
    if name in NOW:
        return True
    if name in SUMS:
        return all(_is_constant(one) for one in arguments)
    keeps = name in KEEPS_A_CONSTANT or name.startswith(("toInterval", "toStartOf"))
    return keeps and bool(arguments) and _is_constant(arguments[0])


def _names_session_id(node: Node) -> bool:
    if node["node"] == "Alias":
        return _names_session_id(node["expr"])
    return node["node"] == "Field" and node["chain"][-1] in SESSION_IDS


def _on_stored(node: Any) -> Any:
    """The same expression over the stored time."""
    if node is None or (isinstance(node, dict) and node.get("node") == "Field"):
        return {"node": "Field", "chain": [BEGAN]}
    if isinstance(node, list):
        return [_on_stored(one) for one in node]
    if isinstance(node, dict) and node.get("node") == "Alias":
        return _on_stored(node["expr"])
    if isinstance(node, dict) and "node" in node:
        return {name: _on_stored(value) if value is not None else None for name, value in node.items()}
    return node


def _joined(name: str, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{name}({', '.join(parts)})" if parts else ""
