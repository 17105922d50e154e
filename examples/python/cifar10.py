"""What the examples beside share: options, CIFAR-10 as folders of pictures (DATA/train and DATA/test, one folder a class), training."""

import argparse
import pathlib
import time
from collections.abc import Callable

import numpy
import torch
from PIL import Image

import moh


def options(description: str, steps: int, batch: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--limit", type=int, default=0, help="pictures of each class; 0: all")
    parser.add_argument("--dense", action="store_true", help="the model as it was made")
    return parser.parse_args()


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


def train(model: torch.nn.Module, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], args: argparse.Namespace,
          learning_rate: float) -> None:
    """loss_of(pictures, classes) of random batches goes down, with the routers' balance loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=args.steps)
    pictures, classes = load(f"{args.data}/train", args.limit)
    start, losses = time.time(), []
    for step in range(1, args.steps + 1):
        chosen = torch.randint(len(pictures), (args.batch,))
        with moh.nn.balance_losses() as balance:
            loss = loss_of(pictures[chosen], classes[chosen])
        optimizer.zero_grad()
        (loss + 0.01 * sum(balance)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == args.steps:
            recent = losses[-50:]
            print(f"step {step}  loss {sum(recent) / len(recent):.3f}  {args.batch * step / (time.time() - start):.0f} pictures/s", flush=True)
