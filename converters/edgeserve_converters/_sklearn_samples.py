"""Inputs to try a scikit-learn model on, and what it answers, laid out as skl2onnx does. Standard library
only at module level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeserve_converters._verify import SAMPLES

_ROWS = 64
# Scores so close together may be ordered either way by rounding to f32.
_TIE = 1e-5


def sample_tables(model: Any, features: int, rng: Any) -> list[Any]:
    """`SAMPLES` tables f32 [64, features] in the range the model was fitted on, as far as it shows."""
    import numpy as np

    center, spread = _range(model, features)
    return [
        (center + spread * rng.normal(size=(_ROWS, features))).astype(np.float32)
        for _ in range(SAMPLES)
    ]


def _range(model: Any, features: int) -> tuple[Any, Any]:
    """Center and spread of each feature, from a scaler, trees or stored samples in the model."""
    import numpy as np

    center, spread = np.zeros(features), np.ones(features)
    for part in _parts(model):
        if getattr(part, "n_features_in_", features) != features:
            continue
        if getattr(part, "mean_", None) is not None and getattr(part, "scale_", None) is not None:
            return np.asarray(part.mean_), np.asarray(part.scale_)
        if hasattr(part, "data_min_") and hasattr(part, "data_max_"):
            low, high = np.asarray(part.data_min_), np.asarray(part.data_max_)
            return (low + high) / 2, (high - low) / 4
        if hasattr(part, "tree_"):
            # Thresholds of features that no tree splits by stay as they are.
            for feature in range(features):
                cuts = part.tree_.threshold[part.tree_.feature == feature]
                if len(cuts):
                    center[feature] = np.mean(cuts)
                    spread[feature] = np.std(cuts) or abs(np.mean(cuts)) / 2 or 1.0
            return center, spread
        stored = getattr(part, "_fit_X", getattr(part, "cluster_centers_", None))
        if isinstance(stored, np.ndarray) and stored.shape[1:] == (features,):
            return stored.mean(axis=0), stored.std(axis=0) + 1e-6
    return center, spread


def _parts(model: Any) -> list[Any]:
    """The estimator and those inside it that see the same features: a pipeline's first step, members."""
    inner: list[Any] = [step for _, step in list(getattr(model, "steps", []))[:1]]
    inner += [getattr(model, "best_estimator_", None)]
    members: Any = getattr(model, "estimators_", ())
    inner += list(members.ravel() if hasattr(members, "ravel") else members)[:1]
    return [model, *(part for one in inner if one is not None for part in _parts(one))]


def expected_outputs(model: Any, table: Any, got: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own outputs under the names and shapes of the ONNX file's `got`.

    Where a class label differs although the model's scores for both are the same but for rounding, the
    label of the ONNX file is as right. Raises RuntimeError (nothing to compare with), TypeError (several outputs).
    """
    import numpy as np

    names = list(got)
    if not hasattr(model, "predict"):
        return {names[0]: _shaped(names[0], _dense(model.transform(table)), got[names[0]])}
    answers = np.asarray(model.predict(table))
    found = {names[0]: _shaped(names[0], answers, got[names[0]])}
    if len(names) == 1:
        return found
    scores = _shaped(names[1], _scores(model, table, got[names[1]].shape), got[names[1]])
    if hasattr(model, "classes_") and scores.ndim == 2:
        found[names[0]] = _settled(model, found[names[0]], np.asarray(got[names[0]]), scores)
    return {**found, names[1]: scores}


def _dense(values: Any) -> Any:
    return values.toarray() if hasattr(values, "toarray") else values


def _scores(model: Any, table: Any, shape: tuple[int, ...]) -> Any:
    """Probabilities, else decision values, else distances: what skl2onnx puts beside the answers."""
    import numpy as np

    for method in ("predict_proba", "decision_function", "transform", "score_samples"):
        try:
            values = getattr(model, method)(table)
        except AttributeError:
            continue  # scikit-learn hides methods that an estimator's settings rule out
        if isinstance(values, list):
            raise TypeError(f"{type(model).__name__} has several outputs, which is not supported")
        values = np.asarray(_dense(values))
        # Two classes have one decision value.
        if values.ndim == 1 and len(shape) == 2 and shape[1] == 2:
            values = np.stack([-values, values], axis=1)
        return values
    raise RuntimeError(f"{type(model).__name__} has no scores to compare with")


def _shaped(name: str, wanted: Any, got: Any) -> Any:
    """`wanted` in the shape and kind of `got`, where that changes no value but by rounding."""
    import numpy as np

    wanted = np.asarray(wanted)
    if wanted.size != got.size or wanted.shape[0] != got.shape[0]:
        raise RuntimeError(
            f"the ONNX file's output '{name}' has the shape {list(got.shape)}, not {list(wanted.shape)}"
        )
    wanted = wanted.reshape(got.shape)
    if got.dtype.kind in "iu":
        rounded = wanted.astype(got.dtype)
        return rounded if np.array_equal(rounded, wanted) else wanted
    return wanted.astype(object) if got.dtype.kind == "O" else wanted


def _settled(model: Any, labels: Any, got: Any, scores: Any) -> Any:
    """The labels, with those of `got` where the two classes' scores are tied."""
    import numpy as np

    labels = labels.copy()
    position = {value: index for index, value in enumerate(np.asarray(model.classes_).tolist())}
    for row in np.flatnonzero(labels.reshape(-1) != got.reshape(-1)):
        a, b = position.get(labels.reshape(-1)[row]), position.get(got.reshape(-1)[row])
        if a is None or b is None or max(a, b) >= scores.shape[1]:
            continue
        if abs(scores[row, a] - scores[row, b]) <= _TIE * max(
            1.0, float(np.abs(scores[row]).max())
        ):
            labels.reshape(-1)[row] = got.reshape(-1)[row]
    return labels
