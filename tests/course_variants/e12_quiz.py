"""Right and wrong ways to mend e12_quiz."""

from course_variants.hunts import changed, planted

STEM = "e12_quiz"
PLANTED = planted(STEM)
OUTCOME, RUNNING = "outcome |= success & running", "running &= ~done"
RIGHT = {
    "afterwards": """
def rollout(logits, rng):
    answers = torch.softmax(logits, -1)[:, 1].detach().numpy()
    envs, thoughts, rows = Quiz(BATCH, rng), np.zeros(BATCH, np.int64), []
    for t in range(HORIZON):
        action = rng.random(BATCH) < answers[thoughts]
        after, success, done = envs.step(action)
        rows.append((thoughts, action.astype(np.int64), success, done))
        thoughts = after
    thoughts, action, success, done = (np.stack(column, 1) for column in zip(*rows))
    mask = np.cumsum(done, 1) - done == 0
    outcome = (success & mask).any(1).astype(np.float32)
    arrays = {"thoughts": thoughts, "action": action, "mask": mask, "outcome": outcome}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
""",
    "loops, and an end as soon as all are done": """
def rollout(logits, rng):
    answers = torch.softmax(logits, -1)[:, 1].tolist()
    envs, seen, over = Quiz(BATCH, rng), [0] * BATCH, [False] * BATCH
    thoughts, actions, mask = ([[0] * HORIZON for _ in range(BATCH)] for _ in range(3))
    outcome, t = [0.0] * BATCH, 0
    while not all(over):
        action = [rng.random() < answers[k] for k in seen]
        before = seen
        seen, success, done = (x.tolist() for x in envs.step(np.array(action)))
        for b in range(BATCH):
            if over[b]:
                continue
            thoughts[b][t], actions[b][t], mask[b][t] = before[b], int(action[b]), 1
            if done[b]:
                over[b] = True
                outcome[b] = float(success[b])
        t += 1
    lists = {"thoughts": thoughts, "action": actions, "mask": mask, "outcome": outcome}
    batch = {name: torch.tensor(values) for name, values in lists.items()}
    batch["mask"] = batch["mask"].bool()
    return batch
""",
    "the first done": """
def rollout(logits, rng):
    answers = torch.softmax(logits, -1)[:, 1].detach().numpy()
    envs, seen = Quiz(BATCH, rng), np.zeros(BATCH, np.int64)
    thoughts, actions = np.zeros((BATCH, HORIZON), np.int64), np.zeros((BATCH, HORIZON), np.int64)
    length, outcome = np.full(BATCH, HORIZON), np.zeros(BATCH, np.float32)
    for t in range(HORIZON):
        thoughts[:, t] = seen
        actions[:, t] = rng.random(BATCH) < answers[seen]
        seen, success, done = envs.step(actions[:, t].astype(bool))
        first = done & (length > t)
        outcome[first] = success[first]
        length[first] = t + 1
        if (length <= t + 1).all():
            break
    mask = np.arange(HORIZON) < length[:, None]
    arrays = {"thoughts": thoughts, "action": actions, "mask": mask, "outcome": outcome}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
""",
}
WRONG = {
    "the planted bug": (PLANTED, "The curve is not mended: training says"),
    "only the outcome": (
        changed(STEM, "rollout", ("observation, action, running", "observation, action, True")),
        "Steps of later episodes are trained with the outcome of the first",
    ),
    "only the mask": (
        changed(STEM, "rollout", (OUTCOME, "outcome |= success")), "a success of a later episode counts for the first one"
    ),
    "one step too long": (
        changed(STEM, "rollout", ("observation, action, running", "observation, action, running | (t > 0) & late"),
                ("running = np", "late = np.zeros(BATCH, bool)\n    running = np"),
                (RUNNING, "late = running & done\n        running &= ~done")),
        "one step too long",
    ),
    "the answer is left out": (
        changed(STEM, "rollout", (RUNNING, "running &= ~done\n        mask[:, t] = running")),
        "leaves out the step that ends the episode",
    ),
    "the last outcome": (changed(STEM, "rollout", (OUTCOME, "outcome = success")), "the outcome of the last episode"),
    "the outcome of the last step while it runs": (
        changed(STEM, "rollout", (OUTCOME, "outcome = success & running")), "it is not that of the first episode"
    ),
    "only the step after the end is masked": (
        changed(STEM, "rollout", (RUNNING, "running = ~done")), "does not mark the first episode"
    ),
    "an evaluation that is as lenient": (
        PLANTED + """

def evaluate(logits, rng, episodes=256):
    answers = torch.softmax(logits, -1)[:, 1].detach().numpy()
    envs, thoughts, right = Quiz(episodes, rng), np.zeros(episodes, np.int64), np.zeros(episodes, bool)
    for _ in range(HORIZON):
        thoughts, success, done = envs.step(rng.random(episodes) < answers[thoughts])
        right |= success
    return float(right.mean())
""",
        "evaluate or Quiz has changed",
    ),
    "a quiz that does not restart": (
        PLANTED + "\n\n" + changed(STEM, "Quiz", ("np.where(done, 0, self.thoughts + 1)",
                                                 "np.minimum(self.thoughts + 1, THOUGHTS)")),
        "Quiz has changed",
    ),
    "a policy that thinks more": (PLANTED + "\n\nLEARNING_RATE = 0.01", "LEARNING_RATE is 0.01"),
    "evaluation in place of training": (
        PLANTED + "\n\n" + changed(STEM, "train", ("training.append(success)",
                                                  "training.append(evaluate(logits, test_rng))")),
        "The curve is not mended",
    ),
    "padding in the loss": (
        changed(STEM, "policy_loss", ('torch.where(batch["mask"], adv * logp, 0.0)', "(adv * logp)")), "Padding is trained"
    ),
    "no baseline": (changed(STEM, "policy_loss", (" - baseline", "")), "baseline is not subtracted"),
    "mean over steps": (
        changed(STEM, "policy_loss", (".sum(-1).mean()", '.sum() / batch["mask"].sum()')), "The mean is over steps"
    ),
}  # fmt: skip
