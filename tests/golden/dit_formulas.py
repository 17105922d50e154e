"""A whole MoH-DiT and its training loss, from the papers (DiT, improved DDPM, MoH in the authors' form), for
make_golden.py: plain tensor operations and autograd in the precision of the inputs."""
import math

import torch


def linear(param, name, x):
    return x @ param[name + ".weight"].T + param[name + ".bias"]


def norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def modulate(x, shift, scale):
    return norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def silu(x):
    return x * torch.sigmoid(x)


def sinusoid(t, size):
    """Cosines, then sines; in float32, as the checkpoints have learned it."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(size // 2, dtype=torch.float32) / (size // 2))
    angles = t.float().unsqueeze(1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def positions(hidden, grid):
    frequencies = 10000.0 ** (-torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    angles = torch.arange(grid, dtype=torch.float64).unsqueeze(1) * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows = [torch.cat([line[column], line[row]]) for row in range(grid) for column in range(grid)]
    return torch.stack(rows).unsqueeze(0)


def gates_of(param, prefix, x, heads, shared, k, balance_loss, mask_of, margin_of):
    """[N, T, heads], the layer's balance loss (None when nothing is routed), and the margin of the choice."""
    parts, loss, margin, kind = [], None, math.inf, (1, 1)
    if shared > 0 and k > 0:
        both = 2 * (x @ param[prefix + "wg_0.weight"].T).softmax(-1)
        kind = (both[..., :1], both[..., 1:])
    if shared > 0:
        parts.append(kind[0] * shared * (x @ param[prefix + "wg_1.weight"].T).softmax(-1))
    if k > 0:
        logits = (x @ param[prefix + "wg.weight"].T).flatten(0, 1)
        probabilities = logits.softmax(-1)
        margin = margin_of(logits.log_softmax(-1), k)
        mask = mask_of(probabilities.topk(k, -1).indices, heads - shared).to(x)
        selected = probabilities * mask
        parts.append(kind[1] * (k * selected / selected.sum(-1, keepdim=True)).reshape(*x.shape[:2], -1))
        loss = (heads - shared) * balance_loss(probabilities, mask)
    return torch.cat(parts, -1), loss, margin


def forward(config, param, x, t, y, tools):
    """Output [N, 2C, H, W], gates and balance losses by layer, the smallest margin, and the embeddings."""
    patch, hidden, d = config["patch_size"], config["hidden_size"], config["head_dim"]
    batch, channels, size, _ = x.shape
    grid = size // patch
    pixels = x.reshape(batch, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    patches = pixels @ param["x_embedder.proj.weight"].flatten(1).T + param["x_embedder.proj.bias"]
    tokens = patches + param["pos_embed"]
    waves = sinusoid(t, 256).to(x)
    time = linear(param, "t_embedder.mlp.2", silu(linear(param, "t_embedder.mlp.0", waves)))
    label = param["y_embedder.embedding_table.weight"][y]
    condition, gates, losses, margin = silu(time + label), [], [], math.inf
    for layer in range(config["depth"]):
        prefix, heads = f"blocks.{layer}.", config["num_heads"][layer]
        m = linear(param, prefix + "adaLN_modulation.1", condition).chunk(6, -1)
        inside = modulate(tokens, m[0], m[1])
        gate, loss, least = gates_of(param, prefix + "attn.", inside, heads, config["shared_head"][layer],
                                     config["routed_head"][layer], *tools)
        margin = min(margin, least)
        gates.append(gate)
        losses += [] if loss is None else [loss]
        q, k, v = linear(param, prefix + "attn.qkv", inside).reshape(batch, -1, 3, heads, d).permute(2, 0, 3, 1, 4)
        out = ((q @ k.transpose(-1, -2)) / math.sqrt(d)).softmax(-1) @ v
        out = (out.transpose(1, 2) * gate.unsqueeze(-1)).flatten(2)
        tokens = tokens + m[2].unsqueeze(1) * linear(param, prefix + "attn.proj", out)
        u = linear(param, prefix + "mlp.fc1", modulate(tokens, m[3], m[4]))
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
        tokens = tokens + m[5].unsqueeze(1) * linear(param, prefix + "mlp.fc2", u)
    m = linear(param, "final_layer.adaLN_modulation.1", condition).chunk(2, -1)
    out = linear(param, "final_layer.linear", modulate(tokens, m[0], m[1]))
    out = out.reshape(batch, grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, size, size)
    return out, gates, losses, margin, {"timestep_sinusoid": waves, "t": time, "y": label, "patches": patches}


def schedule(steps=1000):
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    return betas, bars, before


def loss_terms(output, x_start, x_t, t, noise):
    """Mean square error and variational term (bits per dimension) of each example; t > 0."""
    assert (t > 0).all()
    betas, bars, before = (values[t].to(x_start).reshape(-1, 1, 1, 1) for values in schedule())
    predicted, v = output.chunk(2, 1)
    mean_of = lambda x0: (betas * before.sqrt() * x0 + (1 - before) * (1 - betas).sqrt() * x_t) / (1 - bars)
    true_log = (betas * (1 - before) / (1 - bars)).log()
    share = (v + 1) / 2
    log_variance = share * betas.log() + (1 - share) * true_log
    x0 = (x_t - (1 - bars).sqrt() * predicted.detach()) / bars.sqrt()
    kl = 0.5 * (log_variance - true_log - 1 + (true_log - log_variance).exp() +
                (mean_of(x_start) - mean_of(x0)) ** 2 * (-log_variance).exp())
    return ((noise - predicted) ** 2).flatten(1).mean(1), kl.flatten(1).mean(1) / math.log(2)


def dit_model(config, tensors, leaves, prefixed, gradients, tools):
    param = leaves(tensors)
    work = next(iter(param.values()))
    x, t, y = tensors["in.x"].to(work), tensors["in.t"], tensors["in.y"]
    out, gates, _, margin, embeddings = forward(config, param, x, t, y, tools)
    outputs = {"out.eps": out} | {f"embed.{name}": value for name, value in embeddings.items()}
    outputs |= {f"gate.blocks.{i}.attn": gate for i, gate in enumerate(gates)}

    scale = tensors["cfg.scale"].item()
    half = tensors["cfg.x"][:tensors["cfg.x"].shape[0] // 2].to(work)
    both, _, _, least, _ = forward(config, param, torch.cat([half, half]), tensors["cfg.t"], tensors["cfg.y"], tools)
    margin = min(margin, least)
    labelled, free = both[:, :3].chunk(2)
    guided = free + scale * (labelled - free)
    outputs["cfg.out"] = torch.cat([torch.cat([guided, guided]), both[:, 3:]], 1)

    x_start, noise, steps = tensors["train.x_start"].to(work), tensors["train.noise"].to(work), tensors["train.t"]
    bars = schedule()[1][steps].to(work).reshape(-1, 1, 1, 1)
    x_t = bars.sqrt() * x_start + (1 - bars).sqrt() * noise
    out, gates, losses, least, _ = forward(config, param, x_t, steps, y, tools)
    mse, vb = loss_terms(out, x_start, x_t, steps, noise)
    balance = 0.01 * torch.stack(losses).mean()
    total = (mse + vb).mean() + balance
    outputs |= {"train.x_t": x_t, "train.mse": mse, "train.vb": vb, "train.loss_terms": mse + vb,
                "train.layer_losses": torch.stack(losses), "train.moh_loss": balance.reshape(1),
                "train.total_loss": total.reshape(1)}
    outputs |= {f"train.gate.blocks.{i}.attn": gate for i, gate in enumerate(gates)}
    trained = {name: value for name, value in param.items() if name != "pos_embed"}
    return outputs | gradients(total, prefixed("param.", trained), "grad."), min(margin, least)


def inputs(config, random):
    hidden, d, patch = config["hidden_size"], config["head_dim"], config["patch_size"]
    channels, size, classes, batch = config["in_channels"], config["input_size"], config["num_classes"], 3
    param = {"pos_embed": positions(hidden, size // patch).float()}

    def matrix(name, rows, columns, scale=1.0, bias=True):
        param[name + ".weight"] = random.matrix(rows, columns, scale=scale)
        if bias:
            param[name + ".bias"] = random.normal(rows, scale=0.2)

    matrix("x_embedder.proj", hidden, channels * patch * patch)
    param["x_embedder.proj.weight"] = param["x_embedder.proj.weight"].reshape(hidden, channels, patch, patch)
    matrix("t_embedder.mlp.0", hidden, 256)
    matrix("t_embedder.mlp.2", hidden, hidden)
    param["y_embedder.embedding_table.weight"] = random.normal(classes + 1, hidden)
    for layer in range(config["depth"]):
        prefix = f"blocks.{layer}."
        heads, shared, k = (config[key][layer] for key in ("num_heads", "shared_head", "routed_head"))
        matrix(prefix + "attn.qkv", 3 * heads * d, hidden)
        matrix(prefix + "attn.proj", hidden, heads * d)
        if k > 0:
            matrix(prefix + "attn.wg", heads - shared, hidden, 1.5, bias=False)
        if k > 0 and shared > 0:
            matrix(prefix + "attn.wg_0", 2, hidden, 1.5, bias=False)
        if shared > 0:
            matrix(prefix + "attn.wg_1", shared, hidden, 1.5, bias=False)
        matrix(prefix + "mlp.fc1", 4 * hidden, hidden)
        matrix(prefix + "mlp.fc2", hidden, 4 * hidden)
        matrix(prefix + "adaLN_modulation.1", 6 * hidden, hidden, 0.5)
    matrix("final_layer.linear", 2 * channels * patch * patch, hidden)
    matrix("final_layer.adaLN_modulation.1", 2 * hidden, hidden, 0.5)
    steps = lambda count: torch.randint(1, 1000, (count,), generator=random.generator)
    picture = lambda count: random.normal(count, channels, size, size)
    return {f"param.{name}": value for name, value in param.items()} | {
        "in.x": picture(batch), "in.t": steps(batch), "in.y": torch.tensor([0, classes, classes - 1]),
        "train.x_start": picture(batch), "train.noise": picture(batch), "train.t": steps(batch),
        "cfg.x": picture(4), "cfg.t": torch.tensor([700, 31, 700, 31]),
        "cfg.y": torch.tensor([1, 0, classes, classes]), "cfg.scale": torch.tensor([2.5])}
