"""The agent as one file: a zipapp whose bytes depend on its source alone."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path

AGENT = "agent.pyz"
"""What it is called on every device."""

_SOURCE = Path(__file__).parent / "agent"
_MAIN = "import sys\n\nfrom agent.cli import main\n\nsys.exit(main(sys.argv[1:]))\n"


def agent_archive() -> bytes:
    """Pack `deploy/agent/` as `agent.pyz`: sorted names, one timestamp, stored rather than deflated (zlibs differ).

    Fakes stay at home: on a device nothing can be taken for a TensorRT that is none.
    """
    paths = [path for path in _SOURCE.rglob("*.py") if not path.name.startswith("fake_")]
    texts = {f"agent/{path.relative_to(_SOURCE).as_posix()}": path.read_bytes() for path in paths}
    texts["__main__.py"] = _MAIN.encode()
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name in sorted(texts):
            archive.writestr(_entry(name), texts[name])
    return buffer.getvalue()


@functools.cache
def agent_sha256() -> str:
    """Name this version of the agent: the hash of its archive."""
    return hashlib.sha256(agent_archive()).hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry with nothing of this machine in it: zip's first possible date, Unix, mode 0644."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    return entry
