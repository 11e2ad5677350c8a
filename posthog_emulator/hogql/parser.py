"""HogQL text to PostHog's own syntax tree, by PostHog's own parser.

Only parsing: it knows no tables and no functions. A tree is the JSON of `hogql_parser`, as plain dicts.
"""

import importlib
import sys
import types
from functools import lru_cache
from typing import Any

import orjson

from posthog_emulator.hogql.errors import HogQLError, HogQLSyntaxError, ResolutionError

Node = dict[str, Any]

# hogql_parser 1.3.88 looks these up when it is imported, and never again as long as only its *_json
# functions are called: they return errors as JSON instead of raising them.
ERRORS_MODULE = "posthog.hogql.errors"
ERROR_CLASSES = (
    "BaseHogQLError",
    "ExposedHogQLError",
    "SyntaxError",
    "QueryError",
    "NotImplementedError",
    "ParsingError",
    "ImpossibleASTError",
)
PACKAGES = ("posthog", "posthog.hogql", ERRORS_MODULE)


def parse_select(text: str) -> Node:
    """Parse one SELECT, or set of SELECTs."""
    tree: Node = orjson.loads(_parse(text))
    if tree.get("error"):
        raise _error(tree)
    return tree


@lru_cache(maxsize=256)
def _parse(text: str) -> str:
    """The tree as JSON. The parser takes up to a second for a long query, and tests ask the same again."""
    parsed: str = _parser.parse_select_json(text, is_internal=True)
    return parsed


def _error(tree: Node) -> HogQLError:
    message = str(tree["message"])
    if tree["type"] == "SyntaxError":
        return HogQLSyntaxError(message)
    # A parser-side NotImplementedError (SETTINGS, TOP, …) reaches the user as ExposedHogQLError.
    return HogQLError(message) if tree["type"] == "NotImplementedError" else ResolutionError(message)


def _load_parser() -> Any:
    """Import the parser with a stand-in for PostHog's server code, and take the stand-in away again.

    A real `posthog` SDK in this process, loaded before or after, never sees it.
    """
    before = {name: sys.modules.pop(name, None) for name in PACKAGES}
    try:
        for name in PACKAGES:
            sys.modules[name] = types.ModuleType(name)
        for name in ERROR_CLASSES:
            setattr(sys.modules[ERRORS_MODULE], name, type(name, (Exception,), {}))
        return importlib.import_module("hogql_parser")
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


_parser = _load_parser()
