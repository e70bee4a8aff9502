# ruff: noqa: E501  (the messages are compared whole)
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import ccamerge
from ccamerge.config.importing import ConfigError, Factory, import_function
from ccamerge.config.model import Evaluation, Pretrained
from ccamerge.config.reader import load_config, parse_value
from ccamerge.config.settings import METHODS, Settings

GOOD = """\
merge_method: cca
base_model: runs/b.pt
models:
  - model: runs/a.pt
    parameters: {weight: 3}
  - model: runs/b.pt
    parameters:
      weight: 1
architecture:
  factory: torch.nn:Linear
  arguments: {in_features: 2, out_features: 3}
data:
  factory: mypackage.data:calibration
  arguments: {count: 5, rate: 1e-3}
evaluation:
  factory: mypackage.data:test
  metric: mypackage.scores:error
  better: lower
  loss: mypackage.scores:loss
  ensemble: outputs
parameters: {ridge: 1e-2, repair: none, norm: paper, seed: 7, prove: false, mode: universe, t: 0.25,
             ties: untie, options: {alpha: 0.3, deep: {a: [1, x]}}}
moments: stats.safetensors
dtype: float32
device: cuda:1
"""

SMALL = """\
models:
  - model: a.pt
  - model: b.pt
architecture:
  factory: torch.nn:Linear
"""


AUTO = SMALL.replace("factory: torch.nn:Linear", "transformers: auto")


def write(folder, text):
    path = folder / "merge.yml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder, text):
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text))
    start = f"{folder / 'merge.yml'}:"
    assert all(p.startswith(start) for p in caught.value.problems)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [p.removeprefix(start) for p in caught.value.problems]


def test_everything_given(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert config.models == (tmp_path / "runs/a.pt", tmp_path / "runs/b.pt")
    assert config.reference == 1
    assert config.architecture == Factory("torch.nn:Linear", {"in_features": 2, "out_features": 3})
    assert config.data == Factory("mypackage.data:calibration", {"count": 5, "rate": 0.001})
    assert config.evaluation == Evaluation(
        Factory("mypackage.data:test"),
        metric="mypackage.scores:error",
        better="lower",
        loss="mypackage.scores:loss",
        ensemble="outputs",
    )
    assert config.settings == Settings(
        method="cca",
        options={"alpha": 0.3, "deep": {"a": [1, "x"]}},
        mode="universe",
        ridge=0.01,
        weights=(0.75, 0.25),
        t=0.25,
        repair="none",
        norm="paper",
        ties="untie",
        seed=7,
        prove=False,
    )
    assert (config.moments, config.dtype) == (tmp_path / "stats.safetensors", "float32")
    assert config.device == "cuda:1"


@pytest.mark.parametrize("trusted", [False, True])
def test_networks_that_transformers_builds(tmp_path, trusted):
    text = AUTO + "  trust_remote_code: true\n" * trusted
    config = load_config(write(tmp_path, text))
    assert config.architectures == tuple(Pretrained(p, trusted) for p in config.models)
    assert config.architecture.source == f"{tmp_path / 'merge.yml'}:5: architecture"
    assert load_config(write(tmp_path, config.to_yaml())) == config


def test_transformers_is_asked_for_where_it_lacks(tmp_path, monkeypatch):
    config = load_config(write(tmp_path, AUTO))
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"5: architecture: .*pip install 'ccamerge\[transf"):
        config.architecture.load()


def test_configurations_of_the_readme_can_be_read(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    found = [load_config(write(tmp_path, block)) for block in blocks if "models:" in block]
    assert [config.plain for config in found].count(True) == 1
    assert sum(bool(c.architectures) and isinstance(c.architecture, Pretrained) for c in found) == 1


def test_defaults(tmp_path):
    config = load_config(write(tmp_path, SMALL))
    assert config.settings == Settings(weights=(0.5, 0.5))
    assert config.reference == 0
    assert (config.data, config.evaluation, config.moments, config.dtype) == (None,) * 4
    assert config.device is None
    evaluated = load_config(write(tmp_path, SMALL + "evaluation: {factory: 'a:b'}\n"))
    assert evaluated.evaluation == Evaluation(Factory("a:b"))


BY_PATTERNS = (
    SMALL
    + """\
merge_method: {"layer1*": permutation, fc: "mypackage.mine:method", "*": cca}
parameters:
  ridge: {"layer3*": 1e-1, 0: 2}
  weights: {"layer3*": [1, 0], "*": [1, 3]}
"""
)


def test_settings_by_patterns(tmp_path):
    found = load_config(write(tmp_path, BY_PATTERNS)).settings
    assert found.method == {"layer1*": "permutation", "fc": "mypackage.mine:method", "*": "cca"}
    assert list(found.method) == ["layer1*", "fc", "*"]  # the first that matches counts
    assert found.ridge == {"layer3*": 0.1, "0": 2.0}
    assert found.weights == {"layer3*": [1.0, 0.0], "*": [1.0, 3.0]}
    assert found.method_words == "layer1*: permutation, fc: mypackage.mine:method, *: cca"


def test_ridge_auto(tmp_path):
    assert load_config(write(tmp_path, SMALL + "parameters: {ridge: auto}\n")).settings.ridge == (
        "auto"
    )


def test_weights_as_a_list(tmp_path):
    config = load_config(write(tmp_path, SMALL + "parameters: {weights: [1, 3], gamma: 0.1}\n"))
    assert config.settings.weights == (0.25, 0.75)
    assert config.settings.gamma == 0.1
    config = load_config(write(tmp_path, SMALL + "parameters: {weights: [0, 3]}\n"))
    assert config.settings.weights == (0.0, 1.0)


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", SMALL.replace("a.pt", "../a.pt").replace("b.pt", "/abs/b.pt"))
    monkeypatch.chdir(tmp_path)
    config = load_config("inner/merge.yml")
    assert config.models == (tmp_path / "a.pt", Path("/abs/b.pt"))


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        SMALL,
        BY_PATTERNS,
        SMALL + "parameters: {ridge: auto, weights: [0, 1]}\n",
        SMALL + "evaluation: {factory: 'a:b', metric: cross_entropy}\n",
        SMALL + "evaluation: {factory: 'a:b', ensemble: none}\n",
    ],
)
def test_written_back_is_the_same(tmp_path, text):
    config = load_config(write(tmp_path, text))
    (tmp_path / "out").mkdir()
    for folder, written in (
        (tmp_path, config.to_yaml()),
        (tmp_path / "out", config.to_yaml(tmp_path / "out")),
    ):
        again = load_config(write(folder, written))
        assert {**vars(again), "source": 0, "lines": 0} == {**vars(config), "source": 0, "lines": 0}
        assert repr(again.settings) == repr(config.settings)  # patterns in their order, too
    assert "a.pt" in written


@hypothesis.settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=9))
def test_weights_sum_to_one(tmp_path, weights):
    models = "".join(
        f"  - {{model: {i}.pt, parameters: {{weight: {w!r}}}}}\n" for i, w in enumerate(weights)
    )
    text = f"models:\n{models}architecture: {{factory: 'a:b'}}\n"
    config = load_config(write(tmp_path, text))
    found = config.settings.weights
    assert sum(found) == pytest.approx(1, abs=1e-15 * len(weights))
    assert found == pytest.approx([w / sum(weights) for w in weights], rel=1e-14)
    again = load_config(write(tmp_path, config.to_yaml()))
    assert again.settings.weights == pytest.approx(found, rel=1e-14)


BAD = [
    ("merge_method: ccaa\n" + SMALL, f"1: merge_method: expected one of {', '.join(METHODS)}, or \"package.module:function\"; got 'ccaa'; did you mean 'cca'?"),
    ("merge_method: {a: cca, b: cac}\n" + SMALL, f"1: merge_method.b: expected one of {', '.join(METHODS)}, or \"package.module:function\"; got 'cac'; did you mean 'cca'?"),
    ("merge_method:\n  a: cca\n  a: average\n" + SMALL, "3: merge_method.a: given twice, first in line 2"),
    ("merge_method: {}\n" + SMALL, "1: merge_method: expected patterns with values, such as \"layer1*\"; got none"),
    ("merge_method: {[a]: cca}\n" + SMALL, "1: merge_method: expected a pattern, got a list"),
    ("merge_method: {*: cca}\n" + SMALL, "1: not valid YAML: while scanning an alias, expected alphabetic or numeric character, but found ':'; a pattern that begins with * needs quotes: \"*\""),
    ("merge_metod: cca\n" + SMALL, "1: merge_metod: unknown key; did you mean 'merge_method'?"),
    ("zzz: 1\n" + SMALL, "1: zzz: unknown key; known: merge_method, base_model, models, architecture, data, evaluation, parameters, moments, dtype, device"),
    (SMALL.replace("a.pt", "a.pt\n    parameters: {weight: half}"), "3: models[0].parameters.weight: expected a number >= 0, got 'half'"),
    (SMALL.replace("a.pt", "a.pt\n    parameters: {weight: -1}"), "3: models[0].parameters.weight: expected a number >= 0, got -1"),
    (SMALL.replace("a.pt", "a.pt\n    parameters: {weight: yes}"), "3: models[0].parameters.weight: expected a number >= 0, got yes"),
    (SMALL.replace("a.pt", "a.pt\n    parameters: {weight: 0}").replace("b.pt", "b.pt\n    parameters: {weight: 0}"), "2: models: all weights are zero; one at least must be larger"),
    (SMALL.replace("a.pt", "a.pt\n    parameters: {weight: 1}"), "2: models: some have a weight, but not models[1]; give all or none"),
    (SMALL.replace("a.pt", "[a]"), "2: models[0].model: expected a file's path, got a list"),
    (SMALL.replace("model: a.pt", "modle: a.pt"), "2: models[0].modle: unknown key; did you mean 'model'?"),
    (SMALL.replace("model: a.pt", "modle: a.pt"), "2: models[0].model: missing; it is the checkpoint's path"),
    (SMALL.replace("model: a.pt", "a.pt"), "2: models[0]: expected a mapping with model, parameters, arguments; got 'a.pt'"),
    (SMALL.replace("b.pt", "x/../a.pt"), "3: models[1].model: the same file as models[0]; give it a larger weight instead"),
    (SMALL.replace("  - model: b.pt\n", ""), "2: models: expected two models or more, got 1"),
    ("models: a.pt\n" + SMALL[SMALL.index("arch"):], "1: models: expected a list, got 'a.pt'"),
    (SMALL[SMALL.index("arch"):], "1: models: missing; it lists the checkpoints to merge"),
    (SMALL[: SMALL.index("arch")], "1: architecture: missing; it says how to build the network"),
    ("base_model: runs/b.pt\n" + SMALL, "1: base_model: 'runs/b.pt' is not one of the models; did you mean 'b.pt'?"),
    (SMALL.replace("torch.nn:Linear", "torch.nn.Linear"), "5: architecture.factory: expected \"package.module:function\", got 'torch.nn.Linear'"),
    (SMALL.replace("factory: torch.nn:Linear", "arguments: {a: 1}"), '5: architecture.factory: missing; expected "package.module:function"'),
    (SMALL + "  arguments: [1]\n", "6: architecture.arguments: expected names with values, got a list"),
    (SMALL + "  arguments: {1: 2}\n", "6: architecture.arguments: expected names with values, got a mapping"),
    (SMALL + "  arguments:\n    a: {b: 1,\n       b: 2}\n", "8: architecture.arguments.a.b: given twice, first in line 7"),
    (SMALL + "  arguments: {a: !!python/name:os.system x}\n", "6: architecture.arguments: cannot be read: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"),
    (AUTO.replace("auto", "always"), "5: architecture.transformers: expected one of auto; got 'always'"),
    (AUTO + "  factory: torch.nn:Linear\n", "6: architecture.factory: given beside transformers, which builds the network by itself"),
    (AUTO + "  trust_remote_code: 1\n", "6: architecture.trust_remote_code: expected true or false, got 1"),
    (SMALL + "  trust_remote_code: true\n", "6: architecture.trust_remote_code: is for transformers: auto, which is not given"),
    (AUTO.replace("b.pt", "b.pt\n    arguments: {a: 1}"), "6: models[1].arguments: are for a factory; transformers builds by the config.json in the folder"),
    (SMALL + "data:\n", "6: data: has no value"),
    (SMALL + "data: x:y\n", "6: data: expected a mapping with factory, arguments; got 'x:y'"),
    (SMALL + "parameters:\n  ridge: -1\n", "7: parameters.ridge: expected a number >= 0, auto or a mapping of patterns to numbers; got -1"),
    (SMALL + "parameters:\n  ridge: atuo\n", "7: parameters.ridge: expected a number >= 0, auto or a mapping of patterns to numbers; got 'atuo'"),
    (SMALL + "parameters:\n  ridge: {a: 1,\n    b: auto}\n", "8: parameters.ridge.b: expected a number >= 0, got 'auto'"),
    (SMALL + "parameters: {mode: univers}\n", "6: parameters.mode: expected one of reference, universe; got 'univers'; did you mean 'universe'?"),
    (SMALL + "parameters: {t: 1.5}\n", "6: parameters.t: expected a number from 0 to 1, got 1.5"),
    (SMALL + "parameters: {t: half}\n", "6: parameters.t: expected a number from 0 to 1, got 'half'"),
    (SMALL + "parameters: {options: 3}\n", "6: parameters.options: expected names with values, got 3"),
    (SMALL + "parameters: {options: {a: 1, a: 2}}\n", "6: parameters.options.a: given twice, first in line 6"),
    (SMALL + "parameters:\n  gamma: .nan\n", "7: parameters.gamma: expected a number >= 0, got .nan"),
    (SMALL + "parameters: {ridge: 1,\n  gamma: 1}\n", "7: parameters.gamma: given beside ridge; ridge is relative to the features' variance, gamma absolute"),
    (SMALL + "parameters: {repair: None}\n", "6: parameters.repair: expected one of variance, regression, none; got 'None'; did you mean 'none'?"),
    (SMALL + "parameters: {seed: 1.5}\n", "6: parameters.seed: expected an integer >= 0, got 1.5"),
    (SMALL + "parameters: {prove: 1}\n", "6: parameters.prove: expected true or false, got 1"),
    (SMALL + "parameters: {seed: true}\n", "6: parameters.seed: expected an integer >= 0, got true"),
    (SMALL + "parameters: {weights: [1, 2, 3]}\n", "6: parameters.weights: expected 2 numbers, one for each model, got 3"),
    (SMALL + "parameters: {weights: [1, x]}\n", "6: parameters.weights[1]: expected a number >= 0, got 'x'"),
    (SMALL + "parameters: {weights: [0, 0]}\n", "6: parameters.weights: all weights are zero; one at least must be larger"),
    (SMALL + "parameters: {weights: 3}\n", "6: parameters.weights: expected a list of numbers or a mapping of patterns to such lists, got 3"),
    (SMALL + "parameters: {weights: {a: [1]}}\n", "6: parameters.weights.a: expected 2 numbers, one for each model, got 1"),
    (SMALL + "parameters: {weights: {a: 1}}\n", "6: parameters.weights.a: expected a list of numbers, got 1"),
    (SMALL + "evaluation: {factory: 'a:b', metric: acuracy}\n", "6: evaluation.metric: expected accuracy, cross_entropy or \"package.module:function\", got 'acuracy'; did you mean 'accuracy'?"),
    (SMALL + "evaluation: {factory: 'a:b', better: more}\n", "6: evaluation.better: expected one of higher, lower; got 'more'"),
    (SMALL + "evaluation: {factory: 'a:b', better: lower}\n", "6: evaluation.better: of accuracy higher is better"),
    (SMALL + "evaluation: {factory: 'a:b', ensemble: mean}\n", "6: evaluation.ensemble: expected one of probabilities, outputs, none; got 'mean'"),
    (SMALL + "evaluation: {metric: accuracy}\n", '6: evaluation.factory: missing; expected "package.module:function", or local files: text, images, arrays'),
    (GOOD.replace("seed: 7", "weights: [1, 2]"), "21: parameters.weights: the models have weights of their own; give one or the other"),
    (SMALL + "dtype: flaot32\n", "6: dtype: expected one of float32, float64, float16, bfloat16; got 'flaot32'; did you mean 'float32'?"),
    (SMALL + "moments: {}\n", "6: moments: expected a file's path, got a mapping"),
    (SMALL + "device: gpu\n", "6: device: expected cpu, cuda, cuda:N or auto, got 'gpu'"),
    (SMALL + "device: [cuda]\n", "6: device: expected cpu, cuda, cuda:N or auto, got a list"),
    (SMALL + "device: 0\n", "6: device: expected cpu, cuda, cuda:N or auto, got 0"),
    (SMALL + "dtype: float32\ndtype: float64\n", "7: dtype: given twice, first in line 6"),
    ("a: [1\n", "2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
    ("a: 1\n\tb: 2\n", "2: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token"),
    ("", "1: the file is empty"),
    ("- 1\n", "1: expected a mapping with merge_method, base_model, models, architecture, data, evaluation, parameters, moments, dtype, device; got a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_each_mistake_names_its_line(tmp_path, text, expected):
    assert expected in problems(tmp_path, text)


def test_all_mistakes_at_once_in_order(tmp_path):
    text = "merge_method: x\n" + SMALL + "parameters: {ridge: -1}\ndtype: no\n"
    assert [int(p.split(":")[0]) for p in problems(tmp_path, text)] == [1, 7, 8]


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yml: no such file"):
        load_config(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "merge.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "merge.yml")


def test_aliases(tmp_path):
    text = SMALL + "  arguments: &x {a: 1}\ndata: {factory: 'a:b', arguments: *x}\n"
    config = load_config(write(tmp_path, text))
    assert config.data is not None
    assert config.data.arguments == {"a": 1}
    endless = SMALL + "  arguments: &x {a: *x}\n"
    assert "cannot be read: found unconstructable recursive node" in problems(tmp_path, endless)[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("2", 2), ("1e-3", 0.001), ("-2E5", -2e5), ("1.5e3", 1500.0), ("1_0e1", 100.0)),
        *(("two", "two"), ("1e", "1e"), ("e5", "e5"), ("true", True), ("", None)),
        ("[1, 2]", [1, 2]),
    ],
)
def test_values(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_value_that_is_none():
    with pytest.raises(ConfigError, match=r"'\[1' is not a YAML value"):
        parse_value("[1")


def test_methods_are_those_of_the_package():
    assert set(METHODS) == set(ccamerge.METHODS)


def test_fail_names_the_line(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    with pytest.raises(ConfigError, match=r"merge\.yml:6: models\[1\]\.model: broken$"):
        config.fail("models[1].model", "broken")
    assert config.problem("evaluation", "x") == f"{tmp_path / 'merge.yml'}:15: evaluation: x"


def test_no_torch_for_a_configuration(tmp_path):
    write(tmp_path, GOOD)
    code = (
        "import sys; from ccamerge.config.reader import load_config; load_config('merge.yml');"
        "sys.exit('torch' in sys.modules)"
    )
    path = os.pathsep.join([str(Path(ccamerge.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0


# Factories ---------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that only the current folder has."""
    monkeypatch.chdir(tmp_path)
    name = f"module_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(
        "def make(a, b=2): return (a, b)\n"
        "def fails(): raise RuntimeError('no luck')\n"
        "def imports():\n    import json.decoder as j\n    return j.__name__\n"
        "class Inner:\n    make = staticmethod(lambda: 'inner')\n"
        "constant = 3\n"
    )
    yield name
    sys.modules.pop(name, None)


def test_factory_from_the_current_folder(module):
    before = list(sys.path)
    assert Factory(f"{module}:make", {"a": 1})() == (1, 2)
    assert Factory(f"{module}:Inner.make")() == "inner"
    assert Factory(f"{module}:imports")() == "json.decoder"
    assert sys.path == before


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("no_such_package_x:f", {}, "there is no module 'no_such_package_x' .*current folder"),
        ("json.nothing:f", {}, "there is no module 'json.nothing'"),
        ("MODULE:mke", {}, "has no 'mke'; did you mean 'make'"),
        ("MODULE:Inner.mak", {}, "Inner has no 'mak'; did you mean 'make'"),
        ("MODULE:constant", {}, "is a int, expected a function"),
        ("MODULE:make", {}, r"make\(a, b=2\) cannot be called so: missing .*'a'"),
        ("MODULE:make", {"a": 1, "c": 2}, r"cannot be called so: .*'c'"),
    ],
)
def test_factory_that_cannot_be_called(module, path, arguments, message):
    before = list(sys.path)
    factory = Factory(path.replace("MODULE", module), arguments, "merge.yml:9: data")
    with pytest.raises(ConfigError, match=rf"^merge\.yml:9: data: .*{message}"):
        factory.load()
    assert sys.path == before


def test_factory_that_fails(module, tmp_path):
    with pytest.raises(ConfigError, match=r"fails failed: RuntimeError: no luck") as caught:
        Factory(f"{module}:fails")()
    assert isinstance(caught.value.__cause__, RuntimeError)
    (tmp_path / "broken_module.py").write_text("import not_there_at_all\n")
    with pytest.raises(ConfigError, match="importing broken_module failed: No module named 'not_"):
        Factory("broken_module:f").load()
    (tmp_path / "bad_module.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="importing bad_module failed: ZeroDivisionError"):
        Factory("bad_module:f").load()


def test_arguments_may_have_any_names(module):
    """Also those that the import itself uses."""
    with pytest.raises(ConfigError, match=r"cannot be called so: .*'path'"):
        Factory(f"{module}:make", {"a": 1, "path": 2, "source": 3}).load()
    assert import_function(f"{module}:make", "here", 1, b=3)(1, b=3) == (1, 3)


def test_yaml_is_plain(tmp_path):
    content = yaml.safe_load(load_config(write(tmp_path, GOOD)).to_yaml())
    assert content["models"][0] == {"model": "runs/a.pt", "parameters": {"weight": 0.75}}
    assert "gamma" not in content["parameters"]
    assert content["parameters"]["options"] == {"alpha": 0.3, "deep": {"a": [1, "x"]}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("1e308", "1e308"), (0.5, 0.5)),
        (("1e-310", "3e-310"), (0.25, 0.75)),
        (("1e308", "0"), (1.0, 0.0)),
        ((str(10**300), str(3 * 10**300)), (0.25, 0.75)),
    ],
)
def test_weights_at_the_edge_of_floating_point(tmp_path, values, expected):
    text = SMALL + f"parameters: {{weights: [{', '.join(values)}]}}\n"
    config = load_config(write(tmp_path, text))
    assert config.settings.weights == pytest.approx(expected, rel=1e-10, abs=0)
    again = load_config(write(tmp_path, config.to_yaml()))
    assert again.settings.weights == config.settings.weights


@pytest.mark.parametrize(
    "value", ["1e400", "-1e400", ".inf", ".nan", "true", "1" * 400, "1" * 5000]
)
@pytest.mark.parametrize("key", ["ridge", "gamma", "t", "weights", "seed"])
def test_numbers_beyond_floating_point(tmp_path, key, value):
    given = f"[1, {value}]" if key == "weights" else value
    (problem,) = problems(tmp_path, SMALL + f"parameters: {{{key}: {given}}}\n")
    assert problem.startswith(f"6: parameters.{key}")
    assert "expected" in problem or "cannot be read" in problem
    assert len(problem) < 400
