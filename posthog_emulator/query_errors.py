"""What went wrong with a query, as the status and code that PostHog answers.

Facts: PostHog/posthog `posthog/errors.py`, `posthog/exceptions.py` and `posthog/api/query.py`.
"""

from posthog_emulator.clickhouse import ClickHouseError
from posthog_emulator.clickhouse_json import NoJsonFormError
from posthog_emulator.envelope import ApiError
from posthog_emulator.hogql.errors import HogQLError

# ClickHouse errors that PostHog shows to the user, as a 400 with the name in lower case.
EXPOSED = {
    "AMBIGUOUS_IDENTIFIER",
    "ARGUMENT_OUT_OF_BOUND",
    "BAD_ARGUMENTS",
    "CANNOT_CONVERT_TYPE",
    "CANNOT_PARSE_BOOL",
    "CANNOT_PARSE_DATE",
    "CANNOT_PARSE_DATETIME",
    "CANNOT_PARSE_NUMBER",
    "CANNOT_PARSE_UUID",
    "CANNOT_READ_ARRAY_FROM_TEXT",
    "CYCLIC_ALIASES",
    "ILLEGAL_AGGREGATION",
    "ILLEGAL_COLUMN",
    "ILLEGAL_DIVISION",
    "ILLEGAL_TYPE_OF_ARGUMENT",
    "ILLEGAL_TYPE_OF_COLUMN_FOR_FILTER",
    "INCOMPATIBLE_COLUMNS",
    "INCOMPATIBLE_TYPE_OF_JOIN",
    "INCORRECT_QUERY",
    "INCORRECT_RESULT_OF_SCALAR_SUBQUERY",
    "INVALID_JOIN_ON_EXPRESSION",
    "NOT_AN_AGGREGATE",
    "NO_COMMON_TYPE",
    "NUMBER_OF_ARGUMENTS_DOESNT_MATCH",
    "SIZES_OF_ARRAYS_DONT_MATCH",
    "TOO_FEW_ARGUMENTS_FOR_FUNCTION",
    "TOO_LARGE_ARRAY_SIZE",
    "TOO_MANY_ARGUMENTS_FOR_FUNCTION",
    "TOO_MANY_BYTES",
    "TYPE_MISMATCH",
    "UNION_ALL_RESULT_STRUCTURES_MISMATCH",
    "UNKNOWN_AGGREGATE_FUNCTION",
    "UNKNOWN_FUNCTION",
    "UNKNOWN_TABLE",
    "UNKNOWN_TYPE",
    "UNSUPPORTED_JOIN_KEYS",
    "ZERO_ARRAY_OR_TUPLE_INDEX",
}
TIMEOUT = (
    "Query has hit the max execution time before completing. Reduce its time range, or submit it as an async "
    "query, which may run for longer."
)
MEMORY = "Query has reached its memory limit. Reduce its scope by changing the time range."
BUSY = "Queries are a little too busy right now. We're working to free up resources. Please try again later."
INTERNAL = "ClickHouse error while executing query."
STATUSES = {
    "TIMEOUT_EXCEEDED": (504, TIMEOUT),
    "TOO_SLOW": (512, "Estimated query execution time is too long. Try reducing its scope."),
    "MEMORY_LIMIT_EXCEEDED": (513, MEMORY),
    "TOO_MANY_SIMULTANEOUS_QUERIES": (503, BUSY),
}


def to_api_error(error: Exception) -> ApiError:
    """Turn any failure of a query into its answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HogQLError):
        return ApiError(400, str(error), code=error.code)
    if isinstance(error, ClickHouseError):
        return _clickhouse_error(error)
    if isinstance(error, NoJsonFormError):
        return ApiError(500, "A server error occurred.")
    raise error


def exposed_message(error: ApiError) -> str | None:
    """What an async query's status says of its failure: nothing, when PostHog would not show it."""
    return None if error.status in {429, 500} else error.detail


def _clickhouse_error(error: ClickHouseError) -> ApiError:
    if error.name in STATUSES:
        status, detail = STATUSES[error.name]
        return ApiError(status, detail)
    if error.name in EXPOSED:
        return ApiError(400, error.message, code=error.name.lower())
    return ApiError(500, INTERNAL)
