"""Many rows through a model: what `edgeserve infer --batch` does.

Rows come from a source (`sources`), run on a bundle or a server (`models`), and go to a file in their order
(`sinks`). `job` puts these together and keeps the run resumable.
"""

from edgeserve.batch.answers import ResultColumn, ResultForm, TensorForm
from edgeserve.batch.job import BatchRun, BatchSummary, errors_path, is_complete
from edgeserve.batch.models import CONNECTIONS, LocalModel, RemoteModel, RowModel
from edgeserve.batch.people import LabelForm
from edgeserve.batch.sinks import check_output
from edgeserve.batch.sources import RowSource, open_source

__all__ = [
    "CONNECTIONS",
    "BatchRun",
    "BatchSummary",
    "LabelForm",
    "LocalModel",
    "RemoteModel",
    "ResultColumn",
    "ResultForm",
    "RowModel",
    "RowSource",
    "TensorForm",
    "check_output",
    "errors_path",
    "is_complete",
    "open_source",
]
