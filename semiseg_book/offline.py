"""The book without a CDN: plotly figures, MathJax and the records that tables link to are served with the pages.

A Sphinx extension, named in _config.yml.
"""

from __future__ import annotations

import json
import shutil
from importlib import resources, util
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core.render import load_mime_renders

PLOTLY_MIME = "application/vnd.plotly.v1+json"
PLOTLY_SCRIPT = "plotly.min.js"
MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_SCRIPT = "tex-svg-full.js"  # the one build of MathJax that needs no fonts beside it
FIGURE_CLASS = "plotly-figure"
LOCAL = "local"  # as in semiseg.runs, whose import would load PyTorch

DRAW_FIGURES = """\
for (const script of document.querySelectorAll("script[data-plotly]")) {
  const figure = JSON.parse(script.textContent);
  const config = Object.assign({responsive: true, displaylogo: false, showSendToCloud: false}, figure.config || {});
  Plotly.newPlot(script.previousElementSibling, figure.data, figure.layout, config);
}
"""


class PlotlyRenderer:
    """Turns a plotly output of a notebook into a figure the page draws itself."""

    mime_priority_overrides = (("html", PLOTLY_MIME, 1), ("dirhtml", PLOTLY_MIME, 1), ("singlehtml", PLOTLY_MIME, 1))

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """MyST-NB hook.

        data: MyST-NB's `MimeData`; its `content` is the figure as JSON text or as a dict.
        Returns nodes for a plotly figure between paragraphs, None for everything else.
        """
        if data.mime_type != PLOTLY_MIME or inline:
            return None
        figure = data.content if isinstance(data.content, dict) else json.loads(data.content)
        return [nodes.raw(text=figure_html(figure), format="html", classes=[FIGURE_CLASS])]


def figure_html(figure: dict[str, Any]) -> str:
    """An empty box and, behind it, the data plotly will draw into it."""
    kept = {key: figure[key] for key in ("data", "layout", "config") if key in figure}
    text = json.dumps(kept, sort_keys=True).replace("</", "<\\/")  # nothing in the data may close the script element
    height = figure.get("layout", {}).get("height", 450)
    return (
        f'<div class="{FIGURE_CLASS}" style="min-height:{height}px"></div>'
        f'<script type="application/json" data-plotly>{text}</script>'
    )


def mathjax_script() -> Path:
    """Where the installed MathJax lies; without it the pages would ask a CDN, so its absence is an error."""
    package = util.find_spec(MATHJAX_PACKAGE)
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"the book needs the package {MATHJAX_PACKAGE}: pip install 'semiseg[book]'")
    return Path(package.origin).parent / "static" / "mathjax" / MATHJAX_SCRIPT


def serve_scripts(app: Any, config: Any) -> None:
    """Copy plotly's and MathJax's scripts beside the pages."""
    config.html_static_path.append(str(resources.files("plotly") / "package_data" / PLOTLY_SCRIPT))
    config.html_static_path.append(str(mathjax_script()))
    config.mathjax_path = MATHJAX_SCRIPT


def choose_scripts(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Load plotly only on pages with figures, and nowhere the remote kernels Jupyter Book prepares by default."""
    context["script_files"][:] = [script for script in context["script_files"] if not _is_thebe(script)]
    if doctree is None or not any(FIGURE_CLASS in node.get("classes", ()) for node in doctree.findall(nodes.raw)):
        return
    app.add_js_file(PLOTLY_SCRIPT, loading_method="defer", priority=400)
    app.add_js_file(None, body=DRAW_FIGURES, type="module", priority=450)  # a module runs after deferred scripts


def _is_thebe(script: Any) -> bool:
    inline = getattr(script, "attributes", {}).get("body") or ""
    return "sphinx-thebe" in str(script) or "THEBE_JS_URL" in inline


def drop_remote_kernels(app: Any, doctree: nodes.document) -> None:
    """Remove the settings of remote kernels from a page; its outputs are committed, nothing runs in the browser."""
    for node in list(doctree.findall(nodes.raw)):
        if "x-thebe-config" in node.astext() or "kernelName = " in node.astext():
            node.parent.remove(node)


def copy_records(app: Any, exception: Exception | None) -> None:
    """Put runs/**/run.json beside the pages, at the place where tables in notebooks link to it."""
    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.srcdir) / "runs"
    for record in sorted(root.glob("*/*/run.json")):
        folder = record.parent.relative_to(root)
        if folder.parts[0] != LOCAL:
            target = Path(app.outdir) / "runs" / folder
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record, target / record.name)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx hook."""
    if PlotlyRenderer not in load_mime_renders():
        load_mime_renders().append(PlotlyRenderer)  # MyST-NB keeps this list
    app.connect("config-inited", serve_scripts)
    app.connect("html-page-context", choose_scripts)
    app.connect("build-finished", copy_records)
    app.connect("doctree-resolved", lambda app, doctree, name: drop_remote_kernels(app, doctree), priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
