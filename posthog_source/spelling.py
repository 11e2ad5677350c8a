"""Warns of keys in toml or the environment that name no setting, and suggests the nearest right name.

dlt passes over what it is not asked for. Only providers are looked through that have read all they hold
already: a vault can only be asked key by key, over the network. A value is never shown, since it may be the
API key. Not here: values (`config`), which settings there are (`source`), keys of a query (`query_tables`).
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Any, get_args, get_type_hints

from dlt.common.configuration.container import Container
from dlt.common.configuration.providers import EnvironProvider, VaultDocProvider
from dlt.common.configuration.providers.doc import BaseDocProvider
from dlt.common.configuration.specs import BaseConfiguration, PluggableRunContext
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext

Known = Mapping[str, frozenset[str]]
"""Names of settings by section; under the empty name, those that stand in none."""

OF_DLT = frozenset({"data_writer", "extract", "max_table_nesting", "parallelized", "root_key", "schema"}) | {
    "cursor",  # of a resource, as `incremental`
    "schema_contract",
}
"""What dlt itself takes below a source's section, or may."""

logger = logging.getLogger("posthog_source")


@dataclass(frozen=True)
class Key:
    """A key that somebody wrote below a source's section.

    Attributes:
        path: Its name after those of the sections that it stands in.
        place: Where it is written.
        show: How a path is written there.
    """

    path: tuple[str, ...]
    place: str
    show: Callable[[tuple[str, ...]], str]


def known_settings(*sources: Callable[..., Any]) -> Known:
    """What may be set, by the arguments of source functions: one that holds a configuration is a section."""
    known: dict[str, frozenset[str]] = {"": frozenset()}
    for source in sources:
        hints = get_type_hints(inspect.unwrap(source))
        for name in inspect.signature(source).parameters:
            section = _section(hints[name])
            if section:
                known[name] = frozenset(section.get_resolvable_fields())
            else:
                known[""] |= {name}
    return known


def warn_of_unknown_keys(known: Known) -> None:
    """Warns of each key below the section of the source that is being made, of which no setting is known.

    Those of the active pipeline too, which stand below its name and go before the others.
    """
    context = Container()[ConfigSectionContext]
    _, section, name = context.sections
    above = [("sources",), *([(context.pipeline_name, "sources")] if context.pipeline_name else [])]
    places = [(*each, part) for each in above for part in dict.fromkeys((section, name))]
    told: set[tuple[str, ...]] = set()
    for key in chain.from_iterable(map(_iter_keys, places)):
        wrong = find_unknown(key.path, known)
        if wrong and (key.place, *wrong) not in told:
            told.add((key.place, *wrong))
            logger.warning("%s", _explain(key, wrong, known))


def find_unknown(path: tuple[str, ...], known: Known) -> tuple[str, ...]:
    """The beginning of a path, up to what names no section and no setting; nothing if all of it is right."""
    first, *rest = path
    if first in known and rest:
        return () if rest[0] in known[first] | OF_DLT else path[:2]
    is_right = first in known[""] | known.keys() | OF_DLT
    is_of_clone = bool(rest) and rest[0] in known[""] | known.keys()  # of the same section, by its name
    return () if is_right or is_of_clone else path[:1]


def nearest(wrong: tuple[str, ...], known: Known) -> list[tuple[str, ...]]:
    """Paths that were probably meant: the same name elsewhere, else one much like it, the section's first."""
    *above, name = wrong
    sections = [(section,) for section in known if section]
    paths = sections + [(*((part,) if part else ()), each) for part in known for each in sorted(known[part])]
    if same := [path for path in paths if path[-1] == name]:
        return same
    for some in ([path for path in paths if path[:-1] == tuple(above)], paths):
        if close := get_close_matches(name, list(dict.fromkeys(path[-1] for path in some)), n=1):
            return [path for path in some if path[-1] == close[0]]
    return []


def _section(hint: Any) -> type[BaseConfiguration] | None:
    kinds = (kind for kind in (hint, *get_args(hint)) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseConfiguration)), None)


def _iter_keys(sections: tuple[str, ...]) -> Iterator[Key]:
    """Keys below the last one of some sections, of all providers that can be listed."""
    for provider in Container()[PluggableRunContext].providers.providers:
        if isinstance(provider, EnvironProvider):
            yield from _variables(sections)
        elif isinstance(provider, BaseDocProvider) and not isinstance(provider, VaultDocProvider):
            yield from _keys_of(provider, sections)


def _variables(sections: tuple[str, ...]) -> Iterator[Key]:
    prefix = EnvironProvider.get_key_name("", *sections)

    def show(path: tuple[str, ...]) -> str:
        return prefix + "__".join(path).upper()

    for name in os.environ:
        if name.startswith(prefix) and len(name) > len(prefix):
            yield Key(tuple(name.removeprefix(prefix).lower().split("__")), "the environment", show)


def _keys_of(document: BaseDocProvider, sections: tuple[str, ...]) -> Iterator[Key]:
    def show(path: tuple[str, ...]) -> str:
        return f"{path[-1]} under [{'.'.join((*sections, *path[:-1]))}]"

    *above, section = sections
    found, _ = document.get_value(section, dict, "", *above)
    for path in _paths(found if isinstance(found, Mapping) else {}):
        place = document.get_value_location(path[-1], "", *sections, *path[:-1])
        yield Key(path, place or document.name, show)


def _paths(node: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in node.items():
        below = _paths(value) if isinstance(value, Mapping) and value else [()]
        yield from ((name, *path) for path in below)


def _explain(key: Key, wrong: tuple[str, ...], known: Known) -> str:
    what = f"{key.show(wrong)} in {key.place} is no setting and does nothing."
    if meant := nearest(wrong, known):
        return f"{what} Did you mean {' or '.join(map(key.show, meant))}?"
    names = known[wrong[0]] if len(wrong) > 1 else known[""] | known.keys() - {""}
    return f"{what} There are {', '.join(sorted(names))}."
