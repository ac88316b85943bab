"""Real builds: NVIDIA's parser and builder (TensorRT-RTX) on students of the zoo, for GPUs that are not here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from afpkd.record import Json
from bench import student_files
from deploy import build_check as module
from deploy.agent import child
from deploy.agent.errors import AgentError
from deploy.agent.tensorrt_api import open_tensorrt
from deploy.agent.tensorrt_build import BuildOptions, build_engine
from deploy.build_check import build_check, capability_report
from deploy.onnx_checks import check_onnx
from tests.deploy.fakes import Install
from tests.deploy.test_onnx_checks import node, save

FAST, SLOW = ("resnet20", "vgg8"), ("resnet8x4", "wrn-16-2", "mobilenetv2", "shufflenetv2")

exported = cache(student_files.exported)  # each once

KEYS = "status tensorrt compute_capabilities build_seconds engine_bytes layer_types reason static dla_not_native"


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("students")


COMPUTING = ("correlation", "runtime_fusion", "gemm", "avgpool", "maxpool")
"""The kinds of layer that compute; `kgen` are elementwise kernels, among them the casts at both ends and Q/DQ."""


def types_of(report: Json) -> set[str]:
    """The types in which any computing layer reads."""
    assert (report["status"], report["reason"]) == ("ok", None)
    kinds = report["layer_types"]["of"]
    return {name for kind in COMPUTING for name in kinds.get(kind, {})}


@pytest.mark.parametrize("arch", [*FAST, *(pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW)])
def test_students_parse_and_build_for_three_gpus_and_compute_in_their_precision(
    arch: str, rtx: Any, folder: Path
) -> None:
    fp32 = exported(arch, folder)
    files = {"fp32": fp32, "fp16": student_files.halved(fp32), "int8": student_files.quantised(fp32)}
    reports = {precision: build_check(path, precision) for precision, path in files.items()}
    num_convs = {"resnet20": 21, "vgg8": 5, "resnet8x4": 9, "wrn-16-2": 16, "mobilenetv2": 53, "shufflenetv2": 56}
    for precision, report in reports.items():
        assert report["compute_capabilities"] == ["8.6", "8.9", "12.0"]
        assert report["tensorrt"] == {"name": "tensorrt_rtx", "version": rtx.__version__}
        # Every convolution and the pooling read the precision's own type: none was left in a wider one.
        assert types_of(report) == {precision}
        kinds = report["layer_types"]["by_kind"]
        assert kinds["correlation"] + kinds.get("runtime_fusion", 0) + kinds.get("gemm", 0) >= num_convs[arch]
        assert report["build_seconds"] > 0
    assert reports["fp16"]["engine_bytes"] < 0.7 * reports["fp32"]["engine_bytes"]
    assert reports["fp32"]["dla_not_native"] == ({"Split": 13} if arch == "shufflenetv2" else {})


def test_more_gpus_make_one_engine(rtx: Any, folder: Path) -> None:
    del rtx
    path = exported("vgg8", folder)
    one, three = build_check(path, "fp32", capabilities=("8.6",)), build_check(path, "fp32")
    assert one["compute_capabilities"] == ["8.6"]
    assert {one["status"], three["status"]} == {"ok"}
    unknown = build_check(path, "fp32", capabilities=("8.7",))  # a Jetson Orin
    assert unknown["status"] == "failed"
    assert "compute capability 8.7" in unknown["reason"]


def test_a_file_of_a_fixed_batch_is_built_for_that_batch(rtx: Any, tmp_path: Path) -> None:
    del rtx
    path = save(tmp_path / "x.onnx", [node("Relu", "input")], shape=[5, 3, 8, 8])
    assert build_check(path, "fp32")["status"] == "ok"


def test_the_report_has_the_keys_of_the_manifest(rtx: Any, tmp_path: Path) -> None:
    del rtx
    report = build_check(save(tmp_path / "x.onnx", [node("Relu", "input")]), "fp32")
    assert sorted(report) == sorted(KEYS.split())
    assert report["static"] == {
        "8.6": "opset 18, but TensorRT 8.6 parses up to 17: take the recipe's legacy files",
        "10.3": None,
        "11.4": None,
    }


def test_a_node_the_parser_refuses_is_named_with_its_cause(rtx: Any, tmp_path: Path) -> None:
    del rtx
    find = node("NonZero", "input", output="indices")
    path = save(tmp_path / "x.onnx", [find, node("Cast", "indices", to=TensorProto.FLOAT)])
    report = build_check(path, "fp32")
    assert report["status"] == "failed"
    assert "refuses NonZero node the_NonZero" in report["reason"]
    assert "plugin creator" in report["reason"].lower()
    assert "\n" not in report["reason"]
    assert str(tmp_path) not in report["reason"]  # it goes into a manifest
    assert (report["engine_bytes"], report["layer_types"]) == (None, None)


def test_polygraphy_names_node_and_reason_too(rtx: Any, tmp_path: Path) -> None:
    del rtx
    pytest.importorskip("polygraphy")
    path = save(tmp_path / "x.onnx", [node("NonZero", "input", output="i"), node("Cast", "i", to=TensorProto.FLOAT)])
    (line,) = capability_report(path)
    assert line.startswith("NonZero node the_NonZero: ")
    assert "UNSUPPORTED_NODE" in line
    assert capability_report(save(tmp_path / "good.onnx", [node("Relu", "input")])) == []


def test_what_polygraphy_adds_follows_our_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(operation: str, arguments: Json) -> Json:
        raise AgentError("E_PARSE", f"{arguments['onnx']}: rtx refuses A node a: because")

    monkeypatch.setattr(module, "run_in_child", refuse)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "capability_report", lambda path: ["A node a: because", "B node b: as well"])
    report = build_check(save(tmp_path / "x.onnx", [node("Relu", "input")]), "fp32")
    assert report["reason"] == "rtx refuses A node a: because; also B node b: as well"


def test_a_failed_build_gives_the_builders_own_words(rtx: Any, folder: Path) -> None:
    """Turing GPUs have no fp32 matrix product in TensorRT-RTX."""
    del rtx
    report = build_check(exported("vgg8", folder), "fp32", capabilities=("7.5",))
    assert report["status"] == "failed"
    assert "Turing" in report["reason"]
    assert "FP32 GEMM is not supported" in report["reason"]


def test_a_process_has_one_log(rtx: Any, folder: Path) -> None:
    """TensorRT says that it ignores a second log while anything lives that was made with the first."""
    del rtx
    path, first = exported("vgg8", folder), open_tensorrt("tensorrt_rtx")
    alive = first.trt.Builder(first.log)
    second = open_tensorrt("tensorrt_rtx")
    with pytest.raises(AgentError, match="FP32 GEMM is not supported"):
        build_engine(second, str(path), BuildOptions("fp32", compute_capabilities=("7.5",)))
    assert [text for text in second.log.warnings if "current new logger is ignored" in text] == []
    del alive


def test_what_the_static_checks_refuse_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_in_child", lambda *_: pytest.fail("built"))
    path = save(tmp_path / "x.onnx", [node("Relu", "input")], shape=["batch", 3, "height", 8])
    report = build_check(path, "fp32")
    assert (report["status"], report["reason"]) == ("failed", check_onnx(path, "rtx")[0].message)


def test_the_quantisers_defaults_are_refused_with_the_node(folder: Path) -> None:
    path = student_files.quantised(exported("vgg8", folder), QuantizeBias=True)
    report = build_check(path, "int8")
    assert report["status"] == "failed"
    assert "bias" in report["reason"]
    assert "DequantizeLinear" in report["reason"]


def test_without_tensorrt_rtx_it_is_not_checked_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    report = build_check(save(tmp_path / "x.onnx", [node("Relu", "input")]), "fp32")
    assert report["status"] == "not checked"
    assert "tensorrt_rtx is not installed" in report["reason"]
    assert report["static"]["10.3"] is None  # the static checks need no NVIDIA library


def test_a_crash_of_the_builder_is_a_failed_check(tmp_path: Path, install: Install) -> None:
    install("rtx", crash="build")
    report = build_check(save(tmp_path / "x.onnx", [node("Relu", "input")]), "fp32")
    assert report["status"] == "failed"
    assert "SIGSEGV" in report["reason"]


def test_all_capabilities_reach_the_builder(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from what the fake engine was built with."""
    install("rtx")
    plans = []
    real = child.run_in_child

    def keep(operation: str, arguments: Json) -> Json:
        facts = real(operation, arguments)
        plans.append(Path(arguments["plan"]).read_bytes())
        return facts

    monkeypatch.setattr(module, "run_in_child", keep)
    build_check(save(tmp_path / "x.onnx", [node("Relu", "input")]), "fp32")
    assert b'"targets": ["SM86", "SM89", "SM120"]' in plans[0]
    assert b'"shapes": {"input": [[1, 3, 8, 8], [8, 3, 8, 8], [8, 3, 8, 8]]}' in plans[0]


def test_the_engine_is_no_file_that_is_left_behind(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del rtx
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    build_check(save(tmp_path / "x.onnx", [node("Relu", "input")]), "fp32")
    assert list((tmp_path / "temporary").iterdir()) == []
