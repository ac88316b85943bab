"""SPEC.toml: what it means, and one line for each mistake."""

from pathlib import Path

import pytest

from afpkd.errors import UserError
from pipeline.foreign_spec import read_spec

SPEC = """
num_classes = 10
[input]
size = [32, 48]
mean = [0.5, 0.5, 0.5]
std = [0.2, 0.2, 0.2]
layout = "NCHW"
[weights]
key = "state_dict"
strip_prefix = "module."
[data]
kind = "folder"
path = "images"
split = "test"
calibration_split = "train"
[export]
precisions = ["fp32"]
"""


def _read(tmp_path: Path, *changes: tuple[str, str]) -> object:
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "spec.toml").write_text(text)
    return read_spec(tmp_path / "spec.toml")


def test_a_whole_spec_and_the_least_one(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    spec = read_spec(tmp_path / "spec.toml")
    assert (spec.num_classes, spec.input.image_size, spec.weights.key) == (10, (32, 48), "state_dict")
    assert (spec.data.calibration_split, spec.export.precisions) == ("train", ("fp32",))
    least = "num_classes = 2\ninput = {size = 28, mean = [0.1], std = [0.3]}\n"
    (tmp_path / "least.toml").write_text(least + 'data = {kind = "folder", path = "x", split = "val"}')
    spec = read_spec(tmp_path / "least.toml")
    assert (spec.input.image_size, spec.data.calibration_split, spec.weights.strip_prefix) == ((28, 28), None, "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_classes = 10", "num_class = 10", "num_class: unknown key: did you mean 'num_classes'"),
        ("strip_prefix", "strip_prefx", "weights.strip_prefx: unknown key: did you mean 'strip_prefix'"),
        ("num_classes = 10", "num_classes = 1", "num_classes: must be 2 or more, got 1"),
        ("num_classes = 10", 'num_classes = "10"', "num_classes: "),
        ("[32, 48]", "[32, 48, 3]", "input.size"),
        ("[32, 48]", "[0, 48]", "input.size: must be positive"),
        ("std = [0.2, 0.2, 0.2]", "std = [0.2]", "input.mean: 1 or 3 channels"),
        ("std = [0.2, 0.2, 0.2]", "std = [0.2, 0.2, 0.0]", "input.std: must be positive"),
        ('"NCHW"', '"NHWC"', "input.layout"),
        ('"folder"', '"lmdb"', "data.kind"),
        ('split = "test"', "", "data.split: missing"),
        ('precisions = ["fp32"]', "precisions = []", "export.precisions"),
        ("num_classes = 10", "num_classes = ", "not a TOML file"),
    ],
)
def test_each_mistake_is_one_line_with_file_and_key(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        _read(tmp_path, (old, new))
    assert str(error.value).startswith("spec.toml: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml: No such file"):
        read_spec(tmp_path / "nowhere.toml")
