"""One HogQL SELECT of a person's own, looked at as far as needed to read from it. Pure.

It is cut into words, not parsed: whether it is right is for PostHog to say. What is found here is what
PostHog would pass over in silence once the SELECT stands inside another one, and slips of the pen that would
change the query around it. It is no guard against a person who means harm, and reads what the key may read.
Not here: the query around it (`query`), its answer's types (`query_tables`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from posthog_source.errors import SettingsError

TOKEN = re.compile(
    r"""(?P<space> \s+ | --[^\n]* | //[^\n]* | /\*.*?\*/ )
      | (?P<quoted> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | `(?:[^`\\]|\\.)*` )
      | (?P<word> [A-Za-z_$][\w$]* )
      | (?P<number> \d[\w.]* )
      | (?P<mark> /\* | . )""",
    re.DOTALL | re.VERBOSE,
)

SET_OPERATORS = frozenset({"UNION", "INTERSECT", "EXCEPT"})
LIST_ENDS = SET_OPERATORS | {"FROM", "WHERE", "PREWHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT"}
"""What may follow the columns of a SELECT."""

STRAY = {
    "{": "there are no values to fill {placeholders} with. Write the value itself",
    "}": "there are no values to fill {placeholders} with. Write the value itself",
    ";": "it is more than one statement. Leave one SELECT",
    "#": "it has a stray #. Write comments as -- or /* */",
    "/*": "it has a comment that is never closed",
    **dict.fromkeys("'\"`", "it has a quote that is never closed"),
}

MAX_SHOWN_CHARS = 60


@dataclass(frozen=True)
class SelectColumn:
    """One column of a SELECT, as written.

    Attributes:
        text: All of it, on one line.
        name: What it is called; None where nothing says so.
        is_star: Whether it stands for many.
    """

    text: str
    name: str | None
    is_star: bool = False


@dataclass(frozen=True)
class Statement:
    """A SELECT that can stand inside another one.

    Attributes:
        common: Its WITH clause, which goes before the outer SELECT: not every PostHog finds it inside;
            empty where there is none.
        body: The rest, without semicolons and comments behind it.
        columns: Of its first SELECT.
        has_limit: Whether it has a LIMIT of its own.
        limit: That number; None where there is none, or none that holds of all its rows.
    """

    common: str
    body: str
    columns: tuple[SelectColumn, ...]
    has_limit: bool = False
    limit: int | None = None

    def check_columns(self, found: Collection[str], where: str) -> None:
        """Compares with the columns that PostHog passes on from the SELECT inside another one.

        It leaves out those that it has no name for (posthog/hogql/resolver.py, visit_select_query).

        Raises:
            SettingsError: One is missing there.
        """
        for column in self.columns:
            if not column.is_star and column.name not in found:
                raise SettingsError(_nameless(column, where))


def read_statement(text: str, where: str) -> Statement:
    """Looks at a SELECT.

    Args:
        text: As a person wrote it.
        where: What it is, for messages.

    Raises:
        SettingsError: It cannot stand inside another SELECT, has an OFFSET, or columns without a name or with
            one that another has.
    """
    tokens = _read_tokens(text, where)
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    _check(tokens, where)
    top = [token for token in tokens if token.depth == 0]
    first = next((token for token in top if token.is_word("SELECT")), None)
    if first is None or not tokens[0].is_word("SELECT", "WITH"):
        raise SettingsError(f"{where} must begin with SELECT or WITH, outside of parentheses.")
    clauses = _clauses(top, tokens.index(first))
    limits = [token for token in clauses if token.is_word("LIMIT") and not _is_limit_by(tokens, token)]
    is_of_all = not any(token.is_word(*SET_OPERATORS) for token in clauses)
    is_last = is_of_all and any(limit.index == len(tokens) - 2 for limit in limits)
    return Statement(
        common=text[tokens[0].start : first.start].strip(),
        body=text[first.start : tokens[-1].end],
        columns=_read_columns(text, tokens, first, clauses, where),
        has_limit=bool(limits),
        limit=int(tokens[-1].text) if is_last and tokens[-1].text.isdecimal() else None,
    )


@dataclass(frozen=True)
class _Token:
    """A word, a number, something quoted or a mark.

    Attributes:
        index: Its place among the tokens.
        depth: How many brackets are open around it.
    """

    kind: str
    text: str
    start: int
    end: int
    index: int
    depth: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.upper() in words


def _read_tokens(text: str, where: str) -> list[_Token]:
    tokens: list[_Token] = []
    depth = 0
    for found in TOKEN.finditer(text):
        kind, piece = str(found.lastgroup), found[0]
        if kind == "space":
            continue
        depth -= kind == "mark" and piece in ")]"
        if depth < 0:
            raise SettingsError(f"{where} has a {piece} that nothing opens.")
        tokens.append(_Token(kind, piece, found.start(), found.end(), len(tokens), depth))
        depth += kind == "mark" and piece in "(["
    if depth:
        raise SettingsError(f"{where} has a bracket that is never closed.")
    return tokens


def _check(tokens: Sequence[_Token], where: str) -> None:
    """Refuses what would change the query around it, and OFFSET."""
    for token in tokens:
        if token.kind == "mark" and token.text in STRAY:
            raise SettingsError(f"{where} cannot be read: {STRAY[token.text]}.")
        if _is_offset(tokens, token):
            raise SettingsError(
                f"{where} has an OFFSET, which PostHog refuses, and which misses rows or repeats them when "
                "others come or go. Leave it out: all rows are read, page by page."
            )


def _is_offset(tokens: Sequence[_Token], token: _Token) -> bool:
    """Whether rows are skipped: OFFSET, but not that of SAMPLE, or the comma of `LIMIT 10, 20`."""
    following = tokens[token.index + 1 : token.index + 2]
    if token.is_word("OFFSET") and following and (following[0].kind == "number" or following[0].text == "("):
        before = token.index - 1
        while before >= 0 and (tokens[before].kind == "number" or tokens[before].text == "/"):
            before -= 1
        return not tokens[before].is_word("SAMPLE")
    is_limit = token.index >= 2 and tokens[token.index - 2].is_word("LIMIT")
    return is_limit and token.text == "," and tokens[token.index - 1].kind == "number"


def _is_limit_by(tokens: Sequence[_Token], limit: _Token) -> bool:
    return any(token.is_word("BY") for token in tokens[limit.index + 2 : limit.index + 3])


def _clauses(top: Sequence[_Token], first: int) -> list[_Token]:
    """The words after a SELECT that begin its other clauses, or another SELECT."""
    return [
        token
        for before, token in pairwise(top)
        if token.index > first
        and token.is_word(*LIST_ENDS)
        and before.text != "."
        and not before.is_word("AS")
        and not (before.text == "*" and token.is_word("EXCEPT"))
    ]


def _read_columns(
    text: str, tokens: Sequence[_Token], first: _Token, clauses: Sequence[_Token], where: str
) -> tuple[SelectColumn, ...]:
    end = clauses[0].index if clauses else len(tokens)
    columns: list[SelectColumn] = []
    item: list[_Token] = []
    for token in [*_after_distinct(tokens[first.index + 1 : end]), None]:
        if token is not None and not (token.text == "," and token.depth == first.depth):
            item.append(token)
        elif item:  # a comma may come last
            columns.append(_read_column(text, item))
            item = []
    names = Counter(column.name for column in columns if not column.is_star)
    for column in columns:
        if column.is_star:
            continue
        if column.name is None:
            raise SettingsError(_nameless(column, where))
        if names[column.name] > 1:
            raise SettingsError(
                f"{where} has two columns called {column.name}. Give one another name with AS."
            )
    return tuple(columns)


def _after_distinct(tokens: Sequence[_Token]) -> Sequence[_Token]:
    """Without DISTINCT or DISTINCT ON (…)."""
    if not tokens or not tokens[0].is_word("DISTINCT"):
        return tokens
    if len(tokens) < 2 or not tokens[1].is_word("ON"):
        return tokens[1:]
    closing = next((n for n, token in enumerate(tokens) if token.text == ")" and token.depth == 0), 1)
    return tokens[closing + 1 :]


def _read_column(text: str, item: Sequence[_Token]) -> SelectColumn:
    written = " ".join(text[item[0].start : item[-1].end].split())
    links = [token.text for token in item[1::2]]
    if item[0].text == "*" or item[-1].text == "*" or (item[0].is_word("COLUMNS") and len(item) > 1):
        return SelectColumn(written, None, is_star=True)
    is_chain = len(item) % 2 == 1 and set(links) <= {"."} and item[0].kind in ("word", "quoted")
    is_text = item[0].text.startswith("'")
    if len(item) > 2 and item[-2].is_word("AS"):
        return SelectColumn(written, _unquoted(item[-1].text))
    return SelectColumn(written, _unquoted(item[-1].text) if is_chain and not is_text else None)


def _unquoted(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name[1:-1], flags=re.DOTALL) if name[0] in "'\"`" else name


def _nameless(column: SelectColumn, where: str) -> str:
    shown = column.text if len(column.text) <= MAX_SHOWN_CHARS else f"{column.text[:MAX_SHOWN_CHARS]}…"
    return f"{where} has a column {shown} that PostHog gives no name. Write AS and a name after it."
