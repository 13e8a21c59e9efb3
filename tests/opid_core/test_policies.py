from transformers import AutoTokenizer

from opid_core.policies import make_tiny_policy, train_tokenizer

TEXTS = ["go to shelf 1", "take creditcard 12 from shelf 1"] * 20


def test_any_text_survives_and_phrases_are_one_token_also_beside_a_model(tmp_path):
    train_tokenizer(TEXTS, ["Your task is to:"], 300, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Your task is to: take creditcard 12 from shelf 1 — é 漢字\n<b>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("Your task is to: creditcard 12") == ["Your task is to:", "Ġcreditcard", " 12"]
    # transformers chooses the tokenizer's class by the model next to it
    policy = make_tiny_policy(vocab_size=len(tokenizer), hidden_size=64, layers=1, heads=2, max_positions=8, seed=0)
    policy.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False) == ids


def test_the_chat_template_opens_the_answer(tmp_path):
    train_tokenizer(TEXTS, [], 300, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    message = [{"role": "user", "content": "go"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>go<|end|><|assistant|>"
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    assert tokens == ["<|user|>", "go", "<|end|>", "<|assistant|>"]
    assert tokenizer.eos_token == "<|end|>"
