"""The tree is the architecture: this file says what an op consists of, and who may include whom.

To add an op, make the files that `test_an_op_is_complete` names, and its line in csrc/cpu/kernels.h,
csrc/bindings/bindings.h and module.cpp, pygpt/ops/__init__.py and pygpt/_C.pyi.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest

import pygpt
from pygpt import cli
from pygpt.extension import C

ROOT = Path(__file__).parent.parent
# Headers of csrc/ops that ops share.
SHARED_HEADERS = {
    *("activation", "attention_keys", "check", "implementation", "norm_check", "packed_weight", "product_check")
}
OPS = sorted(path.stem for path in (ROOT / "csrc/ops").glob("*.h") if path.stem not in SHARED_HEADERS)


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


# Files of pygpt/ that are tested under another name: where, and why not under their own.
TESTED_ELSEWHERE = {
    "extension": ("test_emulated.py", "which module is loaded is a matter of programs that import pygpt"),
    "models/gpt2_layout": ("models/test_huggingface.py", "GPT-2's is the layout in which reading and saving is tested"),
    "models/layout": ("models/test_huggingface.py", "what the layouts share"),
    "models/low_rank": ("models/test_adapters.py", "the weight that the adapters there make"),
    "train/finetune": ("cli/test_finetune.py", "a run that fine-tunes is a folder which the command writes"),
}


def test_tests_mirror_the_package():
    for path in sorted((ROOT / "pygpt").rglob("*.py")):
        if path.name in ("__init__.py", "__main__.py"):
            continue
        source = path.relative_to(ROOT / "pygpt").with_suffix("")
        own = ROOT / "tests" / source.parent / f"test_{source.name}.py"
        if source.as_posix() in TESTED_ELSEWHERE:
            other, _ = TESTED_ELSEWHERE[source.as_posix()]
            assert (ROOT / "tests" / other).is_file() and not own.exists(), f"{path}: TESTED_ELSEWHERE is out of date"
        else:
            assert own.is_file(), f"{path} has no {own.relative_to(ROOT)}"
    gone = [name for name in TESTED_ELSEWHERE if not (ROOT / f"pygpt/{name}.py").is_file()]
    assert not gone, f"TESTED_ELSEWHERE has files that there are not: {gone}"


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_complete(op):
    for path in (
        f"csrc/ops/{op}.h",
        f"csrc/ops/{op}.cpp",
        f"csrc/bindings/{op}.cpp",
        f"pygpt/ops/{op}.py",
        f"tests/ops/test_{op}.py",
    ):
        assert (ROOT / path).is_file(), f"the op {op} lacks {path}"
    assert re.search(r"\bImplementation<.*> \w+\[\] = \{", (ROOT / f"csrc/ops/{op}.cpp").read_text()), (
        f"csrc/ops/{op}.cpp has no table of implementations"
    )
    assert op in functions_of(ROOT / "pygpt/reference.py"), f"pygpt/reference.py lacks {op}"
    assert re.search(rf'"{op}"', (ROOT / "bench/rows.py").read_text()), f"bench/rows.py has no row {op}"
    kernels = sorted((ROOT / "csrc/cpu/kernels").glob(f"{op}.cpp")) or sorted(
        (ROOT / "csrc/cpu/kernels").glob(f"{op}_*.cpp")
    )
    assert kernels, f"csrc/cpu/kernels has no kernels of {op}"
    for file in kernels:
        assert file.read_text().startswith("// "), f"{file} does not open with what it computes"


def test_the_tables_are_those_of_the_tree():
    assert sorted(op for op, _ in C.implementations()) == OPS
    for op, entries in C.implementations():
        names = [name for name, _ in entries]
        assert names[-1] == "cpu_scalar", f"{op}: the scalar kernels, which run everywhere, stand last"
        assert len(set(names)) == len(names)


# From a folder of csrc, the folders whose headers its files may include, besides its own.
MAY_INCLUDE = {
    "core": set(),
    "ops": {"core", "cpu/kernels.h", "cpu/features.h", "cuda/kernels.h", "cuda/features.h"},
    "cpu": {"core", "ops", "cpu/kernels/measure.h"},
    "cpu/kernels": {"core", "ops", "cpu"},
    "cuda": {"core", "ops", "session/cache.h", "cuda/tiles", "cuda/ptx"},
    "cuda/attention": {"core", "ops", "cuda", "cuda/tiles", "cuda/ptx"},
    "cuda/matmul": {"core", "ops", "cuda", "cuda/tiles", "cuda/ptx"},
    "cuda/tiles": {"core", "cuda", "cuda/ptx"},
    "cuda/ptx": set(),
    "session": {"core", "ops", "cpu/thread_pool.h", "cuda/kernels.h"},
    "bindings": {
        *("core", "ops", "session", "cpu/thread_pool.h", "cpu/measure.h", "cuda/devices.h", "cuda/execution.h"),
        *("launch.h", "memory.h", "options.h", "touch.h"),  # the emulator's (tests/emulator/src), in pygpt._C_emulated
    },
}


def test_includes_go_downwards():
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        folder = path.parent.relative_to(ROOT / "csrc").as_posix()
        allowed = MAY_INCLUDE[folder]
        for included in re.findall(r'^#include "(.+)"', path.read_text(), flags=re.MULTILINE):
            target = Path(included).parent.as_posix()
            assert target == folder or target in allowed or included in allowed, f"{path} may not include {included}"


def test_the_stub_has_the_functions_of_the_module():
    stub = ast.parse((ROOT / "pygpt/_C.pyi").read_text())
    stubbed = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    functions = {name: value for name, value in vars(C).items() if callable(value)}
    assert set(stubbed) == set(functions)
    for name, function in functions.items():
        signature = function.__doc__.splitlines()[0]
        given = re.findall(r"[(,] ?(\w+): ", signature)
        assert given == [argument.arg for argument in stubbed[name].args.args], f"_C.pyi: {name}"


# The names of pygpt that users rely on: add to them, do not rename them. Parameters stand in their order; a star stands
# before those that are given by name alone.
PUBLIC = {
    "pygpt": "Encoder EncoderConfig GPT GPTConfig Seq2Seq Seq2SeqConfig TextGenerator force info models nn ops optim",
    "pygpt.models": "Encoder EncoderConfig GPT GPTConfig Seq2Seq Seq2SeqConfig",
    "pygpt.nn": "Embedding FeedForward GatedFeedForward LayerNorm Linear MultiHeadAttention QuantizedLinear RMSNorm",
    "pygpt.ops": "add add_layer_norm add_rms_norm attention cross_entropy dropout embedding feed_forward gated_product "
    "grad_norm layer_norm linear linear_cross_entropy pack_linear quantize_weight quantized_linear rms_norm rotary "
    "sample",
    "pygpt.text": "BPETokenizer BatchLoader ByteTokenizer CharTokenizer Document Finish TokenFile Tokenizer WordList "
    "WordPieceTokenizer load_corpus make_tokenizer prepare",
}
PARAMETERS = {
    "ops.layer_norm": "x weight bias eps",
    "ops.add_layer_norm": "x residual weight bias eps",
    "ops.linear": "x weight bias activation residual out_dtype",
    "ops.feed_forward": "x w_in b_in w_out b_out activation",
    "ops.attention": "q k v * causal scale key_lengths query_start cu_seqlens mask bias window softcap dropout seed "
    "return_weights return_lse",
    "ops.embedding": "ids table",
    "ops.cross_entropy": "logits targets ignore_index reduction",
    "ops.linear_cross_entropy": "hidden weight targets bias ignore_index reduction",
    "ops.dropout": "x p seed",
    "ops.add": "x y",
    "ops.grad_norm": "tensors",
    "nn.LayerNorm": "width eps bias",
    "nn.FeedForward": "width hidden activation bias dropout",
    "nn.MultiHeadAttention": "width num_heads num_kv_heads head_dim bias dropout",
    "optim.AdamW": "params lr betas eps weight_decay",
    "force": "op name",
    "GPT": "config device dtype",
    "GPT.forward": "self ids lengths cu_seqlens",
    "GPT.loss": "self ids targets lengths cu_seqlens ignore_index",
    "GPT.generate": "model ids max_new_tokens temperature top_k top_p min_p repetition_penalty seed prompt_lengths "
    "num_samples stop_tokens stop tokenizer overflow return_logprobs stream exact",
    "GPT.from_pretrained": "folder",
    "GPT.save_pretrained": "self folder",
    "GPT.session": "self",
    "GPTConfig": "vocab_size context_length num_layers num_heads embedding_dim num_kv_heads head_dim hidden_dim "
    "activation positions norm layer_norm_eps bias tie_head dropout embedding_dropout attention_dropout "
    "residual_dropout attention_windows init_std",
}
FLAGS = {
    "chat": "--dtype --max-new-tokens --model --prompt --quantize --seed --system --temperature --threads --top-p",
    "data": "files --clean --drop-words --examples --form --max-characters --min-characters --near-duplicates --out "
    "--repair --report --seed --tokenizer --validation --vocab-size --whole-documents",
    "demo": "--out --seconds --seed --steps --threads",
    "doctor": "--check --explain",
    "eval": "model --batch-size --data --device --json --limit --max-new-tokens --seed --shots --shots-from --show "
    "--skip-bad --task --threads --truncate",
    "sample": "--device --max-new-tokens --min-p --model --num-samples --prompt --quantize --repetition-penalty --seed "
    "--stop --temperature --threads --top-k --top-p",
    "train": "--accumulate --activation --attention-dropout --attention-windows --base --batch-size --beta1 --beta2 "
    "--bias --checkpoint-blocks --config --context --data --decay --device --dropout --dtype --early-stopping "
    "--embedding-dropout --eval-batches --eval-every --grad-clip --head-dim --heads --hidden --init-std --keep "
    "--kv-heads --label-smoothing --layers --log-every --lora-alpha --lora-rank --lora-targets --lr --mask-rate "
    "--min-lr --no-bias --no-checkpoint-blocks --no-qk-norm --no-skip-bad --no-tie-head --no-truncate "
    "--no-whole-words --noise --norm --norm-eps --norm-type --objective --out --patience --positions --preset --prompt "
    "--qk-norm --residual-dropout --resume --rope-theta --sample-every --save-every --schedule --seed --separator "
    "--skip-bad --spike-sigma --steps --task --template --threads --tie-head --tokenizer --truncate --validation "
    "--vocab-size --warmup --weight-decay --whole-words --width",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    names = set(importlib.import_module(module).__all__)
    assert names >= set(PUBLIC[module].split())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_keep_their_names_and_order(name):
    function = functools.reduce(getattr, name.split("."), pygpt)
    parameters = inspect.signature(function).parameters
    by_place, _, by_name = PARAMETERS[name].partition("*")
    assert list(parameters)[: len(by_place.split())] == by_place.split()
    assert set(parameters) >= set(by_name.split())


def test_commands_keep_their_flags():
    assert set(cli.COMMANDS) == set(FLAGS)
    for command, flags in FLAGS.items():
        parser = cli.Parser()
        importlib.import_module(f"pygpt.cli.{command}").add_arguments(parser)
        has = {word for action in parser._actions for word in action.option_strings or [action.dest]}
        assert has >= set(flags.split()), command
        new = has - set(flags.split()) - {"-h", "--help"}
        assert not new, f"pygpt {command} has new flags: write them down here, {new}"
