"""`/docs`: a service's routes in Swagger UI, which nothing is fetched for from elsewhere."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from saga.runtime.headers import POLICY

PATH: Final = "/docs"
_SCRIPT: Final = f"{PATH}/swagger-ui-bundle.js"
_STYLE: Final = f"{PATH}/swagger-ui.css"
_ICON: Final = f"{PATH}/favicon.png"
FILES: Final = {_SCRIPT: "text/javascript", _STYLE: "text/css", _ICON: "image/png"}
_SCRIPT_WITHIN: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_A_DAY: Final = {"Cache-Control": "max-age=86400"}


def documentation(title: str) -> APIRouter:
    """`/docs`, and the files that it needs, which the package `fastapi-offline` holds."""
    router = APIRouter(include_in_schema=False)
    shown = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=title,
        swagger_js_url=_SCRIPT,
        swagger_css_url=_STYLE,
        swagger_favicon_url=_ICON,
    )
    headers = {POLICY.decode(): _policy(bytes(shown.body))}

    @router.get(PATH)
    async def page() -> HTMLResponse:
        return HTMLResponse(shown.body, headers=headers)

    for path, kind in FILES.items():
        router.add_api_route(path, _serving(path, kind), methods=["GET"])
    return router


def _policy(page: bytes) -> str:
    """What the page may load: this service's files and answers, and the one script within it.

    Swagger UI sets styles of elements, and has pictures in its style sheet.
    """
    scripts = _SCRIPT_WITHIN.findall(page)
    hashes = " ".join(
        f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'"
    )


def _serving(path: str, kind: str) -> Callable[[], Response]:
    name = path.removeprefix(f"{PATH}/")

    def serve() -> Response:
        content = (files("fastapi_offline") / "static" / name).read_bytes()
        return Response(content, media_type=kind, headers=_A_DAY)

    return serve
