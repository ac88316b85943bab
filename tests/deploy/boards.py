"""File trees of Jetsons, one a JetPack generation: the files that `probe` reads, as NVIDIA's releases lay them out.

Written from documentation and public reports; no board was at hand.
"""

from __future__ import annotations

from pathlib import Path

ORIN_CLOCKS = {
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "115200\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2201600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",  # asleep: reading its `temp` fails
    "proc/meminfo": "MemTotal:       31358532 kB\nMemFree: 1 kB\nMemAvailable:   28000000 kB\n"
    "SwapTotal:      15679264 kB\nSwapFree:       15679264 kB\n",
    "etc/nvpmodel.conf": "# comment\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=MODE_30W >\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
}


def gpu_clock(node: str, now: str, lowest: str, highest: str) -> dict[str, str]:
    values = {"cur_freq": now, "min_freq": lowest, "max_freq": highest, "governor": "nvhost_podgov"}
    return {f"sys/class/devfreq/{node}/{name}": f"{value}\n" for name, value in values.items()}


def dpkg(**packages: str) -> dict[str, str]:
    """The package data base; `_` in a name stands for `-`."""
    known = {name.replace("_", "-"): version for name, version in packages.items()}
    text = "\n\n".join(
        f"Package: {name}\nStatus: install ok installed\nPriority: standard\nDepends: a,\n b\nVersion: {version}"
        for name, version in known.items()
    )
    gone = "\n\nPackage: libnvinfer7\nStatus: deinstall ok config-files\nVersion: 7.1.3-1+cuda10.2\n"
    return {"var/lib/dpkg/status": text + gone}


JETPACK_5_1 = {
    **ORIN_CLOCKS,
    **gpu_clock("17000000.ga10b", "306000000", "306000000", "1300500000"),
    **dpkg(
        nvidia_l4t_core="35.4.1-20230801124926",
        nvidia_jetpack="5.1.2-b104",
        libnvinfer8="8.5.2-1+cuda11.4",
        cuda_cudart_11_4="11.4.298-1",
    ),
    "proc/device-tree/model": "NVIDIA Orin Jetson-Small Developer Kit\0",
    "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, "
    "DATE: Tue Aug  1 19:57:35 UTC 2023\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 20.04.6 LTS"\n',
}

JETPACK_6_2 = {
    **ORIN_CLOCKS,
    **gpu_clock("17000000.gpu", "1300500000", "1300500000", "1300500000"),
    **dpkg(
        nvidia_l4t_core="36.4.3-20250107174145",
        nvidia_jetpack="6.2+b77",
        libnvinfer10="10.3.0.30-1+cuda12.5",
    ),
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    # everything that is on at its highest: jetson_clocks was here; in MODE_30W a whole cluster is off
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "2201600\n",
    "sys/devices/system/cpu/cpufreq/policy0/affected_cpus": "0 1 2 3\n",
    "sys/devices/system/cpu/cpufreq/policy8/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy8/scaling_min_freq": "115200\n",
    "sys/devices/system/cpu/cpufreq/policy8/scaling_max_freq": "2201600\n",
    "sys/devices/system/cpu/cpufreq/policy8/affected_cpus": "\n",
}

JETPACK_7_2 = {
    **gpu_clock("gpu-gpc-0", "1575000000", "315000000", "1575000000"),
    **dpkg(libnvinfer10="10.16.2.5-1+cuda13.2", nvidia_l4t_core="39.2.0-20260601000000"),
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64, DATE: 2026\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
    "usr/local/cuda/version.json": '{"cuda": {"version": "13.2.0"}}',
    "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n",
}

OF_THE_FUTURE = {
    "proc/device-tree/model": "NVIDIA Jetson Next\0",
    "etc/nv_tegra_release": "# R99 (release), REVISION: 7.5, GCID: 1, BOARD: generic, EABI: riscv, DATE: 2031\n",
    **dpkg(libnvinfer77="77.1.0-1+cuda40.1"),
}


def laid_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def hwmon(number: int, chip: str, **values: str) -> dict[str, str]:
    return {f"sys/class/hwmon/hwmon{number}/{name}": f"{value}\n" for name, value in {"name": chip, **values}.items()}


def ina3221(number: int, *rails: tuple[str, int, int]) -> dict[str, str]:
    """(name, millivolt, milliampere) a rail; the chip's last channel is the sum of its shunts, which is no rail."""
    values = {"in7_label": "sum of shunt voltages", "in7_input": "88"}
    for channel, (name, millivolt, milliampere) in enumerate(rails, start=1):
        values |= {f"in{channel}_label": name, f"in{channel}_input": str(millivolt)}
        values |= {f"curr{channel}_input": str(milliampere)}
    return hwmon(number, "ina3221", **values)


def cooling(number: int, kind: str, state: int) -> dict[str, str]:
    folder = f"sys/class/thermal/cooling_device{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{state}\n"}


_IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"

SENSORS_4 = {  # Jetson Nano
    **{f"{_IIO}/rail_name_{n}": f"{name}\n" for n, name in enumerate(("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"))},
    **{f"{_IIO}/in_power{n}_input": f"{power}\n" for n, power in enumerate((2532, 40, 482))},
    "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "35500\n",
    "sys/class/devfreq/57000000.gpu/cur_freq": "76800000\n",
    "sys/class/devfreq/54680000.vic/cur_freq": "192000000\n",
    "sys/kernel/debug/clk/emc/clk_rate": "1600000000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1479000\n",
    "sys/devices/pwm-fan/cur_pwm": "120\n",
    **cooling(0, "pwm-fan", 3),
    **cooling(1, "gpu-balanced", 0),
    "proc/meminfo": "MemAvailable:   28000000 kB\n",
}

SENSORS_5 = {  # Orin Nano
    **{path: text for path, text in ORIN_CLOCKS.items() if "etc" not in path},
    "sys/class/devfreq/17000000.ga10b/cur_freq": "306000000\n",
    **ina3221(0, ("VDD_IN", 5040, 980), ("VDD_CPU_GPU_CV", 4900, 160), ("NC", 0, 0)),
    **hwmon(1, "soctherm_oc", oc1_event_cnt="0", oc3_event_cnt="4"),
    **hwmon(2, "pwmfan", pwm1="77"),
    **cooling(0, "cpufreq-cpu0", 0),
    **cooling(1, "devfreq-17000000.ga10b", 0),
    **cooling(2, "cpu-throttle-alert", 1),
    **cooling(3, "hot-surface-alert", 1),  # a notice alone
}

SENSORS_6 = {  # AGX Orin: no rail feeds the whole module
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n",
    **ina3221(0, ("VDD_GPU_SOC", 20000, 120)),
    **ina3221(1, ("VIN_SYS_5V0", 5000, 900)),
    **hwmon(3, "soctherm_oc", oc2_event_cnt="1"),
    "proc/stat": "cpu  10 0 10 100 0 0 0 0 0 0\ncpu0 10 0 10 100 0 0 0 0 0 0\n",
}

SENSORS_7 = {  # Thor
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
    **ina3221(0, ("VDD_GPU", 20000, 600)),
    **hwmon(1, "ina238", power1_input="31500000"),
    **cooling(0, "gpu", 1),
}

DESKTOP = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1234567890\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "900000000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    **cooling(0, "intel_powerclamp", -1),
    "proc/self/cgroup": "0::/user.slice\n",
    "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 99\nnr_periods 50\nnr_throttled 12\nthrottled_usec 250000\n",
    "proc/stat": "cpu  10 0 10 100 0 0 0 750 0 0\n",
}

TEGRASTATS = {
    "4": (
        "RAM 1903/3964MB (lfb 2x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [14%@1224,9%@1224,5%@1224] "
        "EMC_FREQ 2%@1600 GR3D_FREQ 0%@76 VIC_FREQ 0%@192 APE 25 PLL@33C CPU@35.5C PMIC@100C GPU@33C AO@42C "
        "thermal@34.25C POM_5V_IN 2532/2532 POM_5V_GPU 40/40 POM_5V_CPU 482/482",
        {
            "power_w/POM_5V_IN": 2.532,
            "power_w/POM_5V_GPU": 0.04,
            "power_w/POM_5V_CPU": 0.482,
            **{"temperature_c/PLL": 33, "temperature_c/CPU": 35.5, "temperature_c/PMIC": 100, "temperature_c/GPU": 33},
            **{"temperature_c/AO": 42, "temperature_c/thermal": 34.25, "gpu_hz/gpu": 76e6, "emc_hz/emc": 1.6e9},
        },
    ),
    "5": (
        "09-01-2023 12:00:00 RAM 2521/7471MB (lfb 1x4MB) SWAP 0/3735MB (cached 0MB) CPU [0%@729,1%@729,off,off] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] cpu@48.25C soc2@47.2C gpu@47.5C tj@48.25C "
        "VDD_IN 4939mW/4939mW VDD_CPU_GPU_CV 784mW/784mW VDD_SOC 1450mW/1450mW",
        {
            **{"power_w/VDD_IN": 4.939, "power_w/VDD_CPU_GPU_CV": 0.784, "power_w/VDD_SOC": 1.45},
            **{"temperature_c/cpu": 48.25, "temperature_c/soc2": 47.2, "temperature_c/gpu": 47.5},
            **{"temperature_c/tj": 48.25, "gpu_hz/gpu": 305e6, "emc_hz/emc": 2.133e9},
        },
    ),
    "6": (
        "01-08-2025 01:49:37 RAM 3000/62841MB (lfb 7x4MB) SWAP 0/31420MB (cached 0MB) CPU [2%@2201,0%@2201] "
        "GR3D_FREQ 99%@[1300,1297] cpu@55.1C tboard@41.5C VDD_GPU_SOC 12000mW/11000mW VIN_SYS_5V0 4500mW/4500mW",
        {
            **{"power_w/VDD_GPU_SOC": 12.0, "power_w/VIN_SYS_5V0": 4.5, "gpu_hz/gpu": 1.3e9},
            **{"temperature_c/cpu": 55.1, "temperature_c/tboard": 41.5},
        },
    ),
    "7": (
        "06-01-2026 10:00:00 RAM 9000/125772MB (lfb 300x4MB) CPU [1%@2601,0%@2601] GR3D_FREQ 40%@[1575,1575,1575] "
        "cpu@50.5C tj@51C VDD_GPU 12000mW/12000mW VDD_CPU_SOC_MSS 8000mW/8000mW VIN_SYS_5V0 6000mW/6000mW "
        "VIN 31500mW/31500mW",
        {
            **{
                "power_w/VDD_GPU": 12.0,
                "power_w/VDD_CPU_SOC_MSS": 8.0,
                "power_w/VIN_SYS_5V0": 6.0,
                "power_w/VIN": 31.5,
            },
            **{"temperature_c/cpu": 50.5, "temperature_c/tj": 51.0, "gpu_hz/gpu": 1.575e9},
        },
    ),
}
"""A line of each JetPack, after NVIDIA's guides, and what it says."""
