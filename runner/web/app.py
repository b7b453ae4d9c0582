"""The routes: one for each shape of a path, the endpoints' and flowrun's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from itertools import count

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runner.plan import Endpoint
from runner.web.health import Readiness, StatusPage, livez
from runner.web.ingress import Ingress
from runner.web.projections import ProjectionPages
from runner.web.refusal import of_routing


def make_app(
    endpoints: Iterable[Endpoint],
    ingress: Ingress,
    readiness: Readiness,
    status: StatusPage,
    projections: ProjectionPages,
) -> Starlette:
    """An ASGI application that serves these endpoints and projections, and says how the process fares."""
    shapes: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        shapes.setdefault(_shape(endpoint.path), {})[endpoint.method] = endpoint
    routes = [Route("/livez", livez), Route("/readyz", readiness.readyz), Route("/status", status.status)]
    # What is written out goes before what stands for anything: /orders/new before /orders/{id}.
    routes += [
        Route(shape, _by_method(by_method, ingress), methods=list(by_method))
        for shape, by_method in sorted(shapes.items(), key=lambda item: [part[:1] == "{" for part in _parts(item[0])])
    ]
    routes.append(Route("/projections/{name}", projections.many, methods=["GET"]))
    routes.append(Route("/projections/{name}/{key:path}", projections.one, methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: of_routing})
    app.router.redirect_slashes = False
    return app


def _by_method(by_method: dict[str, Endpoint], ingress: Ingress) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return await ingress.serve(by_method[request.method], request)

    return serve


def _shape(path: str) -> str:
    """The path with its parameters called by their number: endpoints may call the same one differently."""
    number = count()
    return "/".join(f"{{p{next(number)}}}" if part[:1] == "{" else part for part in _parts(path))


def _parts(path: str) -> list[str]:
    return path.split("/")
