"""Formulas as MathML, which browsers draw themselves: no script and no network.

docutils knows how to convert TeX; this makes that a renderer of Sphinx.
"""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def inline(self, node):
    self.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block(self, node):
    text = node.astext()
    if "\\\\" in text or "&" in text:  # several lines
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    self.body.append(f'<div class="math-block">{tex2mathml(text, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
