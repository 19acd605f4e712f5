"""The contact sheet of a series, from its command line."""

import pytest

from src.core.errors import UserError
from src.data import preview
from src.data.png import read_png
from tests.helpers.voco_files import draw_noise, write_prepared


def test_preview_draws_a_row_per_window(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_noise, series=2, slices=5)
    size = preview.PreparedDataset.open(folder).size
    preview.main(f"--data {folder} --series 101 --columns 3 --output {tmp_path}/sheet.png".split())
    sheet = read_png(tmp_path / "sheet.png")
    assert sheet.shape == (3 * (size + 24), 3 * (size + 2) - 2, 3)
    with pytest.raises(UserError, match="no usable series 7"):
        preview.main(f"--data {folder} --series 7 --output {tmp_path}/sheet.png".split())
