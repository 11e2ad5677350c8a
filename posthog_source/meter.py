"""What queries made PostHog read, which is what it bills: from its own query_log.

Not here: what they cost us (`client`).
"""

from __future__ import annotations

import logging

from posthog_source.arrow import read_answer
from posthog_source.client import Client
from posthog_source.errors import ApiError
from posthog_source.query import build_read_bytes

WAITS_S = (0.0, 2.0, 4.0, 8.0)
"""Before each look: ClickHouse writes its log every 7.5 s."""

logger = logging.getLogger("posthog_source")


def fetch_read_bytes(metered: Client) -> int | None:
    """Bytes that PostHog read for the queries asked through a metered client.

    Returns:
        None where the key may not read query_log; what is known so far where the log is late.
    """
    asked, known = metered.usage.queries, 0
    for wait_s in WAITS_S if asked else ():
        metered.wait(wait_s)
        try:
            answer = metered.query(build_read_bytes(metered.query_label), read_answer)
        except ApiError as error:
            logger.warning("What PostHog read is not known, so no budget of bytes is kept. %s", error)
            return None
        ((queries, read_bytes),) = answer.cells()
        known = int(read_bytes or 0)
        if int(queries or 0) >= asked:
            break
    return known
