"""The API's own description: as OpenAPI JSON, and as a page without scripts or foreign assets."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse

routes = APIRouter(tags=["operation"])

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h1,h2{line-height:1.2}h2{margin-top:2.5rem;text-transform:capitalize}
details{border:1px solid #d5d5d5;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:#f5f5f5;padding:.6rem;overflow-x:auto}.method{display:inline-block;min-width:4.5rem}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}pre{background:#222}}
"""
_POLICY = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; style-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


@routes.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> JSONResponse:
    """Return the OpenAPI document."""
    return JSONResponse(request.app.openapi())


@routes.get("/docs", include_in_schema=False)
def page(request: Request) -> HTMLResponse:
    """Return the document as a page to read."""
    return HTMLResponse(_html(request.app), headers={"content-security-policy": _POLICY})


@cache
def _html(app: FastAPI) -> str:
    return "".join(_page(app.openapi()))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    title = escape(document["info"]["title"])
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    yield f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1><p>{escape(document['info']['description'])}</p>"
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            shown = "".join(_operation(method, path, operation))
            by_tag.setdefault(operation["tags"][0], []).append(shown)
    for tag, shown in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>{''.join(shown)}"
    yield "<h2>bodies</h2>"
    for name, schema in document["components"]["schemas"].items():
        text = escape(json.dumps(schema, indent=2))
        yield f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>"
        yield f"<pre>{text}</pre></details>"
    yield "</html>"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<details><summary><code><b class=method>{method.upper()}</b> {escape(path)}</code> "
    yield f"{escape(operation.get('summary', ''))}</summary>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    shown = {key: operation[key] for key in ("parameters", "requestBody") if key in operation}
    yield f"<pre>{escape(json.dumps(shown, indent=2))}</pre></details>"
