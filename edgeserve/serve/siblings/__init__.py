"""Worker processes that serve as one: what they tell each other, through the process that supervises them."""

from edgeserve.serve.siblings.link import Link, LinkLost
from edgeserve.serve.siblings.member import Siblings

__all__ = ["Link", "LinkLost", "Siblings"]
