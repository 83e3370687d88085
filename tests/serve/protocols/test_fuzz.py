"""Whatever comes as a body to TorchServe's, Vertex AI's and Azure ML's routes, and to predict, is run or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings

from edgeserve.errors import EdgeServeError
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.http.route import NoRoute
from edgeserve.serve.metrics.reasons import meaning_of
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.azureml.codec import AzureMl
from edgeserve.serve.protocols.torchserve.codec import TorchServe
from edgeserve.serve.protocols.v2.codec import V2
from edgeserve.serve.protocols.v2.images import Predict
from edgeserve.serve.protocols.vertex.codec import Vertex
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from tests.conformance.models import echo_bundle
from tests.seeing import boxes_bundle, colours_bundle
from tests.serve.found import found_bundle
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.fuzzing import computed
from tests.serve.protocols.opened import opened
from tests.serve.protocols.sagemaker.test_fuzz import bodies

LIMITS: Final = Limits(body_bytes=1 << 20, elements=1 << 16, output_bytes=1 << 20)
SPEAKS_V2: Final = V2(LIMITS, SharedMemory(()))
PROTOCOLS: Final[Mapping[str, Any]] = {
    "torchserve": TorchServe(LIMITS),
    "vertex": Vertex(LIMITS, SPEAKS_V2, wrapped=True),
    "azureml": AzureMl(LIMITS, SPEAKS_V2),
    "predict": Predict(SPEAKS_V2, LIMITS),
}
# The other two read with the codec that SageMaker's test shows a hundred thousand bodies.
MANY: Final = {"torchserve": 100_000, "vertex": 20_000, "azureml": 20_000, "predict": 100_000}
Case = tuple[bytes, str, str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ServedModel]:
    folder = tmp_path_factory.mktemp("fuzz")
    bundles = (doubling_bundle, colours_bundle, boxes_bundle, found_bundle, echo_bundle)
    return [opened(bundle(folder)) for bundle in bundles]


def check(name: str, models: Sequence[ServedModel]) -> Callable[[Case], None]:
    protocol = PROTOCOLS[name]
    codecs = [protocol.codec(model) for model in models]

    def one(case: Case) -> None:
        body, media, accept = case
        headers = {b"content-type": media.encode(), b"accept": accept.encode()}
        codec = codecs[(len(body) + len(media)) % len(codecs)]
        try:
            terms = protocol.terms(headers)
            codec.check_size(len(body), terms)
            assert codec.text_bytes(len(body), terms) >= 0
            request = codec.decode(body, terms)
            assert codec.interface.check(request.inputs) == request.rows
            outputs = computed(codec.model, request.rows)
            assert codec.written_bytes(request, outputs) >= 0
            answer = codec.encode(request, outputs, codec.model.bundle.manifest.chain[0])
            assert answer.form.status == 200
        except (NoRoute, BodyTooLarge):
            return
        except EdgeServeError as error:
            failed = error
        else:
            return
        assert meaning_of(failed).http in (400, 403, 404), (failed, case)

    return one


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_any_body_is_run_or_refused(name: str, models: Sequence[ServedModel]) -> None:
    fuzz(check(name, models), 150)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_many_bodies_are_run_or_refused(name: str, models: Sequence[ServedModel]) -> None:
    fuzz(check(name, models), MANY[name])


def fuzz(one: Callable[[Case], None], count: int) -> None:
    @given(bodies())
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    def run(case: Case) -> None:
        one(case)

    run()
