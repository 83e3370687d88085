"""Whether the rows of a batch are known to be independent: read off a model's graph, never off numbers.

Each tensor is followed from the inputs, whose first axis is that of the rows: where that axis is, and that
nothing of one row gets into another. An operator that mixes rows, or that nothing is known of, is named.
"""

from edgeserve.conversion.independence.walk import Independence, rows_of_graph

__all__ = ["Independence", "rows_of_graph"]
