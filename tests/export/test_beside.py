"""Which files hold a model's weights, wherever in its graph they are named, and that none lies elsewhere."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from afpkd.errors import UserError
from export.beside import files_beside


def weight(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(*locations: str) -> onnx.ModelProto:
    """The first location is that of a weight of the main graph, the second in an If, others in an operator's graphs."""
    graphs = [helper.make_graph([], place, [], [], [weight(place)]) for place in locations[1:]]
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph) for graph in graphs[:1]]
    nodes += [helper.make_node("Switch", ["x"], ["z"], domain="theirs", cases=[graph]) for graph in graphs[1:]]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], [weight(locations[0])]))


def test_files_are_named_as_the_model_names_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = ("a.data", "sub/b.data", "c.data")
    for name in names:
        (tmp_path / name).touch()
    assert files_beside(tmp_path / "m.onnx", model(*names)) == {name: tmp_path / name for name in names}


@pytest.mark.parametrize("location", ["../a.data", "sub/../../a.data", "/etc/passwd", "", "b.data", "sub"])
def test_a_file_elsewhere_and_none_are_one_line(tmp_path: Path, location: str) -> None:
    (tmp_path / "theirs" / "sub").mkdir(parents=True)
    (tmp_path / "a.data").touch()
    words = "which is missing" if location in ("b.data", "sub") else "not in its folder"
    with pytest.raises(UserError, match=words) as caught:
        files_beside(tmp_path / "theirs" / "m.onnx", model(location))
    assert "\n" not in str(caught.value)
