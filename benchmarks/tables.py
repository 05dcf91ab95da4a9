"""The preset for tables beside the defaults on scikit-learn's bundled sets: ``python -m benchmarks.tables``.

Scores are accuracies, or R2 for diabetes, by cross-validation: means over folds that every seed draws anew, and over
seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings

import numpy as np
from sklearn import datasets
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp.sklearn import MLPClassifier, MLPRegressor

from .estimators import SETS


def measure(data: str, seeds: int, folds: int) -> dict[str, list[float]]:
    """Scores of the default estimator, of the same behind a StandardScaler, and of the preset, one for every seed."""
    X, y = getattr(datasets, f"load_{data}")(return_X_y=True)
    kind, split = (MLPRegressor, KFold) if data == "diabetes" else (MLPClassifier, StratifiedKFold)
    results: dict[str, list[float]] = {"defaults": [], "scaled": [], "preset": []}
    for seed in range(seeds):
        estimators = {
            "defaults": kind(random_state=seed),
            "scaled": make_pipeline(StandardScaler(), kind(random_state=seed)),
            "preset": kind(preset="tabular", random_state=seed),
        }
        cv = split(folds, shuffle=True, random_state=seed)
        for name, estimator in estimators.items():
            results[name].append(float(np.mean(cross_val_score(estimator, X, y, cv=cv))))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each estimator (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation (default: %(default)s)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the defaults have not converged on some
    print('| set | defaults | defaults, standardised | preset="tabular" |')
    print("|---|---|---|---|")
    for data in SETS:
        print(f"measuring {data}", file=sys.stderr)
        cells = [
            f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
            for scores in measure(data, arguments.seeds, arguments.folds).values()
        ]
        print("|", " | ".join([data.replace("_", " ").capitalize(), *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
