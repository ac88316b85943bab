"""Where MACs mislead, on cases worked by hand."""

from __future__ import annotations

from pipeline.report.macs_ranks import macs_table, misled
from tests.pipeline.report.making import candidate


def test_a_lighter_file_that_is_slower_is_found_with_its_ranks() -> None:
    light = candidate(80.0, 3.0, macs=1_000_000, arch="light")
    heavy = candidate(80.0, 2.0, macs=4_000_000, arch="heavy")
    middle = candidate(80.0, 1.0, macs=2_000_000, arch="middle")
    pairs = misled([light, heavy, middle])
    assert [(pair.lighter.arch, pair.heavier.arch, pair.slowdown) for pair in pairs] == [("light", "middle", 3.0)]
    (row,) = macs_table([light, heavy, middle]).rows
    expected = ["local", light.file, "1 M", "1 of 3", "3.000", "3 of 3", f"{middle.file}: 2 M MACs, 1.000 ms", "3.00×"]
    assert row == expected
    # ranks 1, 3, 2 by MACs against 3, 2, 1 by the clock: 1 - 6 * (4 + 1 + 1) / (3 * 8)
    assert "rank correlation of -0.50 over 3 files" in macs_table([light, heavy, middle]).notes[-1]


def test_equal_macs_of_other_precisions_count() -> None:
    float32, int8 = candidate(80.0, 1.0), candidate(80.0, 2.0, precision="int8")
    assert [pair.lighter.precision for pair in misled([int8, float32])] == ["int8"]


def test_no_pair_without_proof_and_none_across_devices() -> None:
    light, heavy = candidate(80.0, 1.01, macs=1), candidate(80.0, 1.0, macs=2)
    assert misled([light, heavy]) == []  # their intervals meet
    assert misled([candidate(80.0, 3.0, macs=1), candidate(80.0, 1.0, macs=2, device="orin")]) == []
    assert misled([candidate(80.0, 3.0, macs=1), candidate(80.0, 1.0, macs=2, verdict="INVALID")]) == []
    assert misled([candidate(80.0, 3.0, macs=1), candidate(80.0, 1.0, macs=None)]) == []
    # the undistilled control is the same network: a difference is noise, not news
    assert misled([candidate(80.0, 3.0, macs=1), candidate(80.0, 1.0, macs=1, role="undistilled")]) == []


def test_many_pairs_are_cut_and_said() -> None:
    pool = [candidate(80.0, 1.0, macs=100)] + [candidate(80.0, 2.0 + i, macs=i + 1) for i in range(10)]
    table = macs_table(pool)
    assert len(table.rows) == 8
    assert table.rows[0][-1] == "11.00×"
    assert table.notes[0] == "The 8 worst of 10 such files."
