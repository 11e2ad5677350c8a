"""Tests of the local PostHog, over real sockets."""
