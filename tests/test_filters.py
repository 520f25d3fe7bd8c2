import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undoor.errors import UndoorError
from undoor.filters import Average, Filter, Gaussian, Median, Noise, Quantise, parse_filter

FILTERS = [
    Average(), Average(3), Average(4), Average(2, "zero"), Median(), Median(2), Gaussian(), Gaussian(0.5),
    Noise(), Quantise(), Quantise(2),
]  # fmt: skip


def images(n=5, channels=3, height=9, width=7, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("h", FILTERS, ids=str)
def test_a_filter_keeps_shape_type_and_range_and_treats_every_image_by_itself(h):
    x = images()
    y = h(x)
    assert isinstance(h, Filter)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1 + 1e-6
    assert torch.equal(x, images())
    assert torch.allclose(h(x[2:3]), y[2:3], atol=1e-6)
    assert torch.allclose(h(x.flip(0)), y.flip(0), atol=1e-6)
    assert torch.equal(h(x), y)


@pytest.mark.parametrize(
    "h", [h for h in FILTERS if not isinstance(h, Noise) and getattr(h, "edge", "") != "zero"], ids=str
)
@given(value=st.sampled_from([0.0, 1.0]))
@settings(max_examples=5, deadline=None)
def test_constant_images_stay_what_they_are(h, value):
    x = torch.full((1, 1, 6, 6), value)
    assert torch.allclose(h(x), x, atol=1e-6)


def test_average_is_that_of_scipy():
    x = images()
    # The even window of scipy reaches to the upper left; origin −1 moves it to the lower right.
    for size, origin in ((2, -1), (3, 0)):
        expected = ndi.uniform_filter(x.numpy(), (0, 0, size, size), mode="nearest", origin=(0, 0, origin, origin))
        assert np.allclose(Average(size)(x).numpy(), expected, atol=1e-6)
    expected = ndi.uniform_filter(x.numpy(), (0, 0, 2, 2), mode="constant", origin=(0, 0, -1, -1))
    assert np.allclose(Average(2, "zero")(x).numpy(), expected, atol=1e-6)


def test_average_gives_a_quarter_of_a_pixel_to_four_pixels():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    y = Average(2)(x)[0, 0]
    assert y[1:3, 1:3].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert y.sum() == 1


def test_median_and_gaussian_are_those_of_scipy():
    x = images()
    expected = ndi.median_filter(x.numpy(), (1, 1, 3, 3), mode="nearest")
    assert np.allclose(Median(3)(x).numpy(), expected, atol=1e-6)
    expected = ndi.gaussian_filter(x.numpy(), (0, 0, 1, 1), mode="nearest", truncate=3)
    assert np.allclose(Gaussian(1)(x).numpy(), expected, atol=1e-5)


def test_median_of_an_even_window_is_between_the_middle_two():
    x = torch.tensor([[0.0, 0.2], [0.6, 1.0]])[None, None]
    assert Median(2)(x)[0, 0, 0, 0] == pytest.approx(0.4)


def test_noise_is_bounded_and_seeded():
    x = torch.full((2, 1, 8, 8), 0.5)
    y = Noise(10)(x)
    assert (y - x).abs().max() <= 10 / 255
    assert not torch.equal(y, x)
    assert not torch.equal(Noise(10, seed=1)(x), y)


def test_quantise_leaves_as_many_values_as_levels():
    values = Quantise(4)(torch.linspace(0, 1, 101)[None, None, None]).unique()
    assert torch.allclose(values, torch.tensor([0, 1 / 3, 2 / 3, 1]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("average", Average()),
        ("average:3", Average(3)),
        ("average:2:zero", Average(2, "zero")),
        ("median", Median(3)),
        ("gaussian:0.8", Gaussian(0.8)),
        ("noise:16", Noise(16)),
        ("quantise:4", Quantise(4)),
    ],
)
def test_a_text_names_a_filter(text, expected):
    assert parse_filter(text) == expected


@pytest.mark.parametrize(
    "text", ["", "blur", "average:x", "average:1", "average:2.5", "average:2:mirror", "noise:0", "noise:3:zero",
             "quantise:1", "gaussian:0", "gaussian:-1", "gaussian:nan", "median:inf", "average:2:zero:1"]
)  # fmt: skip
def test_a_text_that_names_no_filter_is_refused(text):
    with pytest.raises(UndoorError, match="no filter is called"):
        parse_filter(text)


@pytest.mark.parametrize(
    "h",
    [
        *(Average(), Average(3, "zero"), Median(), Median(5, "zero"), Gaussian(), Gaussian(0.8, "zero")),
        *(Noise(), Noise(12.5), Quantise(), Quantise(16)),
    ],
)
def test_a_filter_is_read_back_from_its_text(h):
    assert parse_filter(str(h)) == h


def test_the_text_of_a_filter_is_the_shortest():
    assert [str(h) for h in (Average(), Average(2, "zero"), Gaussian(0.8), Noise(8.0), Quantise())] == [
        "average:2", "average:2:zero", "gaussian:0.8", "noise:8", "quantise:8"
    ]  # fmt: skip
