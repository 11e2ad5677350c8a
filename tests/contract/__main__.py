"""`python -m tests.contract`: writes down what this version promises, once it may."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import running_server
from tests.contract.loaded import CHANGELOG, PATH, kept_promise, sync_everything
from tests.contract.promise import find_breach, find_stale, write_promise

if __name__ == "__main__":
    with running_server() as server, TemporaryDirectory() as folder:
        now = sync_everything(server, Path(folder))
    if breach := find_breach(kept_promise(), now, CHANGELOG):
        sys.exit(breach)
    if find_stale(kept_promise(), now, CHANGELOG):
        PATH.write_text(write_promise(now), encoding="utf-8")
        print(f"{PATH.name} has the tables of {now.version}.")
    else:
        print(f"{PATH.name} stays as it is: the tables of {kept_promise().version}, until the next release.")
