"""The rating page in a real browser, against a real server: a rater's whole session.

Needs a Chromium on this machine (Debian: ``apt-get install chromium``) and says so where none is.
"""

import io
import re
import shutil
import time

import pytest
import served_study
import tiny_study
from PIL import Image

from dalle3lib import human, human_study
from dalle3lib.vote_store import VoteStore

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> & "so"'
TOTAL = 6
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    pytest.importorskip("fastapi", reason="the extra `label` is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("needs a browser: install Chromium (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        options = {"args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(executable_path=program, **options)
        yield browser
        browser.close()


def make_study(folder):
    """A study of six trials a rater, whose captions try to be code."""
    systems = tiny_study.systems()
    for samples in systems.values():
        for kind in samples.values():
            kind.captions.update(dict.fromkeys(kind.captions, EVIL))
    human_study.make(folder, systems, seed=0, trials=TOTAL, checks=0, repeats=0)
    return folder


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory):
    """A study's votes, and the links of its raters that no test has taken yet."""
    folder = make_study(tmp_path_factory.mktemp("served") / "study")
    process, links = served_study.start(folder, "--port", "0", "--raters", "14")
    yield VoteStore.open(folder), list(enumerate(links))
    process.terminate()
    process.communicate()


class Rater:
    """A rater with a browser, who watches what the page does behind the scenes."""

    def __init__(self, chromium, store, number, link):
        self.chromium, self.store, self.number, self.link = chromium, store, number, link
        self.trials = human.trials(store.plan, number)
        self.problems, self.contexts = [], []

    def open(self, context=None, **options):
        """A tab that shows the page, ready to be used."""
        context = context or self.chromium.new_context(**options)
        self.contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: self.problems.append(message.text))
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.on("request", self.asked)
        tab.clock.install()
        tab.goto(self.link)
        return self.ready(tab, self.store.progress(self.number).done)

    def asked(self, request):
        """Note a request that leaves this server."""
        if not request.url.startswith((self.link.split("/r/")[0] + "/", "about:")):
            self.problems.append(request.url)

    def ready(self, tab, done, look=400):
        """The tab, showing that so many trials have a vote, and looked at for ``look`` ms.

        Sooner than after 300 ms the page takes a click for a double click.
        """
        last = done == TOTAL
        wait_for(
            tab,
            "([said, last]) => document.getElementById('count').textContent === said"
            " && (last || !document.querySelector('#choices button:disabled'))",
            [f"{done} of {TOTAL}", last],
        )
        tab.clock.fast_forward(look)
        return tab

    def choices(self):
        """All that is stored of this rater, in order."""
        rows = self.store.votes()
        return rows[rows.rater == self.number].choice.tolist()


@pytest.fixture
def rater(chromium, served):
    store, links = served
    number, link = links.pop(0)
    somebody = Rater(chromium, store, number, link)
    yield somebody
    for context in somebody.contexts:
        context.close()
    assert somebody.problems == []


def wait_for(tab, condition, *arg, seconds=30):
    """Ask the page again and again until ``condition`` holds.

    Playwright's own ``wait_for_function`` asks by ``eval``, which the page's policy forbids.
    """
    end = time.monotonic() + seconds
    while not tab.evaluate(condition, *arg):
        assert time.monotonic() < end, f"still not so after {seconds} s: {condition}"
        tab.wait_for_timeout(50)


def button(tab, name):
    return tab.get_by_role("button", name=name, exact=True)


def test_a_whole_session_by_keyboard_and_mouse(rater):
    tab = rater.open()
    for done, act in enumerate(
        [
            lambda: tab.keyboard.press("ArrowLeft"),
            lambda: tab.keyboard.press("ArrowRight"),
            lambda: tab.keyboard.press("Space"),
            lambda: button(tab, "Picture B").click(),
            lambda: button(tab, "No difference").click(),
        ],
        start=1,
    ):
        act()
        rater.ready(tab, done)
        if done == 3:
            tab.reload()
            rater.ready(tab, done)
    tab.keyboard.press("u")
    rater.ready(tab, 4)
    tab.keyboard.press("ArrowLeft")
    rater.ready(tab, 5)
    button(tab, "Picture A").click()
    rater.ready(tab, 6)
    assert tab.get_by_role("heading", name="Thank you!").is_visible()
    assert "All 6 answers are stored" in tab.inner_text("#finished")
    assert not button(tab, "Picture A").is_visible()
    said = ["left", "right", "tie", "right", "tie", "undo", "left", "left"]
    assert rater.choices() == said
    rows = rater.store.votes()
    rows = rows[(rows.rater == rater.number) & rows.current]
    assert rows.trial.tolist() == [trial.id for trial in rater.trials]
    assert (rows.seconds > 0.3).all()


def test_an_undo_reaches_back_over_a_reload_and_from_the_last_page(rater):
    tab = rater.open()
    for done in range(TOTAL):
        tab.keyboard.press("ArrowLeft")
        rater.ready(tab, done + 1)
    tab.reload()
    rater.ready(tab, TOTAL)
    button(tab, "Undo").click()
    rater.ready(tab, 5)
    tab.keyboard.press("u")
    rater.ready(tab, 4)
    assert tab.inner_text("#question") == human.QUESTIONS[rater.trials[4].question].ask
    assert rater.choices() == ["left"] * 6 + ["undo"] * 2


def test_a_double_click_is_one_vote_however_fast_the_server_is(rater):
    tab = rater.open()
    assert button(tab, "Undo").is_disabled()
    tab.clock.pause_at(tab.evaluate("Date.now() + 1000"))
    button(tab, "Picture A").dblclick()
    rater.ready(tab, 1, look=200)
    button(tab, "Picture A").click()  # the second pair is there, and nobody can have seen it yet
    tab.keyboard.press("u")
    rater.ready(tab, 1, look=200)
    button(tab, "Picture B").click()
    rater.ready(tab, 2)
    button(tab, "Undo").dblclick()
    rater.ready(tab, 1)
    assert rater.choices() == ["left", "right", "undo"]


def test_a_key_that_is_held_down_votes_once(rater):
    tab = rater.open()
    tab.keyboard.down("ArrowRight")
    for _ in range(3):  # without an "up" between them, the browser calls these repetitions
        rater.ready(tab, 1)
        tab.keyboard.down("ArrowRight")
    rater.ready(tab, 1)
    tab.keyboard.up("ArrowRight")
    assert rater.choices() == ["right"]


def test_keys_with_a_modifier_belong_to_the_browser(rater):
    tab = rater.open()
    for keys in ("Control+ArrowLeft", "Shift+ArrowRight", "Control+u", "Meta+ArrowLeft"):
        tab.keyboard.press(keys)
    tab.keyboard.press("ArrowLeft")
    rater.ready(tab, 1)
    assert rater.choices() == ["left"]


def test_two_tabs_make_one_vote_of_each_trial(rater):
    first = rater.open()
    second = rater.open(first.context)
    first.keyboard.press("ArrowLeft")
    rater.ready(first, 1)
    assert second.inner_text("#count") == f"0 of {TOTAL}"
    button(second, "Picture B").click()
    rater.ready(second, 1)
    assert "another window" in second.get_by_role("status").inner_text()
    button(second, "Picture B").click()
    rater.ready(second, 2)
    assert second.get_by_role("status").inner_text() == ""
    first.keyboard.press("u")  # of the first trial, which is no longer the last
    rater.ready(first, 2)
    assert rater.choices() == ["left", "right"]


def test_the_back_button_shows_where_the_rater_is_now(rater):
    tab = rater.open()
    tab.keyboard.press("ArrowLeft")
    rater.ready(tab, 1)
    tab.goto("about:blank")
    other = rater.open(tab.context)
    other.keyboard.press("ArrowRight")
    rater.ready(other, 2)
    tab.go_back()
    rater.ready(tab, 2)
    assert rater.choices() == ["left", "right"]


def test_a_caption_is_shown_as_text_where_the_question_shows_it(rater):
    tab = rater.open()
    for done, trial in enumerate(rater.trials):
        assert tab.inner_text("#question") == human.QUESTIONS[trial.question].ask
        shown = tab.locator("#caption").is_visible()
        assert shown == (trial.question == "prompt following")
        assert tab.inner_text("#caption") == (EVIL if shown else "")
        tab.keyboard.press("Space")
        rater.ready(tab, done + 1)
    assert tab.evaluate("window.hacked") is None and tab.locator("img[src=x]").count() == 0


def test_a_phone_shows_everything_and_takes_taps(rater):
    tab = rater.open(**PHONE, device_scale_factor=3)
    for done, name in enumerate(["Picture A", "No difference", "Picture B"] * 2):
        width, height = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= height == 390
        boxes = [box.bounding_box() for box in tab.locator("figure img").all()]
        assert all(box["width"] >= 140 and box["x"] >= 0 for box in boxes)
        assert boxes[0]["width"] == boxes[1]["width"]
        for choice in tab.locator("#choices button").all():
            box = choice.bounding_box()
            assert box["height"] >= 44 and box["y"] + box["height"] <= 844
        button(tab, name).tap()
        rater.ready(tab, done + 1)
    assert rater.choices() == ["left", "tie", "right"] * 2


def test_nothing_is_cut_off_sideways_at_any_size(rater):
    tab = rater.open()
    for width, height in [(320, 568), (844, 390), (768, 1024), (1920, 1080)]:
        tab.set_viewport_size({"width": width, "height": height})
        # the browser lays the page out anew a moment after its window was resized
        wait_for(tab, f"document.documentElement.scrollWidth <= {width}")
        for name in ("Picture A", "No difference", "Picture B"):
            box = button(tab, name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_dark_is_dark_and_both_schemes_can_be_read(rater):
    def brightness(colour):
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 765

    for scheme in ("light", "dark"):
        tab = rater.open(color_scheme=scheme)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        paper = brightness(tab.evaluate(style.format("body", "backgroundColor")))
        assert (paper < 0.2) == (scheme == "dark")
        for place in ("#question", "#hint", "#count", "#choices button"):
            ink = brightness(tab.evaluate(style.format(place, "color")))
            assert abs(ink - paper) > 0.45, (scheme, place)


def test_everything_has_a_name_for_who_cannot_see_it(rater):
    tab = rater.open()
    names = ["Picture A", "No difference", "Picture B", "Undo"]
    names += ["Enlarge picture A", "Enlarge picture B"]
    assert [button(tab, name).count() for name in names] == [1] * 6
    assert tab.get_by_role("button").count() == 6, "and no button without a name"
    assert tab.get_by_role("progressbar", name=f"0 of {TOTAL}").count() == 1
    assert [image.get_attribute("alt") for image in tab.locator("img").all()] == [
        "Picture A",
        "Picture B",
    ]
    assert tab.get_by_role("heading", level=1).count() == 1
    assert tab.evaluate("document.activeElement.id") == "question", "it is read aloud"
    for _ in range(9):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.value") == "right":
            break
    tab.keyboard.press("Space")  # who has gone to a button presses this button
    rater.ready(tab, 1)
    assert rater.choices() == ["right"]


def test_a_picture_can_be_enlarged_and_compared_without_voting(rater):
    tab = rater.open()
    small = tab.locator("figure img").first.bounding_box()["width"]
    tab.keyboard.press("z")
    dialog = tab.get_by_role("dialog")
    assert dialog.is_visible() and "Picture A" in dialog.inner_text()
    wait_for(tab, "document.querySelector('dialog img')?.style.width")
    assert dialog.locator("img").bounding_box()["width"] > small
    tab.keyboard.press("ArrowRight")
    assert dialog.locator("img").get_attribute("alt") == "Picture B"
    button(tab, "Other picture").click()
    assert dialog.locator("img").get_attribute("alt") == "Picture A"
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    button(tab, "Enlarge picture B").click()
    assert dialog.locator("img").get_attribute("alt") == "Picture B"
    dialog.locator("img").click()
    assert not dialog.is_visible() and rater.choices() == []


def test_small_pictures_keep_their_pixels_and_large_ones_fit(rater):
    def shown(tab):
        image = tab.locator("figure img").first
        box = image.bounding_box()
        return (
            box["width"],
            box["height"],
            image.evaluate("i => getComputedStyle(i).imageRendering"),
        )

    tab = rater.open()
    width, height, rendering = shown(tab)
    assert width == height and width % 8 == 0 and width >= 240 and rendering == "pixelated"
    photograph = io.BytesIO()
    Image.new("RGB", (1600, 1200), "teal").save(photograph, "PNG")
    answer = {"body": photograph.getvalue(), "content_type": "image/png"}
    tab.context.route("**/picture/**", lambda route: route.fulfill(**answer))
    tab.reload()
    width, height, rendering = shown(rater.ready(tab, 0))
    assert rendering == "auto" and width / height == pytest.approx(4 / 3, rel=0.01)
    assert 300 < width < 640 and height < 500
    button(tab, "Enlarge picture A").click()
    image = tab.locator("dialog img")
    wait_for(tab, "document.querySelector('dialog img.more')")
    assert width < image.bounding_box()["width"] <= 1280, "it fills the window"
    image.click()
    assert image.bounding_box()["width"] == 1600, "and then has its own pixels"
    image.click()
    assert not tab.get_by_role("dialog").is_visible()


def test_a_vote_outlasts_a_server_that_is_killed_and_started_again(chromium, tmp_path):
    folder, port = make_study(tmp_path / "study"), str(served_study.free_port())
    process, (link,) = served_study.start(folder, "--port", port)
    rater = Rater(chromium, VoteStore.open(folder), 0, link)
    tab = rater.open()
    process.kill()
    process.communicate()
    tab.keyboard.press("ArrowRight")
    wait_for(tab, "document.getElementById('message').textContent.includes('Nothing is')")
    process, links = served_study.start(folder, "--port", port)
    try:
        assert links == [link]
        rater.ready(tab, 1)
        assert tab.get_by_role("status").inner_text() == "" and rater.choices() == ["right"]
    finally:
        tab.context.close()
        process.kill()
        process.communicate()
