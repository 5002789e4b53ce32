"""The panel in a notebook: a whole session by its buttons, on the store that the page uses."""

import io

import pytest
import tiny_study
from PIL import Image

from dalle3lib import human, human_panel
from dalle3lib.vote_store import Refused, VoteStore


@pytest.fixture
def store(tmp_path, monkeypatch) -> VoteStore:
    monkeypatch.setattr(human_panel, "FASTEST", 0.0)
    tiny_study.make(tmp_path)
    return VoteStore.create(tmp_path)


def parts(panel):
    """Question, caption, pictures, buttons by name, bar and message."""
    question, caption, pictures, buttons, bar, message = panel.children
    named = {button.description: button for button in buttons.children}
    return question, caption, pictures.children, named, bar, message


def test_a_session_by_buttons(store):
    (token,) = store.invite()
    question, caption, pictures, buttons, bar, _ = parts(human_panel.panel(store, token))
    trials = human.trials(store.plan, 0)
    assert buttons["Undo"].disabled
    for number, trial in enumerate(trials):
        assert bar.value == number and human.QUESTIONS[trial.question].ask in question.value
        assert ("number" in caption.value) == (trial.question == "prompt following")
        assert "<b>thing</b>" not in caption.value, "captions are escaped"
        with Image.open(io.BytesIO(pictures[0].value)) as shown:
            assert shown.size == (320, 320)
        buttons[["Left", "Tie", "Right"][number % 3]].click()
    assert "thank you" in question.value and buttons["Left"].disabled
    assert pictures[0].layout.display == "none"
    assert store.votes().choice.tolist() == ["left", "tie", "right"] * 6
    buttons["Undo"].click()
    assert bar.value == 17 and human.QUESTIONS[trials[-1].question].ask in question.value
    assert store.progress(0).done == 17


def test_a_second_panel_goes_on_and_a_stale_one_says_so(store):
    (token,) = store.invite()
    first, second = human_panel.panel(store, token), human_panel.panel(store, token)
    parts(first)[3]["Left"].click()
    parts(second)[3]["Right"].click()  # on the same pair, which has a vote by now
    assert "undo it" in parts(second)[5].value and parts(second)[4].value == 1
    assert store.votes().choice.tolist() == ["left"]
    parts(second)[3]["Tie"].click()
    assert store.votes().choice.tolist() == ["left", "tie"] and parts(second)[5].value == ""


def test_a_double_click_is_one_vote(store, monkeypatch):
    monkeypatch.setattr(human_panel, "FASTEST", 60.0)
    (token,) = store.invite()
    parts(human_panel.panel(store, token))[3]["Left"].click()
    assert store.votes().empty
    with pytest.raises(Refused):
        human_panel.panel(store, "nobody")
