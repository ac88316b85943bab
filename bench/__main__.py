"""`make bench`: list the benches, or run one: `make bench ARGS=default_seeds`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench import (
    clones,
    coverage,
    crash,
    default_seeds,
    default_tuning,
    findings,
    fleet,
    gpu_steps,
    quantizers,
    rtx_builds,
    scale,
)
from bench.command import run

BENCHES: dict[str, Callable[[], None]] = {
    "clones": clones.main,
    "coverage": coverage.main,
    "crash": crash.main,
    "default_seeds": default_seeds.main,
    "default_tuning": default_tuning.main,
    "findings": findings.main,
    "fleet": fleet.main,
    "gpu_steps": gpu_steps.main,
    "quantizers": quantizers.main,
    "rtx_builds": rtx_builds.main,
    "scale": scale.main,
}


def main(arguments: list[str]) -> None:
    """Run the named benches; without a name say what there is."""
    unknown = [name for name in arguments if name not in BENCHES]
    if unknown or not arguments:
        said = {name: (sys.modules[bench.__module__].__doc__ or "").splitlines()[0] for name, bench in BENCHES.items()}
        lines = [f"  make bench ARGS={name:<14} {line}" for name, line in said.items()]
        sys.stderr.write("\n".join([*(f"unknown bench '{name}'" for name in unknown), *lines]) + "\n")
        raise SystemExit(2 if unknown else 0)
    for name in arguments:
        BENCHES[name]()


if __name__ == "__main__":
    run(main)
