"""Who writes text in `decode.py`: pygpt and its peers, each with the same weights in the form that it reads.

A contender runs in a process of its own (this file as a program) with no other library than its own. Its `decode` gives
the seconds of each step, one token of every row; the prompt's pass is none.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind the installed pygpt
from bench.worker import Answer, memory, serve

TOP_K, TOP_P = 40, 0.95  # of the rows that sample; temperature 1

Prompts = list[list[int]]  # of one length


class Missing(Exception):
    """A peer is not installed, or has no such dtype here; the message says what to do."""


# ---- the same weights for everyone ----


class Weights:
    """Where the weights lie, in each contender's form, made from a GPT-2 in Hugging Face's layout.

    Args:
        source: the folder with config.json and model.safetensors; for llama.cpp also a GGUF file of any model.
        made: a folder for what is made of it.
    """

    def __init__(self, source: Path, made: Path) -> None:
        self.source = source
        self._made = made

    def prepared(self, kind: str, dtype: str) -> Path:
        """What a contender loads; made, by its library's own tools where it has them, the first time it is asked for.

        Raises:
            ImportError: if the library is missing.
            Missing: if it cannot make that dtype.
        """
        if kind == "CTranslate2":
            return self._ctranslate2(dtype)
        if kind.startswith("Pygpt") and dtype in ("int8", "int4"):
            return self._quantised(dtype)
        return self._gguf(dtype) if kind.startswith("Llama") else self.source

    def _quantised(self, dtype: str) -> Path:
        folder = self._made / f"pygpt-{dtype}"
        if not folder.exists():
            import torch

            from pygpt import GPT

            GPT.from_pretrained(self.source, dtype=torch.float32).quantize(dtype).save_pretrained(folder)
        return folder

    def _ctranslate2(self, dtype: str) -> Path:
        """By hand: CTranslate2's own converter wants a tokenizer, which random weights lack."""
        folder = self._made / f"ctranslate2-{dtype}"
        if not folder.exists():
            _convert_to_ctranslate2(self.source, dtype, folder)
        return folder

    def _gguf(self, dtype: str) -> Path:
        """Float32 (or what a file has), or what llama.cpp's own quantisation makes of that."""
        import llama_cpp  # noqa: F401

        if dtype == "f32" and self.source.is_file():
            return self.source
        file = self._made / f"{dtype}.gguf"
        if not file.exists() and dtype == "f32":
            _write_gguf(self.source, file)
        elif not file.exists():
            _quantise_gguf(self._gguf("f32"), dtype, file)
        return file


def _gpt2(source: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration and the weights as arrays, matrices (out, in)."""
    import torch

    from pygpt import GPT

    model = GPT.from_pretrained(source, dtype=torch.float32)
    return model.config, {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _convert_to_ctranslate2(source: Path, dtype: str, folder: Path) -> None:
    from ctranslate2.specs import common_spec, transformer_spec

    config, weights = _gpt2(source)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.num_layers, config.num_heads, pre_norm=True, activation=common_spec.Activation.GELUTanh
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights["token_embedding.weight"]
    decoder.position_encodings.encodings = weights["position_embedding.weight"]
    decoder.projection.weight = weights["token_embedding.weight"]

    def norm(to: Any, name: str) -> None:
        to.gamma, to.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def linear(to: Any, name: str) -> None:
        to.weight, to.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]

    norm(decoder.layer_norm, "norm")
    for index, layer in enumerate(decoder.layer):
        block = f"blocks.{index}"
        norm(layer.self_attention.layer_norm, f"{block}.norm_1")
        linear(layer.self_attention.linear[0], f"{block}.attention.qkv")
        linear(layer.self_attention.linear[1], f"{block}.attention.out")
        norm(layer.ffn.layer_norm, f"{block}.norm_2")
        linear(layer.ffn.linear_0, f"{block}.feed_forward.up")
        linear(layer.ffn.linear_1, f"{block}.feed_forward.down")
    spec.register_vocabulary([_word(token) for token in range(config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = _word(config.vocab_size - 1)
    spec.validate()
    spec.optimize(quantization=dtype)
    folder.mkdir(parents=True)
    spec.save(str(folder))


def _word(token: int) -> str:
    return f"<{token}>"


def _write_gguf(source: Path, file: Path) -> None:
    import gguf

    config, weights = _gpt2(source)
    writer = gguf.GGUFWriter(str(file), "gpt2")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.embedding_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = {"token_embedding": "token_embd", "position_embedding": "position_embd", "norm": "output_norm"}
    for index in range(config.num_layers):
        ours, theirs = f"blocks.{index}", f"blk.{index}"
        names |= {
            f"{ours}.norm_1": f"{theirs}.attn_norm",
            f"{ours}.attention.qkv": f"{theirs}.attn_qkv",
            f"{ours}.attention.out": f"{theirs}.attn_output",
            f"{ours}.norm_2": f"{theirs}.ffn_norm",
            f"{ours}.feed_forward.up": f"{theirs}.ffn_up",
            f"{ours}.feed_forward.down": f"{theirs}.ffn_down",
        }
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names[module]}.{kind}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantise_gguf(source: Path, dtype: str, file: Path) -> None:
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # it tells of each tensor
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{dtype.upper()}")
    parameters.allow_requantize = True  # of a file that is quantised already
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(parameters))
    if failed:
        raise Missing(f"llama.cpp could not make {dtype} of {source.name}")


# ---- the contenders ----


class Contender:
    """One library with one dtype.

    Args:
        weights: where they lie, as `Weights.prepared` says.
        dtype: in the library's own word.
        threads: how many it may use.
        new: how many tokens are written after a prompt.
        vocabulary: how many tokens there are.
        positions: numbers in the table of positions.
    """

    label: str
    package: str  # on PyPI

    def __init__(self, weights: Path, dtype: str, threads: int, new: int, vocabulary: int, positions: int) -> None:
        self.dtype = dtype
        self.threads = threads
        self.new = new
        self.vocabulary = vocabulary
        self.positions = positions
        self.load(weights)

    def load(self, weights: Path) -> None:
        raise NotImplementedError

    def weight_bytes(self) -> int:
        """What a step reads of the weights: all of them but the table of positions, of which it reads a row."""
        raise NotImplementedError

    def decode(self, prompts: Prompts) -> list[float]:
        """Write after the prompts; give the seconds of each step."""
        raise NotImplementedError

    def fixed_tokens(self) -> list[int]:
        """What a model is given that chooses nothing."""
        return random.Random(1).choices(range(self.vocabulary), k=self.new)


class PygptGenerate(Contender):
    """Text out of `GPT.generate`, sampled."""

    label, package = "pygpt generate", "pygpt"

    def load(self, weights: Path) -> None:
        import torch

        from pygpt import GPT

        torch.set_num_threads(self.threads)
        self.model = GPT.from_pretrained(weights, dtype=torch.bfloat16 if self.dtype == "bf16" else torch.float32)

    def weight_bytes(self) -> int:
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        tables = self.model.position_embedding.weight.nbytes  # of which a step reads a row
        if self.model.quantization is not None:  # the head has a copy of its own
            tables += self.model.token_embedding.weight.nbytes
        return sum(t.nbytes for t in tensors.values()) - tables

    def decode(self, prompts: Prompts) -> list[float]:
        import torch

        clock = Clock()
        self.model.generate(
            torch.tensor(prompts),
            self.new,
            top_k=TOP_K,
            top_p=TOP_P,
            stream=lambda row, token: clock.tick() if row == 0 else None,
        )
        return clock.steps()


class PygptStep(PygptGenerate):
    """The model alone: the recorded step, given its tokens."""

    label = "pygpt, the model alone"

    def decode(self, prompts: Prompts) -> list[float]:
        import torch

        from pygpt.generate import KeyValueCache
        from pygpt.generate.recording import RecordedStep

        rows, time_ = len(prompts), len(prompts[0])
        tokens = torch.tensor([[*prompt, *self.fixed_tokens()] for prompt in prompts])
        lengths, alive = torch.full((rows,), time_ + 1), torch.ones(rows, dtype=torch.bool)
        clock = Clock()
        with torch.no_grad(), self.model.session(self.new):
            cache = KeyValueCache(rows, time_ + self.new, torch.device("cpu"))
            self.model.hidden(tokens[:, :time_], cache=cache)
            step = RecordedStep(self.model, cache, tokens, lengths, alive)
            clock.tick()
            for _ in range(self.new - 1):
                lengths += 1
                step.run()
                clock.tick()
        return clock.steps()


class Transformers(Contender):
    """`generate` of Hugging Face's transformers, sampled."""

    label, package = "transformers generate", "transformers"

    def load(self, weights: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(self.threads)
        dtype = torch.float32 if self.dtype == "fp32" else torch.bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).eval()

    def weight_bytes(self) -> int:
        return sum(p.nbytes for p in self.model.parameters()) - self.model.transformer.wpe.weight.nbytes

    def decode(self, prompts: Prompts) -> list[float]:
        import torch

        clock = Clock()
        ids = torch.tensor(prompts)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=TOP_K,
            top_p=TOP_P,
            max_new_tokens=self.new,
            min_new_tokens=self.new,
            pad_token_id=0,
            streamer=clock,
        )
        return clock.steps(before=2)  # it also tells of the prompt


class CTranslate2(Contender):
    """`Generator.generate_batch`, sampled."""

    label, package = "CTranslate2 generate_batch", "ctranslate2"

    def load(self, weights: Path) -> None:
        import ctranslate2

        self._bytes = (weights / "model.bin").stat().st_size - self.positions * 4  # in float32, whatever the dtype
        self.generator = ctranslate2.Generator(
            str(weights), device="cpu", compute_type=self.dtype, inter_threads=1, intra_threads=self.threads
        )

    def weight_bytes(self) -> int:
        return self._bytes

    def decode(self, prompts: Prompts) -> list[float]:
        clock = Clock()
        self.generator.generate_batch(
            [[_word(token) for token in prompt] for prompt in prompts],
            max_length=self.new,
            min_length=self.new,
            include_prompt_in_result=False,
            sampling_topk=TOP_K,
            sampling_topp=TOP_P,
            callback=lambda result: clock.tick() if result.batch_id == 0 else None,
        )
        return clock.steps()


class Llama(Contender):
    """llama-cpp-python's sampling loop, as its users call it: `Llama.generate`. One row."""

    label, package = "llama.cpp, Llama.generate", "llama-cpp-python"

    def load(self, weights: Path) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(
            str(weights),
            n_ctx=1024,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            verbose=False,
            seed=0,
        )
        self._bytes = weights.stat().st_size - self.positions * 4

    def weight_bytes(self) -> int:
        return self._bytes

    def decode(self, prompts: Prompts) -> list[float]:
        clock = Clock()
        self.llama.reset()
        for _ in self.llama.generate(prompts[0], top_k=TOP_K, top_p=TOP_P, min_p=0.0, temp=1.0):
            clock.tick()
            if clock.count == self.new:
                return clock.steps()
        raise AssertionError("Llama.generate goes on for as long as it is asked")


class LlamaDecode(Llama):
    """The model alone: `llama_decode`, given its tokens. One row."""

    label = "llama.cpp, llama_decode alone"

    def decode(self, prompts: Prompts) -> list[float]:
        import llama_cpp

        self.llama.reset()
        self.llama.eval(prompts[0])
        context, batch = self.llama._ctx.ctx, llama_cpp.llama_batch_init(1, 0, 1)
        clock = Clock()
        for number, token in enumerate(self.fixed_tokens()):
            batch.n_tokens = 1
            batch.token[0], batch.pos[0], batch.n_seq_id[0] = token, len(prompts[0]) + number, 1
            batch.seq_id[0][0], batch.logits[0] = 0, True
            if llama_cpp.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            llama_cpp.llama_get_logits(context)  # waits
            clock.tick()
        llama_cpp.llama_batch_free(batch)
        return clock.steps()


class Clock:
    """Notes when each token came. Also a streamer of transformers."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @property
    def count(self) -> int:
        return len(self.times)

    def tick(self) -> None:
        self.times.append(time.perf_counter())

    def put(self, value: object) -> None:
        self.tick()

    def end(self) -> None:
        """The last token was told before."""

    def steps(self, before: int = 1) -> list[float]:
        """Seconds between the tokens; the first ``before`` moments are the prompt's."""
        times = self.times[before - 1 :]
        return [after - earlier for earlier, after in itertools.pairwise(times)]


KINDS: dict[str, type[Contender]] = {
    kind.__name__: kind for kind in (PygptStep, PygptGenerate, LlamaDecode, Llama, CTranslate2, Transformers)
}


# ---- their processes ----


def begin(kind: str, weights: str, *others: Any) -> tuple[int | str, Answer]:
    """Load a contender, by the name of its class and its arguments.

    It tells of itself the bytes of its weights, or in a text why it is missing; to prompts it answers with the seconds
    of each step and the peak memory so far.
    """
    try:
        contender = KINDS[kind](Path(weights), *others)
    except (Missing, ImportError) as error:
        return str(error), lambda prompts: None
    return contender.weight_bytes(), lambda prompts: (contender.decode(prompts), memory("VmHWM"))


if __name__ == "__main__":
    serve(begin)
