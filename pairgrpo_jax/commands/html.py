"""What pages in one file are made of. Text is given as it is, and escaped here and nowhere else."""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape
from typing import Any

STYLE = """body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
svg, video { max-width: 100%; height: auto } pre { white-space: pre-wrap } code, pre { background: #f4f4f4 }
table { border-collapse: collapse } td { border-bottom: 1px solid #ddd; padding: 0.1em 1em 0.1em 0 }
td { vertical-align: top } td:first-child { white-space: nowrap }
td:last-child { white-space: pre-wrap; overflow-wrap: anywhere }"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of elements, which needs nothing else."""
    head = f'<meta charset="utf-8">{element("title", title)}<style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def element(name: str, text: str) -> str:
    """An element that holds text alone."""
    return f"<{name}>{escape(text)}</{name}>"


def table(rows: Iterable[Iterable[str]]) -> str:
    """Rows of cells."""
    lines = ("".join(element("td", cell) for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def listed(lines: Iterable[str], name: str = "span") -> str:
    """A line each, in an element of this name."""
    return "<ul>" + "".join(f"<li>{element(name, line)}</li>" for line in lines) + "</ul>"


def svg(figure: Any) -> str:
    """A figure of matplotlib, which is closed; its text stays text."""
    import matplotlib.pyplot as plt

    drawn = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
