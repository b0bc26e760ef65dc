import pytest
import torch

from fusmae.random import CounterRandom, Purpose, philox4x32

KNOWN_ANSWERS = [  # Random123, tests/kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def python_philox(counter, key):
    """The generator once more, on Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    assert philox4x32(torch.tensor(counter), key).tolist() == list(words)


def test_philox_takes_any_leading_shape():
    counters = torch.tensor([[row[0], row[0]] for row in KNOWN_ANSWERS[:1]])
    assert philox4x32(counters, (0, 0)).tolist() == [[list(KNOWN_ANSWERS[0][2])] * 2]


def test_words_follow_the_documented_counter():
    seed, epoch, position = 0x0123456789ABCDEF, 5, (3 << 32) | 9
    random = CounterRandom(seed, torch.tensor([epoch]), torch.tensor([position]))
    words = random.words(10, Purpose.FLIP, stream=2)[0].tolist()
    key = (0x89ABCDEF, 0x01234567)
    blocks = [python_philox((Purpose.FLIP << 24 | 2 << 16 | block, epoch, 9, 3), key) for block in range(3)]
    assert words == [word for block in blocks for word in block][:10]


def test_uniform_is_the_upper_24_bits_and_below_one(draw):
    random = draw(range(400))
    uniform = random.uniform(500, Purpose.MASK)
    assert uniform.dtype == torch.float32
    assert torch.equal(uniform.double(), (random.words(500, Purpose.MASK) // 256).double() / 2**24)
    assert 0 <= uniform.min() and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.003)  # 200,000 numbers: deviation 0.00065
    assert torch.histc(uniform, 10, 0, 1).sub(20000).abs().max() < 700  # 5 deviations of 134


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"seed": 7 + 2**32}, {"epoch": 1}, {"positions": [2]}, {"positions": [1 + 2**32]}],
    ids=str,
)
def test_another_seed_epoch_or_position_gives_other_numbers(draw, change):
    numbers = draw(**{"positions": [1], **change}).words(64, Purpose.MASK)
    assert (numbers == draw([1]).words(64, Purpose.MASK)).sum() == 0


def test_another_purpose_or_stream_gives_other_numbers(draw):
    random = draw([1])
    drawn = [random.words(64, purpose, stream) for purpose in Purpose for stream in (0, 1)]
    assert torch.cat(drawn).unique().numel() == 64 * len(drawn)


def test_numbers_do_not_depend_on_the_batch_around_a_sample(draw):
    whole = draw([4, 9, 2, 7]).words(50, Purpose.MASK)
    assert torch.equal(draw([2, 4]).words(50, Purpose.MASK), whole[[2, 0]])


def test_a_permutation_holds_every_index_once(draw):
    ids = draw(range(5)).permutation(100, Purpose.SHUFFLE)
    assert torch.equal(ids.sort(dim=1).values, torch.arange(100).expand(5, -1))
    assert not torch.equal(ids[0], ids[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CounterRandom(-1, torch.tensor([0]), torch.tensor([0])), "-1"),
        (lambda: CounterRandom(1 << 64, torch.tensor([0]), torch.tensor([0])), "18446744073709551616"),
        (lambda: CounterRandom(1, torch.tensor([0.0]), torch.tensor([0])), "epoch_B must be int64"),
        (
            lambda: CounterRandom(1, torch.tensor([0, 1]), torch.tensor([0])),
            "2 epochs do not fit 1 positions",
        ),
        (lambda: CounterRandom(1, torch.tensor([0]), torch.tensor([0])).words(0, 1), "0 words"),
        (lambda: CounterRandom(1, torch.tensor([0]), torch.tensor([0])).words(262145, 1), "262145 words"),
        (lambda: CounterRandom(1, torch.tensor([0]), torch.tensor([0])).words(1, 256), "purpose 256"),
        (lambda: philox4x32(torch.zeros(3, dtype=torch.int64), (0, 0)), r"shape \(3,\)"),
        (lambda: philox4x32(torch.zeros(4, dtype=torch.int64), (0, 1 << 32)), "4294967296"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_number(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_the_same_bits(draw):
    random = draw(range(300), seed=2**63 + 12345, epoch=3)
    there = random.to("cuda")
    assert torch.equal(there.words(225, Purpose.MASK, 1).cpu(), random.words(225, Purpose.MASK, 1))
    assert torch.equal(there.uniform(225, Purpose.CROP).cpu(), random.uniform(225, Purpose.CROP))
    assert torch.equal(there.permutation(225, Purpose.MASK).cpu(), random.permutation(225, Purpose.MASK))
