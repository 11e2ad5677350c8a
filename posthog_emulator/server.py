"""The program: starts a local PostHog and prints one line of JSON when it can serve. Routes are in `app`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import orjson
import uvicorn

from posthog_emulator.app import build_app
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.state import State

LOOPBACK = ("127.0.0.1", "localhost")


def main() -> None:
    """Serve until told to stop."""
    arguments = _parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn takes over: still clean up
    logging.basicConfig(level=arguments.log_level.upper(), stream=sys.stderr)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(arguments.host, arguments.port))
        data_dir = arguments.data_dir or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="posthog-emulator-")
        )
        _check_new(Path(data_dir))
        clickhouse = ClickHouse(Path(data_dir))
        stack.callback(clickhouse.close)
        state = State()
        project = state.create_project(name="Default project")
        key = state.create_key(["*"], None)
        ready = {
            "url": f"http://{arguments.host}:{listener.getsockname()[1]}",
            "project_id": project.id,
            "project_token": project.token,
            "api_key": key.value,
        }
        server = _Server(build_app(clickhouse, state), ready, arguments.log_level)
        if arguments.stop_with_stdin:
            threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Uvicorn, saying when it is ready and exiting 0 on SIGTERM and SIGINT."""

    def __init__(self, app: object, ready: dict[str, object], log_level: str) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            log_level=log_level,
            access_log=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=75,
        )
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, then tell the parent where."""
        await super().startup(sockets)
        sys.stdout.buffer.write(orjson.dumps(self._ready) + b"\n")
        sys.stdout.buffer.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """A signal ends the program as asked, with exit code 0, not with the signal's."""
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), backlog=512)
    except OSError as error:
        sys.exit(
            f"Cannot listen on {host}:{port}: {error.strerror}. Take another --port, or 0 for a free one."
        )
    # asyncio sets it only on sockets that it made itself; without it an answer waits 40 ms for an ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _check_new(data_dir: Path) -> None:
    """Keys, settings and what is known of people live in memory: an old folder's rows would contradict it."""
    if data_dir.exists() and any(data_dir.iterdir()):
        sys.exit(f"--data-dir {data_dir} is not empty, and tables cannot be opened again. Name a new folder.")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m posthog_emulator",
        description="Starts a local PostHog and prints one line of JSON when it can serve.",
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument(
        "--host", default="127.0.0.1", choices=LOOPBACK, help="loopback only: there is no login"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="a new folder that keeps the tables, to be looked at; default: deleted on exit",
    )
    parser.add_argument("--stop-with-stdin", action="store_true", help="exit when stdin closes")
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return parser.parse_args()


def _stop_with_stdin(server: uvicorn.Server) -> None:
    while os.read(0, 4096):
        pass
    server.should_exit = True
