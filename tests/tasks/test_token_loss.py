"""The loss of selected positions equals the model's own loss, for every kind of head, and never makes full logits."""

import pytest


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


LLAMA_LIKE = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
              "eos_token_id": 2}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def build(name: str):
    """A tiny random model of an architecture, in eval mode."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    configs = {
        "Llama": lambda: t.LlamaConfig(**LLAMA_LIKE),
        "Gemma2": lambda: t.Gemma2Config(**LLAMA_LIKE, head_dim=8),
        "Cohere": lambda: t.CohereConfig(**LLAMA_LIKE),
        "Granite": lambda: t.GraniteConfig(**LLAMA_LIKE, logits_scaling=3.0),
        "Phi3": lambda: t.Phi3Config(**LLAMA_LIKE),
        "GPT2": lambda: t.GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2, **ENDS),
        "GPTNeoX": lambda: t.GPTNeoXConfig(**LLAMA_LIKE),
        "Bert": lambda: t.BertConfig(**LLAMA_LIKE, is_decoder=True),
        "T5": lambda: t.T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                                 decoder_start_token_id=0, eos_token_id=2),
        "Bart": lambda: t.BartConfig(vocab_size=97, d_model=16, encoder_layers=1, decoder_layers=1,
                                     encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                                     decoder_ffn_dim=32, decoder_start_token_id=2, forced_eos_token_id=2, **ENDS),
    }  # fmt: skip
    kinds = {"GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel", "T5": "T5ForConditionalGeneration",
             "Bart": "BartForConditionalGeneration"}  # fmt: skip
    return getattr(t, kinds.get(name, f"{name}ForCausalLM"))(configs[name]()).eval()


def batch_of(torch, untrained: int = 4):
    ids = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :untrained] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(
    ("name", "way"),
    [("Llama", "chunked"), ("Gemma2", "selected"), ("Cohere", "selected"), ("Granite", "selected"),
     ("Phi3", "chunked"), ("GPT2", "chunked"), ("GPTNeoX", "chunked"), ("Bert", "chunked")],
)  # fmt: skip
def test_equals_the_models_own_loss_and_gradients(torch, name, way):
    from featherweight.tasks import CausalLM, token_loss

    model, batch = build(name), batch_of(torch)
    loss, units = CausalLM().loss(model, batch)
    (loss / units).backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    own = model(**batch).loss
    own.backward()
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    assert token_loss.ways[model] == way
    assert int(units) == 7 + 7 + 3
    assert loss.dtype == torch.float32
    assert (loss / units).item() == pytest.approx(own.item(), abs=1e-6)
    assert len(got) == len(wanted) > 5
    assert all(torch.allclose(g, w, atol=1e-6, rtol=1e-4) for g, w in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_seq2seq_equals_the_models_own_loss(torch, name):
    from featherweight.tasks import Seq2Seq, token_loss

    model, batch = build(name), batch_of(torch, untrained=0)
    loss, units = Seq2Seq().loss(model, batch)
    assert token_loss.ways[model] == "chunked"
    assert int(units) == 11 + 11 + 7
    assert (loss / units).item() == pytest.approx(model(**batch).loss.item(), abs=1e-6)


def test_ways_agree(torch):
    from featherweight.tasks.token_loss import LOSSES

    model, batch = build("Llama"), batch_of(torch)
    targets = batch["labels"].roll(-1, 1)
    targets[:, -1] = -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    losses = [law(model, inputs, targets).item() for law in LOSSES.values()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_head_sees_only_positions_with_loss(torch):
    from featherweight.tasks import CausalLM

    model, batch = build("Gemma2"), batch_of(torch)
    seen = []
    CausalLM().loss(model, batch)  # decides the way
    with model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape)):
        CausalLM().loss(model, batch)
    assert seen == [(17, 97)]


def test_nothing_of_full_size_is_ever_made(torch):
    from torch.utils._python_dispatch import TorchDispatchMode

    from featherweight.tasks import CausalLM

    class Rows(TorchDispatchMode):
        rows = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (5000,):
                self.rows.add(out.numel() // 5000)
            return out

    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "vocab_size": 5000}))
    batch = batch_of(torch, untrained=9)
    CausalLM().loss(model, batch)
    with Rows() as made:
        loss, units = CausalLM().loss(model, batch)
        loss.backward()
    assert int(units) == 4
    assert made.rows <= {1, 4, 16}  # the model's one position, those with loss, and the weight itself; never 33
    assert 4 in made.rows


def test_chunks_of_any_head_agree(torch, monkeypatch):
    """A head that is no plain nn.Linear goes through the module, chunk by chunk."""
    from featherweight.tasks import CausalLM, token_loss

    model, batch = build("Llama"), batch_of(torch)
    plain, _ = CausalLM().loss(model, batch)
    plain.backward()
    wanted = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    sizes = []
    monkeypatch.setattr(token_loss, "LOGITS", 5 * 97)
    monkeypatch.setattr(token_loss, "fusable", lambda head: False)
    real = token_loss.piece_loss
    monkeypatch.setattr(token_loss, "piece_loss", lambda h, x, t: sizes.append(len(x)) or real(h, x, t))
    loss, _ = CausalLM().loss(model, batch)
    loss.backward()
    assert sizes[:4] == [5, 5, 5, 2]
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert torch.allclose(model.model.layers[0].mlp.up_proj.weight.grad, wanted, atol=1e-6)


def test_adapter_on_the_head_is_used(torch):
    from featherweight.core.attach import attach
    from featherweight.methods.lora import LoRA
    from featherweight.tasks import CausalLM

    model, batch = build("Phi3"), batch_of(torch)
    before, _ = CausalLM().loss(model, batch)
    attach(model, LoRA(rank=4, targets=r"lm_head"))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    loss, units = CausalLM().loss(model, batch)
    loss.backward()
    assert (loss / units).item() == pytest.approx(model(**batch).loss.item(), abs=1e-5)
    assert abs((loss - before).item()) > 1e-2
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_" in n)


def test_no_trained_token_is_a_zero_with_a_graph(torch):
    from featherweight.tasks import CausalLM

    model, batch = build("Llama"), batch_of(torch, untrained=11)
    loss, units = CausalLM().loss(model, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert int(units) == 0


def test_packed_rows_do_not_predict_across_their_border(torch):
    from featherweight.tasks import CausalLM

    model = build("Llama")
    rows = [[5, 6, 7, 8], [9, 10, 11]]
    apart = [CausalLM().loss(model, {"input_ids": torch.tensor([r]), "labels": torch.tensor([r])}) for r in rows]
    packed = {"input_ids": torch.tensor([rows[0] + rows[1]]), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    loss, units = CausalLM().loss(model, packed | {"labels": packed["input_ids"].clone()})
    assert int(units) == 5
    assert loss.item() == pytest.approx(sum(part.item() for part, _ in apart), rel=1e-6)


def test_probe_leaves_modes_and_random_numbers_alone(torch):
    from featherweight.tasks import CausalLM

    model = build("GPT2").train()
    model.transformer.h[0].eval()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    first, _ = CausalLM().loss(model, batch_of(torch))
    torch.manual_seed(3)
    second, _ = CausalLM().loss(model, batch_of(torch))
    assert modes == [m.training for m in model.modules()]
    assert first.item() == second.item()
    assert not model.lm_head._forward_hooks
    assert not model.lm_head._forward_pre_hooks


def test_stories_loss_on_real_rows(torch, data_dir, stories, stories_tokenizer):
    """A real model on real E2E rows, padded: equal to its own labels= loss to 1e-6."""
    import csv

    from featherweight.tasks import CausalLM

    with (data_dir / "e2e_nlg" / "devset.csv").open(encoding="utf-8") as file:
        texts = [(f"{row['mr']} || ", row["ref"]) for row, _ in zip(csv.DictReader(file), range(8), strict=False)]
    prompts = [stories_tokenizer(p)["input_ids"] for p, _ in texts]
    rows = [
        p + stories_tokenizer(r, add_special_tokens=False)["input_ids"]
        for p, (_, r) in zip(prompts, texts, strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(prompt)] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    with torch.no_grad():
        loss, units = CausalLM().loss(stories, batch)
        own = stories(**batch).loss
    assert (loss / units).item() == pytest.approx(own.item(), abs=1e-6)
    assert 3.5 < own.item() < 5.5


@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
def test_bf16_autocast_equals_the_models_own_loss(torch, name):
    from featherweight.tasks import CausalLM

    model, batch = build(name), batch_of(torch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, units = CausalLM().loss(model, batch)
        own = model(**batch).loss
    loss.backward()
    assert (loss / units).item() == pytest.approx(own.item(), abs=1e-3)
    assert loss.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()


def test_packed_real_rows_equal_padded_ones(torch, stories, stories_tokenizer):
    from featherweight.data.collate import collate
    from featherweight.data.types import Example, Turn
    from featherweight.tasks import CausalLM

    examples = [Example(f"a:{i}", turns=(Turn(f"name[{n}] || ", False), Turn(f"{n} is a pub.", True)))
                for i, n in enumerate(["Eagle", "The Vaults", "Zizzi"])]  # fmt: skip
    rows = CausalLM().encode_all(examples, stories_tokenizer, None)
    losses = []
    for packed in (False, True):
        with torch.no_grad():
            loss, units = CausalLM().loss(stories, collate(rows, 0, packed=packed).tensors)
        losses.append((loss.item(), int(units)))
    assert losses[0][1] == losses[1][1] == sum(label != -100 for row in rows for label in row.labels)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-6)


def test_wrapped_models_keep_their_gradients(torch, tmp_path):
    """Inside DistributedDataParallel the loss runs through the wrapper's forward, so gradients are reduced."""
    import torch.distributed as dist

    from featherweight.tasks import CausalLM

    model, batch = build("Llama"), batch_of(torch)
    plain, _ = CausalLM().loss(model, batch)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            loss, _ = CausalLM().loss(wrapped, batch)
            loss.backward()
    finally:
        dist.destroy_process_group()
    assert loss.item() == plain.item()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_that_mixes_positions_gets_full_logits(torch):
    from transformers import LlamaConfig, LlamaForCausalLM

    from featherweight.tasks import CausalLM, token_loss

    class Centered(LlamaForCausalLM):
        """Logits less their mean over positions: selecting first would change them."""

        def forward(self, **given):
            out = super().forward(**given)
            out.logits = out.logits - out.logits.mean(-2, keepdim=True)
            return out

    torch.manual_seed(0)
    model, batch = Centered(LlamaConfig(**LLAMA_LIKE)).eval(), batch_of(torch)
    loss, units = CausalLM().loss(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    own = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert token_loss.ways[model] == "full"
    assert (loss / units).item() == pytest.approx(own.item(), abs=1e-6)


def test_a_model_that_hides_its_head_gets_full_logits(torch, monkeypatch):
    from featherweight.tasks import CausalLM, token_loss

    model, batch = build("GPT2"), batch_of(torch)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    loss, units = CausalLM().loss(model, batch)
    assert token_loss.ways[model] == "full"
    assert (loss / units).item() == pytest.approx(model(**batch).loss.item(), abs=1e-6)
