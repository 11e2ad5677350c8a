"""What is wrong with a HogQL query, and the code that PostHog answers it with.

    HogQLError              hogql_error         the base; also what PostHog has and this emulator has not
    ├── HogQLSyntaxError    hogql_syntax_error  the text does not parse
    ├── TableAccessDenied…  table_access_denied the table is there, but not for whoever owns the key
    ├── QueryError          hogql_query_error   it parses, but names or asks for something that is not there
    └── ResolutionError     invalid_input       PostHog's internal errors, shown without a HogQL code

Facts: `posthog/hogql/errors.py` and `posthog/api/query.py` in PostHog/posthog.
"""


class HogQLError(Exception):
    """A query that gets a 400."""

    code = "hogql_error"


class HogQLSyntaxError(HogQLError):
    """The text does not parse."""

    code = "hogql_syntax_error"


class QueryError(HogQLError):
    """It parses, but it is not a query that PostHog runs."""

    code = "hogql_query_error"


class TableAccessDeniedError(HogQLError):
    """The table is there, but not for whoever owns the key."""

    code = "table_access_denied"


class ResolutionError(HogQLError):
    """A name cannot be resolved to one thing."""

    code = "invalid_input"


def not_emulated(what: str) -> HogQLError:
    """PostHog can do this; the emulator says so rather than guess."""
    return HogQLError(f"posthog_emulator does not emulate {what}.")
