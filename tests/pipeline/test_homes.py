"""`~user/...` where nobody of that name is: a path that is not there, told as any other, and no traceback."""

from pathlib import Path

import pytest

from afpkd.data.dataset import data_root
from afpkd.errors import UserError
from afpkd.models import build_model
from afpkd.models.fcos import FcosDetector
from afpkd.models.user_file import model_from_file
from afpkd.record import cache_folder, expanded
from deploy.agent import transfer
from deploy.devices import find_device
from pipeline.recipe_reader import found_path

NOBODY = "~no-such-user/x"


def test_the_home_of_nobody_stays_as_it_is_and_ours_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (expanded("~/x"), expanded(NOBODY), expanded("a/~")) == (tmp_path / "x", Path(NOBODY), Path("a/~"))


def test_folders_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFPKD_DATA", NOBODY)
    monkeypatch.setenv("XDG_CACHE_HOME", NOBODY)
    assert (data_root(), cache_folder("decoded")) == (Path(NOBODY), Path(NOBODY) / "afpkd" / "decoded")


def test_files_that_a_recipe_and_a_command_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file at .*~no-such-user/x"):
        found_path(NOBODY, tmp_path / "mine.toml", "teacher.weights: no file")
    with pytest.raises(UserError, match=r"~no-such-user/x\.py: no such file"):
        model_from_file(f"{NOBODY}.py:resnet20")
    detector = build_model("fcos-mobilenetv3-64", num_classes=2, in_channels=3)
    assert isinstance(detector, FcosDetector)
    with pytest.raises(UserError, match=r"backbone ~no-such-user/x: no file at"):
        detector.load_backbone(NOBODY)


def test_a_devices_file_for_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = tmp_path / "devices.toml"
    inventory.write_text(f'[board]\nhost = "board"\nssh_config = "{NOBODY}"\n')
    monkeypatch.setenv("AFPKD_DEVICES", str(inventory))
    address = find_device("board").address
    assert address is not None
    assert address.config == tmp_path / NOBODY


def test_the_work_folder_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, folder in ((NOBODY, NOBODY), ("~/mine", "mine"), ("mine", "mine")):
        assert transfer._work_folder(name) == tmp_path / folder
