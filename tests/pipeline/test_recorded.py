"""Records read back: what a key's value may be, and what is said of any other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from afpkd.errors import UserError
from pipeline.recorded import BUILT_FROM, MEASURED, TRAINED, checked, recorded
from tests.pipeline.conftest import profile_record, role_record

WHERE = Path("runs/tiny/student/record.json")


def test_what_stages_write_passes(tmp_path: Path) -> None:
    role, profile = role_record("student"), profile_record("student")
    role |= {"preprocessing": {"mean": [0.5], "std": [1]}, "threads": 0, "device": "cpu"}
    role |= {"network": {"arch": "timm:x", "stages": ["a"], "own": [[0.5], [0.25]]}}
    assert checked(role, WHERE, *BUILT_FROM, *TRAINED, "inputs", "outputs") == role
    assert checked(profile, WHERE, *MEASURED) == profile
    (tmp_path / "x.json").write_text(json.dumps(profile))
    assert recorded(tmp_path / "x.json", *MEASURED) == profile


@pytest.mark.parametrize("key", sorted({*MEASURED, *TRAINED}))
def test_a_key_that_is_needed_and_missing_is_named(key: str) -> None:
    whole = {**role_record("student"), **profile_record("student")}
    del whole[key]
    with pytest.raises(UserError, match=rf"record\.json: '{key}' is missing: name another record, or delete it"):
        checked(whole, WHERE, *MEASURED, *TRAINED)


@pytest.mark.parametrize("key", ["role", "precision", "arch", "recipe", "config_digest"])
def test_a_name_is_null_only_where_the_reader_takes_that(key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}' is missing"):
        checked({key: None}, WHERE, key)
    assert checked({key: None}, WHERE, key, or_null=(key,)) == {key: None}
    assert checked({key: None}, WHERE) == {key: None}


def test_a_networks_metrics_hold_its_score() -> None:
    with pytest.raises(UserError, match=r"'metrics' has none of test_ap_selected, test_top1_selected"):
        checked({"metrics": {"test_top1_last": 80.0}}, WHERE, "metrics")
    assert checked({"metrics": {"test_ap_selected": None}}, WHERE, "metrics")
    assert checked({"metrics": {"masks": {"mean": [0.5]}, "overlap": 1}}, WHERE), "those of prompts"


ODD: list[tuple[str, list[Any]]] = [
    ("role", ["teachr", "", [], 1]),
    ("recipe", [5, ["a"]]),
    ("device", [None, 0]),
    ("inputs", [None, [], {"teacher": 5}, {"teacher": None}, "x"]),
    ("outputs", [["x"], "x", {"a": {}}]),
    ("lineage", [None, []]),
    ("versions", [None, {"torch": 2}]),
    ("num_classes", [None, -1, 1.5, True, 10**400, "10"]),
    ("num_params", [-1, 2.5, "many"]),
    ("peak_memory_bytes", [-1, "many"]),
    ("method", [5, []]),
    ("git_commit", [5, []]),
    ("finished_at", [None, 5]),
    ("selected_epoch", [-1, "last"]),
    ("epochs", ["3", 2.5]),
    ("seed", [-1, "x"]),
    ("threads", [-1, "a", 1e300, False]),
    ("image_size", [28, [28], [28, 28, 28], [28, -1], [28, "28"]]),
    ("metrics", [None, [], {"test_top1_selected": 101}, {"heldout_ap": "x"}, {"test_ap_last": math.nan}]),
    ("top1", [-1, 100.5, "90", math.inf]),
    ("top1_interval", [[], [1], [1, None], 5]),
    ("preprocessing", [None, {}, {"mean": [0.5]}, {"mean": 0.5, "std": [1]}, {"mean": ["x"], "std": [1]}]),
    ("network", [None, {"stages": []}, {"arch": "a"}, {"arch": "a", "stages": [1]}, {"arch": [], "stages": []}]),
    ("network", [{"arch": "a", "stages": [], "own": 1}, {"arch": "a", "stages": [], "own": [[1], [2], [3]]}]),
    ("latency_ms", [None, {}, {"p50": 1}, {"p50": 1, "p90": 1}]),
    ("latency_ms", [{"p50": value, "p90": 1, "p99": None} for value in ("1", math.nan, 0)]),
    ("throughput_ips", ["fast", 10**400]),
    ("verdict", ["valid", None, []]),
    ("reasons", [None, "slow", [1]]),
    ("rows", [None, [], [1], [{}], [{"reasons": "x"}]]),
    ("energy", ["x", {"j_per_inference": "a"}, {"j_per_inference": 1.0, "method": "m", "rails": "VDD_IN"}]),
    ("memory", [None, {"includes": 5}]),
    ("fps", ["30"]),
    ("machine", [None, {}, {"system": "", "processor": ""}, {"system": "", "processor": None, "num_cpus": 1}]),
    ("machine", [{"system": "", "processor": "", "num_cpus": 1, key: 5} for key in ("gpu", "board")]),
    ("protocol", [None, [], {"preset": "quick"}, {"preset": {"name": "quick"}}]),
    ("runtime", [None, {"name": "x"}, {"name": "x", "version": "1", "threads_asked": "a"}]),
    ("runtime", [{"name": "x", "version": "1", key: "12.6"} for key in ("cuda", "engine")]),
    ("golden", ["x", {"before": 1}, {"before": {}}]),
]


@pytest.mark.parametrize(("key", "values"), ODD)
def test_a_value_of_another_form_is_named(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"record\.json: '{key}' is .*, not .*: name another record") as raised:
            checked({key: value}, WHERE)
        assert raised.value.code == "E_RECORD"
        assert len(str(raised.value)) < 300
