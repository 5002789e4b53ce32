"""What a built book must be: whole, readable without its pictures, small, and alone.

No page loads anything from the network, every link within the book leads somewhere, every picture
has a text in its place, and all files together stay small enough to be published.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ADDRESSES = ("src", "srcset", "href", "xlink:href", "data", "poster")
MOST_BYTES = 60_000_000


class Page(HTMLParser):
    """One page's addresses: what it loads by itself, where its links lead, and what is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []  # pictures without a text in their place
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of an element, and its own name."""
        for name, value in attrs:
            if name == "style":
                self.loads += style_addresses(value or "")
            elif name in ("id", "name") and value:
                self.anchors.add(value)
            elif tag in ("a", "area"):
                self.links += [value] if name == "href" and value else []
            elif name in ADDRESSES:
                self.loads += re.split(r"[\s,]+", value or "")
        given = dict(attrs)
        if tag == "img" and not (given.get("alt") or "").strip():
            self.silent.append(given.get("src") or "a picture without address")

    def handle_data(self, data: str) -> None:
        """Note the addresses in a style element."""
        if self.lasttag == "style":
            self.loads += style_addresses(data)


def read(html: Path) -> dict[Path, Page]:
    """Return every page of a built book by its path, in alphabetical order."""
    return {path.resolve(): Page(path) for path in sorted(html.rglob("*.html"))}


def problems(html: Path) -> list[str]:
    """Return what is wrong with a built book, each as one sentence; an empty list if nothing is."""
    pages = read(html)
    size = sum(path.stat().st_size for path in html.rglob("*") if path.is_file())
    found = [f"It would load {a} from the network; embed it." for a in network_assets(html, pages)]
    found += [f"{page.name} has a broken link: {link}." for page, link in broken_links(pages)]
    found += [
        f"{path.name} has a picture without a text in its place: {image}."
        for path, page in pages.items()
        for image in page.silent
    ]
    if size > MOST_BYTES:
        found.append(f"It has {size / 1e6:.0f} MB, and {MOST_BYTES / 1e6:.0f} is the most.")
    return found


def style_addresses(css: str) -> list[str]:
    """Return the addresses in a style sheet's ``url(…)`` and ``@import``."""
    return re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", css)


def network_assets(html: Path, pages: dict[Path, Page]) -> list[str]:
    """Return every address outside the book that a page or a style sheet would load."""
    found = [address for page in pages.values() for address in page.loads]
    for sheet in html.rglob("*.css"):
        found += style_addresses(sheet.read_text(encoding="utf-8"))
    return sorted({address for address in found if re.match(r"(\w+:)?//", address)})


def broken_links(pages: dict[Path, Page]) -> list[tuple[Path, str]]:
    """Return (page, address) of every link within the book that leads nowhere.

    A link leads to a file of the book, and, where it has a ``#``, to a place of that name on it.
    """
    found = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:|//", link):
                continue
            file, _, place = unquote(link).partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            on_it = pages[target].anchors if target in pages else {place}
            if not target.is_file() or (place and place not in on_it):
                found.append((path, link))
    return found
