"""The OpenAPI 3.1 description of the HTTP routes, served at /openapi.json.

docs/openapi.json is this, written by `python -m edgeserve.serve.protocols.v2.openapi docs/openapi.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from edgeserve.tensors import DTYPES
from edgeserve.version import __version__

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_TAGS: Final = {
    "health": "Open to everybody.",
    "models": "What is served.",
    "inference": "The Open Inference Protocol v2.",
    "control": "Changes the server; needs the control role and has to be switched on.",
}


def document() -> Json:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeserve",
            "version": __version__,
            "summary": "Open Inference Protocol v2 with Triton's extensions",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": n, "description": d} for n, d in _TAGS.items()],
        "paths": {**_health(), **_models(), **_inference(), **_control()},
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(
    description: str, schema: str | Json | None = None, kind: str = "application/json"
) -> Json:
    if schema is None:
        return {"description": description}
    shown = _ref(schema) if isinstance(schema, str) else schema
    return {"description": description, "content": {kind: {"schema": shown}}}


_ERRORS: Final = {
    400: "Malformed; the error names the field, what was expected and what came",
    401: "A key is needed",
    403: "Not allowed, or not switched on",
    404: "Unknown model, version, region or route",
    405: "Wrong method; Allow names the right one",
    406: "Not acceptable",
    408: "Head or body did not arrive in time",
    413: "Larger than the server takes",
    414: "The URI is too long",
    415: "A content coding other than gzip and deflate",
    417: "An expectation other than 100-continue",
    431: "The head is too large",
    500: "The engine failed, on every candidate of the chain",
    503: "Queue full, draining, or not loaded; Retry-After says when to try again",
    504: "The deadline passed",
}
_ALWAYS: Final = (400, 401, 404, 405, 413, 414, 431)


def _operation(
    tag: str, identity: str, summary: str, ok: Json, *statuses: int, **more: Any
) -> Json:
    codes = sorted({*_ALWAYS, *statuses})
    return {
        "tags": [tag],
        "operationId": identity,
        "summary": summary,
        **more,
        "responses": {"200": ok} | {str(c): _answer(_ERRORS[c], "Error") for c in codes},
    }


def _path(name: str, schema: Json, description: str) -> Json:
    return {
        "name": name, "in": "path", "required": True, "schema": schema, "description": description,
    }  # fmt: skip


_MODEL: Final = _path(
    "model", {"type": "string", "minLength": 1, "maxLength": 128}, "A model's name"
)
_VERSION: Final = _path("version", {"type": "string", "pattern": "^[0-9]{1,18}$"}, "Its version")
_REGION: Final = _path(
    "region", {"type": "string", "minLength": 1, "maxLength": 200}, "A region's name"
)


def _health() -> Json:
    def get(identity: str, summary: str, schema: str, *statuses: int) -> Json:
        ok = _answer("Yes", schema)
        operation = _operation("health", identity, summary, ok, *statuses)
        if 503 in statuses:
            operation["responses"]["503"] = _answer("No", schema)
        return {"get": operation | {"security": []}}

    return {
        "/v2/health/live": get("live", "Whether the process runs", "Live"),
        "/v2/health/ready": get("ready", "Whether models serve", "Ready", 503),
    }


def _models() -> Json:
    def get(identity: str, summary: str, schema: str | Json, *path: Json) -> Json:
        more = {"parameters": list(path)} if path else {}
        statuses = (503,) if path else ()
        ok = _answer("As described", schema)
        return {"get": _operation("models", identity, summary, ok, *statuses, **more)}

    def of_model(suffix: str, identity: str, summary: str, schema: str) -> Json:
        return {
            f"/v2/models/{{model}}{suffix}": get(identity, summary, schema, _MODEL),
            f"/v2/models/{{model}}/versions/{{version}}{suffix}": get(
                f"{identity}OfVersion", summary, schema, _MODEL, _VERSION
            ),
        }

    text = _answer(
        "Prometheus text", {"type": "string"}, "text/plain; version=0.0.4; charset=utf-8"
    )
    index = _operation(
        "models", "repositoryIndex", "The models that can be served",
        _answer("Every version", {"type": "array", "items": _ref("IndexEntry")}),
        requestBody={"content": {"application/json": {"schema": _ref("IndexRequest")}}},
    )  # fmt: skip
    page = _answer("The page, or its data where Accept names JSON alone", {"type": "object"})
    page["content"]["text/html; charset=utf-8"] = {"schema": {"type": "string"}}
    return {
        "/status": {"get": _operation("models", "status", "The status page", page)},
        "/v2": get("server", "Name, version, extensions", "Server"),
        "/v2/models": get("list", "The models, and what serves them", "Models"),
        "/v2/models/stats": get("statistics", "Statistics of all models", "Statistics"),
        **of_model("", "metadata", "Inputs and outputs", "Metadata"),
        **of_model("/ready", "modelReady", "Whether a model serves", "ModelReady"),
        **of_model("/config", "config", "Its configuration, in Triton's words", "Config"),
        **of_model("/stats", "modelStatistics", "Its statistics", "Statistics"),
        "/v2/repository/index": {"post": index},
        "/v2/logging": get("logging", "The log settings, read-only", "Settings"),
        "/v2/trace/setting": get("trace", "The trace settings, read-only", "Settings"),
        "/metrics": {"get": _operation("models", "metrics", "Counters and histograms", text)},
        "/openapi.json": get("openapi", "This document", {"type": "object"}),
    }


def _inference() -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    body = {
        "required": True,
        "content": {
            "application/json": {
                "schema": _ref("InferRequest"),
                "example": {
                    "inputs": [
                        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
                    ]
                },
            },
            "application/octet-stream": binary,
        },
    }
    header = {
        "name": "Inference-Header-Content-Length", "in": "header", "required": False,
        "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of JSON before the binary tensors; 0: the body is one tensor alone",
    }  # fmt: skip
    ok = _answer("The outputs", "InferResponse")
    ok["content"]["application/octet-stream"] = binary

    def post(identity: str, *path: Json) -> Json:
        return {
            "post": _operation(
                "inference", identity, "Run a model", ok, 403, 408, 415, 500, 503, 504,
                parameters=[*path, header], requestBody=body,
            )
        }  # fmt: skip

    return {
        "/v2/models/{model}/infer": post("infer", _MODEL),
        "/v2/models/{model}/versions/{version}/infer": post("inferVersion", _MODEL, _VERSION),
    }


def _control() -> Json:
    def post(identity: str, summary: str, path: list[Json], body: str | None, *codes: int) -> Json:
        more: Json = {"parameters": path} if path else {}
        if body is not None:
            content = {"application/json": {"schema": _ref(body)}}
            more["requestBody"] = {"content": content, "required": body == "RegionRequest"}
        ok = _answer("Done")
        return {"post": _operation("control", identity, summary, ok, 403, *codes, **more)}

    def status(identity: str, summary: str, *path: Json) -> Json:
        regions = _answer("The regions", {"type": "array", "items": _ref("Region")})
        more = {"parameters": list(path)} if path else {}
        return {"get": _operation("control", identity, summary, regions, 403, **more)}

    memory = "/v2/systemsharedmemory"
    return {
        "/v2/repository/models/{model}/load": post(
            "load", "Load a model, or load it again", [_MODEL], "LoadRequest", 500, 503
        ),
        "/v2/repository/models/{model}/unload": post(
            "unload", "Stop serving a model", [_MODEL], "UnloadRequest", 500
        ),
        f"{memory}/status": status("regions", "Registered shared memory"),
        f"{memory}/region/{{region}}/status": status("region", "One region", _REGION),
        f"{memory}/region/{{region}}/register": post(
            "register", "Register a region", [_REGION], "RegionRequest"
        ),
        f"{memory}/region/{{region}}/unregister": post(
            "unregister", "Forget a region", [_path("region", _TEXT, "Its name")], None
        ),
        f"{memory}/unregister": post("unregisterAll", "Forget all regions", [], None),
    }


def _object(required: str = "", /, **properties: Any) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return schema | ({"required": required.split()} if required else {})


_FLAG: Final[Json] = {"type": "boolean"}
_SIZE: Final[Json] = {"type": "integer", "minimum": 0}
_LIST: Final[Json] = {"type": "array"}
_SHAPE: Final[Json] = {"type": "array", "items": {"type": "integer"}}
_PARAMETERS: Final[Json] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_DATATYPE: Final[Json] = {"type": "string", "enum": list(DTYPES)}
_TENSOR: Final[Json] = _object("name datatype shape", name=_TEXT, datatype=_DATATYPE, shape=_SHAPE)

_SCHEMAS: Final[Json] = {
    "Error": _object("error", error=_TEXT),
    "Live": _object("live", live=_FLAG),
    "Ready": _object("ready live", ready=_FLAG, live=_FLAG, models={"type": "object"}),
    "ModelReady": _object("name ready", name=_TEXT, ready=_FLAG),
    "Server": _object(
        "name version extensions", name=_TEXT, version=_TEXT, extensions=_LIST | {"items": _TEXT}
    ),
    "Models": _object("models", models=_LIST | {"items": _object("name", name=_TEXT)}),
    "Metadata": _object(
        "name versions platform inputs outputs",
        name=_TEXT,
        versions=_LIST | {"items": _TEXT},
        platform=_TEXT,
        inputs=_LIST | {"items": _TENSOR},
        outputs=_LIST | {"items": _TENSOR},
    ),
    "Config": _object("name platform", name=_TEXT, platform=_TEXT, max_batch_size=_SIZE),
    "Statistics": _object("model_stats", model_stats=_LIST | {"items": {"type": "object"}}),
    "Settings": {"type": "object"},
    "IndexRequest": _object(ready=_FLAG),
    "IndexEntry": _object(
        "name version state",
        name=_TEXT,
        version=_TEXT,
        state={"type": "string", "enum": ["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]},
        reason=_TEXT,
    ),
    "LoadRequest": _object(parameters={"type": "object", "maxProperties": 0}),
    "UnloadRequest": _object(parameters=_object(unload_dependents=_FLAG)),
    "RegionRequest": _object(
        "key byte_size", key=_TEXT, offset=_SIZE, byte_size={"type": "integer", "minimum": 1}
    ),
    "Region": _object(
        "name key offset byte_size", name=_TEXT, key=_TEXT, offset=_SIZE, byte_size=_SIZE
    ),
    "InferRequest": _object(
        "inputs",
        id=_TEXT,
        parameters=_PARAMETERS,
        inputs=_LIST | {"items": _ref("InferInput")},
        outputs=_LIST | {"items": _object("name", name=_TEXT, parameters=_PARAMETERS)},
    )
    | {"additionalProperties": False},
    "InferInput": _object(
        "name shape datatype",
        name=_TEXT,
        shape=_LIST | {"items": _SIZE},
        datatype=_DATATYPE,
        parameters=_PARAMETERS,
        data=_LIST | {"description": "Nested or flat, row-major; absent for binary tensors"},
    ),
    "InferResponse": _object(
        "model_name model_version outputs",
        id=_TEXT,
        model_name=_TEXT,
        model_version=_TEXT,
        parameters=_PARAMETERS,
        outputs=_LIST | {"items": _ref("InferOutput")},
    ),
    "InferOutput": _object(
        "name datatype shape",
        name=_TEXT,
        datatype=_DATATYPE,
        shape=_SHAPE,
        parameters=_PARAMETERS,
        data=_LIST,
    ),
}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(document(), indent=1) + "\n")
