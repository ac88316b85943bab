"""NVIDIA's own Python bindings, imported over libraries that do nothing: their names are real, nothing behind them is.

The wheels are fetched when the test runs (about 1.3 MB each). Each binding needs a handful of C functions of TensorRT's
libraries to be there when it is imported, and calls none of them: `cc` makes libraries of just those names.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

WHEELS = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.16": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4": "tensorrt-cu13-bindings==11.4.0.106",
}
"""The last of TensorRT 8; JetPack 6.2's; the nearest to JetPack 7.2's; the newest."""

_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers")
_FUNCTION = re.compile(
    r"^\s+U (create\w+_INTERNAL|get\w+Registry|getNvOnnxParserVersion|initLib\w+|_ZN\w*nv\w+parser\w+)$"
)

_DUMP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
def names(thing): return sorted(name for name in dir(thing) if not name.startswith("__"))
def number(kind, name):
    try: return int(getattr(kind, name))
    except (TypeError, ValueError): return None
print(json.dumps({
    "version": module.__version__,
    "names": {"": names(module), **{name: names(getattr(module, name)) for name in names(module)}},
    "numbers": {name: {key: number(getattr(module, name), key) for key in names(getattr(module, name))}
                for name in names(module) if isinstance(getattr(module, name), type)},
}))
"""


class MissingToolError(Exception):
    """What the test needs and this machine lacks."""


def real_names(level: str, folder: Path) -> dict[str, Any]:
    """Fetch and import a release's bindings; give `version`, `names` by class ("" = the module), `numbers` of enums."""
    wheel = _fetched(WHEELS[level], folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    binding = next((folder / "tensorrt_bindings").glob("tensorrt*.so"))
    _make_libraries(binding, WHEELS[level].split("==")[1].split(".")[0], folder)
    return dumped("tensorrt_bindings", folder)


def dumped(module: str, folder: Path) -> dict[str, Any]:
    """Import a module in a process of its own, `folder` on both of its paths, and give all its names."""
    environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", _DUMP, module], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names: dict[str, Any] = json.loads(done.stdout)
    return names


def _fetched(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MissingToolError(f"pip download {requirement}: {done.stderr.strip().splitlines()[-1]}")
    return next(folder.glob("*.whl"))


def _make_libraries(binding: Path, major: str, folder: Path) -> None:
    try:
        symbols = subprocess.run(["nm", "-D", str(binding)], capture_output=True, text=True, check=True).stdout
        functions = [match[1] for match in map(_FUNCTION.match, symbols.splitlines()) if match]
        for name in _LIBRARIES:
            source = folder / f"{name}.c"
            # all functions in the first library: the loader looks for them in all
            source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
            command = ["cc", "-shared", "-fPIC", "-o", str(folder / f"lib{name}.so.{major}"), str(source)]
            subprocess.run(command, capture_output=True, check=True)
            functions = []
    except FileNotFoundError as error:
        raise MissingToolError(f"{error.filename}: not installed") from None
