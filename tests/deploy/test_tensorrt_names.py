"""Every name the TensorRT modules touch, on every release, is looked up in NVIDIA's own bindings of that release.

The modules run against the fake of a release; it notes each (class, name) it is asked for, also those it lacks, since
the modules decide by `hasattr`. For each, the fake's answer must be the real bindings' answer: then the modules take
the same way through the real ones and find all they touch. That no line was left out is held by the modules' own syntax
trees: each attribute they read or set on a TensorRT object must have been asked for on some release.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from deploy.agent import fake_cuda, fake_tensorrt, tensorrt_build, tensorrt_engine, tensorrt_runtime
from deploy.agent.errors import AgentError
from deploy.agent.tensorrt_api import open_tensorrt
from deploy.agent.tensorrt_build import BuildOptions, build_engine
from tests.deploy.bindings import WHEELS, MissingToolError, dumped, real_names
from tests.deploy.conftest import CHANNELS, CLASSES, SIDE, HandMadeBundle, linear_onnx
from tests.deploy.fakes import Install, images

AGENT = Path(tensorrt_build.__file__).parent
MODULES = ("tensorrt_api", "tensorrt_build", "tensorrt_engine", "tensorrt_runtime")

TENSORRT_OBJECTS = {
    *("trt", "kinds", "builder", "network", "parser", "refusal", "config", "profile", "tensor", "layer"),
    *("runtime", "engine", "context", "_context"),
}
"""What the modules call the objects that are TensorRT's; a new name must be added here, or its attributes go unseen."""


def exercise(level: str, install: Install, folder: Path) -> set[tuple[str, str]]:
    """Go every way the modules have on this release, in this process; give all names they asked for."""
    fake_tensorrt.touched.clear()
    api = open_tensorrt(install(level, dla_cores=1))
    options = [BuildOptions(precision, batch=2, workspace_bytes=1 << 20) for precision in ("fp32", "fp16", "int8")]
    options.append(BuildOptions("fp16", use_dla=True))
    if level == "rtx":
        options.append(BuildOptions("fp16", compute_capabilities=("8.6", "8.9", "12.0")))
    files = [folder / "fp32.onnx", *(len(options) - 1) * [folder / "half.onnx"]]
    for path, option in zip(files, options, strict=True):
        built = build_engine(api, str(path), option)
        opened = tensorrt_engine.open_engine(api, built.plan, 0 if option.use_dla else None)
        tensorrt_engine.describe_engine(api, opened.engine)
        runtime = tensorrt_runtime.TensorrtRuntime(api, fake_cuda.FakeCuda(), opened, ("input", "logits"), {})
        runtime.infer(images(3))
    with pytest.raises(AgentError):
        build_engine(api, str(folder / "broken.onnx"), BuildOptions("fp32"))
    api = open_tensorrt(install(level, memory_bytes=0))
    with pytest.raises(AgentError):
        build_engine(api, str(folder / "fp32.onnx"), BuildOptions("fp32", workspace_bytes=1))
    return set(fake_tensorrt.touched)


@pytest.fixture
def folder(bundle: HandMadeBundle) -> Path:
    (bundle.folder / "broken.onnx").write_bytes(b"no protobuf")
    (bundle.folder / "half.onnx").write_bytes(
        linear_onnx(np.ones((CHANNELS * SIDE * SIDE, CLASSES)), TensorProto.FLOAT16)
    )
    return bundle.folder


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    try:
        found = {level: real_names(level, tmp_path_factory.mktemp(level)) for level in WHEELS}
    except MissingToolError as error:
        pytest.skip(str(error))
    pytest.importorskip("tensorrt_rtx")
    return {**found, "rtx": dumped("tensorrt_rtx", tmp_path_factory.mktemp("rtx"))}


@pytest.mark.parametrize("level", [*WHEELS, "rtx"])
def test_fake_and_real_agree_on_every_name_the_modules_touch(
    level: str, real: dict[str, dict[str, Any]], install: Install, folder: Path
) -> None:
    touched = exercise(level, install, folder)
    assert len(touched) > 50
    there, fake = real[level]["names"], fake_tensorrt.api(level)
    assert fake.__version__ == real[level]["version"]
    answers = {}
    for owner, name in touched:
        ours = hasattr(fake if owner == "" else getattr(fake, owner), name)
        answers[owner, name] = (ours, name in there.get(owner, ()))
    assert {key: answer for key, answer in answers.items() if answer[0] != answer[1]} == {}


@pytest.mark.parametrize("level", [*WHEELS, "rtx"])
def test_flags_that_are_shifted_have_the_real_numbers(level: str, real: dict[str, dict[str, Any]]) -> None:
    kinds = fake_tensorrt.api(level).NetworkDefinitionCreationFlag
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        theirs = real[level]["numbers"]["NetworkDefinitionCreationFlag"].get(name)
        assert (int(getattr(kinds, name)) if hasattr(kinds, name) else None) == theirs, name


def test_8_5_which_has_no_public_wheel_is_taken_to_be_like_8_6() -> None:
    new = {"OnnxParserFlag", "OnnxParser.set_flag"}  # the release notes of 8.6
    assert set(fake_tensorrt._LACKING["8.5"].split()) == {*fake_tensorrt._LACKING["8.6"].split(), *new}


def test_no_line_that_touches_tensorrt_was_left_out(install: Install, folder: Path) -> None:
    touched: set[str] = set()
    for level in fake_tensorrt.VERSIONS:
        touched |= {name for _, name in exercise(level, install, folder)}
    written = {name for module in MODULES for name in attributes_of_tensorrt(AGENT / f"{module}.py")}
    assert len(written) > 50
    assert sorted(written - touched) == []


def attributes_of_tensorrt(path: Path) -> set[str]:
    """All `x.attribute` of a module, and `hasattr(x, "attribute")`, where x is, or comes from, a TensorRT object."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and is_tensorrt(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr" and is_tensorrt(node.args[0]):
            found.add(ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else "")
    return {name for name in found if not name.startswith("__")} - {""}


def is_tensorrt(node: ast.expr) -> bool:
    """Whether the expression is one of TENSORRT_OBJECTS, or an attribute or a call of one."""
    if isinstance(node, ast.Name):
        return node.id in TENSORRT_OBJECTS
    if isinstance(node, ast.Attribute):
        return node.attr in TENSORRT_OBJECTS or is_tensorrt(node.value)
    return isinstance(node, ast.Call) and is_tensorrt(node.func)


def test_the_search_sees_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("api.trt.A.B\nconfig.c = builder.d().e\nself._context.f(g.h)\nhasattr(engine, 'i')\n")
    assert attributes_of_tensorrt(path) == {"A", "B", "c", "d", "e", "f", "i"}
