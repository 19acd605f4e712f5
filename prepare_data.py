"""Convert any CT to the 8-bit slice stacks that training reads fast.

The competition, from its folder or from its zip as downloaded:
    python prepare_data.py --input data/unpacked --output data/prepared --jobs 8
    python prepare_data.py --input data/rsna-2023-abdominal-trauma-detection.zip --output data/prepared

Any folder tree or zip of DICOM files, and NIfTI volumes with masks beside them:
    python prepare_data.py --input data/hospital --output data/prepared_hospital
    python prepare_data.py --input data/flare/imagesTr --masks data/flare/labelsTr \\
        --mask-ids configs/masks/flare23.yaml --output data/prepared_flare

On a Dask cluster whose workers see the same folders:
    python prepare_data.py --input data/unpacked --output data/prepared --cluster tcp://10.0.0.1:8786

Run it again after an interruption: finished series are kept. Excluded files and series, and doubtful series
(prepared, but perhaps wrong: training leaves them out), are counted by reason at the end and listed in
series.csv and rejected.csv.
"""

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.prepare.options import PrepareOptions


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PrepareOptions, argv, prog="prepare_data.py", description=__doc__)
    from src.prepare.run import run_preparation  # imports decoders, which --help does not need

    run_preparation(options)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
