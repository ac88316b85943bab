"""Data sets: a plain dict of specifications; numpy only, so that a recipe is checked without torch."""

from __future__ import annotations

from afpkd.data.cifar100 import CIFAR100
from afpkd.data.dataset import DatasetSpec
from afpkd.data.fashion_mnist import FASHION_MNIST_5K
from afpkd.data.tiny_imagenet import TINY_IMAGENET

DATASETS: dict[str, DatasetSpec] = {
    "fashion_mnist_5k": FASHION_MNIST_5K,
    "cifar100": CIFAR100,
    "tiny_imagenet": TINY_IMAGENET,
}
