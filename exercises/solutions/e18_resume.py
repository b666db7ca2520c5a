"""Save and resume so that nobody can tell.

Difficulty: 3/5
Minutes: 25
Teaches: what a checkpoint must have, copies and references

A run that is interrupted and resumed must give the numbers of a run that was not. Bit for bit: then
one test can prove it. The trainer below is SPPO on a task with two kinds of starts. It has more
state than its weights. Find all of it.

save(trainer) returns a checkpoint, a dictionary. load(checkpoint) returns a new trainer. It must go
on as the first one would have. Between the two, the first one may train on, and a checkpoint may be
loaded twice.

A checkpoint is written to a file by torch.save and read by torch.load with weights_only=True, as
files of strangers should be. So it has tensors, numbers, texts, lists and dictionaries, and no
objects of classes.
"""

import copy

import torch


class Trainer:
    """A policy and a critic for two kinds of starts. Given."""

    def __init__(self, seed: int = 0) -> None:
        self.policy = torch.zeros(2, requires_grad=True)  # the logit of success, for each kind of start
        self.critic = torch.zeros(2, requires_grad=True)  # the critic's logit v
        self.optimizer = torch.optim.Adam([self.policy, self.critic], lr=0.1)
        self.generator = torch.Generator().manual_seed(seed)
        self.num_updates = 0

    def update(self) -> None:
        start = torch.randint(2, (8,), generator=self.generator)
        p = torch.sigmoid(self.policy)[start]
        success = torch.rand(8, generator=self.generator) < p.detach()
        A = success.float() - torch.sigmoid(self.critic)[start].detach()
        logp = torch.where(success, p, 1 - p).log()
        critic_loss = torch.nn.functional.binary_cross_entropy_with_logits(self.critic[start], success.float())
        self.optimizer.param_groups[0]["lr"] = 0.1 / (1 + 0.1 * self.num_updates)
        self.optimizer.zero_grad()
        (-(logp * A).mean() + critic_loss).backward()
        self.optimizer.step()
        self.num_updates += 1


def save(trainer: Trainer) -> dict:
    """The checkpoint: all that the trainer's next updates depend on."""
    return copy.deepcopy(
        {
            "policy": trainer.policy.detach(),
            "critic": trainer.critic.detach(),
            "optimizer": trainer.optimizer.state_dict(),
            "generator": trainer.generator.get_state(),
            "num_updates": trainer.num_updates,
        }
    )


def load(checkpoint: dict) -> Trainer:
    """A new trainer that goes on where the saved one was."""
    checkpoint = copy.deepcopy(checkpoint)
    trainer = Trainer()
    with torch.no_grad():
        trainer.policy.copy_(checkpoint["policy"])
        trainer.critic.copy_(checkpoint["critic"])
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    trainer.generator.set_state(checkpoint["generator"])
    trainer.num_updates = checkpoint["num_updates"]
    return trainer


if __name__ == "__main__":
    from sppo_control.course import grade

    raise SystemExit(grade(__file__))
