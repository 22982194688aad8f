"""Keep the built book free of what would be fetched from another address, or cannot be from a file.

Jupyter Book puts the loader of thebe (live code cells) on every page, even where it is switched
off: this drops its scripts and styles. The theme asks browsers to load its icon fonts early, which
they refuse on a page that was opened as a file: this drops the hints; the fonts are used as before.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

THEBE_SETTINGS = re.compile(
    r'\s*<script type="text/x-thebe-config">.*?</script>\s*<script>kernelName = .*?</script>', re.S
)
FONT_HINT = re.compile(r'\s*<link rel="preload" as="font"[^>]*>')


def forget_thebe_files(app: Sphinx) -> None:
    """Leave thebe's own files out of the build."""
    folders = app.config.html_static_path
    folders[:] = [folder for folder in folders if "sphinx_thebe" not in Path(folder).parts]


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree) -> None:
    """Drop the scripts and styles of one page that mention thebe, and its settings."""
    for kind in ("script_files", "css_files"):
        if kind in context:
            context[kind] = [file for file in context[kind] if not mentions_thebe(file)]
    if "body" in context:
        context["body"] = THEBE_SETTINGS.sub("", context["body"])


def mentions_thebe(file: Any) -> bool:
    """Say whether a script or style names thebe, in its file name or in its text."""
    body = getattr(file, "attributes", {}).get("body") or ""
    return "thebe" in f"{file} {getattr(file, 'filename', '')} {body}".lower()


def drop_font_hints(app: Sphinx, error: Exception | None) -> None:
    """Drop the font hints from all pages, once they are written."""
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        without = FONT_HINT.sub("", text)
        if without != text:
            path.write_text(without, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, after sphinx-thebe and the theme."""
    app.connect("builder-inited", forget_thebe_files, priority=900)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", drop_font_hints)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
