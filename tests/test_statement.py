"""A person's SELECT, looked at: what can stand inside another one, and what its columns are called."""

from __future__ import annotations

import pytest

from posthog_source.errors import SettingsError
from posthog_source.statement import read_statement


def names(text: str) -> list[str | None]:
    return [column.name for column in read_statement(text, "It").columns]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT event, e.uuid, properties.$browser FROM events AS e", ["event", "uuid", "$browser"]),
        ("SELECT `a b`, \"c\" FROM t", ["a b", "c"]),
        ("select count() as n, (1 + 2) AS `x``", None),
        ("SELECT DISTINCT event FROM events", ["event"]),
        ("SELECT DISTINCT ON (event, uuid) event, uuid FROM events", ["event", "uuid"]),
        ("SELECT event, FROM events", ["event"]),
        ("SELECT if(a, b, c) AS d, [1, 2] AS e, tuple(1, (2, 3)) AS f", ["d", "e", "f"]),
        ("SELECT 'from, where' AS a, /* , AS z */ 1 AS b -- , 2 AS c\n, 3 AS d", ["a", "b", "d"]),
        ("SELECT 'it''s' AS a, 'a\\'b,' AS b FROM t", ["a", "b"]),
        ("SELECT trim(LEADING 'x' FROM y) AS a, left(b, 3) AS c FROM t", ["a", "c"]),
        ("WITH 5 AS five, t AS (SELECT 1 AS one FROM x) SELECT one, five FROM t", ["one", "five"]),
        ("SELECT a FROM t UNION ALL SELECT b FROM t", ["a"]),
        ("SELECT t.order AS `limit`, 1 AS `from` FROM t", ["limit", "from"]),
        ("SELECT a AS limit, b AS c FROM t", ["limit", "c"]),
        ("SELECT *, 1 AS a FROM t", [None, "a"]),
        ("SELECT t.*, 1 AS a FROM t", [None, "a"]),
        ("SELECT * EXCEPT (b), 1 AS a FROM t", [None, "a"]),
    ],
)  # fmt: skip
def test_columns_are_called_as_the_select_says(text: str, expected: list[str | None] | None) -> None:
    if expected is None:
        with pytest.raises(SettingsError, match="quote that is never closed"):
            names(text)
    else:
        assert names(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SELECT count() FROM t", r"a column count\(\) that PostHog gives no name"),
        ("SELECT 1 AS a, b + c FROM t", r"a column b \+ c that"),
        ("SELECT a, count() n FROM t", r"a column count\(\) n that"),
        ("SELECT 'text' FROM t", "a column 'text' that"),
        ("SELECT " + "very_" * 30 + "long() FROM t", "…"),
        ("SELECT a, b AS a FROM t", "two columns called a"),
        ("SELECT a FROM t LIMIT 10 OFFSET 5", "OFFSET"),
        ("SELECT a FROM t LIMIT 5, 10", "OFFSET"),
        ("SELECT a FROM (SELECT a FROM t LIMIT 10 offset 5)", "OFFSET"),
        ("SELECT a FROM t LIMIT 1 OFFSET 2 BY b", "OFFSET"),
        ("SELECT a FROM t; SELECT b FROM t", "more than one statement"),
        ("SELECT a FROM t WHERE b = {c}", "no values to fill"),
        ("SELECT a FROM t WHERE (b = 1", "never closed"),
        ("SELECT a FROM t) UNION ALL (SELECT b FROM t", r"a \) that nothing opens"),
        ("SELECT [a FROM t", "never closed"),
        ("SELECT a FROM t WHERE b = 'c", "quote that is never closed"),
        ("SELECT a FROM t /* b", "comment that is never closed"),
        ("SELECT a FROM t # b", "stray #"),
        ("(SELECT a FROM t)", "must begin with SELECT or WITH"),
        ("WITH t AS (SELECT 1 AS a)", "must begin with SELECT or WITH"),
        ("DROP TABLE t", "must begin with SELECT or WITH"),
        (" -- nothing", "must begin with SELECT or WITH"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as failure:
        read_statement(text, "The query plans")

    assert str(failure.value).startswith("The query plans ")
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a FROM t SAMPLE 1/10 OFFSET 1/2",
        "SELECT offset, a AS b FROM t WHERE offset > 5",
        "SELECT a FROM t WHERE b = 'LIMIT 10 OFFSET 5'",
        "SELECT a FROM t WHERE b = '{c}; # /*'",
    ],
)
def test_what_only_looks_wrong_is_let_through(text: str) -> None:
    assert read_statement(text, "It").body == text


@pytest.mark.parametrize(
    ("text", "has_limit", "limit"),
    [
        ("SELECT a FROM t", False, None),
        ("SELECT a FROM t ORDER BY a LIMIT 10", True, 10),
        ("SELECT a FROM t LIMIT 2 BY b", False, None),
        ("SELECT a FROM t LIMIT 2 BY b LIMIT 10", True, 10),
        ("SELECT a FROM (SELECT a FROM t LIMIT 10)", False, None),
        ("WITH t AS (SELECT 1 AS a LIMIT 10) SELECT a FROM t", False, None),
        ("SELECT a FROM t LIMIT 5 + 5", True, None),
        ("SELECT a FROM t UNION ALL SELECT b FROM t LIMIT 10", True, None),
    ],
)
def test_a_limit_is_the_selects_own(text: str, has_limit: bool, limit: int | None) -> None:
    statement = read_statement(text, "It")

    assert (statement.has_limit, statement.limit) == (has_limit, limit)


def test_what_follows_a_select_is_left_behind_and_what_comes_before_is_told_apart() -> None:
    statement = read_statement(
        "-- plans\nWITH t AS (SELECT 1 AS a) -- one\nSELECT a FROM t ; -- done\n;", "It"
    )

    assert statement.body == "SELECT a FROM t"
    assert statement.common == "WITH t AS (SELECT 1 AS a) -- one"
