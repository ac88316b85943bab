"""This machine as a target: a fresh process in a temporary work folder, like on any other machine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.target import Completed


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """Runs commands as child processes in `folder`."""

    name: str
    python: Sequence[str]
    folder: Path

    def run(self, command: Sequence[str], stdin: str, *, brief: bool = True) -> Completed:
        """Run `command` in the work folder; a KeyboardInterrupt here kills it, and nothing else does."""
        del brief
        done = subprocess.run(
            command, input=stdin, cwd=self.folder, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def put(self, source: Path, name: str) -> None:
        """Copy a file into the work folder."""
        destination = self.folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)

    def get(self, name: str, destination: Path) -> None:
        """Copy a file out of the work folder."""
        shutil.copyfile(self.folder / name, destination)


@contextmanager
def local_target(name: str, python: Sequence[str]) -> Iterator[LocalTarget]:
    """Give a target whose work folder lives as long as the context."""
    with tempfile.TemporaryDirectory(prefix="afpkd-") as folder:
        yield LocalTarget(name, python, Path(folder))
