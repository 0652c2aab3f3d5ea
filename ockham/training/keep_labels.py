"""What a model's own attention says of the tokens of texts: which of them later rows look at.

A text is read once, and then once more behind itself, as if the model were asked to repeat it: what
it looks at to write the text again is what it could need of it (KVzip, Kim et al. 2025,
arXiv:2505.23416). If the text is a question with its answer, what the answer looks at counts too.
Ockham's own engine reads, so that any model that it serves can be trained for, as it is served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from ockham.core.arrays import Floats, Ints
from ockham.core.config import EngineConfig
from ockham.core.owned_files import replacing
from ockham.core.sampling_params import SamplingParams
from ockham.core.seams import NOTHING, Observer, OwnRows, Seen, Wants
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.model.checkpoint.keep_files import ModelSizes, normalised
from ockham.training.documents import Piece

Tell = Callable[[str], None]

REPEAT = "\n\nRepeat the previous text exactly.\n\n"
CHUNK = 256
"""Rows of a step: what is observed of them is in memory at once."""
LEAST = 1e-6
"""Less attention than that is none: labels are logarithms."""
ROWS_OF_TEXT = 256
HELD_OUT_TEXTS = 8
"""One text in so many only measures."""


@dataclass(frozen=True, slots=True)
class Text:
    """`tokens` are read, of which the first `context` are judged by what the others look at."""

    tokens: tuple[int, ...]
    context: int


@dataclass(frozen=True, slots=True)
class Labels:
    """Rows of texts: the inputs of each layer (L, N, d), as fp16, and for each key-value head the
    logarithm of the most attention that a later row gave the token, (L, N, H). `held_out` (N,) says
    which rows are of texts that only measure."""

    inputs: np.ndarray[tuple[int, int, int], np.dtype[np.float16]]
    labels: Floats
    held_out: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def save(self, path: Path) -> None:
        """Keep them in a file, which is whole or not there."""
        with replacing(path) as file:
            np.savez(file, inputs=self.inputs, labels=self.labels, held_out=self.held_out)

    @classmethod
    def load(cls, path: Path) -> Labels:
        with np.load(path) as stored:
            return cls(stored["inputs"], stored["labels"], stored["held_out"])


def texts_of(
    pieces: Sequence[Piece], repeat: Sequence[int], context: int, rng: Random
) -> list[Text]:
    """The pieces in a drawn order, cut to `context` tokens, each with what is read behind it."""
    found = []
    for piece in rng.sample(list(pieces), len(pieces)):
        judged = piece.tokens[: piece.prompt or len(piece.tokens)][:context]
        answer = piece.tokens[piece.prompt :] if 0 < piece.prompt <= context else ()
        if len(judged) >= 2:
            found.append(Text((*judged, *answer, *repeat, *judged), len(judged)))
    return found


class _Inputs(Observer):
    """Keeps what the layers' inputs are in the rows of a text."""

    def __init__(self, layers: Sequence[int], rows: int) -> None:
        self._after = [layer - 1 for layer in layers]
        self._rows = rows
        self.found: list[list[Floats]] = [[] for _ in layers]

    def wants(self, own: OwnRows) -> Wants:
        rows = np.flatnonzero(own.places < self._rows).astype(np.int32)
        return Wants(hidden=self._after, rows=rows) if len(rows) else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        for of_layer, after in zip(self.found, self._after, strict=True):
            of_layer.append(normalised(seen.hidden[after]))


class _Looks(Observer):
    """Keeps the most that later rows look at each token of a text."""

    def __init__(self, layers: Sequence[int], kv_heads: int, rows: int) -> None:
        self._layers, self._rows = layers, rows
        self.most: Floats = np.zeros((len(layers), kv_heads, rows), np.float32)

    def wants(self, own: OwnRows) -> Wants:
        rows = np.flatnonzero(own.places >= self._rows).astype(np.int32)
        return Wants(scores=self._layers, rows=rows) if len(rows) else NOTHING

    def saw(self, own: OwnRows, seen: Seen) -> None:
        for index, layer in enumerate(self._layers):
            for scores in seen.scores[layer]:
                own_keys = scores[:, : self._rows]
                np.maximum(self.most[index], own_keys, out=self.most[index])


class Reader:
    """A model that reads texts and tells what its attention looks at."""

    def __init__(self, model: Path, longest: int) -> None:
        """`longest` is the number of tokens of the longest text, all told."""
        config = EngineConfig(
            model=str(model),
            skip_tokenizer_init=True,
            max_model_len=longest + 1,
            max_num_seqs=1,
            max_num_batched_tokens=CHUNK,
            reuse="none",
            speculative_config="none",
        )
        self._engine = Engine(config)
        groups = self._engine.state.groups
        self._layers = sorted(layer for group in groups for layer in group.layers)
        heads = {group.spec.uniform.heads for group in groups}
        width = self._engine.model.description.hidden_size
        self.even = heads == {max(heads)} and self._layers == list(range(len(self._layers)))
        self.sizes = ModelSizes(width, len(self._layers), max(heads))

    def close(self) -> None:
        self._engine.close()

    def labels(self, texts: Sequence[Text], rows: int, rng: Random, tell: Tell) -> Labels:
        """What is seen of `texts`, until there are so many rows."""
        inputs: list[list[Floats]] = []
        labels: list[Floats] = []
        held_out: list[bool] = []
        for number, text in enumerate(texts):
            if len(held_out) >= rows:
                break
            count = min(ROWS_OF_TEXT, text.context, rows - len(held_out))
            chosen: Ints = np.array(sorted(rng.sample(range(text.context), count)), np.int32)
            ins = _Inputs(self.layers, text.context)
            looks = _Looks(self.layers, self.sizes.kv_heads, text.context)
            self.read(text, [ins, looks])
            inputs.append([np.concatenate(of_layer)[chosen] for of_layer in ins.found])
            labels.append(np.log(looks.most[..., chosen] + np.float32(LEAST)).transpose(0, 2, 1))
            held_out += [number % HELD_OUT_TEXTS == HELD_OUT_TEXTS - 1] * count
            tell(f"read {len(held_out):,} of {rows:,} tokens")
        return Labels(
            np.stack([np.concatenate(of_layer) for of_layer in zip(*inputs, strict=True)]).astype(
                np.float16
            ),
            np.concatenate(labels, axis=1),
            np.array(held_out),
        )

    @property
    def layers(self) -> list[int]:
        return self._layers

    def read(self, text: Text, observers: Sequence[Observer]) -> None:
        """Let the observers see the rows of a text."""
        request = Request(
            request_id="text",
            prompt_token_ids=list(text.tokens),
            params=SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
            detokenize=False,
        )
        self._engine.take(request)
        for observer in observers:
            self._engine.groups[request.request_id].first.observe(observer)
        while self._engine.has_work:
            self._engine.step()
