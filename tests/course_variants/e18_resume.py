"""Right and wrong ways to write e18_resume."""

RIGHT = {
    "a list": """
def save(trainer):
    return {"all": [trainer.policy.tolist(), trainer.critic.tolist(), copy.deepcopy(trainer.optimizer.state_dict()),
                    trainer.generator.get_state(), trainer.num_updates]}

def load(checkpoint):
    policy, critic, optimizer, generator, n = copy.deepcopy(checkpoint["all"])
    trainer = Trainer(99)
    trainer.policy.data[:] = torch.tensor(policy)
    trainer.critic.data[:] = torch.tensor(critic)
    trainer.optimizer.load_state_dict(optimizer)
    trainer.generator.set_state(generator)
    trainer.num_updates = n
    return trainer
""",
    "bytes": """
import io

def save(trainer):
    file = io.BytesIO()
    torch.save([trainer.policy.detach(), trainer.critic.detach(), trainer.optimizer.state_dict(),
                trainer.generator.get_state(), trainer.num_updates], file)
    return {"file": torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)}

def load(checkpoint):
    policy, critic, optimizer, generator, n = torch.load(io.BytesIO(checkpoint["file"].numpy().tobytes()))
    trainer = Trainer()
    trainer.policy.data.copy_(policy)
    trainer.critic.data.copy_(critic)
    trainer.optimizer.load_state_dict(optimizer)
    trainer.generator.set_state(generator)
    trainer.num_updates = n
    return trainer
""",
    "a new optimizer": """
def load(checkpoint):
    c = copy.deepcopy(checkpoint)
    trainer = Trainer()
    trainer.policy, trainer.critic = c["policy"].requires_grad_(), c["critic"].requires_grad_()
    trainer.optimizer = torch.optim.Adam([trainer.policy, trainer.critic], lr=0.1)
    trainer.optimizer.load_state_dict(c["optimizer"])
    trainer.generator.set_state(c["generator"])
    trainer.num_updates = c["num_updates"]
    return trainer
""",
}
_LOAD = """
def load(checkpoint):
    checkpoint = copy.deepcopy(checkpoint)
    trainer = Trainer()
    trainer.policy.data.copy_(checkpoint["policy"])
    trainer.critic.data.copy_(checkpoint["critic"])
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    trainer.generator.set_state(checkpoint["generator"])
    trainer.num_updates = checkpoint["num_updates"]
    return trainer
"""
_SAVE = "right = save\ndef save(trainer):\n"


def _without(line):
    assert line in _LOAD
    return "\n".join(x for x in _LOAD.splitlines() if line not in x)


WRONG = {
    "weights": (_without('["critic"]'), "weights are lost"),
    "optimizer": (_without("load_state_dict"), "Adam's moments"),
    "generator": (_without("set_state"), "repeats old batches"),
    "clock": (_without("num_updates"), "learning rate starts anew"),
    "no return": (_without("return trainer"), "Is `return` missing"),
    "new tensors": (
        _LOAD.replace('trainer.policy.data.copy_(checkpoint["policy"])',
                      'trainer.policy = checkpoint["policy"].requires_grad_()'),
        "still holds the old ones",
    ),
    "the trainer itself": (
        "def save(trainer): return {'trainer': copy.deepcopy(trainer)}\n"
        "def load(checkpoint): return copy.deepcopy(checkpoint['trainer'])",
        "object of a class",
    ),
    "the same trainer": (
        "def save(trainer): return {'trainer': trainer}\ndef load(checkpoint): return checkpoint['trainer']",
        "not copies",
    ),
    "references": (
        "def save(t): return {'policy': t.policy.detach(), 'critic': t.critic.detach(), 'optimizer': "
        "copy.deepcopy(t.optimizer.state_dict()), 'generator': t.generator.get_state(), 'num_updates': t.num_updates}",
        "references",
    ),
    "moments by reference": (
        "def save(t): return {'policy': t.policy.detach().clone(), 'critic': t.critic.detach().clone(), 'optimizer': "
        "t.optimizer.state_dict(), 'generator': t.generator.get_state(), 'num_updates': t.num_updates}",
        "state_dict() does not copy",
    ),
    "load by reference": (
        _LOAD.replace("    checkpoint = copy.deepcopy(checkpoint)\n", "").replace(
            'trainer.policy.data.copy_(checkpoint["policy"])', 'trainer.policy.data = checkpoint["policy"]'),
        "only once",
    ),
    "save trains": (_SAVE + "    c = right(trainer)\n    trainer.update()\n    return c", "save changes the trainer"),
    "a tuple": (_SAVE + "    return tuple(right(trainer).values())", "must return a dictionary"),
}  # fmt: skip
