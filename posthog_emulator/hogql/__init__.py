"""HogQL for one project: PostHog's own parser in front, ClickHouse SQL out of the back."""
