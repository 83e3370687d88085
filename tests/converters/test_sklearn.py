"""scikit-learn models, made by scikit-learn in the tool environment, as ONNX in this one."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeserve.conversion.options import SourceOptions
from edgeserve.errors import EdgeServeError, UnsupportedModel
from tests.converters.frameworks import imported, interface, load, run_onnx, run_script

pytestmark = pytest.mark.slow

MAKE = """
import pickle
import joblib, numpy as np, skops.io
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC

table, label = make_classification(300, 6, n_informative=4, n_classes=3, random_state=0)
table = (table * [1, 10, 100, 1, 1, 0.1] + [0, 5, 900, 0, 0, 0]).astype(np.float32)
two, value = label == 1, table @ np.arange(6)
names = np.array(["ant", "bee", "cat"])[label]
models = {
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()).fit(table, label),
    "named": make_pipeline(StandardScaler(), LogisticRegression()).fit(table, names),
    "forest": RandomForestClassifier(12, random_state=0).fit(table, label),
    "boosted": HistGradientBoostingClassifier(max_iter=8).fit(table, label),
    "svc": make_pipeline(StandardScaler(), SVC()).fit(table, label),
    "linear-svc": make_pipeline(StandardScaler(), LinearSVC()).fit(table, two.astype(int)),
    "sgd": make_pipeline(StandardScaler(), SGDClassifier(random_state=0)).fit(table, label),
    "search": GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [1, 2]}
    ).fit(table, label),
    "regression": make_pipeline(StandardScaler(), LinearRegression()).fit(table, value),
    "forest-regression": RandomForestRegressor(8, random_state=0).fit(table, value),
    "boosted-regression": HistGradientBoostingRegressor(max_iter=8).fit(table, value),
    "clusters": make_pipeline(StandardScaler(), KMeans(3, random_state=0)).fit(table),
    "components": make_pipeline(StandardScaler(), PCA(2)).fit(table),
}
answers = {}
for name, model in models.items():
    skops.io.dump(model, f"{name}.skops")
    ask = model.predict if hasattr(model, "predict") else model.transform
    answers[name] = ask(table[:50])
np.savez("answers.npz", table=table[:50], **answers)
joblib.dump(models["pipeline"], "pipeline.joblib")
with open("pipeline.pkl", "wb") as file:
    pickle.dump(models["pipeline"], file)
skops.io.dump(make_pipeline(FunctionTransformer(np.load), LogisticRegression()), "odd.skops")
columns = ColumnTransformer([("a", StandardScaler(), [0, 1])]).fit(table)
scaler = columns.transformers_[0][1]
columns.transformers_ = [("a", scaler, ["one", "two"])]  # as fitted on a data frame
skops.io.dump(columns, "columns.skops")
skops.io.dump(StandardScaler(), "unfitted.skops")
skops.io.dump(TfidfVectorizer().fit(["a text", "another one"]), "text.skops")
skops.io.dump({"a": 1}, "dictionary.skops")
"""

NAMES = [
    "pipeline", "named", "forest", "boosted", "svc", "linear-svc", "sgd", "search", "regression",
    "forest-regression", "boosted-regression", "clusters", "components",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sklearn")
    run_script("sklearn-skops-to-onnx", MAKE, folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_skops_gives_the_estimators_answers(made: Path, tmp_path: Path, name: str) -> None:
    found = imported(made / f"{name}.skops", tmp_path)
    answers = load(made / "answers.npz")
    got = next(iter(run_onnx(found.onnx, {"input": answers["table"]}).values()))
    wanted = answers[name].reshape(got.shape)
    if got.dtype.kind == "f":
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    else:
        np.testing.assert_array_equal(got, wanted)
    record = found.verification
    assert record is not None
    assert (record.framework, record.framework_version, record.samples) == (
        "scikit-learn",
        "1.9.1",
        4,
    )
    assert set(record.outputs) <= set(interface(found.onnx))


def test_classifiers_give_plain_tensors_of_any_batch(made: Path, tmp_path: Path) -> None:
    found = imported(made / "pipeline.skops", tmp_path)
    shapes = interface(found.onnx)
    assert shapes == {"input": ["batch", 6], "label": ["batch"], "probabilities": ["batch", 3]}


@pytest.mark.parametrize("file", ["pipeline.pkl", "pipeline.joblib"])
def test_a_pickle_is_opened_only_when_it_is_trusted(made: Path, tmp_path: Path, file: str) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        imported(made / file, tmp_path)
    assert file in raised.value.message
    assert "--trust-source" in str(raised.value.cause)
    found = imported(made / file, tmp_path, SourceOptions(trust_source=True))
    assert found.converter == "sklearn-pickle-to-onnx"
    answers = load(made / "answers.npz")
    got = run_onnx(found.onnx, {"input": answers["table"]})["label"]
    np.testing.assert_array_equal(got, answers["pipeline"])


def test_an_untrusted_pickle_executes_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(f"cbuiltins\nopen\n(V{proof}\nVw\ntR.".encode())
    with pytest.raises(UnsupportedModel):
        imported(evil, tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("odd.skops", ["not trusted", "numpy.load"]),
        ("unfitted.skops", ["not fitted"]),
        ("text.skops", ["TfidfVectorizer", "something else than a table"]),
        ("dictionary.skops", ["it holds a dict"]),
        ("columns.skops", ["picks columns by name", "by position"]),
        ("truncated.skops", ["not a complete skops file"]),
    ],
)
def test_skops_files_that_cannot_be_converted_say_why(
    made: Path, tmp_path: Path, file: str, said: list[str]
) -> None:
    if file == "truncated.skops":
        (made / file).write_bytes((made / "forest.skops").read_bytes()[:3000])
    refused(made / file, tmp_path, said)


def refused(path: Path, work: Path, said: list[str], options: SourceOptions | None = None) -> None:
    with pytest.raises(EdgeServeError) as raised:
        imported(path, work, options)
    assert path.name in raised.value.message
    for text in said:
        assert text in str(raised.value.cause)
    assert raised.value.exit_code == 2


def test_a_file_of_another_version_says_which(made: Path, tmp_path: Path) -> None:
    """Pickles and skops files alike."""
    pickled = tmp_path / "old.pkl"
    content = (made / "pipeline.pkl").read_bytes()
    assert b"1.9.1" in content
    pickled.write_bytes(content.replace(b"1.9.1", b"1.2.3"))
    refused(pickled, tmp_path, ["saved by scikit-learn 1.2.3"], SourceOptions(trust_source=True))
    old = tmp_path / "old.skops"
    with zipfile.ZipFile(made / "pipeline.skops") as before, zipfile.ZipFile(old, "w") as after:
        for name in before.namelist():
            after.writestr(name, re.sub(rb"1\.9\.1", b"1.2.3", before.read(name)))
    refused(old, tmp_path, ["saved by scikit-learn 1.2.3", "scikit-learn==1.2.3"])
