"""The autoencoder beside PyPI's diffusers, both on random weights of several shapes: vae_parity_test.py VAE_PROBE."""
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from safetensors.torch import load_file, save_file
except Exception as error:  # not installed, or not for this Python
    print(f"skipped: diffusers cannot be imported: {error}")
    sys.exit(77)

probe = sys.argv[1]
cases = {
    "as Stable Diffusion's, thinner": dict(block_out_channels=(16, 32, 64, 64), layers_per_block=2, norm_num_groups=8),
    "two levels, one layer": dict(block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=3),
    "no attention, no quant convolutions": dict(block_out_channels=(8, 8, 16), norm_num_groups=2, latent_channels=16,
                                                mid_block_add_attention=False, use_quant_conv=False,
                                                use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
}


def run(folder, tensors):
    save_file(tensors, folder / "in.safetensors")
    done = subprocess.run([probe, folder, folder / "in.safetensors", folder / "out.safetensors"], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")


def compare(name, got, expected):
    error = (got - expected).abs().max().item()
    limit = 2e-4 * expected.abs().max().item()
    print(f"  {name} {tuple(expected.shape)}: largest error {error:.1e}, limit {limit:.1e}")
    assert got.shape == expected.shape and error < limit, name


def refused(folder, *words):
    done = subprocess.run([probe, folder, folder / "in.safetensors", folder / "out.safetensors"], capture_output=True,
                          text=True)
    message = done.stderr.strip()
    assert done.returncode == 1 and len(message.splitlines()) == 1, message
    assert all(word in message for word in words), message


torch.manual_seed(0)
for title, case in cases.items():
    print(title)
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = pathlib.Path(temporary)
        levels = len(case["block_out_channels"])
        model = AutoencoderKL(**(dict(layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * levels,
                                      up_block_types=("UpDecoderBlock2D",) * levels, sample_size=32) | case)).eval()
        for parameter in model.parameters():  # also what starts as zero or one matters
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        config = model.config
        reduction = 2 ** (levels - 1)
        pictures = torch.rand(2, 3, 4 * reduction, 6 * reduction) * 2 - 1
        latents = torch.randn(2, config.latent_channels, 5, 3)
        got = run(folder, {"pictures": pictures, "latents": latents})
        distribution = model.encode(pictures).latent_dist
        compare("mean", got["mean"], distribution.mean)
        compare("log-variance", got["log_variance"], distribution.logvar)
        shift = config.shift_factor or 0
        compare("decoded", got["decoded"], model.decode(latents / config.scaling_factor + shift).sample)

        # Names that older folders have.
        path = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        old = {}
        for name, tensor in tensors.items():
            for present, before in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."),
                                    (".to_out.0.", ".proj_attn.")):
                name = name.replace(present, before)
            old[name] = tensor
        save_file(old, path)
        again = run(folder, {"pictures": pictures, "latents": latents})
        assert all(torch.equal(again[name], got[name]) for name in got)

        # A wrong autoencoder: one line that says what.
        missing = dict(tensors)
        missing.pop("decoder.conv_out.bias")
        save_file(missing, path)
        refused(folder, "decoder.conv_out.bias", "missing")
        save_file(tensors | {"extra": torch.zeros(1)}, path)
        refused(folder, "extra")
        save_file(tensors, path)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"_class_name": "UNet2DConditionModel"}))
        refused(folder, "AutoencoderKL")
        (folder / "config.json").write_text(json.dumps(settings | {"norm_num_groups": 7}))
        refused(folder, "norm_num_groups")
        path.write_bytes(path.read_bytes()[:1000])
        (folder / "config.json").write_text(json.dumps(settings))
        refused(folder, "safetensors")
print("ok")
