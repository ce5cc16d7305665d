"""A fresh interpreter for what a test cannot do in its own: measure memory, fork, be interrupted.

`run` gives back what the script prints; RSS is a prelude with readings of /proc/self/status in
bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

# Shadow memory and quarantines make a sanitizer's readings meaningless.
measures_memory = pytest.mark.skipif(
    "LLMACCEL_SANITIZE" in os.environ, reason="a sanitizer keeps freed memory"
)

RSS = """
def reading(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))

def rss():
    return reading("VmRSS")

def reset_peak():
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")

def peak():
    return reading("VmHWM")
"""


def run(script: str, *arguments: Any, prelude: str = "", **environment: str) -> Any:
    """What `script` prints last, from JSON. `arguments` are its sys.argv[1:]."""
    code = f"import json, sys\n{prelude}\n{textwrap.dedent(script)}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
