"""Credit: a chain of T binary actions of which only a few decide. V(s_t) is known exactly, so that critics can be judged.

Every action is 0 or 1. At the deciding steps 1 is right, at all others nothing depends on the action. The outcome is
drawn at the end. Its log-odds are the context's difficulty, plus `gain` if all decisions were right and minus `gain` if
none was. This is a task of this project; docs/credit.md derives what each algorithm's gradient is on it.

| deciding | which steps decide                                              | what the observation tells       |
| -------- | --------------------------------------------------------------- | -------------------------------- |
| early    | the first K                                                     | context, progress, mark, record  |
| even     | K, with equal gaps, at most T / K before the end                | the same                         |
| late     | the last K                                                      | the same                         |
| all      | every step                                                      | the same                         |
| hidden   | one, a quarter of the way through                               | context and progress only        |

The mark is 1 at a deciding step. The record is (right minus wrong decisions so far) / K.

Transitions are deterministic. The luck of the outcome is a number in [0, 1), and episodes begin with a random one. Each
action 1 moves it on a circle by a length of its own. So seed and actions decide an episode, but two episodes of one seed
with different actions have different luck. Without this, the episodes of one group of GRPO would share their luck.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from .lockstep import BoolArray, FloatArray, NumpyVectorEnv, checked_horizon
from .outcome import OutcomeReward
from .task import Axis, Defaults, Task

Deciding = Literal["early", "even", "late", "all", "hidden"]
"""Where in an episode the deciding steps are."""


@dataclass(frozen=True)
class Chain:
    """The numbers of a chain. All arrays are computed from them.

    Raises:
        ValueError: a number outside its range, or more decisions than steps.
    """

    horizon: int = 100
    """T, steps per episode"""
    deciding: Deciding = "even"
    """which steps decide; see the table of this module"""
    decisions: int = 5
    """K, the number of deciding steps; all has T of them, hidden has one"""
    gain: float = 10.0
    """log-odds of success of all decisions right; minus this of all wrong"""
    offset: float = -4.0
    """log-odds of success that every context has"""
    spread: float = 1.0
    """standard deviation of the contexts' difficulty, in log-odds"""
    contexts: int = 8
    """C, the number of contexts; all are equally likely"""

    def __post_init__(self) -> None:
        checked_horizon(self.horizon)
        if self.deciding not in get_args(Deciding):
            raise ValueError(f"deciding must be one of {', '.join(get_args(Deciding))}, got {self.deciding!r}")
        for name in ("decisions", "contexts"):
            number = getattr(self, name)
            if not isinstance(number, int | np.integer) or number < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
        if self.deciding not in ("all", "hidden") and self.decisions > self.horizon:
            raise ValueError(
                f"decisions must be at most horizon = {self.horizon}, got {self.decisions}; lower it, or raise horizon"
            )
        for name, least in (("gain", -50.0), ("offset", -50.0), ("spread", 0.0)):
            if not least <= getattr(self, name) <= 50.0:
                raise ValueError(f"{name} must be from {least:g} to 50, got {getattr(self, name)!r}")

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The deciding steps in order, (K,), each from 0 to T - 1."""
        T, K = self.horizon, self.decisions
        if self.deciding == "hidden":
            return np.array([T // 4])
        if self.deciding == "all":
            return np.arange(T)
        if self.deciding == "even":
            return (np.arange(K) * T) // K
        return np.arange(K) if self.deciding == "early" else np.arange(T - K, T)

    @property
    def mark(self) -> BoolArray:
        """Whether each step decides, (T,)."""
        mark = np.zeros(self.horizon, dtype=np.bool_)
        mark[self.steps] = True
        return mark

    @property
    def decided(self) -> npt.NDArray[np.int64]:
        """How many deciding steps are before step t, for t from 0 to T, (T + 1,)."""
        return np.concatenate([[0], np.cumsum(self.mark)])

    @property
    def difficulty(self) -> FloatArray:
        """Log-odds that each context adds, (C,): mean 0, standard deviation `spread` (0 if there is one context)."""
        levels = [NormalDist().inv_cdf((i + 0.5) / self.contexts) for i in range(self.contexts)]
        size = float(np.std(levels))
        return np.array(levels) * (self.spread / size if size > 0 else 0.0)

    @property
    def success(self) -> FloatArray:
        """Probability of success after n right decisions of K, (C, K + 1)."""
        n = np.arange(len(self.steps) + 1)
        log_odds = self.offset + self.difficulty[:, None] + self.gain * (2 * n / len(self.steps) - 1)
        return 1 / (1 + np.exp(-log_odds))

    def observe(self, context: Any, step: Any, right: Any) -> npt.NDArray[np.float32]:
        """Observations of states; the arguments are broadcast to one shape (...).

        Args:
            context: number of the context, 0 to C - 1.
            step: t, 0 to T.
            right: number of right decisions before this step.

        Returns:
            (..., 4): difficulty, progress t / T, mark, record.
        """
        context, step, right = np.broadcast_arrays(context, step, right)
        obs = np.zeros((*context.shape, 4), dtype=np.float32)
        obs[..., 0] = self.difficulty[context]
        obs[..., 1] = step / self.horizon
        if self.deciding != "hidden":
            obs[..., 2] = np.append(self.mark, False)[step]
            obs[..., 3] = (2 * right - self.decided[step]) / len(self.steps)
        return obs


class CreditVectorEnv(NumpyVectorEnv):
    """B chains in lockstep.

    Args:
        num_envs: B.
        chain: its numbers.

    Raises:
        ValueError: num_envs below 1.
    """

    obs_scale = (1.0, 1.0, 1.0, 1.0)
    state_names = ("context", "step", "right decisions", "luck")

    def __init__(self, num_envs: int = 1, chain: Chain | None = None) -> None:
        self.chain = chain = Chain() if chain is None else chain
        low, high = np.array([-np.inf, 0, 0, -1], np.float32), np.array([np.inf, 1, 1, 1], np.float32)
        space = gym.spaces.Box(low, high, dtype=np.float32)
        super().__init__(num_envs, chain.horizon, False, space, gym.spaces.Discrete(2))
        self._mark, self._success, self._decided = np.append(chain.mark, False), chain.success, chain.decided
        self._difficulty, self._seen = chain.difficulty, chain.deciding != "hidden"
        self._moves = np.append(np.random.default_rng(0).random(chain.horizon), 0.0)  # a constant of the task

    def _draw(self, rng: np.random.Generator, n: int, options: dict[str, Any]) -> FloatArray:
        drawn = rng.random((2, n))
        context = np.minimum(np.floor(drawn[0] * self.chain.contexts), self.chain.contexts - 1)
        return np.stack([context, np.zeros(n), np.zeros(n), drawn[1]])

    def _observe(self) -> npt.NDArray[np.float32]:
        # As `Chain.observe`, which computes the chain's arrays anew in each call.
        context, step = self._state[:2].astype(np.int64)
        obs = np.zeros((self.num_envs, 4), dtype=np.float32)
        obs[:, 0] = self._difficulty[context]
        obs[:, 1] = step / self.horizon
        if self._seen:
            obs[:, 2] = self._mark[step]
            obs[:, 3] = (2 * self._state[2] - self._decided[step]) / self._decided[-1]
        return obs

    def _move(self, actions: npt.NDArray[Any]) -> FloatArray:
        step = self._state[1].astype(np.int64)
        new = self._state.copy()
        new[1] = np.minimum(step + 1, self.horizon)
        new[2] += actions * self._mark[step]
        new[3] = (new[3] + actions * self._moves[step]) % 1.0
        return new

    def _over(self) -> BoolArray:
        return np.zeros(self.num_envs, dtype=np.bool_)  # the horizon ends every episode

    def _judge(self) -> dict[str, npt.NDArray[Any]]:
        context, right = self._state[0].astype(np.int64), self._state[2].astype(np.int64)
        return {
            "success": self._state[3] < self._success[context, right],
            "right_share": self._state[2] / self._decided[-1],
        }


class CreditEnv(gym.Env[Any, Any]):
    """One chain, moved by the same code as B of them."""

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, chain: Chain | None = None) -> None:
        self._batch = CreditVectorEnv(1, chain)
        self.observation_space, self.action_space = (
            self._batch.single_observation_space, self._batch.single_action_space,
        )  # fmt: skip

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Draw a context and the luck."""
        super().reset(seed=seed)
        self._batch._state = self._batch._draw(self.np_random, 1, {})
        return self._batch._observe()[0], {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One action, 0 or 1; the reward is 0, because `OutcomeReward` pays the outcome."""
        self._batch._state = self._batch._move(self._batch._checked(np.array([int(action)])))
        return self._batch._observe()[0], 0.0, False, False, {}

    @property
    def judged(self) -> dict[str, Any]:
        """`success` and `right_share` of the present state, as if the episode ended here."""
        return {name: value[0].item() for name, value in self._batch._judge().items()}


@dataclass(frozen=True)
class Make:
    """Makes one chain, called with keywords. They are Gymnasium's, and the fields of `Chain` that should be others."""

    chain: Chain

    def __call__(self, render_mode: str | None = None, horizon: int | None = None, **changes: Any) -> OutcomeReward:
        """As `Task.make`.

        Raises:
            ValueError: see `Chain`.
        """
        chain = changed(self.chain, horizon, changes)
        env = CreditEnv(chain)
        return OutcomeReward(
            env,
            success=lambda obs, info: env.judged["success"],
            measures=lambda obs, info: {"right_share": env.judged["right_share"]},
            horizon=chain.horizon,
        )


@dataclass(frozen=True)
class MakeVec:
    """Makes B chains in lockstep; see `Make`."""

    chain: Chain

    def __call__(self, num_envs: int = 1, horizon: int | None = None, **changes: Any) -> CreditVectorEnv:
        """As `Task.make_vec`.

        Raises:
            ValueError: see `Chain`.
        """
        return CreditVectorEnv(num_envs, changed(self.chain, horizon, changes))


def changed(chain: Chain, horizon: int | None, changes: dict[str, Any]) -> Chain:
    """The chain with another horizon (None leaves it) and other fields.

    Raises:
        ValueError: a name that is no field, or see `Chain`.
    """
    names = [field.name for field in dataclasses.fields(Chain)]
    if unknown := [name for name in changes if name not in names]:
        raise ValueError(f"a chain has no {unknown[0]!r}; it has {', '.join(names)}")
    if horizon is not None:
        changes = {**changes, "horizon": horizon}
    return dataclasses.replace(chain, **changes)


def credit_task(env_id: str, chain: Chain) -> Task:
    """The record of a chain as a task, for `sppo_envs.register`.

    Args:
        env_id: "my/Chain-v0".
        chain: its numbers.
    """
    where = {
        "early": "at the beginning", "even": "at equal gaps", "late": "at the end", "all": "at every step",
        "hidden": "at a hidden step",
    }[chain.deciding]  # fmt: skip
    return Task(
        id=env_id,
        make=Make(chain),
        make_vec=MakeVec(chain),
        success=f"drawn; likely after right decisions {where}",
        horizon=chain.horizon,
        obs_scale=CreditVectorEnv.obs_scale,
        defaults=Defaults(num_envs=64, num_minibatches=4, learning_rate=1e-3, total_timesteps=500_000),
        axes=(Axis("difficulty (log-odds)", 0), Axis("progress", 1)),
    )


CHAINS = {
    "sppo/Credit-v0": Chain(),
    "sppo/CreditEarly-v0": Chain(deciding="early"),
    "sppo/CreditLate-v0": Chain(deciding="late"),
    "sppo/CreditHidden-v0": Chain(deciding="hidden"),
}
"""The chains that are tasks. They are not part of the study, and training on them begins with random weights."""
TASKS = tuple(credit_task(env_id, chain) for env_id, chain in CHAINS.items())
