"""Fashion-MNIST 5k: 400 train and 100 test images a class of Fashion-MNIST (Xiao et al. 2017), shipped with us.

28x28 grey, exact pixels, MIT licence (fashion_mnist_5k.LICENSE). Small enough to run anywhere without a download; its
accuracies do not compare with those of the full data set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from afpkd.data.dataset import Dataset, DatasetSpec, Split

FILE = Path(__file__).with_name("fashion_mnist_5k.npz")


def _load(_root: Path) -> Dataset:
    with np.load(FILE, allow_pickle=False) as arrays:
        train, test = (
            Split(arrays[f"x_{split}"][:, None], arrays[f"y_{split}"].astype(np.int64)) for split in ("train", "test")
        )
        return Dataset(train, test, [str(name) for name in arrays["classes"]])


FASHION_MNIST_5K = DatasetSpec(
    num_classes=10,
    in_channels=1,
    image_size=(28, 28),
    num_train=4000,
    load=_load,
    place=FILE,
    how_to_get="it is part of the program: install that anew (git checkout afpkd/data)",
)
