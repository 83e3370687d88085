"""Whatever comes as a body of any media type is a request that the model can run, or an error that says why not."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.errors import EdgeServeError
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.http.route import NoRoute
from edgeserve.serve.metrics.reasons import meaning_of
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.request import InferRequest
from edgeserve.serve.protocols.bodies import dialects, long, tables, values
from edgeserve.serve.protocols.sagemaker.codec import TRITON, InvocationCodec, Invocations
from edgeserve.serve.protocols.v2.codec import V2
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from tests.conformance.models import echo_bundle
from tests.seeing import boxes_bundle, colours_bundle, photograph
from tests.serve.found import found_bundle
from tests.serve.protocols.asking import form
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.fuzzing import WORDS, computed, damaged
from tests.serve.protocols.opened import opened

LIMITS: Final = Limits(body_bytes=1 << 20, elements=1 << 16, output_bytes=1 << 20)
INVOCATIONS: Final = Invocations(LIMITS, V2(LIMITS, SharedMemory(())))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ServedModel]:
    folder = tmp_path_factory.mktemp("fuzz")
    bundles = (doubling_bundle, colours_bundle, boxes_bundle, found_bundle, echo_bundle)
    return [opened(bundle(folder)) for bundle in bundles]


def npy(values: Any, dtype: Any = np.float32) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype))
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def compressed(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def triton() -> tuple[bytes, str]:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}  # fmt: skip
    start = json.dumps({"inputs": [entry]}).encode()
    return start + bytes(8), f"{TRITON};json-header-size={len(start)}"


B64: Final = base64.b64encode(photograph()).decode()
FORM: Final = form(("file", "p.jpg", photograph()), ("other", "q.jpg", photograph()))
# Bodies that are right for one of the models, with their media types.
RIGHT: Final[list[tuple[bytes, str]]] = [
    (b"[[1,2],[3,4]]", "application/json"),
    (b'{"instances":[[1,2]],"parameters":{"top_k":2,"threshold":0.1}}', "application/json"),
    (b'{"inputs":{"x":[[1,2],[-3,4]],"ids":[1,2]}}', "application/json"),
    (b'{"input_data":{"columns":[0,1],"index":[0],"data":[[1,2]]}}', "application/json"),
    (b'{"Inputs":{"data":[[1,2]]}}', "application/json; charset=utf-8"),
    (json.dumps({"instances": [{"b64": B64}]}).encode(), "application/json"),
    (json.dumps({"image": B64}).encode(), "application/json"),
    (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}', "application/json"),
    (b'{"half":[1,2],"long":[1,2],"byte":[1,2],"flag":[true,false],"text":["a",""]}\n', "application/jsonlines"),
    (b"1,2\n3,4\n", "text/csv"),
    (b"x,y\n1,2\n", "text/csv; header=present"),
    (npy([[1, 2]]), "application/x-npy"),
    (npz(x=np.float32([[1, 2]]), ids=np.int64([1])), "application/x-npz"),
    (compressed(x=np.float32([[1, 2]] * 20)), "application/x-npz"),
    (photograph(), "image/jpeg"),
    (photograph(kind="PNG"), "application/octet-stream"),
    FORM,
    form(("x", "", b"[[1, 2]]")),
    form(("x", "", b"[[1, 2]]"), ("ids", "", b"[7]")),
    triton(),
]  # fmt: skip
MEDIA: Final = sorted({media for _, media in RIGHT} | {"", "text/plain", "application/x-nothing", ";;", "a/b;c"})  # fmt: skip
ACCEPTS: Final = ("", "*/*", "text/csv", "application/x-npy", "application/x-npz", "application/jsonlines", "text/html", ",;q=x", TRITON)  # fmt: skip
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(("x", "ids", "instances", "inputs", "b64", "data", "name", "shape"))
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, str, str]:
    """A body, its media type, and what is accepted: right, damaged, or made up."""
    body, media = draw(st.sampled_from(RIGHT))
    kind = draw(st.sampled_from(("right", "damaged", "damaged", "json", "bytes")))
    if kind == "damaged":
        body = damaged(draw, body, WORDS)
    elif kind == "json":
        body, media = json.dumps(draw(VALUES)).encode(), "application/json"
    elif kind == "bytes":
        body = draw(st.binary(max_size=64))
    if draw(st.integers(0, 3)) == 0:
        media = draw(st.sampled_from(MEDIA))
    return body, media, draw(st.sampled_from(ACCEPTS))


def check(codecs: Sequence[InvocationCodec], case: tuple[bytes, str, str]) -> None:
    body, media, accept = case
    headers = {b"content-type": media.encode(), b"accept": accept.encode()}
    for codec in codecs:
        try:
            terms = INVOCATIONS.terms(headers)
            codec.check_size(len(body), terms)
            assert codec.text_bytes(len(body), terms) >= 0
            request = codec.decode(body, terms)
            assert codec.interface.check(request.inputs) == request.rows
            outputs = computed(codec.model, request.rows)
            assert codec.written_bytes(request, outputs) >= 0
            response = codec.encode(request, outputs, codec.model.bundle.manifest.chain[0])
            assert response.form.status == 200
            assert all(isinstance(part, bytes | memoryview) for part in response.parts)
        except (NoRoute, BodyTooLarge):
            continue
        except EdgeServeError as error:
            failed = error
        else:
            continue
        assert meaning_of(failed).http in (400, 403, 404), (failed, case)


@given(bodies())
@settings(max_examples=400)
def test_any_body_is_run_or_refused(
    models: Sequence[ServedModel], case: tuple[bytes, str, str]
) -> None:
    check([INVOCATIONS.codec(model) for model in models], case)


@pytest.mark.slow
@given(bodies())
@settings(max_examples=100_000, suppress_health_check=list(HealthCheck))
def test_a_hundred_thousand_bodies_are_run_or_refused(
    models: Sequence[ServedModel], case: tuple[bytes, str, str]
) -> None:
    check([INVOCATIONS.codec(model) for model in models], case)


def read_by(codec: InvocationCodec, case: tuple[bytes, str, str]) -> InferRequest | None:
    """The request that a body makes; None for one that is refused."""
    body, media, accept = case
    headers = {b"content-type": media.encode(), b"accept": accept.encode()}
    try:
        return codec.decode(body, INVOCATIONS.terms(headers))
    except (EdgeServeError, NoRoute, BodyTooLarge):
        return None


@given(bodies())
@settings(max_examples=200)
def test_what_is_read_in_pieces_means_the_same(
    models: Sequence[ServedModel], case: tuple[bytes, str, str]
) -> None:
    codecs = [INVOCATIONS.codec(model) for model in models]
    short = [read_by(codec, case) for codec in codecs]
    with pytest.MonkeyPatch.context() as patch:
        for module in (long, values, dialects, tables):
            patch.setattr(module, "LONG_BYTES", 4)
        patch.setattr("edgeserve.wire.json._PIECE", 8)
        pieces = [read_by(codec, case) for codec in codecs]
    for whole, other in zip(short, pieces, strict=True):
        if other is None:  # NaN and Infinity are read in short texts alone
            continue
        assert whole is not None, case
        for name, array in whole.inputs.items():
            np.testing.assert_array_equal(array, other.inputs[name], str(case))
            assert array.dtype == other.inputs[name].dtype


def test_the_bodies_that_are_right_are_run(models: Sequence[ServedModel]) -> None:
    """Each by at least one of the models; otherwise the others would test nothing."""
    for body, media in RIGHT:
        run = 0
        for model in models:
            codec = INVOCATIONS.codec(model)
            try:
                codec.decode(body, INVOCATIONS.terms({b"content-type": media.encode()}))
            except EdgeServeError:
                continue
            run += 1
        assert run, (body, media)
