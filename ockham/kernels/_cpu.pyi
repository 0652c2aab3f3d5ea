"""
Ockham's native core. Its callers in ockham.kernels check what they pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import enum
from typing import Annotated

import numpy
from numpy.typing import NDArray


class Isa(enum.Enum):
    PORTABLE = 0

    AVX2 = 1

    AVX512 = 2

    AMX = 3

def isa_name(isa: Isa) -> str: ...

def bits_of(isa: Isa) -> Isa:
    """The instruction set whose bits `isa` gives."""

def parse_isa(name: str) -> Isa: ...

def supported(isa: Isa) -> bool: ...

def detect() -> Isa: ...

def chosen() -> Isa:
    """What OCKHAM_ISA names, else the best that runs here."""

class ThreadPool:
    def __init__(self, threads: int, spin_us: int = 100) -> None: ...

    @property
    def size(self) -> int: ...

class Rate(enum.Enum):
    FP32 = 0

    BF16 = 1

    INT8 = 2

def arithmetic_rate(pool: ThreadPool, isa: Isa, rate: Rate, seconds: float) -> float: ...

def read_rate(pool: ThreadPool, isa: Isa, memory: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', writable=False)]) -> float: ...

class Matrix:
    @property
    def outputs(self) -> int: ...

    @property
    def inputs(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

def matrix(kind: str, outputs: int, inputs: int, weight: object, group: int = 0, scale: object | None = None, zero: object | None = None) -> Matrix:
    """
    A matrix over packed arrays, which come as flat uint8 views and are kept alive.
    """

def linear(pool: ThreadPool, isa: Isa, matrix: Matrix, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', writable=False)] | None = None) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]: ...

def prepared(pool: ThreadPool, isa: Isa, matrix: Matrix, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> tuple[Annotated[NDArray[numpy.uint8], dict(shape=(None, None))], Annotated[NDArray[numpy.float32], dict(shape=(None, None))], Annotated[NDArray[numpy.int32], dict(shape=(None, None))]]: ...

def time_products(pool: ThreadPool, isa: Isa, matrices: list[Matrix], rows: int, repeats: int) -> list[float]: ...

def rows(matrix: Matrix, outputs: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', writable=False)]) -> Annotated[NDArray[numpy.float32], dict(shape=(None, None))]: ...

def corrected(matrix: Matrix, a: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], factors: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> Matrix:
    """
    The matrix with the sum b (factors * (a x)) of low rank, which operations of a program add to its products; `linear` does not.
    """

def kinds() -> list[str]:
    """The kinds of matrices that there are kernels for."""

def product_bits(kind: str, isa: Isa) -> Isa:
    """
    The instruction set whose bits products with matrices of a kind have on `isa`.
    """

def packed_arrays(kind: str, outputs: int, inputs: int, group: int = 0, zeros: bool = False) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each array of a packed matrix."""

def pack(pool: ThreadPool, matrix: Matrix, first: int, rows: int, values: Mapping[str, Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]]) -> None:
    """
    Lays out whole panels of rows, from row `first` on, in the arrays of a matrix, which must be writable. `values`: flat bytes of each field of a row.
    """

def quantise(pool: ThreadPool, isa: Isa, kind: str, group: int, rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], scales: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Codes and scales (as fp16 bits) of rows of weights, both flat."""

def search_codes(pool: ThreadPool, groups: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], middle: int, divisors: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], scale: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Codes and scales of groups of weights (G, inputs): see pack.h."""

class Planes:
    def __init__(self, groups: Sequence) -> None: ...

    def copy(self, group: int, source: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], target: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], head: int = -1, index: int = -1) -> None: ...

    def read(self, group: int, slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> object: ...

    def write(self, group: int, slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], state: Annotated[NDArray, dict(shape=(None, None, None, None, None), order='C', device='cpu', writable=False)]) -> None: ...

    def stored_page_bytes(self, group: int) -> int: ...

    def read_pages(self, group: int, pages: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], data: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], at: int) -> None: ...

    def read_part(self, group: int, page: int, start: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def write_part(self, group: int, page: int, start: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def alike(self, group: int, slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], threads: int) -> object: ...

    def back(self, group: int, index: int, pages: int) -> None: ...

    def write_pages(self, group: int, pages: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], data: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], at: int) -> None: ...

class Run:
    @property
    def step(self) -> object: ...

    @property
    def x(self) -> object: ...

    @x.setter
    def x(self, arg: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], /) -> None: ...

class Executor:
    @staticmethod
    def bind(pool: object, isa: Isa, planes: object, program: Sequence, matrix_of: Callable) -> Executor: ...

    def begin(self, step: object) -> Run: ...

    def run(self, run: Run, start: int, stop: int) -> None: ...

    def finish(self, run: Run) -> tuple: ...

    def reposition(self, group: int, source: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], target: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], shifts: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

def row_function(isa: Isa, name: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> object:
    """exp, tanh or gelu of every value, as the kernels compute it."""

class Sampler:
    def __init__(self, pool: ThreadPool, isa: Isa) -> None: ...

    def sample(self, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], draws: Sequence) -> list:
        """
        The token of each draw; -1: masks left none, -2: the logits are not finite.
        """

def score_tokens(pool: ThreadPool, isa: Isa, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], top: int, scores: Annotated[NDArray[numpy.float64], dict(shape=(None, 3), order='C', device='cpu')]) -> bool:
    """
    Fills in log probability, confidence and entropy of each token; false if some row is not finite.
    """

def gumbel(isa: Isa, seed: int, stream: int, position: int, token: int) -> tuple:
    """A token's word of noise, and the noise."""

def noise_words(isa: Isa, seed: int, stream: int, position: int, tokens: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], words: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Writes the word of noise of each token."""

def natural_log(x: float) -> float: ...

def natural_exp(x: float) -> float: ...

def time_norm(pool: ThreadPool, isa: Isa, matrix: Matrix, rows: int, repeats: int) -> list[float]:
    """RMSNorm into the form that a matrix reads."""

def time_gate(pool: ThreadPool, isa: Isa, down: Matrix, silu: bool, rows: int, repeats: int) -> list[float]:
    """The activation product into the form that the matrix after it reads."""

def time_rotation(pool: ThreadPool, isa: Isa, heads: int, kv_heads: int, head_dim: int, rotary_dim: int, keys: str, values: str, rows: int, repeats: int) -> list[float]:
    """Rotation of queries and keys, and the write of keys and values."""

def digest_words(pool: ThreadPool, words: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], keys: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sums: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """The sums of ockham.model.packed.digest, one for each 65536 words."""

class StringList:
    """Strings that become str one by one."""

    def __init__(self) -> None: ...

    def __len__(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __getitem__(self, index: int) -> str: ...

    def __repr__(self) -> str: ...

    def __iter__(self) -> Iterator[str]: ...

    def read(self, bytes: object, offset: int, count: int) -> int:
        """
        Add up to `count` strings of GGUF from an offset on, as many as are whole; the offset after them. Invalid UTF-8 becomes U+FFFD.
        """

def scored_merges(tokens: list[str], scores: Sequence[float], mergeable: Sequence[bool]) -> list[tuple[str, str]] | None:
    """
    All pairs of mergeable tokens that make up one, those of the best score first and then by the pairs' ids. None where a token stands twice, or a score is no number.
    """

class BytePairs:
    """The tokens of a vocabulary, and words merged by its list of pairs."""

    def __init__(self, tokens: StringList, merges: StringList) -> None:
        """
        Tokens by their ids, and merges as `left right`, the first one first. Raises ValueError for what stands twice, and for merges that are not of three tokens.
        """

    def __len__(self) -> int: ...

    def find(self, token: str) -> int | None:
        """The id of a token, or None."""

    def spelled(self, ids: list) -> list:
        """The tokens of ids, without those that are none."""

    def decode(self, ids: list, without: object) -> str:
        """
        The text of ids, without those of a set and those that are none. Bytes that are no UTF-8 become U+FFFD.
        """

    def encode(self, letters: list, whole: bool) -> list:
        """
        The tokens of words that are given letter by letter. The letters of a word after its first have the number of tokens, n, added to their ids. A letter that is no token is 2 n or 2 n + 1. Where `whole`, a word that is a token is not merged.
        """

    def merges(self) -> list:
        """The ids of each merge's left and right token, the first merge first."""

class PrefixTree:
    def __init__(self, page_tokens: int, windows: Sequence, slope: float, apart: Sequence) -> None: ...

    def match(self, salt: str, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], touch: bool) -> tuple: ...

    def agreed(self, salt: str, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple: ...

    def insert(self, salt: str, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], tables: Sequence, page_tokens: int) -> tuple: ...

    def cut(self, node: int, cells: int) -> tuple: ...

    def lock(self, node: int) -> None: ...

    def unlock(self, node: int) -> None: ...

    def pin(self, node: int, pinned: bool) -> None: ...

    def hint(self, node: int, hint: int, start: int) -> list: ...

    def tick(self, now_s: float) -> None: ...

    def evict(self) -> object: ...

    def release(self, groups: Sequence) -> object: ...

    def evictable(self) -> list: ...

    def dump(self) -> list: ...

    def tokens_of(self, node: int, most: int) -> object: ...

    def held(self, group: int) -> object: ...

    @property
    def tokens(self) -> int: ...

    @property
    def pages(self) -> int: ...

    @property
    def nodes(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class BranchCursor:
    pass

class BranchTrie:
    def __init__(self, capacity: int) -> None: ...

    def open(self, tenant: int) -> BranchCursor: ...

    def extend(self, cursor: BranchCursor, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def propose(self, cursor: BranchCursor, most: int, accepted: Sequence[float], worth: float) -> tuple: ...

    def records(self) -> object: ...

    def restore(self, records: Annotated[NDArray[numpy.int32], dict(shape=(None, 4), order='C', device='cpu', writable=False)]) -> None: ...

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class Adjacency:
    def __init__(self, capacity: int) -> None: ...

    def extend(self, tenant: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def observe(self, tenant: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], candidates: Annotated[NDArray[numpy.int32], dict(shape=(None, 8), order='C', device='cpu', writable=False)]) -> None: ...

    def propose(self, tenant: int, token: int, most: int, accepted: Sequence[float], worth: float) -> tuple: ...

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class Trigrams:
    def __init__(self, capacity: int) -> None: ...

    def extend(self, tenant: int, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], known: int) -> None: ...

    def propose(self, tenant: int, before: int, last: int, most: int, accepted: Sequence[float], worth: float) -> tuple: ...

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class TextIndex:
    def __init__(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], order: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    @staticmethod
    def order_of(tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> object: ...

    def propose(self, last: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], most: int, accepted: Sequence[float], worth: float) -> tuple: ...

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class SuffixAutomaton:
    def __init__(self) -> None: ...

    def extend(self, arg: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], /) -> None: ...

    def propose(self, most: int, branches: int, side: int, least: int) -> tuple: ...

    @property
    def length(self) -> int: ...

    @property
    def states(self) -> int: ...

    @property
    def bytes(self) -> int: ...

class FactorType(enum.Enum):
    FP32 = 0

    BF16 = 1

    INT8 = 2

class Adapter:
    def add(self, role: str, first: int, scale: float, a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], element: FactorType) -> None:
        """Adds scale * B A to the outputs of a matrix from `first` on."""

    @property
    def nbytes(self) -> int: ...

def adapter(executor: Executor, nbytes: int) -> Adapter:
    """
    An adapter of an executor's program, empty, with room for so many bytes.
    """

def low_rank_bytes(outputs: int, inputs: int, rank: int, element: FactorType) -> int:
    """Bytes of a packed sum of low rank."""
