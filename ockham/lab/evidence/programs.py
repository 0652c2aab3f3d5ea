"""Evidence for the consensus of programs: small functions that a real model completes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from statistics import mean
from typing import Any, NamedTuple

from ockham.core.errors import ConfigError, WorkerError
from ockham.core.outputs import RequestOutput
from ockham.core.sampling_params import SamplingParams
from ockham.engine.engine import Engine
from ockham.engine.messages import Request
from ockham.lab.evidence.bench import Bench, Outcome, outcome_of
from ockham.lab.evidence.real_model import NAME
from ockham.lab.evidence.recipe import evidence
from ockham.lab.evidence.row import Row
from ockham.lab.running import drive
from ockham.search.structures.behaviour import normal_form, program_of

SAMPLES, HALF, TEMPERATURE, TOKENS = 16, 8, 0.8, 160
FENCE = "\n```\n"
"""Where a block of code ends; what a model says of it afterwards is not waited for."""
OPENING = "Complete this function. Answer with the whole function, and nothing else.\n\n"


class Function(NamedTuple):
    """What is asked for, a right program, the calls that a search may evaluate, and those that say
    whether an answer is right."""

    head: str
    says: str
    body: str
    calls: list[str]
    hidden: list[str]

    @property
    def asked(self) -> str:
        return f'{OPENING}```python\n{self.head}\n    """{self.says}"""\n```'

    @property
    def program(self) -> str:
        return f"{self.head}\n    return {self.body}"


def _function(head: str, says: str, body: str, calls: list[str], hidden: list[str]) -> Function:
    name = head.removeprefix("def ").partition("(")[0]
    given, kept = ([f"{name}({each})" for each in some] for some in (calls, hidden))
    return Function(head, says, body, given, kept)


FUNCTIONS = (
    _function("def is_even(n):", "Whether n is even.", "n % 2 == 0", ["3", "8", "0"], ["-7", "14"]),
    _function("def add(a, b):", "The sum of a and b.", "a + b", ["2, 3", "-1, 5"], ["7, -9"]),
    _function(
        *("def largest(numbers):", "The largest of a list of numbers.", "max(numbers)"),
        *(["[3, 9, 2]", "[-4, -2]"], ["[5]", "[1, 7, 7, -9]"]),
    ),
    _function(
        *("def reverse(text):", "The text from its end to its beginning.", "text[::-1]"),
        *(["'abc'", "''"], ["'hello you'", "'x'"]),
    ),
    _function(
        *("def count_vowels(text):", "How many of the letters are one of a, e, i, o, u."),
        "sum(letter in 'aeiou' for letter in text)",
        *(["'banana'", "'xyz'"], ["'queue'", "''"]),
    ),
    _function(
        *("def factorial(n):", "The product of all numbers from 1 to n; 1 for 0."),
        "1 if n < 2 else n * factorial(n - 1)",
        *(["5", "0"], ["7", "1"]),
    ),
    _function(
        *("def average(numbers):", "The mean of a list of numbers.", "sum(numbers) / len(numbers)"),
        *(["[1, 2, 6]", "[4]"], ["[2, 3]", "[-1, 1, 6, 8]"]),
    ),
    _function(
        *("def last(items):", "The last item of a list.", "items[-1]"),
        *(["[1, 2]", "['a']"], ["[[], 3, 5]"]),
    ),
    _function(
        *("def is_palindrome(text):", "Whether the text reads the same from both ends."),
        "text == text[::-1]",
        *(["'abba'", "'abc'"], ["''", "'racecar'", "'ab'"]),
    ),
    _function(
        *("def squares(n):", "A list of the squares of 1 to n."),
        "[i * i for i in range(1, n + 1)]",
        *(["3", "0"], ["5", "1"]),
    ),
    _function(
        *("def absolute(x):", "The absolute value of x.", "-x if x < 0 else x"),
        *(["-3", "4"], ["0", "-2.5"]),
    ),
    _function(
        *("def words(text):", "How many words the text has.", "len(text.split())"),
        *(["'one two'", "''"], ["'a  b c '"]),
    ),
    _function(
        *("def unique(items):", "A sorted list of the items, each once.", "sorted(set(items))"),
        *(["[2, 1, 2]", "[]"], ["[5, 5, 5]", "[3, 9, 1]"]),
    ),
    _function(
        *("def second_largest(numbers):", "The second largest of a list of different numbers."),
        "sorted(numbers)[-2]",
        *(["[3, 9, 2]", "[-4, -2]"], ["[8, 1, 5, 7]"]),
    ),
    _function(
        *("def digits_sum(n):", "The sum of the digits of a number."),
        "sum(int(digit) for digit in str(n))",
        *(["123", "9"], ["4005", "0"]),
    ),
    _function(
        *("def fibonacci(n):", "The n-th Fibonacci number: 0 for n=0, 1 for n=1."),
        "n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
        *(["0", "6"], ["1", "2", "10"]),
    ),
    _function(
        *("def capitalize(text):", "The text with its letters in upper case.", "text.upper()"),
        *(["'abc'", "'aB c'"], ["''", "'x1'"]),
    ),
    _function(
        *("def common(a, b):", "A sorted list of the items that two lists share."),
        "sorted(set(a) & set(b))",
        *(["[1, 2], [2, 3]", "[], [1]"], ["[4, 5, 6], [6, 5]"]),
    ),
    _function(
        *("def multiples(n, most):", "A list of the multiples of n from n to most, most included."),
        "list(range(n, most + 1, n))",
        *(["3, 9", "5, 4"], ["2, 7", "1, 3"]),
    ),
    _function(
        *("def is_prime(n):", "Whether n is a prime number."),
        "n > 1 and all(n % i for i in range(2, n))",
        *(["7", "9", "1"], ["2", "15", "0", "29"]),
    ),
    _function(
        *("def power(base, n):", "The base to the power of n.", "base ** n"),
        *(["2, 3", "5, 0"], ["3, 4"]),
    ),
    _function(
        *("def evens(numbers):", "A list of those numbers that are even."),
        "[n for n in numbers if n % 2 == 0]",
        *(["[1, 2, 4]", "[3]"], ["[0, 7, 8, -2]", "[]"]),
    ),
    _function(
        *("def celsius(f):", "The temperature f, in Fahrenheit, in Celsius.", "(f - 32) * 5 / 9"),
        *(["32", "212"], ["50", "-40"]),
    ),
    _function(
        *("def longest(texts):", "The longest of a list of texts.", "max(texts, key=len)"),
        *(["['a', 'abc', 'ab']", "['x']"], ["['no', 'yes', 'n']"]),
    ),
)


@evidence("search", "consensus")
def consensus(bench: Bench) -> Row:
    """The consensus of eight programs, against the majority of 16 that are written alike."""
    run = _Programs(bench)
    row = bench.compare(
        "search",
        "consensus",
        run.alike,
        run.consensus,
        lambda outcome: outcome.ledger.generated_tokens,
        exact=False,
        what=f"{len(FUNCTIONS)} small functions in each round, by {run.model} at temperature "
        f"{TEMPERATURE:g}, judged by calls that the search does not see: the majority of {SAMPLES} "
        f"programs that are written alike, against the consensus of {HALF}",
        unit="tokens generated",
        claim="FunCoder (paper 228, arXiv:2405.20092): with functions as parts of functions, 9.8% "
        "more right answers than the best before on average, over four sets of tasks; and "
        "consensus judges better than tests that a model writes",
        model=run.model,
    )
    row.identical = None
    run.compare(row, "alike", "consensus")
    row.what += (
        f" (one sample is right in {run.right('one'):.0%} of them, the majority of {HALF} by "
        f"behaviour in {run.right('behaviour'):.0%}; {run.spared:.0%} of the runs were spared)"
    )
    return row


class _Programs:
    """Runs of all functions, one round after the other, and how many answers were right."""

    def __init__(self, bench: Bench) -> None:
        own = bench.config.model != "lab" or bench.real_model is None
        model: dict[str, Any] = {} if own else {"model": str(bench.real_model), "tokenizer": None}
        self.model = bench.config.model if own else NAME
        self._engine = bench.engine(**model, run_programs=True, max_num_seqs=SAMPLES * 2)
        if self._engine.tokenizer is None:
            raise ConfigError("programs are read from text: they need a model with a tokenizer.")
        self._seed = bench.seed
        self._rounds: Counter[str] = Counter()
        self._right: dict[str, list[float]] = {}
        self._runs, self._spared = 0, 0
        self._expected = [_outputs(self._engine, each.program, each.hidden) for each in FUNCTIONS]

    def alike(self) -> Outcome:
        """Of all samples, the first of those that are written alike most often."""
        outcome, outputs = self._run("alike", [{"n": SAMPLES}] * len(FUNCTIONS))
        texts = [[choice.text for choice in output.outputs] for output in outputs]
        self._count("alike", [_most_alike(each) for each in texts])
        for each in zip(*texts, strict=True):
            self._count("one", list(each))
        return outcome

    def consensus(self) -> Outcome:
        """The consensus; and, beside what is timed, the vote."""
        outcome, outputs = self._searched("consensus", {"method": "consensus"})
        vote = {"method": "vote", "extract": "behaviour", "stop": "certain"}
        self._searched("behaviour", vote)
        for output in outputs:
            report = (output.outputs[0].report or {})["consensus"]
            self._runs += report["runs"] + report["runs_spared"]
            self._spared += report["runs_spared"]
        return outcome

    def right(self, which: str) -> float:
        """The share of right answers of all rounds."""
        return mean(self._right[which])

    def compare(self, row: Row, one: str, other: str) -> None:
        """Note in the row how right two ways wrote the same programs."""
        row.compare_answers(self._right[one], self._right[other])

    @property
    def spared(self) -> float:
        """The share of programs that were not run, as one written alike was."""
        return self._spared / max(1, self._runs)

    def _searched(
        self, which: str, search: Mapping[str, Any]
    ) -> tuple[Outcome, list[RequestOutput]]:
        asked = [
            {"search": {**search, "samples": HALF, "parallel": HALF, "calls": each.calls}}
            for each in FUNCTIONS
        ]
        outcome, outputs = self._run(which, asked)
        self._count(which, [output.outputs[0].text for output in outputs])
        return outcome, outputs

    def _count(self, which: str, texts: list[str]) -> None:
        for function, expected, text in zip(FUNCTIONS, self._expected, texts, strict=True):
            found = _outputs(self._engine, program_of(text), function.hidden)
            right = found is not None and found == expected
            self._right.setdefault(which, []).append(float(right))

    def _run(self, which: str, asked: list[dict[str, Any]]) -> tuple[Outcome, list[RequestOutput]]:
        """`asked` of the functions, each with a seed of the round."""
        number = self._rounds[which]
        self._rounds[which] += 1
        outputs: dict[str, RequestOutput] = {}
        wanted = [
            Request(
                request_id=function.head,
                prompt_token_ids=self._prompt(function),
                params=SamplingParams(
                    temperature=TEMPERATURE,
                    seed=(self._seed * 1000 + number) * 1000 + place,
                    max_tokens=TOKENS,
                    stop=FENCE,
                    **each,
                ),
            )
            for place, (function, each) in enumerate(zip(FUNCTIONS, asked, strict=True))
        ]
        started = time.perf_counter()
        drive(self._engine, wanted, lambda output: outputs.update({output.request_id: output}))
        ordered = [outputs[function.head] for function in FUNCTIONS]
        return outcome_of(ordered, started), ordered

    def _prompt(self, function: Function) -> list[int]:
        tokenizer = self._engine.tokenizer
        assert tokenizer is not None, "checked above"
        asked = tokenizer.apply_chat_template([{"role": "user", "content": function.asked}])
        return tokenizer.encode(asked, add_special_tokens=False)


def _outputs(engine: Engine, program: str, calls: list[str]) -> tuple[str, ...] | None:
    """What a program gives; None if it gives nothing."""
    assert engine.programs is not None, "the engine runs programs"
    try:
        return engine.programs.submit(program, calls).result()
    except WorkerError:
        return None


def _most_alike(texts: list[str]) -> str:
    forms = [normal_form(program_of(text)) for text in texts]
    return texts[forms.index(Counter(forms).most_common(1)[0][0])]
