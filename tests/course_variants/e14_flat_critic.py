"""Right and wrong ways to mend e14_flat_critic."""

from course_variants.hunts import changed, planted

STEM = "e14_flat_critic"
PLANTED = planted(STEM)
RIGHT = {
    "at both uses": PLANTED + """

def advantage(outcome, value):
    return (outcome[:, None] - value).detach().flatten()

def critic_loss(value, outcome):
    return ((value - outcome.view(-1, 1)) ** 2).mean()
""",
    "the last column": changed(STEM, "Critic", ("torch.sigmoid(self.layers(context)).squeeze(-1)",
                                              "torch.sigmoid(self.layers(context)[..., 0])")),
    "in parts": PLANTED
    + """

def advantage(outcome, value):
    return torch.cat([r - v.detach()[:, 0] for r, v in zip(outcome.chunk(3), value.chunk(3))])

def critic_loss(value, outcome):
    total = 0.0
    for r, v in zip(outcome.chunk(3), value.chunk(3)):
        total = total + ((v[:, 0] - r) ** 2).sum()
    return total / len(outcome)
""",
    "as a row": changed(STEM, "Critic", (".squeeze(-1)", ".T")),
    "torch's loss": changed(STEM, "Critic", (".squeeze(-1)", ".flatten()")) + """

def critic_loss(value, outcome):
    return nn.functional.mse_loss(value, outcome)
""",
    "inside the policy's loss": PLANTED + """

def advantage(outcome, value):
    return (outcome.unsqueeze(1) - value).detach()

def policy_loss(logp, logp_old, adv):
    adv = adv.view_as(logp)
    ratio = torch.exp(logp - logp_old)
    return -torch.minimum(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).mean()

def critic_loss(value, outcome):
    return (value.view_as(outcome) - outcome).pow(2).mean()
""",
}  # fmt: skip
WRONG = {
    "the planted bug": (PLANTED, "The curve is not mended: the critic's Brier score"),
    "only in the critic's loss": (
        PLANTED + "\n\n" + changed(STEM, "critic_loss", ("value - outcome", "value.squeeze(-1) - outcome")),
        "critic_loss is right, but in the advantage",
    ),
    "only in the advantage": (
        PLANTED + "\n\n" + changed(STEM, "advantage", ("value.detach()", "value.detach().squeeze(-1)")),
        "The advantage is right, but in critic_loss",
    ),
    "larger learning rate": (PLANTED + "\n\nLEARNING_RATE = 0.2", "LEARNING_RATE is 0.2"),
    "more epochs": (PLANTED + "\n\nEPOCHS = 20", "EPOCHS is 20"),
    "a larger network": (
        PLANTED.replace("nn.Linear(2, 32)", "nn.Linear(2, 128)").replace("nn.Linear(32, 1)", "nn.Linear(128, 1)"),
        "The curve is not mended",
    ),
    "the mean of the values": (
        PLANTED + "\n\n" + changed(STEM, "critic_loss", ("value - outcome", "value.mean() - outcome")),
        "The mean comes before the square",
    ),
    "the square of the mean": (
        changed(STEM, "critic_loss", (".square().mean()", ".mean().square()")), "The mean comes before the square"
    ),
    "cross-entropy": (
        changed(STEM, "critic_loss", ("(value - outcome).square().mean()",
                                      "nn.functional.binary_cross_entropy(value, outcome)")),
        "It is the cross-entropy",
    ),
    "sum": (changed(STEM, "critic_loss", (".mean()", ".sum()")), "It is a sum"),
    "the critic is detached": (
        changed(STEM, "critic_loss", ("value - outcome", "value.detach() - outcome")), "critic_loss has no gradient"
    ),
    "the advantage is not detached": (changed(STEM, "advantage", (".detach()", "")), "The advantage has a gradient"),
    "no sigmoid": (
        changed(STEM, "Critic", ("torch.sigmoid(self.layers(context))", "self.layers(context)")), "no probabilities"
    ),
    "one value for all": (changed(STEM, "Critic", (".squeeze(-1)", ".mean().expand(len(context))")), "the same value"),
    "no value in the advantage": (changed(STEM, "advantage", (" - value.detach()", "")), "the gradient of policy_loss"),
    "a task that is all luck": (
        changed(STEM, "sample_outcomes", ("6 * context[:, 1]", "0 * context[:, 1]")), "sample_outcomes has changed"
    ),
    "the critic is not trained": (
        changed(STEM, "train", ("policy_loss(logp, logp_old, adv) + critic_loss(critic(context), outcome)",
                                "policy_loss(logp, logp_old, adv) + critic_loss(critic(context), outcome).detach()")),
        "The curve is not mended",
    ),
    "the policy is not trained": (
        changed(STEM, "train", ("policy_loss(logp, logp_old, adv) + ", "")), "the policy does not learn"
    ),
}  # fmt: skip
