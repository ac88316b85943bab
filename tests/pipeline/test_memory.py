"""Memory at its end, a GPU's or this machine's, is one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from afpkd.errors import UserError
from pipeline import cli, disk
from pipeline.memory import is_out_of_memory

ON_A_GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.43 GiB.\nSee documentation"


def _raised_by(source: str) -> Exception:
    if source == "GPU":  # as torch says it: there is none here
        return torch.OutOfMemoryError(ON_A_GPU)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        if source == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        np.empty(1 << 60, dtype=np.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("GPU", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.43 GiB: "),
        ("torch", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1152921504606846976 bytes"),
        ("numpy", "Unable to allocate 1.00 EiB"),
    ],
)
def test_memory_at_its_end_is_one_line(
    source: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = _raised_by(source)

    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: memory ran out: {words}")
    assert line.endswith(": lower batch_size, or end what else uses it [E_MEMORY]")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), UserError("E_FILE", "")])
def test_other_errors_are_not_of_memory(error: Exception, tmp_path: Path) -> None:
    assert not is_out_of_memory(error)
    assert disk.explained(error, tmp_path) is error
