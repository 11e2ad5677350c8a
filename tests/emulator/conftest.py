"""The emulator and its projects, as all tests have them."""

from tests.conftest import ROOT, Project, Server, bearer, start_program, stop_program

__all__ = ["ROOT", "Project", "Server", "bearer", "start_program", "stop_program"]
