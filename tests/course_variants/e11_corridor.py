"""Right and wrong ways to mend e11_corridor."""

from course_variants.hunts import changed, planted

STEM = "e11_corridor"
PLANTED = planted(STEM)
RIGHT = {
    "loops": """
def policy_loss(logits, batch, adv):
    logp = torch.log_softmax(logits, -1)[batch["cell"], batch["action"]]
    total, count = 0.0, 0
    for b, n in enumerate(batch["mask"].sum(1).tolist()):
        total = total - (adv[b, :n] * logp[b, :n]).sum()
        count += n
    return total / count
""",
    "the advantage is 0 in padding": """
def advantage(outcome, mask):
    return outcome[:, None] * mask

def policy_loss(logits, batch, adv):
    logp = torch.log_softmax(logits, -1)[batch["cell"], batch["action"]]
    return -(adv * logp).sum() / batch["mask"].sum()
""",
    "einsum": """
def policy_loss(logits, batch, adv):
    logp = torch.log_softmax(logits, -1)[batch["cell"], batch["action"]]
    weights = batch["mask"] / batch["mask"].sum()
    return -torch.einsum("bt,bt,bt->", weights, adv, logp)
""",
    "torch's loss": """
def policy_loss(logits, batch, adv):
    m = batch["mask"]
    loss = torch.nn.functional.cross_entropy(logits[batch["cell"][m]], batch["action"][m], reduction="none")
    return (adv[m] * loss).mean()
""",
}
WRONG = {
    "the planted bug": (PLANTED, "The curve is not mended: after 40 updates"),
    "smaller learning rate": (PLANTED + "\n\nLEARNING_RATE = 0.02", "LEARNING_RATE is 0.02, and was 0.1"),
    "shorter training": (PLANTED + "\n\nUPDATES = 8", "UPDATES is 8"),
    "a baseline in place of a mend": (
        PLANTED + "\n\ndef advantage(outcome, mask): return (outcome - outcome.mean())[:, None].expand(mask.shape)",
        "A baseline is subtracted, which lowers the variance but leaves the bug",
    ),
    "a baseline and a mend": (
        "def advantage(outcome, mask): return (outcome - outcome.mean())[:, None].expand(mask.shape)",
        "A baseline is subtracted, and padding is not trained",
    ),
    "an odd factor": (
        "right_loss = policy_loss\n\ndef policy_loss(*args): return 378.4 * right_loss(*args)",
        "none of the usual mistakes",
    ),
    "twice": ("right_loss = policy_loss\n\ndef policy_loss(*args): return 2 * right_loss(*args)", "It is 2 times what is"),
    "padding with another action": (
        PLANTED + "\n\n" + changed(STEM, "rollout", ("actions = np.zeros", "actions = np.ones")),
        "Padding is trained",
    ),
    "padding with the exit": (
        PLANTED + "\n\n" + changed(STEM, "rollout", ("cells = np.zeros((BATCH, HORIZON), np.int64)",
                                                    "cells = np.full((BATCH, HORIZON), CELLS - 1)")),
        "Padding is trained",
    ),
    "mean over all places": (
        changed(STEM, "policy_loss", ('[batch["mask"]].sum() / batch["mask"].sum()', ".mean()")),
        "the mean goes over all B x T places",
    ),
    "masked, then the mean over all places": (
        changed(STEM, "policy_loss", ('(adv * logp)[batch["mask"]].sum() / batch["mask"].sum()',
                                      '(adv * logp * batch["mask"]).mean()')),
        "divides by all B x T places",
    ),
    "mean of each episode": (
        changed(STEM, "policy_loss", ('(adv * logp)[batch["mask"]].sum() / batch["mask"].sum()',
                                      '((adv * logp * batch["mask"]).sum(1) / batch["mask"].sum(1)).mean()')),
        "a step of a long episode counts less",
    ),
    "sum": (changed(STEM, "policy_loss", (' / batch["mask"].sum()', "")), "It is a sum"),
    "sum over the episode": (changed(STEM, "policy_loss", ('batch["mask"].sum()', "len(adv)")), "not the mean over steps"),
    "turned mask": (changed(STEM, "policy_loss", ('[batch["mask"]]', '[~batch["mask"]]')), "turned round"),
    "the last step is masked": (
        changed(STEM, "rollout", ("    arrays =", "    mask[np.arange(BATCH), mask.sum(1) - 1] = False\n    arrays =")),
        "The step that reaches the exit is a real step",
    ),
    "successes are dropped": (
        changed(STEM, "rollout", ("(position == CELLS - 1)", "(position == CELLS)")),
        "rollout has changed",
    ),
    "a curve that is not true": (
        changed(STEM, "train", ('float(batch["outcome"].mean())', "0.7")), "The curve is not true",
    ),
    "one result": (changed(STEM, "train", ("return curve, logits.detach()", "return curve")), "a tuple of 2 is right"),
    "nothing is trained": (changed(STEM, "train", ("        optimizer.step()\n", "")), "The curve is not mended"),
}  # fmt: skip
