"""A syntax tree as HogQL text again: the `hogql` of a response, and the names of unnamed columns."""

from posthog_emulator.hogql.expressions import ARITHMETIC, COMPARISONS
from posthog_emulator.hogql.literals import literal
from posthog_emulator.hogql.parser import Node

PLAIN = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_$0123456789")


def to_hogql(node: Node) -> str:
    """Print a tree that the printer has accepted."""
    return PRINTERS[node["node"]](node)


def _constant(node: Node) -> str:
    value = node["value"]
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if node.get("value_type") == "number" else literal(value)


def _field(node: Node) -> str:
    return ".".join(_name(part) for part in node["chain"])


def _name(part: object) -> str:
    text = str(part)
    if isinstance(part, int) or text == "*" or (set(text) <= PLAIN and not text[:1].isdigit() and text):
        return text
    return "`" + text.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _call(node: Node) -> str:
    name = "caseWithExpression" if node["name"] == "_caseWithExpression" else node["name"]
    parameters = f"({_listed(node['params'])})" if node.get("params") else ""
    distinct = "DISTINCT " if node.get("distinct") else ""
    return f"{name}{parameters}({distinct}{_listed(node['args'])})"


def _compare(node: Node) -> str:
    operation, left, right = node["op"], _item(node["left"]), _item(node["right"])
    if operation.endswith("*"):
        right = f"concat('(?i)', {right})"
    sql = f"{COMPARISONS[operation]}({left}, {right})"
    return f"not({sql})" if operation.startswith("!~") else sql


def _between(node: Node) -> str:
    negated = " NOT" if node["negated"] else ""
    return f"{to_hogql(node['expr'])}{negated} BETWEEN {to_hogql(node['low'])} AND {to_hogql(node['high'])}"


def _select(node: Node) -> str:
    parts = [f"SELECT {'DISTINCT ' if node.get('distinct') else ''}{_listed(node['select'])}"]
    if node.get("select_from"):
        parts.append(f"FROM {_join(node['select_from'])}")
    clauses = (("prewhere", "PREWHERE"), ("where", "WHERE"), ("group_by", "GROUP BY"), ("having", "HAVING"))
    for key, words in (*clauses, ("order_by", "ORDER BY")):
        if node.get(key):
            listed = _listed(node[key]) if isinstance(node[key], list) else to_hogql(node[key])
            parts.append(f"{words} {listed}")
    if node.get("limit_by"):
        by = node["limit_by"]
        parts.append(f"LIMIT {to_hogql(by['n'])} BY {_listed(by['exprs'])}")
    return " ".join([*parts, *_limits(node)])


def _select_set(node: Node) -> str:
    parts = [to_hogql(node["initial_select_query"])]
    for item in node["subsequent_select_queries"]:
        parts += [item["set_operator"], to_hogql(item["select_query"])]
    return " ".join([*parts, *_limits(node)])


def _limits(node: Node) -> list[str]:
    return [f"{key.upper()} {to_hogql(node[key])}" for key in ("limit", "offset") if node.get(key)]


def _join(node: Node) -> str:
    table = to_hogql(node["table"])
    table = f"({table})" if node["table"]["node"].startswith("Select") else table
    if node.get("table_args"):
        table += f"({_listed(node['table_args'])})"
    if node.get("alias"):
        table += f" AS {_name(node['alias'])}"
    if node.get("sample"):
        table += f" SAMPLE {to_hogql(node['sample']['sample_value'])}"
    if node.get("constraint"):
        table += f" {node['constraint']['constraint_type']} {to_hogql(node['constraint']['expr'])}"
    following = node.get("next_join")
    return f"{table} {following['join_type']} {_join(following)}" if following else table


def _ratio(node: Node) -> str:
    return to_hogql(node["left"]) + (f"/{to_hogql(node['right'])}" if node["right"] else "")


def _listed(nodes: list[Node]) -> str:
    return ", ".join(_item(node) for node in nodes)


def _item(node: Node) -> str:
    return f"({to_hogql(node)})" if node["node"].startswith("Select") else to_hogql(node)


PRINTERS = {
    "Constant": _constant,
    "Field": _field,
    "Alias": lambda node: f"{_item(node['expr'])} AS {_name(node['alias'])}",
    "Call": _call,
    "CompareOperation": _compare,
    "ArithmeticOperation": lambda node: (
        f"{ARITHMETIC[node['op']]}({_item(node['left'])}, {_item(node['right'])})"
    ),
    "BetweenExpr": _between,
    "And": lambda node: f"and({_listed(node['exprs'])})",
    "Or": lambda node: f"or({_listed(node['exprs'])})",
    "Not": lambda node: f"not({to_hogql(node['expr'])})",
    "Tuple": lambda node: f"tuple({_listed(node['exprs'])})",
    "Array": lambda node: f"[{_listed(node['exprs'])}]",
    "ArrayAccess": lambda node: f"{to_hogql(node['array'])}[{to_hogql(node['property'])}]",
    "TupleAccess": lambda node: f"{to_hogql(node['tuple'])}.{node['index']}",
    "Lambda": lambda node: f"({', '.join(node['args'])}) -> {to_hogql(node['expr'])}",
    "OrderExpr": lambda node: f"{to_hogql(node['expr'])} {node['order']}",
    "RatioExpr": _ratio,
    "SelectQuery": _select,
    "SelectSetQuery": _select_set,
}
