"""Generating texts of a mixed batch with torch: each row by its own settings and seed.

``generate`` of transformers knows one set of settings a call and draws from one stream of random
numbers, so that a row's draws would depend on its batch mates. Here it decodes greedily, and a
processor turns the greedy choice into a draw: the token with the largest logit plus Gumbel noise
is distributed as the softmax says (Gumbel 1954; "Gumbel-max trick").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sheaf_dagster.backends.language.prompts import Completion, Prompt
from sheaf_dagster.backends.tables.records import grouped

__all__ = ["Generator", "Made", "Task"]


_OF_A_WHOLE_BATCH = {
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1,
    "sequence_bias": None,
}
"""Settings, saved with a model, for which the library takes the padding of a shorter row for words
of its own, or the longest row's end for that of each; with the values that are without effect."""


class Task(NamedTuple):
    """One completion that is to be generated."""

    tokens: list[int]
    """Of the prompt."""
    prompt: Prompt
    seed: int
    limit: int
    """Tokens that may be generated."""

    @property
    def size(self) -> int:
        """Tokens that it may come to."""
        return len(self.tokens) + self.limit


class Made(NamedTuple):
    """What the model has generated."""

    task: Task
    tokens: list[int]


class Generator:
    """A loaded model with its tokenizer.

    Args:
        model: A causal or an encoder-decoder model of transformers.
        tokenizer: Its tokenizer.
        device: Where it is.
        max_tokens: Length of an answer where the row doesn't say.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str, max_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._max_tokens = max_tokens
        self._causal = not model.config.is_encoder_decoder
        config = model.generation_config
        self.leaves_out_beams: bool = (config.num_beams or 1) > 1
        """The model was saved to search with several beams; here each answer is made token by token."""
        self._must_be_alike = any(
            getattr(config, name, None) not in (None, neutral)
            for name, neutral in _OF_A_WHOLE_BATCH.items()
        )
        eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
        self._eos: list[int] = list(eos) if isinstance(eos, list) else [] if eos is None else [eos]
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else (self._eos or [0])[0]
        self._room: int | None = getattr(
            model.config.get_text_config(), "max_position_embeddings", None
        )

    def tasks(self, prompt: Prompt) -> list[Task]:
        """What is to be generated for a prompt: ``sampling.n`` completions.

        Raises:
            ValueError: It leaves no room for an answer; its row is named.
        """
        tokens = self._tokens(prompt)
        limit = self._limit(tokens, prompt)
        return [Task(tokens, prompt, seed, limit) for seed in prompt.seeds]

    def run(self, tasks: Sequence[Task], batch_size: int) -> list[Made]:
        """What the model generates, for each task; those of like length run together."""
        made: dict[int, Made] = {}
        for some in self._together(tasks, batch_size):
            made |= zip(some, self._batch([tasks[i] for i in some]), strict=True)
        return [made[i] for i in range(len(tasks))]

    def device_size(self, tasks: Sequence[Task], batch_size: int) -> int:
        """What the model has of tasks, each filled up to the largest of those beside it."""
        together = self._together(tasks, batch_size)
        return sum(len(some) * max(tasks[i].size for i in some) for some in together)

    def _together(self, tasks: Sequence[Task], batch_size: int) -> Iterator[list[int]]:
        """Tasks that run together, by their places."""
        order = sorted(range(len(tasks)), key=lambda i: -tasks[i].size)
        alike = grouped(order, lambda i: self._must_be_alike and self._shape(tasks[i]))
        for group in alike.values():
            for start in range(0, len(group), batch_size):
                yield group[start : start + batch_size]

    def _shape(self, task: Task) -> tuple[int, int]:
        """What tasks share that run without padding, and end together."""
        # What an encoder-decoder has written has no padding before it.
        return len(task.tokens) if self._causal else 0, task.limit

    def _tokens(self, prompt: Prompt) -> list[int]:
        if prompt.messages is None:
            tokens = self._tokenizer(prompt.text)["input_ids"]
        else:
            if not self._tokenizer.chat_template:
                raise ValueError(
                    f"{prompt.row}: is a chat, but the model's tokenizer has no chat template; "
                    "give a text"
                )
            text = self._render(prompt.messages)
            calls = any(m.get("tool_calls") for m in prompt.messages)
            if calls and text == self._render([_without_calls(m) for m in prompt.messages]):
                raise ValueError(
                    f"{prompt.row}: has messages with 'tool_calls', which the model's chat "
                    "template leaves out; use a model that calls tools"
                )
            tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = prompt.sampling.max_tokens or 1
        if not tokens:
            raise ValueError(f"{prompt.row}: is empty")
        if not self._causal and self._room is not None and len(tokens) > self._room:
            raise ValueError(
                f"{prompt.row}: has {len(tokens)} tokens, but the model reads at most {self._room}; "
                "shorten it"
            )
        used = len(tokens) if self._causal else 1
        if self._room is not None and used + wanted > self._room:
            raise ValueError(
                f"{prompt.row}: needs {used} tokens and {wanted} more for its answer, but the model "
                f"has room for {self._room}; shorten one of the two"
            )
        return list(tokens)

    def _render(self, messages: list[dict[str, Any]]) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _limit(self, tokens: list[int], prompt: Prompt) -> int:
        asked = prompt.sampling.max_tokens or self._max_tokens
        return (
            asked
            if self._room is None
            else min(asked, self._room - (len(tokens) if self._causal else 1))
        )

    def _batch(self, tasks: list[Task]) -> list[Made]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        longest = max(len(task.tokens) for task in tasks)
        ids, mask = [], []
        for tokens in (task.tokens for task in tasks):
            fill, ones = [self._pad] * (longest - len(tokens)), [1] * len(tokens)
            zeros = [0] * len(fill)
            # A causal model continues at the right end.
            ids.append(fill + tokens if self._causal else tokens + fill)
            mask.append(zeros + ones if self._causal else ones + zeros)
        limits = [task.limit for task in tasks]
        begin = longest if self._causal else 1
        draws = _row_draws(tasks, begin, self._device)
        stops = _row_stops(tasks, limits, begin, self._tokenizer)
        with torch.inference_mode():
            sequences = self._model.generate(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                generation_config=GenerationConfig(
                    max_new_tokens=max(limits),
                    do_sample=False,
                    num_beams=1,
                    eos_token_id=self._eos or None,
                    pad_token_id=self._pad,
                    decoder_start_token_id=self._model.generation_config.decoder_start_token_id,
                ),
                logits_processor=LogitsProcessorList([draws]),
                stopping_criteria=StoppingCriteriaList([stops]),
            )
        for task, is_lost in zip(tasks, draws.lost.tolist(), strict=True):
            if is_lost:
                raise ValueError(
                    f"{task.prompt.row}: the model's token scores are not numbers in "
                    f"{str(self._model.dtype).removeprefix('torch.')}; use dtype 'bfloat16' or "
                    "'float32'"
                )
        return [
            Made(task, sequence[begin:].tolist()[: stops.ended[i] or task.limit])
            for i, (sequence, task) in enumerate(zip(sequences, tasks, strict=True))
        ]

    def completion(self, found: Made) -> Completion:
        """The text of what was generated."""
        tokens, prompt, made = found.task.tokens, found.task.prompt, found.tokens
        end = next((k for k, token in enumerate(made) if token in self._eos), None)
        reason = "length" if end is None else "stop"
        text = self._tokenizer.decode(made[:end], skip_special_tokens=True)
        cuts = [at for s in prompt.sampling.stop if (at := text.find(s)) >= 0]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        return Completion(text, reason, len(tokens), len(made) if end is None else end + 1)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _row_draws(tasks: list[Task], begin: int, device: str) -> Any:
    import torch
    from transformers import LogitsProcessor

    class RowDraws(LogitsProcessor):
        """Turns each row's logits so that their largest is its draw."""

        def __init__(self) -> None:
            self.lost = torch.zeros(len(tasks), dtype=torch.bool, device=device)
            """Of each row, whether a score was no number."""
            self._random = [torch.Generator(device=device).manual_seed(t.seed) for t in tasks]

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float().clone()
            self.lost |= scores.isnan().any(dim=1)
            for i, task in enumerate(tasks):
                s = task.prompt.sampling
                if s.presence_penalty or s.frequency_penalty:
                    said, times = input_ids[i, begin:].unique(return_counts=True)
                    scores[i, said] -= s.presence_penalty + s.frequency_penalty * times
                if s.temperature > 0:
                    scores[i] = self._drawn(i, scores[i] / s.temperature, s.top_k, s.top_p)
            return scores

        def _drawn(self, i: int, logits: Any, top_k: int, top_p: float) -> Any:
            if 0 < top_k < len(logits):
                logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
            if top_p < 1:
                ordered, at = logits.sort(descending=True)
                mass = ordered.softmax(0).cumsum(0)
                beyond = mass - ordered.softmax(0) >= top_p  # the likeliest one always stays
                logits = logits.index_fill(0, at[beyond], -torch.inf)
            noise = torch.rand(logits.shape, generator=self._random[i], device=device)
            return logits - (-noise.clamp_min(1e-20).log()).log()

    return RowDraws()


def _row_stops(tasks: list[Task], limits: list[int], begin: int, tokenizer: Any) -> Any:
    import torch
    from transformers import StoppingCriteria

    class RowStops(StoppingCriteria):
        """Ends each row at its own length or stop texts."""

        def __init__(self) -> None:
            self.ended: list[int | None] = [None] * len(tasks)

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            done = input_ids.shape[1] - begin
            for i, task in enumerate(tasks):
                if self.ended[i] is None and (
                    done >= limits[i] or self._has_stop(input_ids[i], task.prompt.sampling.stop)
                ):
                    self.ended[i] = done
            return torch.tensor([e is not None for e in self.ended], device=input_ids.device)

        def _has_stop(self, row: Any, stop: tuple[str, ...]) -> bool:
            if not stop:
                return False
            # A stop text has no more tokens than characters.
            tail = row[begin:][-(max(map(len, stop)) + 4) :]
            text = tokenizer.decode(tail, skip_special_tokens=True)
            return any(s in text for s in stop)

    return RowStops()
