import numpy as np
import pytest

from mpo_robot.exploration import ColoredNoise


def draw(noise, steps, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([noise.sample(rng) for _ in range(steps)])


@pytest.mark.parametrize("block", [250, 251])
@pytest.mark.parametrize("color", [0.0, 0.5, 1.0, 2.0])
def test_every_step_is_standard_normal_on_its_own(color, block):
    samples = draw(ColoredNoise(4000, color, block), block)
    assert samples.dtype == np.float32
    # Across 4,000 dimensions, at the borders of a block as well as in its middle.
    for step in (0, 1, block // 2, block - 1):
        assert samples[step].mean() == pytest.approx(0.0, abs=5 / np.sqrt(4000))
        assert samples[step].var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / 4000))
        assert (samples[step] ** 4).mean() == pytest.approx(3.0, abs=0.7)


def test_the_spectrum_falls_with_the_frequency():
    block = 512
    samples = draw(ColoredNoise(2000, 1.0, block), block)
    power = (np.abs(np.fft.rfft(samples, axis=0)) ** 2).mean(axis=1)
    low, high = power[4:8].mean(), power[64:128].mean()
    # 1 / f: the mean of 1 / k over 4..7 and over 64..127.
    expected = np.mean(1 / np.arange(4, 8)) / np.mean(1 / np.arange(64, 128))
    assert low / high == pytest.approx(expected, rel=0.1)


def test_white_noise_has_no_correlation_and_pink_noise_has():
    white, pink = (draw(ColoredNoise(3000, color), 40) for color in (0.0, 1.0))
    assert (white[:-1] * white[1:]).mean() == pytest.approx(0.0, abs=0.02)
    assert (pink[:-1] * pink[1:]).mean() > 0.5
    assert (pink[0] * pink[30]).mean() > 0.1


def test_dimensions_and_episodes_are_independent():
    noise, rng = ColoredNoise(2, 2.0, 100), np.random.default_rng(0)
    last, first = [], []
    for _ in range(500):
        noise.start_episode()
        first.append(noise.sample(rng))
        last.append(noise.sample(rng))
    first, last = np.array(first), np.array(last)
    assert np.corrcoef(first[:, 0], last[:, 0])[0, 1] > 0.8
    assert abs(np.corrcoef(first[1:, 0], last[:-1, 0])[0, 1]) < 0.2
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("color", [0.0, 1.0])
def test_a_restored_state_continues_exactly(color):
    noise, rng = ColoredNoise(3, color, 50), np.random.default_rng(5)
    for _ in range(70):
        noise.sample(rng)
    copy, copied_rng = ColoredNoise(3, color, 50), np.random.default_rng(5)
    copied_rng.bit_generator.state = rng.bit_generator.state
    copy.load_state_dict(noise.state_dict())
    for _ in range(80):
        assert (noise.sample(rng) == copy.sample(copied_rng)).all()


@pytest.mark.parametrize(("color", "block"), [(-0.1, 100), (2.5, 100), (1.0, 1)])
def test_bad_settings_are_refused(color, block):
    with pytest.raises(ValueError, match="need a block"):
        ColoredNoise(1, color, block)
