"""How long the command line takes to answer: `edgeserve --help`, `--version`, against a bare interpreter.

    python benchmarks/startup.py

Each command runs in turns with the others; the median counts.
"""

from __future__ import annotations

import subprocess
import sys

from edgeserve.bench.interleave import interleave


def main() -> None:
    commands = {
        "python -c pass": ["-c", "pass"],
        "edgeserve --version": ["-m", "edgeserve", "--version"],
        "edgeserve --help": ["-m", "edgeserve", "--help"],
        "edgeserve run --help": ["-m", "edgeserve", "run", "--help"],
    }

    def call(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    times = interleave(
        {name: (lambda a=arguments: call(a)) for name, arguments in commands.items()},
        max_seconds=20.0,
    )
    for name, timings in times.items():
        values = sorted(timings.ms)
        print(f"{name:22} median {values[len(values) // 2]:6.0f} ms, fastest {values[0]:6.0f} ms")


if __name__ == "__main__":
    main()
