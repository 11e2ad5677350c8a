"""Benchmarks: the connector beside the bare floor, in one run. `python -m benchmarks`.

The floor is what no connector can beat: the same pages to Arrow, to Parquet, to DuckDB, without dlt and
without our code. Both get their pages from the same replaying server, so that PostHog's own time does not
count. Not part of the tests; results are JSON under `benchmarks/results/`.
"""
