"""One HogQL query without a warehouse: its pages, or a Parquet or CSV file. For `posthog-source query`.

Not here: queries as tables (`queries`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from dlt.extract.exceptions import ResourceExtractionError

from posthog_source.errors import SettingsError, find_cause
from posthog_source.source import posthog_query

SUFFIXES = (".parquet", ".csv")


def fetch_pages(statement: str, **settings: Any) -> Iterator[pa.Table]:
    """Pages of a query's rows, under the types that the answer tells; the first one has no rows.

    Args:
        statement: One HogQL SELECT, whose computed columns have names.
        settings: Of `posthog_query`; the others come from `.dlt/` or the environment.

    Raises:
        SettingsError: It is no query that PostHog takes, with PostHog's own words.
        AuthenticationError, AccessDeniedError, …: See `errors`.
    """
    try:
        for page in posthog_query("query", statement, **settings):
            yield page.drop_columns(["project_id"])
    except ResourceExtractionError as error:
        raise find_cause(error) or error from None


def write_pages(pages: Iterable[pa.Table], path: Path) -> int:
    """Writes them into a Parquet or CSV file; how many rows it has.

    A file that could not be written whole is removed.

    Raises:
        SettingsError: The file's name ends otherwise.
    """
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"{path.name} ends neither in .parquet nor in .csv. Name the file so.")
    rows = 0
    writer: Any = None
    try:
        for page in pages:
            writer = writer or _writer(path, page.schema)
            writer.write_table(page)
            rows += page.num_rows
        if writer is not None:
            writer.close()
    except BaseException:
        if writer is not None:
            with suppress(OSError):  # such as a full disk, which is what ended it
                writer.close()
            path.unlink(missing_ok=True)
        raise
    return rows


def _writer(path: Path, schema: pa.Schema) -> Any:
    if path.suffix == ".csv":
        return pyarrow.csv.CSVWriter(path, schema)
    return pyarrow.parquet.ParquetWriter(path, schema)
