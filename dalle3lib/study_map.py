"""Where the claims about captions hold: their effects in the study and where one thing differs.

A stage of sensitivity has few seeds, so it decides nothing; it shows whether an effect keeps its
sign and about its size when the alt-text, the captions, the training or the guidance is another.
"""

import pandas as pd

from dalle3lib import claims, stats, study_causes, study_results
from dalle3lib.study_evidence import differences
from dalle3lib.study_stages import SENSITIVITY, STAGES, jobs, parameters, worth

CAPTION_KIND, MIXING_RATIO = ("caption-kind", "caption-kind-facts"), ("mixing-ratio",)
SHOWN = ("main", "pilot", *SENSITIVITY)
COLUMNS = "stage,setting,claim,effect,low,high,unit,smallest,seeds,by seed".split(",")


def effects(families: tuple[str, ...] = CAPTION_KIND) -> pd.DataFrame:
    """The effect of every claim of some families in every stage with two paired seeds for it.

    A row for each stage and claim (``COLUMNS`` and "worth"): "setting" says what differs from the
    main stage, "worth" what the stage is good for ("sensitivity, 3 seeds"), "effect" is the mean of
    "by seed", in the claim's unit; "smallest" is its smallest effect of interest. UserError if the
    results of a stage cannot be compared.
    """
    rows = []
    for stage in filter(study_results.names, SHOWN):
        results = study_results.load(stage)
        for claim in (c for c in claims.load() if c.family in families):
            if (found := differences(results, claim.id)) is None:
                continue
            by_seed = stats.seed_means(found)
            about = claim.unit, claim.smallest_effect, len(by_seed), by_seed.tolist()
            rows.append((stage, label(stage), claim.id, *stats.over_seeds(by_seed), *about))
    table = pd.DataFrame(rows, columns=COLUMNS)
    counts = table.groupby("stage").seeds.agg(list)
    return table.assign(worth=[worth(stage, counts[stage]) for stage in table.stage])


def lead_by_noise() -> dict[str, dict]:
    """``study_causes.lead_of_all`` of every stage that has another noise of the alt-text.

    Entries by facts stated, then noise ("no fact, noise 0.5 (86 prompts)"). UserError if the
    results of a stage cannot be compared.
    """
    noisy = (stage for stage in SENSITIVITY if "noise" in STAGES[stage].given)
    stages = {parameters(jobs(stage)[0]).noise: stage for stage in ("main", *noisy)}
    found = {
        noise: study_causes.lead_of_all(study_results.load(stage))
        for noise, stage in sorted(stages.items())
        if study_results.names(stage)
    }
    named = {}
    for group in study_causes.STATED:
        for noise, entries in found.items():
            if entry := entries.get(group):
                facts = group.removeprefix("that state ")
                named[f"{facts}, noise {noise:g} ({entry['prompts']} prompts)"] = entry
    return named


def label(stage: str) -> str:
    """What a stage is to readers: "alt-text noise .25", or "the study" and "its pilot"."""
    return {"main": "the study", "pilot": "its pilot"}.get(stage) or STAGES[stage].varies


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """``effects`` as text: a row for each claim, a column for each stage, effect and interval."""
    text = [f"{row.effect:+.2f} [{row.low:+.2f}, {row.high:+.2f}]" for row in table.itertuples()]
    heads = table.setting + " (" + table.worth + ")"
    wide = table.assign(text=text, head=heads).pivot(index="claim", columns="head", values="text")
    return wide.loc[table.claim.unique(), heads.unique()].fillna("–").rename_axis(None, axis=1)


def missing(table: pd.DataFrame) -> pd.DataFrame:
    """The stages of which ``effects`` has nothing yet, and the command that makes each."""
    found = set(table.stage)
    rows = {
        label(stage): (worth(stage), f"make study STAGE={stage}")
        for stage in ("main", *SENSITIVITY)
        if stage not in found
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["worth", "command"])
