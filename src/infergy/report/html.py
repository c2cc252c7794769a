"""The one writer of HTML pages and of pictures: what it shows of names and files is text, and never runs.

A page needs no network and allows none. Only the scripts that are written here run in it: their hashes are in its
content security policy, which allows no other script and no text to be evaluated. Expressions of Vega are interpreted.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from infergy.units import printable

MARK = '<meta name="generator" content="infergy">'
"""By which a page of infergy is known."""
SIGNS: Mapping[str, str] = {".svg": "<svg", ".png": "PNG", ".html": MARK}
"""Text near the begin of a picture, by the end of its name."""
PNG_SCALE = 2.0

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

Spec = Mapping[str, Any]
"""A chart of Vega-Lite."""
Drawn = tuple[Spec, bytes]


def escape(text: str) -> str:
    """`text` so that Markdown shows it as it is, on one line: no markup, no HTML, no new cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()).translate(_ENTITIES))


def render(template: str, title: str, figures: Mapping[str, Drawn], **content: Any) -> str:
    """A page.

    Args:
        template: Name of a template in ``data``, which extends ``page.html.j2``.
        title: Of the page.
        figures: Charts by their names, each with its SVG for readers without scripts.
        content: Of the template.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    vega, loader = _scripts() if figures else ("", "")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: (resources.files("infergy") / "data" / name).read_text(encoding="utf-8")),
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    scripts = [Markup(text) for text in (vega, loader) if text]
    return environment.get_template(template).render(
        title=title,
        mark=Markup(MARK),
        specs={name: clean(spec) for name, (spec, _) in figures.items()},
        pictures={name: base64.b64encode(svg).decode() for name, (_, svg) in figures.items()},
        scripts=scripts,
        policy="; ".join(_policy(scripts)),
        **content,
    )


def draw(spec: Spec, suffix: str) -> bytes:
    """A chart as the content of a file, by the end of its name: one of `SIGNS`.

    Raises:
        ImportError: The extra ``report`` is not installed.
    """
    import vl_convert

    spec = {"background": "#FFFFFF", **spec}
    svg = vl_convert.vegalite_to_svg(clean(spec), vl_version=_vega_lite())
    if suffix == ".svg":
        return svg.encode()
    if suffix == ".png":
        return png_of(svg.encode())
    title = spec.get("title", "")
    text = title.get("text", "") if isinstance(title, Mapping) else title
    return render("chart.html.j2", text or "chart", {"chart": (spec, svg.encode())}).encode()


def png_of(svg: bytes) -> bytes:
    """An SVG in points."""
    import vl_convert

    return vl_convert.svg_to_png(svg.decode(), scale=PNG_SCALE)


def clean(value: Any) -> Any:
    """A chart in which all text is printable: a NUL, or half a character, would end the process that draws it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(inner) for key, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _policy(scripts: list[Any]) -> list[str]:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    # Vega styles what it draws, and draws into elements; neither loads anything.
    return [
        "default-src 'none'",
        f"script-src {hashes}" if scripts else "script-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@cache
def _scripts() -> tuple[str, str]:
    """Vega, and what draws each figure of a page with it."""
    import vl_convert

    # The stubs of vl-convert require a snippet; its own default, None, leaves vegaEmbed to the page.
    bundle: Any = vl_convert.javascript_bundle
    vega = bundle(vl_version=_vega_lite())
    loader = (resources.files("infergy") / "data" / "page.js").read_text(encoding="utf-8")
    if any(end in text.lower() for text in (vega, loader) for end in ("</script", "<!--")):
        raise AssertionError("a script would end its own element")
    return vega, loader


@cache
def _vega_lite() -> str:
    """The version that altair writes, as vl-convert spells it."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.split(".")[:2])
