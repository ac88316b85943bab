"""Run by a Python at its start where this folder is in its PYTHONPATH (fixture `brief`): `quick` takes a moment there.

Its ten seconds of two cores a file were most of what the tests of whole runs took. test_graph.py's chain measures by
the preset as it is.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Finder:
    """Finds `deploy.presets` once, and shortens what it says."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "deploy.presets":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def shortened(module: ModuleType) -> None:
            load(module)
            quick = module._PRESETS["quick"]
            warm_up = replace(quick.warm_up, min_seconds=0.05, max_seconds=0.5)
            module._PRESETS["quick"] = replace(quick, min_seconds=0.2, warm_up=warm_up)

        spec.loader.exec_module = shortened  # type: ignore[method-assign]  # this one module's
        return spec


sys.meta_path.insert(0, _Finder())
