#include "moh/kernels/reference/head_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "moh/kernels/reference/element.h"

namespace moh::kernels::reference {
namespace {

double get(const Input4& tensor, DType dtype, std::int64_t i, std::int64_t j, std::int64_t k, std::int64_t l) {
  const std::int64_t place = i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2] + l * tensor.stride[3];
  return to_double(static_cast<const char*>(tensor.data) + place * size_of(dtype), dtype);
}

void put(const Output4& tensor, DType dtype, std::int64_t i, std::int64_t j, std::int64_t k, std::int64_t l,
         double value) {
  const std::int64_t place = i * tensor.stride[0] + j * tensor.stride[1] + k * tensor.stride[2] + l * tensor.stride[3];
  from_double(static_cast<char*>(tensor.data) + place * size_of(dtype), dtype, value);
}

double gate_of(const HeadAttentionParams& p, std::int64_t b, std::int64_t t, std::int64_t h) {
  return p.gates[(b * p.queries + t) * p.num_heads + h];
}

// softmax_s(scale * <q, k_s> + bias), zero for hidden keys; all zero if every key is hidden. lse: log of the sum.
std::vector<double> probabilities(const HeadAttentionParams& p, std::int64_t b, std::int64_t t, std::int64_t h,
                                  double* lse) {
  const std::int64_t kv_head = h / (p.num_heads / p.num_kv_heads);
  std::vector<double> score(p.keys, -std::numeric_limits<double>::infinity());
  double best = -std::numeric_limits<double>::infinity();
  for (std::int64_t s = 0; s < p.keys; ++s) {
    if (p.causal && s > t + p.keys - p.queries) continue;
    double dot = 0;
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      dot += get(p.query, p.dtype, b, t, h, d) * get(p.key, p.dtype, b, s, kv_head, d);
    }
    score[s] = static_cast<double>(p.scale) * dot;
    if (p.bias.data != nullptr) score[s] += get(p.bias, p.dtype, b, h, t, s);
    best = std::max(best, score[s]);
  }
  *lse = best;
  if (std::isinf(best)) return std::vector<double>(p.keys, 0.0);
  double sum = 0;
  for (double& value : score) sum += value = std::exp(value - best);
  for (double& value : score) value /= sum;
  *lse = best + std::log(sum);
  return score;
}

}  // namespace

void head_attention_forward(const HeadAttentionParams& p) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t t = 0; t < p.queries; ++t) {
      for (std::int64_t h = 0; h < p.num_heads; ++h) {
        const double gate = gate_of(p, b, t, h);
        const std::int64_t kv_head = h / (p.num_heads / p.num_kv_heads);
        double lse = -std::numeric_limits<double>::infinity();
        std::vector<double> out(p.head_dim, 0.0);
        if (gate != 0) {
          const auto weight = probabilities(p, b, t, h, &lse);
          for (std::int64_t s = 0; s < p.keys; ++s) {
            if (weight[s] == 0) continue;
            for (std::int64_t d = 0; d < p.head_dim; ++d) out[d] += weight[s] * get(p.value, p.dtype, b, s, kv_head, d);
          }
        }
        for (std::int64_t d = 0; d < p.head_dim; ++d) put(p.out, p.dtype, b, t, h, d, gate * out[d]);
        p.lse[(b * p.num_heads + h) * p.queries + t] = static_cast<float>(lse);
      }
    }
  }
}

void head_attention_backward(const HeadAttentionParams& p) {
  const std::int64_t group = p.num_heads / p.num_kv_heads, dim = p.head_dim;
  std::vector<double> grad_query(dim), grad_key(p.keys * dim), grad_value(p.keys * dim);
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
      std::fill(grad_key.begin(), grad_key.end(), 0.0);
      std::fill(grad_value.begin(), grad_value.end(), 0.0);
      for (std::int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (std::int64_t t = 0; t < p.queries; ++t) {
          const double gate = gate_of(p, b, t, h);
          float* grad_bias =
              p.grad_bias == nullptr ? nullptr : p.grad_bias + ((b * p.num_heads + h) * p.queries + t) * p.keys;
          if (grad_bias != nullptr) std::fill(grad_bias, grad_bias + p.keys, 0.0F);
          std::fill(grad_query.begin(), grad_query.end(), 0.0);
          double grad_gate = 0;
          if (gate != 0) {
            double lse;
            const auto weight = probabilities(p, b, t, h, &lse);
            // grad_weight[s] = gate * <grad_out, v_s>; the mean of it over the weights is gate * grad_gate.
            std::vector<double> grad_weight(p.keys, 0.0);
            double mean = 0;
            for (std::int64_t s = 0; s < p.keys; ++s) {
              if (weight[s] == 0) continue;
              double dot = 0;
              for (std::int64_t d = 0; d < dim; ++d) {
                dot += get(p.grad_out, p.dtype, b, t, h, d) * get(p.value, p.dtype, b, s, kv_head, d);
              }
              grad_gate += weight[s] * dot;
              grad_weight[s] = gate * dot;
              mean += weight[s] * grad_weight[s];
            }
            for (std::int64_t s = 0; s < p.keys; ++s) {
              if (weight[s] == 0) continue;
              const double grad_score = weight[s] * (grad_weight[s] - mean);
              if (grad_bias != nullptr) grad_bias[s] = static_cast<float>(grad_score);
              for (std::int64_t d = 0; d < dim; ++d) {
                grad_query[d] += p.scale * grad_score * get(p.key, p.dtype, b, s, kv_head, d);
                grad_key[s * dim + d] += p.scale * grad_score * get(p.query, p.dtype, b, t, h, d);
                grad_value[s * dim + d] += weight[s] * gate * get(p.grad_out, p.dtype, b, t, h, d);
              }
            }
          }
          for (std::int64_t d = 0; d < dim; ++d) put(p.grad_query, p.dtype, b, t, h, d, grad_query[d]);
          if (p.grad_gates != nullptr)
            p.grad_gates[(b * p.queries + t) * p.num_heads + h] = static_cast<float>(grad_gate);
        }
      }
      for (std::int64_t s = 0; s < p.keys; ++s) {
        for (std::int64_t d = 0; d < dim; ++d) {
          put(p.grad_key, p.dtype, b, s, kv_head, d, grad_key[s * dim + d]);
          put(p.grad_value, p.dtype, b, s, kv_head, d, grad_value[s * dim + d]);
        }
      }
    }
  }
}

}  // namespace moh::kernels::reference
