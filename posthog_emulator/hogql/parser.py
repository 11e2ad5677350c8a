"""HogQL text to PostHog's own syntax tree, by PostHog's own parser.

Only parsing: it knows no tables and no functions. A tree is the JSON of `hogql_parser`, as plain dicts.

The parser takes 40 ms for a page of events and up to a second for a long query, and clients ask the same
again with other texts between the quotes. So a tree is kept with blanks for them, which are filled in.
"""

import importlib
import re
import sys
import types
from functools import lru_cache
from typing import Any

import orjson

from posthog_emulator.hogql.errors import HogQLError, HogQLSyntaxError, ResolutionError

Node = dict[str, Any]

# hogql_parser 1.3.88 looks these up when it is imported. Its *_json functions return most errors as JSON;
# an unmatched curly bracket they raise.
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

QUOTED = re.compile("""`[^`]*`|"[^"]*"|'((?:[^']|'')*)'""")
"""Names, and texts as the group."""

PLAIN = re.compile(r"[^\x00-\x1f']+")
"""What between quotes means just itself."""

UNSURE = re.compile(r"[\\#]|--|/\*|//|f'", re.IGNORECASE)
"""Where a quote may be another's: escapes, comments, templates."""

BLANK = re.compile('"blank \ue000([0-9]+)"')
"""A blank as it stands in a tree."""


def parse_select(text: str) -> Node:
    """Parse one SELECT, or set of SELECTs."""
    tree: Node = orjson.loads(_parse(text))
    if tree.get("error"):
        raise _error(tree)
    return tree


def ask_parser(text: str) -> str:
    """A SELECT's tree, or what is wrong with it, as JSON."""
    try:
        parsed: str = _parser.parse_select_json(text, is_internal=True)
    except _RaisedError as error:
        return orjson.dumps({"error": True, "type": type(error).__name__, "message": str(error)}).decode()
    return parsed


_ask = lru_cache(maxsize=256)(ask_parser)


def _parse(text: str) -> str:
    """The same as of `ask_parser`."""
    shape, texts = (text, []) if UNSURE.search(text) else _blank_out(text)
    pieces = BLANK.split(_ask(shape))
    order = [int(number) for number in pieces[1::2]]
    if sorted(order) != list(range(len(texts))):
        return _ask(text)  # the parser looks into a text, as into that of an INTERVAL
    pieces[1::2] = [orjson.dumps(texts[number]).decode() for number in order]
    return "".join(pieces)


def _blank_out(text: str) -> tuple[str, list[str]]:
    """A query with numbered blanks for its texts, and the texts."""
    texts: list[str] = []

    def blank(quoted: re.Match[str]) -> str:
        if not PLAIN.fullmatch(quoted[1] or ""):
            return quoted[0]
        texts.append(quoted[1])
        return f"'blank \ue000{len(texts) - 1}'"

    return QUOTED.sub(blank, text), texts


def _error(tree: Node) -> HogQLError:
    message = str(tree["message"])
    if tree["type"] == "SyntaxError":
        return HogQLSyntaxError(message)
    # A parser-side NotImplementedError (SETTINGS, TOP, …) reaches the user as ExposedHogQLError.
    return HogQLError(message) if tree["type"] == "NotImplementedError" else ResolutionError(message)


class _RaisedError(Exception):
    """What stands in for PostHog's errors."""


def _load_parser() -> Any:
    """Import the parser with a stand-in for PostHog's server code, and take the stand-in away again.

    A real `posthog` SDK in this process, loaded before or after, never sees it.
    """
    before = {name: sys.modules.pop(name, None) for name in PACKAGES}
    try:
        for name in PACKAGES:
            sys.modules[name] = types.ModuleType(name)
        for name in ERROR_CLASSES:
            setattr(sys.modules[ERRORS_MODULE], name, type(name, (_RaisedError,), {}))
        return importlib.import_module("hogql_parser")
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


_parser = _load_parser()
