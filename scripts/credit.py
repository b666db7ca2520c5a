"""One advantage per episode, or one per step? Exact gradients on chains whose V(s_t) is known, and the same by sampling.

    python scripts/credit.py                                                 # a table and credit.png, ten seconds
    python scripts/credit.py --horizon 1000 --deciding late --critic-error 0.1 --batch 64 --spread 0.5
    python scripts/credit.py --deciding early --critic-sees-from 0.9         # the tail effect: V knows only at the end
    python scripts/credit.py --what measure        # results/credit.json: the sampled points of the maps
    python scripts/credit.py --what map            # the maps of docs/credit.md, and its tables

The task is a chain of T binary actions, of which K decide (`envs/sppo_envs/credit.py`). The table says what one update of
B episodes is expected to gain, as a share of what the exact gradient would gain (docs/credit.md). "theory" is exact and
needs no sampling. "measured" samples episodes and takes the advantages from core.py.

A critic of states is V(s_0) + knows (V(s_t) - V(s_0)) + error. It is exact by default.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from sppo_control import checkpoints, cli, core, errors, limits, runs
from sppo_control.markdown import markdown_table
from sppo_control.networks import Critic
from sppo_control.outputs import File, Folder
from sppo_envs.credit import Chain, Deciding

with cli.one_line_errors():
    from sppo_control.study import credit, credit_figures, results

PAGE = Path(__file__).resolve().parents[1] / "docs" / "credit.md"
NUMBERS = 6_000_000
"""Most steps that one measurement samples."""
STANDARD = (0.99, 0.95)
"""gamma and lambda of PPO where people leave them: CleanRL, Stable-Baselines3."""
PLACES: tuple[Deciding, ...] = ("early", "even", "late", "hidden")
OPPONENTS = {"PPO": (1.0, 1.0), "PPO, lambda 0.95": (1.0, 0.95), "PPO, gamma 0.99, lambda 0.95": STANDARD}
"""gamma and lambda of each PPO."""


@dataclass
class Args:
    what: Literal["table", "map", "measure"] = "table"
    """one setting; the maps; or the measured points of the maps"""

    horizon: int = 1000
    """T, steps per episode"""
    deciding: Deciding = "late"
    """which steps decide"""
    decisions: int = 5
    """K, how many of them"""
    gain: float = 10.0
    """log-odds of success if all decisions are right; minus this if all are wrong"""
    offset: float = -4.0
    """log-odds of success that every context has"""
    spread: float = 1.0
    """standard deviation of the contexts' difficulty, in log-odds"""
    contexts: int = 8
    """number of contexts"""
    right: float = 0.5
    """the policy's probability of action 1, at every step"""

    critic_error: float = 0.0
    """standard deviation of the error of V(s_t), at every state"""
    critic_kind: credit.Kind = "white"
    """how that error varies: by state, slowly along an episode, or by context only"""
    critic_knows: float = 1.0
    """share of V(s_t) - V(s_0) that the critic of states knows"""
    critic_sees_from: float = 0.0
    """progress t / T from which it knows it: 0.9 is a critic that sees the outcome coming only in the tail"""
    context_error: float = 0.0
    """standard deviation of the error of V(s_0), the critic of SPPO"""

    batch: int = 64
    """B, episodes per update"""
    group_size: int = 8
    """N, episodes per context of RLOO and GRPO"""
    gamma: float = STANDARD[0]
    """of the last PPO of the table"""
    gae_lambda: float = STANDARD[1]
    """of the last two PPOs of the table"""
    episodes: int | None = None
    """episodes to sample; None is as many as make six million steps, and at most 65,536"""
    seed: int = 1
    """seed of errors and episodes"""

    out: Annotated[Path, File(".png", ".svg", ".pdf")] = Path("credit.png")
    """table: picture to write"""
    results: Annotated[Path, File(".json", new_folder=True)] = Path("results/credit.json")
    """measure: file to write; map: file to read"""
    learning: Path = Path("results/credit.parquet")
    """map: runs of scripts/benchmark.py --grid results/grids/credit.toml; without the file their table stays as it is"""
    figures: Annotated[Path, Folder()] = Path("docs/figures")
    """map: folder to write to"""

    def __post_init__(self) -> None:
        limits.check_limits(self)
        if self.batch % self.group_size or self.batch < 2:
            raise ValueError(
                f"--batch must be at least 2 and a multiple of --group-size {self.group_size}, got {self.batch}"
            )
        credit.uniform_policy(self.chain, self.right)  # refuses too many states
        if self.episodes is not None and self.episodes < 2 * self.batch:
            raise ValueError(f"--episodes must be at least two batches, {2 * self.batch}, got {self.episodes}")
        limits.check_memory(
            {f"--episodes {self.episodes} of --horizon {self.horizon}": self.num_episodes * self.horizon * 64}
        )

    @property
    def chain(self) -> Chain:
        """The chain of these numbers."""
        return Chain(self.horizon, self.deciding, self.decisions, self.gain, self.offset, self.spread, self.contexts)

    @property
    def num_episodes(self) -> int:
        """How many are sampled: whole batches."""
        wanted = min(NUMBERS // self.horizon, 65_536) if self.episodes is None else self.episodes
        return max(wanted // self.batch, 4) * self.batch


# ------------------------------------------------------------------------------------------------------- critics
def critic_of_states(args: Args, right: Any, gamma: float, rng: np.random.Generator) -> Any:
    """V(s_t), (T, C, K + 1), as the arguments describe it, for this discount."""
    exact = credit.exact_values(args.chain, right, gamma)
    known = exact[:, :, :1] * 0 + credit.segment_values(args.chain, right)[0][None, :, :1]  # V(s_0), undiscounted
    discount = gamma ** np.arange(args.horizon - 1, -1, -1.0)[:, None, None]
    sees = args.critic_knows * (np.arange(args.horizon) >= args.critic_sees_from * args.horizon)
    value = discount * known + sees[:, None, None] * (exact - discount * known)
    return credit.wrong_values(value, args.critic_error, args.critic_kind, rng)


def learn_critics(chain: Chain, right: Any, episodes: int, seed: int) -> dict[str, Any]:
    """Critics of contexts and of states with the scripts' network, trained on the same n episodes; their tables.

    Both take 64 x 64 tanh units and Adam, as in the scripts. The critic of states sees at most 64 random steps of each
    episode per pass, which leaves the mean of its loss as it is.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 7])
    data = credit.sample(chain, right, episodes, rng)
    R = torch.from_numpy(data.outcome).float()
    contexts = torch.from_numpy(chain.observe(data.context, 0, 0))
    critic_0, critic_t = Critic(4), Critic(4)
    passes = max(40, 20_000 // episodes)
    for critic, states in ((critic_0, False), (critic_t, True)):
        adam = torch.optim.Adam(critic.parameters(), lr=3e-3, eps=1e-5)
        steps = max(1, episodes // 64)
        for i in range(updates := passes * steps):
            adam.param_groups[0]["lr"] = 3e-3 * (1 - i / updates)
            mb = rng.integers(episodes, size=64)
            if states:
                t = rng.integers(chain.horizon, size=(64, min(64, chain.horizon)))
                obs = torch.from_numpy(chain.observe(data.context[mb][:, None], t, data.n[mb[:, None], t]))
                v = critic(obs)
                loss = core.squared_value_loss(v, R[mb][:, None].expand_as(v), torch.ones_like(v, dtype=torch.bool))
            else:
                loss = core.bernoulli_value_loss(critic(contexts[mb]), R[mb])
            adam.zero_grad()
            loss.backward()
            adam.step()
    C, K = chain.contexts, len(chain.steps)
    with torch.no_grad():
        value_0 = torch.sigmoid(critic_0(torch.from_numpy(chain.observe(np.arange(C), 0, 0)))).double().numpy()
        t, c, n = np.meshgrid(np.arange(chain.horizon), np.arange(C), np.arange(K + 1), indexing="ij")
        value_t = critic_t(torch.from_numpy(chain.observe(c, t, n))).double().numpy()
    return {"context": value_0, "states": value_t}


def knowledge(chain: Chain, right: Any, value: Any) -> dict[str, float]:
    """How good a critic of states is: its whole error, the share that it knows, and the rest of its error.

    V(s_t) - V(s_0) of the critic is regressed on the true one, over states as often as they are visited.
    """
    exact, weight = credit.exact_values(chain, right), credit.occupancy(chain, right)[:, None] / exact_count(chain)
    weight = np.broadcast_to(weight, exact.shape)
    x = exact - exact[0, :, :1][None]
    y = value - exact[0, :, :1][None]
    knows = float((weight * x * y).sum() / (weight * x * x).sum())
    return {
        "knows": knows,
        "rest": float(np.sqrt((weight * (y - knows * x) ** 2).sum())),
        "whole_error": float(np.sqrt((weight * (value - exact) ** 2).sum())),
    }


def exact_count(chain: Chain) -> int:
    """Contexts times steps: what the weights of all states add up to."""
    return chain.contexts * chain.horizon


# ------------------------------------------------------------------------------------------------- the gradients
def settings(args: Args) -> dict[str, dict[str, Any]]:
    """Each row of the table: name of the algorithm in core, and its numbers."""
    return {
        "SPPO": {"core": "sppo"},
        "PPO": {"core": "ppo", "gamma": 1.0, "gae_lambda": 1.0},
        f"PPO, lambda {args.gae_lambda:g}": {"core": "ppo", "gamma": 1.0, "gae_lambda": args.gae_lambda},
        f"PPO, gamma {args.gamma:g}, lambda {args.gae_lambda:g}": {
            "core": "ppo",
            "gamma": args.gamma,
            "gae_lambda": args.gae_lambda,
        },
        "REINFORCE": {"core": "rloo", "group": args.batch},
        "RLOO": {"core": "rloo", "group": args.group_size},
        "GRPO": {"core": "grpo", "group": args.group_size},
        "ReMax": {"core": "remax"},
        "SPPO; normalised": {"core": "sppo", "normalize": True},
        "PPO; normalised": {"core": "ppo", "gamma": 1.0, "gae_lambda": 1.0, "normalize": True},
    }


def theory(args: Args, right: Any, setting: dict[str, Any], critics: dict[str, Any]) -> credit.Gradient | None:
    """The exact gradient of one row; None if its advantages are normalised over the batch."""
    kind, chain = setting["core"], args.chain
    if setting.get("normalize"):
        return None
    if kind == "sppo":
        return credit.context_gradient(chain, right, critics["context"])
    if kind == "ppo":
        return credit.state_gradient(
            chain, right, critics[f"{setting['gamma']}"], setting["gamma"], setting["gae_lambda"]
        )
    if kind == "remax":
        return credit.greedy_gradient(chain, right)
    if kind == "rloo" and setting["group"] == args.batch:
        return credit.group_gradient(chain, right, args.batch, normalize=False, one_context=False)
    return credit.group_gradient(chain, right, setting["group"], normalize=kind == "grpo")


def advantages(
    args: Args, right: Any, setting: dict[str, Any], critics: dict[str, Any], rng: np.random.Generator
) -> tuple[credit.Sample, Any, int, float]:
    """Sampled episodes, their advantages, episodes per independent estimate, and what each estimate cost in episodes."""
    kind, chain, M = setting["core"], args.chain, args.num_episodes
    whole = kind == "rloo" and setting["group"] == args.batch  # contexts differ within the group, which is the batch
    group = setting.get("group", 1)
    data = credit.sample(chain, right, M, rng, 1 if whole else group)
    value = critics["context"] if kind == "sppo" else critics[f"{setting['gamma']}"] if kind == "ppo" else None
    greedy = None
    if kind == "remax":
        n = int((right[chain.steps] > 0.5).sum())
        greedy = (rng.random(M) < chain.success[data.context, n]).astype(np.float64)
    A = credit.sampled_advantage(
        kind, data, value, setting.get("gamma", 1.0), setting.get("gae_lambda", 1.0), group, greedy
    )
    if setting.get("normalize"):  # over the batch, as verl does; over all its steps if each has its own advantage
        batches = A.reshape(M // args.batch, -1)
        A = ((batches - batches.mean(1, keepdims=True)) / (batches.std(1, keepdims=True) + 1e-8)).reshape(A.shape)
        group = args.batch
    return data, A, group, {"remax": 2.0}.get(kind, float(group))


def rows_of(args: Args, critics: dict[str, Any], names: Iterable[str], bar: Any = None) -> list[dict[str, Any]]:
    """The table: for each algorithm what theory says and what was measured."""
    right = credit.uniform_policy(args.chain, args.right)
    g, rows = credit.true_gradient(args.chain, right), []
    for i, name in enumerate(names):
        setting = settings(args)[name]
        exact = theory(args, right, setting, critics)
        data, A, group, cost = advantages(args, right, setting, critics, np.random.default_rng([args.seed, 1, i]))
        estimate = credit.estimates(right, data, A, group)
        share, error = credit.measured_share(estimate, g, args.batch, cost)
        row: dict[str, Any] = {"name": name, "share": None, "measured": share, "error": error}
        if exact is not None:
            row |= {
                "share": exact.share_of_gain(g, args.batch),
                "signal": exact.signal(g),
                "cosine": exact.cosine(g),
                "deviation": float(np.sqrt(exact.variance.sum() / (g @ g))),
                "noise": exact.noise_scale(g),
            }
        won = data.outcome > 0.5
        if won.any():
            mean = A[won].mean(0)
            row["curve"] = np.full(args.horizon, mean) if np.ndim(mean) == 0 else mean
        rows.append(row)
        if bar is not None:
            bar.update()
    return rows


def table(rows: list[dict[str, Any]], batch: int) -> str:
    """Rows as Markdown, the best first among those with a theory."""
    base = next(row for row in rows if row["name"] == "SPPO")
    head = [
        "algorithm",
        "signal",
        "cosine",
        "standard deviation",
        "noise scale",
        f"gain at B = {batch}",
        "measured",
        "of SPPO's",
    ]
    lines = []
    for row in rows:
        known = row["share"] is not None
        lines.append(
            [
                row["name"].replace(";", ","),
                *(
                    [
                        number(row["signal"]),
                        f"{row['cosine']:.3f}",
                        f"{row['deviation']:,.1f}",
                        number(row["noise"]),
                        number(row["share"]),
                    ]
                    if known
                    else ["-"] * 5
                ),
                f"{number(row['measured'])} +- {number(2 * row['error'])}",
                credit_figures.factor(float(np.log2(row["share"] / base["share"])))
                if known and row["share"] > 0
                else "-",
            ]
        )
    return markdown_table(head, lines)


def number(x: float) -> str:
    """Three digits that count."""
    if not np.isfinite(x) or x == 0:
        return f"{x:g}"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}" if abs(x) >= 1e-3 else f"{x:.1e}"


# ------------------------------------------------------------------------------------------------------ one table
def setting_of(args: Args) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of one setting, and what is true of it: success rates and the critics' squared errors."""
    right = credit.uniform_policy(args.chain, args.right)
    v0 = credit.segment_values(args.chain, right)[0][:, 0]
    rng = np.random.default_rng([args.seed, 0])
    wrong = np.clip(v0 + args.context_error * rng.standard_normal(v0.shape), 1e-6, 1 - 1e-6)
    critics: dict[str, Any] = {"context": wrong}
    for gamma in {1.0, args.gamma}:
        critics[f"{gamma}"] = critic_of_states(args, right, gamma, np.random.default_rng([args.seed, 2]))
    names = list(settings(args))
    with tqdm(total=len(names), unit="algorithm", desc="credit") as bar:
        rows = rows_of(args, critics, names, bar)
    about = {
        "success": float(v0.mean()),
        "lowest": float(v0.min()),
        "highest": float(v0.max()),
        "squared_error": knowledge(args.chain, right, critics["1.0"])["whole_error"] ** 2,
        "most": credit.resolved_variance(args.chain, right) + float(((wrong - v0) ** 2).mean()),
    }
    return rows, about


def main_table(args: Args) -> None:
    """Print and draw one setting."""
    rows, about = setting_of(args)
    print(
        f"success {about['success']:.3f}, from {about['lowest']:.3f} to {about['highest']:.3f} by context; "
        f"{args.num_episodes:,} episodes sampled\n"
        f"V(s_t) has a mean squared error of {about['squared_error']:.5f}. PPO (gamma = lambda = 1) has less noise than "
        f"SPPO while this is below {about['most']:.5f}:\n"
        "what a perfect V(s_t) knows more than V(s_0), plus the squared error of V(s_0)"
    )
    print(f"\n{table(rows, args.batch)}\n")
    best = max((row for row in rows if row["share"] is not None), key=lambda row: row["share"])
    print(f"the largest gain per update in theory: {best['name']}")
    title = f"T = {args.horizon}, {args.deciding} decisions, B = {args.batch}, error of V(s_t) {args.critic_error:g}"
    shown = {
        row["name"]: row["curve"]
        for row in rows
        if "curve" in row and row["name"].startswith(("SPPO", "PPO")) and ";" not in row["name"]
    }
    if not shown:
        raise errors.UserError(
            "no sampled episode succeeded, so there is nothing to draw; raise --episodes or --offset"
        )
    save(credit_figures.draw_setting(rows, shown, args.chain.steps, title), args.out)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
    credit_figures.plt.close(figure)
    print(f"wrote {path}")


# ------------------------------------------------------------------------------------------------------- the maps
HORIZONS = np.unique(np.round(np.logspace(1, 4, 25)).astype(int))
ERRORS = np.logspace(-2, np.log10(0.5), 25)
KNOWS = np.logspace(-2, 0, 25)
BATCHES = 2.0 ** np.arange(3, 15)
SPREADS = np.linspace(0, 6, 25)
OFFSETS = np.linspace(-14, -1, 25)
AT = (30, 1000)
"""Horizons of the measured points of the map."""


def share_at(gradients: tuple[credit.Gradient, credit.Gradient], g: Any, error: float, batch: float) -> float:
    """The share of the gain with a white error of this size: mean square and variance are linear in its square."""
    exact, unit = gradients
    e2 = error * error
    return credit.Gradient(
        exact.mean, exact.variance + e2 * (unit.variance - exact.variance), e2 * unit.floor
    ).share_of_gain(g, batch)


def ratio(sppo: float, other: float) -> float:
    """log2 of the two shares, at most 30 in size: beyond a factor of 10^9 there is no signal."""
    return float(np.clip(np.log2(max(sppo, 1e-300) / max(other, 1e-300)), -30, 30))


def critic_of(chain: Chain, right: Any, gamma: float, knows: float = 1.0) -> Any:
    """V(s_t) of a critic without error; on a hidden chain it is gamma^(T - 1 - t) V(s_0), all that observations tell."""
    discount = gamma ** np.arange(chain.horizon - 1, -1, -1.0)[:, None, None]
    base = discount * credit.segment_values(chain, right)[0][None, :, :1]
    knows = 0.0 if chain.deciding == "hidden" else knows
    return base + knows * (credit.exact_values(chain, right, gamma) - base)


def states_at(
    chain: Chain, right: Any, gamma: float, lam: float, knows: float = 1.0
) -> tuple[credit.Gradient, credit.Gradient]:
    """PPO's gradients without error, and with a white error of size 1."""
    value = critic_of(chain, right, gamma, knows)
    return tuple(credit.state_gradient(chain, right, value, gamma, lam, noise) for noise in (0.0, 1.0))  # type: ignore[return-value]


def sppo_share(chain: Chain, right: Any, g: Any, batch: float, error: float = 0.0) -> float:
    """SPPO's share of the gain; a white error of V(s_0) adds E[psi^2] error^2 to each step's variance."""
    v0 = credit.segment_values(chain, right)[0][:, 0]
    exact = credit.context_gradient(chain, right, v0)
    return credit.Gradient(exact.mean, exact.variance + right * (1 - right) * error**2).share_of_gain(g, batch)


def horizon_panel(args: Args, place: Deciding, opponent: str, bar: Any) -> credit_figures.Panel:
    """Horizon against the error of V(s_t)."""
    grid, (gamma, lam) = np.empty((len(ERRORS), len(HORIZONS))), OPPONENTS[opponent]
    for j, T in enumerate(HORIZONS):
        chain = dataclasses.replace(args.chain, horizon=int(T), deciding=place)
        right = credit.uniform_policy(chain, args.right)
        g, both = credit.true_gradient(chain, right), states_at(chain, right, gamma, lam)
        own = sppo_share(chain, right, g, args.batch)
        grid[:, j] = [ratio(own, share_at(both, g, e, args.batch)) for e in ERRORS]
        bar.update()
    titles = {
        "early": "first 5 steps decide",
        "even": "5 steps at equal gaps decide",
        "late": "last 5 steps decide",
        "hidden": "1 hidden step decides",
    }
    return credit_figures.Panel(
        titles[place], HORIZONS.astype(float), ERRORS, grid, "horizon T (steps)", "error of V(s_t)"
    )


def other_panels(args: Args, bar: Any) -> list[credit_figures.Panel]:
    """Four maps: success rate and error; what the critic knows and its error; horizon and batch; spread of contexts and
    error of V(s_0)."""

    def chain_at(**changes: Any) -> tuple[Chain, Any, Any]:
        chain = dataclasses.replace(args.chain, **changes)
        right = credit.uniform_policy(chain, args.right)
        return chain, right, credit.true_gradient(chain, right)

    chain, right, g = chain_at(horizon=1000, deciding="even")
    own, knows = sppo_share(chain, right, g, args.batch), np.empty((len(ERRORS), len(KNOWS)))
    for j, k in enumerate(KNOWS):
        both = states_at(chain, right, 1.0, 0.95, k)
        knows[:, j] = [ratio(own, share_at(both, g, e, args.batch)) for e in ERRORS]
        bar.update()
    batches = np.empty((len(BATCHES), len(HORIZONS)))
    for j, T in enumerate(HORIZONS):
        chain, right, g = chain_at(horizon=int(T), deciding="even")
        both = states_at(chain, right, *STANDARD)
        batches[:, j] = [ratio(sppo_share(chain, right, g, B), share_at(both, g, 0.1, B)) for B in BATCHES]
        bar.update()
    spreads = np.empty((len(ERRORS), len(SPREADS)))
    for j, spread in enumerate(SPREADS):
        chain, right, g = chain_at(horizon=1000, deciding="even", spread=float(spread))
        mean = credit.group_gradient(chain, right, args.batch, normalize=False, one_context=False)
        other = mean.share_of_gain(g, args.batch)
        spreads[:, j] = [ratio(sppo_share(chain, right, g, args.batch, e), other) for e in ERRORS]
        bar.update()
    rates, rare = np.empty(len(OFFSETS)), np.empty((len(ERRORS), len(OFFSETS)))
    for j, offset in enumerate(OFFSETS):
        chain, right, g = chain_at(horizon=1000, deciding="late", offset=float(offset))
        both, rates[j] = states_at(chain, right, 1.0, 1.0), credit.segment_values(chain, right)[0][:, 0].mean()
        own = sppo_share(chain, right, g, args.batch)
        rare[:, j] = [ratio(own, share_at(both, g, e, args.batch)) for e in ERRORS]
        bar.update()
    return [
        credit_figures.Panel(
            "against PPO, gamma = lambda = 1 (T = 1000,\ndecisions late)",
            rates,
            ERRORS,
            rare,
            "success rate of the policy",
            "error of V(s_t)",
        ),
        credit_figures.Panel(
            "against PPO, lambda 0.95\n(T = 1000)",
            KNOWS,
            ERRORS,
            knows,
            "share of V(s_t) - V(s_0) that the critic knows",
            "rest of the error of V(s_t)",
        ),
        credit_figures.Panel(
            "against PPO, gamma 0.99, lambda 0.95\n(error of V(s_t) 0.1)",
            HORIZONS.astype(float),
            BATCHES.astype(float),
            batches,
            "horizon T (steps)",
            "batch B (episodes)",
        ),
        credit_figures.Panel(
            "against REINFORCE with the batch's mean\n(T = 1000)",
            SPREADS,
            ERRORS,
            spreads,
            "spread of the contexts' difficulty (log-odds)",
            "error of V(s_0)",
            log_x=False,
        ),
    ]


def noise_cases(args: Args) -> dict[str, dict[str, Any]]:
    """The curves of the picture of noise: name -> setting, with the error of V(s_t)."""
    all_of = settings(dataclasses.replace(args, gamma=STANDARD[0], gae_lambda=STANDARD[1]))
    kept = ("SPPO", "PPO", "PPO, lambda 0.95", "PPO, gamma 0.99, lambda 0.95", "GRPO", "REINFORCE")
    cases = {name: {**all_of[name], "error": 0.0} for name in kept}
    return cases | {"PPO, lambda 0.95; error 0.1": {**all_of["PPO, lambda 0.95"], "error": 0.1}}


def noise_theory(args: Args, name: str) -> float:
    """The noise scale of one of `noise_cases` on the chain of the arguments."""
    setting, chain = noise_cases(args)[name], args.chain
    right = credit.uniform_policy(chain, args.right)
    g, critics = credit.true_gradient(chain, right), {"context": credit.segment_values(chain, right)[0][:, 0]}
    if setting["core"] == "ppo":
        value = critic_of(chain, right, setting["gamma"])
        return credit.state_gradient(
            chain, right, value, setting["gamma"], setting["gae_lambda"], setting["error"]
        ).noise_scale(g)
    gradient = theory(args, right, setting, critics)
    assert gradient is not None
    return gradient.noise_scale(g)


def measured_points(args: Args, learned: bool) -> list[dict[str, Any]]:
    """SPPO against each PPO by sampling, with critics of given error or learned ones, at every place of the decisions."""
    found: list[dict[str, Any]] = []
    cases = list(itertools.product(PLACES, (100, 1000) if learned else AT, (64, 1024) if learned else (0.03, 0.25)))
    for place, T, size in tqdm(cases, desc="learned critics" if learned else "given errors", unit="setting"):
        a = dataclasses.replace(args, deciding=place, horizon=T, gamma=STANDARD[0], gae_lambda=STANDARD[1])
        chain, right = a.chain, credit.uniform_policy(a.chain, a.right)
        rng = np.random.default_rng([args.seed, 3, T])
        critics: dict[str, Any] = {"context": credit.segment_values(chain, right)[0][:, 0]}
        about: dict[str, Any] = {"deciding": place, "horizon": T, "learned": learned}
        if learned:
            tables = learn_critics(chain, right, int(size), args.seed)
            critics = {"context": np.clip(tables["context"], 1e-6, 1 - 1e-6), "1.0": tables["states"]}
            # With a discount the critic's target is the discounted outcome, so the same critic is discounted.
            critics["0.99"] = tables["states"] * 0.99 ** np.arange(T - 1, -1, -1.0)[:, None, None]
            v0 = credit.segment_values(chain, right)[0][:, 0]
            about |= {"episodes": int(size), **knowledge(chain, right, tables["states"])}
            about["context_error"] = float(np.sqrt(((tables["context"] - v0) ** 2).mean()))
        else:
            about |= {"error": float(size), "whole_error": float(size)}
            for gamma in (1.0, 0.99):
                critics[f"{gamma}"] = credit.wrong_values(critic_of(chain, right, gamma), float(size), "white", rng)
        rows = {row["name"]: row for row in rows_of(a, critics, ["SPPO", *OPPONENTS])}
        for name in OPPONENTS:
            own, other = rows["SPPO"], rows[name]
            # Where the signal is lost in its own interval, the picture has theory, which is exact for this very critic.
            seen = other["measured"] > 4 * other["error"]
            found.append(
                {
                    **about,
                    "opponent": name,
                    "theory": ratio(own["share"], other["share"]),
                    "measured": ratio(own["measured"], other["measured"]) if seen else None,
                    "error": float(
                        np.hypot(own["error"] / own["measured"], other["error"] / other["measured"]) / np.log(2)
                    )
                    if seen
                    else None,
                }
            )
    return found


TABLES = {
    "exact": "--horizon 1000 --deciding even",
    "tail": "--horizon 100 --deciding early --critic-sees-from 0.9 --critic-error 0.05",
    "rare": "--horizon 100 --deciding late --offset -12 --critic-error 0.1 --batch 32",
}
"""The tables of docs/credit.md: name -> arguments."""


def measured_table(words: str) -> dict[str, Any]:
    """The rows of one table of the page."""
    args = cli.parse_args(Args, "", words.split())
    rows, about = setting_of(args)
    return {
        "arguments": words,
        "batch": args.batch,
        "about": about,
        "rows": [{k: v for k, v in r.items() if k != "curve"} for r in rows],
    }


def main_measure(args: Args) -> None:
    """Sample all points of the maps and of the picture of noise."""
    tables = {name: measured_table(words) for name, words in TABLES.items()}
    points = measured_points(args, learned=False) + measured_points(args, learned=True)
    noise = []
    cases = list(itertools.product(PLACES[:3], (10, 100, 1000, 10_000)))
    for place, T in tqdm(cases, desc="noise", unit="setting"):
        a = dataclasses.replace(args, deciding=place, horizon=T, gamma=STANDARD[0], gae_lambda=STANDARD[1])
        right = credit.uniform_policy(a.chain, a.right)
        g = credit.true_gradient(a.chain, right)
        for i, (name, setting) in enumerate(noise_cases(a).items()):
            rng = np.random.default_rng([args.seed, 5, T, i])
            critics: dict[str, Any] = {"context": credit.segment_values(a.chain, right)[0][:, 0]}
            if setting["core"] == "ppo":
                value = critic_of(a.chain, right, setting["gamma"])
                critics[f"{setting['gamma']}"] = credit.wrong_values(value, setting["error"], "white", rng)
            data, A, group, cost = advantages(a, right, setting, critics, rng)
            value, error = credit.measured_noise(credit.estimates(right, data, A, group), g, cost)
            if value > 3 * error and noise_theory(a, name) < 1e7:
                noise.append(
                    {
                        "deciding": place,
                        "horizon": T,
                        "algorithm": name,
                        "noise": value,
                        "error": error,
                        "theory": noise_theory(a, name),
                    }
                )
    content = {"command": "python scripts/credit.py --what measure", "tables": tables, "points": points, "noise": noise}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(args.results, {**content, **runs.versions()})
    print(f"wrote {args.results}")


def main_map(args: Args) -> None:
    """Draw the maps, with the measured points of --results."""
    measured = checkpoints.read_json(args.results)
    args.figures.mkdir(parents=True, exist_ok=True)
    with tqdm(total=13 * len(HORIZONS) + len(KNOWS) + len(SPREADS) + len(OFFSETS), desc="maps", unit="column") as bar:
        rows = [
            [horizon_panel(args, place, name, bar)._replace(dots=dots_of(measured, place, name)) for place in PLACES]
            for name in OPPONENTS
        ]
        others = other_panels(args, bar)
    save(
        credit_figures.draw_map(
            rows,
            [
                "against PPO\n(gamma = lambda = 1)",
                "against PPO\n(lambda = 0.95)",
                "against PPO\n(gamma = 0.99, lambda = 0.95)",
            ],
            "One advantage per episode wins (blue) where the critic of states is wrong, is blind, or discounts too much",
            "Background: theory. Black line: equal. Circles: sampled, critic with this error. "
            "Diamonds: sampled, critics learnt from 64 or "
            f"1024 episodes.\nB = {args.batch} episodes per update. Background and circles: the error is white per state, "
            "V(s_0) exact",
        ),
        args.figures / "credit_map.png",
    )
    learnt = [
        p for p in measured["points"] if p["learned"] and p["opponent"] == "PPO, lambda 0.95" and p["horizon"] == 1000
    ]
    dots = [
        {
            "x": float(np.clip(p["knows"], KNOWS[0], 1)),
            "y": float(np.clip(p["rest"], ERRORS[0], ERRORS[-1])),
            "ratio": shown(p),
            "learned": True,
        }
        for p in learnt
    ]
    others[1] = others[1]._replace(dots=dots)
    save(
        credit_figures.draw_map(
            [others[:2], others[2:]],
            [],
            "One advantage per episode wins (blue) if success is rare, or V(s_t) knows little",
            "Background: theory; decisions at equal gaps, but for the first map. Black line: equal.\n"
            "Diamonds: sampled, critics learnt on "
            "chains of all four kinds (at the left edge: hidden, of which they know nothing)",
            width=4.2,
        ),
        args.figures / "credit_others.png",
    )
    curves: dict[str, Any] = {}
    for place in PLACES[:3]:
        lines: dict[str, list[float]] = {name: [] for name in noise_cases(args)}
        for T in HORIZONS:
            a = dataclasses.replace(args, deciding=place, horizon=int(T))
            for name in lines:
                lines[name].append(noise_theory(a, name))
        curves[f"{place} decisions"] = {name: (HORIZONS, np.array(y)) for name, y in lines.items()}
    points = [{**p, "panel": f"{p['deciding']} decisions"} for p in measured["noise"]]
    save(credit_figures.draw_noise(curves, points), args.figures / "credit_noise.png")
    made = pages(args, measured)
    if args.learning.is_file():
        made["learning"] = learning_table(args.learning)
    if PAGE.is_file():
        insert(PAGE, made)
        print(f"wrote the tables of {PAGE}")


def pages(args: Args, measured: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/credit.md: name -> Markdown. Numbers without sampling are computed here."""
    made = {
        name: f"    python scripts/credit.py {found['arguments']}\n\n{table(found['rows'], found['batch'])}"
        for name, found in measured["tables"].items()
    }
    horizons, rows = (10, 100, 1000, 10_000), []
    for place, name in itertools.product(PLACES, OPPONENTS):
        cells = []
        for T in horizons:
            chain = dataclasses.replace(args.chain, horizon=T, deciding=place)
            right = credit.uniform_policy(chain, args.right)
            g, both = credit.true_gradient(chain, right), states_at(chain, right, *OPPONENTS[name])
            own = sppo_share(chain, right, g, args.batch)
            cells.append(
                "; ".join(credit_figures.factor(ratio(own, share_at(both, g, e, args.batch))) for e in (0.0, 0.1))
            )
        rows.append([place, name, *cells])
    made["factors"] = markdown_table(["decisions", "opponent", *(f"T = {T:,}" for T in horizons)], rows)
    ties = []
    for place in PLACES[:3]:
        chains = [dataclasses.replace(args.chain, horizon=T, deciding=place) for T in horizons]
        most = [credit.resolved_variance(chain, credit.uniform_policy(chain, args.right)) for chain in chains]
        ties.append([place, *(f"{np.sqrt(x):.3f}" for x in most)])
    made["ties"] = markdown_table(["decisions", *(f"T = {T:,}" for T in horizons)], ties)
    made["agreement"] = agreement(measured)
    learnt = [p for p in measured["points"] if p["learned"] and p["opponent"] == "PPO"]
    lines = []
    for p in learnt:
        same = {
            q["opponent"]: q
            for q in measured["points"]
            if q["learned"] and all(q[k] == p[k] for k in ("deciding", "horizon", "episodes"))
        }
        lines.append(
            [
                p["deciding"],
                f"{p['horizon']}",
                f"{p['episodes']}",
                f"{p['context_error']:.3f}",
                f"{p['whole_error']:.3f}",
                f"{p['knows']:.2f}",
                *(
                    credit_figures.factor(shown(same[name]))
                    + ("" if same[name]["measured"] is not None else " (theory)")
                    for name in OPPONENTS
                ),
            ]
        )
    head = [
        "decisions",
        "T",
        "episodes",
        "error of V(s_0)",
        "error of V(s_t)",
        "knows",
        *(f"against {name}" for name in OPPONENTS),
    ]
    made["learned"] = markdown_table(head, lines)
    return made


def agreement(measured: dict[str, Any]) -> str:
    """How far theory and sampling are apart, in words."""
    seen = [p for p in measured["points"] if p["measured"] is not None]
    z = np.array([abs(p["theory"] - p["measured"]) / p["error"] for p in seen])
    gap = max(abs(p["theory"] - p["measured"]) for p in seen)
    y = np.array([abs(p["noise"] - p["theory"]) / p["error"] for p in measured["noise"]])
    unseen = len(measured["points"]) - len(seen)
    return (
        f"Of {len(seen)} measured points of the maps, {np.sum(z < 2)} are within two standard errors of theory, and all "
        f"are within {z.max():.1f}. The largest gap is a factor of {2**gap:.2f}. (At {unseen} more points the signal is "
        f"too small to be seen.) Of {len(y)} measured noise scales, {np.sum(y < 2)} are within two, and all are "
        f"within {y.max():.1f}."
    )


def learning_table(path: Path) -> str:
    """Success averaged over training, per chain and algorithm: the mean over seeds, and the lowest and highest."""
    found, _ = results.read_runs([path])
    arms: dict[tuple[str, str], list[Any]] = {}
    for run in found:
        words = dict(word.split("=") for word in run.setting.split(","))
        name = "SPPO" if run.algorithm == "sppo" else "PPO"
        name += ", gamma 0.99" if words.get("gamma") == "0.99" else ""
        name += ", lambda 0.95" if words.get("gae-lambda") == "0.95" else ""
        arms.setdefault((run.env_id, name), []).append(run)
    names = ["SPPO", *OPPONENTS]
    rows = []
    for env_id in dict.fromkeys(env_id for env_id, _ in arms):
        cells = []
        for name in names:
            areas = [run.area for run in arms.get((env_id, name), [])]
            cells.append(f"{np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f})" if areas else "-")
        rows.append([f"`{env_id}`", f"{len(arms[env_id, names[0]])}", *cells])
    return markdown_table(["chain", "seeds", *names], rows)


def insert(page: Path, made: dict[str, str]) -> None:
    """Replace what is between `<!-- credit: NAME -->` and `<!-- end -->` in a page by the text NAME."""
    text = page.read_text(encoding="utf-8")
    for name, content in made.items():
        before, mark, rest = text.partition(f"<!-- credit: {name} -->\n")
        if mark:
            text = before + mark + content + "\n" + rest[rest.index("<!-- end -->") :]
    page.write_text(text, encoding="utf-8")


def shown(point: dict[str, Any]) -> float:
    """The measured ratio; where sampling saw no signal, that of theory for the very same critic."""
    return float(point["theory"] if point["measured"] is None else point["measured"])


def dots_of(measured: dict[str, Any], place: str, name: str) -> list[dict[str, Any]]:
    """Points of one panel of the first map."""
    return [
        {
            "x": p["horizon"],
            "y": float(np.clip(p["whole_error"], ERRORS[0], ERRORS[-1])),
            "ratio": shown(p),
            "learned": p["learned"],
        }
        for p in measured["points"]
        if p["deciding"] == place and p["opponent"] == name
    ]


def main(args: Args) -> None:
    {"table": main_table, "map": main_map, "measure": main_measure}[args.what](args)


if __name__ == "__main__":
    cli.main(main, Args, __doc__)
