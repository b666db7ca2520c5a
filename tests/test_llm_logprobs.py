"""token_log_probs: equal to log_softmax and gather in values and gradients, in every dtype and mode, and never more than a
chunk of logits in memory."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sppo_control import core
from sppo_control.llm import token_log_probs

F64 = torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")


def batch(B=3, T=7, D=5, V=11, dtype=F64, bias=True, device="cpu"):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(B, T, D, generator=g), torch.randn(V, D, generator=g)
    leaves = [hidden, weight, *([torch.randn(V, generator=g)] if bias else [])]
    leaves = [x.to(device, dtype).requires_grad_() for x in leaves]
    tokens = torch.randint(V, (B, T), generator=g)
    weights = torch.randn(2, B, T, generator=g)  # of logp and entropy in the scalar that is differentiated
    return leaves, tokens.to(device), weights.to(device, dtype if dtype == F64 else torch.float32)


def naive(hidden, weight, tokens, bias=None, temperature=1.0):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logp = torch.log_softmax((logits if logits.dtype == F64 else logits.float()) / temperature, dim=-1)
    return logp.gather(-1, tokens[..., None])[..., 0], -(logp.exp() * logp).sum(-1)


def with_gradients(outputs, weights, leaves):
    """Values, and gradients of the weighted sum; an output that is None takes no part."""
    total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True) if x is not None)
    return [x.detach() for x in outputs if x is not None], list(torch.autograd.grad(total, leaves))


def assert_equal(got, expected, atol):
    for ours, theirs in zip([*got[0], *got[1]], [*expected[0], *expected[1]], strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tile", "temperature"), [((1, 1), 1.0), ((4, 3), 0.6), ((21, 11), 1.3), ((None, None), 1.7)])
def test_values_and_gradients_equal_the_naive_ones(bias, tile, temperature):
    """21 tokens and 11 words in tiles of one, in tiles of which the last ones are short, and in one tile."""
    leaves, tokens, weights = batch(bias=bias)
    hidden, weight, *rest = leaves
    ours = token_log_probs(hidden, weight, tokens, *(rest or [None]), temperature, *tile, entropy=True)
    expected = naive(hidden, weight, tokens, *rest, temperature=temperature)
    assert_equal(with_gradients(ours, weights, leaves), with_gradients(expected, weights, leaves), atol=1e-10)


@pytest.mark.parametrize("which", ["logp", "entropy"])
def test_each_output_alone_gives_its_gradient(which):
    (hidden, weight, bias), tokens, weights = batch()
    ours = getattr(token_log_probs(hidden, weight, tokens, bias, chunk_size=4, vocabulary_chunk=3, entropy=True), which)
    expected = naive(hidden, weight, tokens, bias)[which == "entropy"]
    got, wanted = (torch.autograd.grad((x * weights[0]).sum(), (hidden, weight, bias)) for x in (ours, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert token_log_probs(hidden, weight, tokens, bias).entropy is None


@pytest.mark.parametrize("used", [False, True])
def test_an_entropy_that_is_only_logged_costs_nothing_in_the_backward_pass(used):
    (hidden, weight, bias), tokens, _ = batch()
    logp, entropy = token_log_probs(hidden, weight, tokens, bias, entropy=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (logp.sum() + (entropy.sum() if used else 0.0)).backward()
    assert any("xlogy" in event.key for event in profile.key_averages()) == used


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_only_what_is_trained_gets_a_gradient(trained):
    """A frozen head, as under LoRA, is the usual case."""
    leaves, tokens, weights = batch()
    expected = with_gradients(naive(leaves[0], leaves[1], tokens, leaves[2]), weights, leaves)[1][trained]
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index == trained)
    logp, entropy = token_log_probs(
        leaves[0], leaves[1], tokens, leaves[2], chunk_size=4, vocabulary_chunk=3, entropy=True
    )
    ((logp * weights[0]).sum() + (entropy * weights[1]).sum()).backward()
    torch.testing.assert_close(leaves[trained].grad, expected, rtol=0, atol=1e-10)
    assert all(leaf.grad is None for index, leaf in enumerate(leaves) if index != trained)


def test_huge_and_impossible_logits_give_no_nan():
    """Logits of 1e5 overflow exp; a bias of -inf forbids a token."""
    hidden = torch.tensor([[[1e5], [-1e5]]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [0.0]], requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -torch.inf])
    logp, entropy = token_log_probs(hidden, weight, torch.tensor([[0, 0]]), bias, 1.0, 2, 1, entropy=True)
    torch.testing.assert_close(logp, torch.tensor([[0.0, -5e4]]))
    (logp.sum() + entropy.sum()).backward()
    assert entropy.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize("backend", ["torch", "trl"])
def test_padding_is_not_computed_whatever_stands_there(backend):
    dtype, atol = (F64, 1e-10) if backend == "torch" else (torch.float32, 2e-5)
    (hidden, weight, bias), tokens, weights = batch(dtype=dtype)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    poisoned = torch.where(mask[..., None], hidden.detach(), torch.nan).requires_grad_()
    outputs = token_log_probs(
        poisoned,
        weight,
        torch.where(mask, tokens, -100),
        bias,
        0.7,
        3,
        4,
        entropy=True,
        mask=mask,
        backend=backend,
    )
    expected = [torch.where(mask, x, 0.0) for x in naive(hidden, weight, tokens, bias, 0.7)]
    got = with_gradients(outputs, weights, (poisoned, weight, bias))
    assert_equal(got, with_gradients(expected, weights, (hidden, weight, bias)), atol)
    assert (got[1][0][~mask] == 0).all()


@pytest.mark.parametrize("backend", ["torch", "trl"])
def test_a_batch_of_padding_alone_has_zero_gradient(backend):
    """Some rank's micro-batch may hold no token; its backward pass must still run."""
    (hidden, weight), tokens, _ = batch(dtype=torch.float32, bias=False)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    token_log_probs(hidden, weight, tokens, mask=mask, backend=backend).logp.sum().backward()
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


# ------------------------------------------------------------------------------------------------------------ dtypes
def bf16_tolerance(hidden, weight):
    """Both ways round each logit to bfloat16, which has 8 bits: 2^-9 of it. Sums in another order may round to the
    neighbour, 2^-8 of the largest logit; logp is a difference of two numbers of that kind."""
    return 2 * 2**-8 * float((hidden.detach().double() @ weight.detach().double().t()).abs().max())


def test_bfloat16_equals_naive_within_its_rounding():
    (hidden, weight), tokens, weights = batch(4, 32, 64, 50, dtype=torch.bfloat16, bias=False)
    ours = with_gradients(
        token_log_probs(hidden, weight, tokens, chunk_size=16, vocabulary_chunk=32, entropy=True),
        weights,
        [hidden, weight],
    )
    theirs = with_gradients(naive(hidden, weight, tokens), weights, [hidden, weight])
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=bf16_tolerance(hidden, weight))
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        assert (a.double() - b.double()).norm() < 2**-6 * b.double().norm()


def test_bfloat16_gradients_are_summed_over_chunks_in_float32():
    """256 chunks whose parts point the same way: rounding each partial sum to 8 bits would stop the sum from growing."""
    (hidden, weight, bias), _, _ = batch(1, 256, 8, 16, dtype=torch.bfloat16)
    hidden, tokens = hidden[:, :1].detach().expand(1, 256, 8), torch.zeros(1, 256, dtype=torch.int64)
    exact = [x.detach().double().requires_grad_() for x in (weight, bias)]
    naive(hidden.double(), exact[0], tokens, exact[1])[0].sum().backward()
    token_log_probs(hidden, weight, tokens, bias, chunk_size=1, vocabulary_chunk=5).logp.sum().backward()
    for ours, reference in ((weight.grad, exact[0].grad), (bias.grad, exact[1].grad)):
        assert (ours.double() - reference).norm() < 0.02 * reference.norm()


def test_autocast_computes_products_in_bfloat16_and_keeps_float32_gradients():
    leaves, tokens, weights = batch(4, 32, 64, 50, dtype=torch.float32)
    hidden, weight, bias = leaves
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = token_log_probs(hidden, weight, tokens, bias, chunk_size=16, vocabulary_chunk=32, entropy=True)
        theirs = naive(hidden, weight, tokens, bias)
        got = with_gradients(ours, weights, leaves)  # backward inside the region, as accelerate does
    expected = with_gradients(theirs, weights, leaves)
    for a, b in zip(got[0], expected[0], strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=bf16_tolerance(hidden, weight))
    for a, b in zip(got[1], expected[1], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() < 2**-6 * b.norm()
    low = [x.detach().bfloat16() for x in leaves]
    assert torch.equal(
        got[0][0], token_log_probs(low[0], low[1], tokens, low[2], chunk_size=16, vocabulary_chunk=32).logp
    )


def test_float64_is_exempt_from_autocast():
    (hidden, weight, bias), tokens, _ = batch()
    expected = naive(hidden, weight, tokens, bias)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(token_log_probs(hidden, weight, tokens, bias).logp, expected, rtol=0, atol=1e-10)


def test_compiled_in_one_graph_for_all_lengths_it_equals_eager():
    leaves, tokens, weights = batch()
    hidden, weight, bias = leaves
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()

    def both(hidden, tokens, mask):
        return token_log_probs(hidden, weight, tokens, bias, 0.7, 2, 4, entropy=True, mask=mask)

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=backend)
    for length in (2, 4, 6):
        part, mask = hidden[:, :length], tokens[:, :length] > 2
        got, expected = (
            with_gradients(f(part, tokens[:, :length], mask), weights[:, :, :length], leaves) for f in (compiled, both)
        )
        assert_equal(got, expected, atol=0)
    assert len(graphs) == 1


def test_the_operators_are_well_formed():
    """torch's own checks: schema, fake tensors, autograd registration, ahead-of-time dispatch with dynamic shapes."""
    (hidden, weight, bias), tokens, _ = batch()
    rows, flat = hidden.detach().reshape(-1, 5).requires_grad_(), tokens.reshape(-1)
    for entropy in (False, True):
        for mask in (None, flat > 2):
            arguments = (rows, weight, bias, flat, mask, 0.7, 4, 3, entropy, F64)
            forward = torch.ops.sppo_control.token_log_probs.default
            assert list(torch.library.opcheck(forward, arguments).values()) == ["SUCCESS"] * 4
    for dtype, needs in (
        (F64, (True, False, True)),
        (torch.bfloat16, (False, True, False)),
        (torch.bfloat16, (True,) * 3),
    ):
        x, w, b = (y.detach().to(dtype) for y in (rows, weight, bias))
        logp, h, lse = torch.ops.sppo_control.token_log_probs(x, w, b, flat, None, 0.7, 4, 3, True, dtype)
        arguments = (logp, None, x, w, b, flat, None, h, lse, 0.7, 4, 3, dtype, *needs)
        backward = torch.ops.sppo_control.token_log_probs_backward.default
        checks = dict.fromkeys(("test_schema", "test_faketensor"), "SUCCESS")  # it has no backward of its own
        assert torch.library.opcheck(backward, arguments, test_utils=tuple(checks)) == checks


# ------------------------------------------------------------------------------------------------------------ memory
def peak_memory(compute):
    """Bytes that torch's CPU allocator held at most during `compute`, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        compute()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert peak > 0
    return peak


@pytest.mark.parametrize("entropy", [False, True])
def test_peak_memory_at_a_vocabulary_of_32000(entropy):
    """At most a quarter of the naive way's; gradients of the inputs aside, a few tiles for any number of tokens."""
    V, D, peaks = 32_000, 4, {}

    def peak(function, T):
        (hidden, weight), tokens, _ = batch(1, T, D, V, dtype=torch.float32, bias=False)

        def compute():
            logp, h = function(hidden, weight, tokens)
            (logp.sum() + (h.sum() if entropy else 0.0)).backward()

        return peak_memory(compute)

    def ours(hidden, weight, tokens):
        return token_log_probs(hidden, weight, tokens, chunk_size=128, entropy=entropy)

    peaks = {T: peak(ours, T) for T in (256, 512, 1024)}
    assert peaks[256] < peak(naive, 256) / 4
    tile, per_token = 128 * 4096 * 4, 2 * 4 * D + 100  # the gradient of hidden, and some numbers
    assert peaks[1024] < 3 * tile + V * D * 4 + 1024 * per_token
    assert peaks[1024] - peaks[512] < 512 * per_token


# ---------------------------------------------------------------------------------------------------------- backends
def test_trl_kernel_equals_torch():
    """On the CPU TRL folds its tiles in torch; what is tested is how it is called."""
    leaves, tokens, weights = batch(dtype=torch.float32)
    got, expected = (
        with_gradients(
            token_log_probs(
                leaves[0], leaves[1], tokens, leaves[2], 0.6, vocabulary_chunk=4, entropy=True, backend=name
            ),
            weights,
            leaves,
        )
        for name in ("trl", "torch")
    )
    assert_equal(got, expected, atol=2e-5)


def test_one_loss_through_the_surrogate_of_core():
    """The gradient of SPPO's loss with respect to the head, against finite differences."""
    (hidden, weight), tokens, _ = batch(bias=False)
    mask, advantage = tokens > 2, torch.tensor([0.5, -0.5, 0.2], dtype=F64)

    def loss(weight):
        logp = token_log_probs(hidden.detach(), weight, tokens, chunk_size=4, vocabulary_chunk=3, mask=mask).logp
        return core.clipped_surrogate(logp, logp_old, advantage, mask).loss

    logp_old = token_log_probs(hidden, weight, tokens).logp.detach() + 0.01
    assert torch.autograd.gradcheck(loss, weight)


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_cuda_equals_cpu(backend, dtype):
    leaves, tokens, weights = batch(4, 32, 64, 1000, dtype=dtype, device="cuda")
    mask = tokens > 100
    ours = token_log_probs(leaves[0], leaves[1], tokens, leaves[2], 0.7, 16, 300, True, mask, backend)
    got = with_gradients(ours, weights, leaves)
    low = [x.detach().cpu().requires_grad_() for x in leaves]
    reference = token_log_probs(low[0], low[1], tokens.cpu(), low[2], 0.7, 16, 300, True, mask.cpu())
    expected = with_gradients(reference, weights.cpu(), low)
    atol = 1e-3 if dtype == torch.float32 else bf16_tolerance(low[0], low[1]) / 0.7  # TF32 stays off by default
    for a, b in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=atol)
    # On an H100, TRL's kernel differs by 0.023 of the norm in bfloat16: it adds up the gradient in bfloat16.
    bound = 1e-3 if dtype == torch.float32 else 2**-6 if backend == "torch" else 2**-5
    for a, b in zip(got[1], expected[1], strict=True):
        assert (a.cpu().double() - b.double()).norm() < bound * b.double().norm()


# ------------------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 3)}, r"hidden must be \(B, T, D\)"),
        ({"weight": torch.zeros(6, 5)}, r"weight \(V, D\), got \(2, 3, 4\) and \(6, 5\)"),
        ({"hidden": torch.zeros(2, 3, 4, dtype=torch.int64)}, "hidden must be floating"),
        ({"tokens": torch.zeros(2, 4, dtype=torch.int64)}, r"tokens must be \(2, 3\) torch.int64, got \(2, 4\)"),
        ({"tokens": torch.zeros(2, 3, dtype=torch.int32)}, "tokens must be .* got .* torch.int32"),
        ({"tokens": torch.full((2, 3), 6)}, r"tokens must lie in \[0, 6\).* got 6 to 6; set mask to False"),
        ({"tokens": torch.full((2, 3), -100)}, "got -100 to -100"),
        ({"mask": torch.ones(2, 3)}, r"mask must be \(2, 3\) torch.bool, got .* torch.float32"),
        ({"bias": torch.zeros(5)}, r"bias must be \(6,\)"),
        ({"weight": torch.zeros(6, 4, dtype=F64)}, "hidden is torch.float32 and weight torch.float64; convert one"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"vocabulary_chunk": -1}, "vocabulary_chunk must be at least 1, got -1"),
        ({"backend": "liger"}, "unknown backend 'liger'; allowed: 'auto', 'torch', 'trl'"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {
        "hidden": torch.zeros(2, 3, 4),
        "weight": torch.zeros(6, 4),
        "tokens": torch.zeros(2, 3, dtype=torch.int64),
    }
    token_log_probs(**good)
    with pytest.raises(ValueError, match=message):
        token_log_probs(**{**good, **change})


def test_trl_refuses_float64():
    (hidden, weight, _), tokens, _ = batch()
    with pytest.raises(ValueError, match='use backend="torch"'):
        token_log_probs(hidden, weight, tokens, backend="trl")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_and_its_log_probs_need_no_extra():
    done = python(
        "import sys; sys.modules.update(dict.fromkeys(('transformers', 'trl', 'math_verify')))\n"
        "import sppo_control.llm; assert 'torch' not in sys.modules\n"
        "from sppo_control.llm import token_log_probs, exact_match\n"
        "import torch; logp = token_log_probs(torch.zeros(1, 1, 2), torch.zeros(4, 2), torch.tensor([[1]])).logp\n"
        "print(logp.exp().item())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.25"


def test_a_missing_extra_is_named_with_its_command():
    """None in sys.modules is what an import of a missing package meets."""
    done = python("import sys; sys.modules['transformers'] = None\nfrom sppo_control.llm import PromptCritic")
    last = done.stderr.splitlines()[-1]
    assert last == (
        "sppo_control.extras.MissingExtra: transformers, which sppo_control.llm.PromptCritic needs, is not installed; "
        "run: pip install 'sppo-control[llm]' (in a clone: pip install -c constraints.txt -e '.[llm]')"
    )


def test_verl_is_installed_with_its_own_constraints():
    from sppo_control.llm import verl_plugin

    assert verl_plugin.INSTALL == (
        "pip install torch==2.13.0; pip install 'sppo-control[verl]' "
        "(in a clone: pip install -c constraints-verl.txt -e '.[verl]')"
    )


def test_a_type_checker_finds_what_is_imported_late_where_it_is():
    import sppo_control.llm as package

    tree = ast.parse(Path(package.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    found = {(i.module, name.name, name.asname) for i in block.body for name in i.names}
    assert found == {(f"sppo_control.llm.{home}", name, name) for name, home in package._HOME.items()}


def test_an_unknown_name_is_an_attribute_error():
    import sppo_control.llm

    assert {"PromptCritic", "SPPOTrainer", "token_log_probs"} <= set(dir(sppo_control.llm))
    with pytest.raises(AttributeError, match=r"has no attribute 'promptcritic'; it has .*PromptCritic"):
        _ = sppo_control.llm.promptcritic
