"""What the shell may complete: names of recipes and devices, codes of errors. Paths are the shell's own."""

from __future__ import annotations

from pathlib import Path

from afpkd.errors import UserError

_RECIPES = Path(__file__).parent / "recipes"


def recipe_completions() -> list[str]:
    """Shipped recipes (Typer takes those that begin as typed); without pydantic, since every Tab waits for it."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def device_completions() -> list[str]:
    """Devices; none where `devices.toml` is wrong, which the verb itself will say."""
    from deploy.devices import devices

    try:
        return list(devices())
    except UserError:
        return []


def code_completions() -> list[str]:
    """Codes of errors."""
    from pipeline.explain import ERRORS

    return list(ERRORS)
