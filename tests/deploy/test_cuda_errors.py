"""The real libraries' errors where there is no driver of CUDA's, an old one, or one without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from afpkd.errors import UserError
from deploy.measure import profile_bundle
from tests.deploy.conftest import HandMadeBundle


def opened(choice: str, libcuda: str = "") -> str:
    """Open CUDA in a fresh process, whose loader finds NVIDIA's driver library in `libcuda`; give the error."""
    code = (
        "import sys\nfrom deploy.agent import cuda\n"
        "try: print('OPEN', cuda.open_cuda(sys.argv[1]))\n"
        "except Exception as error: print(error.code, error)"
    )
    environment = {"LD_LIBRARY_PATH": libcuda, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, choice], env=environment, capture_output=True, text=True, check=True
    )
    if done.stdout.startswith("OPEN"):
        pytest.skip("this machine has an NVIDIA GPU: `make gpu-check` looks at it")
    return done.stdout


@pytest.mark.parametrize("choice", ["auto", "ctypes", "cuda-python"])
def test_no_driver_is_a_real_error_of_the_real_libraries(choice: str) -> None:
    """libcudart and cuda-bindings come with PyTorch's wheels."""
    error = opened(choice)
    assert error.startswith("E_NO_DRIVER cudaGetDeviceCount: CUDA error 35")
    assert "install or update it" in error


def test_the_whole_way_to_a_missing_driver_is_one_line(bundle: HandMadeBundle, tmp_path: Path, instant: str) -> None:
    """The device `local-gpu`, the packed agent, a real TensorRT-RTX, a real libcudart."""
    opened("auto")
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UserError) as caught:
        profile_bundle(
            bundle.folder,
            device="local-gpu",
            precision="fp32",
            preset=instant,
            threads=0,
            out=tmp_path / "record.json",
            recipe="test",
            config_digest="0",
        )
    message = str(caught.value)
    assert message.startswith("device local-gpu: cudaGetDeviceCount: CUDA error 35")
    assert message.endswith("[E_NO_DRIVER]")
    assert not (tmp_path / "record.json").exists()


@pytest.fixture(scope="session")
def libcuda() -> str:
    """The folder of Debian's driver library (package libcuda1 of non-free, unpacked, not installed)."""
    folder = os.environ.get("AFPKD_LIBCUDA", "")
    if not folder:
        pytest.skip("AFPKD_LIBCUDA names no folder with NVIDIA's libcuda.so.1")
    assert Path(folder, "libcuda.so.1").exists(), folder
    return folder


@pytest.fixture(scope="session")
def cudart_12(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A libcudart that Debian's driver is new enough for (its CUDA is 12.2): NVIDIA's wheel, 0.9 MB."""
    folder = tmp_path_factory.mktemp("cudart12")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "nvidia-cuda-runtime-cu12==12.6.77"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"pip install nvidia-cuda-runtime-cu12: {done.stderr.strip().splitlines()[-1]}")
    return str(next(folder.rglob("libcudart.so.12")))


def test_a_driver_without_a_device_is_a_real_error(libcuda: str, cudart_12: str) -> None:
    error = opened(cudart_12, libcuda)
    assert error.startswith("E_NO_DEVICE cudaGetDeviceCount: CUDA error 100 (no CUDA-capable device is detected)")
    assert "a driver but no NVIDIA GPU" in error


def test_a_driver_older_than_cuda_is_a_real_error(libcuda: str) -> None:
    """PyTorch's libcudart is CUDA 13's, Debian's driver CUDA 12's."""
    assert opened("ctypes", libcuda).startswith("E_NO_DRIVER cudaGetDeviceCount: CUDA error 35")
