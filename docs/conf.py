"""How Sphinx builds the pages; nothing here needs the network."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import skpudle

project = "skpudle"
author = "the skpudle developers"
project_copyright = author
version = release = skpudle.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",  # for the changelog and the guide for contributors
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "result_tables",
    "learner_tables",
    "denoiser_tables",
    "depth_tables",
]

default_role = "py:obj"
exclude_patterns = ["_build", "auto_examples/*.ipynb", "generated/backreferences"]
templates_path = ["_templates"]
nitpicky = True
# Names of other projects and words of signatures cannot be resolved without the network.
# So cannot those of private modules, which have no page.
nitpick_ignore_regex = [(r"py:.*", r"(?!skpudle\.[^_]).*|.*\._.*")]
suppress_warnings = ["config.cache"]  # the order of the gallery is a function

# ---------------------------------------------------------------- API

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": True}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
# A parameter or a result that is not documented, or not there, is a warning, and so an error.
numpydoc_validation_checks = {"GL08", "SS01", "PR01", "PR02", "PR03", "RT01"}
numpydoc_validation_exclude = {
    r"skpudle\.search\.Problem\.",  # one line and shapes: the style of the mathematics
    r"\.(setup|teardown|on_fit_task_\w+)$",  # hooks: scikit-learn documents them
}

# ---------------------------------------------------------------- gallery

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": r"/plot_",
    # a program, and a module of the examples of the paper
    "ignore_pattern": r"(demo|convergence)\.py",
    "within_subsection_order": "gallery_order.example_order",
    "abort_on_example_error": True,
    # examples at a time, with one thread each; fewer at a time compile less twice
    "parallel": int(os.environ.get("EXAMPLES_AT_A_TIME", "2")),
    "doc_module": ("skpudle",),
    "backreferences_dir": "generated/backreferences",
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,  # that page fetches scripts from the network
    "reset_modules": ("matplotlib", "gallery_warnings.refuse_warnings"),
    "reset_modules_order": "both",
}

# ---------------------------------------------------------------- pages

html_theme = "pydata_sphinx_theme"
html_title = "skpudle"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
toc_object_entries_show_parents = "hide"
# Pages without pages below them use the room of the sidebar.
PLAIN = "index install quick_start coming_from changelog contributing search genindex"
html_sidebars = {page: [] for page in PLAIN.split()}
html_context = {"default_mode": "auto"}
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "logo": {
        "image_light": "_static/icon.svg",
        "image_dark": "_static/icon.svg",
        "text": "skpudle",
    },
    "header_links_before_dropdown": 5,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def skip_foreign_members(app, what, name, member, skip, options):
    """Leave out what other packages define: it is documented there."""
    module = getattr(getattr(member, "fget", member), "__module__", None)
    return skip or (module is not None and not module.startswith("skpudle"))


def setup(app):
    app.connect("autodoc-skip-member", skip_foreign_members)
