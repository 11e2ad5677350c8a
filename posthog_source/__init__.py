"""A dlt source that exports PostHog into any warehouse."""

__version__ = "0.1.0"
