"""Datasets, answers, tokenizers and models from elsewhere: each kind of surprise with several members of it."""

import json

import pytest

pytest.importorskip("trl", reason="trl is not installed: extra llm")

import torch
from tokenizers import processors

from sppo_control import core
from sppo_control.llm import MathReward, PromptCritic, addition
from sppo_control.llm.context import check_context, check_ids, positions
from sppo_control.llm.prompts import Prompts, load_prompts, make_reward, report_prompts
from sppo_control.llm.responses import generate
from sppo_control.llm.rewards import answer_text, gold_text
from sppo_control.llm.tokenizers import prompt_ids


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("math_verify", reason="math_verify is not installed: extra llm")
    reward = MathReward(timeout=60)
    yield lambda boxed, gold: reward([f"so \\boxed{{{boxed}}}"], answer=[gold])[0]
    assert reward.counts["crashed"] == reward.counts["timed_out"] == 0
    reward.close()


# ----------------------------------------------------------------------------------------------------- the judge
@pytest.mark.parametrize(
    ("boxed", "gold", "expected"),
    [
        ("9.1e-31", "1.6e-19", 0),
        (r"6.63 \times 10^{-34}", r"1.05 \times 10^{-34}", 0),
        ("1/2^{98}", "1/2^{99}", 0),
        (r"\frac{1}{2^{99}}", "2^{-99}", 1),
        ("10^{-20}", "0", 0),
        ("1e-9", "2e-9", 0),
        ("0.333333", "1/3", 0),
        ("0.666667", r"\frac{2}{3}", 0),
        ("0.3333333333", "1/3", 1),  # ten right digits of an endless decimal
        ("0.3333333334", "1/3", 1),
        ("0.3333333336", "1/3", 0),
        ("1.41421", r"\sqrt{2}", 0),
        ("1.41421356237", r"\sqrt{2}", 1),
        ("1.41421356337", r"\sqrt{2}", 0),
        ("1000000000.1", "1000000000.2", 0),  # both have an end
        ("10000000000000001", "10000000000000002", 0),
        ("0.1 + 0.2", "0.3", 1),
        (r"\{9.1e-31, 2\}", r"\{1.6e-19, 2\}", 0),
        (r"\begin{pmatrix} 1 & 10^{-30} \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \cdot 10^{-30} \end{pmatrix}", 0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1),
        ("0.5x", r"\frac{x}{2}", 1),
        (r"50\%", "0.5", 1),
        (r"50.5\%", "50.5", 1),
        ("025", "25", 1),
        ("25", "027.0", 0),
        ("27", "27.0", 1),
    ],
)
def test_numbers_are_compared_exactly(judge, boxed, gold, expected):
    assert judge(boxed, gold) == expected


@pytest.mark.parametrize(
    ("boxed", "gold", "expected"),
    [("0.3333", "1/3", 1), ("0.3332", "1/3", 0), ("9.1e-31", "1.6e-19", 0), ("9.1094e-31", "9.109e-31", 1),
     ("0.00001", "0", 0)],
)  # fmt: skip
def test_a_tolerance_is_relative(boxed, gold, expected):
    reward = MathReward(timeout=60, tolerance=1e-4)
    assert reward([f"\\boxed{{{boxed}}}"], answer=[gold]) == [expected]
    reward.close()
    with pytest.raises(ValueError, match="tolerance must be at least 0 and below 1, got 1"):
        MathReward(tolerance=1)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("204.", "204"),
        ("x = 3.", "3"),
        (r"\text{East.}", "east"),
        (r"90^\circ", "90"),
        ("90°", "90"),
        ("90 degrees", "90"),
        (r"45\degree", "45"),
        ("√2", r"\sqrt{2}"),
        ("2√(3)", r"2\sqrt{3}"),
        ("∛5", r"\sqrt[3]{5}"),
        ("sqrt(7)", r"\sqrt{7}"),
        (r"10\,000", "10000"),
        (r"1\,234\,567.5", "1234567.5"),
        ("10{,}000", "10000"),
        (r"10,\!000", "10000"),
        ("10 000", "10000"),
        ("10\u202f000", "10000"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"-2.1\overline{6}", r"-\frac{13}{6}"),
        (r"0.\bar{9}", "1"),
        (r".\overline{142857}", "1/7"),
        (r"0.\dot{1}4285\dot{7}", "1/7"),
        (r"\[ 3 \]", "3"),
        (r"\( \frac{1}{2} \)", "0.5"),
        ("$$x^2$$", "x^2"),
        ("$ 3. $", "3"),
        (r"\textbf{(B)}\ 12", "12"),
        (r"\text{(C) }\frac{1}{2}", "1/2"),
        (r"\mathrm{(A)} \quad 10\,000", "10000"),
        (r"(\text{D})\ 7", "7"),
        ("(E) 5", "5"),
        (r"\textbf{(B) } 12", r"\textbf{(B)}\ 12"),
        ("B", r"\textbf{(B)}\ 12"),
        (r"\text{(B)}", "B"),
        ("\u22123", "-3"),
        ("½", "1/2"),
        ("4 1/2", "9/2"),
        ("x²", "x^2"),
        ("\uff11\uff12", "12"),
        (r"\boldsymbol{3}", "3"),
        ("2π", r"2\pi"),
        ("2516_{8}", "2516_8"),
        (r"2516_{\text{eight}}", "2516_8"),
        (r"\text{no}", "No"),
    ],
)
def test_one_answer_in_many_hands(judge, text, same):
    """Both ways: as the response's and as the dataset's."""
    assert judge(text, same) == 1
    assert judge(same, text) == 1


@pytest.mark.parametrize(
    ("boxed", "gold"),
    [
        ("on", "no"), ("no", "on"), ("ti", "it"), ("su", "us"), (r"\text{on}", "no"), ("WN", "NW"),
        ("2516_9", "2516_8"), ("1010_2", "1010_3"), ("1A_{16}", "1B_{16}"), ("10", "1010_2"), ("1358", "2516_8"),
        (r"\{101_2, 11_2\}", r"\{101_3, 11_3\}"),
        (r"\textbf{(C)}\ 12", r"\textbf{(B)}\ 12"), (r"\textbf{(B)}\ 13", r"\textbf{(B)}\ 12"), ("C", r"\textbf{(B)}\ 12"),
        ("2.4", "204."), (r"\sqrt{3}", "√2"), (r"0.\overline{3}", "0.3"), (r"1,\ 234", "1234"), ("91", "90°"), ("12", "B"),
    ],
)  # fmt: skip
def test_what_only_looks_alike_is_wrong(judge, boxed, gold):
    assert judge(boxed, gold) == 0


@pytest.mark.parametrize(("boxed", "gold"), [("ba", "ab"), ("yx", "xy"), ("2516", "2516_8")])
def test_products_of_two_letters_may_be_in_any_order(judge, boxed, gold):
    assert judge(boxed, gold) == 1


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("She has 2 + 3 = <<2+3=5>>5.\n#### 5", "5"),
        ("#### 1,234", "1,234"),
        ("#### -7 ", "-7"),
        ("#### Step 1\nso \\boxed{3}", "3"),
        ("plain", "plain"),
        ("####", "####"),
    ],
)
def test_right_answers_inside_solutions(gold, text):
    assert gold_text(gold) == text


def test_gsm8k_is_judged(judge):
    assert judge("1234", "so\n#### 1,234") == 1
    assert judge("1235", "so\n#### 1,234") == 0


# ----------------------------------------------------------------------------------------------------- right answers
@pytest.mark.parametrize(
    ("value", "text"),
    [(204.0, "204"), (-3.0, "-3"), (0.5, "0.5"), (7, "7"), ("007", "007"), ("204.0", "204.0"),
     ("\ufeff12", "12"), (1e300, "1e+300")],
)  # fmt: skip
def test_whole_numbers_stay_whole(value, text):
    assert answer_text(value) == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, [1], {"a": 1}, "", "  ", "\ufeff"])
def test_what_is_no_answer_is_refused(value):
    with pytest.raises(ValueError, match=r"a right answer is a text that is not empty, or a finite number"):
        answer_text(value)
    reward = MathReward()
    with pytest.raises(ValueError, match=r"the column 'answer' .*at index 1"):
        reward([r"\boxed{1}"] * 2, answer=["1", value])
    with pytest.raises(ValueError, match="a right answer is a text"):
        make_reward("exact")(["1"], {"answer": [value]})


def test_golds_are_checked_once_and_named():
    reward = MathReward(timeout=60)
    golds = ["1/2", r"\frac", "12", 204.0, "east", "#### 3", r"\frac", "???", "1_{8}", r"\textbf{(B)}\ 12"]
    assert reward.check(golds) == {1: "answer_unparsed", 6: "answer_unparsed", 7: "answer_unparsed"}
    assert reward.counts["total"] == 0
    with pytest.raises(ValueError, match=r"'answer' at index 1 is None; a right answer"):
        reward.check(["1", None])
    reward.close()


# ----------------------------------------------------------------------------------------------------- one verdict
CASES = [
    ("25", "025", 1.0),
    ("27", "27.0", 1.0),
    ("27", "28", 0.0),
    (r"10\,000", 10000.0, 1.0),
    ("9.1e-31", "1.6e-19", 0.0),
]


def test_scripts_trl_verl_and_evaluation_judge_alike():
    import evaluate_llm
    from sppo_control.llm.verl_plugin import boxed_reward

    texts, golds = [rf"so \boxed{{{boxed}}}" for boxed, _, _ in CASES], [gold for _, gold, _ in CASES]
    expected = [outcome for _, _, outcome in CASES]
    assert make_reward("math")(texts, {"answer": golds}) == expected
    assert evaluate_llm.Judge("math")(texts, {"answer": golds}) == expected
    assert MathReward()(completions=texts, answer=golds) == expected
    got = [
        boxed_reward(solution_str=text, ground_truth=gold, data_source="aime24")
        for text, gold in zip(texts, golds, strict=True)
    ]
    assert got == expected


# ----------------------------------------------------------------------------------------------------- datasets
@pytest.mark.parametrize(
    ("name", "text", "answers"),
    [
        ("a.csv", "prompt,answer\n1+1=,007\n2+2=,204.0\n", ["007", "204.0"]),
        ("b.csv", "\ufeffprompt,answer,level\n1+1=,2,3\n2+2=,NA,4\n", ["2", "NA"]),
        ("c.json", '\ufeff[{"prompt": "1+1=", "answer": 204}, {"prompt": "2", "answer": 0.5}]', ["204", "0.5"]),
        ("d.jsonl", '\ufeff{"prompt": "1+1=", "answer": 204.0}\n\n{"prompt": "2", "answer": "007"}\n', ["204", "007"]),
        ("e.jsonl", '{"prompt": "1", "answer": "2024-01-02"}\r\n{"prompt": "2", "answer": 12345678901234567890}\r\n',
         ["2024-01-02", "12345678901234567890"]),
    ],
)  # fmt: skip
def test_answers_are_as_the_file_has_them(name, text, answers, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    read = load_prompts(tmp_path / name, addition.tokenizer())
    assert read.answers == answers
    assert read.rows == [0, 1]
    assert read.columns.get("level", [3, 4]) == [3, 4]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"prompt": "1", "answer": "1"}\n{"prompt": "2", "answer": NaN}\n', "answer in row 1 is nan; a right"),
        ("b.jsonl", b'{"prompt": "1", "answer": ["1"]}\n', r"the answer in row 0 is \['1'\]; a right answer is a text"),
        ("c.csv", b"prompt,answer\n1,1\n2,\n", "the answer in row 1 is ''; a right answer"),
        ("d.csv", b"prompt,answer\n1\n", "line 2 has not the 2 columns of line 1"),
        ("e.jsonl", b'{"prompt": "1", "answer": "1"}\n{"prompt": "1", "answer": 007}\n', "line 2 is not JSON"),
        ("f.json", "[{}]".encode("utf-16"), "it is not UTF-8"),
        ("g.jsonl", b"3\n", "line 1 is '3', not an object"),
        ("h.jsonl", b'{"prompt": "1", "answer": true}\n', "the answer in row 0 is True"),
        ("i.jsonl", b'{"prompt": "1", "answer": "1"}\n{"prompt": "2"}\n', "the answer in row 1 is None"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name, addition.tokenizer())


@pytest.mark.parametrize("copies", [["1 ", " 1", "1\n"], ["1", "1", "1"], ["1", "2", "2"]])
def test_train_and_held_out_share_no_prompt(copies):
    texts = [f"{i}0" for i in range(30)] + copies * 5
    data = Prompts(texts, [[2]] * 45, [str(i) for i in range(45)])
    for held_out in (1, 10, 20, 29):
        train, held = data.split(held_out)
        assert not {x.strip() for x in train.texts} & {x.strip() for x in held.texts}
        assert len(held) == held_out
        assert [texts[row] for row in train.rows] == train.texts
    with pytest.raises(ValueError, match="no prompt is left for training: all 3 are the same as a held-out one"):
        Prompts(["1"] * 3, [[2]] * 3, [""] * 3).split(1)


def test_the_dataset_is_reported_before_training():
    data = Prompts(["1", "2", "1 ", "3", "4"], [[2]] * 5, ["7", r"\frac", "8", "9", "???"], rows=[3, 5, 6, 8, 9])
    lines = report_prompts(data, "math", "x.jsonl")
    assert lines == [
        "x.jsonl: 1 of 5 prompts are there already, such as rows 3, 6; held-out prompts are not trained on",
        "x.jsonl: one prompt has several right answers, '7' and '8', in rows 3, 6; mend or leave out",
        r"x.jsonl: 2 of 5 answers (40.0%) cannot be read by math-verify, so only the same text is right: row 5: '\\frac'; "
        "row 9: '???'",
    ]
    assert report_prompts(data, "exact", "x.jsonl") == lines[:2]
    assert report_prompts(Prompts(["1"], [[2]], ["#### 2"]), "math", "x.jsonl") == []
    with pytest.raises(ValueError, match="none of the 1 answers can be read, the first is '@@'"):
        report_prompts(Prompts(["1"], [[2]], ["@@"]), "math", "x.jsonl")


# ----------------------------------------------------------------------------------------------------- prompts
CHAT = [{"role": "user", "content": "12"}]


def with_specials(before="", after="", template=None):
    """A tokenizer of characters with <pad> as begin token, that puts special tokens around each text."""
    made = addition.tokenizer()
    made.bos_token = "<pad>"
    single = " ".join(x for x in (before, "$A", after) if x)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<eos>", 1), ("<pad>", 0)]
    )
    made.chat_template = template
    return made


OPEN = "{% for m in messages %}{{ m['content'] }}{% if not loop.last or m['role'] == 'user' %}+{% endif %}{% endfor %}"
WITH_BOS = "<pad>{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "ids"),
    [
        (with_specials(), "1+", [3, 12]),
        (with_specials("<pad>"), "1+", [0, 3, 12]),
        (with_specials("", "<eos>"), "1+", [3, 12]),  # an end token would close the text before the response
        (with_specials("<pad>", "<eos>"), "1+", [0, 3, 12]),
        (with_specials("<pad> <pad>", "<eos>"), CHAT, None),
        (with_specials("<pad>", "<eos>", WITH_BOS), CHAT, [0, 3, 4, 13]),  # the template's token alone
        (with_specials("", "", OPEN), [*CHAT, {"role": "assistant", "content": "3"}], [3, 4, 12, 5]),
        (with_specials("", "", OPEN), [*CHAT, {"role": "assistant", "content": ""}], [3, 4, 12]),
        (with_specials("<pad>"), "<pad>1+", None),
        (with_specials("<pad>", "", "<pad>" + WITH_BOS), CHAT, None),
    ],
)
def test_ids_of_prompts_are_the_same_for_policy_critic_and_evaluation(tokenizer, prompt, ids, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "answer": "1"}))
    critic = PromptCritic.from_backbone(tiny("Qwen2Config", "Qwen2ForCausalLM"), tokenizer)
    torch.nn.init.normal_(critic.head.weight)
    if ids is None:
        for use in (
            lambda: prompt_ids(prompt, tokenizer),
            lambda: critic.predict([prompt]),
            lambda: load_prompts(path, tokenizer),
        ):
            with pytest.raises(ValueError, match=r"begins with two <pad>|no chat template"):
                use()
        return
    assert prompt_ids(prompt, tokenizer) == ids
    assert load_prompts(path, tokenizer).ids == [ids]
    assert torch.equal(critic.predict([prompt]), critic.predict([ids]))


# ----------------------------------------------------------------------------------------------------- models
def tiny(config, model, **settings):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 1,
             "bos_token_id": None}  # fmt: skip
    return getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **settings})).eval()


@pytest.mark.parametrize(
    ("config", "settings", "limit"),
    [
        ("Qwen2Config", {}, 16),
        ("GPT2Config", {"n_positions": 32}, 32),
        ("OPTConfig", {"ffn_dim": 16}, 16),
        ("MptConfig", {"max_seq_len": 24, "attn_config": {"alibi": False}}, 24),
        ("MptConfig", {"max_seq_len": 24}, None),
        ("BloomConfig", {}, None),
        ("MambaConfig", {}, None),
        ("Qwen2Config", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                             "original_max_position_embeddings": 16}}, 64),
    ],
)  # fmt: skip
def test_the_context_of_a_model(config, settings, limit):
    import transformers

    sizes = (
        {}
        if "n_positions" in settings or config in ("MptConfig", "BloomConfig", "MambaConfig")
        else {"max_position_embeddings": 16}
    )
    made = getattr(transformers, config)(**{**sizes, **settings})
    assert positions(made) == limit
    check_context(made, "m", (limit or 1000) - 4, 4, "--max-response-length")
    if limit is not None:
        with pytest.raises(
            ValueError,
            match=rf"a prompt of {limit - 4} tokens and --new 5 exceed the {limit} positions of m; use --new 4 or less, or "
            rf"leave long prompts out with --long {limit - 5}$",
        ):
            check_context(made, "m", limit - 4, 5, "--new", "--long")
        with pytest.raises(
            ValueError, match=rf"a prompt of {limit + 1} tokens exceeds the {limit} positions of m; leave such"
        ):
            check_context(made, "m", limit + 1, 0, "")


def test_a_token_without_an_embedding():
    model, tokenizer = tiny("Qwen2Config", "Qwen2ForCausalLM"), addition.tokenizer()
    with pytest.raises(ValueError, match="makes a token 14, and m has embeddings for 0 to 13; save the model after"):
        check_ids(model, [[2], [14, 3]], "m")
    check_ids(model, [[2], [13, 3]], "m")
    tokenizer.add_special_tokens({"pad_token": "<new>"})  # 14: the embeddings know it not
    data = Prompts(["1+1=", "1+"], [[3, 12, 3, 13], [3, 12]], ["2", "2"])
    made = generate(model, tokenizer, data, [0, 1], lambda texts, columns: [0.0] * len(texts), 3, 4)
    tokenizer.pad_token = "<eos>"
    usual = generate(model, tokenizer, data, [0, 1], lambda texts, columns: [0.0] * len(texts), 3, 4)
    assert torch.equal(made.logp, usual.logp)
    assert made.texts == usual.texts


@pytest.mark.parametrize("width", [8, 16, 24])
def test_a_critic_of_a_projected_width(width, tmp_path):
    policy = tiny("OPTConfig", "OPTForCausalLM", ffn_dim=16, word_embed_proj_dim=width, max_position_embeddings=32)
    critic = PromptCritic.from_backbone(policy, addition.tokenizer())
    assert critic.head.in_features == width
    torch.nn.init.normal_(critic.head.weight)
    value = critic.predict(["1+1=", "12+"])
    critic.save_pretrained(tmp_path)
    assert torch.equal(PromptCritic.from_pretrained(tmp_path).predict(["1+1=", "12+"]), value)


# ----------------------------------------------------------------------------------------------------- finite gradients
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", ["step", "sequence"])
@pytest.mark.parametrize("reduction", ["token-mean", "sequence-mean", "fixed"])
def test_a_finite_loss_has_a_finite_gradient(dtype, ratio, reduction):
    """Log-ratios from -1e4 to 1e4: the gradient is finite wherever the loss is, and 0 where the ratio is clipped."""
    finite = 0
    for size in (0.3, 5.0, 11.0, 88.5, 89.0, 200.0, 720.0, 1e4):
        for sign in (1, -1):
            for A in ([0.5, 0.5], [0.0, -0.0], [-0.5, 0.5], [-0.5, -1e-4]):
                logp = torch.full((2, 3), -1.0, dtype=dtype, requires_grad=True)
                old = torch.full((2, 3), -1.0, dtype=dtype)
                old[0, 1] -= sign * size
                mask = torch.tensor([[True, True, False], [True, True, True]])
                advantage = torch.tensor(A, dtype=dtype)
                found = core.clipped_surrogate(logp, old, advantage, mask, 0.2, reduction, ratio=ratio)
                if found.loss.isfinite():
                    finite += 1
                    found.loss.backward()
                    assert logp.grad.isfinite().all(), (size, sign, A)
                    assert logp.grad[0, 2] == 0
                    if A[0] > 0 and sign * size > 1 and ratio == "step":  # clipped
                        assert logp.grad[0, 1] == 0
    assert finite > 40
