"""Templates as HTML documents that are safe to open and need nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf_gym.loop.report.formatting import number, percent, plain, signed, turns, visible

HERE = "rlhf_gym.loop.report"


def page(template: str, *, package: str = HERE, more_style: str = "", live: bool = False, **values: Any) -> str:
    """Render a template as one HTML document.

    The document runs only this package's style and script. It fetches nothing, or if it is live only from where it came.

    Args:
        template: the template's file name.
        package: the package that holds it, and all templates that it includes.
        more_style: rules beyond this package's style.
        live: with the script by which it renews itself (`rlhf_gym.web.watch` serves such a page).
        values: what the template uses.
    """
    style, script = asset("page.css") + more_style, (asset("live.js") if live else "") + asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: asset(name, package)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "turns": turns,
        "plain": plain,
        "number": number,
        "percent": percent,
        "signed": signed,
    }
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if live else "")
    )
    found = environment.get_template(template)
    return found.render(policy=policy, style=Markup(style), script=Markup(script), live=live, **values)


def asset(name: str, package: str = HERE) -> str:
    """Read a template, a style or a script.

    Args:
        name: the file's name.
        package: the package that holds it.
    """
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
