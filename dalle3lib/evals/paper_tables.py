"""The tables of the paper as it prints them, and its Elo ratings as win rates (section 4)."""

from itertools import combinations

import pandas as pd

from dalle3lib import elo, paths


def printed(name: str) -> pd.DataFrame:
    """The cells of a table of the paper ("Table 1") from data/paper.csv: quantity × system."""
    table = pd.read_csv(paths.ROOT / "data" / "paper.csv")
    table = table[(table.table_or_figure == name) & ~table.note.str.startswith("implied")]
    table = table.assign(system=table.system.str.removesuffix(" 1.0 + refiner"))
    order = list(dict.fromkeys(table.quantity))
    return table.pivot(index="quantity", columns="system", values="value").loc[order]


def win_rates(ratings: pd.DataFrame) -> pd.DataFrame:
    """What a table of Elo ratings (``printed("Table 2")``) says of each pair, the higher one first.

    A row for each question and pair; columns difference (Elo points) and value (% of votes that
    the first would get).
    """
    rows = {}
    for quantity, row in ratings.iterrows():
        question = quantity.removeprefix("human preference, ").removesuffix(", Elo")
        ranked = row.dropna().sort_values(ascending=False)
        for first, second in combinations(ranked.index, 2):
            rows[f"{question}: {first} over {second}"] = ranked[first] - ranked[second]
    table = pd.DataFrame({"difference": rows})
    return table.assign(value=100 * elo.win_rate(table.difference))
