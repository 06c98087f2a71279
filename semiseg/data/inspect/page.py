"""The report of `inspect` as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semiseg.data.inspect.survey import Finding, Survey
from semiseg.types import IGNORE

if TYPE_CHECKING:
    from semiseg.data.inspect.report import DataReport

_SIDE = 220  # longest side of a picture, pixels
_UNFOLDED = 5  # places shown at once
_IGNORED = (224, 224, 224)
_SHOWN = {"image": "jpeg", "mask": "png", "overlay": "jpeg"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem; white-space: nowrap; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child { text-align: left; } td { font-variant-numeric: tabular-nums; }
.finding { border-left: .4rem solid; padding: .1rem 1rem; margin: 1rem 0; background: #f7f7f7; }
.error { border-color: #c4342d; } .warning { border-color: #dd8a1c; } .note { border-color: #4c78a8; }
.finding b { text-transform: capitalize; } .finding ul, .finding p { margin: .3rem 0; } code { font-size: .9em; }
figure { margin: .5rem 0; } figcaption { font-size: .85rem; color: #555; }
img { display: inline-block; margin-right: .3rem; vertical-align: top; }
figure img { max-width: 31%; height: auto; } .wide { overflow-x: auto; }
.bar { display: inline-block; height: .7rem; min-width: 1px; }
td.track { width: 7rem; text-align: left; padding-left: 0; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; border: 1px solid #999; }
.verdict { display: inline-block; padding: .2rem .8rem; border-radius: .3rem; color: #fff; background: #3a7d44; }
.verdict.error { background: #c4342d; } .verdict.warning { background: #a8640b; } .verdict.note { background: #4c78a8; }
.small { font-size: .85rem; color: #555; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Picture:
    """Image (JPEG), mask (PNG) and both together (JPEG)."""

    key: str
    part: str
    files: tuple[bytes, bytes, bytes]


def pictures(survey: Survey, count: int) -> tuple[Picture, ...]:
    """Pairs spread over the labeled images (two thirds) and the validation images."""
    found = []
    for part, wanted in (("labeled", count - count // 3), ("val", count // 3)):
        fit = [facts.key for facts in survey.of(part) if facts.size and facts.size == facts.mask_size]
        places = np.unique(np.linspace(0, len(fit) - 1, min(wanted, len(fit))).astype(int)) if fit and wanted else ()
        found += [_picture(survey, fit[i], part) for i in places]
    return tuple(found)


def _picture(survey: Survey, key: str, part: str) -> Picture:
    image, mask = survey.data.image(key), survey.data.mask(key)
    assert mask is not None
    colors = np.full((256, 3), 0, np.uint8)
    colors[: len(survey.data.palette)] = survey.data.palette
    colors[IGNORE] = _IGNORED
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    labels = mask.numpy()
    painted = colors[labels]
    half = ((pixels.astype(int) + painted) // 2).astype(np.uint8)
    overlay = np.where((labels == 0)[..., None], pixels, half)
    return Picture(key, part, (_file(pixels, "JPEG"), _file(painted, "PNG"), _file(overlay, "JPEG")))


def _file(pixels: NDArray[np.uint8], kind: str) -> bytes:
    picture = Image.fromarray(pixels)
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(
        size, Image.Resampling.NEAREST if kind == "PNG" or factor > 2 else Image.Resampling.BILINEAR
    )
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, quality=85)
    return file.getvalue()


def to_html(report: DataReport) -> str:
    """A page with sizes, classes, findings and pictures; it loads nothing from elsewhere."""
    title = f"{report.name}, split {report.split}"
    body = [
        f'<h1>{escape(title)}</h1><p class="verdict {_worst(report)}">{escape(report.verdict)}</p>',
        f'<p class="small">Lists: {escape(report.lists)}</p>',
        "<h2>Findings</h2>" * bool(report.findings),
        *(_finding(finding) for finding in report.findings),
        f'<h2>Images</h2><div class="wide">{report.sizes.to_html(border=0)}</div>',
        "<p>Height and width: smallest / median / largest, in pixels.</p>",
        "<h2>Classes</h2>" + _class_table(report),
        "<h2>Pictures</h2><p>Image, mask, and the mask over the image; ignored pixels are light gray.</p>",
        *(_figure(picture) for picture in report.pictures),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    return "\n".join(['<!doctype html>\n<html lang="en">', f"<head>{head}</head>", "<body>", *body, "</body></html>\n"])


def _worst(report: DataReport) -> str:
    return report.findings[0].severity if report.findings else ""


def _finding(finding: Finding) -> str:
    items = "".join(f"<li><code>{escape(place)}</code></li>" for place in finding.where)
    places = f"<ul>{items}</ul>" if items else ""
    if len(finding.where) > _UNFOLDED:
        places = f"<details><summary>where ({len(finding.where)})</summary>{places}</details>"
    said = f"<p><b>{finding.severity}:</b> {escape(finding.what)}</p>{places}<p>→ {escape(finding.advice)}</p>"
    return f'<div class="finding {finding.severity}">{said}</div>'


def _class_table(report: DataReport) -> str:
    """The table of classes, which is the legend of the pictures too, with a bar for each share of the pixels."""
    heads = []
    for column in map(str, report.classes.columns):
        heads.append(f"<th>{escape(column)}</th>" + "<th></th>" * ("%" in column))
    rows = [f"<tr><th>class</th>{''.join(heads)}</tr>"]
    for (name, row), color in zip(report.classes.iterrows(), (*report.palette, _IGNORED), strict=True):
        swatch = f'<span class="swatch" style="background:rgb{color}"></span>'
        cells = [_cell(str(column), value) for column, value in row.items()]
        rows.append(f"<tr><th>{swatch}{escape(str(name))}</th>{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _cell(column: str, value: float) -> str:
    if "%" not in column:
        return f"<td>{value:.0f}</td>"
    bar = f'<span class="bar" style="width:{value / 15:.2f}rem;background:#4c78a8"></span>' if value else ""
    return f'<td>{value:.2f}</td><td class="track">{bar}</td>'


def _figure(picture: Picture) -> str:
    images = "".join(
        f'<img alt="{what}" src="data:image/{kind};base64,{base64.b64encode(file).decode()}">'
        for (what, kind), file in zip(_SHOWN.items(), picture.files, strict=True)
    )
    return f"<figure>{images}<figcaption>{escape(picture.key)} ({picture.part})</figcaption></figure>"
