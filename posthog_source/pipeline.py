"""Where a dlt pipeline loads to: its destination and how that is configured, and pipelines beside it.

Not here: how rows are written there (`destination`), and what runs do (`runs`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dlt
from dlt.common.configuration import inject_section
from dlt.common.configuration.specs import ConfigSectionContext
from dlt.common.destination import Destination
from dlt.dataset.utils import get_destination_clients

from posthog_source.errors import SettingsError

DUCKDB_HEADERS_BYTES = 3 * 4_096
"""DuckDB writes them as it makes a file; one that a killed process has left without them opens no more."""

OF_THE_PIPELINE = {
    "as_staging_destination",
    "dataset_name",
    "default_schema_name",
    "destination_type",
    "legacy_db_path",
    "pipeline_name",
    "pipeline_working_dir",
    "staging_config",
}
"""Of a destination's configuration: what dlt sets by itself."""


def destination_of(pipeline: dlt.Pipeline) -> Destination[Any, Any]:
    """A pipeline's destination.

    Raises:
        SettingsError: It has none.
    """
    if pipeline.destination is None:
        raise SettingsError("The pipeline has no destination. Give it one: dlt.pipeline(destination=…).")
    return pipeline.destination


def settings_below(name: str | None) -> AbstractContextManager[Any]:
    """Settings that stand below a pipeline's name go first, while none is active."""
    return inject_section(ConfigSectionContext(pipeline_name=name))


def configurations_of(pipeline: dlt.Pipeline) -> tuple[Any, Any]:
    """How a pipeline's destination is configured, and its staging area or None; their credentials too.

    Raises:
        SettingsError: The pipeline has no destination.
    """
    # Not pipeline.destination_client(): it reads the pipeline's schema anew, under the hands of a sync that
    # runs meanwhile in another thread (dlt 1.31).
    with settings_below(pipeline.pipeline_name):
        client, staging = get_destination_clients(
            dlt.Schema("posthog"),
            destination_of(pipeline),
            pipeline.dataset_name,
            staging=pipeline.staging,
            staging_dataset_name=pipeline.dataset_name,
        )
    return client.config, staging.config if staging else None


def beside(pipeline: dlt.Pipeline, suffix: str) -> dlt.Pipeline:
    """A pipeline into the same dataset, with a state and staging tables of its own; it is active then.

    Raises:
        SettingsError: The pipeline has no destination.
    """
    to, staged = configurations_of(pipeline)
    name = f"{pipeline.pipeline_name}_{suffix}"
    staging = pipeline.staging and _as_configured(pipeline.staging, staged, **_staged_apart(staged, to, name))
    return dlt.pipeline(
        name,
        pipelines_dir=pipeline.pipelines_dir,
        destination=_as_configured(destination_of(pipeline), to, **_apart(to, name)),
        staging=staging,
        dataset_name=pipeline.dataset_name,
        progress=pipeline.collector,
    )


def database_file(pipeline: dlt.Pipeline) -> Path | None:
    """The file that is the whole warehouse, if one is.

    Raises:
        SettingsError: The pipeline has no destination.
    """
    if destination_of(pipeline).destination_type != "dlt.destinations.duckdb":
        return None
    config, _ = configurations_of(pipeline)
    path = str(config.credentials.database)
    return None if path.startswith(":") else Path(path)


def require_whole(file: Path | None) -> None:
    """That a database's file, where there is one, is not what a kill has left in its first moment.

    Such a file is not deleted here, empty as it is: another process may be about to write it.

    Raises:
        SettingsError: It is.
    """
    if file and file.exists() and file.stat().st_size < DUCKDB_HEADERS_BYTES:
        raise SettingsError(
            f"{file} has {file.stat().st_size} bytes, too few for a database: a process was killed as it "
            "made the file. Nothing is in it: delete it, and run again."
        )


def _apart(config: Any, name: str) -> dict[str, str]:
    """Staging tables by the whole name: workers elsewhere may load other ranges meanwhile."""
    has_layout = hasattr(config, "staging_dataset_name_layout")
    return {"staging_dataset_name_layout": f"%s_staging_{name}"} if has_layout else {}


def _staged_apart(config: Any, to: Any, name: str) -> dict[str, str]:
    """Staged files too: before a load, dlt deletes those of its tables, whichever pipeline put them there.

    But for Athena, whose tables are those files.
    """
    folder = {"bucket_url": f"{config.bucket_url.rstrip('/')}/{name}"}
    return _apart(config, name) | ({} if to.destination_type == "athena" else folder)


def _as_configured(destination: Destination[Any, Any], config: Any, **changes: Any) -> Destination[Any, Any]:
    """The destination for pipelines of other names, who would look it up, or derive it, by their own."""
    names = set(config.get_resolvable_fields()) - OF_THE_PIPELINE
    known = {name: value for name in names if (value := getattr(config, name)) is not None}
    params = destination.caps_params | destination.config_params | known | changes
    return type(destination)(**params | {"destination_name": destination.destination_name})
