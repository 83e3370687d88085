"""The OpenAPI 3.1 description of lists of routes, served at /openapi.json."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec

from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.route import (
    Content,
    Parameter,
    Route,
    RouteList,
    expanded,
    names_of,
    shown,
)
from edgeserve.version import __version__

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_STATUSES: Final = {
    400: "Malformed; the error names the field, the expected and the given value",
    401: "A key is needed",
    403: "Not allowed, or not switched on",
    404: "Unknown model, version, region or route",
    405: "Wrong method; Allow names the right ones",
    406: "Not acceptable",
    408: "Head or body did not arrive in time",
    413: "Larger than the server takes",
    414: "The URI is too long",
    415: "A content coding other than gzip and deflate",
    417: "An expectation other than 100-continue",
    431: "The head is too large",
    500: "The engine failed on every candidate of the chain",
    501: "Not supported by this server",
    503: "Queue full, draining, or not loaded; Retry-After says when to try again",
    504: "The deadline passed",
}
_ALWAYS: Final = (400, 401, 404, 405, 413, 414, 431)


@cache
def document(lists: tuple[RouteList[Any], ...]) -> Json:
    """The whole description."""
    schemas = _Schemas(lists)
    paths: Json = {}
    # Of two routes of one method and path the first one answers, whether it is described or not.
    taken: set[tuple[str, str]] = set()
    for listed in lists:
        for route in listed.routes:
            for operation, path in route.documented():
                if (route.method, path) not in taken:
                    described = _operation(operation, path, route, listed, schemas)
                    paths.setdefault(path, {})[route.method.lower()] = described
            taken.update((route.method, path) for path in expanded(shown(route.path)))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeserve",
            "version": __version__,
            "summary": ", ".join(listed.title for listed in lists if listed.title),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": name, "description": text}
            for listed in lists
            for name, text in listed.tags.items()
        ],
        "paths": paths,
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


class _Schemas:
    """The schema of each Python type in the lists, and the components that they refer to."""

    def __init__(self, lists: tuple[RouteList[Any], ...]) -> None:
        kinds = [kind for listed in lists for kind in _kinds(listed)]
        found, components = msgspec.json.schema_components(kinds, ref_template=_REF)
        renamed = {kind.__name__: name for listed in lists for name, kind in listed.schemas.items()}
        self._found = dict(zip(map(repr, kinds), _renamed(found, renamed), strict=True))
        self.components: Json = {
            renamed.get(name, name): schema | {"title": renamed.get(name, name)}
            for name, schema in sorted(_renamed(components, renamed).items())
        }

    def of(self, kind: Any) -> Json:
        if kind is bytes:
            return {"type": "string", "format": "binary"}
        found: Json = self._found[repr(kind)]
        return found


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    """A schema whose references follow the new names of components."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if reference is not None:
            name = reference.rpartition("/")[2]
            return {"$ref": _REF.format(name=names.get(name, name))}
        return {key: _renamed(value, names) for key, value in schema.items()}
    if isinstance(schema, list | tuple):
        return [_renamed(value, names) for value in schema]
    return schema


def _kinds(listed: RouteList[Any]) -> Iterator[Any]:
    """Every Python type that a description of the routes needs."""
    yield listed.error
    yield from (parameter.kind for parameter in listed.parameters)
    for route in listed.routes:
        yield from (parameter.kind for parameter in route.parameters)
        for content in (route.takes, route.gives, *route.answers.values()):
            if content is not None:
                yield from content.kinds.values()


def _operation(
    operation: str, path: str, route: Route[Any], listed: RouteList[Any], schemas: _Schemas
) -> Json:
    responses = {"200": _body(route.gives, schemas)}
    statuses = {*_ALWAYS, *route.errors, *((403,) if route.role is Role.CONTROL else ())}
    error = {"application/json": {"schema": schemas.of(listed.error)}}
    for status in sorted({*statuses, *route.answers}):
        special = route.answers.get(status)
        if special is None:
            responses[str(status)] = {"description": _STATUSES[status], "content": error}
        else:
            responses[str(status)] = _body(special, schemas)
    found: Json = {"tags": [route.tag], "operationId": operation, "summary": route.summary}
    parameters = [_parameter(parameter, schemas) for parameter in _parameters(path, route, listed)]
    if parameters:
        found["parameters"] = parameters
    if route.takes is not None:
        found["requestBody"] = {
            "content": _contents(route.takes, schemas),
            "required": route.takes.required,
        }
    if route.role is Role.OPEN:
        found["security"] = []
    return found | {"responses": responses}


def _parameters(path: str, route: Route[Any], listed: RouteList[Any]) -> Iterator[Parameter]:
    """Those named in the path, in its order, as the route describes them, or else all routes; then headers."""
    known = {parameter.name: parameter for parameter in (*listed.parameters, *route.parameters)}
    yield from (known[name] for name in names_of(path))
    yield from (parameter for parameter in route.parameters if parameter.where != "path")


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "schema": schemas.of(parameter.kind),
        "description": parameter.text,
    }


def _body(content: Content, schemas: _Schemas) -> Json:
    found: Json = {"description": content.text}
    return found | ({"content": _contents(content, schemas)} if content.kinds else {})


def _contents(content: Content, schemas: _Schemas) -> Json:
    found: Json = {media: {"schema": schemas.of(kind)} for media, kind in content.kinds.items()}
    if content.example is not None:
        next(iter(found.values()))["example"] = content.example
    return found
