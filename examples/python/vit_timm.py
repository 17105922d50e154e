"""A ViT of timm becomes a MoH-ViT and trains on CIFAR-10.

    python examples/python/vit_timm.py DATA --steps 300          # DATA/train, DATA/test: one folder of pictures a class

Needs timm and pillow. `--dense` trains the model as timm made it."""

import timm
import torch

import cifar10
import moh

args = cifar10.options(__doc__.splitlines()[0], steps=300, batch=64)
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=8, num_classes=10)
if not args.dense:
    layers = moh.timm.convert(model, shared_heads=2, top_k=4)  # 6 of 8 heads a token
    print(f"{layers} attention layers converted; kernels: {moh.available()['kernels'] or 'yes'}")


def loss_of(pictures: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    mirrored = torch.where(torch.rand(len(pictures), 1, 1, 1) < 0.5, pictures, pictures.flip(-1))
    return torch.nn.functional.cross_entropy(model(mirrored), classes, label_smoothing=0.1)


cifar10.train(model, loss_of, args, learning_rate=1e-3)
model.eval()
pictures, classes = cifar10.load(f"{args.data}/test", args.limit)
with torch.no_grad():
    right = sum((model(x).argmax(-1) == y).sum().item() for x, y in zip(pictures.split(250), classes.split(250)))
print(f"top-1 on {len(pictures)} test pictures: {100 * right / len(pictures):.1f} %")
