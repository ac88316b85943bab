"""The CPU protocol's own code: students side by side are students alone, missing rows, the table's statistics."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afpkd.distillers.options import OPTIONS
from afpkd.models import build_model
from afpkd.record import Json, write_record
from bench import accuracy, rows, variants
from pipeline.recipe_reader import load_recipe
from pipeline.stages import train_student
from pipeline.workspace import Run
from tests.tiny import tiny_recipe

TINY = tiny_recipe(heldout=3800, epochs=0.5)


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> variants.Protocol:
    """A protocol of three steps in an empty folder, and an empty results folder."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    recipe = str(tmp_path / "tiny.toml")
    return variants.Protocol(recipe, "tiny", variants.FOUR, dict.fromkeys(variants.FOUR, (1,)))


@pytest.mark.slow
def test_students_side_by_side_are_bit_equal_to_students_alone(protocol: variants.Protocol, tmp_path: Path) -> None:
    together = ["none", "kd", "reviewkd"]
    accuracy.train_seed(together, 1, tmp_path / "together", protocol)
    for name in together:
        alone = accuracy.run_of(name, variants.VARIANTS[name], 1, tmp_path / "alone", protocol.recipe)
        train_student(alone)
        ours = tmp_path / "together" / f"{name}-seed1" / "student" / "model.safetensors"
        weights = [load_file(path) for path in (ours, alone.role("student") / "model.safetensors")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    found = rows.read("tiny")
    assert [(row["method"], row["variant"], row["seed"]) for row in found] == [
        (name, "default", 1) for name in together
    ]
    curves = rows.read("tiny_curves")
    assert [(row["method"], len(row["epochs"])) for row in curves] == [(name, 1) for name in together]
    assert curves[2]["epochs"][0]["gradient_norms"].keys() == {"task", "spatial"}
    assert curves[2]["epochs"][0]["heldout_top1"] == found[2]["heldout_top1"]
    assert accuracy.missing_variants(1, protocol) == ["afpkd"]
    assert accuracy.missing_variants(0, protocol) == []


def test_rows_of_a_recipe_since_changed_are_missing_and_left_out_of_the_table(
    protocol: variants.Protocol, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kd = accuracy.written_run("kd", variants.FOUR["kd"], 1, tmp_path, protocol.recipe).recipe.stage_digest("student")
    rows.append("tiny", [_row("kd", 1, 60.0, kd), _row("none", 1, 50.0, "of an earlier recipe")])
    assert accuracy.missing_variants(1, protocol) == ["none", "reviewkd", "afpkd"]
    monkeypatch.setitem(variants.PROTOCOLS, "cross", protocol)
    accuracy.main(["--protocol", "cross"])
    shown = capsys.readouterr().out
    assert "| `kd` | 1 | 60.00 |" in shown
    assert "50.00" not in shown
    assert f"1 rows of {protocol.recipe} as it was are left out" in shown


def test_a_shared_teacher_runs_once_a_batch() -> None:
    network = build_model("resnet8", num_classes=4, in_channels=1)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    teacher = accuracy.SharedTeacher(network)
    first, second = torch.rand(2, 2, 1, 8, 8)
    outputs = [teacher(images).logits for images in (first, first.clone(), second, first)]
    assert len(calls) == 3
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_is_a_recipe_that_changes_what_its_control_names(name: str, tmp_path: Path) -> None:
    variant = variants.VARIANTS[name]
    file = tmp_path / "variant.toml"
    file.write_text(variants.recipe_text(variant, 1))
    recipe, protocol = load_recipe(str(file))[1], load_recipe(variants.MAIN.recipe)[1]
    assert recipe.seed == 1
    for section, changed in (("distill", variant), ("prompts", variant.get("prompts", {}))):
        for key, value in changed.items():
            if key != "prompts":
                assert getattr(getattr(recipe, section), key) == value, (section, key)
    same = recipe.distill.training() == protocol.distill.training()
    assert same or name in variants.METHODS  # schedule and student are the protocol's; other methods have other options
    if name not in ("afpkd", *variants.METHODS):  # a control that changes nothing would prove nothing
        digests = [
            [r.stage_digest(stage) for stage in ("prompts", "student")] for r in (recipe, replace(protocol, seed=1))
        ]
        assert digests[0] != digests[1]


def test_the_control_as_written_has_freekds_prompts_gate_and_all(tmp_path: Path) -> None:
    recipes = []
    for name in ("as written", "freekd"):
        (tmp_path / "variant.toml").write_text(variants.recipe_text(variants.VARIANTS[name], 0))
        recipes.append(load_recipe(str(tmp_path / "variant.toml"))[1])
    assert recipes[0].prompts == recipes[1].prompts
    OPTIONS["freekd"].require_prompts(united=recipes[0].prompts.united, gate=recipes[0].prompts.gate)


@pytest.mark.parametrize("method", ["none", "kd", "dkd", "reviewkd", "catkd", "afpkd"])
def test_the_recipe_itself_has_each_rivals_chosen_weight(method: str, tmp_path: Path) -> None:
    file = tmp_path / "rival.toml"
    file.write_text(f'extends = "{variants.MAIN.recipe}"\n[distill]\nmethod = "{method}"\n')
    rival = load_recipe(str(file))[1].distill
    file.write_text(variants.recipe_text(variants.METHODS[method], 0))
    assert rival == load_recipe(str(file))[1].distill


def test_a_row_that_stands_is_what_its_variant_trains_today(tmp_path: Path) -> None:
    """Later keys of recipes must not make finished hours of training another run's."""
    found = rows.read(variants.MAIN.result)
    assert len(found) >= 5
    for row in found:
        file = tmp_path / "variant.toml"
        file.write_text(variants.recipe_text(variants.VARIANTS[rows.name_of(row)], row["seed"]))
        assert load_recipe(str(file))[1].stage_digest("student") == row["config_digest"]


@pytest.mark.parametrize("name", ["cross", "tinyimagenet"])
def test_other_protocols_are_recipes_with_the_main_protocols_weights(name: str, tmp_path: Path) -> None:
    protocol = variants.PROTOCOLS[name]
    file = tmp_path / "variant.toml"
    for variant in protocol.variants.values():
        file.write_text(variants.recipe_text(variant, 1, protocol.recipe))
        recipe, own = load_recipe(str(file))[1], load_recipe(protocol.recipe)[1]
        assert recipe.distill.training() == own.distill.training()
        assert recipe.expected == {}  # nobody published this pair under this schedule
    assert protocol.result != variants.MAIN.result
    assert accuracy.teacher_folder(own) == {"cross": "teacher", "tinyimagenet": "teacher-seed0"}[name]


def _row(name: str, seed: int, top1: float, digest: str = "") -> Json:
    metrics = dict.fromkeys(rows.METRICS, top1)
    whose: Json = {"method": name, "variant": "default", "seed": seed, "config_digest": digest}
    return {**whose, "cpu_s": 3600.0, **metrics}


def test_the_table_pairs_seeds_and_gives_students_interval() -> None:
    ours = [_row("afpkd", seed, top1) for seed, top1 in ((0, 60.0), (1, 61.0), (2, 62.0))]
    theirs = [_row("kd", seed, top1) for seed, top1 in ((0, 59.0), (1, 59.0), (2, 61.0))]
    table = rows.comparison([*ours, *theirs, _row("dkd", 1, 60.5)])
    # differences 1, 2, 1: mean 4/3, standard deviation 0.577, t(0.975, 2) = 4.303, half width 4.303 * 0.577 / sqrt(3)
    assert "| `kd` | 3 | 59.67 ± 1.15 | 59.67 ± 1.15 | 59.67 ± 1.15 | +1.33 ± 1.43 | 1.00 |" in table
    assert "| `afpkd` | 3 | 61.00 ± 1.00 |" in table
    assert "| +0.50 (one seed) |" in table


def test_a_method_that_was_trained_as_a_control_alone_does_not_stand_beside_published_numbers() -> None:
    literature = load_recipe(variants.PUBLISHED)[1]
    shared = {"teacher_top1": 72.63, "epochs": 8}
    found = [{**_row("kd", 0, 54.0), **shared}, {**_row("afpkd", 0, 64.0), "variant": "no mask", **shared}]
    first, _, _, here = rows.beside_published(found, literature).splitlines()
    assert "`kd`" in first
    assert "`afpkd`" not in first
    assert "| 54.00 |" in here
    assert "64.00" not in here


def test_a_teacher_of_another_recipe_is_left_alone(protocol: variants.Protocol, tmp_path: Path) -> None:
    run = accuracy.written_run("none", variants.VARIANTS["none"], 1, tmp_path, protocol.recipe)

    def made(run: Run) -> Json:
        write_record(run.role("teacher") / "record.json", {})
        return {}

    places = [tmp_path / name for name in ("teacher-1", "teacher-2")]
    for place in (*places, places[0]):
        accuracy.shared(run, "teacher", place, made)
        assert run.role("teacher").resolve() == place
    written = [(place / "record.json").stat().st_mtime_ns for place in places]
    assert written == sorted(written)  # none is made twice


def test_rows_of_a_gpu_have_tables_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    on_gpu = {name: protocol.on_gpu() for name, protocol in variants.PROTOCOLS.items()}
    assert [one.result for one in on_gpu.values()] == [
        "cifar100_gpu",
        "cifar100_cross_gpu",
        "tinyimagenet_gpu",
        "cifar100_half_gpu",
    ]
    assert set(on_gpu["cifar100"].seeds.values()) == {variants.ALL}
    assert set(on_gpu["tinyimagenet"].seeds.values()) == {variants.ONE}
    accuracy.main(["--device", "cuda"])
    shown = capsys.readouterr().out
    assert shown == rows.comparison(rows.read("cifar100_gpu"))
    processors = [{row["processor"] for row in rows.read(name)} for name in ("cifar100_gpu", "cifar100_cpu")]
    assert all(name.startswith("NVIDIA ") for name in processors[0])
    assert not any("NVIDIA" in str(name) for name in processors[1])
