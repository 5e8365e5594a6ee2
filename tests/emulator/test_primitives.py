"""The instructions of csrc/cuda/ptx that Hopper has do what their comments say, and misused they are caught.

The kernels are kernels/primitives_sm90.cu.
"""

import functools
import itertools
import math

import numpy as np
import pytest

from tests.emulator.device import DeviceFault
from tests.emulator.test_planted import NOT_LANDED

NONE, NO_WAIT, WRONG_PARITY, NO_PROXY_FENCE, WRONG_SWIZZLE, WRONG_BYTES, WAIT_FOR_READ = map(np.int32, range(7))
UNFENCED = "with no fence.proxy.async after it"
SHARED = 64 * 1024
MODES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes of a swizzle: what the driver calls it
SEEDS = (1, 2, 3)


@pytest.fixture
def launch(device, built):
    def run(kernel, *args, seed=1, **shape):
        module = device(arch=90, seed=seed, stall_limit=2_000_000).load(built / "primitives_sm90.sm_90.ptx")
        module.launch(kernel, args=args, **{"shared": SHARED, **shape})

    return run


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def swizzled(tile, swizzle):
    """The bytes of rows of ``swizzle`` bytes (or of any, if 0) as a tensor copy lays them."""
    flat = tile.reshape(-1).view(np.uint8)
    at = np.arange(flat.size)
    to = at ^ (at >> 3 & (swizzle - 16)) if swizzle else at
    out = np.empty_like(flat)
    out[to] = flat
    return out


# ---- Tensor copies
@pytest.mark.parametrize("dimensions", [2, 3, 4, 5])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_tensor_copies_move_a_box_and_clip_it_at_the_edges(device, launch, rng, dimensions, swizzle):
    shape = (3, 2, 4, 9, 72)[-dimensions:]  # outermost first
    box = (2, 2, 3, 8, (swizzle or 48) // 2)[-dimensions:]
    corner = (2, -1, 2, 4, 56)[-dimensions:]
    source = rng.integers(1, 2**16, shape, dtype=np.uint16)
    stored = np.zeros_like(source)
    reads = np.zeros(box, np.uint16)
    written = np.zeros_like(source)
    for inside in itertools.product(*map(range, box)):
        at = tuple(c + i for c, i in zip(corner, inside, strict=True))
        if all(0 <= x < n for x, n in zip(at, shape, strict=True)):
            reads[inside] = written[at] = source[at]
    maps = [device().tensor_map(x, box[::-1], swizzle=MODES[swizzle]) for x in (source, stored)]
    raw = np.zeros(math.prod(box) * 2, np.uint8)
    at = np.array(corner[::-1], np.int32)
    launch(f"copy_{dimensions}d", *maps, at, raw, np.int32(raw.size), NONE, mapped=[source, stored])
    assert (raw == swizzled(reads, swizzle)).all()
    assert (stored == written).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(NO_WAIT, NOT_LANDED), (WRONG_PARITY, NOT_LANDED), (WRONG_BYTES, "16 bytes are missing")],
)
def test_tensor_copies_must_be_waited_for(device, launch, rng, wrong, words):
    source = rng.integers(1, 2**16, (8, 64), dtype=np.uint16)
    stored, raw, at = np.zeros_like(source), np.zeros(1024, np.uint8), np.zeros(2, np.int32)
    maps = [device().tensor_map(x, (64, 8), swizzle=3) for x in (source, stored)]
    for seed in SEEDS:
        with pytest.raises(DeviceFault, match=words):
            launch("copy_2d", *maps, at, raw, np.int32(raw.size), wrong, seed=seed, mapped=[source, stored])


def test_tensor_store_and_reduction_read_what_was_fenced(device, launch):
    to = np.full((16, 8), -1, np.float32)
    map_ = device().tensor_map(to, (8, 8))
    launch("store_and_add", map_, NONE, block=64, mapped=[to])
    assert (to[:8].ravel() == 2 * np.arange(64)).all()
    assert (to[8:] == -1).all()
    with pytest.raises(DeviceFault, match=UNFENCED):
        launch("store_and_add", map_, NO_PROXY_FENCE, block=64, mapped=[to])


def test_bulk_copies(launch, rng):
    source, to = rng.standard_normal(64).astype(np.float32), np.zeros(64, np.float32)
    launch("bulk", source, to, NONE)
    assert (to == 2 * source).all()
    with pytest.raises(DeviceFault, match=NOT_LANDED):
        launch("bulk", source, to, WRONG_PARITY)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_that_take_turns_add_in_order(launch, rng, seed):
    source, turn = rng.standard_normal((7, 64)).astype(np.float32), np.zeros(1, np.uint32)
    to, expected = np.zeros(64, np.float32), source[0].copy()
    for row in source[1:]:
        expected += row
    launch("take_turns", source, to, turn, NONE, grid=7, seed=seed)
    assert (to == expected).all()
    assert turn == 7
    for wrong in (NO_WAIT, WAIT_FOR_READ):
        with pytest.raises(DeviceFault, match="race"):
            launch("take_turns", source, to, np.zeros(1, np.uint32), wrong, grid=7, seed=seed)


@pytest.mark.parametrize("dimensions", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_multicast_fills_the_tile_of_every_block(device, launch, rng, dimensions, seed):
    rounds = 5
    source = rng.standard_normal((1,) * (dimensions - 2) + (2 * rounds, 64)).astype(np.float32)
    map_ = device().tensor_map(source, (64,) + (1,) * (dimensions - 1))
    out = np.zeros((2, rounds, 128), np.float32)
    run = functools.partial(launch, f"multicast_{dimensions}d", map_, out, np.int32(rounds))
    run(NONE, grid=2, cluster=2, seed=seed, mapped=[source])
    assert (out == source.reshape(rounds, 128)).all()
    with pytest.raises(DeviceFault):
        run(NO_WAIT, grid=2, cluster=2, seed=seed, mapped=[source])


@pytest.mark.parametrize("seed", SEEDS)
def test_warpgroups_hand_over(launch, seed):
    out = np.zeros((7, 128), np.float32)
    launch("hand_over", out, np.int32(7), NONE, block=256, seed=seed)
    assert (out == np.arange(7 * 128).reshape(7, 128)[:, ::-1]).all()
    with pytest.raises(DeviceFault):
        launch("hand_over", out, np.int32(7), WRONG_PARITY, block=256, seed=seed)


# ---- Matrices
@pytest.mark.parametrize(("count", "transposed"), [(1, False), (2, False), (4, False), (2, True), (4, True)])
def test_stmatrix_is_ldmatrix_the_other_way_round(launch, rng, count, transposed):
    source, out = rng.integers(0, 2**16, (4, 8, 8), dtype=np.uint16), np.zeros((4, 8, 8), np.uint16)
    launch(f"move_matrices_{count}", source, out, np.int32(transposed), block=32)
    expected = source.transpose(0, 2, 1) if transposed else source
    assert (out[:count] == expected[:count]).all()
    assert not out[count:].any()


COLUMNS = (8, 16, 32, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256)
MAJORS = ("fp16_80_{}_k_k", "bf16_80_{}_registers_other", "bf16_96_{}_k_other", "bf16_128_{}_other_k")
PRODUCTS = [
    *(f"bf16_{n}_128_k_k" for n in COLUMNS),
    *(f"fp16_{n}_128_registers_k" for n in COLUMNS),
    *(name.format(swizzle) for swizzle in (32, 64, 128) for name in (*MAJORS, "bf16_192_{}_other_other")),
]


def product(device, launch, rng, name, wrong=NONE, seed=1):
    """The kernel's result, and what it should be: sums of small integers, which are exact in any order."""
    dtype, columns, swizzle, a_major, b_major = name.split("_")
    columns, row = int(columns), int(swizzle) // 2
    k = row if "k" in (a_major, b_major) or a_major == "registers" else 32
    a, b = rng.integers(-4, 5, (64, k)), rng.integers(-4, 5, (columns, k))

    def stored(matrix, major):
        lying = np.ascontiguousarray(matrix.T if major == "other" else matrix).astype(np.float32)
        if dtype == "fp16":
            return lying.astype(np.float16), 6
        return (lying.view(np.uint32) >> 16).astype(np.uint16), 9

    maps, memory = [], []
    for matrix, major in ((a, a_major), (b, b_major)):
        array, kind = stored(matrix, major)
        box = (row, k) if major == "other" else (row, len(matrix))
        maps.append(device().tensor_map(array, box, swizzle=MODES[int(swizzle)], kind=kind))
        memory.append(array)
    out = np.full((64, columns), np.nan, np.float32)
    launch(name, *maps, out, wrong, seed=seed, mapped=memory)
    return out, 2 * a @ b.T


@pytest.mark.parametrize("name", PRODUCTS)
def test_wgmma_multiplies_what_tensor_copies_laid_down(device, launch, rng, name):
    out, expected = product(device, launch, rng, name)
    assert (out == expected).all()


@pytest.mark.parametrize("name", ["bf16_64_128_k_k", "bf16_96_64_k_other", "bf16_128_32_other_k"])
@pytest.mark.parametrize("seed", SEEDS)
def test_wgmma_used_wrongly_is_caught(device, launch, rng, name, seed):
    for wrong, words in ((NO_WAIT, NOT_LANDED), (WRONG_PARITY, NOT_LANDED), (NO_PROXY_FENCE, UNFENCED)):
        with pytest.raises(DeviceFault, match=words):
            product(device, launch, rng, name, wrong, seed)


@pytest.mark.parametrize("name", ["bf16_64_128_k_k", "bf16_96_64_k_other", "bf16_192_128_other_other"])
def test_a_descriptor_that_does_not_match_the_map_is_caught(device, launch, rng, name):
    with pytest.raises(DeviceFault, match="swizzle"):
        product(device, launch, rng, name, WRONG_SWIZZLE)
