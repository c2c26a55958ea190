import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from mpo_robot.acting import NumpyActor
from mpo_robot.baselines.sac import SquashedActor
from mpo_robot.collection import Shared, make_noise
from mpo_robot.exploration import ColoredNoise, EpisodeNoise
from mpo_robot.networks import GaussianPolicy, PolicyConfig
from mpo_robot.specs import PolicySpec, TermSpec
from mpo_robot.training_config import TrainingConfig


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


@pytest.mark.parametrize("color", [0.0, 1.0])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_stored_density_is_that_of_the_weaker_noise(covariance, color):
    torch.manual_seed(0)
    policy = GaussianPolicy(4, 3, PolicyConfig(hidden_sizes=(8,), covariance=covariance))
    with torch.no_grad():
        policy.head.weight.mul_(100.0)
    noise, rng = EpisodeNoise(3, color, 0.05), np.random.default_rng(1)
    shared = Shared(NumpyActor(policy), None, None, None, rng)
    scales = []
    for _ in range(40):
        noise.start_episode()
        observation = rng.standard_normal(4).astype(np.float32)
        action, log_prob = shared.choose(observation, noise)
        scales.append(noise.scale)
        output = policy(torch.from_numpy(observation)[None])
        mean = output.mean[0].double()
        if covariance == "full":
            behavior = MultivariateNormal(mean, scale_tril=noise.scale * output.scale_tril[0].double())
        else:
            behavior = Independent(Normal(mean, noise.scale * output.stddev[0].double()), 1)
        assert log_prob == pytest.approx(behavior.log_prob(torch.from_numpy(action).double()).item(), abs=1e-3)
    assert 0.05 <= min(scales) < 0.2
    assert 0.8 < max(scales) <= 1.0


def test_a_squashed_action_at_its_limit_has_the_density_of_the_weaker_noise_too():
    policy = GaussianPolicy(2, 3, PolicyConfig(hidden_sizes=(8,)))
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias[:3] = torch.tensor([0.5, 7.0, 9.0])  # tanh of the last two rounds to about 1
    actor, rng = SquashedActor(policy), np.random.default_rng(0)
    stddev = policy(torch.zeros(1, 2)).stddev[0].detach().double().numpy()
    for _ in range(50):
        action, log_prob = actor.sample(np.zeros(2, np.float32), rng.standard_normal(3).astype(np.float32), 0.3)
        exact = action.astype(np.float64)
        density = scipy.stats.norm.logpdf(np.arctanh(exact), [0.5, 7.0, 9.0], 0.3 * stddev) - np.log1p(-(exact**2))
        assert log_prob == pytest.approx(density.sum(), abs=1e-3)


def test_the_factor_lasts_for_an_episode_and_is_uniform():
    noise, rng, scales = EpisodeNoise(200, 0.0, 0.5), np.random.default_rng(0), []
    for _ in range(300):
        noise.start_episode()
        samples, factors = zip(*(noise.sample(rng) for _ in range(3)))
        assert np.stack(samples).dtype == np.float32
        assert np.stack(samples).std(axis=1) == pytest.approx(1.0, rel=0.3)
        assert len(set(factors)) == 1
        scales.append(factors[0])
    assert np.mean(scales) == pytest.approx(0.75, abs=0.03)
    assert np.quantile(scales, [0.0, 1.0]) == pytest.approx([0.5, 1.0], abs=0.02)


def test_without_a_smaller_factor_the_noise_is_the_coloured_one_itself():
    noise, colored = EpisodeNoise(3, 1.0), ColoredNoise(3, 1.0)
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    for _ in range(5):
        sample, factor = noise.sample(rng)
        assert (sample == colored.sample(other)).all()
        assert factor == 1.0


def test_white_noise_on_demand_leaves_the_coloured_one_for_later():
    noise, colored = EpisodeNoise(3000, 1.0), ColoredNoise(3000, 1.0)
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    white = np.stack([noise.sample(rng, white=True)[0] for _ in range(3)])
    assert white.dtype == np.float32
    assert (white[:-1] * white[1:]).mean() == pytest.approx(0.0, abs=0.05)
    other.standard_normal((3, 3000), dtype=np.float32)
    assert (noise.sample(rng)[0] == colored.sample(other)).all()


def test_the_factor_of_the_episode_survives_a_checkpoint():
    noise, rng = EpisodeNoise(3, 0.0, 0.1), np.random.default_rng(5)
    noise.sample(rng)
    copy = EpisodeNoise(3, 0.0, 0.1)
    copy.load_state_dict(noise.state_dict())
    assert copy.scale == noise.scale < 1.0
    before_the_first_step = EpisodeNoise(3, 0.0, 0.1)
    copy.load_state_dict(before_the_first_step.state_dict())
    assert copy.scale is None


def test_noise_that_picks_discrete_actions_is_never_scaled():
    config = TrainingConfig(noise_scale_min=0.1)
    discrete = PolicySpec((TermSpec("x", 2),), (TermSpec.discrete("choice", 3),), 0.1)
    assert make_noise(discrete, config).scale_min == 1.0


@pytest.mark.parametrize("scale_min", [0.0, -0.5, 1.5])
def test_a_factor_outside_its_range_is_refused(scale_min):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        EpisodeNoise(1, 0.0, scale_min)
    with pytest.raises(ValueError, match="noise_scale_min"):
        TrainingConfig(noise_scale_min=scale_min)
