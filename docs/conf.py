"""The site: `make docs` builds it into build/docs, without a network connection and without running a notebook."""

from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from bayeslora import __version__

HERE = Path(__file__).parent

project = "bayeslora"
author = "The bayeslora developers"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables in outputs
myst_heading_anchors = 3

default_role = "py:obj"  # `name` in a docstring: a link where the name is documented, code elsewhere
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"bayeslora {release}"
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


class LinksOutOfTheSite(SphinxPostTransform):
    """Leaves the text of a link to a folder or a page of the repository that is no part of the site."""

    default_priority = 8  # before MyST looks for the target

    def run(self, **kwargs: Any) -> None:
        """Replace such links by what they contain."""
        for link in list(self.document.findall(pending_xref)):
            folder = Path(self.env.doc2path(link.get("refdoc", self.env.docname))).parent
            target = (folder / link["reftarget"]).resolve()
            if not target.is_relative_to(HERE) and (target.exists() or target.with_suffix(".md").exists()):
                link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Connect it."""
    app.add_post_transform(LinksOutOfTheSite)
