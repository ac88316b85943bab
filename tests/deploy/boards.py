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
    # everything at its highest: jetson_clocks was here
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "2201600\n",
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
