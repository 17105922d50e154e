"""A ViT of timm becomes a MoH-ViT and trains on CIFAR-10.

    python examples/python/vit_timm.py DATA --steps 300          # DATA/train, DATA/test: one folder of pictures a class

Needs timm and pillow. `--dense` trains the model as timm made it."""

import argparse
import time

import timm
import torch

import cifar10
import moh

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--limit", type=int, default=0, help="pictures of each class; 0: all")
parser.add_argument("--dense", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=8, num_classes=10)
if not args.dense:
    layers = moh.timm.convert(model, shared_heads=2, top_k=4)  # 6 of 8 heads a token
    print(f"{layers} attention layers converted; kernels: {moh.available()['kernels'] or 'yes'}")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=args.steps)
pictures, classes = cifar10.load(f"{args.data}/train", args.limit)
start = time.time()
for step in range(args.steps):
    chosen = torch.randint(len(pictures), (args.batch,))
    x = pictures[chosen]
    x = torch.where(torch.rand(args.batch, 1, 1, 1) < 0.5, x, x.flip(-1))
    with moh.nn.balance_losses() as balance:
        loss = torch.nn.functional.cross_entropy(model(x), classes[chosen], label_smoothing=0.1)
    optimizer.zero_grad()
    (loss + 0.01 * sum(balance)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if (step + 1) % 50 == 0 or step + 1 == args.steps:
        print(f"step {step + 1}  loss {loss.item():.3f}  {args.batch * (step + 1) / (time.time() - start):.0f} pictures/s")

model.eval()
pictures, classes = cifar10.load(f"{args.data}/test", args.limit)
with torch.no_grad():
    right = sum((model(x).argmax(-1) == y).sum().item() for x, y in zip(pictures.split(250), classes.split(250)))
print(f"top-1 on {len(pictures)} test pictures: {100 * right / len(pictures):.1f} %")
