"""What README.md and docs/ tell of the controls of the masks, computed from the rows: see test_numbers.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench import rows
from bench.variants import CONTROLS, MAIN, PROTOCOLS

MASKS = ("no mask", "shuffled masks", "band means")
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
    bare = curves["bare bands"]["epochs"][0]["gradient_norms"]["frequency"]
    assert round(bare / norms[-1], 1) == 1.2  # "a fifth more"
    yield from of_gpu()
    yield f"after the first epoch of seed 0 ({_listed(others)}; {ours})"


def _on_gpu(protocol: str) -> dict[str, dict[int, float]]:
    """Test top-1 of each variant and seed that a GPU trained."""
    found: dict[str, dict[int, float]] = {}
    for row in rows.read(PROTOCOLS[protocol].on_gpu().result):
        found.setdefault(rows.name_of(row), {})[row["seed"]] = row[TEST]
    return found


def of_readme() -> Iterator[str]:
    """README.md."""
    yield f"lie {_between('bare bands', 'reviewkd', TEST)} above ReviewKD"
    yield f"adds to them, {_between('afpkd', 'bare bands', TEST)}, is nothing"
    ours, theirs, bare = (_on_gpu("cifar100")[name][0] for name in ("afpkd", "reviewkd", "bare bands"))
    yield f"with seed 0 ({ours:.2f}, {theirs:.2f}), and the bands alone have {bare:.2f}"
    ours, theirs = (_on_gpu("cross")[name][0] for name in ("afpkd", "reviewkd"))
    yield f"AFPKD reaches {ours:.2f} and ReviewKD {theirs:.2f}"


def of_gpu() -> Iterator[str]:
    """docs/results.md, of the rows that a GPU trained."""
    found = {name: by_seed[0] for name, by_seed in _on_gpu("cifar100").items()}
    forms = [found[name] for name in found if name in {*CONTROLS, "afpkd"} - {"reviewkd + local branch"}]
    assert max(forms) == found["bare bands"]
    yield f"{len(forms)} forms of"
    yield f"reach {min(forms):.2f} to {max(forms):.2f} on test, {rows.mean_and_std(forms)}."
    stds = [statistics.stdev(_scores(name, TEST).values()) for name in ("afpkd", *MASKS)]
    yield f"over seeds is {min(stds):.2f} to {max(stds):.2f}, here over the forms {statistics.stdev(forms):.2f}"
    yield f"AFPKD as it is has {found['afpkd']:.2f},"
    yield f"ReviewKD {found['reviewkd']:.2f}, `bare bands` {max(forms):.2f}"
    missing = [name for name in MAIN.variants if name not in found]
    yield f"{_listed([f'`{name}`' for name in missing])} are still to be trained"
    cross = _on_gpu("cross")
    for name in ("kd", "reviewkd"):
        yield f"`{name}` {rows.mean_and_std(list(cross[name].values()))}"
    yield f"undistilled {rows.mean_and_std(list(cross['none'].values()))}"
    above = cross["afpkd"][0] - cross["reviewkd"][0]
    yield f"`afpkd` {cross['afpkd'][0]:.2f} with seed 0, {above:.2f} above ReviewKD with that seed"
    lines = [line.split() for line in (rows.RESULTS / "gpu_steps.txt").read_text().splitlines()]
    steps = {words[0]: words[1:] for words in lines if len(words) == 4}
    for method, name in (("afpkd", "AFPKD's takes"), ("reviewkd", "ReviewKD's"), ("kd", "KD's")):
        launched, recorded = map(float, steps[method][:2])
        yield f"{name} {recorded:.1f}{' ms' if method == 'afpkd' else ''} instead of {launched:.1f}"


def of_method() -> Iterator[str]:
    """docs/method.md."""
    yield f"Without masks it brings {_between('no mask', 'bare bands', TEST)} points on test (three seeds)"
    yield f"{_mean('band means', TEST)} against {_mean('afpkd', TEST)} on test (three seeds)"
    yield f"{_mean('band means', HELDOUT)} against {_mean('afpkd', HELDOUT)} on held-out images"
