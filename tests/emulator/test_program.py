"""`python -m posthog_emulator` as a process: start, stop, files."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.emulator.conftest import ROOT, bearer, start_program, stop_program


def test_the_ready_line_names_a_project_that_can_be_read_at_once() -> None:
    started = time.monotonic()
    process, ready = start_program()
    took_s = time.monotonic() - started
    try:
        answer = httpx.get(
            f"{ready['url']}/api/projects/{ready['project_id']}/", headers=bearer(ready["api_key"])
        )
        assert answer.status_code == 200
        assert answer.json()["timezone"] == "UTC"
        assert answer.json()["api_token"] == ready["project_token"]
        assert took_s < 10
    finally:
        assert stop_program(process) == 0


def test_it_listens_on_loopback_and_nowhere_else() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "posthog_emulator", "--host", "0.0.0.0"],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert refused.returncode == 2
    assert b"invalid choice" in refused.stderr


def test_what_it_cannot_start_with_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("rows of another time")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, words in ((["--port", port], "--port"), (["--data-dir", str(tmp_path)], "not empty")):
            refused = subprocess.run(
                [sys.executable, "-m", "posthog_emulator", *arguments],
                capture_output=True,
                text=True,
                cwd=ROOT,
                check=False,
            )
            assert refused.returncode == 1
            (line,) = refused.stderr.splitlines()
            assert words in line


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_its_tables_are_gone(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "posthog_emulator"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert list(tmp_path.iterdir())
    process.send_signal(signal_number)
    assert process.wait(timeout=20) == 0
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_its_stdin_ends_it_and_frees_the_port() -> None:
    process, ready = start_program()
    address = urlsplit(ready["url"])
    assert stop_program(process) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), timeout=2)


def test_a_given_data_directory_is_kept(tmp_path: Path) -> None:
    process, _ = start_program("--data-dir", str(tmp_path / "data"))
    assert stop_program(process) == 0
    assert list((tmp_path / "data").iterdir())


def test_a_client_that_goes_before_its_question_is_whole_is_nothing_to_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process, ready = start_program(stderr=file)
    address = urlsplit(ready["url"])
    path = f"/api/projects/{ready['project_id']}/query/"
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {ready['api_key']}\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=5) as client:
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    try:
        journal = httpx.get(f"{ready['url']}/_emulator/projects/{ready['project_id']}/requests").json()
    finally:
        assert stop_program(process) == 0

    assert [request["path"] for request in journal] == [path]
    assert log.read_text() == ""


def test_unknown_routes_get_posthogs_envelope(tmp_path: Path) -> None:
    process, ready = start_program()
    try:
        answer = httpx.get(f"{ready['url']}/api/no_such_thing/")
        assert answer.status_code == 404
        assert answer.json() == {
            "type": "invalid_request",
            "code": "not_found",
            "detail": "Endpoint not found.",
            "attr": None,
        }
        wrong_method = httpx.put(f"{ready['url']}/api/projects/1/persons/")
        assert wrong_method.status_code == 405
        assert wrong_method.json()["detail"] == 'Method "PUT" not allowed.'
    finally:
        assert stop_program(process) == 0
