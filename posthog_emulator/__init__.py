"""A local PostHog: it executes HogQL on ClickHouse, takes events and answers the REST API.

It is a program (`python -m posthog_emulator`) to try a client against and to test one against.
It is not PostHog: see README.md for what is left out.
"""
