"""The description of the scoring route, of one model: Swagger 2.0, OpenAPI 3.0 and 3.1, as Azure Machine Learning's
inference server offers them."""

from __future__ import annotations

from typing import Any, Final

from edgeserve.tensors import DTYPES, Interface, TensorSpec

Json = dict[str, Any]

VERSIONS: Final = ("2", "3", "3.1")
_HEALTHY: Final = "200 with the text Healthy if the server is ready"
_SCORE: Final = "Run the model"


def swagger(version: str, name: str, model_version: str, interface: Interface) -> Json:
    """The document in one of VERSIONS."""
    base = "#/definitions/" if version == "2" else "#/components/schemas/"
    schemas = {
        "ServiceInput": _object("data", interface.inputs, interface),
        "ServiceOutput": {"type": "array", "items": {}},
        "ErrorResponse": {"type": "object", "properties": {"message": {"type": "string"}}},
    }
    info = {
        "title": name,
        "description": f"Scores with model {name}, served by edgeserve",
        "version": model_version,
    }
    if version == "2":
        return {
            "swagger": "2.0",
            "info": info,
            "consumes": ["application/json"],
            "produces": ["application/json"],
            "paths": {
                "/": {"get": _old("ServiceHealthCheck", _HEALTHY, {"type": "string"}, base)},
                "/score": {
                    "post": {
                        **_old("RunMLService", _SCORE, {"$ref": f"{base}ServiceOutput"}, base),
                        "parameters": [
                            {
                                "name": "serviceInputPayload",
                                "in": "body",
                                "schema": {"$ref": f"{base}ServiceInput"},
                            }
                        ],
                    }
                },
            },
            "definitions": schemas,
        }
    return {
        "openapi": "3.1.0" if version == "3.1" else "3.0.3",
        "info": info,
        "paths": {
            "/": {"get": _new("ServiceHealthCheck", _HEALTHY, {"type": "string"}, base)},
            "/score": {
                "post": {
                    **_new("RunMLService", _SCORE, {"$ref": f"{base}ServiceOutput"}, base),
                    "requestBody": {
                        "content": {"application/json": {"schema": {"$ref": f"{base}ServiceInput"}}}
                    },
                }
            },
        },
        "components": {"schemas": schemas},
    }


def _old(operation: str, text: str, schema: Json, base: str) -> Json:
    failed = {"description": "An error", "schema": {"$ref": f"{base}ErrorResponse"}}
    return {
        "operationId": operation,
        "description": text,
        "responses": {"200": {"description": "Done", "schema": schema}, "default": failed},
    }


def _new(operation: str, text: str, schema: Json, base: str) -> Json:
    def content(description: str, of: Json) -> Json:
        return {"description": description, "content": {"application/json": {"schema": of}}}

    failed = content("An error", {"$ref": f"{base}ErrorResponse"})
    return {
        "operationId": operation,
        "description": text,
        "responses": {"200": content("Done", schema), "default": failed},
    }


def _object(key: str, specs: tuple[TensorSpec, ...], interface: Interface) -> Json:
    """A list of rows: each a value, or an object with one for each input."""
    rows = [_row(spec, interface) for spec in specs]
    if len(rows) == 1:
        (item,) = rows
    else:
        named = {spec.name: row for spec, row in zip(specs, rows, strict=True)}
        item = {"type": "object", "properties": named, "required": list(named)}
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"type": "array", "items": item}},
    }


def _row(spec: TensorSpec, interface: Interface) -> Json:
    kind = DTYPES[spec.dtype].kind
    found: Json = {
        "type": {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}.get(kind, "string")
    }
    rank = len(spec.shape) - (1 if interface.max_batch > 0 else 0)
    for _ in range(rank):
        found = {"type": "array", "items": found}
    return found
