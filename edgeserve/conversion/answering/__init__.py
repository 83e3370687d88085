"""What a model is for: how its outputs become an answer for people, recognised or asked for."""

from edgeserve.conversion.answering.decide import Decided, decide
from edgeserve.conversion.answering.facts import OutputFacts

__all__ = ["Decided", "OutputFacts", "decide"]
