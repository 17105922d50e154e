"""A small DiT of diffusers becomes a MoH-DiT and learns to denoise CIFAR-10.

    python examples/python/dit_diffusers.py DATA --steps 200     # DATA/train: one folder of pictures a class

Needs diffusers and pillow. `--dense` trains the model as diffusers made it."""

import argparse
import time

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

import cifar10
import moh

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--limit", type=int, default=0, help="pictures of each class; 0: all")
parser.add_argument("--dense", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
model = DiTTransformer2DModel(num_attention_heads=8, attention_head_dim=16, in_channels=3, out_channels=3, num_layers=4,
                              sample_size=32, patch_size=4, num_embeds_ada_norm=1000, norm_num_groups=1)
if not args.dense:
    layers = moh.diffusers.convert(model, shared_heads=2, top_k=4)  # 6 of 8 heads a token
    print(f"{layers} attention layers converted; kernels: {moh.available()['kernels'] or 'yes'}")
noising = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
pictures, classes = cifar10.load(f"{args.data}/train", args.limit)
start, losses = time.time(), []
for step in range(args.steps):
    chosen = torch.randint(len(pictures), (args.batch,))
    noise, times = torch.randn(args.batch, 3, 32, 32), torch.randint(1000, (args.batch,))
    noisy = noising.add_noise(pictures[chosen], noise, times)
    with moh.nn.balance_losses() as balance:
        loss = (model(noisy, timestep=times, class_labels=classes[chosen]).sample - noise).square().mean()
    optimizer.zero_grad()
    (loss + 0.01 * sum(balance)).backward()
    optimizer.step()
    losses.append(loss.item())
    if (step + 1) % 50 == 0 or step + 1 == args.steps:
        recent = losses[-50:]
        print(f"step {step + 1}  loss {sum(recent) / len(recent):.3f}  {args.batch * (step + 1) / (time.time() - start):.0f} pictures/s")
