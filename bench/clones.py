"""Two fresh clones, the same weights? The default recipe distilled in each, by the code that is committed.

`make bench ARGS=clones` writes results/clones.json: the SHA-256 of each role's weights in each clone. Same machine,
same packages; between machines floating-point sums differ, and so do the weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from afpkd.errors import UserError
from afpkd.record import Json, sha256_of, write_record
from bench.command import run
from bench.crash import STAGES
from bench.rows import RESULTS, circumstances

HERE = Path(__file__).resolve().parent.parent


def main(recipe: str = "default", results: Path = RESULTS) -> None:
    """Clone twice, distil in both, write clones.json, print whether the weights are equal."""
    with tempfile.TemporaryDirectory() as folder:
        found = [weights_of_a_clone(Path(folder) / name, recipe) for name in ("first", "second")]
    equal = {role: found[0][role] == found[1][role] for role in STAGES}
    write_record(results / "clones.json", {"recipe": recipe, "equal": equal, "sha256": found, **circumstances()})
    sys.stdout.writelines(f"{role:<12} {'equal' if same else 'NOT EQUAL'}\n" for role, same in equal.items())


def weights_of_a_clone(place: Path, recipe: str) -> Json:
    """SHA-256 of each role's weights after `make distill` in a fresh clone at `place`. UserError where that fails."""
    _done(["git", "clone", "--quiet", str(HERE), str(place)], HERE)
    _done([sys.executable, "-m", "pipeline", "run", "distill", "--recipe", recipe, "--train-device", "cpu"], place)
    runs = place / "runs" / Path(recipe).stem
    return {role: sha256_of(runs / role / "model.safetensors") for role in STAGES}


def _done(command: list[str], folder: Path) -> None:
    """Run it in `folder`, whose code comes before any that is installed."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError("E_BENCH", f"{' '.join(command[:4])} failed: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    run(lambda _: main())
