"""A small DiT of diffusers becomes a MoH-DiT and learns to denoise CIFAR-10.

    python examples/python/dit_diffusers.py DATA --steps 200     # DATA/train: one folder of pictures a class

Needs diffusers and pillow. `--dense` trains the model as diffusers made it."""

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

import cifar10
import moh

args = cifar10.options(__doc__.splitlines()[0], steps=200, batch=32)
torch.manual_seed(0)
model = DiTTransformer2DModel(num_attention_heads=8, attention_head_dim=16, in_channels=3, out_channels=3, num_layers=4,
                              sample_size=32, patch_size=4, num_embeds_ada_norm=1000, norm_num_groups=1)
if not args.dense:
    layers = moh.diffusers.convert(model, shared_heads=2, top_k=4)  # 6 of 8 heads a token
    print(f"{layers} attention layers converted; kernels: {moh.available()['kernels'] or 'yes'}")
noising = DDPMScheduler(num_train_timesteps=1000)


def loss_of(pictures: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    noise, times = torch.randn_like(pictures), torch.randint(1000, (len(pictures),))
    noisy = noising.add_noise(pictures, noise, times)
    return (model(noisy, timestep=times, class_labels=classes).sample - noise).square().mean()


cifar10.train(model, loss_of, args, learning_rate=5e-4)
