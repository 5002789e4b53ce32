"""Voting inside a notebook, on the same store as the rating page."""

import html
import io
import secrets
import time
from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from dalle3lib import UserError, human
from dalle3lib.vote_store import VoteStore

SIDE = 320  # pixels of a picture on the screen
FASTEST = 0.3  # seconds: a click sooner than this belongs to the pair before (a double click)


def panel(store: VoteStore, token: str) -> widgets.VBox:
    """Widgets to vote with: the question, two pictures, Left, Tie, Right and Undo, and progress.

    ``token`` is a rater's, from ``store.invite``: the panel goes on where that rater stopped,
    here or on the rating page. Raises Refused for a token that is nobody's; a mistake later on is
    shown in the panel as one sentence.
    """
    rater = store.rater(token)
    question, caption, message = widgets.HTML(), widgets.HTML(), widgets.HTML()
    pictures = [widgets.Image(format="png", layout={"width": f"{SIDE}px"}) for _ in range(2)]
    labels = {"left": "Left", "tie": "Tie", "right": "Right"}
    buttons = {choice: widgets.Button(description=label) for choice, label in labels.items()}
    undo = widgets.Button(description="Undo", tooltip="Take back the last vote")
    bar = widgets.IntProgress(min=0, description="votes")
    state: dict = {}

    def show() -> None:
        done, total = store.progress(rater)
        trial = store.next_trial(rater)
        state.update(trial=trial, key=secrets.token_hex(16), since=time.monotonic())
        bar.max, bar.value, bar.description = total, done, f"{done} of {total}"
        undo.disabled = done == 0
        for button in buttons.values():
            button.disabled = trial is None
        question.value, caption.value = _asked(trial)
        for widget, name in zip(pictures, _names(trial), strict=True):
            widget.value = enlarged(store.image(name)) if name else b""
            widget.layout.display = None if name else "none"

    def act(how) -> None:
        seconds = time.monotonic() - state["since"]
        if seconds < FASTEST:
            return
        message.value = ""
        try:
            how(seconds)
        except UserError as error:
            message.value = f"<b>{html.escape(str(error))}</b>"
        show()

    def voting(choice: str):
        def vote(seconds: float) -> None:
            store.vote(rater, state["trial"].id, choice, state["key"], round(seconds, 2))

        return lambda _: act(vote)

    for choice, button in buttons.items():
        button.on_click(voting(choice))
    undo.on_click(lambda _: act(lambda seconds: store.undo(rater, state["key"])))
    show()
    rows = [widgets.HBox(pictures), widgets.HBox([*buttons.values(), undo]), bar]
    return widgets.VBox([question, caption, *rows, message])


def _asked(trial: human.Trial | None) -> tuple[str, str]:
    """The question with its hint, and the caption if it is shown, as HTML."""
    if trial is None:
        return "<b>That was all: thank you.</b>", ""
    shown = {name: html.escape(text or "") for name, text in trial.shown().items()}
    asked = f"<b>{shown['ask']}</b><br>{shown['hint']}"
    return asked, f"<blockquote>{shown['caption']}</blockquote>" if trial.caption else ""


def _names(trial: human.Trial | None) -> tuple[str, str]:
    """The files of the pictures on the left and on the right; empty when there is no trial."""
    return (trial.left, trial.right) if trial else ("", "")


def enlarged(path: Path, side: int = SIDE) -> bytes:
    """A picture as PNG; a small one with every pixel as a square, so that it stays sharp."""
    with Image.open(path) as image:
        times = max(1, side // max(image.size))
        larger = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    larger.save(file, "png")
    return file.getvalue()
