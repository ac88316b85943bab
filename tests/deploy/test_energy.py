"""Joules an inference against power made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from afpkd.record import Json
from deploy.energy import energy
from tests.deploy.states import state


def told(sensors: dict[str, ArrayLike], count: int = 2000, timed: tuple[float, float] = (10, 30)) -> Json:
    found = energy(state(sensors, timed=timed, idle=(0, 9.9)), count)
    assert found is not None
    return found


def watts(idle: float, busy: float) -> NDArray[np.float64]:
    return np.where(np.arange(310) < 100, idle, busy)


def test_net_energy_is_power_above_idle_over_the_window() -> None:
    found = told({"power_w/VDD_IN": watts(4.0, 10.0), "power_w/VDD_SOC": 99.0})
    assert found["j_gross_per_inference"] == pytest.approx(10.0 * 20 / 2000)
    assert found["j_per_inference"] == pytest.approx(6.0 * 20 / 2000)
    assert (found["mean_w"], found["idle_w"]) == (10.0, 4.0)
    assert (found["rails"], found["why_null"]) == (["VDD_IN"], None)
    assert found["rate_hz"] == pytest.approx(10, rel=0.02)
    assert found["window_s"] == 20
    assert found["method"] == "rail VDD_IN, which feeds the module"
    assert "the carrier board, its peripherals and the power supply are not seen" in found["blind_spots"][0]
    assert "10 times a second" in found["blind_spots"][1]


def test_thors_rail_for_all_counts_its_carrier_board_too() -> None:
    found = told({"power_w/VDD_GPU": 12.0, "power_w/VIN_SYS_5V0": 6.0, "power_w/VIN": watts(20.0, 31.5)})
    assert (found["rails"], found["mean_w"]) == (["VIN"], 31.5)
    assert found["method"] == "rail VIN, which feeds the whole board"
    assert "carrier board and peripherals are counted" in found["blind_spots"][0]


def test_without_a_rail_for_all_the_others_are_summed_each_once() -> None:
    found = told({"power_w/VDD_GPU_SOC": 3.0, "power_w/VIN_SYS_5V0": 4.0, "power_w/VDDQ_VDD2_1V8AO": watts(1.0, 1.0)})
    assert found["mean_w"] == 7.0
    assert found["rails"] == ["VDD_GPU_SOC", "VIN_SYS_5V0"]
    assert found["method"] == "sum of 2 rails: no rail feeds the whole module"


def test_a_card_is_the_card_alone() -> None:
    found = told({"power_w/gpu0": watts(20.0, 120.0)})
    assert (found["rails"], found["mean_w"], found["idle_w"]) == (["gpu0"], 120.0, 20.0)
    assert "the card alone" in found["blind_spots"][0]


def test_rapl_counts_joules_of_the_packages_not_of_their_parts() -> None:
    joules = np.cumsum(watts(1.0, 5.0)) / 10
    found = told({"energy_j/intel-rapl:0:package-0": joules, "energy_j/intel-rapl:0:0:core": joules})
    assert found["mean_w"] == pytest.approx(5.0)
    assert found["idle_w"] == pytest.approx(1.0)
    assert found["rails"] == ["intel-rapl:0:package-0"]
    wrapped = np.where(np.arange(310) < 200, joules, joules - 1e5)
    assert told({"energy_j/intel-rapl:0:package-0": wrapped})["why_null"] == "no sensor of power answered all through"


@pytest.mark.parametrize(
    ("timed", "rate", "why"),
    [
        ((10, 19.9), 10, "timed for 9.9 s, 10 s are needed"),
        ((10, 20), 9, "90 readings, 100 are needed"),
        ((10, 20.2), 10, None),
    ],
)
def test_too_short_or_too_few_is_null_with_why(timed: tuple[float, float], rate: float, why: str | None) -> None:
    found = energy(state({"power_w/VDD_IN": watts(4, 10)}, timed=timed, idle=(0, 9), rate=rate), 1000)
    assert found is not None
    assert found["why_null"] == why
    assert (found["j_per_inference"] is None) == (found["j_gross_per_inference"] is None) == (why is not None)


def test_without_an_idle_reading_only_the_gross_is_told() -> None:
    found = energy(state({"power_w/VDD_IN": watts(4, 10)}, timed=(10, 30)), 2000)
    assert found is not None
    assert found["j_per_inference"] is None
    assert found["j_gross_per_inference"] == pytest.approx(0.1)
    assert found["why_null"] == "no idle power was read before the load"


def test_readings_are_rounds_in_which_power_answered() -> None:
    """A board's I2C bus may be busy: the sampler's other sensors answer all the same."""
    rounds = np.arange(310)
    rare = np.where((rounds < 102) | (rounds > 297), watts(4, 10), np.nan)
    found = told({"power_w/VDD_IN": rare, "temperature_c/cpu": 40.0})
    assert found["num_samples"] == np.isfinite(rare[100:300]).sum() == 4
    assert found["rate_hz"] == pytest.approx(0.2)
    assert found["why_null"] == "4 readings, 100 are needed"
    assert found["j_per_inference"] is found["j_gross_per_inference"] is None


def test_idle_power_that_was_hardly_read_is_not_taken_off() -> None:
    rounds = np.arange(310)
    for unread, why in ((9, None), (97, "idle power was read in 2 of 99 rounds alone")):
        found = told({"power_w/VDD_IN": np.where(rounds < unread, np.nan, watts(4, 10)), "temperature_c/cpu": 40.0})
        assert found["why_null"] == why
        assert (found["j_per_inference"] is None) == (why is not None)
        assert found["j_gross_per_inference"] == pytest.approx(0.1)


@pytest.mark.parametrize("busy", [4.9, 5.0])
def test_a_load_that_takes_no_more_than_idle_has_no_net_energy(busy: float) -> None:
    found = told({"power_w/VDD_IN": watts(5.0, busy)})
    assert found["j_per_inference"] is None
    assert found["j_gross_per_inference"] == pytest.approx(busy * 20 / 2000)
    assert found["why_null"] == f"the idle machine took 5 W, under load {busy:.3g} W: no less"


def test_a_machine_that_tells_no_power_has_no_energy() -> None:
    assert energy(state({"temperature_c/cpu": np.zeros(300)}, timed=(10, 30)), 2000) is None
