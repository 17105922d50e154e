// moh bench attention: the operator alone against torch's fused dense attention of the same shape (torch_sdpa) or
// against what the authors' code does, every head computed and multiplied by its gate (authors_form).
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <set>

#include "bench/common.h"
#include "bench/reference.h"
#include "bench/sdpa.h"
#include "moh/ops/head_attention.h"

namespace moh::bench {
namespace {

using at::Tensor;

struct Inputs {
  Tensor query, key, value, gates, grad;  // [B, T, H, D]; gates [B, T, H]
  void set_requires_grad(bool value_of) {
    for (Tensor* tensor : {&query, &key, &value, &gates}) tensor->set_requires_grad(value_of);
  }
  void clear_gradients() {
    for (Tensor* tensor : {&query, &key, &value, &gates}) tensor->mutable_grad() = Tensor();
  }
};

// Drawn on the CPU whatever the device: the same numbers everywhere.
Inputs make_inputs(const Case& c, const Options& options) {
  const at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const auto random = [&](std::int64_t heads) {
    return at::empty({c.batch, c.tokens, heads, c.head_dim}, at::TensorOptions(at::kFloat))
        .normal_(0, 1, generator)
        .to(type_of(c.dtype))
        .to(options.device);
  };
  Inputs in;
  in.query = random(c.heads);
  in.key = random(c.kv_heads);
  in.value = random(c.kv_heads);
  in.grad = random(c.heads);
  in.gates = random_gates(c, c.tokens, generator).to(options.device);
  return in;
}

Tensor moh_forward(const Case& c, const Inputs& in) {
  return ops::head_attention(in.query, in.key, in.value, in.gates, std::nullopt, c.is_causal());
}

// Outputs, and gradients where they will be timed, of the first and the last KV head and their query heads.
double check_moh(const Case& c, Inputs& in) {
  const double tolerance = tolerance_of(type_of(c.dtype));
  Tensor out;
  {
    const c10::AutoGradMode mode(c.has_backward());
    in.set_requires_grad(c.has_backward());
    out = moh_forward(c, in);
    if (c.has_backward()) out.backward(in.grad);
  }
  const std::int64_t group = c.heads / c.kv_heads;
  double worst = 0;
  const c10::NoGradGuard no_grad;
  for (const std::int64_t kv_head : std::set<std::int64_t>{0, c.kv_heads - 1}) {
    const auto expected = attention_reference(in.query, in.key, in.value, in.gates, c.is_causal(),
                                              c.has_backward() ? in.grad : Tensor(), kv_head);
    const auto compare = [&](const Tensor& actual, const Tensor& wanted, std::int64_t count, const char* what) {
      worst = std::max(worst, check_close(heads_of(actual, kv_head * count, count), wanted, tolerance, what));
    };
    compare(out, expected.out, group, "moh's output");
    if (!c.has_backward()) continue;
    compare(in.query.grad(), expected.grad_query, group, "moh's gradient of query");
    compare(in.key.grad(), expected.grad_key, 1, "moh's gradient of key");
    compare(in.value.grad(), expected.grad_value, 1, "moh's gradient of value");
  }
  in.clear_gradients();
  return worst;
}

// One layout of the rival's tensors, [B, H, T, D].
struct Rival {
  std::string name;
  Inputs in;
  bool gqa = false, authors = false, causal = true;
  std::string kernel = {};  // "": torch's choice; its backward pass follows the forward one

  Tensor forward() const {
    const SdpaChoice choice(kernel);
    Tensor out = at::scaled_dot_product_attention(in.query, in.key, in.value, {}, 0.0, causal, {}, gqa);
    return authors ? out * in.gates : out;
  }
};

std::vector<Rival> make_rivals(const Case& c, const Inputs& in) {
  const auto heads_first = [](const Tensor& tensor) { return tensor.detach().transpose(1, 2); };
  const bool authors = c.rival == "authors_form";
  const std::int64_t group = c.heads / c.kv_heads;
  Inputs strided{heads_first(in.query), heads_first(in.key), heads_first(in.value),
                 in.gates.detach().transpose(1, 2).unsqueeze(-1).to(in.query.scalar_type()), heads_first(in.grad)};
  Inputs contiguous{strided.query.contiguous(), strided.key.contiguous(), strided.value.contiguous(),
                    strided.gates.contiguous(), strided.grad.contiguous()};
  std::vector<Rival> rivals = {{"[B, H, T, D] contiguous", contiguous, group > 1, authors, c.is_causal()},
                               {"[B, T, H, D] transposed", strided, group > 1, authors, c.is_causal()}};
  if (group > 1 && !c.is_causal()) {  // the query heads of a KV head are queries of one head
    const auto rows = [&](const Tensor& tensor) {
      return tensor.reshape({c.batch, c.kv_heads, group * c.tokens, tensor.size(3)});
    };
    rivals.push_back(
        {"group as queries",
         {rows(contiguous.query), contiguous.key, contiguous.value, rows(contiguous.gates), rows(contiguous.grad)},
         false,
         authors,
         false});
  }
  std::vector<Rival> all;
  for (const std::string& kernel : sdpa_kernels(in.query.device())) {
    for (const Rival& rival : rivals) {
      all.push_back(rival);
      all.back().kernel = kernel;
      if (!kernel.empty()) all.back().name = kernel + ", " + rival.name;
    }
  }
  for (Rival& rival : all) rival.in.set_requires_grad(c.has_backward());
  return all;
}

// Takes out the kernels that do not do this case at all; torch's own choice stays in.
std::string remove_refused(std::vector<Rival>& rivals) {
  std::string refused;
  std::erase_if(rivals, [&](const Rival& rival) {
    if (rival.kernel.empty()) return false;
    try {
      rival.forward();
      return false;
    } catch (const c10::Error&) {
      refused += (refused.empty() ? "" : "; ") + rival.name;
      return true;
    }
  });
  return refused;
}

// The rival must compute what it is timed for: dense attention, or the same gated.
void check_rival(const Case& c, const Inputs& in, const Rival& rival) {
  const c10::NoGradGuard no_grad;
  const Tensor gates = rival.authors ? in.gates.detach() : at::ones_like(in.gates.detach());
  const auto expected = attention_reference(in.query, in.key, in.value, gates, c.is_causal(), Tensor(), c.kv_heads - 1);
  const Tensor out = rival.forward().reshape({c.batch, c.heads, c.tokens, c.head_dim}).transpose(1, 2);
  const std::int64_t group = c.heads / c.kv_heads;
  check_close(heads_of(out, c.heads - group, group), expected.out, tolerance_of(type_of(c.dtype)),
              c.rival + "'s output");
}

// The timed part of one side; `forward` returns the output, `in` has the leaves and the gradient of the output.
template <class F>
std::function<void()> side(const Case& c, Inputs& in, const F& forward) {
  if (c.direction == "forward") return [forward] { forward(); };
  if (c.direction == "backward") {
    return [&in, out = forward()] {
      out.backward(in.grad, /*retain_graph=*/true);
      in.clear_gradients();
    };
  }
  return [&in, forward] {
    forward().backward(in.grad);
    in.clear_gradients();
  };
}

std::vector<Work> work_of(const Case& c, const Tensor& gates) {
  const AttentionWork work = attention_work(gates, c.tokens, c.kv_heads, c.head_dim, c.is_causal(),
                                            static_cast<double>(at::elementSize(type_of(c.dtype))));
  std::vector<Work> steps;
  if (c.direction != "backward") steps.push_back(attention_forward(work));
  if (c.has_backward()) steps.push_back(attention_backward(work));
  return steps;
}

}  // namespace

Row run_attention(const Case& c, const Options& options) {
  Inputs in = make_inputs(c, options);
  Measured measured;
  measured.max_abs_error = check_moh(c, in);
  std::vector<Rival> rivals = make_rivals(c, in);
  const std::string refused = remove_refused(rivals);
  for (const Rival& rival : rivals) check_rival(c, in, rival);

  const c10::AutoGradMode mode(c.has_backward());
  std::vector<Form> forms;
  for (Rival& rival : rivals) {
    forms.push_back({rival.name, until_done(side(c, rival.in, [&rival] { return rival.forward(); }), options.device)});
  }
  const Form& rival = fastest(forms);
  measured.rival_form = rival.name;
  measured.timing = time_pair(until_done(side(c, in, [&] { return moh_forward(c, in); }), options.device), rival.run,
                              options.seconds, options.pairs);

  const c10::NoGradGuard no_grad;
  measured.activated = active_share(in.gates);
  measured.work = work_of(c, in.gates);
  measured.rival_work = work_of(c, at::ones_like(in.gates));
  Row row = make_row("attention", c, options, measured);
  if (!refused.empty()) row["rival_refused"] = refused;
  return row;
}

}  // namespace moh::bench
