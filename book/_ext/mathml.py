"""Sphinx extension: formulas become MathML while the book is built, so that no script is needed."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def to_mathml(node: nodes.Element, display: str) -> str:
    """The MathML of a math node; a formula that cannot be converted is a warning."""
    latex = node.astext().strip()
    try:
        markup = convert(latex, display=display)
    except Exception as error:  # latex2mathml has a dozen error classes and no common base
        markup, problem = f"<code>{latex}</code>", f"{type(error).__name__}: {error}"
    else:
        # An unknown command is passed through with its backslash.
        problem = "an unknown command" if "\\" in markup else ""
    if problem:
        logger.warning("formula %r: %s", latex, problem, location=node)
    return markup


def visit_inline(self, node: nodes.math) -> None:
    """Write an inline formula."""
    self.body.append(to_mathml(node, "inline"))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number and a link to it when it has a label."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(to_mathml(node, "block"))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name ``mathml`` (see ``html_math_renderer``)."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
