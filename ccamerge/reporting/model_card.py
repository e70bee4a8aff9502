"""The model card: what a merged checkpoint is, where it comes from and how to load it."""

from __future__ import annotations

import dataclasses
import hashlib
import keyword
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ccamerge.config.importing import Factory
from ccamerge.config.model import Config, Pretrained


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that went into a merge; ``sha256`` tells its exact version.

    It is the file's, or of one in shards that of what ``sha256sum`` prints of these in their order.

    ``weight`` is its share where no pattern gives another.
    """

    path: str
    sha256: str
    weight: float


def sources(config: Config, shares: Sequence[float], relative_to: Path) -> list[Source]:
    """List the merged checkpoints in the configuration's order, with their files' digests.

    ``shares`` are those that the report says, which ``t`` has a part in.
    """
    with ThreadPoolExecutor() as pool:  # digests are computed outside Python
        digests = list(pool.map(_digest, config.models))
    return [
        Source(Path(os.path.relpath(path, relative_to)).as_posix(), digest, weight)
        for path, digest, weight in zip(config.models, digests, shares, strict=True)
    ]


def versions() -> dict[str, str]:
    """Of what a merge's numbers depend on."""
    import platform
    from importlib import metadata

    from ccamerge import __version__

    found = {"ccamerge": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def model_card(
    config: Config,
    merged: list[Source],
    report: str,
    versions: Mapping[str, str],
    relative_to: Path,
    chosen: str = "merge",
    parameters: str = "model.safetensors",
) -> str:
    """Write the README.md that goes beside a merged checkpoint.

    Parameters
    ----------
    config : of the merge
    merged : see `sources`
    report : what happened, in Markdown
    versions : see `versions`
    relative_to : the folder of the card, from which its paths are meant
    chosen : which candidate was handed over, see `ccamerge.reporting.fidelity.Fidelity`
    parameters : the file that the parameters are in, or the index of its shards

    Returns
    -------
    Markdown with the metadata block that model hubs read.
    """
    rows = "\n".join(
        f"| {_code(s.path)}{' (reference)' if i == config.reference else ''} "
        f"| {s.weight:.4g} | `{s.sha256[:16]}` |"
        for i, s in enumerate(merged)
    )
    pins = ", ".join(f"{name} {number}" for name, number in versions.items())
    text = config.to_yaml(relative_to)
    settings = config.settings
    others = "each other" if settings.mode == "universe" else "the reference's"
    how = _code(settings.method_words)
    size = "the same architecture and size as each of those"
    made = {a.path: a for a in config.architectures if isinstance(a, Factory)}
    if any(isinstance(a, Factory) and a != made[a.path] for a in config.architectures):
        size = "the same architecture as those, in the size of the reference,"
    apart = ""
    if isinstance(settings.weights, Mapping):
        apart = " Features and parameters that match a pattern of `weights` below have their own."
    if chosen != "merge":
        apart += f" What is handed over is the candidate {_code(chosen)}: see *What happened*."
    loading = _loading(config, parameters)
    if not config.plain:
        what = (
            f"Their\nfeatures were aligned with {others} (method: {how}), then their parameters "
            f"averaged with these\nweights.{apart}"
        )
    else:
        what = f"Their\nparameters were averaged as they stand, with these weights.{apart}"
    return f"""---
library_name: {"transformers" if "from_pretrained" in loading else "pytorch"}
tags:
- merge
- model-merging
- ccamerge
---

# {len(merged)} networks merged with ccamerge

`{parameters}` is one network of {size} below. {what}

| model | weight | SHA-256 begins |
|---|---|---|
{rows}

## Use

{_fenced(loading, "python")}

## What happened

{report.strip()}

## Configuration

`config.yml` here; `ccamerge merge config.yml NEW_FOLDER` does the merge again.

{_fenced(text, "yaml")}

Made with {pins}.
"""


def _loading(config: Config, parameters: str) -> str:
    """Code that loads the checkpoint; run in the tests as it stands."""
    from ccamerge.checkpoints.carried import hub_folder

    base = hub_folder(config.models[config.reference])
    if not config.architectures and base is None:
        return (
            "from ccamerge.checkpoints import load_state\n\n"
            f'state = load_state("{parameters}")  # for your network\'s load_state_dict'
        )
    if base is not None and not config.architectures:
        return _from_pretrained(Pretrained(base))
    one = config.architecture
    if not isinstance(one, Factory):
        return _from_pretrained(one)
    module, _, attribute = one.path.partition(":")
    first = attribute.partition(".")[0]
    arguments: Any = dict(one.arguments)
    plain = all(name.isidentifier() and not keyword.iskeyword(name) for name in arguments)
    call = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) if plain else f"**{arguments!r}"
    return (
        "from ccamerge.checkpoints import load_into\n"
        f"from {module} import {first}\n\n"
        f"model = {attribute}({call})\n"
        f'load_into(model, "{parameters}")\n'
        "model.eval()"
    )


def _from_pretrained(made: Pretrained) -> str:
    from ccamerge.checkpoints.pretrained import config_of

    [name, *_] = config_of(made.folder).get("architectures") or ["AutoModel"]
    name = str(name)
    trusted = ", trust_remote_code=True" if made.trust_remote_code else ""
    name = "AutoModel" if trusted else name
    return f'from transformers import {name}\n\nmodel = {name}.from_pretrained("."{trusted})'


def _fenced(text: str, language: str) -> str:
    """Make a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _code(text: str) -> str:
    """Inline code inside a table."""
    tick = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{tick}{pad}{text}{pad}{tick}".replace("|", "\\|")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(checkpoint: Path) -> str:
    """Of the one file that a checkpoint is, else of the list of its shards and their digests."""
    from ccamerge.checkpoints.files import files_of

    files = files_of(checkpoint)
    if len(files) == 1:
        return _sha256(files[0])
    lines = "".join(f"{_sha256(shard)}  {shard.name}\n" for shard in files[1:])
    return hashlib.sha256(lines.encode()).hexdigest()
