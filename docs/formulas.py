"""Fences of `math` become MathML, which browsers draw themselves; mkdocs.yml names this."""

from typing import Any

from latex2mathml.converter import convert


def fence(source: str, *_: Any, **__: Any) -> str:
    """One formula; line breaks in it are spaces."""
    return f'<div class="formula">{convert(" ".join(source.split()), display="block")}</div>'
