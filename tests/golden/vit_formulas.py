"""MoH-ViT for make_golden.py: its two attention layers and a whole model, from the papers (TransNeXt, MoH in the
authors' form): plain tensor operations and autograd in the precision of the inputs. H x W tokens, row by row."""
import math

import torch
from torch.nn import functional

WINDOW = 3


def linear(param, name, x):
    return x @ param[name + ".weight"].T + param[name + ".bias"]


def layer_norm(param, name, x, eps):
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return unit * param[name + ".weight"] + param[name + ".bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def as_map(x, size):
    return x.transpose(1, 2).reshape(x.shape[0], -1, *size)


def pooled_size(size, ratio):
    return (size[0] // ratio, size[1] // ratio)


def position_tables(size, ratio):
    """Distinct distances [rows, 2] of a token from the keys (means of ratio x ratio tokens), and which of them each pair
    has; both axes scaled by the map that the model was trained for, which is this one."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"), -1)
    keys = places.reshape(size[0] // ratio, ratio, size[1] // ratio, ratio, 2).mean((1, 3)).reshape(1, -1, 2)
    distance = (places.reshape(-1, 1, 2) - keys) / (torch.tensor(size, dtype=torch.float64) - 1) * 8
    table, index = distance.reshape(-1, 2).unique(dim=0, return_inverse=True)
    return table.sign() * (table.abs() + 1).log2() / 3, index


def position_bias(param, prefix, size, ratio, like):
    table, index = position_tables(size, ratio)
    by_distance = linear(param, prefix + "cpb_fc2", linear(param, prefix + "cpb_fc1", table.to(like)).clamp_min(0))
    return by_distance[index].T.reshape(-1, size[0] * size[1], index.numel() // (size[0] * size[1]))


def gates(param, prefix, x, heads, shared, k, tools):
    """What the router of the authors' ViT gives, by the golden files' names, and the margin of its choice."""
    balance_loss, mask_of, margin_of = tools
    batch, tokens, _ = x.shape
    flat, out, margin, kind, parts = x.flatten(0, 1), {}, math.inf, (1, 1), []
    if shared > 0 and k > 0:
        out["gate.kind_logits"] = flat @ param[prefix + "wg_0.weight"].T
        out["gate.kind"] = (2 * out["gate.kind_logits"].softmax(-1)).reshape(batch, tokens, 2)
        kind = (out["gate.kind"][..., :1], out["gate.kind"][..., 1:])
    if shared == 1:
        out["gate.shared"] = torch.ones(batch, tokens, 1).to(x)
    elif shared > 1:
        out["gate.shared_logits"] = flat @ param[prefix + "wg_1.weight"].T
        out["gate.shared"] = (shared * out["gate.shared_logits"].softmax(-1)).reshape(batch, tokens, shared)
    if shared > 0:
        parts.append(kind[0] * out["gate.shared"])
    if k > 0:
        logits = flat @ param[prefix + "wg.weight"].T
        probabilities = logits.softmax(-1)
        margin = margin_of(logits.log_softmax(-1), k)
        chosen = probabilities.topk(k, -1).indices
        mask = mask_of(chosen, heads - shared).to(x)
        selected = probabilities * mask
        routed = (k * selected / selected.sum(-1, keepdim=True)).reshape(batch, tokens, heads - shared)
        out |= {"gate.routed_logits": logits, "gate.routed_probs": probabilities, "gate.topk": chosen,
                "gate.routed": routed,
                "out.aux_loss": ((heads - shared) * balance_loss(probabilities, mask)).reshape(1)}
        parts.append(kind[1] * routed)
    out["gate.final"] = torch.cat(parts, -1)
    return out, margin


def heads_of(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)  # [B, h, N, d]


def windows(x, size):
    """[B, h, N, d] -> [B, h, N, 9, d]: each token's neighbours, zeros outside the map."""
    batch, heads, tokens, d = x.shape
    maps = x.transpose(2, 3).reshape(batch, heads * d, *size)
    return functional.unfold(maps, WINDOW, padding=WINDOW // 2).reshape(batch, heads, d, WINDOW ** 2, tokens).permute(
        0, 1, 4, 3, 2)


def full_attention(param, prefix, x, size, heads):
    q, k, v = (heads_of(part, heads) for part in linear(param, prefix + "qkv", x).chunk(3, -1))
    factor = functional.softplus(param[prefix + "temperature"]) * math.log(size[0] * size[1])
    scores = (unit(q) + param[prefix + "query_embedding"]) * factor @ unit(k).transpose(-1, -2)
    return (scores + position_bias(param, prefix, size, 1, x)).softmax(-1) @ v


def aggregated_attention(param, prefix, x, size, heads, ratio):
    q, local = heads_of(linear(param, prefix + "q", x), heads), linear(param, prefix + "kv", x).chunk(2, -1)
    k, v = (heads_of(part, heads) for part in local)
    reduced = gelu(linear(param | {prefix + "sr.weight": param[prefix + "sr.weight"].flatten(1)}, prefix + "sr", x))
    pooled = pooled_size(size, ratio)
    means = as_map(reduced, size).reshape(x.shape[0], -1, pooled[0], ratio, pooled[1], ratio).mean((3, 5))
    tokens = layer_norm(param, prefix + "norm", means.flatten(2).transpose(1, 2), 1e-5)
    far_k, far_v = (heads_of(part, heads) for part in linear(param, prefix + "kv", tokens).chunk(2, -1))

    inside = windows(torch.ones(1, 1, size[0] * size[1], 1).to(x), size)[0, 0, :, :, 0]  # [N, 9]
    length = (inside.sum(-1) + pooled[0] * pooled[1]).log().reshape(1, 1, -1, 1)
    q = unit(q)
    scaled = (q + param[prefix + "query_embedding"]) * functional.softplus(param[prefix + "temperature"]) * length
    near = (windows(unit(k), size) @ scaled.unsqueeze(-1)).squeeze(-1)
    near = near + param[prefix + "relative_pos_bias_local"].unsqueeze(1)
    near = near.masked_fill(inside == 0, -math.inf)
    far = scaled @ unit(far_k).transpose(-1, -2) + position_bias(param, prefix, size, ratio, x)
    weights = torch.cat([near, far], -1).softmax(-1)
    learned = q @ param[prefix + "learnable_tokens"] + param[prefix + "learnable_bias"]
    near = weights[..., :WINDOW ** 2] + learned
    return (near.unsqueeze(-2) @ windows(v, size)).squeeze(-2) + weights[..., WINDOW ** 2:] @ far_v


def attention(param, prefix, x, size, heads, shared, k, ratio, tools):
    """y, what the router gave, the heads' outputs [B, N, h, d], and the margin."""
    routing, margin = gates(param, prefix, x, heads, shared, k, tools)
    if ratio > 1:
        out = aggregated_attention(param, prefix, x, size, heads, ratio)
    else:
        out = full_attention(param, prefix, x, size, heads)
    out = out.transpose(1, 2)
    gated = (out * routing["gate.final"].unsqueeze(-1)).flatten(2)
    return linear(param, prefix + "proj", gated), routing, out, margin


def vit_layer(config, tensors, leaf, leaves, gradients, prefixed, tools):
    x, param = leaf(tensors["in.x"]), leaves(tensors)
    y, out, heads, margin = attention(param, "", x, tuple(config["hw"]), config["heads"], config["shared"], config["k"],
                                      config.get("sr_ratio", 1), tools)
    total = (y * tensors["rand.target"].to(y)).sum() + (out["out.aux_loss"].sum() if "out.aux_loss" in out else 0)
    out |= {"out.y": y, "gate.head_out": heads, "out.total": total.reshape(1)}
    return out | gradients(total, {"in.x": x} | prefixed("param.", param), "grad."), margin


def mlp(param, prefix, x, size):
    values, gate = linear(param, prefix + "fc1", x).chunk(2, -1)
    weight, bias = param[prefix + "dwconv.dwconv.weight"], param[prefix + "dwconv.dwconv.bias"]
    convolved = functional.conv2d(as_map(values, size), weight, bias, padding=1, groups=weight.shape[0])
    return linear(param, prefix + "fc2", gelu(convolved.flatten(2).transpose(1, 2)) * gate)


def vit_model(config, tensors, leaves, gradients, prefixed, tools):
    param = leaves(tensors)
    x, out, losses, margin = tensors["in.image"].to(next(iter(param.values()))), {}, [], math.inf
    for i, dim in enumerate(config["embed_dims"]):
        stage, ratio = str(i + 1), config["sr_ratios"][i]
        weight = param[f"patch_embed{stage}.proj.weight"]
        x = functional.conv2d(x, weight, param[f"patch_embed{stage}.proj.bias"],
                              stride=config["patch_size"] if i == 0 else 2, padding=weight.shape[-1] // 2)
        size = tuple(x.shape[2:])
        table, index = position_tables(size, ratio)
        out |= {f"buffer.relative_coords_table{stage}": table, f"buffer.relative_pos_index{stage}": index}
        x = layer_norm(param, f"patch_embed{stage}.norm", x.flatten(2).transpose(1, 2), 1e-5)
        for block in range(config["depths"][i]):
            name = f"block{stage}.{block}"
            y, routing, _, least = attention(param, name + ".attn.", layer_norm(param, name + ".norm1", x, 1e-6), size,
                                             config["num_heads"][i], config["shared_head"][i], config["routed_head"][i],
                                             ratio, tools)
            margin = min(margin, least)
            out[f"gate.{name}.attn"] = routing["gate.final"]
            losses += [routing["out.aux_loss"]] if "out.aux_loss" in routing else []
            x = x + y
            x = x + mlp(param, name + ".mlp.", layer_norm(param, name + ".norm2", x, 1e-6), size)
        x = layer_norm(param, f"norm{stage}", x, 1e-6)
        if i + 1 < len(config["embed_dims"]):
            x = as_map(x, size)
    features = x.mean(1)
    logits = linear(param, "head", features)
    cross_entropy = -logits.log_softmax(-1).gather(1, tensors["in.label"].unsqueeze(1)).mean()
    layer_losses = torch.cat(losses)
    moh_loss = 0.01 * layer_losses.mean()
    total = cross_entropy + moh_loss
    out |= {"out.logits": logits, "out.features": features, "out.layer_losses": layer_losses,
            "out.cross_entropy": cross_entropy.reshape(1), "out.moh_loss": moh_loss.reshape(1),
            "out.total_loss": total.reshape(1)}
    return out | gradients(total, prefixed("param.", param), "grad."), margin


# ---- Random inputs; what the authors start as a constant varies too, so that it matters ----

def attention_inputs(prefix, dim, heads, shared, k, ratio, random):
    param = {}

    def matrix(name, rows, columns, scale=1.0, bias=True):
        param[prefix + name + ".weight"] = random.matrix(rows, columns, scale=scale)
        if bias:
            param[prefix + name + ".bias"] = random.normal(rows, scale=0.2)

    d = dim // heads
    param[prefix + "query_embedding"] = random.normal(heads, 1, d, scale=0.3)
    param[prefix + "temperature"] = random.normal(heads, 1, 1, scale=0.3, mean=1.0)
    if ratio > 1:
        matrix("q", dim, dim)
        matrix("kv", 2 * dim, dim)
        matrix("sr", dim, dim)
        param[prefix + "sr.weight"] = param[prefix + "sr.weight"].reshape(dim, dim, 1, 1)
        param |= norm_inputs(prefix + "norm", dim, random)
        param[prefix + "relative_pos_bias_local"] = random.normal(heads, WINDOW ** 2, scale=0.5)
        param[prefix + "learnable_tokens"] = random.normal(heads, d, WINDOW ** 2, scale=0.3)
        param[prefix + "learnable_bias"] = random.normal(heads, 1, WINDOW ** 2, scale=0.3)
    else:
        matrix("qkv", 3 * dim, dim)
    matrix("proj", dim, dim)
    matrix("cpb_fc1", 512, 2)
    matrix("cpb_fc2", heads, 512)
    if k > 0:
        matrix("wg", heads - shared, dim, 1.5, bias=False)
    if k > 0 and shared > 0:
        matrix("wg_0", 2, dim, 1.5, bias=False)
    if shared > 1:
        matrix("wg_1", shared, dim, 1.5, bias=False)
    return param


def norm_inputs(name, dim, random):
    return {name + ".weight": random.normal(dim, scale=0.2, mean=1.0), name + ".bias": random.normal(dim, scale=0.2)}


def layer_inputs(config, random):
    shape, ratio = (config["batch"], config["hw"][0] * config["hw"][1], config["dim"]), config.get("sr_ratio", 1)
    param = attention_inputs("", config["dim"], config["heads"], config["shared"], config["k"], ratio, random)
    table, index = position_tables(tuple(config["hw"]), ratio)
    return {f"param.{name}": value for name, value in param.items()} | {
        "in.x": random.normal(*shape), "rand.target": random.normal(*shape), "in.relative_coords_table": table.float(),
        "in.relative_pos_index": index}


def model_inputs(config, random):
    param, channels = {}, 3
    for i, dim in enumerate(config["embed_dims"]):
        stage, kernel = str(i + 1), 7 if i == 0 else 3
        weight = random.matrix(dim, channels * kernel ** 2).reshape(dim, channels, kernel, kernel)
        param |= {f"patch_embed{stage}.proj.weight": weight, f"patch_embed{stage}.proj.bias": random.normal(dim, scale=0.2)}
        param |= norm_inputs(f"patch_embed{stage}.norm", dim, random) | norm_inputs(f"norm{stage}", dim, random)
        channels, hidden = dim, int(2 / 3 * config["mlp_ratios"][i] * dim)
        for block in range(config["depths"][i]):
            name = f"block{stage}.{block}"
            param |= norm_inputs(name + ".norm1", dim, random) | norm_inputs(name + ".norm2", dim, random)
            param |= attention_inputs(name + ".attn.", dim, config["num_heads"][i], config["shared_head"][i],
                                      config["routed_head"][i], config["sr_ratios"][i], random)
            for layer, rows, columns in ((".mlp.fc1", 2 * hidden, dim), (".mlp.fc2", dim, hidden)):
                param[name + layer + ".weight"] = random.matrix(rows, columns)
                param[name + layer + ".bias"] = random.normal(rows, scale=0.2)
            param[name + ".mlp.dwconv.dwconv.weight"] = random.normal(hidden, 1, 3, 3, scale=1 / 3)
            param[name + ".mlp.dwconv.dwconv.bias"] = random.normal(hidden, scale=0.2)
    param |= {"head.weight": random.matrix(config["num_classes"], channels),
              "head.bias": random.normal(config["num_classes"], scale=0.2)}
    size = config["img_size"]
    return {f"param.{name}": value for name, value in param.items()} | {
        "in.image": random.normal(2, 3, size, size), "in.label": torch.tensor([0, config["num_classes"] - 1])}
