"""Formulas as MathML, which browsers draw themselves: no script and no network.

docutils knows how to convert TeX; this makes that a renderer of Sphinx.
"""

import html
import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

BARS = re.compile("<mo[^>]*>([\u2016\u2225|])</mo>")
SYNONYMS = {r"\dots": r"\ldots"}


def convert(node, *, as_block):
    text = node.astext()
    for name, known in SYNONYMS.items():
        text = re.sub(re.escape(name) + r"(?![A-Za-z])", re.escape(known), text)
    text = re.sub(r"\\([td]?)frac(\d)(\d)", r"\\\1frac{\2}{\3}", text)
    if as_block and ("\\\\" in text or "&" in text):  # several lines
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        # Bars stretch to what is between them, but a power of a norm ends the group: the closing
        # bar would be taller than the opening one.
        return BARS.sub(
            r'<mo stretchy="false">\1</mo>', tex2mathml(text, as_block=as_block)
        )
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %r", error, text, location=node)
        return f"<code>{html.escape(text)}</code>"


def inline(self, node):
    self.body.append(convert(node, as_block=False))
    raise nodes.SkipNode


def block(self, node):
    self.body.append(f'<div class="math-block">{convert(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
