"""Identity of a model's weights, found without loading them.

A digest of a local file or folder covers the bytes of its files, so it is the same on every
machine that has the same weights. Each file is read once: its hash is kept in this process and,
for large files, under ``$SHEAF_CACHE_DIR`` (by default ``~/.cache/sheaf_dagster``), for as long
as size, times and inode of the file stay what they were.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import mmap
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

__all__ = ["joined_digest", "weights_digest"]

_READERS = 4
"""Files hashed side by side: hashing frees the interpreter, and one core does 1.6 GB/s."""

_BLOCK = 4 * 2**20

_KEPT_ON_DISK_FROM = 2**20
"""Smaller files (bytes) are read again sooner than their hash is looked up on disk."""

_SETTLED_SECONDS = 2.0
"""A file that changed less than this before it was hashed could change once more within the
same tick of its file system's clock, unseen: its hash isn't kept."""

_ONNX_BEGINS = b"\x08"
"""An ONNX file is a protobuf message whose first field is a number."""

_LOCATION = re.compile(rb"\n\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])", re.DOTALL)
"""Key and value of an entry, up to the value's length (of one or two bytes)."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NAMES_NO_FILE = re.compile(r"(.*_)?revision|(.*_)?name")
_LOOKS_LOCAL = re.compile(r"(/|~|\.\.?/)\S+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_TIMEOUT_SECONDS = 10.0
_HUB_ANSWER_SECONDS = 60.0
"""How long an answer of the hub is used again."""

_ADAPTER = "adapter_config.json"
_CONFIGS = (_ADAPTER, "config.json", "processor_config.json", "tokenizer_config.json")
"""Files that may name another model."""

_Stat = tuple[int, int, int, int]
_KNOWN: dict[str, tuple[_Stat, str]] = {}
_ANSWERS: dict[tuple[str, str], tuple[float, str]] = {}


def weights_digest(model_id: str, revision: str | None = None) -> str | None:
    """The identity of a model's weights: of a local file or folder, or of a hub model.

    Args:
        model_id: A local path or a Hugging Face hub id.
        revision: Branch, tag or commit of a hub model; by default its main branch.

    Returns:
        ``sha256:<hex>`` of local files, or ``hub:<id>@<commit>`` of a hub model. None if neither is
        known. The hash covers names and bytes. It leaves out hidden files, Markdown and
        ``__pycache__``, and takes in the files beside an ONNX model that hold its weights. The hub
        tells the commit. If the hub can't be reached, or ``HF_HUB_OFFLINE`` is set, the local cache
        does. What is loaded with the model follows, each after ``on``: the model under an adapter
        (at the revision that the adapter names), and the hub model whose code it runs.
    """
    return _digest(model_id, revision, frozenset())


def _digest(model_id: str, revision: str | None, above: frozenset[str]) -> str | None:
    """The same, of a model that models ``above`` it are loaded on top of."""
    path = os.path.expanduser(model_id)
    if os.path.isfile(path):
        beside = _external_data(path)
        return f"sha256:{_joint_hash({'': path, **beside}) if beside else _file_hash(path)}"
    if os.path.isdir(path):
        names = list(_files(path))
        found = f"sha256:{_joint_hash({name: os.path.join(path, name) for name in names})}"
        above |= {os.path.realpath(path)}
        configs = [os.path.join(path, name) for name in names]
    elif _HUB_NAME.fullmatch(model_id):
        commit = _hub_commit(model_id, revision or "main")
        if commit is None:
            return None
        found = f"hub:{model_id}@{commit}"
        above |= {model_id}
        configs = _hub_configs(model_id, commit)
    else:
        return None
    for name, own in _loaded_with(configs):
        if not {name, os.path.realpath(name)} & above:
            found += f" on {_digest(name, own, above) or name}"
    return found


def joined_digest(identity: str | None, named: Mapping[str, Any]) -> str | None:
    """The identity of a model together with what its arguments name: tokenizer, adapters, a draft.

    Args:
        identity: Of the model alone.
        named: Arguments that may name a file, a folder or a hub model: as text, ``name=path``,
            JSON, or lists and dictionaries of these. A revision is looked for beside its model, as
            ``<argument>_revision`` or ``revision``. A text that names nothing is passed over.

    Returns:
        None where one of them isn't known on this machine.
    """
    found = {text: weights_digest(*text) for text in _names(named, None)}
    if identity is None or None in found.values():
        return None
    return "; ".join([identity, *(str(digest) for digest in found.values())])


def _names(value: Any, revision: str | None) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, Mapping):
        for key in sorted(key for key in value if not _NAMES_NO_FILE.fullmatch(key)):
            own = value.get(f"{key}_revision", value.get("revision"))
            yield from _names(value[key], own if isinstance(own, str) else None)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _names(one, revision)
    elif isinstance(value, str):
        with suppress(ValueError):
            inner = json.loads(value)
            if isinstance(inner, (dict, list)):
                yield from _names(inner, revision)
                return
        # Of "name=path" the second part; paths may hold the sign as well.
        for text in dict.fromkeys((value, value.partition("=")[2])):
            if text and os.path.exists(os.path.expanduser(text)):
                yield text, None
                return
            if _HUB_ID.fullmatch(text) or _LOOKS_LOCAL.fullmatch(text):
                yield text, revision
                return


def _joint_hash(files: Mapping[str, str]) -> str:
    """One hash of several files, under names that are the same on every machine."""
    names = sorted(files)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="sheaf-digest") as readers:
        hashes = readers.map(_file_hash, (files[name] for name in names))
        digest = hashlib.sha256()
        for name, file_hash in zip(names, hashes, strict=True):
            digest.update(f"{name}\0{file_hash}\n".encode())
    return digest.hexdigest()


def _external_data(path: str) -> dict[str, str]:
    """Files in which an ONNX model keeps its weights, by their names in it.

    A tensor says where it is in an entry of two texts, ``location`` and the name. The format is
    read no further: the model could be anywhere within graphs and functions.
    """
    size = os.path.getsize(path)
    if not size:
        return {}
    names = set()
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:1] != _ONNX_BEGINS:
            return {}
        for entry in _LOCATION.finditer(data):
            length = entry[1][0] & 0x7F
            if len(entry[1]) == 2:
                length |= entry[1][1] << 7
            names.add(data[entry.end() : entry.end() + length].decode("utf-8", "replace"))
    folder = os.path.dirname(path)
    found = {name: os.path.join(folder, name) for name in names if "\0" not in name}
    return {name: file for name, file in found.items() if os.path.isfile(file)}


def _loaded_with(configs: Sequence[str]) -> list[tuple[str, str | None]]:
    """The models, each with its revision, that some files of a model say are loaded with it.

    Those are what an adapter (LoRA and its like) goes on top of, and where the code of a model is,
    if not beside its weights.
    """
    found: dict[tuple[str, str | None], None] = {}
    for path in sorted(configs):
        if os.path.basename(path) not in _CONFIGS:
            continue
        try:
            with open(path) as f:
                config = json.load(f)
        except (OSError, ValueError):
            continue
        if not isinstance(config, dict):
            continue
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if os.path.basename(path) == _ADAPTER and isinstance(base, str) and base:
            found[base, revision if isinstance(revision, str) else None] = None
        code = config.get("auto_map")
        for reference in code.values() if isinstance(code, dict) else ():
            for one in reference if isinstance(reference, list) else [reference]:
                if isinstance(one, str) and "--" in one:
                    found[one.partition("--")[0], None] = None
    return list(found)


def _files(folder: str) -> Iterator[str]:
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        for name in files:
            if not name.startswith(".") and not name.endswith(".md"):
                yield os.path.relpath(os.path.join(root, name), folder)


def _file_hash(path: str) -> str:
    path = os.path.realpath(path)
    stat, settled = _stat(path)
    known = _KNOWN.get(path) or _read_note(path, stat)
    if known is not None and known[0] == stat:
        _KNOWN[path] = known
        return known[1]
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while block := f.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if settled and _stat(path)[0] == stat:
        _KNOWN[path] = (stat, found)
        _write_note(path, stat, found)
    return found


def _stat(path: str) -> tuple[_Stat, bool]:
    """What changes with the file, and whether it has been left alone for a while."""
    s = os.stat(path)
    changed = max(s.st_mtime, s.st_ctime)
    return (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino), (
        changed < time.time() - _SETTLED_SECONDS
    )


def _note_of(path: str) -> str:
    cache = os.environ.get("SHEAF_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sheaf_dagster"
    )
    return os.path.join(cache, "digests", hashlib.sha256(path.encode()).hexdigest() + ".json")


def _read_note(path: str, stat: _Stat) -> tuple[_Stat, str] | None:
    if stat[0] < _KEPT_ON_DISK_FROM:
        return None
    try:
        with open(_note_of(path)) as f:
            note = json.load(f)
        size, mtime, ctime, inode = note["stat"]
        return (size, mtime, ctime, inode), str(note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(path: str, stat: _Stat, found: str) -> None:
    if stat[0] < _KEPT_ON_DISK_FROM:
        return
    note = _note_of(path)
    temporary = f"{note}.{os.getpid()}"
    with suppress(OSError):  # the next process reads the file again
        os.makedirs(os.path.dirname(note), exist_ok=True)
        with open(temporary, "w") as f:
            json.dump({"path": path, "stat": stat, "sha256": found}, f)
        os.replace(temporary, note)


def _hub_commit(model_id: str, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        offline = importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE
    except ImportError:
        return None
    if not offline:
        asked, commit = _ANSWERS.get((model_id, revision), (float("-inf"), ""))
        if time.monotonic() - asked < _HUB_ANSWER_SECONDS:
            return commit
        with suppress(Exception):
            info = hub.HfApi().model_info(model_id, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
            _ANSWERS[model_id, revision] = (time.monotonic(), str(info.sha))
            return str(info.sha)
    folder = _cached_snapshot(hub, model_id, revision)
    return None if folder is None else os.path.basename(folder)


def _hub_configs(model_id: str, commit: str) -> list[str]:
    """Local copies of a hub model's files that may name another model.

    What isn't in the cache is fetched, once the hub has said that it is there.
    """
    with suppress(Exception):  # it can't be asked: then the commit is all that is known
        hub: Any = importlib.import_module("huggingface_hub")
        folder = _cached_snapshot(hub, model_id, commit)
        if folder is not None:
            return [os.path.join(folder, name) for name in _files(folder)]
        if importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE:
            return []
        info = hub.HfApi().model_info(model_id, revision=commit, timeout=_HUB_TIMEOUT_SECONDS)
        names = [f.rfilename for f in info.siblings if f.rfilename.split("/")[-1] in _CONFIGS]
        return [hub.hf_hub_download(model_id, name, revision=commit) for name in names]
    return []


def _cached_snapshot(hub: Any, model_id: str, revision: str) -> str | None:
    with suppress(Exception):  # not in the cache
        return str(hub.snapshot_download(model_id, revision=revision, local_files_only=True))
    return None
