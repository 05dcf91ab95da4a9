"""The command line: `fastbp train`, `fastbp predict` and `fastbp info`."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbp import MLP, AdamW, DivergedError, __version__, load
from fastbp.backend import DEVICES, DeviceError, describe_gpu
from fastbp.table import Table, read_table
from fastbp.validation import MissingExtraError, require

METADATA_KEY = "table"


class _Task(NamedTuple):
    """What a network of `fastbp train` predicts from which columns; kept in its metadata."""

    task: str  # classification or regression
    features: list[str]
    target: str
    classes: list[Any]  # in the order of the outputs; empty for regression


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit status: 0, 2 after an error, 130 after Ctrl-C.
    """
    args = _make_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("fastbp: interrupted, nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read stdout has gone, as in `fastbp predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (DeviceError, DivergedError, MissingExtraError, ValueError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print("fastbp: error:", " ".join(message.split()), file=sys.stderr)
    return 2


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastbp", description="Multilayer perceptrons for tables.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add_command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        return command

    train = add_command("train", _train, "train a network on a CSV file or on scikit-learn's digits")
    add = train.add_argument
    add("data", help="a CSV file with a header row, or the word digits")
    add("--target", metavar="COLUMN", help="the column to predict; all others are features")
    add("--task", choices=("classification", "regression"), help="default: regression for decimals")
    add("--hidden", type=int, nargs="*", default=[128, 64], metavar="N", help="hidden widths: 128 64")
    add("--activation", default="relu", metavar="NAME", help="of the hidden layers: %(default)s")
    add("--epochs", type=int, default=100, metavar="N", help="passes over the data: %(default)s")
    add("--batch-size", type=int, default=64, metavar="N", help="rows per update: %(default)s")
    add("--learning-rate", type=float, default=0.005, metavar="X", help="at the start: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of weights and shuffling: %(default)s")
    add("--holdout", type=float, default=0.2, metavar="X", help="part kept for the test: %(default)s")
    add("--output", metavar="PATH", help="the model file; default: the name of the data")
    add("--threads", type=int, metavar="N", help="default: as many as the network deserves")
    add("--device", default="cpu", choices=DEVICES, help="where to train: %(default)s")
    add("--quiet", action="store_true", help="no progress bar")

    predict = add_command("predict", _predict, "predict the rows of a CSV file with a trained model")
    predict.add_argument("model", help="a .safetensors file from fastbp train")
    predict.add_argument("data", help="a CSV file with the columns that the model was trained on")
    predict.add_argument("--output", metavar="FILE", help="where the predictions go; default: stdout")

    add_command("info", _info, "show versions, the processor and the GPU")
    return parser


def _train(args: argparse.Namespace) -> None:
    require("matplotlib", "cli").use("Agg")
    model = Path(args.output or f"{Path(args.data).stem}.safetensors")
    picture = model.with_suffix(".png")
    if model.suffix != ".safetensors" or not model.parent.is_dir():
        raise ValueError(f"--output must be a .safetensors file in an existing directory, not {model}")

    is_digits = args.data == "digits"
    table, target = _open_digits(args) if is_digits else _open_file(args)
    task = args.task or table.guess_task(target)
    is_class = task == "classification"
    features = [name for name in table.names if name != target]
    if not features:
        raise ValueError(f"{table.path}: there is no column for a feature beside the target {target!r}")
    X = table.numbers(features)
    classes: NDArray[Any] = np.empty(0)
    y: NDArray[Any]
    if is_class:
        classes, y = np.unique(table.labels(target), return_inverse=True)
        if args.task is None and classes.dtype.kind in "iu" and len(classes) > math.sqrt(len(y)):
            note = f"the {len(classes)} integers of {target!r} are classes unless --task regression is given"
            print("fastbp: note:", note, file=sys.stderr)
    else:
        y = table.numbers([target])[:, 0]
    if (y == y[0]).all():
        raise ValueError(f"{table.path}, column {target!r}: every row has the same value, nothing to learn")
    fitted, heldout = _split(table.path, y, args.holdout, stratify=is_class)

    dropout, weight_decay = (0.2, 0.3) if is_digits else (0.0, 0.01)  # few images: they need a firm hand
    net = MLP(
        (len(features), *args.hidden, len(classes) or 1),
        activation=args.activation,
        loss="cross_entropy" if is_class else "squared_error",
        dropout=dropout,
        random_state=args.seed,
    )
    net.standardize(X[fitted])
    net.metadata[METADATA_KEY] = json.dumps(_Task(task, features, target, classes.tolist())._asdict())
    what = f"{len(classes)} classes" if is_class else "regression"
    print(f"{table.path}: {len(X)} rows, {len(features)} features, target {target!r}: {what}")
    print(f"network {'-'.join(map(str, net.layer_sizes))}, {net.n_parameters} parameters", flush=True)
    mean, scale = (0, 1) if is_class else (y[fitted].mean(), y[fitted].std() or 1)
    t = y if is_class else (y - mean) / scale
    history = net.fit(
        X[fitted],
        t[fitted],
        optimizer=AdamW(args.learning_rate, weight_decay=weight_decay),
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(X[heldout], t[heldout]),
        schedule=lambda epoch: args.learning_rate * (1 + math.cos(math.pi * epoch / args.epochs)) / 2,
        threads=args.threads,
        device=args.device,
        progress=not args.quiet,
    )
    if not is_class:  # the output is linear: the units of the target fold into the last layer
        net.weights[-1][...] *= scale
        net.biases[-1][...] = net.biases[-1] * scale + mean

    net.save(model)
    history.plot(picture)
    data = args.data
    if is_digits:
        data = str(model.with_name(f"{model.stem}-heldout.csv"))
        table.frame.iloc[heldout].to_csv(data, index=False)
    print(f"wrote {model} and {picture}; to predict:")
    print(" ", shlex.join([_find_program(), "predict", str(model), data]))
    print("held-out", _score(net.predict(X[heldout]), y[heldout], is_class))


def _open_digits(args: argparse.Namespace) -> tuple[Table, str]:
    frame = require("sklearn.datasets", "cli").load_digits(as_frame=True).frame
    return Table("digits", frame), "target"


def _open_file(args: argparse.Namespace) -> tuple[Table, str]:
    if args.target is None:
        raise ValueError(f"{args.data}: --target COLUMN must name the column to predict")
    table = read_table(args.data)
    table.check_columns([args.target])
    return table, args.target


def _split(path: str, y: NDArray[Any], holdout: float, stratify: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to fit and rows to hold out: the same ones for every seed, so that runs compare."""
    if not 0 < holdout < 1:
        raise ValueError(f"--holdout must lie between 0 and 1, not {holdout}")
    n_heldout = math.ceil(holdout * len(y))
    smaller = min(n_heldout, len(y) - n_heldout)
    if smaller < 2:
        raise ValueError(f"{path}: {len(y)} data rows are too few to fit one part and hold out another")
    counts = np.unique(y, return_counts=True)[1]
    if stratify and (min(counts) < 2 or smaller < len(counts)):
        print("fastbp: note: a class has too few rows to be in both parts of the data", file=sys.stderr)
        stratify = False
    split = require("sklearn.model_selection", "cli").train_test_split
    fitted, heldout = split(np.arange(len(y)), test_size=n_heldout, random_state=0, stratify=y if stratify else None)
    return fitted, heldout


def _score(outputs: NDArray[Any], y: NDArray[Any], is_class: bool) -> str:
    """How well outputs meet y: probabilities against class numbers, or values against values."""
    if is_class:
        return f"accuracy: {np.mean(outputs.argmax(axis=1) == y):.4f}"
    error = np.mean((outputs[:, 0] - y) ** 2)
    r2 = f" (R2 {1 - error / np.var(y):.4f})" if np.var(y) > 0 else ""
    return f"RMSE: {math.sqrt(error):.6g}{r2}"


def _find_program() -> str:
    """What to type to run this program: its name, or where it stands if that is not what the name finds."""
    typed, found = Path(sys.argv[0]), shutil.which("fastbp")
    if typed.stem != "fastbp" or (found and Path(found).parent.resolve() == typed.parent.resolve()):
        return "fastbp"
    return str(typed)


def _predict(args: argparse.Namespace) -> None:
    pandas = require("pandas", "cli")
    net = load(args.model)
    try:
        task = _Task(**json.loads(net.metadata[METADATA_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{args.model}: this model is not from fastbp train") from error
    is_text = bool(task.classes) and isinstance(task.classes[0], str)
    table = read_table(args.data, {task.target: str} if is_text else None)
    outputs = net.predict(table.numbers(task.features))
    if task.classes:
        predictions = pandas.DataFrame(outputs, columns=[f"probability_{name}" for name in task.classes])
        predictions.insert(0, "prediction", [task.classes[k] for k in outputs.argmax(axis=1)])
    else:
        predictions = pandas.DataFrame({"prediction": outputs[:, 0]})
    predictions.to_csv(args.output or sys.stdout, index=False)

    if task.target in table.names:
        known = table.frame[task.target]
        if task.classes:
            y = pandas.Index(task.classes).get_indexer(known)  # -1 for a class new to the model
        else:
            y = pandas.to_numeric(known, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        if known.notna().all() and np.isfinite(y).all():
            print(_score(outputs, y, bool(task.classes)), file=sys.stderr)


def _info(args: argparse.Namespace) -> None:
    from llvmlite import binding

    flags = binding.get_host_cpu_features()
    vectors = [name for name in ("avx512f", "avx2", "fma", "sse2", "neon") if flags.get(name)]
    print("fastbp ", __version__)
    print("python ", platform.python_version())
    print("numpy  ", metadata.version("numpy"))
    print("numba  ", metadata.version("numba"))
    print("CPU    ", f"{binding.get_host_cpu_name()} ({platform.machine()}), {os.cpu_count()} cores")
    print("vectors", " ".join(vectors))
    print("GPU    ", describe_gpu())
