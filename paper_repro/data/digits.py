"""scikit-learn's digits: 1,797 real scans of 8 x 8 pixels, for experiments that must finish in seconds."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from paper_repro.data.dataset import Data, Split, check_split, images_and_labels, verify

_IMAGES = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
_LABELS = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"
_WHITE = 16
_TEST_EVERY = 5


def digits(split: Split = "test") -> Data:
    """The digits, (n, 1, 8, 8). The set has no official split: every fifth scan is a test one, ids stay the original.

    Raises:
        InputError: an unknown split, or the installed scikit-learn ships other digits.

    Source: Alpaydin & Kaynak (1998), UCI test set, as scikit-learn ships it.
    """
    check_split(split)
    bunch = load_digits()
    images = verify(bunch.images.astype(np.uint8), (1797, 8, 8), _IMAGES, "scikit-learn's digits")
    labels = verify(bunch.target.astype(np.uint8), (1797,), _LABELS, "scikit-learn's digits")
    data = images_and_labels(images, labels, white=_WHITE)
    test = torch.arange(len(labels)) % _TEST_EVERY == 0
    chosen = test if split == "test" else ~test
    return Data(data.x[chosen], data.y[chosen], data.id[chosen])
