"""`/docs`: a service's routes in Swagger UI, which nothing is fetched for from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

PATH: Final = "/docs"
_SCRIPT: Final = f"{PATH}/swagger-ui-bundle.js"
_STYLE: Final = f"{PATH}/swagger-ui.css"
_ICON: Final = f"{PATH}/favicon.png"
_KINDS: Final = {_SCRIPT: "text/javascript", _STYLE: "text/css", _ICON: "image/png"}
_A_DAY: Final = {"Cache-Control": "max-age=86400"}


def documentation(title: str) -> APIRouter:
    """`/docs`, and the files that it needs, which the package `fastapi-offline` holds."""
    router = APIRouter(include_in_schema=False)

    @router.get(PATH)
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=title,
            swagger_js_url=_SCRIPT,
            swagger_css_url=_STYLE,
            swagger_favicon_url=_ICON,
        )

    for path, kind in _KINDS.items():
        router.add_api_route(path, _serving(path, kind), methods=["GET"])
    return router


def _serving(path: str, kind: str) -> Callable[[], Response]:
    name = path.removeprefix(f"{PATH}/")

    def serve() -> Response:
        content = (files("fastapi_offline") / "static" / name).read_bytes()
        return Response(content, media_type=kind, headers=_A_DAY)

    return serve
