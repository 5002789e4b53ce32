"""The book: a small one is built once from fake notebooks and the real sources, then read."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbformat import v4
from PIL import Image

from dalle3lib import (
    UserError,
    book,
    book_checks,
    chapters,
    checklist,
    explorer,
    files,
    pages,
    study_results,
)

PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63"
        "60606060000000050001a5f645400000000049454e44ae426082"
    )
).decode()
PARAMETERS = 'preset: str = "smoke"  # preset file\ndata: str = None  # where images come from\n'
BAR = "captions:  40%|####      | 4/10 [00:01<00:02,  3.0it/s]"
CLAIM = {
    "id": "dsc-states-more-than-ssc",
    "source": "paper",
    "section": "3.3",
    "claim": "Synthetic captions help | even on *original* prompts",
    "paper": "slightly better",
    "unit": "points",
    "ours": 0.25,
    "interval": [-0.125, 0.625],
    "seeds": 1,
    "verdict": "no verdict (1 of 10 seeds)",
    "chapter": "01_world",
    "run": "01_world/main",
}
UNTESTED = CLAIM | {
    "id": "humans-prefer-dalle3-in-prompt-following",
    "claim": "People prefer it.",
    "paper": "Elo 1 against 2",
    "ours": None,
    "interval": None,
    "verdict": "not tested (needs people)",
    "run": None,
}


def code(source: str, *outputs, tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
    """An executed code cell."""
    cell = v4.new_code_cell(source, outputs=list(outputs), execution_count=1)
    cell.metadata["tags"] = list(tags)
    return cell


def notebook(title: str, *cells, exception: bool | None = None) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it."""
    question = v4.new_markdown_cell(f"# {title}\n\nA question.")
    head = [question, code(PARAMETERS, tags=["parameters"])]
    papermill = {"exception": exception, "end_time": "2026-01-01T00:00:00"}
    metadata = {"papermill": papermill, "language_info": {"name": "python"}}
    return v4.new_notebook(cells=[*head, *cells], metadata=metadata)


def world_notebook(last: str = "") -> nbformat.NotebookNode:
    """A finished notebook with maths, a citation, a captioned figure and a progress bar.

    ``last`` is what its last cell prints.
    """
    drawn = {"image/png": PIXEL, "text/plain": "<Figure>", "text/csv": "panel,x,y\n1,2,3\n"}
    figure = v4.new_output("display_data", drawn)
    progress = v4.new_output("stream", name="stderr", text=f"\r{BAR}\nUserWarning: look here\n")
    maths = "Inline $x_t \\in \\mathbb{R}^n$ and\n\n$$\\frac{1}{2} \\sum_i x_i^2$$ (eq-sum)\n"
    return notebook(
        "The world",
        code("# Parameters\nseed = 3\n", tags=["injected-parameters"]),
        v4.new_markdown_cell(maths + "\nas in {cite:t}`ho2020ddpm`, see {eq}`eq-sum`."),
        code("x = 1\n# Figure: one pixel,\n# enlarged.\nshow(x)", figure, progress),
        code("run.finish()", v4.new_output("stream", name="stdout", text=last)),
    )


def failed_notebook() -> nbformat.NotebookNode:
    """A notebook that stopped with an error of two lines."""
    said = {"ename": "UserError", "evalue": f"first\n{book.ROOT}/cat is gone.", "traceback": []}
    stopped = code("find_cat()", v4.new_output("error", **said))
    return notebook("Captioning", stopped, exception=True)


def write_run(root: Path, stem: str, run: str, **manifest) -> None:
    """A complete run directory with a few manifest fields of our choice."""
    made = {
        "run": run,
        "notebook": stem,
        "preset": "smoke",
        "parameters": {"preset": "smoke", "data": "world"},
        "commit": "0123456789abcdef",
        "dirty": True,
        "packages": {"torch": "9.8.7"},
        "cpu": {"model": "A processor", "flags": []},
        "threads": 1,
        "wall_seconds": 192.4,
        "cpu_seconds": 12.34,
        "peak_memory_bytes": 512 * 2**20,
        "finished": "2026-01-01T00:00:00+00:00",
        "files": {},
    } | manifest
    path = root / stem / run
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    (path / "manifest.json").write_text(json.dumps(made | {"sha256": files.digest(made)}))


def write_explorer(root: Path) -> None:
    """The explorer's files of two scenes: gray pictures, and words that need escaping."""
    out, texts = explorer.directory(root), ("original", "short", "upsampled", "descriptive")
    out.mkdir(parents=True)
    for scene in range(2):
        gray = [np.full((64, 64, 3), 40 + 9 * i + scene, np.uint8) for i in range(21)]
        explorer.strip(gray[0], np.stack(gray[1:])).save(out / f"scene-{scene:02d}.png")
    (out / "explorer.csv").write_text("scene\n")
    drawn = {"arm": "DSC", "clip_score": 1.5, "reading": "a <star> & 'moon'"}
    content = {
        "preset": "smoke",
        "commit": "0123456789",
        "dirty": False,
        "steps": 20,
        "seconds": 3.21,
        "arms": ["original only", "SSC 95 %", "DSC 80 %", "DSC 95 %"],
        "rows": explorer.ROWS,
        "scenes": [
            {
                "file": f"scene-{scene:02d}.png",
                "shows": f"scene {scene}",
                "texts": {key: f"{key} of scene {scene}" for key in ("ssc", "dsc", *texts)},
            }
            for scene in range(2)
        ],
        "pictures": [drawn] * 40,
        "files": files.listing(out, sorted(out.iterdir())),
    }
    (out / "explorer.json").write_text(files.to_json(content))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A book of one finished, one failed and one twice executed notebook; its html and error."""
    folder = tmp_path_factory.mktemp("book")
    root, sources = folder / "runs" / "smoke", folder / "notebooks"
    executed = {
        "01_world": world_notebook(f"Run 01_world/main is complete: {root}/01_world/main\n"),
        "02_captioning.failed": failed_notebook(),
        "04_caption_kind": notebook("Caption kind"),
        "04a_train_arm--dsc-95-0": notebook("An arm: dsc-95-0"),
        "04a_train_arm--original-0": notebook("An arm: original-0"),
    }
    for name, content in executed.items():
        source = sources / f"{name.split('--')[0].removesuffix('.failed')}.ipynb"
        for path in (source, root / "notebooks" / f"{name}.ipynb"):
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(content, path)
    (sources / "presets").mkdir()
    (sources / "presets" / "smoke.yaml").write_text("# A look. Free.\ncommon:\n  data: world\n")
    write_run(root, "01_world", "main")
    (root / "01_world" / "main" / "scores.csv").write_text(f"score,reason\n1,seen in {root}\n")
    write_run(root, "04_caption_kind", "main")
    write_run(root, "04a_train_arm", "dsc-95-0", finished="2026-01-02T00:00:00+00:00")
    write_run(root, "04a_train_arm", "original-0")
    write_explorer(root)
    (root / "02_captioning" / "main").mkdir(parents=True)
    (root / "02_captioning" / "main" / "run.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALLE3_NOTEBOOKS", str(sources))
        patch.setattr(book.ledger, "rows", lambda root: [CLAIM, UNTESTED])
        with pytest.raises(UserError) as error:
            book.build(root, "smoke", "world", out=folder / "out")
    return folder / "out" / "html", str(error.value)


def text(html: Path, page: str) -> str:
    """A page's main column as plain text on one line."""
    source = (html / f"{page}.html").read_text()
    article = re.search(r"<article.*?</article>", source, re.DOTALL)[0]
    return " ".join(re.sub(r"<[^>]+>", " ", article).split())


def test_the_build_has_no_warning_and_ends_with_the_failed_chapter(built):
    html, error = built
    assert (html / "index.html").is_file()
    assert "02_captioning failed" in error
    assert not re.search("(WARNING|ERROR):", (html.parent / "build.log").read_text())


def test_tables_of_a_run_can_be_downloaded(built):
    page = (built[0] / "chapters" / "01_world.html").read_text()
    (address,) = re.findall(r'href="(\.\./_downloads/[^"]*scores\.csv)"', page)
    content = (built[0] / "chapters" / address).read_text()
    assert content.startswith("score,reason") and str(built[0].parents[1]) not in content


def test_no_page_and_no_style_sheet_loads_anything_from_elsewhere(built):
    class Elements(HTMLParser):
        """Every attribute value of every element that is not a plain link."""

        def __init__(self):
            super().__init__()
            self.values = []

        def handle_starttag(self, tag, attributes):
            self.values += [(tag, n, v) for n, v in attributes if tag != "a" and n != "xmlns"]

    html, _ = built
    assert book_checks.network_assets(html, book_checks.read(html)) == []
    for page in html.rglob("*.html"):
        elements = Elements()
        elements.feed(page.read_text())
        assert [v for v in elements.values if re.match(r"(https?:)?//", v[2] or "")] == []
        assert "unpkg" not in page.read_text() and "cdn." not in page.read_text().replace(
            "cdn.openai.com/papers", ""
        )
    for sheet in html.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text())


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://x.org/a.js"></script>',
        '<link rel="stylesheet" href="//x.org/a.css">',
        '<p style="background: url(http://x.org/a.png)">',
        "<style>@import 'https://x.org/a.css';</style>",
        '<img srcset="a.png 1x, https://x.org/a.png 2x">',
    ],
)
def test_an_asset_from_the_network_is_found(tmp_path, planted):
    (tmp_path / "index.html").write_text(f'<a href="https://fine.org">fine</a>{planted}')
    found = book_checks.network_assets(tmp_path, book_checks.read(tmp_path))
    assert [address.split("x.org")[1][:2] for address in found] == ["/a"]


def test_formulas_are_mathml(built):
    page = (built[0] / "chapters" / "01_world.html").read_text()
    assert page.count("<math ") == 2
    assert "<mfrac>" in page and "MathJax" not in page
    assert '<a class="reference internal" href="#equation-eq-sum">(1)</a>' in page


def test_a_chapter_names_its_run_and_hides_progress_bars(built):
    page = text(built[0], "chapters/01_world")
    assert "Made by run main · preset smoke · 3 min 12 s · commit 0123456+" in page
    assert "UserWarning: look here" in page and "it/s" not in page
    assert "complete: smoke/01_world/main" in page  # not where this machine has it
    assert "seed = 3" in page  # the injected parameters are shown


def test_a_figure_comment_becomes_caption_and_alternative_text(built):
    page = (built[0] / "chapters" / "01_world.html").read_text()
    assert 'alt="one pixel, enlarged."' in page
    assert re.search(r"<figcaption>.*one pixel, enlarged\.", page, re.DOTALL)
    assert "# Figure" not in page and "# enlarged" not in page


def test_a_failed_chapter_shows_only_the_last_line_of_its_error(built):
    page = text(built[0], "chapters/02_captioning")
    assert "This chapter failed" in page and "02_captioning: cat is gone." in page
    assert "first" not in page
    assert "find_cat" not in page and page.startswith("Captioning")


def test_the_chapter_of_the_arms_shows_the_last_one_under_its_parent(built):
    html, _ = built
    page = text(html, "chapters/04a_train_arm")
    assert "An arm: dsc-95-0" in page and "dsc-95-0 · the last of 2 runs of this notebook" in page
    nested = {"file": "chapters/04_caption_kind", "sections": [{"file": "chapters/04a_train_arm"}]}
    contents = book.contents({"04_caption_kind", "04a_train_arm", "99_ledger"})
    assert nested in contents["parts"][1]["chapters"]


def test_the_status_page_lists_failures_first_then_every_run(built):
    page = text(built[0], "status")
    rows = ["02_captioning – failed", "main not finished", "main 3 min", "original-0 3 min"]
    places = [page.index(row) for row in rows]
    assert places == sorted(places)
    assert "run in smoke/02_captioning/main" in page  # and not where this machine has it
    assert "512 MiB" in page and "A processor" in page and "torch 9.8.7" in page


def test_the_front_page_shows_the_picture_the_headlines_and_the_counts(built):
    page = text(built[0], "index")
    assert (
        "2 claims, 2 of the paper and 0 that this book adds: 1 no verdict , 1 not tested ." in page
    )
    assert "Synthetic captions help | even on *original* prompts slightly better" in page
    assert "+0.25 points [-0.125, +0.625] no verdict (1 of 10 seeds) 01" in page
    assert "nothing is concluded" in page
    assert "python -m dalle3lib explorer --preset smoke" in page
    source = (built[0] / "index.html").read_text()
    assert source.count("class='tile'") == 2 * 6  # two scenes, the true picture and five systems
    assert "the reader sees a &lt;star&gt; &amp; &#x27;moon&#x27;; CLIP score 1.5." in source


def test_the_ledger_has_every_claim_and_the_other_page_what_is_missing(built):
    page = text(built[0], "ledger")
    assert (
        "slightly better (3.3) +0.25 points [-0.125, +0.625] 1 no verdict (1 of 10 seeds) 01 main"
        in page
    )
    assert "Elo 1 against 2 (3.3) – – 1 not tested (needs people)" in page
    page = text(built[0], "untested")
    assert "Needs people People prefer it." in page
    assert "no verdict (1 of 10 seeds) Synthetic captions help" in page
    (table,) = (built[0] / "_downloads").glob("*/ledger.csv")
    assert table.read_text().splitlines()[0].startswith("claim,in words,section,paper,ours")


def test_a_figure_offers_its_numbers_and_the_command_that_makes_it(built):
    page = (built[0] / "chapters" / "01_world.html").read_text()
    below = page.split("one pixel, enlarged.</span>")[1]
    assert "python -m dalle3lib run 01_world -p preset smoke" in re.sub("<[^>]+>", "", below)
    (address,) = re.findall(r'href="(\.\./_downloads/[^"]*figure-01\.csv)"', below)
    assert (built[0] / "chapters" / address).read_text() == "panel,x,y\n1,2,3\n"


def test_a_book_says_whether_its_verdicts_stand_on_the_study(monkeypatch):
    made = study_results.names("main")
    assert (
        checklist.progress("cpu") == f"The study behind its verdicts is whole: {len(made)} runs.\n"
    )
    assert "come from this build's own runs" in checklist.progress("smoke")
    monkeypatch.setattr(study_results, "names", lambda stage: made[:30])
    assert "30 of 80 runs are committed so far" in checklist.progress("cpu")
    assert "of which 30 of 80 runs are committed" in checklist.progress("smoke")


def test_the_checklist_counts_the_parameters_of_the_shipped_weights(built):
    page = text(built[0], "checklist")
    assert re.search(r"unet-dsc-95 [\d,]{7,} 0 2,000", page) and "dsc-100 100 to 109" in page


def test_every_module_has_its_place_in_the_api_reference(built):
    html, _ = built
    documented = "".join(path.read_text() for path in (html / "api").glob("*.html"))
    package = Path(book.__file__).parent
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        assert f'id="module-{module.removesuffix(".__init__")}"' in documented


def test_the_models_have_their_cards(built):
    page = text(built[0], "models")
    assert "Model cards" in page and "PSNR in dB" in page and "UNet2DConditionModel" in page


def test_citations_lead_to_the_bibliography(built):
    html, _ = built
    chapter = (html / "chapters" / "01_world.html").read_text()
    target = re.search(r'href="\.\./bibliography\.html#(id\d+)"', chapter)[1]
    entry = (html / "bibliography.html").read_text().split(f'id="{target}"')[1]
    assert "denoising diffusion probabilistic models" in entry.lower().split("arxiv")[0]


def test_presets_and_parameters_have_their_meaning_and_value(built):
    assert "smoke A look. Free." in text(built[0], "guide")
    assert "data str where images come from world" in text(built[0], "parameters")


def test_a_module_of_no_group_is_documented_all_the_same(monkeypatch):
    monkeypatch.setattr(pages, "modules", lambda: ["dalle3lib", "dalle3lib.brand_new"])
    assert "automodule:: dalle3lib.brand_new" in pages.api_pages()["other"]


def test_a_finished_notebook_without_a_complete_run_is_not_published(tmp_path):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(world_notebook(), tmp_path / "notebooks" / "01_world.ipynb")
    assert chapters.find_chapters(tmp_path)[0].problems == [
        "01_world: its run is not complete; run it again."
    ]


def test_papermill_says_that_a_notebook_failed_whatever_its_name(tmp_path):
    path = tmp_path / "01_world.ipynb"
    nbformat.write(failed_notebook(), path)
    assert chapters.failure(path).endswith("cat is gone.")
    path.write_text("{")
    assert "cannot be read" in chapters.failure(path)


def test_a_book_of_nothing_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="make book"):
        book.build(tmp_path, "smoke", "world", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.24, "4.2 s"), (59.96, "1 min 00 s"), (192.4, "3 min 12 s"), (7500, "2 h 05 min")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert pages.duration(seconds) == words


nasty = st.text(st.sampled_from("ab |<>&\\`*_[](){}$#~:@!^\n'\"-"), min_size=1, max_size=20)


@settings(deadline=None)
@given(nasty)
def test_a_table_shows_text_as_it_is(text):
    table = pages.table(["a", "b"], [["1", pages.plain(text)]], "wide")
    html = MarkdownIt("gfm-like", {"linkify": False}).render(table.split("\n\n")[1])
    shown = re.findall(r"<td>(.*?)</td>", html, flags=re.DOTALL)
    assert len(shown) == 2
    assert not re.search(r"<(?!/?t(able|head|body|r|h|d)>)", html)  # no other element appears
    replaced = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}
    for entity, sign in replaced.items():
        shown[1] = shown[1].replace(entity, sign)
    assert shown[1] == " ".join(text.split())


def test_prose_edited_after_the_run_is_the_prose_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_NOTEBOOKS", str(tmp_path))
    now = notebook("The world", code("1 + 1"))
    executed = nbformat.from_dict(now)
    executed.cells[0].source = "# The world\n\nAn older wording."
    executed.cells[2].source = "1 + 2"  # code is shown as it ran
    nbformat.write(now, tmp_path / "01_world.ipynb")
    shown = chapters.with_current_prose(executed, "01_world").cells
    assert [cell.source for cell in (shown[0], shown[2])] == [now.cells[0].source, "1 + 2"]


def test_what_is_wrong_with_a_book_is_said(tmp_path):
    (tmp_path / "there.html").write_text('<p id="here">')
    (tmp_path / "index.html").write_text(
        '<a href="there.html#here">1</a><a href="there.html#gone">2</a><a href="away.html">3</a>'
        '<a href="#nowhere">4</a><a href="https://x.org">5</a><img src="a.png"><img alt="b">'
    )
    said = book_checks.problems(tmp_path)
    assert [line.split(": ")[1] for line in said] == [
        *("there.html#gone.", "away.html.", "#nowhere.", "a.png.")
    ]


def test_a_large_book_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<p>" + "x" * 2_000_000)
    assert book_checks.problems(tmp_path) == []
    monkeypatch.setattr(book_checks, "MOST_BYTES", 1_000_000)
    assert book_checks.problems(tmp_path) == ["It has 2 MB, and 1 is the most."]


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; what needs it is left out where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox"]}
        try:
            running = play.chromium.launch(**options)
        except playwright.Error:
            pytest.skip("needs Chromium: `playwright install chromium`, or a system's own")
        yield running
        running.close()


@pytest.fixture
def visit(built, browser):
    """A function that opens a page of the book; no page may ask for anything but its own files."""
    asked, said, pages = [], [], []

    def no_network(route):
        asked.append(route.request.url)
        route.abort()

    def opened(name: str, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.route(re.compile(r"^(?!file:|data:)"), no_network)
        page.on("console", lambda m: m.type in ("error", "warning") and said.append(m.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{built[0].as_uri()}/{name}")
        return page

    yield opened
    for page in pages:
        page.close()
    assert (asked, said) == ([], [])


def test_the_ledger_is_filtered_by_verdict_and_words(visit):
    page = visit("ledger.html")
    rows, said = page.locator(".ledger tbody tr:visible"), page.locator(".filter output")
    assert rows.count() == 2 and said.inner_text() == "2 of 2 claims"
    page.get_by_label("not tested (1)").uncheck()
    assert rows.count() == 1 and "Synthetic captions help" in rows.inner_text()
    page.get_by_label("not tested (1)").check()
    page.get_by_role("searchbox", name="claims").fill("people PREFER")
    assert said.inner_text() == "1 of 2 claims" and "People prefer it." in rows.inner_text()


def test_without_scripts_everything_is_there(visit):
    assert visit("ledger.html", java_script_enabled=False).locator(".ledger tbody tr").count() == 2
    page = visit("explorer.html", java_script_enabled=False)
    assert page.locator(".explorer .scene:visible").count() == 2
    assert not page.locator(".explorer form").is_visible()


def test_the_explorer_is_walked_with_the_keyboard(visit):
    page = visit("explorer.html")
    scenes = page.locator(".explorer .scene:visible")
    assert scenes.count() == 1 and "original of scene 0" in scenes.inner_text()
    page.get_by_role("radio", name="Scene 1:").focus()
    page.keyboard.press("ArrowRight")
    assert scenes.count() == 1 and "dsc\nscene 1" not in scenes.inner_text()
    assert "original of scene 1" in scenes.inner_text() and page.url.endswith("#scene-2")
    assert scenes.locator("img").count() == 1 + 20
    page = visit("explorer.html#scene-2")
    assert "upsampled of scene 1" in page.locator(".explorer .scene:visible").inner_text()


def test_a_picture_of_a_strip_is_the_one_that_its_text_is_about(visit):
    page = visit("explorer.html")
    last = page.locator(".scene:visible img").last.screenshot()
    middle = np.asarray(Image.open(io.BytesIO(last)).convert("RGB"))[60, 60]
    assert middle.tolist() == [40 + 9 * 20] * 3


@pytest.mark.parametrize("name", ["index", "ledger", "explorer", "chapters/01_world", "checklist"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_its_screen_in_light_and_dark(visit, name, width):
    page = visit(f"{name}.html", viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(map(int, re.findall(r"\d+", light)[:3])) > 240


def test_the_search_finds_a_word_from_disk(visit):
    page = visit("search.html?q=glossary")
    page.wait_for_selector("#search-results li")
    assert "Glossary" in page.locator("#search-results").inner_text()
