"""How PostHog writes each ClickHouse type as JSON, as SQL that writes it inside the engine.

PostHog turns the driver's Python values into JSON with orjson (OPT_UTC_Z). Doing that here for 60 MB would
hold Python's lock for seconds, so the text is made by ClickHouse and only joined here. It parses type names
as ClickHouse prints them and nothing else.
"""

import re

from posthog_emulator.hogql import literals

TIME_ZONE = re.compile(r"'([^']+)'$")
ELEMENT_NAME = re.compile(r"^(?:`(?:[^`\\]|\\.)*`|[A-Za-z_][A-Za-z0-9_]*)\s+(?=[A-Z])")
WRAPPERS = ("Nullable", "LowCardinality")
CONTAINERS = ("Array", "Tuple", "Map")
SELF_EXPLAINING = re.compile(r"^(U?Int(8|16|32|64)|Bool|Date|Date32|UUID|Enum8|Enum16|IPv4|IPv6)$")


class NoJsonFormError(Exception):
    """PostHog's encoder cannot write this type: the real server answers 500."""


def json_sql(value: str, type_name: str, depth: int = 0) -> str:
    """Build SQL whose result is the JSON text of `value`, an expression of type `type_name`."""
    name, inner = _split(type_name)
    if name in WRAPPERS:
        return _wrapper_sql(value, name, inner, depth)
    if name == "SimpleAggregateFunction":
        plain = _arguments(inner)[1]
        return json_sql(f"CAST({value}, {literals.text(plain)})", plain, depth)
    if name in CONTAINERS:
        return _container_sql(value, name, inner, depth)
    if name in {"DateTime", "DateTime64"}:
        return _datetime_sql(value, name, inner)
    if SELF_EXPLAINING.match(name):
        return f"toJSONString({value})"
    return _scalar_sql(value, type_name, name)


def _wrapper_sql(value: str, name: str, inner: str, depth: int) -> str:
    if inner == "Nothing":
        return "'null'"
    if name == "LowCardinality":
        return json_sql(f"CAST({value}, {literals.text(inner)})", inner, depth)
    return f"if(isNull({value}), 'null', {json_sql(f'assumeNotNull({value})', inner, depth)})"


def _scalar_sql(value: str, type_name: str, name: str) -> str:
    if name == "String":
        return f"if(isValidUTF8({value}), toJSONString({value}), toJSONString(toValidUTF8({value})))"
    if name in {"Float32", "Float64"}:
        # orjson writes 1.0 where ClickHouse writes 1; NaN and infinities are null in both.
        text = f"toJSONString({value})"
        return f"if(match({text}, '^-?[0-9]+$'), concat({text}, '.0'), {text})"
    if name.startswith("Decimal"):
        return f"concat('\"', toJSONString({value}), '\"')"
    if name == "Nothing":
        return "'null'"
    raise NoJsonFormError(type_name)  # 128 and 256 bit integers among others


def _datetime_sql(value: str, name: str, inner: str) -> str:
    micros = f"toDateTime64({value}, 6)" if name == "DateTime64" and not inner.startswith("6") else value
    seconds = f"formatDateTime({micros}, '%Y-%m-%dT%H:%i:%S')"
    fraction = "''"
    if name == "DateTime64":
        whole = f"toUnixTimestamp64Micro({micros}) % 1000000 = 0"
        fraction = f"if({whole}, '', formatDateTime({micros}, '.%f'))"
    return f"concat('\"', {seconds}, {fraction}, {_offset_sql(micros, inner)}, '\"')"


def _offset_sql(value: str, inner: str) -> str:
    zone = TIME_ZONE.search(inner)
    if zone is None:
        return "''"  # a type without a zone gives a naive datetime
    if zone[1] in {"UTC", "Etc/UTC"}:
        return "'Z'"
    offset = f"formatDateTime({value}, '%z')"
    return f"if({offset} = '+0000', 'Z', concat(substring({offset}, 1, 3), ':', substring({offset}, 4)))"


def _container_sql(value: str, name: str, inner: str, depth: int) -> str:
    item, key = f"_v{depth}", f"_k{depth}"
    parts = _arguments(inner)
    if name == "Tuple":
        elements = [ELEMENT_NAME.sub("", part) for part in parts]
        texts = [json_sql(f"tupleElement({value}, {n})", t, depth) for n, t in enumerate(elements, 1)]
        return "concat('[', " + ", ',', ".join(texts) + ", ']')" if texts else "'[]'"
    if name == "Map":
        if _split(parts[0])[0] not in {"String", "LowCardinality", "Nothing"}:
            raise NoJsonFormError(f"Map({inner})")
        pair = f"concat({json_sql(key, parts[0], depth + 1)}, ':', {json_sql(item, parts[1], depth + 1)})"
        pairs = f"arrayMap(({key}, {item}) -> {pair}, mapKeys({value}), mapValues({value}))"
        return f"concat('{{', arrayStringConcat({pairs}, ','), '}}')"
    items = f"arrayMap({item} -> {json_sql(item, inner, depth + 1)}, {value})"
    return f"concat('[', arrayStringConcat({items}, ','), ']')"


def _split(type_name: str) -> tuple[str, str]:
    name, parenthesis, rest = type_name.strip().partition("(")
    return name, rest[:-1].strip() if parenthesis else ""


def _arguments(inner: str) -> list[str]:
    """Split `a T, b U(x, y)` at its outer commas; quotes may hold commas and brackets."""
    parts, level, quote, start = [], 0, "", 0
    for position, character in enumerate(inner):
        if quote:
            quote = "" if character == quote and inner[position - 1] != "\\" else quote
        elif character in "'`":
            quote = character
        elif character in "()":
            level += 1 if character == "(" else -1
        elif character == "," and level == 0:
            parts.append(inner[start:position].strip())
            start = position + 1
    return [*parts, inner[start:].strip()] if inner else []
