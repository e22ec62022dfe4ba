"""Texts to vectors in two steps, tokenising and the network: together what ``encode`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, NamedTuple, Protocol

from sheaf_dagster.backends.common.device import from_device

__all__ = ["Encoded", "Encoder", "dimension_of", "encoder_of", "passes"]

_PASS_TOKENS = 64
"""What one more pass through MiniLM costs on a CPU, in tokens (8 ms, where a token takes 0.2 ms):
padding that costs more is not worth having."""

_PASS_TOKENS_OF_GPU = 8192
"""On a GPU, which does thousands of tokens in the time that a pass takes to start."""

_NO_LIMIT = 10**9


class Encoded(NamedTuple):
    """What the model made of the texts of one row."""

    vectors: Any
    """float32 array (n_texts, dim)."""
    tokens: int
    """How many the model has read."""
    truncated: bool
    """Whether it could not read one of the texts whole."""


class Encoder(Protocol):
    """Makes vectors of texts, in two steps."""

    def prepared(self, texts: Sequence[str]) -> Sequence[Any]:
        """Each text as ``encoded`` takes it; called from several threads."""
        ...

    def without_model(self) -> Encoder | None:
        """What prepares texts in another process; None where that is nothing."""
        ...

    def size(self, prepared: Sequence[Any]) -> int:
        """What texts cost the network."""
        ...

    def encoded(self, rows: Sequence[Sequence[Any]]) -> list[Encoded] | Callable[[], list[Encoded]]:
        """The vectors of some rows' texts, or what waits for them."""
        ...

    def device_size(self, rows: Sequence[Sequence[Any]]) -> int:
        """What the network had in all, for the texts of some rows."""
        ...


def encoder_of(model: Any, prompt: str | None, most: int) -> Encoder:
    """What makes a model's vectors: in two steps if it reads texts in the usual way.

    Some models have no network, or a chat template, and only the library knows how they read. So
    texts of all kinds go both ways here, and must come to the same arrays.

    Args:
        model: A loaded ``SentenceTransformer``.
        prompt: Put before each text.
        most: Texts that go through the network at once.
    """
    fast = getattr(getattr(model, "tokenizer", None), "is_fast", False)
    if fast and hasattr(model, "preprocess") and model.device.type in ("cpu", "cuda", "mps"):
        with suppress(Exception):  # a tokenizer that can't be copied, a text that it can't read …
            encoder = _TokenEncoder(model, prompt, most)
            if encoder.agrees():
                return encoder
    return _LibraryEncoder(model, prompt, most)


class _Tokens(NamedTuple):
    """A text as the model reads it."""

    ids: Any
    """int64 array (n,): what is read."""
    types: Any
    """int64 array (n,): the segment of each."""
    whole: int
    """How many there were before the text was cut to what the model reads."""


class _TokenEncoder:
    """Embeds as ``SentenceTransformer.encode`` does, but tokenises apart from the network.

    Tokens are made by a copy of the model's tokenizer, whose settings never change: the library
    sets its own anew at each call, which can't be done while another thread tokenises.

    Args:
        model: A loaded ``SentenceTransformer``.
        prompt: Put before each text.
        most: Texts that go through the network at once.
    """

    def __init__(self, model: Any, prompt: str | None, most: int) -> None:
        self._model = model
        self._prompt = prompt or ""
        self._most = most
        self._device = str(model.device)
        self._limit: int = min(model.max_seq_length or _NO_LIMIT, _NO_LIMIT)
        self._tokenizer = _copied(model.tokenizer, self._limit)
        self._splits_marks = bool(self._tokenizer.encode_special_tokens)
        self._marks = int(model.tokenizer.num_special_tokens_to_add(False))
        self._left = model.tokenizer.padding_side == "left"
        self._fill = {
            "input_ids": model.tokenizer.pad_token_id or 0,
            "token_type_ids": model.tokenizer.pad_token_type_id,
        }
        self._cost = _PASS_TOKENS if self._device == "cpu" else _PASS_TOKENS_OF_GPU
        self._constants: dict[str, Any] = {}
        """What the library adds to the arrays, such as the length of the prompt."""
        self._names: frozenset[str] = frozenset()
        """The arrays that the model takes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tokenizer.encode_special_tokens = self._splits_marks  # which pickle loses

    def prepared(self, texts: Sequence[str]) -> list[_Tokens]:
        """The tokens of some texts; other threads may run meanwhile."""
        import numpy as np

        found = self._tokenizer.encode_batch_fast([self._prompt + text for text in texts])
        return [
            _Tokens(
                np.array(one.ids, np.int64),
                np.array(one.type_ids, np.int64),
                len(one) + sum(len(rest) - self._marks for rest in one.overflowing),
            )
            for one in found
        ]

    def without_model(self) -> Encoder:
        """The same without its network."""
        other = copy(self)
        other._model = None
        return other

    def size(self, prepared: Sequence[_Tokens]) -> int:
        """How many tokens are read."""
        return sum(len(text.ids) for text in prepared)

    def encoded(
        self, rows: Sequence[Sequence[_Tokens]]
    ) -> list[Encoded] | Callable[[], list[Encoded]]:
        """The vectors of some rows' texts; those of like length go through the network together."""
        import numpy as np
        import torch

        texts = [text for row in rows for text in row]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
        lengths = [len(texts[i].ids) for i in order]

        def by_row(made: Any) -> list[Encoded]:
            vectors = np.zeros((len(texts), dimension_of(self._model)), np.float32)
            vectors[order] = made
            return [
                Encoded(own, self.size(row), any(text.whole > len(text.ids) for text in row))
                for row, own in zip(rows, _by_row(vectors, rows), strict=True)
            ]

        if not texts:
            return by_row(0)
        with torch.inference_mode():
            made = [
                self._forward([texts[i] for i in order[start:stop]])
                for start, stop in passes(lengths, self._most, self._cost)
            ]
            # One copy from the device, after the last pass: none waits for the one before it.
            found: list[Encoded] = from_device(torch.cat(made).float(), by_row)
        return found

    def device_size(self, rows: Sequence[Sequence[_Tokens]]) -> int:
        """Tokens of all passes, each filled up to its longest text."""
        lengths = sorted((len(text.ids) for row in rows for text in row), reverse=True)
        cut = passes(lengths, self._most, self._cost)
        return sum((stop - start) * lengths[start] for start, stop in cut)

    def _forward(self, texts: Sequence[_Tokens]) -> Any:
        features: dict[str, Any] = dict(self._constants)
        for name, values in self._padded(texts).items():
            if self._device.startswith("cuda"):
                values = values.pin_memory()
            features[name] = values.to(self._device, non_blocking=True)
        vectors = self._model(features)["sentence_embedding"]
        cut = self._model.truncate_dim
        return vectors if cut is None else vectors[:, :cut]

    def _padded(self, texts: Sequence[_Tokens]) -> dict[str, Any]:
        import numpy as np
        import torch

        longest = max(len(text.ids) for text in texts)
        arrays = {n: np.full((len(texts), longest), v, np.int64) for n, v in self._fill.items()}
        arrays["attention_mask"] = np.zeros((len(texts), longest), np.int64)
        for i, text in enumerate(texts):
            n = len(text.ids)
            place = slice(longest - n, longest) if self._left else slice(0, n)
            arrays["input_ids"][i, place] = text.ids
            arrays["token_type_ids"][i, place] = text.types
            arrays["attention_mask"][i, place] = 1
        return {n: torch.from_numpy(a) for n, a in arrays.items() if n in self._names}

    def agrees(self) -> bool:
        """Whether the library makes the same of some texts; takes over what else it says of them."""
        import torch

        marks = " ".join(map(str, self._model.tokenizer.all_special_tokens))
        texts = [
            "",
            "a",
            f" Two  words,\n{marks} ",
            "Übergrößenträger 長い 👩🏽‍🚀 e\u0301",
            "word " * 999,
        ]
        theirs = self._model.preprocess(list(texts), prompt=self._prompt or None)
        arrays = {n: v for n, v in theirs.items() if isinstance(v, torch.Tensor)}
        self._constants = {n: v for n, v in theirs.items() if n not in arrays}
        self._names = frozenset(arrays)
        ours = self._padded(self.prepared(texts))
        return ours.keys() == arrays.keys() and all(
            torch.equal(values, arrays[n]) for n, values in ours.items()
        )


class _LibraryEncoder:
    """Has the library do both steps at once."""

    def __init__(self, model: Any, prompt: str | None, most: int) -> None:
        self._model = model
        self._prompt = prompt
        self._most = most

    def prepared(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts."""
        return texts

    def without_model(self) -> None:
        """There is nothing to prepare."""

    def size(self, prepared: Sequence[str]) -> int:
        """How many characters there are."""
        return sum(map(len, prepared))

    def encoded(self, rows: Sequence[Sequence[str]]) -> list[Encoded]:
        """What ``encode`` makes of all texts together."""
        import numpy as np

        texts = [text for row in rows for text in row]
        vectors = np.zeros((0, dimension_of(self._model)), np.float32)
        if texts:
            vectors = self._model.encode(
                texts,
                prompt=self._prompt,
                batch_size=self._most,
                convert_to_numpy=True,
                normalize_embeddings=False,
                show_progress_bar=False,
            ).astype(np.float32)
        limit = min(self._model.max_seq_length or _NO_LIMIT, _NO_LIMIT)
        lengths = self._lengths(texts)
        return [
            Encoded(own, sum(min(n, limit) for n in whole), any(n > limit for n in whole))
            for own, whole in zip(_by_row(vectors, rows), _by_row(lengths, rows), strict=True)
        ]

    def device_size(self, rows: Sequence[Sequence[str]]) -> int:
        """As the library pads: in batches of like length."""
        lengths = sorted((len(text) for row in rows for text in row), reverse=True)
        starts = range(0, len(lengths), self._most)
        return sum(len(lengths[i : i + self._most]) * lengths[i] for i in starts)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has with its prompt, read whole; 0 if there are none."""
        whole = [(self._prompt or "") + text for text in texts]
        tokenizer = self._model.tokenizer
        if not texts:
            return []
        if hasattr(tokenizer, "encode_batch_fast"):  # of a model without a network
            return [
                len(one) for one in tokenizer.encode_batch_fast(whole, add_special_tokens=False)
            ]
        if not callable(tokenizer):
            return [0] * len(texts)
        found = tokenizer(whole, truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]


def passes(lengths: Sequence[int], most: int, cost: int) -> Iterator[tuple[int, int]]:
    """Cuts texts in order of falling length into passes, where padding would cost more than a pass.

    Args:
        lengths: Tokens of each text.
        most: Texts of a pass.
        cost: What a pass costs, in tokens.
    """
    start = padding = 0
    for i, length in enumerate(lengths):
        padding += lengths[start] - length
        if i - start == most or padding > cost:
            yield start, i
            start, padding = i, 0
    if start < len(lengths):
        yield start, len(lengths)


def _copied(tokenizer: Any, limit: int) -> Any:
    """A fast tokenizer of transformers as one of its own, set for good."""
    backend = tokenizer.backend_tokenizer
    own = type(backend).from_str(backend.to_str())
    own.encode_special_tokens = backend.encode_special_tokens
    own.no_padding()
    if limit < _NO_LIMIT:
        own.enable_truncation(limit, direction=tokenizer.truncation_side)
    else:
        own.no_truncation()
    return own


def _by_row(values: Any, rows: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Of what all texts together have come to, each row's own."""
    at = 0
    for row in rows:
        yield values[at : at + len(row)]
        at += len(row)


def dimension_of(model: Any) -> int:
    """Length of a model's vectors."""
    get = getattr(model, "get_embedding_dimension", None)
    return int((get or model.get_sentence_embedding_dimension)())
