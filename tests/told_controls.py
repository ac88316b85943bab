"""What README.md and docs/ tell of the controls of the masks, computed from the rows: see test_numbers.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from afpkd.record import Json
from bench import rows
from bench.variants import CONTROLS, MAIN, METHODS, PROTOCOLS

MASKS = ("no mask", "shuffled masks", "band means")
ACTIVATED = "reviewkd activated"  # as its authors have it
SEEDS = (0, 1, 2)
TEST, HELDOUT = "test_top1_last", "heldout_top1"


def _scores(name: str, key: str) -> dict[int, float]:
    found = {row["seed"]: row[key] for row in rows.read(MAIN.result) if rows.name_of(row) == name}
    assert tuple(sorted(found)) == SEEDS, name
    return found


def _mean(name: str, key: str) -> str:
    return rows.mean_and_std(list(_scores(name, key).values()))


def _apart(name: str) -> str:
    """AFPKD's own masks minus `name`, paired, with the 95 % interval, which leaves zero in: "nothing to be seen"."""
    told = rows.paired_difference(_scores("afpkd", TEST), _scores(name, TEST))
    mean, half = told.split(" ± ")
    assert abs(float(mean)) < float(half), name
    return told.replace("-", "−")


def _between(name: str, other: str, key: str) -> str:
    """The first minus the second, paired, with the 95 % interval."""
    return rows.paired_difference(_scores(name, key), _scores(other, key)).replace("-", "−").removeprefix("+")


def _listed(values: list[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} and {last}"


def of_results() -> Iterator[str]:
    """docs/results.md."""
    yield f"reaches {_listed([_mean(name, TEST) for name in MASKS])} on test, where it has {_mean('afpkd', TEST)}"
    yield f"(and ReviewKD {_mean('reviewkd', TEST)})"
    yield f"its own masks bring {_listed([_apart(name) for name in MASKS])} (95 %)"
    yield f"held-out images {_listed([_mean(name, HELDOUT) for name in MASKS])}, where it has {_mean('afpkd', HELDOUT)}"
    curves = {rows.name_of(row): row for row in rows.read(f"{MAIN.result}_curves") if row["seed"] == 0}
    norms = [curves[name]["epochs"][0]["gradient_norms"]["frequency"] for name in (*MASKS, "afpkd")]
    *others, ours = (f"{norm:.2f}" for norm in norms)
    yield f"`untrained prompts` it is {_between('untrained prompts', 'afpkd', TEST)} points"
    yield f"lie {_between('bare bands', 'reviewkd', TEST)} above ReviewKD on test"
    yield f"and {_between('bare bands', 'reviewkd', HELDOUT)} on held-out images: three seeds"
    yield f"lies {_between('afpkd', 'bare bands', TEST)} from that on test, and"
    yield f"{_between('afpkd', 'bare bands', HELDOUT)} on held-out images. ReviewKD"
    yield f"lies {_between('reviewkd + local branch', 'reviewkd', TEST)} from ReviewKD."
    yield f"lies {_between(ACTIVATED, 'reviewkd', TEST)} from ours on test and"
    yield f"{_between(ACTIVATED, 'reviewkd', HELDOUT)} on held-out images. AFPKD"
    yield f"lies {_between('afpkd', ACTIVATED, TEST)} above it, the"
    yield f"bare bands {_between('bare bands', ACTIVATED, TEST)}: the lead over ReviewKD as its authors"
    bare = curves["bare bands"]["epochs"][0]["gradient_norms"]["frequency"]
    assert round(bare / norms[-1], 1) == 1.2  # "a fifth more"
    ratios = [_frequency_norm("bare bands", seed) / _frequency_norm("afpkd", seed) for seed in SEEDS]
    yield f"over all eight {_listed([f'{ratio:.2f}' for ratio in ratios])} times AFPKD's"
    yield from of_gpu()
    yield from of_later_trials()
    yield f"after the first epoch of seed 0 ({_listed(others)}; {ours})"


def _frequency_norm(name: str, seed: int) -> float:
    """The gradient of its frequency loss on the student, the mean over epochs."""
    curves = rows.read(f"{MAIN.result}_curves")
    (epochs,) = (row["epochs"] for row in curves if (rows.name_of(row), row["seed"]) == (name, seed))
    return float(statistics.mean(epoch["gradient_norms"]["frequency"] for epoch in epochs))


def _on_gpu(protocol: str, key: str = TEST) -> dict[str, dict[int, float]]:
    """Top-1 of each variant and seed that a GPU trained."""
    return _by_seed(PROTOCOLS[protocol].on_gpu().result, key)


def _by_seed(result: str, key: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows.read(result):
        found.setdefault(rows.name_of(row), {})[row["seed"]] = row[key]
    return found


def _across(key: str) -> tuple[dict[int, float], dict[int, float]]:
    """AFPKD's and ReviewKD's top-1 with a MobileNetV2 student, by seed, on a CPU."""
    found = _by_seed(PROTOCOLS["cross"].result, key)
    return found["afpkd"], found["reviewkd"]


def _leads(name: str, other: str, protocol: str = "cifar100") -> list[float]:
    """The first minus the second, seed by seed, on a GPU."""
    ours, theirs = _on_gpu(protocol)[name], _on_gpu(protocol)[other]
    return [ours[seed] - theirs[seed] for seed in sorted(ours)]


def _of_both(name: str, other: str, key: str = TEST) -> str:
    """The first minus the second, averaged over machines, paired by seed, with the 95 % interval."""
    ours, theirs = (
        {seed: (_scores(one, key)[seed] + _on_gpu("cifar100", key)[one][seed]) / 2 for seed in SEEDS}
        for one in (name, other)
    )
    return rows.paired_difference(ours, theirs).replace("-", "−").removeprefix("+")


def of_readme() -> Iterator[str]:
    """README.md."""
    yield f"lie {_between('bare bands', 'reviewkd', TEST)} above ReviewKD"
    yield f"adds to them, {_between('afpkd', 'bare bands', TEST)}, cannot"
    yield f"`reviewkd activated` lies {_between(ACTIVATED, 'reviewkd', TEST)} above it (in fp32"
    yield f"AFPKD {_between('afpkd', ACTIVATED, TEST)} and `bare bands` {_between('bare bands', ACTIVATED, TEST)} above"
    yield f"lies {_freekd()[1]:.2f} points below AFPKD after eight, one seed"
    leads = [_of_both(*pair) for pair in (("afpkd", "reviewkd"), ("bare bands", "reviewkd"), ("afpkd", "bare bands"))]
    yield f"both machines averaged by seed: {_listed(leads)}"
    lead = rows.paired_difference(*_across(TEST)).removeprefix("+")
    yield f"to a MobileNetV2 (four epochs, two seeds) AFPKD leads ReviewKD by {lead}"


def of_gpu() -> Iterator[str]:
    """docs/results.md, of the rows that a GPU trained, and of those across architectures."""
    found = _on_gpu("cifar100")
    for name, told in (("afpkd", " points above ReviewKD"), ("bare bands", "")):
        between = rows.paired_difference(found[name], found["reviewkd"]).removeprefix("+")
        yield f"{_listed([f'{lead:.2f}' for lead in _leads(name, 'reviewkd')])}{told} ({between})"
    yield f"AFPKD {_of_both('afpkd', 'reviewkd')}, the bare bands {_of_both('bare bands', 'reviewkd')} above"
    yield f"AFPKD {_of_both('afpkd', 'bare bands')} from the bare bands"
    yield f"prompting takes something away, {_of_both('afpkd', 'bare bands', HELDOUT)} (both"
    higher = [
        statistics.mean(scores(name, HELDOUT)[seed] - scores(name, TEST)[seed] for seed in SEEDS)
        - statistics.mean(scores("none", HELDOUT)[seed] - scores("none", TEST)[seed] for seed in SEEDS)
        for name in ("afpkd", "bare bands", "reviewkd")
        for scores in (_scores, lambda one, key: _on_gpu("cifar100", key)[one])
    ]
    yield f"{min(higher):.1f} to {max(higher):.1f} points more over `none` there than on test"
    before = {"no mask": "without them", "shuffled masks": "with shuffled ones"}
    before |= {"untrained prompts": "with untrained prompts", "afpkd": "where AFPKD has"}
    for name, words in before.items():
        yield f"{words} {rows.mean_and_std(list(found[name].values()))}"
    assert MAIN.variants.keys() - found.keys() == {"freekd", ACTIVATED}
    forms = [found[name][0] for name in {*CONTROLS, "afpkd"} - {"reviewkd + local branch"}]
    yield f"Of {len(forms)} forms of AFPKD"
    yield f"gives {min(forms):.2f} to {max(forms):.2f} on test, {rows.mean_and_std(forms)}:"
    for key, told in ((TEST, "AFPKD leads ReviewKD by {} on test here"), (HELDOUT, "on held-out images by {}")):
        ours, theirs = _across(key)
        yield told.format(_listed([f"{ours[seed] - theirs[seed]:.2f}" for seed in sorted(ours)]))
    cross = _on_gpu("cross")
    for name, told_as in (("none", "undistilled"), *((name, f"`{name}`") for name in ("kd", "reviewkd", "afpkd"))):
        yield f"{told_as} {rows.mean_and_std(list(cross[name].values()))}"
    yield f"{_listed([f'{lead:.2f}' for lead in _leads('afpkd', 'reviewkd', 'cross')])} above ReviewKD."
    tiny = rows.read(PROTOCOLS["tinyimagenet"].on_gpu().result)
    assert {row["teacher_top1"] for row in tiny} == {29.12}
    yield "a teacher of 29.12 %"
    yield ", ".join(f"`{row['method']}` {row[TEST]:.2f}" for row in tiny)
    (teacher,) = {row["teacher_top1"] for row in rows.read(PROTOCOLS["tinyimagenet"].result)}
    yield f"a ResNet-18 of {teacher:.2f} %"
    lines = [line.split() for line in (rows.RESULTS / "gpu_steps.txt").read_text().splitlines()]
    steps = {words[0]: words[1:] for words in lines if len(words) == 4}
    for method, name in (("afpkd", "AFPKD's takes"), ("reviewkd", "ReviewKD's"), ("kd", "KD's")):
        launched, recorded = map(float, steps[method][:2])
        yield f"{name} {recorded:.1f}{' ms' if method == 'afpkd' else ''} instead of {launched:.1f}"


def first_trials() -> list[Json]:
    """AFPKD's, by which the weights of its rows were chosen."""
    return [row for row in rows.read("cifar100_tuning") if row["method"] == "afpkd" and row["options"]["mu"] <= 60]


def of_later_trials() -> Iterator[str]:
    """docs/results.md, of the trials that no row has followed yet."""
    trials = rows.read("cifar100_tuning")
    assert max(first_trials(), key=_heldout)["options"]["mu"] == 60  # "at the end of what was tried"
    later = [row for row in trials if row["method"] == "afpkd" and row["options"]["mu"] > 60]
    bands = {row["options"]["mu"]: row["heldout_top1"] for row in later if row["options"]["mask"] == "constant"}
    ours = {
        row["options"]["mu"]: row["heldout_top1"]
        for row in later
        if (row["options"]["mask"], row["options"]["gamma"]) == ("prompts", 20)
    }
    assert (len(later), max(ours.values())) == (6, ours[200])  # "Of six more"
    yield f"{ours[200]:.2f} at `mu` 200 and {ours[600]:.2f} at 600 (`gamma` 20), the bare bands {bands[600]:.2f} at 600"
    free = [row for row in trials if row["method"] == "freekd"]
    best = max(free, key=_heldout)
    assert best["heldout_top1"] == max(map(_heldout, trials))  # "of all methods"
    assert (len(free), best["options"]["mu"]) == (7, METHODS["freekd"]["mu"])
    yield f"has {best['heldout_top1']:.2f} at {best['options']['mu']:g}, the best of seven"
    score, below = _freekd()
    yield f"it has {score:.2f}, {below:.2f} below AFPKD with that seed"


def _freekd() -> tuple[float, float]:
    """Its one seed on test, and by how much AFPKD with that seed lies above."""
    (row,) = (row for row in rows.read(MAIN.result) if row["method"] == "freekd")
    return row[TEST], _scores("afpkd", TEST)[row["seed"]] - row[TEST]


def _heldout(row: Json) -> float:
    score: float = row["heldout_top1"]
    return score


def of_method() -> Iterator[str]:
    """docs/method.md."""
    yield f"Without masks it brings {_between('no mask', 'bare bands', TEST)} points on test (three seeds)"
    yield f"{_mean('band means', TEST)} against {_mean('afpkd', TEST)} on test (three seeds)"
    yield f"{_mean('band means', HELDOUT)} against {_mean('afpkd', HELDOUT)} on held-out images"
