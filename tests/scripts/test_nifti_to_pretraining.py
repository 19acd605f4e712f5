"""A FLARE-style folder of NIfTI volumes, prepared and pre-trained on with two commands."""

from pathlib import Path

import nibabel as nib
import numpy as np

import prepare_data
import train_voco
from src.data.prepared import PreparedDataset
from tests.helpers.dicom_files import hu_at

CONFIGS = Path(__file__).parents[2] / "configs"
N_VOLUMES = 24
SHAPE, VOXEL_MM = (40, 32, 16), (6.0, 6.0, 8.0)


def write_volumes(folder):
    """`imagesTr/FLARE_0001_0000.nii.gz` and so on, `labelsTr/FLARE_0001.nii.gz`; all shifted."""
    rng = np.random.default_rng(0)
    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir()
    labels.mkdir()
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    for number in range(N_VOLUMES):
        affine = np.diag([*VOXEL_MM, 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + rng.uniform(-10, 10, 3)
        right, front, head = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
        hu = hu_at(-right, -front, head) * rng.uniform(0.95, 1)
        volume = nib.Nifti1Image((hu + rng.normal(0, 8, SHAPE)).astype(np.int16), affine)
        nib.save(volume, images / f"FLARE_{number:04d}_0000.nii.gz")
        liver = (hu_at(-right, -front, head) == 120).astype(np.uint8)
        nib.save(nib.Nifti1Image(liver, affine), labels / f"FLARE_{number:04d}.nii.gz")


def test_prepare_data_prepares_a_replaced_volume_again(tmp_path):
    for n_slices in (6, 9):
        hu = np.full((20, 20, n_slices), -1000, dtype=np.int16)
        hu[5:15, 5:15] = 40
        nib.save(nib.Nifti1Image(hu, np.diag([10.0, 10, 5, 1])), tmp_path / "1.nii.gz")
        prepare_data.main(f"--input {tmp_path}/1.nii.gz --output {tmp_path}/out --size 32".split())
        assert PreparedDataset.open(tmp_path / "out").series["slices"].tolist() == [n_slices]


def test_train_voco_trains_on_prepared_volumes(tmp_path):
    write_volumes(tmp_path)
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    prepare_data.main(
        f"--input {tmp_path}/imagesTr --masks {tmp_path}/labelsTr --output {prepared} "
        f"--mask-ids {CONFIGS}/masks/flare23.yaml --size 48 --windows soft --jobs 2".split()
    )
    dataset = PreparedDataset.open(prepared)
    assert len(dataset.series) == N_VOLUMES
    assert dataset.series["slices"].eq(SHAPE[2]).all() and dataset.series["masks"].all()
    assert dataset.series["patient_id"].is_unique
    masks = dataset.read_masks("FLARE_0007", "FLARE_0007_0000", range(SHAPE[2]))
    assert set(np.unique(masks)) == {0, 1}
    train_voco.main(
        f"--config {CONFIGS}/voco/demo.yaml --data {prepared} --output {run} --windows soft --workers 0 "
        "--backbone test_efficientnet --first-weights none --canvas 48 --depth 8 --slices 4 "
        "--steps 4 --log-every 2 --save-every 4".split()
    )
    assert (run / "encoder.safetensors").stat().st_size > 0
