"""The reports pages in the Airflow UI: what stages wrote for people under `reports/` of the factory bucket.

Mounted by the plugin under `/reports`. Whoever is logged in to Airflow may read; nobody may write. Reports are made
from data that came from outside, so they are served without any right to run scripts.
"""

from __future__ import annotations

import html
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from aifactory.errors import InfrastructureFault, NotFound
from aifactory.reasons import ReasonCode
from orchestration.links import REPORTS_PREFIX

if TYPE_CHECKING:
    from aifactory.store import Store

ROOT = "reports/"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline' https:; "
        "font-src 'self' data: https:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_SEGMENT = re.compile(r"^[A-Za-z0-9_=+@:,~ -][A-Za-z0-9_=+@:,~ .-]*$")
_STYLE = "body{font:15px/1.6 system-ui,sans-serif;margin:2rem}a{text-decoration:none}li{list-style:none}"


def create_app() -> FastAPI:
    """The application; every page of it asks for Airflow's own login."""
    app = FastAPI(title="Reports", openapi_url=None, dependencies=[Depends(requires_authenticated())])
    app.add_api_route("/-/mlflow", mlflow, response_class=RedirectResponse)
    app.add_api_route("/{path:path}", report, response_class=Response)
    app.add_exception_handler(401, to_login)
    app.add_exception_handler(InfrastructureFault, unreachable)
    return app


def mlflow() -> RedirectResponse:
    """On to MLflow, wherever the settings say that it is."""
    from aifactory.settings import load_settings

    return RedirectResponse(load_settings().mlflow_ui_url)


def report(path: str) -> Response:
    """One report, or the list of those under a prefix."""
    key = ROOT + checked(path)
    store = _store()
    found = None if key.endswith("/") else _open(store, key)
    if found is not None:
        return found
    prefix = key if key.endswith("/") else key + "/"
    folders, files = children(store, prefix)
    if not folders and not files and prefix != ROOT:
        raise HTTPException(404, f"there is no report {key.removeprefix(ROOT)} (yet)")
    return HTMLResponse(page(prefix, folders, files), headers=HEADERS)


def checked(path: str) -> str:
    """The path, if every part of it is a plain name; a store that is a file system must not be climbed.

    Raises:
        HTTPException: 404, as for everything that is not there.
    """
    parts = path.rstrip("/").split("/") if path.strip("/") else []
    if len(path) > 800 or not all(_SEGMENT.match(part) for part in parts):
        raise HTTPException(404, "there is no such report")
    return "/".join(parts) + ("/" if path.endswith("/") or not parts else "") if parts else ""


def children(store: Store, prefix: str) -> tuple[list[str], list[str]]:
    """Names of the folders and files right under a prefix, newest dates first."""
    from botocore.exceptions import BotoCoreError, ClientError

    folders: list[str] = []
    files: list[str] = []
    pages = store.client.get_paginator("list_objects_v2")
    try:
        for found in pages.paginate(Bucket=store.bucket, Prefix=prefix, Delimiter="/"):
            folders += [p["Prefix"].removeprefix(prefix).rstrip("/") for p in found.get("CommonPrefixes", [])]
            files += [o["Key"].removeprefix(prefix) for o in found.get("Contents", [])]
    except (BotoCoreError, ClientError) as error:
        raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"cannot list {store.uri(prefix)}: {error}") from error
    return sorted(filter(None, folders), reverse=True), sorted(filter(None, files))


def page(prefix: str, folders: list[str], files: list[str]) -> str:
    """The list under a prefix as HTML."""
    shown = prefix.removeprefix(ROOT).rstrip("/")
    title = html.escape(f"Reports / {shown.replace('/', ' / ')}" if shown else "Data Docs & reports")
    up = [] if not shown else [_item(str(PurePosixPath(shown).parent).removeprefix(".") + "/", "..")]
    items = up + [_item(f"{shown}/{name}/".lstrip("/"), f"{name}/") for name in folders]
    items += [_item(f"{shown}/{name}".lstrip("/"), name) for name in files]
    body = "".join(items) if folders or files else "<li>No stage has written a report yet.</li>"
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    return f"{head}<h1>{title}</h1><ul>{body}</ul>"


def to_login(request: Request, error: Exception) -> Response:
    """Send a browser to the login page; tell a program 401."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": "Not authenticated"}, 401, headers={"WWW-Authenticate": "Bearer"})
    return RedirectResponse(get_auth_manager().get_url_login(next_url=str(request.url)), 303)


def unreachable(request: Request, error: Exception) -> Response:
    """The store is down: say so, without its address."""
    return JSONResponse({"detail": "the report store does not answer; see `make status`"}, 503)


def _item(path: str, name: str) -> str:
    href = f"{REPORTS_PREFIX}/{quote(path.lstrip('/'))}"
    return f'<li><a href="{href}">{html.escape(name)}</a></li>'


def _store() -> Store:
    from aifactory.factory import open_factory

    return open_factory().store


def _open(store: Store, key: str) -> Response | None:
    try:
        content = store.get(key)
    except NotFound:
        return None
    kind = CONTENT_TYPES.get(PurePosixPath(key).suffix.lower())
    headers = HEADERS if kind else HEADERS | {"Content-Disposition": "attachment"}
    return Response(content, media_type=kind or "application/octet-stream", headers=headers)
