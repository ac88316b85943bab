"""What the report says, section by section, in finished text: the one source of its Markdown and its HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.report.advice import Advice, advise, devices_table
from pipeline.report.candidates import Candidate
from pipeline.report.findings import Gap, Headline, headline, missing
from pipeline.report.how_measured import (
    differing_words,
    environment_words,
    protocol_words,
    provenance_table,
    sources_of,
)
from pipeline.report.macs_ranks import macs_table
from pipeline.report.models_table import ModelsTable, models_table
from pipeline.report.prompts_section import PromptsSection, prompts_section
from pipeline.report.reasons import reasons_table
from pipeline.report.records import Records
from pipeline.report.scenarios import scenarios_table
from pipeline.report.tables import (
    Table,
    accuracy_table,
    cost_table,
    files_table,
    published_table,
    speedup_table,
    together,
)
from pipeline.report.tradeoff import Budget, Standing, standing_by_key

_OF_EACH: tuple[Callable[[Records], Table], ...] = (
    speedup_table,
    scenarios_table,
    cost_table,
    files_table,
    accuracy_table,
    published_table,
)


@dataclass(frozen=True, slots=True)
class Page:
    """What Markdown and HTML both say, in order."""

    name: str
    descriptions: list[str]
    advice: list[Advice]
    headline: Headline
    """Of the recipe that is recommended, else of the first."""
    sentences: list[str]
    """Of each recipe, its name in front where there are several."""
    missing: list[Gap]
    models: ModelsTable
    tables: list[Table]
    prompts: list[PromptsSection]
    protocol: list[str]
    provenance: Table
    environment: list[str]
    commands: list[str]


def page_of(
    runs: Sequence[Records], candidates: Sequence[Candidate], standing: Sequence[Standing], budget: Budget
) -> Page:
    """Put the records of one recipe or several into words. candidates: of `runs`; standing: theirs, in order."""
    advice = advise(candidates, budget)
    overall = [
        devices_table(candidates, budget),
        macs_table(candidates),
        *(together([(run.name, table(run)) for run in runs]) for table in _OF_EACH),
        reasons_table(runs),
    ]
    sources = list(sources_of(runs).values())
    sections = [(run.name, section) for run in runs if (section := prompts_section(run))]
    return Page(
        name=", ".join(run.name for run in runs),
        descriptions=[_named(run.name, run.description, runs) for run in runs],
        advice=advice,
        headline=_headline(runs, advice),
        sentences=[_named(run.name, _headline([run], advice).sentence, runs) for run in runs],
        missing=[gap for run in runs for gap in missing(run)],
        models=models_table(runs, standing_by_key(candidates, standing)),
        tables=[table for table in overall if table.rows],
        prompts=[section._replace(title=_named(name, section.title, runs)) for name, section in sections],
        protocol=protocol_words(runs),
        provenance=provenance_table(runs),
        environment=[*environment_words(sources), *differing_words(sources)],
        commands=list(dict.fromkeys(line for run in runs for line in _commands(run))),
    )


def _headline(runs: Sequence[Records], advice: Sequence[Advice]) -> Headline:
    """Speak of the recommended file, where it is one of `runs`."""
    for choice in (found.choice for found in advice if found.choice):
        for run in runs:
            if run.name == choice.recipe:
                return headline(run, (choice.device, choice.precision))
    return headline(runs[0])


def _named(name: str, words: str, runs: Sequence[Records]) -> str:
    return f"{name}: {words}" if len(runs) > 1 else words


def _commands(run: Records) -> list[str]:
    """Write what makes all this again: the whole job, then the profile of each further device."""
    others = sorted({profile["device"] for profile in run.profiles} - {"local"})
    whole = run.command("distill", "export", "profile")
    return [whole, *(run.command("profile", device=device) for device in others)]
