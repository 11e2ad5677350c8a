"""The functions HogQL lets through, their argument counts, and what ClickHouse calls them.

A name that is not here is a 400, as on PostHog; ClickHouse knows a thousand more. Names are case sensitive
unless listed in CASE_INSENSITIVE. Facts: PostHog/posthog, `posthog/hogql/functions/`. Left out are functions
of other products (sparkline, recordingButton, cohort, flags), of bitmaps, maps of aggregates and geometry.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from posthog_emulator.hogql.errors import QueryError

MANY = 1_000_000


@dataclass(frozen=True)
class Function:
    """One function: how often it takes what, and the kind of value it gives ("" when PostHog knows none)."""

    name: str
    least: int
    most: int
    clickhouse: str
    kind: str = ""
    aggregate: bool = False
    parameters: tuple[int, int] = (0, 0)
    suffix: str = ""
    zoned: bool = False


def find_function(name: str) -> Function:
    """Look a function up as PostHog does: by exact name, then by lower case where the case is free."""
    found = FUNCTIONS.get(name) or CASE_INSENSITIVE.get(name.lower())
    if found is None:
        close = get_close_matches(name, FUNCTIONS, 1)
        hint = f". Perhaps you meant '{close[0]}(...)'?" if close else ""
        raise QueryError(f"Unsupported function call '{name}(...)'{hint}")
    return found


def check_arguments(function: Function, name: str, arguments: int, parameters: int) -> None:
    """Refuse a wrong number of arguments or parameters in PostHog's words."""
    term = "Aggregation" if function.aggregate else "Function"
    _check_count(term, name, "argument", function.least, function.most, arguments)
    _check_count(term, name, "parameter", *function.parameters, parameters)


def _check_count(term: str, name: str, what: str, least: int, most: int, found: int) -> None:
    if least <= found <= most:
        return
    bound, wanted = ("at least ", least) if found < least else ("at most ", most)
    bound = "" if least == most else bound
    raise QueryError(
        f"{term} '{name}' expects {bound}{wanted} {what}{'' if wanted == 1 else 's'}, found {found}"
    )


def _plain(table: str, kind: str = "", *, aggregate: bool = False) -> dict[str, Function]:
    """Read rows of `name least most`, most being `+` for any number."""
    rows = [line.split() for line in table.strip().splitlines()]
    return {
        name: Function(name, int(least), _most(most), name, kind, aggregate)
        for entry in rows
        for least, most in [entry[-1].split("-")]
        for name in entry[:-1]
    }


def _most(text: str) -> int:
    return MANY if text == "+" else int(text)


# Each row: names, then how many arguments they take, from least to most.
UNTYPED = """
    array 0-+
    arrayElement arrayPushBack arrayPushFront arrayAUC arrayWithConstant arrayRotateLeft arrayRotateRight 2-2
    arrayConcat arrayEnumerateUniq arrayFilter arrayMap arrayFill arraySplit arrayReverseFill 2-+
    arrayReverseSplit arrayFirst arrayLast arrayFirstIndex arrayLastIndex arrayZip 2-+
    arrayFold 3-+
    arrayCount arraySort arrayUniq arrayIntersect arrayExists arrayAll arrayCumSum arrayCumSumNonNegative 1-+
    arrayEnumerate arrayPopBack arrayPopFront arrayJoin arrayDifference arrayDistinct arrayReverse 1-1
    arrayFlatten arrayCompact arrayProduct arrayEnumerateDense 1-1
    arrayMin arrayMax arraySum arrayAvg arrayStringConcat 1-2
    arrayResize arraySlice 2-3
    has hasAll hasAny hasSubstr countEqual 2-2
    range 1-3
    reverse 1-1
    equals notEquals less greater lessOrEquals greaterOrEquals in notIn 2-2
    and or xor 2-+
    not 1-1
    multiIf 3-+
    if 3-3
    map 0-+
    mapFromArrays mapContains 2-2
    mapKeys mapValues 1-1
    bitAnd bitOr bitXor bitShiftLeft bitShiftRight bitTest 2-2
    bitNot 1-1
    tuple 0-+
    tupleElement 2-3
    hex unhex reinterpretAsUInt64 reinterpretAsUInt256 1-1
    toBool toJSONString toTypeName cityHash64 1-1
    toUUIDOrDefault 2-2
    coalesce greatest least 1-+
    toYear toQuarter toMonth toDayOfYear toDayOfMonth toHour toMinute toSecond timeZoneOf timeZoneOffset 1-1
    toDayOfWeek toWeek toYearWeek 1-3
    toUnixTimestamp 1-2
    toUnixTimestamp64Milli fromUnixTimestamp64Milli 1-1
    toISOYear toISOWeek toTime timeSlot toYYYYMM toYYYYMMDD toYYYYMMDDhhmmss monthName 1-1
    age 3-3
    addYears addMonths addWeeks addHours addMinutes addSeconds addQuarters 2-2
    subtractYears subtractMonths subtractWeeks subtractDays subtractHours subtractMinutes 2-2
    subtractSeconds subtractQuarters dateName 2-2
    formatDateTime timeSlots 2-3
    leftPad rightPad leftPadUTF8 rightPadUTF8 2-3
    lower upper lowerUTF8 upperUTF8 isValidUTF8 toValidUTF8 reverseUTF8 1-1
    format concatWithSeparator concat 2-+
    substring substringUTF8 convertCharset 3-3
    appendTrailingCharIfAbsent 2-2
    base58Encode base58Decode tryBase58Decode base64Encode base64Decode tryBase64Decode 1-1
    encodeXMLComponent decodeXMLComponent extractTextFromHTML 1-1
    like ilike notLike notILike 2-2
    extractAll extractAllGroupsHorizontal extractAllGroupsVertical extractGroups 2-2
    multiSearchAllPositions multiSearchFirstPosition multiSearchFirstIndex multiSearchAny 2-2
    multiSearchAnyCaseInsensitive multiMatchAny multiMatchAnyIndex multiMatchAllIndices 2-2
    replace replaceAll replaceOne replaceRegexpAll replaceRegexpOne translate translateUTF8 3-3
    regexpQuoteMeta 1-1
    splitByChar splitByString splitByRegexp 2-3
    splitByWhitespace splitByNonAlpha alphaTokens 1-2
    ngrams 2-2
    tokens 1-1
    isValidJSON 1-1
    JSONHas JSONLength JSONArrayLength JSONType JSONExtractUInt JSONExtractInt JSONExtractFloat 1-+
    JSONExtractBool JSONExtractString JSONExtractKeys JSONExtractRaw JSONExtractArrayRaw 1-+
    JSONExtractKeysAndValuesRaw 1-+
    JSONExtract JSON_VALUE 2-+
    e pi rand 0-0
    exp log ln exp2 log2 exp10 log10 sqrt cbrt erf erfc sin cos tan asin acos atan 1-1
    cosh acosh sinh asinh atanh log1p sign degrees radians factorial intExp2 intExp10 1-1
    pow power atan2 hypot roundDown 2-2
    floor ceil trunc round roundBankers 1-2
    roundToExp2 1-1
    multiplyDecimal divideDecimal 2-3
    protocol domain domainWithoutWWW topLevelDomain path pathFull queryString fragment 1-1
    extractURLParameters extractURLParameterNames decodeURLComponent encodeURLComponent cutQueryString 1-1
    cutWWW cutFragment 1-1
    extractURLParameter cutURLParameter 2-2
    isNull isNotNull isFinite isInfinite isNaN 1-1
    ifNotFinite 2-2
    indexHint 1-1
"""
WHOLE_NUMBERS = """
    plus minus multiply divide intDiv intDivOrZero modulo moduloOrZero positiveModulo gcd lcm max2 min2 2-2
    negate abs 1-1
    empty notEmpty length lengthUTF8 ascii 1-1
    indexOf startsWith endsWith match countMatches hasToken hasSubsequence 2-2
    position positionCaseInsensitive positionUTF8 positionCaseInsensitiveUTF8 locate countSubstrings 2-3
    dateDiff 3-3
"""
TEXTS = """
    extract repeat 2-2
    regexpExtract 2-3
    initcap 1-1
    lpad rpad 3-3
    trim trimLeft trimRight 1-2
"""
DATES = """
    toStartOfMonth 1-1
    toStartOfWeek 1-2
    today yesterday 0-0
"""
DATETIMES = """
    toStartOfDay 1-2
    toStartOfHour toStartOfMinute toStartOfSecond fromUnixTimestamp 1-1
    toStartOfInterval dateTrunc 2-3
    addDays 2-2
    dateAdd dateSub 2-3
"""
# Typed neither as dates nor as datetimes by PostHog, though ClickHouse gives one or the other.
OTHER_DATES = """
    toStartOfYear toStartOfISOYear toStartOfQuarter toLastDayOfMonth toMonday toStartOfFiveMinutes 1-1
    toStartOfTenMinutes toStartOfFifteenMinutes 1-1
    toLastDayOfWeek 1-2
"""
INTERVALS = """
    toIntervalSecond toIntervalMinute toIntervalHour toIntervalDay toIntervalWeek toIntervalMonth 1-1
    toIntervalQuarter toIntervalYear 1-1
"""
AGGREGATES = """
    count 0-1
    countIf 1-2
    countDistinct 1-1
    countDistinctIf 1-2
    min max sum avg any anyLast anyHeavy stddevPop stddevSamp varPop varSamp median medianExact 1-1
    minIf maxIf sumIf avgIf anyIf anyLastIf anyHeavyIf stddevPopIf stddevSampIf varPopIf varSampIf 2-2
    medianIf medianExactIf groupArrayIf groupUniqArrayIf 2-2
    argMin argMax covarPop covarSamp corr avgWeighted 2-2
    argMinIf argMaxIf 3-3
    groupArray groupUniqArray groupUniqArrayArray 1-1
    groupBitAnd groupBitOr groupBitXor groupBitmap sumWithOverflow 1-1
    uniq uniqExact uniqHLL12 1-+
    uniqIf uniqExactIf 2-+
    minOrNull maxOrNull sumOrNull avgOrNull minOrDefault maxOrDefault sumOrDefault avgOrDefault 1-1
    sumForEach minForEach maxForEach sumArray minArray maxArray 1-1
    sumMap minMap maxMap 1-2
    argMinMerge argMaxMerge uniqMerge 1-1
    uniqExactMerge 1-+
    windowFunnel 1-99
"""
# Where PostHog prints another name, adds arguments, or takes parameters.
SPECIAL = (
    Function("toInt", 1, 1, "accurateCastOrNull", suffix="'Int64'"),
    Function("toFloat", 1, 1, "accurateCastOrNull", suffix="'Float64'"),
    Function("toUUID", 1, 1, "accurateCastOrNull", suffix="'UUID'"),
    Function("toIntOrZero", 1, 1, "toInt64OrZero", "number"),
    Function("toFloatOrZero", 1, 1, "toFloat64OrZero", "number"),
    Function("toFloatOrDefault", 1, 2, "toFloat64OrDefault", "number"),
    Function("toDecimal", 2, 2, "accurateCastOrNull"),
    Function("toString", 1, 2, "toString", "text"),
    Function("toDate", 1, 1, "toDateOrNull", "date"),
    Function("toDateTime", 1, 2, "parseDateTime64BestEffortOrNull", "datetime", zoned=True),
    Function("toDateTime64", 1, 3, "toDateTime64", "datetime", zoned=True),
    Function("toDateTimeUS", 1, 2, "parseDateTime64BestEffortUSOrNull", "datetime", zoned=True),
    Function("parseDateTime", 2, 3, "parseDateTimeOrNull", zoned=True),
    Function("parseDateTimeBestEffort", 1, 2, "parseDateTime64BestEffortOrNull", zoned=True),
    Function("UUIDv7ToDateTime", 1, 1, "UUIDv7ToDateTime", zoned=True),
    Function("toTimeZone", 1, 2, "toTimeZone", "datetime", zoned=True),
    Function("now", 0, 1, "now64", "datetime", zoned=True),
    Function("left", 2, 2, "leftUTF8", "text"),
    Function("right", 2, 2, "rightUTF8", "text"),
    Function("arrayReverseSort", 1, MANY, "arraySort"),
    Function("isEmpty", 1, 1, "empty", "number"),
    Function("isNotEmpty", 1, 1, "notEmpty", "number"),
    Function("ifNull", 2, 2, "ifNull", "same"),
    Function("nullIf", 2, 2, "nullIf", "same"),
    Function("assumeNotNull", 1, 1, "assumeNotNull", "same"),
    Function("toNullable", 1, 1, "toNullable", "same"),
    Function("quantile", 1, 1, "quantile", aggregate=True, parameters=(1, 1)),
    Function("quantileIf", 2, 2, "quantileIf", aggregate=True, parameters=(1, 1)),
    Function("quantileExact", 1, 1, "quantileExact", aggregate=True, parameters=(1, 1)),
    Function("quantiles", 1, MANY, "quantiles", aggregate=True, parameters=(0, MANY)),
    Function("uniqUpToMerge", 1, 1, "uniqUpToMerge", aggregate=True, parameters=(1, 1)),
    Function("topK", 1, 1, "topK", aggregate=True, parameters=(1, 1)),
    Function("groupArraySample", 1, 1, "groupArraySample", aggregate=True, parameters=(1, 2)),
)
FREE_CASE = """
    abs max2 min2 length reverse lower upper concat substring ascii position extract replace trim if not
    isNull ifNull nullIf coalesce exp log ln log2 log10 sqrt sin cos tan asin acos atan pow power sign degrees
    radians factorial floor ceil trunc round now count min max sum avg
"""
FUNCTIONS: dict[str, Function] = {
    **_plain(UNTYPED),
    **_plain(WHOLE_NUMBERS, "number"),
    **_plain(TEXTS, "text"),
    **_plain(DATES, "date"),
    **_plain(DATETIMES, "datetime"),
    **_plain(OTHER_DATES),
    **_plain(INTERVALS, "interval"),
    **_plain(AGGREGATES, aggregate=True),
    **{function.name: function for function in SPECIAL},
}
CASE_INSENSITIVE = {name.lower(): FUNCTIONS[name] for name in FREE_CASE.split()}
