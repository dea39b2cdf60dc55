"""Passes the calibration text through a model, block by block, and encodes each block's matrices on the way.

Everything is stored in the work folder as it is finished, and the states after a block appear there only when all of
the block's matrices have. A run that was killed goes on at its block, and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.encode import EncodeOptions, Outcome, damping_for, encode_judged
from mimo_gguf.calibration.encoder.factors import Factors, factors
from mimo_gguf.calibration.gram import GramCollector, Statistics, input_of
from mimo_gguf.calibration.work import WorkFolder
from mimo_gguf.core.digests import GRAM
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.threads import in_threads
from mimo_gguf.quantization.search.kinds import KINDS
from mimo_gguf.reference.forward import Tap, block, embed, mtp_block, read_block, read_mtp_block, rms_norm
from mimo_gguf.reference.model import FINAL_NORM, HEAD, ReferenceModel

Floats = NDArray[np.float32]
Tokens = NDArray[np.int32]
Wanted = Mapping[str, Sequence[GgmlType]]

_STRIP_WEIGHTS: Final = 1 << 26  # of a large matrix encoded at a time: 256 MiB of float32


def encoded_name(tensor: str, ggml_type: GgmlType) -> str:
    """The name in the work folder of a matrix's bytes in a type: an array, uint8 [rows, row_bytes]."""
    return f"encoded/{tensor}.{ggml_type.name}.npy"


def _states(number: int) -> str:
    return f"states/{number}.npy"


def _outcome_name(tensor: str, ggml_type: GgmlType) -> str:
    return f"encoded/{tensor}.{ggml_type.name}.json"


def _statistics_name(matrix_input: str) -> str:
    return f"statistics/{matrix_input}.json"


@dataclass(slots=True)
class Encoding:
    """A run over a model: what is wanted, with which text.

    Attributes:
        used, held_out: windows of tokens, all of one length: to encode with, and to judge by.
        wanted: the types to encode each matrix in.
        on_outcome: called with each outcome, and whether an earlier run had it.
        on_step: called with a name before a block, the head or an MTP block.
        on_pass: called with the beginning of names ("blk.3.", "output") and the share of the text that has passed.
    """

    model: ReferenceModel
    used: Sequence[Tokens]
    held_out: Sequence[Tokens]
    wanted: Wanted
    work: WorkFolder
    options: EncodeOptions = field(default_factory=EncodeOptions)
    on_outcome: Callable[[Outcome, bool], None] = lambda outcome, earlier: None
    on_step: Callable[[str], None] = lambda step: None
    on_pass: Callable[[str, float], None] = lambda names, share: None

    @property
    def _n_embd(self) -> int:
        return self.model.geometry.embedding_length

    @property
    def statistics(self) -> str:
        """The hex digest of all Gram matrices that were used; known when everything is encoded."""
        names = sorted({input_of(tensor) for tensor in self.wanted})
        lines = [f"{name} {self.work.load_json(_statistics_name(name))['digests']}\n" for name in names]
        return GRAM.hex("".join(lines).encode())

    def run(self) -> tuple[Outcome, ...]:
        """Encodes everything that is wanted and not there yet.

        Raises:
            CheckpointError, GgufError: weights that cannot be read.
            OutputError: the disk is full or failing.
        """
        n_trunk, n_mtp = self.model.n_trunk_blocks, self.model.n_mtp_blocks
        for outcome in self._outcomes():
            self.on_outcome(outcome, True)
        for number in range(self._first_block(), n_trunk):
            self._trunk_block(number)
        if not self._is_done(HEAD):
            self._head()
        for number in range(n_trunk, n_trunk + n_mtp):
            if not self._is_block_done(number):
                self._mtp_block(number)
        return tuple(self._outcomes())

    def _first_block(self) -> int:
        """The block to go on at: its states are there, and nothing before it is missing.

        An earlier run in the same folder may have passed all blocks for other types; then the text passes again.
        """
        n_trunk = self.model.n_trunk_blocks
        missing = [number for number in range(n_trunk) if not self._is_block_done(number)]
        there = [number for number in range(min(missing, default=n_trunk) + 1) if self.work.has(_states(number))]
        if not there:
            self.work.save_array(_states(0), self._embedded(np.stack([*self.used, *self.held_out])))
        return max(there, default=0)

    def _is_block_done(self, number: int) -> bool:
        return all(self._is_done(name) for name in self.wanted if name.startswith(f"blk.{number}."))

    def _outcomes(self) -> Iterator[Outcome]:
        """The outcomes of what is wanted and done."""
        for tensor, types in self.wanted.items():
            for name in (_outcome_name(tensor, ggml_type) for ggml_type in types):
                if self.work.has(name):
                    yield Outcome(**self.work.load_json(name))

    def _is_done(self, tensor: str) -> bool:
        return all(self.work.has(_outcome_name(tensor, ggml_type)) for ggml_type in self.wanted.get(tensor, ()))

    def _embedded(self, tokens: Tokens) -> Floats:
        """The embedding rows [windows, n, n_embd] of tokens [windows, n]."""
        return embed(self.model, tokens.reshape(-1)).reshape(*tokens.shape, -1)

    def _collect(self, number: int, names: str, pass_window: Callable[[int, Floats, Tap], None]) -> GramCollector:
        """Passes every window's states before block `number` on; gives the statistics of what was tapped.

        Each thread has a window of its own, and the windows are counted in their order.
        """
        states = self.work.load_array(_states(number), mapped=True)
        collector, n_threads = GramCollector(self.options.threads), self.options.threads

        def tapped(i: int) -> list[tuple[str, Floats]]:
            found: list[tuple[str, Floats]] = []
            pass_window(i, np.array(states[i]), lambda name, rows: found.append((name, rows.copy())))
            return found

        for first in range(0, len(states), n_threads):
            group = range(first, min(first + n_threads, len(states)))
            for i, found in zip(group, in_threads(n_threads, tapped, group), strict=True):
                collector.collect("used" if i < len(self.used) else "held_out")
                for name, rows in found:
                    collector.tap(name, rows)
            self.on_pass(names, group.stop / len(states))
        return collector

    def _trunk_block(self, number: int) -> None:
        self.on_step(f"block {number + 1} of {self.model.n_trunk_blocks}")
        collector = self._through_block(number)
        if not self._is_block_done(number):
            self._matrices(number, collector)
        self.work.rename("pending.npy", _states(number + 1))
        self.work.remove(_states(number))

    def _through_block(self, number: int) -> GramCollector:
        """Passes all windows through a block of the trunk, and stores the states after it as pending."""
        weights = read_block(self.model, number)
        after = np.empty((len(self.used) + len(self.held_out), len(self.used[0]), self._n_embd), np.float32)
        done = self._is_block_done(number)  # then nothing of it has to be known

        def pass_window(i: int, x: Floats, tap: Tap) -> None:
            after[i] = block(x, weights, tap=None if done else tap)

        collector = self._collect(number, f"blk.{number}.", pass_window)
        self.work.save_array("pending.npy", after)
        return collector

    def _head(self) -> None:
        self.on_step("the head")
        gains, epsilon = self.model.vector(FINAL_NORM), self.model.geometry.rms_epsilon
        last = self.model.n_trunk_blocks
        collector = self._collect(last, HEAD, lambda i, x, tap: tap(HEAD, rms_norm(x, gains, epsilon)))
        self._input(HEAD, [HEAD], collector.take(HEAD))

    def _mtp_block(self, number: int) -> None:
        self.on_step(f"MTP block {number - self.model.n_trunk_blocks + 1}")
        self._matrices(number, self._through_mtp_block(number))

    def _through_mtp_block(self, number: int) -> GramCollector:
        """Passes all windows through an MTP block: the trunk's states, and the tokens after them."""
        weights = read_mtp_block(self.model, number)
        following = self._embedded(np.stack([window[1:] for window in (*self.used, *self.held_out)]))

        def pass_window(i: int, x: Floats, tap: Tap) -> None:
            mtp_block(x[:-1], following[i], weights, tap=tap)

        return self._collect(self.model.n_trunk_blocks, f"blk.{number}.", pass_window)

    def _matrices(self, number: int, collector: GramCollector) -> None:
        """Encodes the matrices of a block, input by input, so that few Gram matrices are there at a time."""
        readers: dict[str, list[str]] = {name: [] for name in collector.names()}
        for tensor in self.wanted:
            if tensor.startswith(f"blk.{number}."):
                readers[input_of(tensor)].append(tensor)
        for name, tensors in readers.items():
            self._input(name, tensors, collector.take(name))

    def _input(self, name: str, tensors: Sequence[str], statistics: Statistics) -> None:
        """Encodes the matrices that read one input, which share factors."""
        digests = [statistics.used.digest(), statistics.held_out.digest()]
        self.work.save_json(_statistics_name(name), {"digests": digests, "n_tokens": statistics.used.n_tokens})
        n_columns = len(statistics.used.matrix)
        damping = damping_for(statistics.used.n_tokens, n_columns, self.options.damping)
        is_used = bool(statistics.used.diagonal.any())  # inputs that are always zero teach nothing
        shared: Factors | None = None
        for tensor in tensors:
            for ggml_type in self.wanted[tensor]:
                if self.work.has(_outcome_name(tensor, ggml_type)):
                    continue
                with_feedback = ggml_type in KINDS and is_used
                if with_feedback and shared is None:
                    shared = factors(statistics.used.matrix, damping, self.options.threads)
                outcome = self._encode(tensor, ggml_type, statistics, shared if with_feedback else None)
                self.on_outcome(outcome, False)

    def _encode(self, tensor: str, ggml_type: GgmlType, statistics: Statistics, shared: Factors | None) -> Outcome:
        """Encodes one matrix in one type, and stores its bytes and then its outcome."""
        n_rows = next(t.info.n_rows for t in self.model.source.tensors if t.info.name == tensor)
        step = max(1, _STRIP_WEIGHTS // len(statistics.used.matrix))

        def strips() -> Iterator[Floats]:
            for first in range(0, n_rows, step):
                yield self.model.rows(tensor, first, min(first + step, n_rows))

        data, outcome = encode_judged(tensor, strips, n_rows, ggml_type, statistics, shared, self.options)
        self.work.save_array(encoded_name(tensor, ggml_type), data)
        self.work.save_json(_outcome_name(tensor, ggml_type), asdict(outcome))
        return outcome
