"""`$channel_type` of a session: PostHog's rules over a short list of sources instead of its long one.

PostHog looks sources, domains and mediums up in a long dictionary (`channel_definition_dict`); one that is
not listed here counts as unknown to it. The rules around the look-ups are those of PostHog/posthog
`posthog/hogql/database/schema/channel_type.py`. Not for custom rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SEARCH = ("google", "bing", "duckduckgo", "yahoo", "ecosia", "baidu", "yandex", "brave")
_SOCIAL = ("facebook", "instagram", "linkedin", "twitter", "reddit", "tiktok", "pinterest", "ycombinator")
_VIDEO = ("youtube", "vimeo", "twitch")
_SHOPPING = ("amazon", "ebay", "etsy", "shopify")
_SHORT_DOMAINS = {"t.co": "Social", "fb.com": "Social", "lnkd.in": "Social", "youtu.be": "Video"}
_KINDS = {
    **dict.fromkeys([*_SEARCH, *(f"{name}.com" for name in _SEARCH)], "Search"),
    **dict.fromkeys([*_SOCIAL, *(f"{name}.com" for name in _SOCIAL)], "Social"),
    **dict.fromkeys([*_VIDEO, *(f"{name}.com" for name in _VIDEO)], "Video"),
    **dict.fromkeys([*_SHOPPING, *(f"{name}.com" for name in _SHOPPING)], "Shopping"),
    **_SHORT_DOMAINS,
}
_MEDIUMS = {
    **dict.fromkeys(("email", "e-mail", "newsletter"), "Email"),
    **dict.fromkeys(("social", "social-network", "social-media", "sm"), "Organic Social"),
    **dict.fromkeys(("push", "mobile", "notification"), "Push"),
    **dict.fromkeys(("referral", "link", "app"), "Referral"),
    "affiliate": "Affiliate",
    "audio": "Audio",
    "sms": "SMS",
    "organic": "Organic Search",
    "video": "Organic Video",
}
_PAID_SOURCES = {name: f"Paid {kind}" for name, kind in _KINDS.items()}
_ORGANIC_SOURCES = {name: f"Organic {kind}" for name, kind in _KINDS.items()}
_PAID_MEDIUMS = {"affiliate": "Affiliate", "audio": "Audio", "sms": "SMS", "video": "Paid Video"}
_SHOP = "'^(.*(([^a-df-z]|^)shop|shopping).*)$'"


@dataclass(frozen=True)
class Entry:
    """What is known of how a session began, as SQL."""

    source: str
    medium: str
    campaign: str
    referring_domain: str
    has_gclid: str
    has_fbclid: str
    gad_source: str


def channel_type_sql(entry: Entry) -> str:
    """Build the SQL of `$channel_type`."""
    source, medium, campaign = (
        f"lower({_without_empty(value)})" for value in (entry.source, entry.medium, entry.campaign)
    )
    domain, gad_source = entry.referring_domain, _without_empty(entry.gad_source)
    paid = (
        f"coalesce({_of_source(source, _PAID_SOURCES)},"
        f" if(match({campaign}, {_SHOP}), 'Paid Shopping', NULL),"
        f" {_looked_up(medium, _PAID_MEDIUMS)}, {_of_source(domain, _PAID_SOURCES)},"
        f" multiIf(ifNull({gad_source} = '1', 0), 'Paid Search', match({campaign}, '^(.*video.*)$'),"
        f" 'Paid Video', {entry.has_fbclid}, 'Paid Social', 'Paid Unknown'))"
    )
    organic = (
        f"coalesce({_of_source(source, _ORGANIC_SOURCES)},"
        f" if(match({campaign}, {_SHOP}), 'Organic Shopping', NULL),"
        f" {_looked_up(medium, _MEDIUMS)}, {_of_source(domain, _ORGANIC_SOURCES)},"
        f" multiIf(match({campaign}, '^(.*video.*)$'), 'Organic Video', match({medium}, 'push$'), 'Push',"
        f" {entry.has_fbclid}, 'Organic Social', ifNull({domain} = '$direct', 0), 'Direct',"
        f" isNotNull({domain}), 'Referral', 'Unknown'))"
    )
    is_paid = (
        f"or(ifNull({medium} IN ('cpc', 'cpm', 'cpv', 'cpa', 'ppc', 'retargeting'), 0),"
        f" ifNull(startsWith({medium}, 'paid'), 0), {entry.has_gclid}, isNotNull({gad_source}))"
    )
    is_direct = (
        f"and(ifNull({domain} = '$direct', 0), isNull({medium}), or(isNull({source}),"
        f" ifNull({source} IN ('(direct)', 'direct', '$direct'), 0)), not({entry.has_fbclid}))"
    )
    return (
        f"multiIf(match({campaign}, 'cross-network'), 'Cross Network', {is_paid}, {paid},"
        f" {is_direct}, 'Direct', {organic})"
    )


def _without_empty(value: str) -> str:
    return f"nullIf(nullIf({value}, ''), 'null')"


def _of_source(value: str, table: Mapping[str, str]) -> str:
    """A source or its registered domain, whichever is listed."""
    known = f"coalesce({value}, '')"
    site = f"cutToFirstSignificantSubdomain({known})"
    return f"coalesce({_looked_up(known, table)}, {_looked_up(site, table)})"


def _looked_up(value: str, table: Mapping[str, str]) -> str:
    text = f"coalesce({value}, '')"
    return f"nullIf(transform({text}, {_texts(list(table))}, {_texts(list(table.values()))}, ''), '')"


def _texts(values: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{one}'" for one in values) + "]"
