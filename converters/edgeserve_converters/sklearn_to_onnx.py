"""scikit-learn -> ONNX by skl2onnx: one input `input` FP32 [batch, features], plain tensors out.

What was written is run beside the estimator before it is called converted. A skops file may hold
what scikit-learn's own estimators are made of; a pickle executes code when it is opened, and is so only opened when
the options say `trust_source`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._sklearn_samples import expected_outputs, sample_tables
from edgeserve_converters._verify import open_onnx, run_onnx, write_verification

_OPSET = {"": 20, "ai.onnx.ml": 3}
# Parts of scikit-learn's own estimators that hold numbers and settings, which skops alone does not trust.
_TRUSTED = frozenset(
    {
        "numpy.dtype",
        "scipy.sparse._csr.csr_matrix",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)


class _SklearnToOnnx:
    output_format = "onnx"
    environment = "scikit-learn"
    requires: tuple[str, ...] = (
        "scikit-learn==1.9.1",
        "skl2onnx==1.20.0",
        "skops==0.16.0",
        "joblib==1.6.0",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "numpy==2.4.6",
        "protobuf==6.33.4",  # 7 refuses the booleans skl2onnx writes for HistGradientBoosting
    )
    imports: tuple[str, ...] = ("sklearn", "skl2onnx", "skops", "joblib", "onnx", "onnxruntime")
    pip_arguments: tuple[str, ...] = ()


class SkopsToOnnx(_SklearnToOnnx):
    name = "sklearn-skops-to-onnx"
    source_format = "sklearn-skops"

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Raises RuntimeError naming the types that are not trusted."""
        import skops.io

        try:
            asked = set(skops.io.get_untrusted_types(file=source))
        except Exception as error:
            raise RuntimeError(
                f"it is not a complete skops file ({error}): write it with skops.io.dump(model, …)"
            ) from error
        if untrusted := sorted(asked - _TRUSTED):
            raise RuntimeError(
                f"it holds types that are not trusted: {', '.join(untrusted)}; only "
                "scikit-learn's own estimators, of numbers and settings, are loaded"
            )
        return _convert(_loaded(lambda: skops.io.load(source, trusted=sorted(asked))), out_dir)


class PickleToOnnx(_SklearnToOnnx):
    name = "sklearn-pickle-to-onnx"
    source_format = "sklearn-pickle"

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Raises RuntimeError unless the option `trust_source` is True."""
        if options.get("trust_source") is not True:
            raise RuntimeError(
                "opening a pickle executes whatever code is in it: give --trust-source if you made the file, "
                "or write the model with skops.io.dump, which needs no trust"
            )
        import joblib

        return _convert(_loaded(lambda: joblib.load(source)), out_dir)


def _loaded(load: Callable[[], Any]) -> Any:
    """What is in the file. Raises RuntimeError when it was written by another scikit-learn."""
    import sklearn
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            return load()
        except InconsistentVersionWarning as warning:
            wants = warning.original_sklearn_version
            raise RuntimeError(
                f"{warning.estimator_name} was saved by scikit-learn {wants}, and {sklearn.__version__} may "
                f"compute something else: train or save it with {sklearn.__version__}, or run edgeserve where "
                f"scikit-learn=={wants}, skl2onnx and skops are installed"
            ) from None
        except Exception as error:
            wanted = re.search(r"No module named '([\w.]+)'", str(error))
            why = f"it needs {wanted[1]}, which is not there" if wanted else f"{error}"
            raise RuntimeError(
                f"scikit-learn {sklearn.__version__} cannot load it ({type(error).__name__}): {why}"
            ) from error


def _convert(model: Any, out_dir: Path) -> list[Path]:
    import numpy as np
    import sklearn

    features = _features(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = _exported(model, features)
        destination = out_dir / "model.onnx"
        destination.write_bytes(proto.SerializeToString())
        session = open_onnx(destination)
        pairs = []
        for table in sample_tables(model, features, np.random.default_rng(0)):
            got = run_onnx(session, {"input": table})
            pairs.append((expected_outputs(model, table, got), got))
    write_verification(out_dir, "scikit-learn", sklearn.__version__, pairs)
    return [destination]


def _features(model: Any) -> int:
    """How many columns the model was fitted on. Raises RuntimeError for what has no such table."""
    from sklearn.base import BaseEstimator
    from sklearn.compose import ColumnTransformer

    if not isinstance(model, BaseEstimator):
        raise RuntimeError(f"it holds a {type(model).__name__}, not a scikit-learn estimator")  # noqa: TRY004 - the file is wrong, not a type
    for step in _steps(model):
        columns = [c for _, _, c in getattr(step, "transformers_", []) if not isinstance(c, slice)]
        if isinstance(step, ColumnTransformer) and any(
            isinstance(name, str) for c in columns for name in ([c] if isinstance(c, str) else c)
        ):
            raise RuntimeError(
                "its ColumnTransformer picks columns by name, and a tensor has none: fit it on an array, with "
                "columns given by position"
            )
    features = getattr(model, "n_features_in_", None)
    if features is None:
        raise RuntimeError(
            f"{type(model).__name__} does not say how many features it was fitted on (n_features_in_): it is "
            "not fitted, or takes something else than a table of numbers"
        )
    return int(features)


def _steps(model: Any) -> list[Any]:
    """The estimator and those in it, where they are steps of a pipeline or found by a search."""
    inner = [step for _, step in getattr(model, "steps", [])]
    if hasattr(model, "best_estimator_"):
        inner.append(model.best_estimator_)
    return [model, *(found for step in inner for found in _steps(step))]


def _exported(model: Any, features: int) -> Any:
    """The ONNX model; its first dimension is called "batch"."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator
    from sklearn.base import is_classifier

    settings: dict[str, object] = {
        "initial_types": [("input", FloatTensorType([None, features]))],
        "target_opset": _OPSET,
    }
    try:
        proto = _with_plain_tensors(to_onnx, model, settings, plain=is_classifier(model))
    except (MissingConverter, MissingShapeCalculator) as error:
        kind = re.search(r"type '<class '([\w.]+)'>'", str(error))
        raise RuntimeError(
            f"skl2onnx has no converter for {kind[1] if kind else 'a part of it'}"
        ) from error
    except Exception as error:
        raise RuntimeError(
            f"skl2onnx cannot convert {type(model).__name__}: {_readable(error)}"
        ) from error
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            raise RuntimeError(
                f"skl2onnx made '{value.name}' of {type(model).__name__} something other than a tensor"
            )
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = "batch"
    return proto


def _with_plain_tensors(
    to_onnx: Any, model: Any, settings: Mapping[str, object], *, plain: bool
) -> Any:
    """Probabilities as a tensor, not a list of dictionaries; some classifiers know no such option."""
    if not plain:
        return to_onnx(model, **settings)
    try:
        return to_onnx(model, **settings, options={id(model): {"zipmap": False}})
    except (NameError, RuntimeError) as error:  # a pipeline raises the latter for its last step
        if "Option 'zipmap' not in" not in str(error):
            raise
    # Steps with options of their own, be they empty, are not given a pipeline's default for zipmap.
    return to_onnx(model, **settings, options={id(step): {} for step in _steps(model)})


def _readable(error: BaseException) -> str:
    """An error without the thousands of numbers that skl2onnx puts into its texts."""
    cause = error.__cause__ or error.__context__
    text = " ".join(str(error).split())
    return f"{text[:200]}… ({cause})" if cause is not None and len(text) > 200 else text[:400]


SKOPS = SkopsToOnnx()
PICKLE = PickleToOnnx()
