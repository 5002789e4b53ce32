"""Links that open a chapter in Colab or Binder, made from ``repository-code`` in CITATION.cff.

A copy of the repository that names no address gets no links. The address of a notebook in the
repository is not that of its page, so the theme's own launch buttons cannot be used.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from dalle3lib import UserError, paths

BRANCH = "main"
BINDER, COLAB = "https://mybinder.org", "https://colab.research.google.com"


def citation(path: Path | None = None) -> dict[str, Any]:
    """The content of ``CITATION.cff`` (or ``path``), empty without one; UserError if it is bad."""
    path = path or paths.ROOT / "CITATION.cff"
    try:
        return dict(yaml.safe_load(path.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None


def repository(path: Path | None = None) -> str | None:
    """The address of the public repository as ``CITATION.cff`` says it, or None if it does not.

    Raises UserError for an address that is not ``https://…``.
    """
    address = citation(path).get("repository-code")
    if address is None:
        return None
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+/?", str(address)):
        raise UserError(f"CITATION.cff: repository-code must be https://…, not {address!r}.")
    return address.rstrip("/").removesuffix(".git")


def links(stem: str, address: str | None) -> str:
    """The line of a chapter that opens its notebook elsewhere, in MyST; "" without an address.

    Binder builds any public repository (from ``.binder``); Colab opens those on GitHub, and there
    the package has to be installed first.
    """
    if address is None:
        return ""
    notebook = f"notebooks/{stem}.ipynb"
    github = re.search(r"//github\.com/([^/]+/[^/]+)$", address)
    place = f"gh/{github[1]}" if github else f"git/{quote(address, safe='')}"
    binder = f"{BINDER}/v2/{place}/{BRANCH}?labpath={quote(notebook, safe='')}"
    offered = [f"[open in Binder]({binder})"]
    if github:
        colab = f"{COLAB}/github/{github[1]}/blob/{BRANCH}/{notebook}"
        cell = f"!git clone -q --depth 1 {address} book && pip install -q -e book"
        offered.append(f"[open in Colab]({colab}) after two cells, `{cell}` and `%cd book`")
    return ":::{div} made-by\n" + " · ".join(offered) + "\n:::\n"
