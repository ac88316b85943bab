"""Sensors of file trees as each JetPack generation lays them out, of a desktop, of this machine; NVML; tegrastats."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deploy.agent import nvml, sensors, tegrastats
from tests.deploy.boards import (
    DESKTOP,
    SENSORS_4,
    SENSORS_5,
    SENSORS_6,
    SENSORS_7,
    TEGRASTATS,
    laid_out,
)


def readings(root: Path, files: dict[str, str]) -> dict[str, float | None]:
    return {name: read() for name, read in sensors.find_sensors(laid_out(root, files))}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            SENSORS_4,
            {
                "power_w/POM_5V_IN": 2.532,
                "power_w/POM_5V_GPU": 0.04,
                "power_w/POM_5V_CPU": 0.482,
                "temperature_c/CPU-therm": 35.5,
                "gpu_hz/57000000.gpu": 76_800_000,
                "emc_hz/emc": 1_600_000_000,
                "cpu_hz/policy0": 1_479_000_000,
                "cooling/1:gpu-balanced": 0,
                "fan/pwm-fan": 120,
                "memory_available_bytes/all": 28_000_000 * 1024,
            },
        ),
        (
            SENSORS_5,
            {
                "power_w/VDD_IN": 4.9392,
                "power_w/VDD_CPU_GPU_CV": 0.784,
                "temperature_c/cpu-thermal": 48.25,
                "gpu_hz/17000000.ga10b": 306_000_000,
                "cpu_hz/policy0": 729_600_000,
                "cooling/0:cpufreq-cpu0": 0,
                "cooling/1:devfreq-17000000.ga10b": 0,
                "cooling/2:cpu-throttle-alert": 1,
                "over_current/oc1": 0,
                "over_current/oc3": 4,
                "fan/hwmon2": 77,
                "memory_available_bytes/all": 28_000_000 * 1024,
            },
        ),
        (
            SENSORS_6,
            {
                "power_w/VDD_GPU_SOC": 2.4,
                "power_w/VIN_SYS_5V0": 4.5,
                "gpu_hz/17000000.gpu": 1_300_500_000,
                "emc_hz/emc": 3_199_000_000,
                "over_current/oc2": 1,
                "steal_s/all": 0.0,
            },
        ),
        (
            SENSORS_7,
            {"power_w/VDD_GPU": 12.0, "power_w/VIN": 31.5, "gpu_hz/gpu-gpc-0": 1_575_000_000, "cooling/0:gpu": 1},
        ),
        (
            DESKTOP,
            {
                "energy_j/intel-rapl:0:package-0": 1234.567890,
                "energy_j/intel-rapl:0:0:core": 900.0,
                "throttles/cpu0": 3,
                "quota_throttles/cgroup": 12,
                "quota_throttled_s/cgroup": 0.25,
                "steal_s/all": 7.5,
            },
        ),
        ({}, {}),
    ],
)
def test_every_sensor_of_a_generation_is_found_in_its_unit(
    files: dict[str, str], expected: dict[str, float], tmp_path: Path
) -> None:
    found = readings(tmp_path, files)
    assert set(found) == set(expected)
    assert found == pytest.approx(expected)


def test_steal_is_counted_in_the_kernels_own_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_CLK_TCK": 250}.__getitem__)
    assert readings(tmp_path, {"proc/stat": "cpu 1 2 3 4 5 6 7 500 0 0\n"}) == {"steal_s/all": 2.0}


def test_readings_follow_the_files_and_a_sensor_that_goes_is_none(tmp_path: Path) -> None:
    found = dict(sensors.find_sensors(laid_out(tmp_path, SENSORS_5)))
    current = tmp_path / "sys/class/hwmon/hwmon0/curr1_input"
    current.write_text("2000\n")
    assert found["power_w/VDD_IN"]() == pytest.approx(10.08)
    current.write_text("not a number")
    assert found["power_w/VDD_IN"]() is None
    current.unlink()
    assert found["power_w/VDD_IN"]() is None


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"proc/self/cgroup": "0::/jobs/a\n", "sys/fs/cgroup/jobs/a/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/jobs/a\n", "sys/fs/cgroup/jobs/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/jobs/a\n", "sys/fs/cgroup/jobs/a/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "3:memory:/\n2:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            0.25,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_a_cgroups_limit_is_found_in_both_versions_and_above(
    files: dict[str, str], cpus: float | None, tmp_path: Path
) -> None:
    assert sensors.quota_cpus(laid_out(tmp_path, files)) == cpus


def test_this_machines_sensors_can_be_read() -> None:
    found = dict(sensors.find_sensors(Path("/")))
    available = found["memory_available_bytes/all"]()
    assert available is not None
    assert available > 1 << 20


@pytest.mark.parametrize("jetpack", sorted(TEGRASTATS))
def test_a_line_of_tegrastats_is_read_whatever_the_jetpack(jetpack: str) -> None:
    line, expected = TEGRASTATS[jetpack]
    assert tegrastats.readings_from_line(line) == pytest.approx(expected)


def test_nonsense_of_tegrastats_reads_as_nothing() -> None:
    assert tegrastats.readings_from_line("RAM 1/2MB (lfb 3x4MB) something new [5] 6/7") == {}


def test_tegrastats_is_followed_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of its name that prints what it is fed: the last whole line counts."""
    fifo, program = tmp_path / "lines", tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\necho VDD_IN 4000mW/4000mW cpu@40C\nexec cat {fifo}\n")
    program.chmod(0o755)
    subprocess.run(["mkfifo", fifo], check=True)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with tegrastats.tegrastats_sensors() as given:
        found = dict(given)
        assert {name: read() for name, read in found.items()} == {"power_w/VDD_IN": 4.0, "temperature_c/cpu": 40.0}
        with fifo.open("w") as feed:
            feed.write("VDD_IN 5000mW/4500mW cpu@41C\nVDD_IN 6000mW/4500mW cpu@42C\nVDD_IN 9")
            feed.flush()
            until_changed = (found["power_w/VDD_IN"]() for _ in range(10**6))
            assert next(value for value in until_changed if value != 4.0) == 6.0
            assert found["temperature_c/cpu"]() == 42.0


def test_without_tegrastats_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with tegrastats.tegrastats_sensors() as found:
        assert found == []


FAKE_NVML = r"""
#include <string.h>
#ifndef GPUS
#define GPUS 1
#endif
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(GPUS == 1 ? 0x9L : 0x8L); return i; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **d) { *d = (void *)0x9; return strcmp(id, "0000:3b:00.0"); }
int nvmlDeviceGetClockInfo(void *d, int which, unsigned *mhz) {
  *mhz = which == 1 ? 1410 : which == 2 ? 5001 : 0; return d != (void *)0x9; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 61234; return 0; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *c) { *c = 44 + sensor; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *bits) { *bits = 0x1 | 0x4 | 0x40; return 0; }
"""


def test_nvml_is_read_through_its_c_interface(tmp_path: Path) -> None:
    """A small C library of its names: units, and of the reasons only those that mean slower (idle is bit 0)."""
    (tmp_path / "nvml.c").write_text(FAKE_NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("cc: not installed")
    assert {name: read() for name, read in nvml.nvml_sensors(str(library))} == {
        "gpu_hz/gpu0": 1.41e9,
        "emc_hz/gpu0": 5.001e9,
        "power_w/gpu0": pytest.approx(61.234),
        "temperature_c/gpu0": 44,
        "slowed_by/gpu0": 0x44,
    }
    older = FAKE_NVML.replace("nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlSomethingElse")
    (tmp_path / "nvml.c").write_text(older)
    old = tmp_path / "libold.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", old, tmp_path / "nvml.c"], check=True, capture_output=True)
    assert "slowed_by/gpu0" not in dict(nvml.nvml_sensors(str(old)))


FAKE_DRIVER = r"""
#include <string.h>
static int ready;
int cuInit(unsigned flags) { ready = flags == 0; return NO_DEVICE; }
int cuDeviceGet(int *device, int number) { *device = 5; return !ready || number; }
int cuDeviceGetPCIBusId(char *id, int size, int device) {
  if (size < 13 || device != 5) return 1; strcpy(id, "0000:3b:00.0"); return 0; }
"""


@pytest.mark.parametrize(("no_device", "num"), [(0, 5), (100, 0)])
def test_of_several_gpus_the_one_that_computes_is_read_or_none(no_device: int, num: int, tmp_path: Path) -> None:
    """By its place on the bus: the first of NVML is another, whose handle nothing here answers."""
    for name, source in (("nvml", FAKE_NVML), ("cuda", FAKE_DRIVER)):
        (tmp_path / f"{name}.c").write_text(source)
        made, source_file = str(tmp_path / f"lib{name}.so"), str(tmp_path / f"{name}.c")
        command = ["cc", "-shared", "-fPIC", "-DGPUS=2", f"-DNO_DEVICE={no_device}", "-o", made, source_file]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("cc: not installed")
    found = dict(nvml.nvml_sensors(str(tmp_path / "libnvml.so"), str(tmp_path / "libcuda.so")))
    assert len(found) == num
    assert [found[name]() for name in found if name == "gpu_hz/gpu0"] == [1.41e9] * (num > 0)
    assert nvml.nvml_sensors(str(tmp_path / "libnvml.so"), "libno-such-thing.so") == []


def test_without_nvml_there_is_none() -> None:
    assert nvml.nvml_sensors("libno-such-thing.so") == []
