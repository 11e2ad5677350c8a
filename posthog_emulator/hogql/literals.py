"""Values and names as ClickHouse SQL text: the one place where anything is escaped."""

import math
import re

from posthog_emulator.hogql.errors import QueryError

PLAIN_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
ESCAPES = {
    "\\": "\\\\",
    "'": "\\'",
    "\b": "\\b",
    "\f": "\\f",
    "\r": "\\r",
    "\n": "\\n",
    "\t": "\\t",
    "\0": "\\0",
}


def text(value: str) -> str:
    """Quote a string."""
    return "'" + "".join(ESCAPES.get(character, character) for character in value) + "'"


def identifier(name: str) -> str:
    """Quote a name where it must be."""
    if "%" in name:
        raise QueryError(f'The HogQL identifier "{name}" is not permitted as it contains the "%" character')
    if PLAIN_NAME.match(name):
        return name
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(value: object) -> str:
    """Write a constant of the syntax tree, or one given in `values`."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    raise QueryError(f"Unsupported constant of type {type(value).__name__}")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return repr(value)
