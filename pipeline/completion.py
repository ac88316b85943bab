"""What the shell may complete: names of recipes and devices. Paths are the shell's own."""

from __future__ import annotations

from pathlib import Path

from afpkd.record import UserError

_RECIPES = Path(__file__).parent / "recipes"


def recipe_completions(incomplete: str) -> list[str]:
    """Shipped recipes that begin so; found without pydantic, since every Tab waits for it."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml") if path.stem.startswith(incomplete))


def device_completions(incomplete: str) -> list[str]:
    """Devices that begin so; none where `devices.toml` is wrong, which the verb itself will say."""
    from deploy.devices import devices

    try:
        return [name for name in devices() if name.startswith(incomplete)]
    except UserError:
        return []
