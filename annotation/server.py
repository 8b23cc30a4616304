"""The page's server: one person, one video, on this machine alone.

Every request needs the token, which the printed address hands over once and a cookie keeps, and comes for this very
address (Host) from this very page (Origin); so no other page in the browser can ask anything. Requests name frames and
objects by number, never files.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import logging
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from annotation.outline import BorderLines, cut_box, cut_scribbles
from annotation.session import Session, StaleError
from annotation.work import Work
from utils.errors import UserError

PAGE = Path(__file__).parent / "page"
FILES = {"/": "page.html", "/page.js": "page.js", "/drawing.js": "drawing.js", "/page.css": "page.css"}
HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
           "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
LARGEST_REQUEST = 64_000_000  # bytes; more than three compressed masks of any video

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = Callable[[web.Request, bytes], Any]  # a request and its body to a response, or to what JSON takes


class Server:
    """Answers the page; `hosts` are the values of Host that are ours, such as "127.0.0.1:8123"."""

    def __init__(self, session: Session, work: Work, hosts: set[str]):
        self.token = secrets.token_urlsafe(24)
        self._session, self._work, self._hosts = session, work, hosts
        # Cookies do not know ports, so that two videos' servers must not share a name.
        self._cookie = f"annotation_{secrets.token_hex(4)}"
        # A pointer that moves asks for many lines of one frame from one place.
        self._lines = functools.lru_cache(1)(lambda number, start: BorderLines(session.frame(number), start))

    def application(self) -> web.Application:
        """The routes behind their checks."""
        session, work = self._session, self._work
        one_object, frame = r"/objects/{number:\d{1,3}}", r"/frames/{number:\d{1,9}}"
        routes: list[tuple[str, str, Answer]] = [
            *(("GET", path, lambda request, body: web.FileResponse(PAGE / FILES[request.path])) for path in FILES),
            ("GET", "/video", lambda request, body: work.video()),
            ("GET", "/state", self._state),
            ("GET", frame + ".jpg", self._picture),
            ("GET", frame + "/mask", self._mask),
            ("PUT", frame + "/mask", self._give),
            ("DELETE", frame + "/mask", self._withdraw),
            ("POST", frame + "/cut", self._cut),
            ("GET", frame + "/line", self._line),
            ("POST", "/objects", lambda request, body: {"id": session.add_object()}),
            ("PATCH", one_object, lambda request, body: session.change_object(_number(request), _json(body))),
            ("DELETE", one_object, lambda request, body: work.delete_object(_number(request))),
            ("POST", "/carry", lambda request, body: work.carry(_json(body).get("direction"))),
            ("DELETE", "/carry", lambda request, body: work.stop()),
            ("POST", "/exports", self._export)]
        application = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[self._guard, _said])
        application.add_routes([web.route(method, path, _in_thread(answer)) for method, path, answer in routes])
        return application

    # --- who asks ---
    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Host") not in self._hosts:
            return _refusal(403, "this server answers to its own address only")
        origin = request.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return _refusal(403, "requests of other pages are refused")
        if request.path == "/" and self._is_token(request.query.get("token", "")):
            welcome = web.Response(status=303, headers={"Location": "/"})
            welcome.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict")
            return welcome
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return _refusal(403, "open the address that the command printed: it has the token")
        if request.method != "GET" and request.headers.get("X-Annotation") != "1":
            return _refusal(403, "changes come from the page only")
        answer = await handler(request)
        answer.headers.update(HEADERS)
        return answer

    def _is_token(self, word: str) -> bool:
        return hmac.compare_digest(word.encode(), self.token.encode())

    # --- what is asked ---
    def _state(self, request: web.Request, body: bytes) -> dict[str, Any]:
        words = [request.query.get(name, "0") for name in ("since", "frame")]
        if not all(word.isdecimal() and len(word) < 10 for word in words):
            raise web.HTTPBadRequest(text="since and frame are whole numbers")
        return self._work.state(*map(int, words))

    def _picture(self, request: web.Request, body: bytes) -> web.Response:
        return web.Response(body=self._session.picture(_number(request)), content_type="image/jpeg")

    def _mask(self, request: web.Request, body: bytes) -> web.Response:
        shown = self._session.mask(_number(request))
        return _deflated(shown.ids, {"X-Source": shown.source, "X-Revision": str(shown.revision)})

    def _give(self, request: web.Request, body: bytes) -> dict[str, int]:
        (ids,) = _masks(body, 1, self._session)
        return {"revision": self._session.give(_number(request), ids, _revision(request))}

    def _withdraw(self, request: web.Request, body: bytes) -> dict[str, int]:
        return {"revision": self._session.withdraw(_number(request), _revision(request))}

    def _cut(self, request: web.Request, body: bytes) -> web.Response:
        """The object in `?box=x,y,width,height`, or of the body's three masks: so far, inside, outside."""
        frame = self._session.frame(_number(request))
        if "box" in request.query:
            return _deflated(cut_box(frame, _pixels(request, "box", "x,y,width,height")))
        return _deflated(cut_scribbles(frame, *(mask > 0 for mask in _masks(body, 3, self._session))))

    def _line(self, request: web.Request, body: bytes) -> list[list[int]]:
        """The line along the object's border `?from=x,y&to=x,y`, a list of [x, y]."""
        start, end = (_pixels(request, name, "x,y") for name in ("from", "to"))
        return self._lines(_number(request), start).to(end).tolist()

    def _export(self, request: web.Request, body: bytes) -> web.FileResponse:
        path = self._work.export(_json(body).get("format"))
        return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="{path.name}"'})


def _in_thread(answer: Answer) -> Handler:
    """Answers in a thread: the page goes on while something is decoded, cut or written."""

    async def handle(request: web.Request) -> web.StreamResponse:
        found = await asyncio.to_thread(answer, request, await request.read())
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    return handle


@web.middleware
async def _said(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals in words and a status; what nobody expected is logged and answered with 500."""
    try:
        return await handler(request)
    except KeyError:
        return _refusal(404, "there is no such frame")
    except StaleError as error:
        return _refusal(409, str(error))
    except UserError as error:
        return _refusal(400, str(error))
    except web.HTTPException as error:
        return _refusal(error.status, error.text or error.reason)
    except Exception:
        logger.exception("%s %s", request.method, request.path)
        return _refusal(500, "something went wrong; the command's output says what")


def _refusal(status: int, words: str) -> web.Response:
    return web.json_response({"error": words}, status=status, headers=HEADERS)


def _deflated(mask: np.ndarray, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=zlib.compress(mask.astype(np.uint8).tobytes(), 1), headers=headers,
                        content_type="application/octet-stream")


def _number(request: web.Request) -> int:
    return int(request.match_info["number"])


def _pixels(request: web.Request, name: str, form: str) -> tuple[int, ...]:
    """A place or a box of the query, named in the form "x,y"."""
    words = request.query.get(name, "").split(",")
    if len(words) != len(form.split(",")) or not all(re.fullmatch("-?[0-9]{1,6}", word) for word in words):
        raise web.HTTPBadRequest(text=f"{name} is {form} in pixels")
    return tuple(map(int, words))


def _revision(request: web.Request) -> int:
    word = request.headers.get("X-Revision", "")
    if not word.isdecimal() or len(word) > 9:
        raise web.HTTPBadRequest(text="a change says which revision of its frame it changes")
    return int(word)


def _json(body: bytes) -> dict[str, Any]:
    try:
        contents = json.loads(body)
    except (ValueError, RecursionError):
        contents = None
    if not isinstance(contents, dict):
        raise web.HTTPBadRequest(text="the body is a JSON object")
    return contents


def _masks(body: bytes, count: int, session: Session) -> list[np.ndarray]:
    """`count` masks of the video's size, uint8 [H,W], one after the other and deflated."""
    width, height = session.video.size
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(body, count * width * height + 1)
    except zlib.error:
        data = b""
    if len(data) != count * width * height:
        raise web.HTTPBadRequest(text=f"the body is {count} masks of {width}x{height} bytes, deflated")
    return list(np.frombuffer(data, np.uint8).reshape(count, height, width))
