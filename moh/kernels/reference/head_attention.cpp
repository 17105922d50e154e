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

// Key or value s of a sequence.
double get_key(const HeadAttentionParams& p, const Input4& tensor, const Sequence& sequence, std::int64_t s,
               std::int64_t kv_head, std::int64_t d) {
  if (sequence.pages == nullptr) return get(tensor, p.dtype, sequence.batch, sequence.first_key + s, kv_head, d);
  return get(tensor, p.dtype, sequence.pages[s / p.page_size], s % p.page_size, kv_head, d);
}

double get_query(const HeadAttentionParams& p, const Input4& tensor, const Sequence& sequence, std::int64_t t,
                 std::int64_t h, std::int64_t d) {
  return get(tensor, p.dtype, sequence.batch, sequence.first_query + t, h, d);
}

// Of gates, lse and their gradients.
std::int64_t place_of(const HeadAttentionParams& p, const Sequence& sequence, std::int64_t t, std::int64_t h) {
  return (sequence.batch * p.rows_per_batch + sequence.first_query + t) * p.num_heads + h;
}

// Of one query of one head.
struct Row {
  std::vector<double>
      weight;                 // softmax over the visible keys and the sink; zero for hidden keys, and if all are hidden
  std::vector<double> slope;  // derivative of the soft cap
  double lse = -std::numeric_limits<double>::infinity();
};

Row attend(const HeadAttentionParams& p, const Sequence& sequence, std::int64_t t, std::int64_t h) {
  const AttentionVariant& variant = p.variant;
  const std::int64_t kv_head = h / (p.num_heads / p.num_kv_heads);
  const std::int64_t first = first_visible_key(variant, sequence, t), end = visible_keys(variant, sequence, t);
  Row row = {std::vector<double>(sequence.keys, 0.0), std::vector<double>(sequence.keys, 1.0)};
  if (first >= end) return row;
  std::vector<double> score(sequence.keys, -std::numeric_limits<double>::infinity());
  double best = -std::numeric_limits<double>::infinity();
  for (std::int64_t s = first; s < end; ++s) {
    double dot = 0;
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      dot += get_query(p, p.query, sequence, t, h, d) * get_key(p, p.key, sequence, s, kv_head, d);
    }
    score[s] = static_cast<double>(p.scale) * dot;
    if (variant.soft_cap > 0) {
      const double cap = variant.soft_cap, tanh = std::tanh(score[s] / cap);
      score[s] = cap * tanh;
      row.slope[s] = 1 - tanh * tanh;
    }
    if (variant.bias.data != nullptr) {
      score[s] += get(variant.bias, variant.bias_dtype, sequence.batch, h, sequence.first_query + t, s);
    }
    best = std::max(best, score[s]);
  }
  const bool sees_none = std::isinf(best) && best < 0;
  if (variant.sink != nullptr) best = std::max(best, static_cast<double>(variant.sink[h]));
  if (std::isinf(best) && best < 0) return row;
  double sum = variant.sink != nullptr ? std::exp(variant.sink[h] - best) : 0;
  for (std::int64_t s = first; s < end; ++s) sum += std::exp(score[s] - best);
  row.lse = best + std::log(sum);
  for (std::int64_t s = first; s < end && !sees_none; ++s) row.weight[s] = std::exp(score[s] - row.lse);
  return row;
}

}  // namespace

void head_attention_forward(const HeadAttentionParams& p) {
  for (std::int64_t n = 0; n < p.num_sequences; ++n) {
    const Sequence& sequence = p.sequences[n];
    for (std::int64_t t = 0; t < sequence.queries; ++t) {
      for (std::int64_t h = 0; h < p.num_heads; ++h) {
        const std::int64_t place = place_of(p, sequence, t, h), kv_head = h / (p.num_heads / p.num_kv_heads);
        const double gate = p.selection.gates[place];
        std::vector<double> out(p.head_dim, 0.0);
        p.lse[place] = -std::numeric_limits<float>::infinity();
        if (gate != 0) {
          const Row row = attend(p, sequence, t, h);
          for (std::int64_t s = 0; s < sequence.keys; ++s) {
            if (row.weight[s] == 0) continue;
            for (std::int64_t d = 0; d < p.head_dim; ++d) {
              out[d] += row.weight[s] * get_key(p, p.value, sequence, s, kv_head, d);
            }
          }
          p.lse[place] = static_cast<float>(row.lse);
        }
        for (std::int64_t d = 0; d < p.head_dim; ++d) {
          put(p.out, p.dtype, sequence.batch, sequence.first_query + t, h, d, gate * out[d]);
        }
      }
    }
  }
}

void head_attention_backward(const HeadAttentionParams& p) {
  const std::int64_t group = p.num_heads / p.num_kv_heads, dim = p.head_dim;
  for (std::int64_t n = 0; n < p.num_sequences; ++n) {
    const Sequence& sequence = p.sequences[n];
    const std::int64_t keys = sequence.keys;
    std::vector<double> grad_query(dim), grad_key(keys * dim), grad_value(keys * dim);
    for (std::int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
      std::fill(grad_key.begin(), grad_key.end(), 0.0);
      std::fill(grad_value.begin(), grad_value.end(), 0.0);
      for (std::int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (std::int64_t t = 0; t < sequence.queries; ++t) {
          const std::int64_t place = place_of(p, sequence, t, h), query = sequence.first_query + t;
          const double gate = p.selection.gates[place];
          float* const grad_bias = p.grad_bias.data == nullptr
                                       ? nullptr
                                       : p.grad_bias.data + sequence.batch * p.grad_bias.stride[0] +
                                             h * p.grad_bias.stride[1] + query * p.grad_bias.stride[2];
          if (grad_bias != nullptr) std::fill(grad_bias, grad_bias + keys, 0.0F);
          std::fill(grad_query.begin(), grad_query.end(), 0.0);
          double grad_gate = 0;
          if (gate != 0) {
            const Row row = attend(p, sequence, t, h);
            // grad_weight[s] = gate * <grad_out, v_s>; the sum of it over the weights is gate * grad_gate.
            std::vector<double> grad_weight(keys, 0.0);
            for (std::int64_t s = 0; s < keys; ++s) {
              if (row.weight[s] == 0) continue;
              double dot = 0;
              for (std::int64_t d = 0; d < dim; ++d) {
                dot += get_query(p, p.grad_out, sequence, t, h, d) * get_key(p, p.value, sequence, s, kv_head, d);
              }
              grad_gate += row.weight[s] * dot;
              grad_weight[s] = gate * dot;
            }
            for (std::int64_t s = 0; s < keys; ++s) {
              if (row.weight[s] == 0) continue;
              const double grad_score = row.weight[s] * (grad_weight[s] - gate * grad_gate);
              if (grad_bias != nullptr) grad_bias[s] = static_cast<float>(grad_score);
              const double grad_dot = p.scale * row.slope[s] * grad_score;
              for (std::int64_t d = 0; d < dim; ++d) {
                grad_query[d] += grad_dot * get_key(p, p.key, sequence, s, kv_head, d);
                grad_key[s * dim + d] += grad_dot * get_query(p, p.query, sequence, t, h, d);
                grad_value[s * dim + d] += row.weight[s] * gate * get_query(p, p.grad_out, sequence, t, h, d);
              }
            }
          }
          for (std::int64_t d = 0; d < dim; ++d) {
            put(p.grad_query, p.dtype, sequence.batch, query, h, d, grad_query[d]);
          }
          if (p.grad_gates != nullptr) p.grad_gates[place] = static_cast<float>(grad_gate);
        }
      }
      for (std::int64_t s = 0; s < keys; ++s) {
        for (std::int64_t d = 0; d < dim; ++d) {
          put(p.grad_key, p.dtype, sequence.batch, sequence.first_key + s, kv_head, d, grad_key[s * dim + d]);
          put(p.grad_value, p.dtype, sequence.batch, sequence.first_key + s, kv_head, d, grad_value[s * dim + d]);
        }
      }
    }
  }
}

}  // namespace moh::kernels::reference
