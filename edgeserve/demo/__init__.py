"""The embedded model with its data, and a client that asks a running server about it.

The model is a really trained digit classifier (examples/digits); its 200 labelled samples were never
trained on.
"""

from edgeserve.demo.client import Answers, ask
from edgeserve.demo.data import Demo, embedded

__all__ = ["Answers", "Demo", "ask", "embedded"]
