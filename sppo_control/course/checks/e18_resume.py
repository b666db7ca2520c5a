"""Checks of e18_resume."""

from __future__ import annotations

import io
import pickle
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..compare import show
from ..grading import Check, Mistake


def _run(trainer: Any, updates: int) -> Any:
    for _ in range(updates):
        trainer.update()
    return trainer


def _weights(trainer: Any) -> Tensor:
    return torch.cat([trainer.policy.detach(), trainer.critic.detach()]).clone()


def _require(found: Any, right: Any, sentence: str, what: str) -> None:
    equal = torch.equal(found, right) if isinstance(right, Tensor) else found == right
    if not equal:
        raise Mistake(f"{sentence} {what} is {show(found)}, right is {show(right)}.")


def _loaded(student: ModuleType, checkpoint: Any) -> Any:
    if not isinstance(checkpoint, dict):
        raise Mistake(f"save must return a dictionary, but it returns {type(checkpoint).__name__}.")
    trainer = student.load(checkpoint)
    if not isinstance(trainer, student.Trainer):
        raise Mistake(f"load must return a Trainer, but it returns {type(trainer).__name__}. Is `return` missing?")
    return trainer


def _moments(trainer: Any) -> list[Tensor]:
    state = trainer.optimizer.state
    return [state.get(w, {}).get("exp_avg", torch.zeros(2)) for w in (trainer.policy, trainer.critic)]


def _steps(trainer: Any) -> float:
    return float(trainer.optimizer.state.get(trainer.policy, {}).get("step", 0))


def state(student: ModuleType) -> None:
    first = _run(student.Trainer(0), 3)
    trainer = _loaded(student, student.save(first))
    after = "After three updates, save and load,"
    _require(_weights(trainer), _weights(first), "The weights are lost.", f"{after} the weights' value")
    if trainer.policy is first.policy:
        raise Mistake(
            "The loaded trainer has the saved one's own tensors, not copies, so each trains the other's weights."
        )
    if trainer.optimizer.param_groups[0]["params"][0] is not trainer.policy:
        raise Mistake(
            "The loaded trainer's weights were replaced by new tensors, but its optimizer still holds the old ones, so "
            "the new ones would never change. Copy the numbers into the tensors that it has: policy.copy_(...)."
        )
    if not trainer.policy.requires_grad:
        raise Mistake("The loaded weights do not require a gradient, so they cannot be trained.")
    _require(_steps(trainer), _steps(first), "Adam's moments are lost, and its count of steps: it starts anew.",
             f"{after} its count of steps")  # fmt: skip
    for mine, right in zip(_moments(trainer), _moments(first), strict=True):
        _require(mine, right, "Adam's moments are lost: it starts anew after a resume.", f"{after} its first moment")
    _require(trainer.num_updates, first.num_updates,
             "The number of updates is lost, so the learning rate starts anew.", f"{after} num_updates")  # fmt: skip
    if not torch.equal(trainer.generator.get_state(), first.generator.get_state()):
        fresh = trainer.generator.get_state()
        seeded = torch.equal(fresh, torch.Generator().manual_seed(0).get_state())
        why = "it starts anew from its seed and repeats old batches" if seeded else "it goes on with other numbers"
        raise Mistake(
            f"The state of the random generator is lost, so {why}. generator.get_state() and set_state() keep it."
        )


def same_numbers(student: ModuleType) -> None:
    first = _run(student.Trainer(1), 2)
    trainer = _run(_loaded(student, student.save(first)), 3)
    right = _weights(_run(student.Trainer(1), 5))
    if not torch.equal(_weights(trainer), right):
        raise Mistake(
            "The resumed run gives other numbers than the uninterrupted one, although its state looks the same. After two "
            f"and three updates the weights are {show(_weights(trainer))}, right is {show(right)}."
        )


def undisturbed(student: ModuleType) -> None:
    first = _run(student.Trainer(2), 2)
    student.save(first)
    right = _weights(_run(student.Trainer(2), 4))
    if not torch.equal(_weights(_run(first, 2)), right):
        raise Mistake(
            "save changes the trainer: it draws random numbers or trains. A run that saves must give the numbers of one "
            "that does not."
        )


def snapshot(student: ModuleType) -> None:
    first = _run(student.Trainer(3), 2)
    saved = _weights(first)
    checkpoint = student.save(first)
    moment = _moments(first)[0].clone()
    _run(first, 3)
    trainer = _loaded(student, checkpoint)
    reference = (
        "The checkpoint has references to the trainer's tensors, not copies: it changes while the trainer trains on."
    )
    _require(_weights(trainer), saved, reference, "After three more updates the saved weights' value")
    _require(
        _moments(trainer)[0],
        moment,
        f"{reference} state_dict() does not copy.",
        "After three more updates Adam's moment",
    )


def twice(student: ModuleType) -> None:
    checkpoint = student.save(_run(student.Trainer(4), 2))
    right = _weights(_run(_loaded(student, checkpoint), 3))
    found = _weights(_run(_loaded(student, checkpoint), 3))
    if not torch.equal(found, right):
        raise Mistake(
            "A checkpoint can be loaded only once: the first loaded trainer changes the tensors in it. After three updates "
            f"the second one has {show(found)}, the first had {show(right)}. load must copy, too."
        )


def plain(student: ModuleType) -> None:
    first = _run(student.Trainer(5), 2)
    file = io.BytesIO()
    try:
        torch.save(student.save(first), file)
        file.seek(0)
        checkpoint = torch.load(file, weights_only=True)
    except (pickle.PickleError, TypeError, RuntimeError, AttributeError) as error:
        text = " ".join(str(error).split())[:120]
        raise Mistake(
            "The checkpoint has an object of a class, such as the trainer, the optimizer or the generator itself. Store "
            f"their state_dict() or get_state(). torch says: {text} ..."
        ) from None
    found = _weights(_run(_loaded(student, checkpoint), 2))
    right = _weights(_run(student.Trainer(5), 4))
    if not torch.equal(found, right):
        raise Mistake(f"After a file the numbers differ: the weights are {show(found)}, right is {show(right)}.")


CHECKS = (
    Check("saving changes nothing", undisturbed),
    Check("all of the state is loaded", state),
    Check("a resumed run gives the numbers of one that was not interrupted", same_numbers),
    Check("a checkpoint does not change while the trainer trains on", snapshot),
    Check("a checkpoint can be loaded twice", twice),
    Check("a checkpoint can be written and read as a file", plain),
)
HINTS = {
    "saving changes nothing": ("Saving only reads. Draw no random number in it, and change no tensor.",),
    "all of the state is loaded": (
        "What do the next updates depend on? Weights, Adam's moments and count, random numbers, and the learning "
        "rate's clock.",
        "optimizer.state_dict() and load_state_dict(), generator.get_state() and set_state().",
    ),
    "a resumed run gives the numbers of one that was not interrupted": (
        "num_updates is the clock of the learning rate. A run that begins it again trains with another rate.",
        "Do not replace trainer.policy by another tensor: the optimizer holds the old one. Use copy_ under "
        "torch.no_grad().",
    ),
    "a checkpoint does not change while the trainer trains on": (
        "state_dict() and detach() do not copy. copy.deepcopy does.",
    ),
    "a checkpoint can be loaded twice": (
        "load must not keep the checkpoint's own tensors: what it trains on would change them. Copy once more when "
        "you load.",
    ),
    "a checkpoint can be written and read as a file": (
        "A checkpoint has tensors, numbers, strings, lists and dictionaries. torch.save and "
        "torch.load(weights_only=True) take no others.",
    ),
}
