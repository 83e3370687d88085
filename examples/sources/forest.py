"""A random forest on the handwritten digits of scikit-learn, saved by skops, and pickled by joblib."""

import joblib
import skops.io
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

digits = load_digits()
forest = RandomForestClassifier(50, random_state=0).fit(digits.data[:1500], digits.target[:1500])
print(f"held-out accuracy: {forest.score(digits.data[1500:], digits.target[1500:]):.3f}")
skops.io.dump(forest, "forest.skops")
joblib.dump(forest, "forest.joblib")
print("edgeserve convert forest.skops")
print("edgeserve convert forest.joblib --trust-source")
