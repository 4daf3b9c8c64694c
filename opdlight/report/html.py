"""Fills the templates of the pages: everything inline, text escaped, scripts allowed only by their hashes."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from opdlight import __version__
from opdlight.report.draw import Chart

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page with a heading; `empty` is shown where there are no charts."""

    slug: str
    title: str
    charts: Sequence[Chart] = ()
    empty: str = ""


def fill(template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """The HTML of a page.

    Args:
        template: its file in `page/`.
        styles: CSS files there.
        scripts: JavaScript files there, in the order in which they run.
        values: what else the template shows.
    """
    templates = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    texts = [(PAGE / name).read_text(encoding="utf-8") for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return templates.get_template(template).render(
        version=__version__,
        css="".join((PAGE / name).read_text(encoding="utf-8") for name in styles),
        scripts=texts,
        hashes=" ".join(f"'sha256-{digest}'" for digest in digests),
        **values,
    )
