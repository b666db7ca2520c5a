"""Right and wrong ways to write e19_own_task."""

_SLEDGE = """
class Sledge(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v, self.t = self.np_random.uniform(-1, 1), 0.0, 0
        return self.observation(), {}

    def step(self, action):
        self.v += 0.05 * (action - 1)
        self.x += self.v
        self.t += 1
        end = self.t >= HORIZON
        success = end and abs(self.x) < 0.1 and abs(self.v) < 0.1
        return self.observation(), float(success), end, False, {}

    def observation(self):
        return np.array([self.x, self.v, self.t / HORIZON], dtype=np.float32)
"""


def _with(old, new):
    assert _SLEDGE.count(old) == 1, old
    return _SLEDGE.replace(old, new)


RIGHT = {
    "numpy state": _with(
        "self.x, self.v, self.t = self.np_random.uniform(-1, 1), 0.0, 0",
        "self.x, self.v, self.t = np.float64(2 * self.np_random.random() - 1), np.float64(0), 0",
    ),
    "countdown": _SLEDGE.replace("self.t = self.np_random.uniform(-1, 1), 0.0, 0", "self.left = self.np_random.uniform(-1, 1), 0.0, 20")
    .replace("self.t += 1", "self.left -= 1").replace("end = self.t >= HORIZON", "end = self.left == 0")
    .replace("self.t / HORIZON", "1 - self.left / 20"),
    "pushes in a table": _with("0.05 * (action - 1)", "(-0.05, 0.0, 0.05)[action]"),
    "numpy's flags": _with("float(success), end, False", "np.float32(success), np.bool_(end), np.bool_(False)"),
    "success by a norm": _with("abs(self.x) < 0.1 and abs(self.v) < 0.1", "max(abs(self.x), abs(self.v)) < 0.1"),
}  # fmt: skip
WRONG = {
    "velocity at the start": (_with("uniform(-1, 1), 0.0, 0", "uniform(-1, 1), 0.01, 0"), "starts with v = 0"),
    "half of the starts": (_with("uniform(-1, 1)", "uniform(0, 1)"), "not uniform"),
    "too far": (_with("uniform(-1, 1)", "uniform(-2, 2)"), "outside [-1, 1]"),
    "global random numbers": (_with("self.np_random.uniform", "np.random.uniform"), "seed does not decide"),
    "one context": (_with("super().reset(seed=seed)", "super().reset(seed=0)"), "seed"),
    "seeded without a seed": (_with("super().reset(seed=seed)", "super().reset(seed=0 if seed is None else seed)"),
                              "without a seed gives the same"),
    "old velocity": (_with("self.v += 0.05 * (action - 1)\n        self.x += self.v",
                           "self.x += self.v\n        self.v += 0.05 * (action - 1)"), "old velocity"),
    "direction": (_with("self.v += 0.05", "self.v -= 0.05"), "wrong direction"),
    "velocity set": (_with("self.v += 0.05", "self.v = 0.05"), "push is added"),
    "no middle": (_with("(action - 1)", "action"), "action 1 does not push"),
    "steps as they are": (_with("self.t / HORIZON", "self.t"), "not t / 20"),
    "truncated": (_with("end, False, {}", "False, end, {}"), "is truncated"),
    "one step late": (_with("self.t >= HORIZON", "self.t > HORIZON"), "one step late"),
    "never reset": (
        _with("    def reset", "    def __init__(self):\n        self.t = 0\n\n    def reset").replace(
            "self.v, self.t = self.np_random.uniform(-1, 1), 0.0, 0", "self.v = self.np_random.uniform(-1, 1), 0.0"
        ),
        "set to 0 by reset",
    ),
    "ends early": (_with("end = self.t >= HORIZON", "end = self.t >= HORIZON or abs(self.x) < 0.3"), "ends after"),
    "reward on the way": (_with("success = end and abs", "success = abs"), "before the end"),
    "dense": (_with("float(success)", "float(success) - 0.01 * abs(self.x)"), "before the end"),
    "one side": (_with("abs(self.x) < 0.1 and", "self.x < 0.1 and"), "not |x| < 0.1"),
    "not at rest": (_with(" and abs(self.v) < 0.1", ""), "at rest"),
    "minus one": (_with("float(success)", "(1.0 if success else -1.0) if end else 0.0"), "0 or 1"),
    "four things": (_with("end, False, {}", "end, {}"), "five things"),
    "float64": (_with(", dtype=np.float32)", ")"), "float32"),
    "no info": (_with("return self.observation(), {}\n\n    def step", "return self.observation()\n\n    def step"), "a tuple of two"),
    "one array": (_SLEDGE.replace("return np.array([self.x, self.v, self.t / HORIZON], dtype=np.float32)",
        "self.seen = getattr(self, 'seen', np.zeros(3, dtype=np.float32))\n"
        "        self.seen[:] = self.x, self.v, self.t / HORIZON\n        return self.seen"), "not a new array"),
    "shared state": (_SLEDGE.replace("self.x", "Sledge.x").replace("self.v", "Sledge.v").replace("self.t", "Sledge.t"),
                     "share their state"),
}  # fmt: skip
