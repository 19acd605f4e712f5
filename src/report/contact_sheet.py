"""A picture of one prepared series, all windows, organs outlined.

python -m src.report.contact_sheet --data data/phantom_train --output docs/images/phantom.png
"""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import atomic_path
from src.core.log import say
from src.data.png import write_png
from src.data.prepared import PreparedDataset
from src.data.preview import contact_sheet


@dataclass(frozen=True)
class ContactSheetOptions:
    data: Path
    """prepared data set"""
    output: Path
    """PNG file to write"""
    series: str | None = None
    """series_id to draw; by default the first one with masks, else the first"""
    columns: int = 6
    """slices side by side, evenly spaced from head to feet"""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise UserError("--columns must be at least 1")
        if self.output.suffix.lower() != ".png":
            raise UserError(f"--output must end in .png, got {self.output}")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(
        ContactSheetOptions, argv, prog="python -m src.report.contact_sheet", description=__doc__
    )
    dataset = PreparedDataset.open(options.data)
    patient_id, series_id = _choose(dataset, options.series)
    with atomic_path(options.output) as temporary:
        sheet = contact_sheet(
            dataset.folder, patient_id, series_id, dataset.windows, dataset.size, options.columns
        )
        write_png(temporary, sheet)
    say(f"series {series_id} of patient {patient_id}: {options.output}")


def _choose(dataset: PreparedDataset, series_id: str | None) -> tuple[str, str]:
    pairs = list(zip(dataset.series["patient_id"], dataset.series["series_id"], strict=True))
    if series_id is not None:
        pairs = [pair for pair in pairs if pair[1] == series_id]
    if not pairs:
        raise UserError(f"{dataset.folder} has no usable series {series_id or ''}".rstrip())
    return next((pair for pair in pairs if dataset.has_masks(*pair)), pairs[0])


if __name__ == "__main__":
    with exit_on_user_error():
        main()
