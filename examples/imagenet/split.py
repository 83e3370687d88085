"""Split a folder of labelled photographs (with a labels.csv) in two folders without overlap.

Every fourth photograph is linked into calibration/, the others into evaluation/ with their labels.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="a folder with photographs and labels.csv")
    parser.add_argument("-o", "--output", type=Path, default=Path("imagenet-data"))
    arguments = parser.parse_args()
    photos, output = arguments.photos.resolve(), arguments.output
    with (photos / "labels.csv").open(newline="") as file:
        rows = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    calibration, evaluation = rows[::4], [r for i, r in enumerate(rows) if i % 4]
    for folder, chosen in (("calibration", calibration), ("evaluation", evaluation)):
        (output / folder).mkdir(parents=True, exist_ok=True)
        for name, _ in chosen:
            link = output / folder / name
            if not link.exists():
                link.symlink_to(photos / name)
    with (output / "evaluation" / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows(evaluation)
    print(f"{output}: {len(calibration)} to calibrate on, {len(evaluation)} to measure accuracy on")


if __name__ == "__main__":
    main()
