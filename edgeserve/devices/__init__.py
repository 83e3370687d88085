"""What this machine has: its CPU, cores, memory. Asked, never guessed: what is unknown is None.

Whether an accelerator can be opened is not known here: only a runtime that opens it knows
(`edgeserve.runtimes.detect`).
"""

from edgeserve.devices.cgroup import usable_cores
from edgeserve.devices.instances import Instances, plan_instances
from edgeserve.devices.machine import Machine, machine

__all__ = ["Instances", "Machine", "machine", "plan_instances", "usable_cores"]
