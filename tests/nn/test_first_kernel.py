"""First kernels for other windows, neighbours and masks."""

import pytest
import torch
from torch.nn import functional as F

from src.nn.first_kernel import mix_channels, shares_by_number, shares_by_window

KERNEL = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("convolve", "sides"), [(F.conv2d, (8, 8)), (F.conv3d, (8, 8, 8))])
@pytest.mark.parametrize(("held", "images"), [(1, 3), (3, 1), (3, 2), (3, 9), (3, 5)])
def test_shares_by_number_keep_the_response_to_a_grey_image(convolve, sides, held, images):
    kernel, grey = torch.randn(4, held, *(3 for _ in sides)), torch.randn(1, 1, *sides)
    mixed = mix_channels(kernel, shares_by_number(held, images, mask_channels=1))
    assert mixed.shape[1] == images + 1 and not mixed[:, -1].any()
    responses = [
        convolve(grey.expand(-1, channels, *sides), each)
        for channels, each in ((held, kernel), (images + 1, mixed))
    ]
    torch.testing.assert_close(*responses, rtol=1e-4, atol=1e-4)


def test_shares_by_number_repeat_colours_over_slices():
    """Colours keep their order in three windows and in three neighbours; others get the grey kernel."""
    torch.testing.assert_close(mix_channels(KERNEL, shares_by_number(3, 3)), KERNEL, rtol=0, atol=0)
    nine = mix_channels(KERNEL, shares_by_number(3, 9))
    torch.testing.assert_close(nine, KERNEL.repeat(1, 3, 1, 1) / 3)
    two = mix_channels(KERNEL, shares_by_number(3, 2))
    torch.testing.assert_close(two, KERNEL.sum(1, keepdim=True).expand(-1, 2, 3, 3) / 2)


def test_shares_beside_masks_do_not_shrink_the_images():
    mixed = mix_channels(KERNEL, shares_by_number(3, 3, mask_channels=4))
    torch.testing.assert_close(mixed[:, :3], KERNEL, rtol=0, atol=0)


def test_shares_by_window_find_each_window():
    mixed = mix_channels(KERNEL, shares_by_window(("soft", "organ", "wide"), 1, ("wide", "soft"), 1, 1))
    torch.testing.assert_close(mixed[:, :2], KERNEL[:, [2, 0]] * 3 / 2)
    assert not mixed[:, 2].any()


def test_shares_by_window_keep_the_place_of_neighbours():
    kernel = torch.randn(4, 6, 3, 3)  # three slices of two windows
    same = mix_channels(kernel, shares_by_window(("soft", "wide"), 3, ("wide", "soft"), 3))
    torch.testing.assert_close(same, kernel[:, [1, 0, 3, 2, 5, 4]], rtol=0, atol=0)
    alone = mix_channels(kernel, shares_by_window(("soft", "wide"), 3, ("soft",), 1))
    torch.testing.assert_close(alone, kernel[:, ::2].mean(1, keepdim=True) * 6)


@pytest.mark.parametrize(
    ("held", "slices", "expected"),
    [
        (1, 3, [[0], [1], [0]]),
        (3, 5, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]),
        (5, 3, [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]),
        (3, 1, [[1, 1, 1]]),
    ],
)
def test_shares_by_window_match_slices_from_the_middle(held, slices, expected):
    assert shares_by_window(("soft",), held, ("soft",), slices).tolist() == expected
