"""Right and wrong ways to mend e15_darts."""

from course_variants.hunts import changed, planted

STEM = "e15_darts"
PLANTED = planted(STEM)
LOSS = "torch.max(loss, loss_clipped).mean()"
RIGHT = {
    "the paper's form": """
def policy_loss(logp, logp_old, adv):
    ratio = torch.exp(logp - logp_old)
    return -torch.min(ratio * adv, torch.clip(ratio, 1 - CLIP, 1 + CLIP) * adv).mean()
""",
    "by the advantage's sign": """
def policy_loss(logp, logp_old, adv):
    ratio = torch.exp(logp - logp_old)
    kept = torch.where(adv > 0, ratio.clamp(max=1 + CLIP), ratio.clamp(min=1 - CLIP))
    return -(kept * adv).mean()
""",
    "good and bad throws apart": """
def policy_loss(logp, logp_old, adv):
    total = 0.0
    for sign in (1, -1):
        mine = adv.sign() == sign
        a, r = adv[mine], (logp[mine] - logp_old[mine]).exp()
        total = total + torch.where(sign * r < sign * (1 + sign * CLIP), r * a, (1 + sign * CLIP) * a).sum()
    return -total / len(adv)
""",
    "numpy's gradient": """
def policy_loss(logp, logp_old, adv):
    r = (logp.detach() - logp_old).exp().numpy()
    a = adv.numpy()
    stopped = ((a > 0) & (r > 1 + CLIP)) | ((a < 0) & (r < 1 - CLIP))
    value = -(a * r.clip(1 - CLIP, 1 + CLIP) * stopped + a * r * ~stopped).mean()
    slope = torch.from_numpy(-(a * r * ~stopped)) / len(a)
    return (slope * (logp - logp.detach())).sum() + float(value)
""",
}
WRONG = {
    "the planted bug": (PLANTED, "The curve is not mended: after 32 updates"),
    "one epoch": (PLANTED + "\n\nEPOCHS = 1", "EPOCHS is 1, and was 5"),
    "smaller learning rate": (PLANTED + "\n\nLEARNING_RATE = 0.01", "LEARNING_RATE is 0.01"),
    "stopped at the best": (PLANTED + "\n\nUPDATES = 8", "UPDATES is 8"),
    "no clip": (changed(STEM, "policy_loss", (LOSS, "loss.mean()")), "The ratio is not clipped"),
    "only the clipped term": (changed(STEM, "policy_loss", (LOSS, "loss_clipped.mean()")), "Only the clipped term is left"),
    "the smaller ratio": (
        changed(STEM, "policy_loss", (LOSS, "(-adv * torch.min(ratio, ratio.clamp(1 - CLIP, 1 + CLIP))).mean()")),
        "The smaller ratio is taken before",
    ),
    "the mean first": (
        changed(STEM, "policy_loss", (LOSS, "torch.max(loss.mean(), loss_clipped.mean())")), "none of the usual mistakes"
    ),
    "the sign": (changed(STEM, "policy_loss", (LOSS, "-torch.max(loss, loss_clipped).mean()")), "The sign of the loss"),
    "sum": (changed(STEM, "policy_loss", (".mean()", ".sum()")), "it is a sum"),
    "no ratio": (changed(STEM, "policy_loss", ("logp - logp_old", "logp - logp.detach()")), "The ratio is always 1"),
    "the gradient is lost": (
        changed(STEM, "policy_loss", ("logp - logp_old", "logp.detach() - logp_old")), "The gradient is lost"
    ),
    "logp_old anew in each epoch": (
        PLANTED + "\n\n" + changed(STEM, "train", ("loss = policy_loss(logp, logp_old, adv)",
                                                  "loss = policy_loss(logp, logp.detach(), adv)")),
        "logp_old changes between the epochs",
    ),
    "logp_old with a gradient": (
        changed(STEM, "train", ("policy_loss(logp, logp_old, adv)", "policy_loss(logp, logp + 0, adv)")),
        "logp_old has a gradient",
    ),
    "a larger target": (changed(STEM, "throw", ("< 0.3", "< 3")), "throw has changed"),
    "the best is reported": (
        PLANTED + "\n\n" + changed(STEM, "train", ("return curve,", "return sorted(curve),")), "The curve is not mended"
    ),
    "the advantage is never negative": (
        PLANTED + "\n\n" + changed(STEM, "train", ("adv = outcome - baseline", "adv = outcome")),
        "The curve is not mended",
    ),
}  # fmt: skip
