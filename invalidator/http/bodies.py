"""JSON bodies of requests and responses."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from aiohttp import web

BODY_TIMEOUT: Final = 10.0
"""Seconds in which the body of a request must arrive."""


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body; empty when there is no body."""
    if not request.can_read_body:
        return {}
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.json()
    except ValueError:
        body = None
    except TimeoutError as error:
        raise failure(web.HTTPRequestTimeout, f"the body did not arrive within {BODY_TIMEOUT:g} s") from error
    if not isinstance(body, dict):
        raise failure(web.HTTPBadRequest, "the body is not a JSON object")
    return body


def json_response(data: object, status: int = 200) -> web.Response:
    return web.Response(
        text=json.dumps(data, ensure_ascii=False) + "\n", status=status, content_type="application/json"
    )


def failure(kind: type[web.HTTPException], text: str) -> web.HTTPException:
    """An HTTP error whose body is `{"error": text}`."""
    return kind(text=json.dumps({"error": text}, ensure_ascii=False) + "\n", content_type="application/json")
