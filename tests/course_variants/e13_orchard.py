"""Right and wrong ways to mend e13_orchard."""

from course_variants.hunts import changed, planted

STEM = "e13_orchard"
PLANTED = planted(STEM)
DELTA, CARRY = "next_value[t] * ~terminated[t]", "carry * ~over"
RIGHT = {
    "loops": """
def generalized_advantage(reward, value, next_value, terminated, truncated):
    T, B = reward.shape
    out = [[0.0] * B for _ in range(T)]
    for b in range(B):
        r, v, after = reward[:, b].tolist(), value[:, b].tolist(), next_value[:, b].tolist()
        dead, cut = terminated[:, b].tolist(), truncated[:, b].tolist()
        total = 0.0
        for t in range(T - 1, -1, -1):
            if dead[t]:
                total = r[t] - v[t]
            elif cut[t]:
                total = r[t] + GAMMA * after[t] - v[t]
            else:
                total = r[t] + GAMMA * after[t] - v[t] + GAMMA * LAMBDA * total
            out[t][b] = total
    return torch.tensor(out)
""",
    "numpy": """
def generalized_advantage(reward, value, next_value, terminated, truncated):
    r, v, after = reward.numpy(), value.numpy(), next_value.numpy()
    lives = 1.0 - terminated.numpy()
    goes_on = lives * (1.0 - truncated.numpy())
    delta = r + GAMMA * lives * after - v
    out = delta.copy()
    for t in range(len(r) - 2, -1, -1):
        out[t] += GAMMA * LAMBDA * goes_on[t] * out[t + 1]
    return torch.from_numpy(out)
""",
    "the future as a reward at the cut": """
def generalized_advantage(reward, value, next_value, terminated, truncated):
    over = terminated | truncated
    reward = torch.where(truncated, reward + GAMMA * next_value, reward)
    advantage, carry = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        carry = reward[t] - value[t] + (GAMMA * next_value[t] + GAMMA * LAMBDA * carry) * ~over[t]
        advantage[t] = carry
    return advantage
""",
    "sums of products": """
def generalized_advantage(reward, value, next_value, terminated, truncated):
    delta = reward + GAMMA * torch.where(terminated, 0.0, next_value) - value
    T, out = len(reward), []
    for t in range(T):
        weight, total = torch.ones_like(reward[0]), torch.zeros_like(reward[0])
        for k in range(t, T):
            total = total + weight * delta[k]
            weight = weight * GAMMA * LAMBDA * ~(terminated[k] | truncated[k])
        out.append(total)
    return torch.stack(out)
""",
}
WRONG = {
    "the planted bug": (PLANTED, "The curve is not mended: the trained policy earns"),
    "the sum goes on": (
        changed(STEM, "generalized_advantage", (CARRY, "carry * ~terminated[t]")), "The sum goes on over a cut"
    ),
    "the sum goes on, and the value is cut": (
        changed(STEM, "generalized_advantage", (DELTA, "next_value[t] * ~over"), (CARRY, "carry * ~terminated[t]")),
        "and the sum goes on over the cut",
    ),
    "a value after the end": (
        changed(STEM, "generalized_advantage", (DELTA, "next_value[t]")), "An episode that has ended has no future"
    ),
    "end and cut confused": (
        changed(STEM, "generalized_advantage", (DELTA, "next_value[t] * ~truncated[t]")),
        "An episode that has ended has no future",
    ),
    "ends are ignored": (
        changed(STEM, "generalized_advantage", (DELTA, "next_value[t]"), (CARRY, "carry")), "both ignored"
    ),
    "the next row's value": (
        changed(STEM, "generalized_advantage",
                ("    advantage = ", "    next_value = torch.cat([value[1:], next_value[-1:]])\n    advantage = ")),
        "value[t + 1] is the value of a new tree",
    ),
    "the new tree's value": (
        changed(STEM, "train", ('values[steps["final"]]', 'values[steps["ripeness"]]')),
        "next_value at a cut is the value of the new tree",
    ),
    "no value at a cut, in train": (
        changed(STEM, "train", ('values[steps["final"]]', 'values[steps["final"]] * ~steps["truncated"]')),
        "next_value is not V of the state after the step",
    ),
    "cuts are not passed on": (
        changed(STEM, "train", ('steps["terminated"], steps["truncated"])',
                                'steps["terminated"], torch.zeros_like(steps["truncated"]))')),
        "train passes other ends or cuts",
    ),
    "longer episodes": (PLANTED + "\n\nCUT = 50", "CUT is 50, and was 3"),
    "larger gamma": (PLANTED + "\n\nGAMMA = 0.999", "GAMMA is 0.999"),
    "an orchard that never cuts": (
        PLANTED + "\n\n" + changed(STEM, "Orchard", ("truncated = ~terminated & (self.day == CUT)",
                                                    "truncated = np.zeros_like(terminated)")),
        "Orchard has changed",
    ),
    "an orchard that calls an end a cut": (
        changed(STEM, "Orchard", ('"terminated": terminated', '"terminated": terminated & False')), "Orchard has changed"
    ),
    "an evaluation that picks for the policy": (
        PLANTED + "\n\ndef evaluate(logits, rng, trees=100, days=55): return 0.08", "evaluate has changed"
    ),
    "no lambda": (changed(STEM, "generalized_advantage", ("LAMBDA * ", "")), "generalized_advantage is"),
    "no clip": (changed(STEM, "losses", ("ratio.clamp(1 - CLIP, 1 + CLIP)", "ratio")), "losses is"),
    "a curve that is not true": (
        changed(STEM, "train", ("curve.append(evaluate(logits, test_rng))", "curve.append(0.04)")), "The curve is not true"
    ),
}  # fmt: skip
