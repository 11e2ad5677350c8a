"""Writes docs/troubleshooting.md from the code: `python docs/write_troubleshooting.py`.

A test fails when it is stale.

An error is there since it is in the tree of `errors`; what it means and what to do, its docstring says. How
its messages look is read from where it is raised, and of PostHog's refusals from what they are made into;
how warnings look, from where they are logged.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from posthog_source import errors
from posthog_source.errors import PosthogSourceError, error_from_poll, error_from_response

PATH = Path(__file__).with_name("troubleshooting.md")

SOURCES = sorted(Path(errors.__file__).parent.glob("*.py"))

STATUSES = range(300, 600)

ANSWERED = "answered {status}"

PLACES = re.compile(r"%(?:\.\d)?[sdf]")
"""Where a logged line takes its values."""

SHEETS = re.compile(r" \(\w+\.md[^)]*\)")
"""Where the maintainers' fact sheets say it."""

HEAD = """# Troubleshooting

Made from the code by `docs/write_troubleshooting.py`.

## By symptom

- **Fewer events than in PostHog.** The newest 5 minutes wait for the next sync (`events.lag_s`), and late
  events are found once a day. If events are still missing after that, run `posthog-source verify`.
- **A table is missing.** Look for `is left as it is` in the log, or run `posthog-source check`.
- **Deleted people are still there.** They are marked with `deleted_at`, at the latest by the sweep every 7
  days: [people](people.md#sweeps-and-deletions).
- **A warehouse query counts events twice.** See [duplicates](events.md#duplicates).

## Error messages

An error is one line: what happened, where, and what to do. Search this page for its words; braces stand for
what varies. You find the line

- on the command line: the last one on stderr, with exit code 2;
- of earlier runs: in the column `error` of `_posthog_runs`, and in `posthog-source status`;
- in Python: as the text of `find_cause(error)`, since dlt wraps errors in its own. All are
  `PosthogSourceError`s.

PostHog's own words follow after `PostHog says:`. An error that is retried automatically shows only if that
did not help: `max_attempts` tries, with growing waits between them. After any error, earlier commits stay
loaded, nothing of the failed one is loaded, and the next run continues from there.

| error | is a | means | retried automatically |
| --- | --- | --- | --- |"""

WARNINGS = """
## Warnings

The run continues, but something may not be as you expect. Warnings go through
[dlt's logger](visibility.md#logs), and are shown at its default level."""

OTHERS = """
## Other errors

Errors of dlt, the warehouse or the machine keep their own words, in one line on the command line:"""


def written() -> str:
    """The whole document."""
    messages = _messages()
    kinds = list(_tree(PosthogSourceError))
    lines = [HEAD, *(_row(kind) for kind in kinds)]
    for kind in kinds:
        lines += _section(kind, messages.get(kind.__name__, ()))
    texts = _returned(_parse(next(path for path in SOURCES if path.stem == "cli")), "_first_line")
    warnings = dict.fromkeys(text for path in SOURCES for text in _warned(path))
    lines += [WARNINGS, "", *(f"- `{text}`" for text in warnings)]
    return "\n".join([*lines, OTHERS, "", *(f"- `{text}`" for text in texts)]) + "\n"


def _tree(kind: type[PosthogSourceError]) -> Iterator[type[PosthogSourceError]]:
    """The errors below one, as they are drawn."""
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from _tree(below)


def _row(kind: type[PosthogSourceError]) -> str:
    meaning, _ = _told(kind)
    parent = kind.__bases__[0]
    link = "" if parent is PosthogSourceError else _link(parent)
    return f"| {_link(kind)} | {link} | {meaning} | {'yes' if kind.transient else ''} |"


def _section(kind: type[PosthogSourceError], messages: tuple[str, ...]) -> Iterator[str]:
    meaning, advice = _told(kind)
    yield from ("", f"## {kind.__name__}", "", f"{meaning} {advice}".strip())
    if messages:
        yield from ("", *(f"- `{message}`" for message in messages))


def _told(kind: type[PosthogSourceError]) -> tuple[str, str]:
    """What an error means and what to do about it, as its docstring says."""
    text = SHEETS.sub("", (inspect.getdoc(kind) or "").partition("\n\nAttributes:")[0].replace("``", "`"))
    meaning, _, advice = text.partition("\n\n")
    return " ".join(meaning.split()), " ".join(advice.split())


def _link(kind: type[PosthogSourceError]) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


def _messages() -> Mapping[str, tuple[str, ...]]:
    """Messages by error."""
    found: dict[str, dict[str, None]] = {}
    for name, message in (*_refusals(), *(each for path in SOURCES for each in _raised(path))):
        found.setdefault(name, {})[message] = None
    return {name: tuple(messages) for name, messages in found.items()}


def _refusals() -> Iterator[tuple[str, str]]:
    """Errors and messages that PostHog's answers become; statuses are named where a message has just one."""
    body = {"code": "{code}", "detail": "{…}", "extra": {"billing_period_end": "{date}"}}
    status_of: dict[tuple[str, str], str] = {}
    for status in STATUSES:
        codes = ("{code}", "too_many_bytes") if status == 400 else ("{code}",)
        made = [
            error_from_response(
                status,
                {"location": "{address}"},
                orjson.dumps(body | {"code": code}),
                where="{request}",
                scope="{scope}",
            )
            for code in codes
        ]
        poll = orjson.dumps({"query_status": {"error_message": "{…}"}})
        for error in (*made, error_from_poll(status, {}, poll, where="{request}")):
            key = type(error).__name__, str(error).replace(f"answered {status}", ANSWERED)
            status_of[key] = str(status) if key not in status_of else "{status}"
    for (name, message), known in status_of.items():
        yield name, message.replace(ANSWERED, f"answered {known}")


def _raised(path: Path) -> Iterator[tuple[str, str]]:
    """Errors and messages of a file, wherever it makes an error."""
    if path.stem == "errors":
        return
    module = _parse(path)
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args):
            for name in _kinds(call.func, function):
                texts = _texts(call.args[0], function, module)
                if not texts:
                    raise LookupError(f"{path.name}:{call.lineno}: the message of a {name} cannot be read.")
                yield from ((name, text) for text in texts)


def _warned(path: Path) -> Iterator[str]:
    """How the warnings of a file look."""
    module = _parse(path)
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) != "logger.warning":
                continue
            shape, *values = call.args
            is_whole = isinstance(shape, ast.Constant) and shape.value == "%s"
            texts = _texts(values[0] if is_whole else shape, function, module)
            if not texts:
                raise LookupError(f"{path.name}:{call.lineno}: the warning cannot be read.")
            names = [_piece(ast.FormattedValue(value, -1), function) for value in values]
            if is_whole or not values:
                yield from texts
            else:
                yield from (PLACES.sub("{}", text).format(*names) for text in texts)


def _kinds(func: ast.expr, function: ast.FunctionDef) -> list[str]:
    """Names of the errors that a call may make: its own, or those that its variable may be."""
    if not isinstance(func, ast.Name):
        return []
    looked_at = [func] if hasattr(errors, func.id) else _values(func.id, function)
    names = [node.id for value in looked_at for node in ast.walk(value) if isinstance(node, ast.Name)]
    found = (getattr(errors, name, None) for name in names)
    return [
        kind.__name__ for kind in found if isinstance(kind, type) and issubclass(kind, PosthogSourceError)
    ]


def _texts(node: ast.expr, function: ast.FunctionDef, module: ast.Module) -> list[str]:
    """What an expression may read as, with braces for what is not known before it is run."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(_piece(part, function) for part in parts)]
        case ast.Name(id=name):
            values = _values(name, function) or _values(name, module)
            return [text for value in values for text in _texts(value, function, module)]
        case ast.Call(func=ast.Attribute(value=text, attr="format")):
            return [made.replace("{}", "{…}") for made in _texts(text, function, module)]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return _returned(module, name) or _imported(module, name)
        case ast.IfExp(body=one, orelse=other):
            return _texts(one, function, module) + _texts(other, function, module)
    return []


def _piece(part: ast.expr, function: ast.FunctionDef) -> str:
    """A piece of an f-string: its text, or in braces what will stand there."""
    match part:
        case ast.Constant(value=text):
            return str(text)
        case ast.FormattedValue(value=ast.Name(id=name)):
            found = [value for value in _values(name, function) if isinstance(value, ast.JoinedStr)]
            return "".join(_piece(one, function) for one in found[0].values) if found else f"{{{name}}}"
        case ast.FormattedValue(value=ast.Attribute(attr=name)):
            return f"{{{name.strip('_')}}}"
    return "{…}"


def _values(name: str, scope: ast.AST) -> list[ast.expr]:
    """What a name is set to in a function or a module."""
    found: list[ast.expr] = []
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.NamedExpr(target=target, value=value):
                targets = [target]
            case _:
                continue
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found.append(value)
    return found


def _returned(module: ast.Module, name: str) -> list[str]:
    """The texts that a function of a module may return."""
    return [
        text
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef) and function.name == name
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and node.value
        for text in _texts(node.value, function, module)
    ]


def _imported(module: ast.Module, name: str) -> list[str]:
    """The texts that a function of another room may return."""
    rooms = [
        node.module.rpartition(".")[2]
        for node in module.body
        if isinstance(node, ast.ImportFrom) and node.module and any(each.name == name for each in node.names)
    ]
    return [text for path in SOURCES if path.stem in rooms for text in _returned(_parse(path), name)]


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PATH.write_text(written(), encoding="utf-8")
