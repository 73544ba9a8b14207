import numpy as np
import pytest
import torch
from torch import Tensor, nn

from themis_ray.envs import ImagePart
from themis_ray.reward import EnsembleCNN, EnsembleMixed, EnsembleMLP
from themis_ray.reward.networks import GRID_LAYERS, IMAGE_LAYERS, EnsembleConvolutions, picture_layers

torch.set_num_threads(1)

K = 3


def plain_mlp(mlp: EnsembleMLP, member: int) -> nn.Sequential:
    """One member of `mlp` as torch's own modules."""
    layers: list[nn.Module] = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data = weight[member].detach().T.clone()
        linear.bias.data = bias[member, 0].detach().clone()
        layers += [linear, nn.LeakyReLU()]
    return nn.Sequential(*layers[:-1], nn.Tanh())


def plain_convolutions(cnn: EnsembleConvolutions, member: int, pixels: Tensor) -> Tensor:
    """Features (N, F) of one member of `cnn` by torch's own modules."""
    layers: list[nn.Module] = []
    for weight, bias, stride in zip(cnn.filters, cnn.biases, cnn.strides, strict=True):
        own = slice(member * len(weight) // K, (member + 1) * len(weight) // K)
        conv = nn.Conv2d(weight.shape[1], len(weight) // K, tuple(weight.shape[2:]), stride)
        conv.weight.data, conv.bias.data = weight[own].detach().clone(), bias[own].detach().clone()
        layers += [conv, nn.LeakyReLU()]
    features: Tensor = nn.Sequential(*layers, nn.Flatten())(pixels.float().permute(0, 3, 1, 2) * cnn.pixel_scale)
    return features


def plain_cnn(cnn: EnsembleCNN, member: int, pixels: Tensor, features: Tensor) -> Tensor:
    """Rewards (N,) of one member of `cnn` by torch's own modules."""
    convolved = plain_convolutions(cnn, member, pixels)
    return plain_mlp(cnn.head, member)(torch.cat([convolved, features], dim=1))[:, 0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_cnn(shape: tuple[int, int, int], layers: tuple[tuple[int, int, int], ...]) -> EnsembleCNN:
    return EnsembleCNN(shape, layers, 0.1, 2, (16, 8), K, generator())


@pytest.mark.parametrize("hidden_sizes", [(8,), (32, 16, 8)])
def test_mlp_equals_a_loop_over_plain_members(hidden_sizes: tuple[int, ...]) -> None:
    mlp = EnsembleMLP(5, hidden_sizes, K, generator())
    shared, own = torch.randn(11, 5), torch.randn(K, 11, 5)
    expected_shared = torch.stack([plain_mlp(mlp, k)(shared)[:, 0] for k in range(K)])
    expected_own = torch.stack([plain_mlp(mlp, k)(own[k])[:, 0] for k in range(K)])
    torch.testing.assert_close(mlp(shared), expected_shared)
    torch.testing.assert_close(mlp(own), expected_own)


def test_mlp_gradients_equal_those_of_plain_members() -> None:
    mlp = EnsembleMLP(5, (16, 8), K, generator())
    x = torch.randn(K, 7, 5)
    mlp(x).square().sum().backward()
    for k in range(K):
        plain = plain_mlp(mlp, k)
        plain(x[k]).square().sum().backward()
        for index, weight in enumerate(mlp.weights):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad[k].T, plain[2 * index].weight.grad)


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((84, 84, 4), IMAGE_LAYERS),
        ((36, 48, 1), IMAGE_LAYERS),
        ((7, 7, 3), GRID_LAYERS),
        ((1, 2, 5), GRID_LAYERS),
    ],
)
def test_cnn_equals_a_loop_over_plain_members(
    shape: tuple[int, int, int], layers: tuple[tuple[int, int, int], ...]
) -> None:
    cnn = make_cnn(shape, layers)
    rng = np.random.default_rng(0)
    own_pixels = torch.from_numpy(rng.integers(0, 11, (K, 4, *shape), dtype=np.uint8))
    own_features = torch.randn(K, 4, 2)
    expected = torch.stack([plain_cnn(cnn, k, own_pixels[k], own_features[k]) for k in range(K)])
    torch.testing.assert_close(cnn(own_pixels, own_features), expected, rtol=1e-4, atol=1e-5)
    expected = torch.stack([plain_cnn(cnn, k, own_pixels[0], own_features[0]) for k in range(K)])
    torch.testing.assert_close(cnn(own_pixels[0], own_features[0]), expected, rtol=1e-4, atol=1e-5)


def test_mixed_equals_a_loop_over_plain_members() -> None:
    layout = (
        ImagePart(0, 5184, (36, 48, 3), "image"),
        ImagePart(5184, 5331, (7, 7, 3), "grid"),
        ImagePart(5331, 7059, (48, 36, 1), "image"),
    )
    mixed = EnsembleMixed(layout, 2, (16, 8), K, generator())
    own_pixels, own_features = torch.rand(K, 4, 7059), torch.randn(K, 4, 2)

    def expect(member: int, pixels: Tensor, features: Tensor) -> Tensor:
        convolved = [
            plain_convolutions(convolutions, member, pixels[:, part.start : part.stop].reshape(-1, *part.shape))
            for convolutions, part in zip(mixed._convolutions(), layout, strict=True)
        ]
        return plain_mlp(mixed.head, member)(torch.cat([*convolved, features], dim=1))[:, 0]

    expected = torch.stack([expect(k, own_pixels[k], own_features[k]) for k in range(K)])
    torch.testing.assert_close(mixed(own_pixels, own_features), expected, rtol=1e-4, atol=1e-5)
    expected = torch.stack([expect(k, own_pixels[0], own_features[0]) for k in range(K)])
    torch.testing.assert_close(mixed(own_pixels[0], own_features[0]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "num_features"),
    [
        ("image", (84, 84, 4), 32 * 7 * 7),
        ("image", (96, 96, 3), 32 * 8 * 8),
        ("image", (36, 36, 1), 32),
        ("image", (210, 160, 3), 32 * 9 * 6),
        ("image", (400, 600, 3), 32 * 9 * 9),
        ("image", (500, 500, 3), 32 * 9 * 9),
        ("image", (36, 1080, 3), 32 * 1 * 10),
        ("grid", (7, 7, 3), 32 * 5 * 5),
        ("grid", (35, 100, 3), 32 * 17 * 49),
    ],
)
def test_convolutions_leave_few_features_of_pictures_of_any_size(kind, shape, num_features) -> None:
    layers = picture_layers(kind, shape)
    assert EnsembleConvolutions(shape, layers, 1.0, K, generator()).num_features == num_features


def test_a_large_picture_is_shrunk_and_then_read_as_a_small_one() -> None:
    large = make_cnn((250, 224, 3), IMAGE_LAYERS)
    small = make_cnn((83, 112, 3), IMAGE_LAYERS)  # of blocks of 3 x 2
    pixels = torch.randint(0, 256, (2, 250, 224, 3), dtype=torch.uint8)
    means = pixels[:, :249].float().reshape(2, 83, 3, 112, 2, 3).mean(dim=(2, 4))
    features = torch.randn(2, 2)
    torch.testing.assert_close(large(pixels, features), small(means, features))
    own = pixels.expand(K, *pixels.shape)
    torch.testing.assert_close(large(own, features.expand(K, 2, 2)), small(means, features), rtol=1e-4, atol=1e-5)


def test_cnn_shared_rows_give_the_gradients_of_repeated_rows() -> None:
    cnn = make_cnn((7, 7, 3), GRID_LAYERS)
    pixels, features = torch.randint(0, 11, (4, 7, 7, 3), dtype=torch.uint8), torch.randn(4, 2)
    cnn(pixels, features).square().sum().backward()
    shared = [p.grad.clone() for p in cnn.parameters() if p.grad is not None]
    cnn.zero_grad()
    cnn(pixels.expand(K, *pixels.shape), features.expand(K, *features.shape)).square().sum().backward()
    repeated = [p.grad for p in cnn.parameters() if p.grad is not None]
    assert len(shared) == len(repeated) == len(list(cnn.parameters()))
    for ours, theirs in zip(shared, repeated, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_initial_weights_are_distributed_as_those_of_torch_linear() -> None:
    mlp = EnsembleMLP(100, (64,), 8, generator())
    linear_values = torch.cat([nn.Linear(100, 64).weight.detach().flatten() for _ in range(8)])
    for values in (mlp.weights[0], mlp.biases[0]):
        assert values.abs().max() <= 0.1  # 1 / sqrt(in_features), in torch's Linear as well
        assert float(values.detach().std()) == pytest.approx(float(linear_values.std()), rel=0.1)
    assert linear_values.abs().max() <= 0.1


def test_rewards_lie_between_minus_one_and_one() -> None:
    rewards = EnsembleMLP(4, (8,), K, generator())(1e6 * torch.randn(100, 4))
    assert rewards.abs().max() <= 1.0


def test_members_differ_and_a_seed_fixes_them() -> None:
    x = torch.randn(6, 4)
    first, again, other = (EnsembleMLP(4, (8,), K, generator(seed))(x) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])
