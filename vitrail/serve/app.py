"""The HTTP API of a model: a picture's bytes in, classes or features out as JSON, and a page to try it on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from torch import Tensor

from vitrail import __version__
from vitrail.config import size_text
from vitrail.cost import parameters
from vitrail.data.ahead import cores
from vitrail.data.preprocess import load
from vitrail.data.read import UnreadableImage, pixel_limit
from vitrail.errors import UserError
from vitrail.report.serving import render
from vitrail.serve.together import Together
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.prediction import likeliest

BATCH = 32
"""Pictures that the model is given at once, at most."""
SHOWN = 5
"""Classes in an answer, unless another number is asked for."""
MOST_BYTES = 32 * 2**20
"""Of a picture's file."""
MOST_PIXELS = 50_000_000
"""Pictures with more are not decoded, unless VITRAIL_MAX_PIXELS says otherwise: of a stranger's file of a megabyte, a
gigabyte could come."""
MOST_WAITING = 64
"""Pictures that are received, read or answered at a time; whoever brings another is asked to come again."""
SECONDS = 30.0
"""That a picture may take to arrive."""
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: nothing but itself, the answers, and the pictures it is given."""


class Label(BaseModel):
    """A class, and how likely it is."""

    label: str
    probability: float = Field(ge=0, le=1)


class Predicted(BaseModel):
    """The likeliest classes of a picture, best first."""

    labels: list[Label]


class Embedded(BaseModel):
    """What the classifier sees of a picture."""

    features: list[float]


class About(BaseModel):
    """The model that answers."""

    name: str
    classes: list[str] = Field(description="Empty: there is no trained classifier, and it gives features alone.")
    image_size: tuple[int, int] = Field(description="Height and width that pictures are brought to.")
    features: int
    parameters: int
    runtime: str
    vitrail: str


class Refused(BaseModel):
    """Why there is no answer, in a sentence."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    403: {"model": Refused, "description": "A page of another site asks."},
    408: {"model": Refused, "description": "The picture took too long to arrive, or did not arrive whole."},
    413: {"model": Refused, "description": "The file is too large."},
    415: {"model": Refused, "description": "A form, where the bytes of a picture are expected."},
    422: {"model": Refused, "description": "It is no picture, or a damaged one; or a parameter is wrong."},
    421: {"model": Refused, "description": "It is asked by a name that is not its own."},
    503: {"model": Refused, "description": "Too many pictures at a time: come again in a second."},
}
NO_CLASSIFIER: dict[int | str, dict[str, Any]] = {
    404: {"model": Refused, "description": "There is no trained classifier."}
}
PICTURE = {
    "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}


class _Answer(NamedTuple):
    """Of one picture."""

    features: Tensor
    """(F,)"""
    logits: Tensor | None
    """(classes,), or None without a classifier."""


def application(
    classifier: Classifier, name: str, batch_size: int = BATCH, hosts: Collection[str] | None = None
) -> FastAPI:
    """The API over a model that is loaded.

    ``POST /predict?top=5`` and ``POST /embed`` take the bytes of one picture, in any format that ``read_image`` knows;
    what arrives while the model is busy runs together. ``GET /model`` says what it is, ``GET /health`` that it is
    there, ``GET /`` is a page, and ``GET /openapi.json`` describes the API to machines.

    Args:
        name: of the model, for people.
        batch_size: pictures that the model is given at once, at most.
        hosts: names and addresses that it may be asked by; None: any. A page of another site can give this machine a
            name of its own, and would be allowed to read the answers.

    Raises:
        UserError: ``batch_size`` is less than 1, a host has no name, or VITRAIL_MAX_PIXELS is no number.
    """
    if batch_size < 1:
        raise UserError(f"A model cannot be given {batch_size} pictures at once: say 1 or more.")
    known = None if hosts is None else host_names(hosts)
    most_pixels = pixel_limit() if os.environ.get("VITRAIL_MAX_PIXELS") else MOST_PIXELS
    card, predictor = classifier.card, classifier.predictor
    try:
        classes, unable = classifier.classes(), ""
    except UserError as error:
        classes, unable = (), str(error)
    about = About(
        name=name,
        classes=list(classes),
        image_size=card.preprocessing.size,
        features=card.architecture.feature_width,
        parameters=parameters(card.architecture),
        runtime=predictor.name,
        vitrail=__version__,
    )

    def run(images: Tensor) -> list[_Answer]:
        if not classes:
            return [_Answer(features, None) for features in predictor.features(images)]
        return [_Answer(*row) for row in zip(*predictor.logits(images), strict=True)]

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:  # threads begin here: a server may fork before
        read = partial(load, how=card.preprocessing, max_pixels=most_pixels, quick=predictor.quick)
        desk = app.state.desk = _Desk(Together(run, batch_size), read)
        yield
        await asyncio.to_thread(desk.close)

    async def ours(request: Request) -> None:
        if request.method == "POST" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise HTTPException(403, "A page of another site may not ask this server.")
        if known is not None and _host_name(request.headers.get("host", "")) not in known:
            raise HTTPException(
                421, f"This server may be asked by {' or '.join(known)} (vitrail serve --name adds one)."
            )

    # FastAPI's own pages of documentation would fetch scripts from elsewhere.
    app = FastAPI(
        title=f"Vitrail: {name}",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        dependencies=[Depends(ours)],
    )

    @app.post("/predict", openapi_extra=PICTURE, responses=REFUSALS | NO_CLASSIFIER)
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = SHOWN) -> Predicted:
        """The likeliest classes of the picture whose bytes are the request's body."""
        if unable:
            raise HTTPException(404, unable)
        logits = (await request.app.state.desk.answer(request)).logits
        assert logits is not None
        (labels,) = likeliest(logits[None], card, classes, top)
        return Predicted(labels=[Label(label=label, probability=probability) for label, probability in labels])

    @app.post("/embed", openapi_extra=PICTURE, responses=REFUSALS)
    async def embed(request: Request) -> Embedded:
        """The features of the picture whose bytes are the request's body."""
        answer = await request.app.state.desk.answer(request)
        return Embedded(features=answer.features.tolist())

    @app.get("/model")
    async def model() -> About:
        """What answers."""
        return about

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """That it does."""
        return {"status": "ok"}

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page(request: Request) -> HTMLResponse:
        facts = [
            ("Classes", f"{len(classes):,}" if classes else "none"),
            ("Pictures", f"brought to {size_text(about.image_size)} pixels"),
            ("Parameters", f"{about.parameters:,}"),
            ("Run by", about.runtime),
        ]
        html = render(name, facts, classes, unable, str(request.base_url), SHOWN, MOST_BYTES)
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return JSONResponse({"detail": f"{said}."}, 422)

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:  # which is raised again, and logged
        return JSONResponse({"detail": "Something went wrong here; the server's log says what."}, 500)

    return app


class _Desk:
    """Where pictures are taken in, read, and handed to the model."""

    def __init__(self, model: Together[_Answer], read: Callable[[bytes], Tensor]) -> None:
        self._model = model
        self._read = read
        self._readers = ThreadPoolExecutor(min(cores(), 8), thread_name_prefix="vitrail-read")
        self._waiting = 0

    async def answer(self, request: Request) -> _Answer:
        """What the model gives for the picture in a request.

        Raises:
            HTTPException: it is refused; ``REFUSALS`` says why.
        """
        with self._place():
            # The file is handed over, not held here too.
            read = partial(self._read, await _body(request))
            reading = asyncio.get_running_loop().run_in_executor(self._readers, read)
            del read
            try:
                image = await reading
            except UnreadableImage as error:
                raise HTTPException(422, f"The picture cannot be read: {error.reason}.") from error
            return await asyncio.wrap_future(self._model.submit(image))

    def close(self) -> None:
        """Finish what was taken in."""
        self._readers.shutdown()
        self._model.close()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= MOST_WAITING:
            raise HTTPException(503, f"{MOST_WAITING} pictures are waiting: come again.", {"Retry-After": "1"})
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


def host_names(hosts: Collection[str]) -> tuple[str, ...]:
    """As they are asked by: ``https://Photos.example:8443`` is ``photos.example``.

    Raises:
        UserError: one is no name.
    """
    found = {host: _host_name(host.rpartition("://")[2]) for host in map(str.strip, hosts)}
    for host, name in found.items():
        if not name:
            raise UserError(f"{host!r} is no name that a server can be asked by: say one such as photos.example.")
    return tuple(dict.fromkeys(found.values()))


def _host_name(text: str) -> str:
    """Without its port, in small letters; empty: there is none."""
    with suppress(ValueError):
        return str(ip_address(text))  # of IPv6 without the brackets, which are no part of it
    with suppress(ValueError):  # half a bracket
        return urlsplit(f"//{text}").hostname or ""
    return ""


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "Send the bytes of one picture as they are, not a form: curl --data-binary @photo.jpg")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MOST_BYTES:
        raise _too_large()
    try:
        return await asyncio.wait_for(_received(request), SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"The picture did not arrive within {SECONDS:g} seconds.") from None
    except ClientDisconnect:
        raise HTTPException(408, "The picture did not arrive whole.") from None


async def _received(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> HTTPException:
    return HTTPException(413, f"A picture's file may have {MOST_BYTES // 2**20} MiB at most.")
