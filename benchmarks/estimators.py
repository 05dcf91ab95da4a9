"""The estimators beside scikit-learn's own on its bundled sets: ``python -m benchmarks.estimators``.

Default settings behind a StandardScaler. Scores are means over cross-validation, one for each seed; fits are timed in
turn on the whole set, seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from typing import Any

import numpy as np
from sklearn import datasets, neural_network
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp.sklearn

from .benchmarks.timing import timed

SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes")
MODULES = {"scikit-learn": neural_network, "fastbp": fastbp.sklearn}


def pipeline(module: Any, data: str, seed: int) -> Any:
    """The estimator for a set; the only regression is diabetes, whose targets need more steps than the default."""
    if data == "diabetes":
        return make_pipeline(StandardScaler(), module.MLPRegressor(random_state=seed, max_iter=1000))
    return make_pipeline(StandardScaler(), module.MLPClassifier(random_state=seed))


def measure(data: str, seeds: int, folds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Scores and seconds of a fit by module, one of each for every seed."""
    X, y = getattr(datasets, f"load_{data}")(return_X_y=True)
    results: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in MODULES}
    for seed in range(seeds):
        for name, module in MODULES.items():
            estimator = pipeline(module, data, seed)
            scores, seconds = results[name]
            scores.append(float(np.mean(cross_val_score(estimator, X, y, cv=folds))))
            seconds.append(timed(estimator.fit, X, y))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each estimator (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation (default: %(default)s)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # some have not converged after the default number of epochs
    print("| set | scikit-learn's score | fastbp's | scikit-learn's fit, ms | fastbp's, ms | faster |")
    print("|---|---|---|---|---|---|")
    for data in SETS:
        print(f"measuring {data}", file=sys.stderr)
        cells, medians = [], []
        for scores, seconds in measure(data, arguments.seeds, arguments.folds).values():
            cells.append(f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})")
            medians.append(1000 * statistics.median(seconds))
        times = [f"{median:.3g}" for median in medians]
        print(
            "|",
            " | ".join([data.replace("_", " ").capitalize(), *cells, *times, f"{medians[0] / medians[1]:.1f}x"]),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
