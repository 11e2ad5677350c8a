"""OpenTelemetry spans, where `opentelemetry-api` is installed; nothing otherwise.

Attributes are those of OpenTelemetry's conventions for HTTP clients, and `posthog_source.…`. No key, no HogQL
and no message of an error is among them. Not here: where spans go, which a program sets up for itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

Value = str | int | float | bool

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """An open span, or none."""

    _span: Any = None

    def tell(self, attributes: dict[str, Value]) -> None:
        """Adds attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        """Marks what the span is of as failed: by an error's name or a status."""
        if self._span is not None:
            self._span.set_attribute("error.type", kind)
            self._span.set_status(_trace().StatusCode.ERROR)  # type: ignore[union-attr]


@contextmanager
def span(name: str, attributes: dict[str, Value], *, is_request: bool = False) -> Iterator[Span]:
    """A span of what the block does; spans that it opens, also in threads of `prefetch`, lie within it."""
    trace = _trace()
    if trace is None:
        yield Span()
        return
    kind = trace.SpanKind.CLIENT if is_request else trace.SpanKind.INTERNAL
    tracer = trace.get_tracer("posthog_source")
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield Span(opened)
        except GeneratorExit:
            raise
        except BaseException as error:
            Span(opened).fail(type(error).__qualname__)
            raise


def spanned(name: str, attributes: dict[str, Value], items: Generator[T]) -> Iterator[T]:
    """The items of a generator, and a span of its work, in which what is done with them does not lie."""
    return items if _trace() is None else _spanned(name, attributes, items)


def _spanned(name: str, attributes: dict[str, Value], items: Generator[T]) -> Iterator[T]:
    inside, opened, end = copy_context(), span(name, attributes), object()
    inside.run(opened.__enter__)
    try:
        while (item := inside.run(next, items, end)) is not end:
            yield item  # type: ignore[misc]
            del item  # not kept while the next one is awaited
    except BaseException as error:
        inside.run(items.close)
        inside.run(opened.__exit__, type(error), error, error.__traceback__)
        raise
    inside.run(opened.__exit__, None, None, None)


@cache
def _trace() -> ModuleType | None:
    """OpenTelemetry's tracing, imported when the first span opens."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace
