"""The diffusion process of DiT without a network (DDPM, improved DDPM, DDIM), for make_golden.py: schedules in float64,
one step back and the training loss for a given network output, in the precision of the inputs."""
import math

import torch

STEPS = 1000


def schedule(betas):
    betas = torch.tensor(betas, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    variance = betas * (1 - before) / (1 - bars)
    return {"betas": betas, "alphas_cumprod": bars, "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": bars.sqrt(), "sqrt_one_minus_alphas_cumprod": (1 - bars).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / bars).sqrt(), "sqrt_recipm1_alphas_cumprod": (1 / bars - 1).sqrt(),
            "posterior_variance": variance,
            # The first variance is 0; the second stands in for it.
            "posterior_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
            "posterior_mean_coef1": betas * before.sqrt() / (1 - bars),
            "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - bars)}


def linear():
    return schedule([1e-4 + (0.02 - 1e-4) * i / (STEPS - 1) for i in range(STEPS)])


def spaced(full, count):
    """`count` steps from the first to the last, evenly; betas such that the noise levels are those of these steps."""
    kept = [round(i * (STEPS - 1) / (count - 1)) for i in range(count)]
    bars = [full["alphas_cumprod"][t].item() for t in kept]
    return kept, schedule([1 - bar / last for bar, last in zip(bars, [1.0] + bars)])


def at(values, t, x):
    return values[t].to(x).reshape(-1, *[1] * (x.dim() - 1))


def predict(s, output, x, t, clip):
    noise, v = output.chunk(2, 1)
    share = (v + 1) / 2
    log_variance = share * at(s["betas"].log(), t, x) + (1 - share) * at(s["posterior_log_variance_clipped"], t, x)
    x_start = at(s["sqrt_recip_alphas_cumprod"], t, x) * x - at(s["sqrt_recipm1_alphas_cumprod"], t, x) * noise
    x_start = x_start.clamp(-1, 1) if clip else x_start
    mean = at(s["posterior_mean_coef1"], t, x) * x_start + at(s["posterior_mean_coef2"], t, x) * x
    return mean, log_variance, x_start


def step(s, output, x, t, noise, clip):
    mean, log_variance, x_start = predict(s, output, x, t, clip)
    goes_on = (t > 0).to(x).reshape(-1, 1, 1, 1)
    result = {"mean": mean, "log_variance": log_variance, "pred_xstart": x_start,
              "p_sample": mean + goes_on * (log_variance / 2).exp() * noise}
    bar, before = at(s["alphas_cumprod"], t, x), at(s["alphas_cumprod_prev"], t, x)
    direction = (x - bar.sqrt() * x_start) / (1 - bar).sqrt()
    for eta in (0.0, 0.5):
        sigma = eta * ((1 - before) / (1 - bar) * (1 - bar / before)).sqrt()
        result[f"ddim_sample_eta{eta}"] = (before.sqrt() * x_start + (1 - before - sigma ** 2).sqrt() * direction +
                                           goes_on * sigma * noise)
    return result


def likelihood(x, mean, log_variance):
    """Log-probability of x, one of 256 levels in [-1, 1], with the usual tanh form of the normal distribution."""
    cdf = lambda z: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
    scale = (-log_variance / 2).exp()
    above, below = cdf(scale * (x - mean + 1 / 255)), cdf(scale * (x - mean - 1 / 255))
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return inside.clamp_min(1e-12).log()


def loss(s, output, x_start, x_t, t, noise):
    mean, log_variance, _ = predict(s, output, x_t, t, False)
    true_mean = at(s["posterior_mean_coef1"], t, x_t) * x_start + at(s["posterior_mean_coef2"], t, x_t) * x_t
    true_log = at(s["posterior_log_variance_clipped"], t, x_t)
    kl = 0.5 * (log_variance - true_log - 1 + (true_log - log_variance).exp() +
                (true_mean - mean) ** 2 * (-log_variance).exp())
    nats = torch.where((t > 0).reshape(-1, 1, 1, 1), kl, -likelihood(x_start, mean, log_variance))
    mse, vb = ((noise - output.chunk(2, 1)[0]) ** 2).flatten(1).mean(1), nats.flatten(1).mean(1) / math.log(2)
    return {"mse": mse, "vb": vb, "loss": mse + vb}


def dit_diffusion(config, tensors, work):
    full = linear()
    kept, few = spaced(full, int(config["respacing"]))
    outputs = {"full.timestep_map": torch.arange(STEPS), "spaced.timestep_map": torch.tensor(kept)}
    outputs |= {f"full.{name}": value for name, value in full.items()}
    outputs |= {f"spaced.{name}": value for name, value in few.items()}
    given = {name: tensors[name].to(work) for name in ("step.model_output", "step.x", "step.noise", "loss.x_start",
                                                       "loss.noise")}
    output, t = given["step.model_output"], tensors["step.t"]
    outputs["step.t_seen_by_network"] = torch.tensor(kept)[t]
    for prefix, clip in (("step.", False), ("step.clip.", True)):
        values = step(few, output, given["step.x"], t, given["step.noise"], clip)
        outputs |= {prefix + name: value for name, value in values.items()}
    t, x_start, noise = tensors["loss.t"], given["loss.x_start"], given["loss.noise"]
    x_t = at(full["sqrt_alphas_cumprod"], t, noise) * x_start + at(full["sqrt_one_minus_alphas_cumprod"], t, noise) * noise
    outputs["loss.x_t"] = x_t
    return outputs | {f"loss.{name}": value for name, value in loss(full, output, x_start, x_t, t, noise).items()}


def inputs(config, random):
    shape = (config["batch"], config["channels"], config["size"], config["size"])
    last = int(config["respacing"]) - 1
    return {"step.model_output": random.normal(shape[0], 2 * shape[1], *shape[2:], scale=0.7),
            "step.x": random.normal(*shape), "step.noise": random.normal(*shape),
            "step.t": torch.tensor([0, 1, last // 2, last]),
            "loss.x_start": random.normal(*shape, scale=0.8).clamp(-1, 1),  # some at either end of the range
            "loss.noise": random.normal(*shape), "loss.t": torch.tensor([0, 1, 400, STEPS - 1])}
