"""Benchmarks: what the connector costs, and the claims made of it, measured. `python -m benchmarks --help`.

Speed is told beside a bare floor, in the same run: the same pages by hand, two requests in flight, without
dlt and without our code, from a server that repeats them from memory, so that PostHog's own time does not
count. Cost is told by ClickHouse's own statistics. Not part of the tests, but for a tiny run; results are
JSON under `benchmarks/results/`.

    __main__    arguments, and which scenarios there are
    speed       scenarios against the floor; look_ahead; storm
    memory      scenario memory
    people      scenario people
    destinations  scenario destinations; servers: the Postgres it loads into
    alternatives  a program of its own: other connectors on the same projects
    cost        scenario cost; naive: the other ways to read, by hand
    bench       what the scenarios of a run share
    programs    starts the emulator, the replaying server and the contenders
    replay      the replaying server
    job         what a contender is told and what it tells; contender: its process
    floors      contenders by hand; connectors: contenders that run the connector
    report      Markdown and JSON
"""
