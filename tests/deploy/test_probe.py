"""What a device says it is, from file trees of every JetPack generation, of another machine, and of this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.agent import PROTOCOL, probe
from deploy.agent.clocks import STORED_MODE
from deploy.client import call_agent, install_agent
from deploy.local import local_target
from pipeline.probe_text import probe_text
from tests.deploy.boards import JETPACK_5_1, JETPACK_6_2, JETPACK_7_2, OF_THE_FUTURE, laid_out

SYSTEMS = ("board", "system", "l4t", "jetpack", "cuda", "libnvinfer")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            JETPACK_5_1,
            ("NVIDIA Orin Jetson-Small Developer Kit", "Ubuntu 20.04.6 LTS", "35.4.1", "5.1.2", "11.4.298", "8.5.2"),
        ),
        (
            JETPACK_6_2,
            ("NVIDIA Jetson AGX Orin Developer Kit", "Ubuntu 22.04.5 LTS", "36.4.3", "6.2", "12.6.11", "10.3.0.30"),
        ),
        (
            JETPACK_7_2,
            ("NVIDIA Jetson AGX Thor Developer Kit", "Ubuntu 24.04.3 LTS", "39.2.0", "7.2.x", "13.2.0", "10.16.2.5"),
        ),
        (OF_THE_FUTURE, ("NVIDIA Jetson Next", None, "99.7.5", None, None, "77.1.0")),
        ({}, (None, None, None, None, None, None)),
    ],
)
def test_the_system_is_told_by_its_files(
    files: dict[str, str], expected: tuple[str | None, ...], tmp_path: Path
) -> None:
    facts = probe.probe({"root": str(laid_out(tmp_path, files))})
    assert tuple(facts[key] for key in SYSTEMS) == expected
    assert probe_text({"device": "orin1", **facts}).startswith("orin1\n")


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("R32 (release), REVISION: 7.1", "4.x"),
        ("R35 (release), REVISION: 1.0", "5.0.2"),
        ("R36 (release), REVISION: 3.0", "6.0"),
        ("R36 (release), REVISION: 4.0", "6.1"),
        ("R36 (release), REVISION: 5.0", "6.2.x"),
        ("R38 (release), REVISION: 2.1", "7.0"),
        ("R38 (release), REVISION: 4.0", "7.1"),
        ("R38 (release), REVISION: 9.0", None),
    ],
)
def test_a_jetpack_that_has_no_package_is_guessed_from_its_l4t(l4t: str, jetpack: str | None, tmp_path: Path) -> None:
    root = laid_out(tmp_path, {"etc/nv_tegra_release": f"# {l4t}, GCID: 1, BOARD: generic\n"})
    assert probe.probe({"root": str(root)})["jetpack"] == jetpack


def test_an_l4t_without_its_release_file_is_told_by_its_package(tmp_path: Path) -> None:
    files = {name: text for name, text in JETPACK_6_2.items() if "tegra_release" not in name}
    assert probe.probe({"root": str(laid_out(tmp_path, files))})["l4t"] == "36.4.3"


def test_power_mode_clocks_memory_and_temperatures(tmp_path: Path) -> None:
    facts = probe.probe({"root": str(laid_out(tmp_path, JETPACK_5_1))})
    assert facts["power_mode"] == {"id": 2, "name": "MODE_30W"}
    assert facts["power_modes"] == [{"id": 0, "name": "MAXN"}, {"id": 2, "name": "MODE_30W"}]
    assert facts["clocks"] == {
        "cpu": [
            {
                "name": "policy0",
                "now_hz": 729_600_000,
                "min_hz": 115_200_000,
                "max_hz": 2_201_600_000,
                "governor": "schedutil",
            }
        ],
        "gpu": [
            {
                "name": "17000000.ga10b",
                "now_hz": 306_000_000,
                "min_hz": 306_000_000,
                "max_hz": 1_300_500_000,
                "governor": "nvhost_podgov",
            }
        ],
        "locked": False,
    }
    assert facts["memory"] == {
        "total_bytes": 31358532 * 1024,
        "available_bytes": 28000000 * 1024,
        "swap_total_bytes": 15679264 * 1024,
        "swap_free_bytes": 15679264 * 1024,
    }
    assert facts["temperatures_c"] == {"cpu-thermal": 48.25}
    text = probe_text({"device": "orin1", **facts})
    assert "power mode     MODE_30W (id 2)" in text
    assert "gpu clock      17000000.ga10b 306 MHz (306 to 1300, nvhost_podgov)" in text


def test_a_busy_gpu_is_seen_whoever_keeps_it_so(tmp_path: Path) -> None:
    load = {
        "sys/class/devfreq/17000000.gpu/device/load": "873\n",
        "sys/class/devfreq/15340000.vic/device/load": "999\n",
    }
    assert probe.probe({"root": str(laid_out(tmp_path, load))})["gpu_load_percent"] == 87.3
    assert probe.probe({"root": str(tmp_path / "nowhere")})["gpu_load_percent"] is None


def test_locked_clocks_are_seen_on_every_generation(tmp_path: Path) -> None:
    orin = laid_out(tmp_path / "6", JETPACK_6_2)
    assert probe.probe({"root": str(orin)})["clocks"]["locked"] is True
    laid_out(orin, {"sys/devices/system/cpu/cpufreq/policy8/affected_cpus": "8 9\n"})  # on again, and not locked
    assert probe.probe({"root": str(orin)})["clocks"]["locked"] is False
    assert probe.probe({"root": str(laid_out(tmp_path / "7", JETPACK_7_2))})["clocks"]["locked"] is False
    assert probe.probe({"root": str(tmp_path)})["clocks"]["locked"] is None


def test_a_power_mode_without_a_name_keeps_its_number(tmp_path: Path) -> None:
    facts = probe.probe({"root": str(laid_out(tmp_path, JETPACK_7_2))})
    assert facts["power_mode"] == {"id": 1, "name": None}


@pytest.mark.parametrize("node", ["/dev/nvgpu/igpu0/as", "/dev/nvhost-gpu", "/dev/nvhost-as-gpu", "/dev/nvidia0"])
def test_others_on_the_gpu_are_named(node: str, tmp_path: Path) -> None:
    for process, opened in ((4242, node), (17, "/dev/nvidiactl"), (os.getpid(), node)):
        folder = tmp_path / "proc" / str(process) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text("detector\n")
        (folder / "3").symlink_to(opened)
    assert probe.probe({"root": str(tmp_path)})["gpu_processes"] == [{"pid": 4242, "name": "detector"}]


def test_what_we_started_and_what_computes_nothing_is_nobody_else(tmp_path: Path) -> None:
    """A child of ours (the sampler reads NVML), a grandchild, NVIDIA's daemon, and a stranger."""
    told = {
        51: ("python3", os.getpid()),
        52: ("a) S 4 (b", 51),
        53: ("nvidia-persiste", 1),
        54: ("game", 60),
        60: ("sh", 1),
    }
    for process, (name, parent) in told.items():
        folder = tmp_path / "proc" / str(process) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text(f"{name}\n")
        (folder.parent / "stat").write_text(f"{process} ({name}) S {parent} {process} 1 34816\n")
        (folder / "3").symlink_to("/dev/null" if name == "sh" else "/dev/nvidia0")
    assert probe.probe({"root": str(tmp_path)})["gpu_processes"] == [{"pid": 54, "name": "game"}]


def advice(monkeypatch: pytest.MonkeyPatch, root: Path, **versions: str | None) -> dict[str, Any]:
    monkeypatch.setattr(probe, "_module_version", versions.get)
    return probe.probe({"root": str(root)})


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = laid_out(tmp_path, JETPACK_6_2)
    bare = advice(monkeypatch, board)
    assert bare["runtimes"] == []
    assert "apt install python3-numpy" in bare["advice"][0]
    assert "no tensorrt (libnvinfer 10.3.0.30 is there): apt install python3-libnvinfer" in bare["advice"][1]
    assert "nothing here can run a network" in bare["advice"][2]
    assert "  ! numpy is missing" in probe_text({"device": "orin1", **bare})
    whole = advice(monkeypatch, board, numpy="1.26", tensorrt="10.3.0", onnxruntime="1.23")
    assert (whole["runtimes"], whole["advice"]) == (["tensorrt", "onnxruntime"], [])
    assert advice(monkeypatch, board, tensorrt="10.3.0")["runtimes"] == []  # it needs numpy


@pytest.mark.parametrize("node", ["nvmap", "nvgpu/igpu0/ctrl", "nvhost-gpu", "nvidia0"])
def test_a_gpu_that_this_account_may_not_open_is_told(
    node: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    board = laid_out(tmp_path, {**JETPACK_6_2, "dev/nvidiactl": "", f"dev/{node}": ""})
    everything = {"numpy": "1.26", "tensorrt": "10.3.0"}
    assert advice(monkeypatch, board, **everything)["advice"] == []

    def may_read(path: str, mode: int) -> bool:
        return mode == os.R_OK

    monkeypatch.setattr(os, "access", may_read)
    (told,) = advice(monkeypatch, board, **everything)["advice"]
    assert told.startswith(
        f"this account may not open {tmp_path}/dev/{node}, which the GPU needs: sudo usermod -aG video,"
    )


def test_what_was_left_changed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / STORED_MODE).write_text("2")
    facts = probe.probe({"root": str(laid_out(tmp_path, JETPACK_6_2))})
    assert facts["clocks_left_changed"] is True
    told = "  ! clocks or power mode were left changed: afpkd devices restore orin1 says more"
    assert told in probe_text({"device": "orin1", **facts}).splitlines()


def test_this_machine_is_told_over_the_agent() -> None:
    with local_target("local", (sys.executable,)) as target:
        install_agent(target)
        facts = call_agent(target, "probe", {})
    assert facts["protocol"] == PROTOCOL
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "onnxruntime" in facts["runtimes"]
    assert facts["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts["disk_free_bytes"] > 0
    assert (facts["holder"], facts["jobs"], facts["clocks_left_changed"]) == (None, [], False)
