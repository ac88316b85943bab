"""CUDA through three libraries: the same contract of each, against fakes whose calls are those of the real ones.

No kernel is launched here and no GPU is touched: the library behind ctypes is a small C one that keeps memory on the
host, those behind cuda-bindings and pycuda are Python modules with the same calls.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.agent import cuda, cuda_ctypes, fake_cuda
from deploy.agent.cuda import Cuda, open_cuda
from deploy.agent.errors import AgentError
from tests.deploy.cuda_libraries import FAKE_CUDART, FakeRuntimeModule, fake_pycuda


@pytest.fixture(scope="session")
def fake_cudart(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _compiled(FAKE_CUDART, tmp_path_factory.mktemp("cudart"))


def _compiled(source: str, folder: Path) -> str:
    (folder / "cudart.c").write_text(source)
    path = folder / "libcudart.so.12"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, folder / "cudart.c"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("cc: not installed")
    return str(path)


@pytest.fixture(params=["ctypes", "cuda-python", "pycuda", "fake"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Each library's class over a fake of the library; and the fake itself, which the runtime's tests stand on."""
    if request.param == "fake":
        return fake_cuda.FakeCuda()
    if request.param == "ctypes":
        return cuda_ctypes.open_device(request.getfixturevalue("fake_cudart"))
    if request.param == "cuda-python":
        bindings = types.ModuleType("cuda.bindings")
        vars(bindings).update(runtime=FakeRuntimeModule())
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    else:
        driver, package = fake_pycuda(), types.ModuleType("pycuda")
        vars(package).update(driver=driver)
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return cuda.LIBRARIES[request.param]()


def test_what_is_copied_in_comes_back_once_the_stream_is_synchronised(device: Cuda) -> None:
    source = np.arange(1000, dtype=np.float32)
    target = np.full(1000, -1, np.float32)
    address, stream = device.alloc(source.nbytes), device.create_stream()
    assert isinstance(address, int)
    assert isinstance(stream, int)
    device.copy_to_device(address, source, stream)
    device.copy_to_host(target, address, stream)
    assert (target == -1).all()  # queued, not done
    device.synchronize(stream)
    np.testing.assert_array_equal(target, source)
    device.free(address)


def test_parts_of_an_allocation_can_be_copied(device: Cuda) -> None:
    address, stream = device.alloc(400), device.create_stream()
    device.copy_to_device(address, np.zeros(100, np.float32), stream)
    device.copy_to_device(address, np.ones(25, np.float32), stream)
    target = np.empty(100, np.float32)
    device.copy_to_host(target, address, stream)
    device.synchronize(stream)
    assert (target.sum(), target[:25].sum()) == (25, 25)


def test_page_locked_memory_is_an_array_that_copies_go_through(device: Cuda) -> None:
    ones, back = device.alloc_host(40), device.alloc_host(40)
    assert ones.dtype == np.uint8
    assert ones.shape == (40,)
    assert ones.flags["C_CONTIGUOUS"]
    ones.view(np.float32)[:], back[:] = 1.0, 0
    address, stream = device.alloc(40), device.create_stream()
    device.copy_to_device(address, ones, stream)
    device.copy_to_host(back, address, stream)
    device.synchronize(stream)
    assert (back.view(np.float32) == 1).all()
    del back
    device.free_host(ones)


def test_marks_in_a_stream_tell_the_time_between_them(device: Cuda) -> None:
    """Whatever the library: a copy between two marks, and the marks' time once the stream is synchronised."""
    source = np.zeros(1000, np.float32)
    address, stream = device.alloc(source.nbytes), device.create_stream()
    begin, end = device.create_event(), device.create_event()
    assert begin != end
    for _ in range(2):  # marks are used again
        device.record(begin, stream)
        device.copy_to_device(address, source, stream)
        device.record(end, stream)
        device.synchronize(stream)
        assert 0 < device.elapsed_ms(begin, end) < 1000
        assert device.elapsed_ms(begin, begin) == 0


def test_a_mark_has_no_time_before_its_stream_came_to_it() -> None:
    device = fake_cuda.FakeCuda()
    stream, mark = device.create_stream(), device.create_event()
    device.record(mark, stream)
    with pytest.raises(AgentError, match="not ready"):
        device.elapsed_ms(mark, mark)
    with pytest.raises(AgentError, match="cudaEventRecord"):
        device.record(7, stream)


def test_too_much_memory_is_one_error(device: Cuda) -> None:
    with pytest.raises(AgentError) as caught:
        device.alloc(1 << 40)
    assert caught.value.code == "E_OUT_OF_MEMORY"
    assert "out of memory" in caught.value.message or "MemoryAllocation" in caught.value.message


def test_devices_are_described_the_same(device: Cuda) -> None:
    facts = device.describe()
    if facts["library"] != "fake":
        assert (facts["compute_capability"], facts["num_sms"]) == ("8.7", 14)
        assert (facts["runtime"], facts["driver"]) == ("12.6", "12.2")
    assert {"library", "runtime", "driver", "compute_capability", "num_sms"} <= facts.keys()


def test_other_failures_keep_cudas_number_and_call(fake_cudart: str) -> None:
    device = cuda_ctypes.open_device(fake_cudart)
    with pytest.raises(AgentError, match=r"cudaFree: CUDA error 1 \(something\)"):
        device.free(1)
    with pytest.raises(AgentError, match="cudaStreamSynchronize: CUDA error 400"):
        device.synchronize(5)


def test_a_cuda_that_the_driver_is_too_old_for_is_passed_over(
    fake_cudart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toolkit that is newer than the driver lies beside the one that JetPack brought."""
    newer = _compiled(FAKE_CUDART.replace("*n = 1; return 0;", "*n = 0; return 35;"), tmp_path)
    monkeypatch.setattr(cuda_ctypes, "_candidates", lambda: [newer, fake_cudart])
    assert cuda_ctypes.open_device().describe()["file"] == fake_cudart
    monkeypatch.setattr(cuda_ctypes, "_candidates", lambda: [newer, "/nowhere/libcudart.so"])
    with pytest.raises(AgentError, match="CUDA error 35") as caught:
        cuda_ctypes.open_device()
    assert caught.value.code == "E_NO_DRIVER"


def test_pycudas_primary_context_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, package = fake_pycuda(), types.ModuleType("pycuda")
    vars(package).update(driver=driver)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    cuda.LIBRARIES["pycuda"]()
    assert driver.pushed


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("cuInit failed: no CUDA-capable device is detected", "E_NO_DEVICE"),
        ("cuInit failed: CUDA driver version is insufficient for CUDA runtime version", "E_NO_DRIVER"),
        ("cuInit failed: unknown error", "E_CUDA"),
    ],
)
def test_pycudas_sentences_become_codes(text: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError(text)

    package = types.ModuleType("pycuda")
    vars(package).update(driver=types.SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "pycuda", package)
    with pytest.raises(AgentError) as caught:
        open_cuda("pycuda")
    assert caught.value.code == code
    assert text.partition(": ")[2] in caught.value.message


def test_automatic_choice_takes_the_first_that_is_installed_and_notes_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Callable[[], Cuda]:
        def open_device() -> Cuda:
            raise AgentError("E_NO_CUDA", f"no {name}")

        return open_device

    libraries = {"ctypes": missing("libcudart"), "cuda-python": missing("bindings"), "fake": fake_cuda.FakeCuda}
    monkeypatch.setattr(cuda, "LIBRARIES", libraries)
    _, facts = open_cuda()
    assert (facts["asked"], facts["library"]) == ("auto", "fake")
    assert facts["skipped"] == {"ctypes": "no libcudart", "cuda-python": "no bindings"}
    _, facts = open_cuda("fake")
    assert (facts["asked"], facts["skipped"]) == ("fake", {})
    with pytest.raises(AgentError, match="no bindings"):
        open_cuda("cuda-python")
    libraries.pop("fake")
    with pytest.raises(AgentError, match="no libcudart; no bindings"):
        open_cuda()


def test_without_a_driver_no_other_library_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> Cuda:
        raise AgentError("E_NO_DRIVER", "35")

    monkeypatch.setattr(cuda, "LIBRARIES", {"ctypes": no_driver, "fake": fake_cuda.FakeCuda})
    with pytest.raises(AgentError, match="35"):
        open_cuda()


def test_a_libcudart_can_be_named_by_its_path(fake_cudart: str, tmp_path: Path) -> None:
    _, facts = open_cuda(fake_cudart)
    assert (facts["asked"], facts["file"], facts["runtime"]) == (fake_cudart, fake_cudart, "12.6")
    with pytest.raises(AgentError) as caught:
        open_cuda(str(tmp_path / "libcudart.so.12"))
    assert caught.value.code == "E_NO_CUDA"
    assert "cannot open shared object file" in caught.value.message


def test_pycuda_is_not_installed_here_and_says_how() -> None:
    with pytest.raises(AgentError) as caught:
        open_cuda("pycuda")
    assert (caught.value.code, "pip install pycuda" in caught.value.message) == ("E_NO_CUDA", True)


def test_the_calls_are_those_of_the_real_libraries() -> None:
    """pycuda cannot be installed without CUDA's compiler: its names are those of its documentation."""
    library = ctypes.CDLL(next(filter(_loads, cuda_ctypes._candidates())))
    functions = set(re.findall(r"(cuda\w+)\(", FAKE_CUDART))
    assert len(functions) == 15
    assert [name for name in functions if not hasattr(library, name)] == []
    bindings = pytest.importorskip("cuda.bindings.runtime")
    fake = FakeRuntimeModule()
    assert [name for name in fake.calls() if not hasattr(bindings, name)] == []
    for kind in (fake.cudaMemcpyKind, fake.cudaDeviceAttr):
        for member in kind:
            assert int(getattr(getattr(bindings, kind.__name__), member.name)) == member


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True
