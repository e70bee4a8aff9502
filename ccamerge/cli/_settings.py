"""From a configuration to what `ccamerge.merge` takes: methods, checks, statistics."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ccamerge.cli._shared import Batches, as_merged, log, show_progress
from ccamerge.config.data_files import DataFiles
from ccamerge.config.importing import ConfigError, import_function
from ccamerge.config.model import Config
from ccamerge.config.settings import TABLE, Ensemble, Settings
from ccamerge.core.device import Device

if TYPE_CHECKING:
    from torch import nn

    from ccamerge.collection.statistics import Statistics
    from ccamerge.graph.space import Spaces
    from ccamerge.merging.checking import Problem


def check_sources(config: Config) -> None:
    """Check that there is something to take statistics from; nothing is read.

    Raises
    ------
    ConfigError
        If there are neither moments nor data, no such file or no such function.
    """
    if config.moments is not None:
        if not config.moments.is_file():
            config.fail("moments", f"no file {config.moments}; `ccamerge collect` makes it")
    elif config.data is None:
        hint = ""
        if config.settings.method == "average":
            hint = ", or parameters: {repair: none} for the average of the parameters as they stand"
        config.fail("data", f"missing, and there are no moments; give one of them{hint}")
    else:
        config.data.load()


def loaded_settings(config: Config) -> Settings:
    """The settings, with functions of others imported; methods are named as in `METHODS`.

    Raises
    ------
    ConfigError
        If a function cannot be imported or is not a method.
    """
    found = dataclasses.replace(config.settings, ensemble=_ensemble(config))
    given = found.method
    where = "merge_method"
    if isinstance(given, str):
        return dataclasses.replace(found, method=method_name(given, config, where))
    names = {p: method_name(name, config, f"{where}.{p}") for p, name in given.items()}
    return dataclasses.replace(found, method=names)


def _ensemble(config: Config) -> Ensemble | None:
    """What the ensemble averages, a function imported if it is one."""
    given, where = config.settings.ensemble, TABLE["ensemble"].where
    if not isinstance(given, str) or ":" not in given:
        return given
    return import_function(given, _source(config, where), "the outputs")


def _source(config: Config, where: str) -> str:
    """The place of a part, if the file says it; else its name."""
    line = config.lines.get(where)
    return where if line is None else f"{config.source}:{line}: {where}"


def method_name(given: str, config: Config, where: str) -> str:
    """The name of a method, which is imported if it is given as "package.module:function"."""
    if ":" not in given:
        return given
    from ccamerge.methods import METHODS

    source = _source(config, where)
    function = import_function(given, source, "the alignment")
    for name, method in METHODS.items():
        if method.solve is function:
            return name
    message = f"{source}: {given} is no method; decorate it with ccamerge.methods.register"
    raise ConfigError([message])


def check_settings(config: Config, settings: Settings) -> None:
    """Check what can be said of settings before any data is read.

    Raises
    ------
    ConfigError
        With all that `examined` finds, each with its file and line.
    """
    from ccamerge.merging.checking import examined

    _refuse(config, examined(settings, len(config.models), config.reference)[1])


def maps_widths(settings: Settings) -> bool:
    """Whether networks may differ in width, as far as settings tell without their spaces."""
    from ccamerge.methods.alignment import method_named

    if settings.mode != "reference":
        return False
    return not isinstance(settings.method, str) or method_named(settings.method).rectangular


def check_for_spaces(config: Config, settings: Settings, every: Sequence[Spaces]) -> None:
    """Check what depends on the networks' spaces, before any more data is read.

    Raises
    ------
    ConfigError
        With all that `check_spaces` finds, each with its file and line.
    """
    from ccamerge.merging.checking import check_spaces

    _refuse(config, check_spaces(settings, every, config.reference))


def _refuse(config: Config, problems: Sequence[Problem]) -> None:
    texts = []
    for name, error in problems:
        texts.append(config.problem(TABLE[name].where, str(error).removeprefix(f"{name}: ")))
    if texts:
        raise ConfigError(texts)


def _compare_data(config: Config, loaded: Statistics) -> None:
    """Warn if moments were collected from other local files, or in another way, than is said.

    The files need not be there any more; then there is nothing to compare.
    """
    if not isinstance(config.data, DataFiles) or not loaded.data:
        return
    try:
        here = config.data().fingerprint
    except ConfigError:
        return
    then = loaded.data
    told = [
        f"{name} was {then.get(name)}, is {here.get(name)}"
        for name in dict.fromkeys([*then, *here])
        if then.get(name) != here.get(name)
    ]
    if told:
        text = f"{config.moments} is of other data than is said here: {'; '.join(told)}"
        log.warning("%s", config.problem("moments", text))


def statistics(
    args: argparse.Namespace,
    config: Config,
    models: Sequence[nn.Module],
    wanted: Iterable[Settings],
    device: Device | None,
    kept: Mapping[str, Any] | None = None,
) -> tuple[Statistics, float]:
    """The moments that some merges need, from the file or from one pass over the data, on a device.

    Settings are checked before the pass, as soon as the first batch shows the network's spaces.
    ``kept`` has the options of `ccamerge.collect` that say where the pass is kept.

    Returns
    -------
    The moments, and the seconds that it took to collect them.
    """
    import ccamerge
    from ccamerge.graph.networks.parameters import same_architecture
    from ccamerge.graph.networks.widths import spaces_of_models
    from ccamerge.graph.tracing.batches import split_batch
    from ccamerge.methods.alignment import pairs_needed

    wanted, models = list(wanted), as_merged(config, models)
    if config.moments is not None:
        loaded = ccamerge.Statistics.load(config.moments, device)
        _compare_data(config, loaded)
        for settings in wanted:
            check_for_spaces(config, settings, [loaded.spaces_of(model) for model in models])
        return loaded, 0.0
    assert config.data is not None  # see check_sources
    start = time.perf_counter()
    data = Batches(config.data, config.settings.seed, models[0])
    batches = iter(data)
    first = list(itertools.islice(batches, 1))
    if not first:
        config.fail("data", f"data is empty: {config.data.path} gave no batch")
    found = spaces_of_models(
        same_architecture(models), *split_batch(first[0], models[0]), config.settings.prove
    )
    for settings in wanted:
        check_for_spaces(config, settings, found)
    every = {pairs_needed(settings.method, settings.mode) for settings in wanted}
    collected = ccamerge.collect(
        models,
        itertools.chain(first, batches),
        reference=config.reference,
        pairs="all" if "all" in every else "reference",
        found=found,
        progress=show_progress(args),
        seed=config.settings.seed,
        prove=config.settings.prove,
        device=device or "cpu",
        holdout=config.settings.holdout,
        **(kept or {}),
    )
    collected.data = data.fingerprint
    return collected, time.perf_counter() - start
