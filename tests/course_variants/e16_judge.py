"""Right and wrong ways to mend e16_judge."""

from course_variants.hunts import changed, planted

STEM = "e16_judge"
PLANTED = planted(STEM)
RIGHT = {
    "loops": """
def group_advantage(reward):
    out = torch.zeros_like(reward)
    for i in range(0, len(reward), GROUP):
        group = reward[i : i + GROUP]
        out[i : i + GROUP] = (group - group.mean()) / (group.std() + 1e-4)
    return out
""",
    "the order of the answers": PLANTED
    + "\n\n"
    + changed(STEM, "sample", (".repeat_interleave(GROUP)", ".repeat(GROUP)")),
    "numpy, and the population's deviation": """
def group_advantage(reward):
    groups = reward.numpy().reshape(PROMPTS, GROUP)
    away = groups - groups.mean(1, keepdims=True)
    return torch.from_numpy((away / (groups.std(1, keepdims=True) + 1e-8)).ravel())
""",
    "einsum": """
def group_advantage(reward):
    groups = reward.reshape(PROMPTS, GROUP)
    away = groups - torch.einsum("ng->n", groups)[:, None] / GROUP
    std = (torch.einsum("ng,ng->n", away, away) / (GROUP - 1)).sqrt()
    return (away / (std[:, None] + 1e-6)).reshape(-1)
""",
    "turned twice": """
def group_advantage(reward):
    groups = reward.reshape(-1, GROUP).T
    return ((groups - groups.mean(0)) / (groups.std(0) + 1e-4)).T.reshape(-1)
""",
}
WRONG = {
    "the planted bug": (PLANTED, "The curve is not mended: after 40 updates"),
    "the population's deviation": (
        PLANTED.replace("groups.std(0, keepdim=True)", "groups.std(0, keepdim=True, correction=0)"),
        "would be right too. But answers to different prompts are compared",
    ),
    "only the shape": (
        changed(STEM, "group_advantage", ("reshape(-1, GROUP)", "reshape(GROUP, -1)")), "right in shape, but not in content"
    ),
    "only the axis": (
        changed(STEM, "group_advantage", ("groups.mean(1,", "groups.mean(0,"), ("groups.std(1,", "groups.std(0,")),
        "mean and std run over the prompts",
    ),
    "the whole batch": (
        changed(STEM, "group_advantage", ("groups.mean(1, keepdim=True)", "groups.mean()"),
                ("groups.std(1, keepdim=True)", "groups.std()")),
        "over the whole batch",
    ),
    "turned once": (
        changed(STEM, "group_advantage", (").flatten()", ").T.flatten()")), "come back in another order"
    ),
    "no deviation": (changed(STEM, "group_advantage", (" / (std + 1e-4)", "")), "not divided by the group's std"),
    "no mean": (
        changed(STEM, "group_advantage", ("((groups - mean) / (std + 1e-4))", "(groups * (std > 0))")),
        "The mean of the group is not subtracted",
    ),
    "no epsilon": (changed(STEM, "group_advantage", ("(std + 1e-4)", "std")), "When all answers have the same points"),
    "the sign": (changed(STEM, "group_advantage", ("groups - mean", "mean - groups")), "The sign is turned"),
    "more answers": (PLANTED + "\n\nGROUP = 16", "GROUP is 16, and was 4"),
    "longer training": (PLANTED + "\n\nUPDATES = 400", "UPDATES is 400"),
    "a fair judge": (PLANTED + "\n\n" + changed(STEM, "judge", ("(prompt * 5 % PROMPTS).float() + ", "")),
                     "judge has changed"),
    "prompts and words in two orders": (
        changed(STEM, "sample", ("return prompt, word", "return torch.arange(PROMPTS).repeat(GROUP), word")),
        "sample gives a word to another prompt",
    ),
    "only the order of the answers": (
        changed(STEM, "sample", (".repeat_interleave(GROUP)", ".repeat(GROUP)")), "right in shape, but not in content"
    ),
    "each prompt's mean is taken from the judge": (
        PLANTED + "\n\n" + changed(STEM, "train", ("group_advantage(judge(prompt, word))",
                                                  "group_advantage(judge(prompt, word) - (prompt * 5 % PROMPTS))")),
        "Answers to different prompts are compared",
    ),
    "a sum": (changed(STEM, "policy_loss", (".mean()", ".sum()")), "It is a sum"),
    "a curve that is not true": (
        PLANTED + "\n\n" + changed(STEM, "train", ("curve.append(float", "curve.append(1.0 or float")),
        "The curve is not mended",
    ),
}  # fmt: skip
