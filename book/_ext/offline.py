"""Keep the built book free of what would be fetched from another address.

Jupyter Book puts the loader of thebe (live code cells) on every page, even where it is switched
off. This drops its scripts and styles.
"""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def forget_thebe_files(app: Sphinx) -> None:
    """Leave thebe's own files out of the build."""
    folders = app.config.html_static_path
    folders[:] = [folder for folder in folders if "sphinx_thebe" not in Path(folder).parts]


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree) -> None:
    """Drop the scripts and styles of one page that mention thebe."""
    for kind in ("script_files", "css_files"):
        if kind in context:
            context[kind] = [file for file in context[kind] if not mentions_thebe(file)]


def mentions_thebe(file: Any) -> bool:
    """Say whether a script or style names thebe, in its file name or in its text."""
    body = getattr(file, "attributes", {}).get("body") or ""
    return "thebe" in f"{file} {getattr(file, 'filename', '')} {body}".lower()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, after sphinx-thebe and the theme."""
    app.connect("builder-inited", forget_thebe_files, priority=900)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
