"""What the report writes by template: the page, the case studies, the tables in LaTeX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2


def render(template: str, *filters: Callable[..., Any], **values: Any) -> str:
    """A template of this folder as text; HTML is escaped.

    Args:
      filters: functions that the template calls by their names.
      values: what else it names.
    """
    return _environment(filters).get_template(template).render(values)


@functools.cache  # which keeps the compiled templates
def _environment(filters: tuple[Callable[..., Any], ...]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in filters}
    return environment
