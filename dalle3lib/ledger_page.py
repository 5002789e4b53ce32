"""The ledger as the book shows it: in short, claim by claim, and what no run has tested.

Each function takes the rows of ``ledger.rows`` and returns MyST Markdown; nothing is computed
here. The table's filter is a script of the page (``book/_static/ledger.js``); without it the whole
table shows.
"""

import csv
import io
from typing import Any

from dalle3lib import claims, ledger
from dalle3lib.pages import page_link, plain, table

Row = dict[str, Any]
# One claim for each step of the paper's argument, for the front page. They are chosen by what they
# say, and stay whatever their verdict is.
HEADLINES = (
    "dsc-states-more-than-ssc",
    "ssc-over-original-on-original-prompts",
    "dsc-over-original-on-descriptive-prompts",
    "dsc95-over-dsc80-on-original-prompts",
    "upsampling-helps-on-short-prompts",
    "decoder-keeps-fine-texture",
    "released-dalle3-over-dalle2-on-drawbench",
    "humans-prefer-dalle3-in-prompt-following",
)
HEADER = ["Claim", "Paper", "Here", "95 % interval", "Seeds", "Verdict", "Chapter", "Run"]


def counts(rows: list[Row]) -> str:
    """The sentence that counts the claims by verdict."""
    by_verdict = ", ".join(f"{n} {mark(name)}" for name, n in ledger.tally(rows).items())
    paper = sum(row["source"] == "paper" for row in rows)
    return (
        f"{len(rows)} claims, {paper} of the paper and {len(rows) - paper} that this book adds: "
        f"{by_verdict}.\n\n"
    )


def summary(rows: list[Row], published: set[str]) -> str:
    """The front page's ledger: how many claims have which verdict, then the headline claims.

    ``published`` holds the stems of the chapters that have a page in this book.
    """
    text = counts(rows)
    found = ledger.tally(rows)
    if "no verdict" in found:
        text += (
            "*No verdict* means that there are fewer training seeds than the claim asks for: the "
            "number is shown, and nothing is concluded from it.\n\n"
        )
    if "pilot" in found:
        text += (
            "*Pilot* means that the seeds only served to plan the study: they decide nothing.\n\n"
        )
    by_id = {row["id"]: row for row in rows}
    lines = []
    for row in (by_id[name] for name in HEADLINES if name in by_id):
        texts = {name: plain(value) for name, value in ledger.cells(row).items()}
        here = f"{texts['ours']} {texts['95 % interval']}" if row["run"] else "–"
        link = page_link(row["chapter"], published, row["chapter"].split("_")[0])
        lines.append([texts["in words"], texts["paper"], here, mark(row["verdict"]), link])
    header = ["Claim", "Paper", "Here [95 % interval]", "Verdict", "Chapter"]
    return text + (table(header, lines, "headlines wide") if lines else "")


def whole(rows: list[Row], published: set[str]) -> str:
    """Every claim: the paper's value, ours, interval, seeds, verdict, chapter and run."""
    lines = []
    for row in rows:
        texts = {name: plain(value) for name, value in ledger.cells(row).items()}
        section = "" if row["source"] == "extension" else f" ({plain(row['section'])})"
        lines.append(
            [
                f"{texts['in words']} [`{row['id']}`]{{#claim-{row['id']} .claim-id}}",
                texts["paper"] + section,
                texts["ours"],
                texts["95 % interval"],
                texts["seeds"],
                mark(row["verdict"]),
                page_link(row["chapter"], published, row["chapter"].split("_")[0]),
                f"[`{row['run'].split('/')[1]}`](status.md)" if row["run"] else "–",
            ]
        )
    return counts(rows) + table(HEADER, lines, "ledger wide")


def as_csv(rows: list[Row]) -> str:
    """The same table for a program: one line a claim, with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ledger.cells(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(ledger.cells(row) for row in rows)
    return file.getvalue()


def untested(rows: list[Row], published: set[str]) -> str:
    """What has no verdict: the claims without a measurement by what they need, then the others."""
    needs: dict[str, list[Row]] = {}
    for row in rows:
        if claims.word(row["verdict"]) == "not tested":
            bracket = row["verdict"].partition("(needs ")[2].removesuffix(")")
            needs.setdefault(bracket, []).append(row)
    text = f"## Not tested\n\n{sum(map(len, needs.values()))} claims have no measurement here.\n\n"
    for need in sorted(needs, key=lambda need: (-len(needs[need]), need)):
        text += f"Needs {plain(need)}\n: {_listing(needs[need], published)}\n\n"
    few = [row for row in rows if claims.word(row["verdict"]) in ("no verdict", "pilot")]
    if few:
        text += (
            "## Measured, and no verdict yet\n\nThe number is in the [ledger](ledger.md); there "
            "are fewer training seeds than the claim asks for, or they were the pilot's.\n\n"
        )
        for verdict in sorted({row["verdict"] for row in few}):
            chosen = [row for row in few if row["verdict"] == verdict]
            text += f"{mark(verdict)}\n: {_listing(chosen, published)}\n\n"
    return text


def _listing(rows: list[Row], published: set[str]) -> str:
    """Claims as the items of one definition."""
    items = [f"* {plain(row['claim'])} ({page_link(row['chapter'], published)})" for row in rows]
    return "\n  ".join(items)


def mark(verdict: str) -> str:
    """A verdict as a styled word: its class is the verdict without its bracket."""
    return f"[{verdict}]{{.verdict .{claims.word(verdict).replace(' ', '-')}}}"
