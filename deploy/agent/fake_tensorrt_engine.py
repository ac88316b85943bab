"""The half of the fake TensorRT that runs: runtime, engine, context. See `fake_tensorrt`."""

from __future__ import annotations

import json
from typing import Any

from . import fake_cuda
from .fake_tensorrt import MAGIC, Fake, crash, move, session


class Runtime(Fake):  # noqa: D101 (NVIDIA's classes are NVIDIA's to explain, here and below)
    DLA_core = -1

    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Any:  # noqa: D102
        if self._release.knobs.crash == "deserialize":
            crash()
        header, _, onnx = plan[len(MAGIC) :].partition(b"\n")
        problem = self._problem(plan, header)
        if problem is not None:
            self._error(problem)
            return None
        return self._release.classes["ICudaEngine"](json.loads(header), onnx, self._log)

    def _problem(self, plan: bytes, header: bytes) -> Any:
        if not plan.startswith(MAGIC):
            return "Error Code 1: Serialization (header.magicTag assertion failed)"
        facts, expected = json.loads(header), self._release.version
        if facts["version"] != expected:
            return f"The engine plan file is not compatible: expecting {expected}, got {facts['version']}"
        if facts["dla"] not in (None, self.DLA_core):
            return f"the engine is DLA core {facts['dla']}'s"
        return None


class ICudaEngine(Fake):  # noqa: D101
    device_memory_size = device_memory_size_v2 = 4096
    num_io_tensors = 0

    def __init__(self, header: dict[str, Any], onnx: bytes, log: Any) -> None:
        self._session, self._log, self._header = session(onnx), log, header
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._tensors = {value.name: value for value in [*self._session.get_inputs(), *self._session.get_outputs()]}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:  # noqa: D102
        return str(list(self._tensors)[index])

    def get_tensor_mode(self, name: str) -> Any:  # noqa: D102
        modes = self._release.classes["TensorIOMode"]
        return modes.INPUT if name in self._inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:  # noqa: D102
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int32)": "INT32"}
        return getattr(self._release.classes["DataType"], kinds[self._tensors[name].type])

    def get_tensor_shape(self, name: str) -> Any:  # noqa: D102
        return tuple(size if isinstance(size, int) else -1 for size in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:  # noqa: D102
        return self._header["shapes"][name] if index == 0 else []

    def create_execution_context(self) -> Any:  # noqa: D102
        if self._release.knobs.context_fails:
            self._error("Error Code 2: OutOfMemory: no memory for the execution context")
            return None
        return self._release.classes["IExecutionContext"](self)

    def create_engine_inspector(self) -> Any:  # noqa: D102
        return self._release.classes["EngineInspector"]()


class EngineInspector(Fake):  # noqa: D101
    def get_engine_information(self, form: Any) -> str:  # noqa: D102
        del form
        tensor = {"Name": "x", "Dimensions": [1], "Format/Datatype": "Row major linear FP32 format"}
        return json.dumps({"Layers": [{"LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]}]})


class IExecutionContext(Fake):  # noqa: D101
    def __init__(self, engine: Any) -> None:
        self._engine, self._log = engine, engine._log
        self._addresses: dict[str, int] = {}
        self._shape: Any = ()

    def set_input_shape(self, name: str, shape: Any) -> bool:  # noqa: D102
        fixed = [self._engine._tensors[name].shape] * 3
        smallest, _, largest = self._engine._header["shapes"].get(name, fixed)
        inside = all(low <= size <= high for low, size, high in zip(smallest, shape, largest))  # noqa: B905 (3.10)
        if not inside or len(shape) != len(largest):
            self._error(f"{name}: {shape} is outside of the profile's {smallest} to {largest}")
            return False
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Any:  # noqa: D102
        return tuple(size if isinstance(size, int) else self._shape[0] for size in self._engine._tensors[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:  # noqa: D102
        self._addresses[name] = address
        return name in self._engine._tensors

    def execute_async_v3(self, stream: int) -> bool:  # noqa: D102
        if self._addresses.keys() != self._engine._tensors.keys():
            self._error("a tensor has no address")
            return False
        fake_cuda.enqueue(stream, self._execute)
        return True

    def _execute(self) -> None:
        import numpy as np

        source, target = self._engine._tensors
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        images = np.empty(self._shape, kind[self._engine._tensors[source].type])
        move(images.ctypes.data, self._addresses[source], self._addresses[source], images.nbytes)
        logits = np.ascontiguousarray(self._engine._session.run([target], {source: images})[0])
        move(self._addresses[target], logits.ctypes.data, self._addresses[target], logits.nbytes)


CLASSES = [Runtime, ICudaEngine, EngineInspector, IExecutionContext]
