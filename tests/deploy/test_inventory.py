"""devices.toml: what is taken, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from deploy import ssh
from deploy.agent.tensorrt_runtime import DeviceOptions
from deploy.devices import devices, find_device
from deploy.inventory import parsed_host
from deploy.ssh import Address


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFPKD_DEVICES", str(tmp_path / "devices.toml"))
    return tmp_path / "devices.toml"


def test_every_key_is_taken(inventory: Path) -> None:
    inventory.write_text(
        """
        [orin1]
        host = "me@10.0.0.7:2222"
        python = ["qemu-aarch64-static", "-L", "/arm", "/arm/usr/bin/python3"]
        workdir = "/data/afpkd"
        runtime = "tensorrt"
        clocks = "locked"
        use_dla = true
        dla_core = 1
        workspace_mb = 512
        max_seconds = 60
        budget_mb = 100
        ssh_config = "ssh/config"
        tags = ["lab", "orin"]

        [nano]
        host = "nano"
        """
    )
    orin, nano = find_device("orin1"), find_device("nano")
    assert next(iter(devices())) == "local"
    assert orin.address == Address(host="10.0.0.7", user="me", port=2222, config=inventory.parent / "ssh" / "config")
    assert orin.python == ("qemu-aarch64-static", "-L", "/arm", "/arm/usr/bin/python3")
    assert (orin.workdir, orin.runtime, orin.clocks, orin.tags) == (
        "/data/afpkd",
        "tensorrt",
        "locked",
        ("lab", "orin"),
    )
    told: dict[str, Any] = {
        "use_dla": True,
        "dla_core": 1,
        "workspace_bytes": 512_000_000,
        "cache_dir": "../../engines",
    }
    assert orin.options == told
    assert DeviceOptions(**told) != DeviceOptions()  # the agent knows each by that name
    assert nano.options == {**told, "use_dla": False, "dla_core": 0, "workspace_bytes": None}
    assert (orin.max_seconds, orin.budget_bytes) == (60, 100_000_000)
    assert nano.address == Address(host="nano")
    assert (nano.python, nano.runtime, nano.clocks) == (("/usr/bin/python3",), "auto", "as-is")
    assert nano.machine == "nano"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[orin1]\n", "orin1.host: missing"),
        ('[orin1]\nhost = "a"\nworkdr = "x"', "orin1.workdr: unknown key: did you mean 'workdir'?"),
        ('[orin1]\nhost = "a"\nmax_seconds = "1"', 'orin1.max_seconds: input should be a valid number, got "1"'),
        ('[orin1]\nhost = "a"\nworkspace_mb = 0', "orin1.workspace_mb: expected more than 0, got 0"),
        ('[orin1]\nhost = "a"\ndla_core = 1', "orin1.dla_core: needs use_dla = true"),
        ('[orin1]\nhost = "a"\nuse_dla = true\ndla_core = -1', "orin1.dla_core: expected 0 or more, got -1"),
        (
            '[orin1]\nhost = "a"\nruntime = "onnxruntime"\nworkspace_mb = 9',
            "orin1.workspace_mb: needs runtime = 'tensorrt' or 'auto'",
        ),
        ('[orin1]\nhost = "a"\nmax_seconds = 0', "orin1.max_seconds: expected more than 0, got 0"),
        ('[orin1]\nhost = "a"\nruntime = "trt"', "orin1.runtime: unknown runtime 'trt': did you mean 'tensorrt'?"),
        ('[orin1]\nhost = "a"\nuse_dla = 1', "orin1.use_dla: input should be a valid boolean, got 1"),
        ('[orin1]\nhost = "a"\ntags = [1]', "orin1.tags: input should be a valid string, got 1"),
        ('[orin1]\nhost = "a"\npython = []', "orin1.python: expected an interpreter"),
        ('[orin1]\nhost = "a"\npython = "-c"', 'orin1.python: "-c" begins with -'),
        ('[orin1]\nhost = "a"\nworkdir = "a\\nb"', r'orin1.workdir: "a\nb" holds control characters'),
        ('[orin1]\nhost = "a"\nworkdir = "~"', "orin1.workdir: a folder of its own is needed"),
        ('[orin1]\nhost = "a"\nworkdir = "x/../.."', "orin1.workdir: a folder of its own is needed"),
        ('[local]\nhost = "a"', "local is built in"),
        ('["a b"]\nhost = "a"', "letters, digits, . _ - make a device's name"),
        ("orin1 = 1", "orin1: expected a table such as [orin1]"),
        ('[orin1]\nhost = "a"\nruntime = "onnxruntime"\nuse_dla = true', "orin1.use_dla: needs runtime = 'tensorrt'"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(inventory: Path, text: str, told: str) -> None:
    inventory.write_text(text)
    with pytest.raises(UserError) as caught:
        find_device("orin1")
    message = str(caught.value)
    assert message.startswith(f"{inventory}: ")
    assert told in message
    assert message.endswith(" [E_DEVICES_FILE]")
    assert message.count("[E_") == 1
    assert "\n" not in message


def test_a_broken_file_is_one_line(inventory: Path) -> None:
    inventory.write_text("[orin1")
    with pytest.raises(UserError, match=f"^{inventory.name}: not a TOML file: "):
        find_device("orin1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("orin1", (None, "orin1", None)),
        ("me@orin1", ("me", "orin1", None)),
        ("10.0.0.7:22", (None, "10.0.0.7", 22)),
        ("me@[fe80::1%eth0]:2222", ("me", "fe80::1%eth0", 2222)),
        ("[::1]", (None, "::1", None)),
    ],
)
def test_hosts(text: str, parts: tuple[str | None, str, int | None]) -> None:
    assert parsed_host(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "-oProxyCommand=x",
        "me@-oProxyCommand=x",
        "-l@host",
        "a b",
        "a;b",
        "$(x)",
        "a\nb",
        "",
        "@",
        "a:b",
        "a:70000",
        "::1",
    ],
)
def test_what_ssh_or_a_shell_could_misread_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="host: "):
        parsed_host(text)


def test_a_password_is_refused_and_not_repeated(inventory: Path) -> None:
    inventory.write_text('[orin1]\nhost = "me:secret@orin1"')
    with pytest.raises(UserError, match=r"no password may be written here \(got 'me:…@orin1'\): use a key") as caught:
        find_device("orin1")
    assert "secret" not in str(caught.value)


def test_the_inventory_is_in_the_working_directory_or_where_told(
    inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"devices\.toml: no such file: AFPKD_DEVICES names it"):
        devices()
    monkeypatch.delenv("AFPKD_DEVICES")
    monkeypatch.chdir(tmp_path)
    assert list(devices()) == ["local", "local-gpu"]
    inventory.write_text('[nano]\nhost = "a"')
    assert list(devices()) == ["local", "local-gpu", "nano"]


def test_an_unknown_device_names_the_nearest(inventory: Path) -> None:
    inventory.write_text('[orin-lab]\nhost = "a"')
    with pytest.raises(UserError, match="unknown device 'orin-lap': did you mean 'orin-lab'"):
        find_device("orin-lap")


def test_ssh_is_told_to_ask_for_nothing_and_to_trust_nobody_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    arguments = Address(host="orin1", user="me", port=22).arguments()
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "ControlMaster=auto"):
        assert arguments[arguments.index(option) - 1] == "-o"
    assert arguments[-6:] == ["-l", "me", "-p", "22", "--", "orin1"]
    (path,) = (word.partition("=")[2] for word in arguments if word.startswith("ControlPath="))
    assert len(path) + 40 - len("%C") + len(".0123456789abcdef") < 108  # what a socket's path may have


def test_shared_connections_live_in_a_folder_of_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp") / f"x{tmp_path.stat().st_ino}"  # noqa: S108 (a socket's path must be short)
    short.symlink_to(tmp_path)
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        assert (ssh._socket_folder().stat().st_mode & 0o777) == 0o700
        ssh._socket_folder().chmod(0o755)
        with pytest.raises(UserError, match="not this user's alone"):
            ssh._socket_folder()
    finally:
        short.unlink()


def test_what_decides_a_number_is_the_devices_identity_and_what_does_not_is_not(inventory: Path) -> None:
    def digest(entry: str) -> str:
        inventory.write_text(f'[orin1]\nhost = "a"\n{entry}')
        return find_device("orin1").digest

    plain = digest("")
    for entry in ('clocks = "locked"', "use_dla = true", 'runtime = "onnxruntime"', 'python = "/opt/python"'):
        assert digest(entry) != plain, entry
    for entry in ("max_seconds = 60", "budget_mb = 100", 'tags = ["lab"]', 'workdir = "x"', 'ssh_config = "c"'):
        assert digest(entry) == plain, entry
    assert find_device("local").digest == ""
