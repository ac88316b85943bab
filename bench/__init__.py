"""Our own claims, re-runnable. `python -m bench` lists them; results/*.jsonl holds every finished run."""
