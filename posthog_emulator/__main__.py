"""`python -m posthog_emulator`: runs `server`, or says what to install first."""

from __future__ import annotations

import importlib.util
import sys

NEEDS = ("chdb", "hogql_parser", "starlette", "uvicorn")
"""What the extra `demo` brings and the connector does without."""

if __name__ == "__main__":
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        sys.exit(f"posthog_emulator needs {', '.join(missing)}: pip install 'posthog-source[demo]'.")
    importlib.import_module("posthog_emulator.server").main()
