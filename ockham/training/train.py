"""Training a drafter, from the target's name to the files that the engine reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ockham.core.errors import ConfigError, ModelError
from ockham.model.hub import BUILT_IN, resolve
from ockham.model.program.description import describe, read_config
from ockham.text.tokenizer import Tokenizer
from ockham.training import settings as known
from ockham.training.checkpoints import plain_checkpoint
from ockham.training.documents import Pieces, lab_documents, read_documents
from ockham.training.extra import require_extra
from ockham.training.outputs import Outputs, Written, write_outputs
from ockham.training.settings import Settings
from ockham.training.workplace import Workplace

if TYPE_CHECKING:
    from ockham.training.student import Student
    from ockham.training.target import Target

Tell = Callable[[str], None]

_MEDUSA_HEADS, _PROMPT_TOKENS = 4, 3
DRAFTERS = (
    "A drafter that is trained for that serves it too, and without training there are "
    "`ockham draft index` and the drafters that need none (docs/speculation.md)."
)
"""What to say of a target that PyTorch cannot train for."""
_READ_PER_OUTPUT = 4
"""How often the target's outputs are read, unless told how many there should be."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out: the scores on what the target wrote after held-out prompts, by the name of
    their file, and the losses of all steps."""

    scores: dict[str, Any]
    losses: list[float]
    seconds: float


def check(settings: Settings) -> None:
    """What `train` refuses of a target and its texts before it needs PyTorch. Raises as it does."""
    path = plain_checkpoint(settings.target, DRAFTERS)
    _tokenizer(settings.target, path)
    _check_data(settings, path)


def train(settings: Settings, tell: Tell = lambda line: None) -> Trained:
    """Train a drafter and write it to the directory `settings.out`; see `Settings`.

    A training that was interrupted goes on where it was when it is called again with the same
    settings. `tell` is told of the progress. Raises ConfigError for settings that cannot be, and
    ModelError for a target that cannot be trained for.
    """
    check(settings)
    require_extra()
    path = plain_checkpoint(settings.target, DRAFTERS)
    description = describe(read_config(path))
    deepest = description.layers - 1
    exits = settings.method == "early_exit" and settings.layers is not None
    if exits and not 1 <= (settings.layers or 0) <= deepest:
        raise ConfigError(
            f"layers must lie in [1, {deepest}] for a model of {deepest + 1} layers, got "
            f"{settings.layers}."
        )
    tokenizer = _tokenizer(settings.target, path)
    windows = [window for window in description.windows if window is not None]
    context = min(settings.context, description.max_position_embeddings, *windows)
    draft = _draft_path(settings, tokenizer)
    workplace = Workplace(settings, path, tell)
    pieces = _pieces(settings, path, tokenizer)
    wanted = settings.output_tokens or max(1, settings.tokens // _READ_PER_OUTPUT)
    with workplace.begin():
        outputs = write_outputs(
            path, pieces, wanted, context, settings.seed, workplace.outputs, tell
        )
        return _train(settings, path, draft, context, pieces, outputs, workplace, tell)


def _train(
    settings: Settings,
    path: Path,
    draft: Path | None,
    context: int,
    pieces: Pieces,
    outputs: Outputs,
    workplace: Workplace,
    tell: Tell,
) -> Trained:
    import torch

    from ockham.training.loop import Loop
    from ockham.training.student import OUTPUTS, TEXT
    from ockham.training.target import Target
    from ockham.training.windows import Windows

    torch.manual_seed(settings.seed)
    target = Target(path)
    student = _student(settings, target, draft)
    learned = sum(p.numel() for p in student.parameters() if p.requires_grad)
    tell(f"{settings.method}: {learned:,} parameters to learn, {settings.steps} steps")
    windows = {
        TEXT: Windows((piece.tokens for piece in pieces.train), context, settings.seed, 0),
        OUTPUTS: Windows((text.tokens for text in outputs.train), context, settings.seed, 1),
    }
    loop = Loop(student, windows, settings, workplace.folder, tell)
    loop.run()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(parameter.bfloat16())  # what is measured is what is written
    student.eval()
    scores = {name: student.scores(_answered(texts)) for name, texts in outputs.held_out.items()}
    result = workplace.new_result()
    trained = {
        "target": settings.target,
        "tokens": loop.read,
        "output_tokens": sum(len(text.tokens) - text.prompt for text in outputs.train),
        "steps": loop.step,
        "seconds": round(loop.seconds, 1),
        "seed": settings.seed,
        "scores": scores,
    }
    student.write(result, trained)
    workplace.finish(result)
    return Trained(scores, loop.losses, loop.seconds)


def _draft_path(settings: Settings, tokenizer: Tokenizer) -> Path | None:
    """The directory of the draft model that is gone on from, or judged. Raises ConfigError if its
    tokenizer is another than the target's."""
    name = settings.draft_model or (str(settings.start) if settings.start else None)
    if name is None:
        return None
    path = resolve(name)
    if path.is_file() or Tokenizer(path).digest != tokenizer.digest:
        raise ConfigError(
            f"{name} has another tokenizer than {settings.target}: their ids do not mean the same. "
            "Name a draft model that was made for this target."
        )
    return path


def _pieces(settings: Settings, path: Path, tokenizer: Tokenizer) -> Pieces:
    end = tokenizer.eos_token_id
    if settings.data:
        return read_documents(settings.data, settings.held_out, tokenizer, end)
    return lab_documents(tokenizer, settings.seed)


def _check_data(settings: Settings, path: Path) -> None:
    if not settings.data and path not in BUILT_IN.values():
        raise ConfigError(
            f"training for {settings.target} needs text: name .txt or .jsonl files with --data, of "
            "the kind that will be asked."
        )


def _tokenizer(target: str, path: Path) -> Tokenizer:
    """The target's own: what drafts for it must number texts as it does."""
    if not (path / "tokenizer.json").exists():
        raise ModelError(
            f"{target} has no tokenizer.json, and what drafts for it learns from texts as it "
            "numbers them; put the tokenizer's files into its directory. (transformers writes a "
            "tokenizer.json from other kinds of tokenizer: AutoTokenizer.from_pretrained(DIR)"
            ".save_pretrained(DIR).)"
        )
    return Tokenizer(path)


def _student(settings: Settings, target: Target, draft: Path | None) -> Student:
    from ockham.training.acceptance import AcceptanceStudent
    from ockham.training.draft_model import DraftModelStudent, choose_shape
    from ockham.training.eagle3 import Eagle3Student
    from ockham.training.early_exit import EarlyExitStudent
    from ockham.training.medusa import MedusaStudent
    from ockham.training.mtp import MtpStudent
    from ockham.training.prompt_tokens import PromptTokenStudent

    if settings.method == known.MEDUSA:
        return MedusaStudent(target, settings.heads or _MEDUSA_HEADS)
    if settings.method == known.PROMPT_TOKENS:
        return PromptTokenStudent(target, settings.heads or _PROMPT_TOKENS, settings.seed)
    if settings.method == known.MTP:
        return MtpStudent(target)
    if settings.method == known.EAGLE3:
        return Eagle3Student(target, settings.seed)
    if settings.method == known.EARLY_EXIT:
        return EarlyExitStudent(target, settings.layers)
    if settings.method == known.ACCEPTANCE:
        assert draft is not None, "Settings demand it"
        return AcceptanceStudent(target, draft, settings.seed)
    if draft is not None:
        return DraftModelStudent.going_on(target, draft)
    shape = choose_shape(
        target.vocab_size,
        target.parameters,
        len(target.layers),
        settings.layers,
        settings.hidden_size,
    )
    return DraftModelStudent.new(target, shape, settings.seed)


def _answered(texts: list[Written]) -> list[Written]:
    """Those that the target wrote enough of to be foretold."""
    return [text for text in texts if len(text.tokens) - text.prompt > 1]
