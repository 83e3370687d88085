"""What this machine has for running models: installed, opening, clashing, hot. Behind `edgeserve doctor`."""

from edgeserve.diagnosis.diagnose import Diagnosis, diagnose
from edgeserve.diagnosis.findings import DoctorFinding, MachineMemory
from edgeserve.diagnosis.packages import InstalledPackage

__all__ = ["Diagnosis", "DoctorFinding", "InstalledPackage", "MachineMemory", "diagnose"]
