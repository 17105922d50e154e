"""CIFAR-10 as folders of pictures, DATA/train and DATA/test with one folder a class; shared by the examples beside."""

import pathlib

import numpy
import torch
from PIL import Image


def load(folder: str, limit: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 3, 32, 32] in -1..1 and classes [N]; at most `limit` of each class, 0: all."""
    pictures, classes = [], []
    for number, path in enumerate(sorted(p for p in pathlib.Path(folder).iterdir() if p.is_dir())):
        files = sorted(path.iterdir())
        for file in files[: limit or len(files)]:
            pictures.append(numpy.asarray(Image.open(file).convert("RGB")))
            classes.append(number)
    x = torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, torch.tensor(classes)
