"""The command line, driven through `fastbp.cli.main` in an empty directory."""

from __future__ import annotations

import json
import re
import shlex
import sys

import numpy as np
import pandas
import pytest

import fastbp
from fastbp import cli

QUICK = ("--epochs", "30", "--hidden", "16", "--batch-size", "8", "--quiet")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command; its exit status and what it wrote to stdout and stderr."""

    def run(*argv: str):
        status = cli.main(argv)
        return status, *capsys.readouterr()

    return run


def write_flowers(path, rng, n_samples=90, labels=("red", "green", "blue")):
    """Three well separated classes, with an unused order and scale of columns."""
    k = np.arange(n_samples) % 3
    frame = pandas.DataFrame(
        {
            "length": 1000.0 * k + rng.normal(size=n_samples),
            "kind": np.array(labels)[k],
            "width": 0.001 * (k == 1) + 1e-5 * rng.normal(size=n_samples),
        }
    )
    frame.to_csv(path, index=False)
    return frame


def write_prices(path, rng, n_samples=200):
    X = rng.normal(size=(n_samples, 2))
    frame = pandas.DataFrame({"size": X[:, 0], "age": X[:, 1], "price": 5000 + 300 * X[:, 0] - 200 * X[:, 1]})
    frame.to_csv(path, index=False)
    return frame


def find_command(out: str) -> list[str]:
    """The arguments of the predict command that training prints, on a line of its own."""
    return shlex.split(next(line for line in out.splitlines() if " predict " in line))[1:]


def test_train_and_predict_classes(run, rng, here):
    frame = write_flowers("flowers.csv", rng)
    status, out, err = run("train", "flowers.csv", "--target", "kind", *QUICK)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "held-out accuracy: 1.0000"
    assert {path.name for path in here.iterdir()} == {"flowers.csv", "flowers.safetensors", "flowers.png"}
    assert (here / "flowers.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(fastbp.load("flowers.safetensors").metadata["table"]) == {
        "task": "classification",
        "features": ["length", "width"],
        "target": "kind",
        "classes": ["blue", "green", "red"],
    }

    command = find_command(out)
    assert command == ["predict", "flowers.safetensors", "flowers.csv"]
    status, out, err = run(*command, "--output", "predicted.csv")
    assert (status, out, err) == (0, "", "accuracy: 1.0000\n")
    predicted = pandas.read_csv("predicted.csv")
    assert list(predicted) == ["prediction", "probability_blue", "probability_green", "probability_red"]
    assert (predicted["prediction"] == frame["kind"]).all()
    np.testing.assert_allclose(predicted.iloc[:, 1:].sum(axis=1), 1, atol=1e-6)


def test_columns_are_found_by_name(run, rng):
    frame = write_flowers("flowers.csv", rng)
    run("train", "flowers.csv", "--target", "kind", *QUICK)
    _, by_file, _ = run("predict", "flowers.safetensors", "flowers.csv")
    frame.assign(remark="x")[["remark", "width", "length"]].to_csv("moved.csv", index=False)
    assert run("predict", "flowers.safetensors", "moved.csv") == (0, by_file, "")
    frame[["length", "kind"]].rename(columns={"length": "lenght"}).to_csv("lacking.csv", index=False)
    status, out, err = run("predict", "flowers.safetensors", "lacking.csv", "--output", "predicted.csv")
    assert (status, out) == (2, "")
    assert "lacking.csv: no columns 'length', 'width' (did you mean 'lenght'?)" in err


@pytest.mark.parametrize("labels", [(10, -3, 7), ("007", "x", "y"), (True, False, True), ("NA", "a b", "ü")])
def test_classes_come_back_as_they_were(run, rng, labels):
    frame = write_flowers("flowers.csv", rng, labels=labels)
    run("train", "flowers.csv", "--target", "kind", "--output", "model.safetensors", *QUICK)
    status, out, err = run("predict", "model.safetensors", "flowers.csv")
    assert (status, err) == (0, "accuracy: 1.0000\n")
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == [str(label) for label in frame["kind"]]
    classes = json.loads(fastbp.load("model.safetensors").metadata["table"])["classes"]
    assert classes == sorted(set(labels))
    assert {type(label) for label in classes} == {type(label) for label in labels}


def test_incomplete_labels_and_new_classes(run, rng):
    frame = write_flowers("flowers.csv", rng)
    run("train", "flowers.csv", "--target", "kind", *QUICK)
    frame.assign(kind=frame["kind"].mask(frame.index == 5)).to_csv("gap.csv", index=False)
    assert run("predict", "flowers.safetensors", "gap.csv")[::2] == (0, "")
    frame.assign(kind=frame["kind"].replace("red", "pink")).to_csv("pink.csv", index=False)
    assert run("predict", "flowers.safetensors", "pink.csv")[::2] == (0, "accuracy: 0.6667\n")


def test_regression_predicts_in_the_units_of_the_target(run, rng):
    frame = write_prices("prices.csv", rng)
    status, out, err = run("train", "prices.csv", "--target", "price", "--hidden", "--epochs", "200", "--quiet")
    assert (status, err) == (0, "")
    rmse, r2 = re.fullmatch(r"held-out RMSE: (\S+) \(R2 (\S+)\)", out.splitlines()[-1]).groups()
    assert float(rmse) < 5
    assert float(r2) > 0.999
    net = fastbp.load("prices.safetensors")
    assert net.layer_sizes == (2, 1)
    predicted = net.predict(frame[["size", "age"]].to_numpy())[:, 0]
    np.testing.assert_allclose(predicted, frame["price"], atol=20)

    status, out, err = run(*find_command(out))
    assert status == 0
    assert out.splitlines()[0] == "prediction"
    np.testing.assert_allclose([float(line) for line in out.splitlines()[1:]], predicted, rtol=1e-6)
    assert float(re.fullmatch(r"RMSE: (\S+) \(R2 \S+\)\n", err).group(1)) < 5


def test_the_task_can_be_chosen(run, rng):
    write_flowers("flowers.csv", rng, labels=(1, 2, 3))
    _, out, _ = run("train", "flowers.csv", "--target", "kind", "--task", "regression", *QUICK)
    assert out.splitlines()[-1].startswith("held-out RMSE: ")
    _, out, _ = run("train", "flowers.csv", "--target", "kind", "--task", "classification", *QUICK)
    assert out.splitlines()[-1] == "held-out accuracy: 1.0000"


def test_many_integers_may_be_numbers(run, rng):
    frame = write_prices("prices.csv", rng, n_samples=60)
    frame.astype({"price": int}).to_csv("prices.csv", index=False)
    status, out, err = run("train", "prices.csv", "--target", "price", *QUICK)
    assert status == 0
    n_classes = re.search(r"(\d+) classes", out).group(1)
    assert f"fastbp: note: the {n_classes} integers of 'price' are classes unless --task regression is given\n" in err
    for task in ("classification", "regression"):
        _, _, err = run("train", "prices.csv", "--target", "price", "--task", task, *QUICK)
        assert "--task" not in err


def test_a_seed_gives_the_same_bits(run, rng):
    write_flowers("flowers.csv", rng)

    def train(*options):
        run("train", "flowers.csv", "--target", "kind", *QUICK, *options)
        return fastbp.load("flowers.safetensors").theta

    one = train("--seed", "1", "--threads", "1")
    np.testing.assert_array_equal(train("--seed", "1", "--threads", "2"), one)
    assert not np.array_equal(train("--seed", "2"), one)


@pytest.mark.parametrize(
    ("typed", "on_path", "printed"),
    [("env/bin/fastbp", "env/bin/fastbp", "fastbp"), ("env/bin/fastbp", None, "env/bin/fastbp"),
     ("env/bin/fastbp", "/usr/bin/fastbp", "env/bin/fastbp"), ("cli.py", None, "fastbp")],
)  # fmt: skip
def test_the_printed_command_finds_this_program(monkeypatch, here, typed, on_path, printed):
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setattr(cli.shutil, "which", lambda name: on_path and str(here / on_path))
    assert cli._find_program() == printed


def test_a_class_with_one_member_is_not_stratified(run, rng):
    frame = write_flowers("flowers.csv", rng)
    frame.loc[0, "kind"] = "white"
    frame.to_csv("flowers.csv", index=False)
    status, out, err = run("train", "flowers.csv", "--target", "kind", *QUICK)
    assert status == 0
    assert err.count("\n") == 1
    assert "too few rows to be in both parts" in err
    assert out.splitlines()[-1].startswith("held-out accuracy: ")


def test_digits(run, here):
    status, out, err = run("train", "digits", "--epochs", "3", "--threads", "1")
    assert status == 0
    assert "loss" in err
    assert "samples/s" in err
    accuracy = re.fullmatch(r"held-out accuracy: (0\.\d{4})", out.splitlines()[-1]).group(1)
    assert float(accuracy) > 0.9
    assert fastbp.load("digits.safetensors").layer_sizes == (64, 128, 64, 10)
    files = {"digits.safetensors", "digits.png", "digits-heldout.csv"}
    assert {path.name for path in here.iterdir()} == files
    heldout = pandas.read_csv("digits-heldout.csv")
    assert heldout.shape == (360, 65)
    assert heldout["target"].value_counts().between(35, 37).all()

    command = find_command(out)
    assert command == ["predict", "digits.safetensors", "digits-heldout.csv"]
    status, out, err = run(*command)
    assert (status, err) == (0, f"accuracy: {accuracy}\n")
    assert out.splitlines()[0] == ",".join(["prediction", *(f"probability_{k}" for k in range(10))])


@pytest.mark.parametrize("seed", range(5))
def test_digits_reach_the_accuracy_promised(run, seed):
    _, out, _ = run("train", "digits", "--seed", str(seed), "--quiet")
    assert float(out.split()[-1]) >= 0.970


ROWS = "".join(f"{k}.5,{k % 7},{'xy'[k % 2]}\n" for k in range(20))  # lines 2 to 21

BAD_TABLES = {
    "empty": (b"", ["the file is empty"]),
    "blank": (b"\n \n\n", ["the file is empty"]),
    "header only": (b"a,b,t\n", ["no data rows"]),
    "binary": (bytes(range(256)), ["not a CSV file in UTF-8"]),
    "binary like text": (b"PK\0\0,b,t\n1,2,3\n", ["not a CSV file in UTF-8"]),
    "latin-1 far down": (f"a,b,t\n{ROWS * 5000}1,2,".encode() + b"\xe9\n", ["not a CSV file in UTF-8"]),
    "no name": (f"a,,t\n{ROWS}", ["column 2 of the header has no name"]),
    "same names": (f"t,b,t\n{ROWS}", ["2 columns of the header are named 't'"]),
    "long row": (f"a,b,t\n{ROWS}1,2,x,4\n", ["line 22", "4 cells where the header has 3"]),
    "long first row": (f"a,b,t\n1,2,x,4\n{ROWS}", ["line 2", "4 cells where the header has 3"]),
    "long rows only": ("a,b,t\n" + "1,2,x,4\n" * 20, ["line 2", "4 cells where the header has 3"]),
    "short row": (f"a,b,t\n{ROWS}1\n", ["line 22", "1 cell where the header has 3"]),
    "open quote": (f'a,b,t\n{ROWS}1,2,"x\n1,2,y\n', ["EOF inside string"]),
    "missing cell": (f"a,b,t\n{ROWS}1,,x\n", ["line 22", "column 'b'", "the cell is missing"]),
    "missing label": (f"a,b,t\n{ROWS}1,2,\n", ["line 22", "column 't'", "the cell is missing"]),
    "text": (f"a,b,t\n{ROWS}1,two,x\n", ["line 22", "column 'b'", "'two' is not a finite number"]),
    "a text column": (f"t,b,a\n{ROWS}", ["line 2", "column 'a'", "'x' is not a finite number"]),
    "NA": (f"a,b,t\n1,NA,x\n{ROWS}", ["line 2", "column 'b'", "'NA' is not a finite number"]),
    "nan": (f"a,b,t\n{ROWS}nan,2,x\n", ["line 22", "column 'a'", "'nan' is not a finite number"]),
    "inf": (f"a,b,t\n{ROWS}1,-inf,x\n", ["line 22", "column 'b'", "'-inf' is not a finite number"]),
    "overflow": (f"a,b,t\n{ROWS}1,1e999,x\n", ["line 22", "column 'b'", "'1e999' is not a finite number"]),
    "other target": (f"a,b,T\n{ROWS}", ["no column 't'", "the columns are 'a', 'b', 'T'"]),
    "semicolons": (f"a,b,t\n{ROWS}".replace(",", ";"), ["no column 't'", "the columns are 'a;b;t'"]),
    "close match": (f"a,b,t2\n{ROWS}", ["no column 't'", "did you mean 't2'?"]),
    "one class": ("a,b,t\n" + "1,2,x\n3,4,x\n" * 9, ["column 't'", "same value"]),
    "one value": ("a,b,t\n" + "1,2,0.5\n3,4,0.5\n" * 9, ["column 't'", "same value"]),
    "target with text": ("a,b,t\n" + "1,2,0.5\n" * 9 + "1,2,-\n", ["line 11", "column 't'", "'-'"]),
    "infinite target": ("a,b,t\n1,2,inf\n" + "1,2,0.5\n" * 9, ["line 2", "column 't'", "'inf'"]),
    "target only": ("t\n" + "x\ny\n" * 9, ["no column for a feature"]),
    "few rows": ("a,b,t\n1,2,x\n3,4,y\n1,2,x\n3,4,y\n", ["4 data rows are too few"]),
}


def check_refused(result, here, before, *pieces):
    """One line on stderr with the pieces, nothing on stdout, no file made or changed."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("fastbp: error: ")
    assert err.count("\n") == 1
    for piece in pieces:
        assert piece in err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def read_all(here):
    return {path.name: path.read_bytes() for path in here.iterdir()}


@pytest.mark.parametrize(("content", "pieces"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_refused(run, here, content, pieces):
    (here / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = read_all(here)
    check_refused(run("train", "data.csv", "--target", "t"), here, before, "data.csv", *pieces)


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ([], ["data.csv", "--target"]),
        (["--target", "t", "--task", "regression"], ["line 2", "column 't'", "'x' is not a finite number"]),
        (["--target", "t", "--holdout", "0"], ["--holdout", "0.0"]),
        (["--target", "t", "--holdout", "0.99"], ["too few"]),
        (["--target", "t", "--output", "model.png"], ["--output", "model.png"]),
        (["--target", "t", "--output", "nowhere/m.safetensors"], ["--output", "nowhere"]),
    ],
)
def test_bad_options_are_refused_before_anything_is_done(run, here, options, pieces):
    (here / "data.csv").write_text(f"a,b,t\n{ROWS}")
    check_refused(run("train", "data.csv", *options), here, read_all(here), *pieces)


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        (["--epochs", "0"], "epochs"),
        (["--batch-size", "0"], "batch_size"),
        (["--threads", "0"], "threads"),
        (["--hidden", "0"], "layer_sizes"),
        (["--activation", "sinus"], "relu"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--seed", "-1"], "random_state"),
        (["--learning-rate", "1e30"], "epoch"),
    ],
)
def test_what_the_network_refuses(run, here, options, piece):
    (here / "data.csv").write_text(f"a,b,t\n{ROWS}")
    before = read_all(here)
    status, _, err = run("train", "data.csv", "--target", "t", "--quiet", *options)
    check_refused((status, "", err), here, before, piece)


def test_bad_files_of_predict(run, rng, here):
    write_flowers("flowers.csv", rng)
    fastbp.MLP((2, 3)).save("bare.safetensors")
    run("train", "flowers.csv", "--target", "kind", *QUICK)
    (here / "short.safetensors").write_bytes((here / "flowers.safetensors").read_bytes()[:500])
    (here / "gap.csv").write_text("width,length\n1,2\n,3\n")
    before = read_all(here)
    for model, data, pieces in [
        ("none.safetensors", "flowers.csv", ["none.safetensors"]),
        ("short.safetensors", "flowers.csv", ["short.safetensors"]),
        ("flowers.csv", "flowers.csv", ["flowers.csv"]),
        ("bare.safetensors", "flowers.csv", ["bare.safetensors", "not from fastbp train"]),
        ("flowers.safetensors", "none.csv", ["none.csv", "No such file"]),
        ("flowers.safetensors", ".", ["directory"]),
        ("flowers.safetensors", "gap.csv", ["gap.csv", "line 3", "column 'width'", "missing"]),
        ("flowers.safetensors", "flowers.safetensors", ["not a CSV file in UTF-8"]),
    ]:
        result = run("predict", model, data, "--output", "predicted.csv")
        check_refused(result, here, before, *pieces)
    check_refused(run("train", "none.csv", "--target", "t"), here, before, "none.csv", "No such file")


def test_an_interrupt_ends_in_one_line(run, rng, here, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    write_flowers("flowers.csv", rng)
    before = read_all(here)
    monkeypatch.setattr(fastbp.MLP, "fit", interrupt)
    status, _, err = run("train", "flowers.csv", "--target", "kind")
    assert (status, err) == (130, "fastbp: interrupted, nothing was written\n")
    assert read_all(here) == before


def test_a_missing_extra_is_named(run, rng, monkeypatch):
    write_flowers("flowers.csv", rng)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("train", "flowers.csv", "--target", "kind")
    assert status == 2
    assert "fastbp[cli]" in err


def test_info(run):
    status, out, _ = run("info")
    assert status == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(rows) == ["fastbp", "python", "numpy", "numba", "CPU", "vectors", "GPU"]
    assert rows["fastbp"] == fastbp.__version__
    assert rows["numpy"] == np.__version__


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["predict", "--help"], ["info", "--help"]])
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 0
    assert "usage: fastbp" in capsys.readouterr().out
