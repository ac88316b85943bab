"""Stand-ins for the three libraries CUDA is reached through: what they keep, they keep on the host."""

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from deploy.agent import fake_cuda
from deploy.agent.cuda_ctypes import array_at
from deploy.agent.errors import AgentError

FAKE_CUDART = r"""
#include <stdlib.h>
#include <string.h>
struct copy { void *to; const void *from; size_t size; } queue[64];
static int queued;
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaMalloc(void **p, size_t n) { if (n > (1u << 30)) return 2; *p = malloc(n); return 0; }
int cudaMallocHost(void **p, size_t n) { *p = malloc(n); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaFree(void *p) { if (p == (void *)1) return 1; free(p); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
  if ((kind != 1 && kind != 2) || stream != (void *)0x77) return 400;
  queue[queued++] = (struct copy){to, from, n}; return 0; }
int cudaStreamCreate(void **s) { *s = (void *)0x77; return 0; }
int cudaStreamSynchronize(void *s) { if (s != (void *)0x77) return 400;
  for (int i = 0; i < queued; i++) memcpy(queue[i].to, queue[i].from, queue[i].size); queued = 0; return 0; }
static float marks[8]; static int num_marks; static float now;
int cudaEventCreate(void **e) { *e = (void *)(0x100L + num_marks++ % 8); return 0; }
int cudaEventRecord(void *e, void *s) { if (s != (void *)0x77) return 400;
  marks[(long)e - 0x100] = now += 1.5f; return 0; }
int cudaEventElapsedTime(float *ms, void *b, void *e) {
  *ms = marks[(long)e - 0x100] - marks[(long)b - 0x100]; return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 12060; return 0; }
int cudaDriverGetVersion(int *v) { *v = 12020; return 0; }
int cudaDeviceGetAttribute(int *v, int which, int device) {
  *v = which == 75 ? 8 : which == 76 ? 7 : which == 16 ? 14 : -1; return device; }
const char *cudaGetErrorString(int e) { return e == 2 ? "out of memory" : "something"; }
"""


class FakeRuntimeModule(types.ModuleType):
    """`cuda.bindings.runtime`: each call gives a tuple, an error first."""

    Error = enum.IntEnum("Error", {"cudaSuccess": 0, "cudaErrorInvalidValue": 1, "cudaErrorMemoryAllocation": 2})
    cudaMemcpyKind = enum.IntEnum(  # noqa: N815 (NVIDIA's names)
        "cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2}
    )
    cudaDeviceAttr = enum.IntEnum(  # noqa: N815 (NVIDIA's names)
        "cudaDeviceAttr",
        {
            "cudaDevAttrMultiProcessorCount": 16,
            "cudaDevAttrComputeCapabilityMajor": 75,
            "cudaDevAttrComputeCapabilityMinor": 76,
        },
    )

    def __init__(self) -> None:
        super().__init__("runtime")
        self.fake = fake_cuda.FakeCuda()

    def calls(self) -> dict[str, Callable[..., Any]]:
        return {
            "cudaGetDeviceCount": lambda: 1,
            "cudaMalloc": self.fake.alloc,
            "cudaMallocHost": lambda num_bytes: self.fake.alloc_host(num_bytes).ctypes.data,
            "cudaFree": self.fake.free,
            "cudaFreeHost": lambda address: self.fake.free_host(array_at(address, 1)),
            "cudaMemcpyAsync": self.copy,
            "cudaStreamCreate": self.fake.create_stream,
            "cudaStreamSynchronize": self.fake.synchronize,
            "cudaEventCreate": self.fake.create_event,
            "cudaEventRecord": self.fake.record,
            "cudaEventElapsedTime": self.fake.elapsed_ms,
            "cudaRuntimeGetVersion": lambda: 12060,
            "cudaDriverGetVersion": lambda: 12020,
            "cudaDeviceGetAttribute": lambda attribute, device: {16: 14, 75: 8, 76: 7}[attribute],
        }

    def __getattr__(self, name: str) -> Any:
        if name not in self.calls():
            raise AttributeError(name)
        return lambda *arguments: self.answered(self.calls()[name], *arguments)

    def copy(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> None:
        device = target if kind == 1 else source
        assert fake_cuda.is_allocated(device, num_bytes)
        fake_cuda.enqueue(stream, lambda: ctypes.memmove(target, source, num_bytes))

    def answered(self, call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        try:
            result = call(*arguments)
        except AgentError as error:
            out_of_memory = error.code == "E_OUT_OF_MEMORY"
            return (self.Error.cudaErrorMemoryAllocation if out_of_memory else self.Error.cudaErrorInvalidValue,)
        return (self.Error.cudaSuccess,) if result is None else (self.Error.cudaSuccess, result)


class PycudaDevice:
    """`pycuda.driver.Device`; the driver keeps whether its primary context was pushed."""

    def __init__(self, driver: types.ModuleType, number: int) -> None:
        assert number == 0
        self.driver = driver

    def retain_primary_context(self) -> Any:
        return types.SimpleNamespace(push=lambda: vars(self.driver).update(pushed=True), pop=lambda: None)

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def get_attribute(self, which: int) -> int:
        return {16: 14}[which]


def fake_pycuda() -> Any:
    """`pycuda.driver`: memory and streams are objects, errors are exceptions with CUDA's sentence."""
    fake, driver = fake_cuda.FakeCuda(), types.ModuleType("pycuda.driver")

    class Allocation:
        def __init__(self, num_bytes: int) -> None:
            try:
                self.address = fake.alloc(num_bytes)
            except AgentError:
                raise MemoryError("cuMemAlloc failed: out of memory") from None

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            fake.free(self.address)

    class Stream:
        def __init__(self) -> None:
            self.handle = fake.create_stream()

        def synchronize(self) -> None:
            fake.synchronize(self.handle)

    class Event:
        def __init__(self) -> None:
            self.number = fake.create_event()

        def record(self, stream: Stream) -> None:
            fake.record(self.number, stream.handle)

        def time_till(self, other: Event) -> float:
            return fake.elapsed_ms(self.number, other.number)

    vars(driver).update(
        init=lambda: None,
        Device=partial(PycudaDevice, driver),
        Stream=Stream,
        Event=Event,
        mem_alloc=Allocation,
        pagelocked_empty=np.empty,
        memcpy_htod_async=lambda address, source, stream: fake.copy_to_device(address, source, stream.handle),
        memcpy_dtoh_async=lambda target, address, stream: fake.copy_to_host(target, address, stream.handle),
        get_version=lambda: (12, 6, 0),
        get_driver_version=lambda: 12020,
        device_attribute=types.SimpleNamespace(MULTIPROCESSOR_COUNT=16),
    )
    return driver
