"""Sessions in which each request continues the one before: `chat` and `agents`."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar

from ockham.lab.workloads.kinds import Workload, workload
from ockham.lab.workloads.request import Message, Request
from ockham.lab.workloads.words import function, paragraph, question, sentence


@workload
class Chat(Workload):
    """Conversations of several turns, all under the same system prompt."""

    name: ClassVar[str] = "chat"

    sessions: int = 16
    turns: int = 4
    system_sentences: int = 24
    question_sentences: int = 3
    max_tokens: int = 48

    def _requests(self, rng: Random) -> Iterator[Request]:
        system: Message = {"role": "system", "content": paragraph(rng, self.system_sentences)}
        for session in range(self.sessions):
            for turn in range(self.turns):
                text = f"{paragraph(rng, self.question_sentences)} {question(rng)}"
                asked: Message = {"role": "user", "content": text}
                yield Request(
                    id=f"chat-{session}-{turn}",
                    arrival_s=rng.expovariate(1.0) if turn else 0.0,  # reading and typing
                    after=f"chat-{session}-{turn - 1}" if turn else None,
                    messages=[asked] if turn else [system, asked],
                    max_tokens=self.max_tokens,
                    answer=paragraph(rng, 2),
                )


@workload
class Agents(Workload):
    """Tool loops: long instructions, then call and result in turn, the context growing."""

    name: ClassVar[str] = "agents"

    sessions: int = 8
    calls: int = 6
    tools: int = 8
    result_sentences: int = 12
    max_tokens: int = 32

    def _requests(self, rng: Random) -> Iterator[Request]:
        tools = "\n".join(function(rng, 4) for _ in range(self.tools))
        system: Message = {"role": "system", "content": f"Call one of these tools.\n{tools}"}
        for session in range(self.sessions):
            for call in range(self.calls):
                text = paragraph(rng, self.result_sentences) if call else question(rng)
                said: Message = {"role": "user", "content": f"Result: {text}" if call else text}
                yield Request(
                    id=f"agents-{session}-{call}",
                    arrival_s=rng.uniform(0.01, 0.2) if call else 0.0,  # the tool runs
                    after=f"agents-{session}-{call - 1}" if call else None,
                    messages=[said] if call else [system, said],
                    max_tokens=self.max_tokens,
                    answer=sentence(rng),
                )
