#include "moh/kernels/reference/aggregated_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "moh/kernels/reference/element.h"

namespace moh::kernels::reference {
namespace {

using Row = std::vector<double>;
constexpr double kSmallestNorm = 1e-12;

template <class Pointer>
std::int64_t place_of(const Strided<Pointer, 4>& tensor, std::int64_t b, std::int64_t n, std::int64_t h,
                      std::int64_t d) {
  return b * tensor.stride[0] + n * tensor.stride[1] + h * tensor.stride[2] + d * tensor.stride[3];
}

Row get(const AggregatedAttentionParams& p, const Strided<const void*, 4>& tensor, std::int64_t b, std::int64_t n,
        std::int64_t h) {
  Row row;
  for (std::int64_t d = 0; d < p.head_dim; ++d) {
    row.push_back(
        to_double(static_cast<const char*>(tensor.data) + place_of(tensor, b, n, h, d) * size_of(p.dtype), p.dtype));
  }
  return row;
}

void put(const AggregatedAttentionParams& p, const Strided<void*, 4>& tensor, std::int64_t b, std::int64_t n,
         std::int64_t h, const Row& row) {
  for (std::int64_t d = 0; d < p.head_dim; ++d) {
    from_double(static_cast<char*>(tensor.data) + place_of(tensor, b, n, h, d) * size_of(p.dtype), p.dtype, row[d]);
  }
}

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

void add(Row& to, double factor, const Row& from) {
  for (std::size_t d = 0; d < to.size(); ++d) to[d] += factor * from[d];
}

double norm_of(const Row& row) { return std::max(std::sqrt(dot(row, row)), kSmallestNorm); }

Row unit(Row row) {
  const double norm = norm_of(row);
  for (double& value : row) value /= norm;
  return row;
}

// The gradient of x from that of x / |x|.
Row through_norm(const Row& x, const Row& grad_unit) {
  const Row direction = unit(x);
  const double norm = norm_of(x), along = norm > kSmallestNorm ? dot(direction, grad_unit) : 0;
  Row grad(x.size());
  for (std::size_t d = 0; d < x.size(); ++d) grad[d] = (grad_unit[d] - direction[d] * along) / norm;
  return grad;
}

// One token and head: every key that it sees, with its weights.
struct Token {
  Row query, scaled, embedding;                // q^, u, e
  double factor = 0;                           // temperature * position_scale
  std::vector<std::int64_t> place, neighbour;  // places of the window inside the map, and their tokens
  std::vector<Row> tokens;                     // learned, by place
  Row local, learned, pool;                    // a_j, t_j (by index into `place`) and a_m
  Row head_out;
};

Token attend(const AggregatedAttentionParams& p, std::int64_t b, std::int64_t n, std::int64_t h) {
  const std::int64_t half = p.window / 2, places = p.places(), dim = p.head_dim;
  Token token;
  token.query = unit(get(p, p.query, b, n, h));
  token.factor = static_cast<double>(p.temperature[h]) * p.position_scale[n];
  for (std::int64_t d = 0; d < dim; ++d) {
    token.embedding.push_back(p.query_embedding[h * dim + d]);
    token.scaled.push_back((token.query[d] + token.embedding[d]) * token.factor);
  }
  for (std::int64_t j = 0; j < places; ++j) {
    Row learned;
    for (std::int64_t d = 0; d < dim; ++d) learned.push_back(p.tokens[(h * dim + d) * places + j]);
    token.tokens.push_back(learned);
    const std::int64_t y = n / p.width + j / p.window - half, x = n % p.width + j % p.window - half;
    if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;
    token.place.push_back(j);
    token.neighbour.push_back(y * p.width + x);
    token.local.push_back(dot(token.scaled, unit(get(p, p.key, b, token.neighbour.back(), h))) +
                          p.local_bias[h * places + j]);
    token.learned.push_back(dot(token.query, learned) + p.token_bias[h * places + j]);
  }
  for (std::int64_t m = 0; m < p.pooled; ++m) {
    token.pool.push_back(dot(token.scaled, unit(get(p, p.pool_key, b, m, h))) +
                         p.pool_bias[(h * p.map() + n) * p.pooled + m]);
  }
  double best = token.local[0], sum = 0;
  for (const Row* scores : {&token.local, &token.pool}) {
    for (const double score : *scores) best = std::max(best, score);
  }
  for (Row* scores : {&token.local, &token.pool}) {
    for (double& score : *scores) sum += score = std::exp(score - best);
  }
  for (Row* scores : {&token.local, &token.pool}) {
    for (double& score : *scores) score /= sum;
  }
  token.head_out.assign(dim, 0);
  for (std::size_t i = 0; i < token.place.size(); ++i) {
    add(token.head_out, token.local[i] + token.learned[i], get(p, p.value, b, token.neighbour[i], h));
  }
  for (std::int64_t m = 0; m < p.pooled; ++m) add(token.head_out, token.pool[m], get(p, p.pool_value, b, m, h));
  return token;
}

double gate_of(const AggregatedAttentionParams& p, std::int64_t b, std::int64_t n, std::int64_t h) {
  return p.selection.gates[(b * p.map() + n) * p.num_heads + h];
}

// Sums of one head's gradients over tokens.
struct Sums {
  Row embedding, local_bias, token_bias;
  std::vector<Row> tokens;
  double temperature = 0;
  std::vector<Row> key, value, pool_key, pool_value;  // of one batch entry; keys: of the normalised ones
};

void add_gradients(const AggregatedAttentionParams& p, std::int64_t b, std::int64_t n, std::int64_t h, Sums& sums,
                   std::vector<double>& pool_bias) {
  const double gate = gate_of(p, b, n, h);
  const Row zero(p.head_dim, 0.0);
  if (gate == 0) {
    p.grad_gates[(b * p.map() + n) * p.num_heads + h] = 0;
    put(p, p.grad_query, b, n, h, zero);
    return;
  }
  const Token token = attend(p, b, n, h);
  const Row grad = get(p, p.grad_out, b, n, h);
  p.grad_gates[(b * p.map() + n) * p.num_heads + h] = static_cast<float>(dot(grad, token.head_out));
  Row d_local, d_pool, grad_scaled = zero, grad_query = zero;
  double delta = 0;
  for (std::size_t i = 0; i < token.place.size(); ++i) {
    d_local.push_back(gate * dot(grad, get(p, p.value, b, token.neighbour[i], h)));
    delta += token.local[i] * d_local.back();
  }
  for (std::int64_t m = 0; m < p.pooled; ++m) {
    d_pool.push_back(gate * dot(grad, get(p, p.pool_value, b, m, h)));
    delta += token.pool[m] * d_pool.back();
  }
  for (std::size_t i = 0; i < token.place.size(); ++i) {
    const std::int64_t j = token.place[i], neighbour = token.neighbour[i];
    const double ds = token.local[i] * (d_local[i] - delta);
    sums.local_bias[j] += ds;
    sums.token_bias[j] += d_local[i];
    add(sums.tokens[j], d_local[i], token.query);
    add(sums.key[neighbour], ds, token.scaled);
    add(sums.value[neighbour], gate * (token.local[i] + token.learned[i]), grad);
    add(grad_scaled, ds, unit(get(p, p.key, b, neighbour, h)));
    add(grad_query, d_local[i], token.tokens[j]);
  }
  for (std::int64_t m = 0; m < p.pooled; ++m) {
    const double ds = token.pool[m] * (d_pool[m] - delta);
    pool_bias[(h * p.map() + n) * p.pooled + m] += ds;
    add(sums.pool_key[m], ds, token.scaled);
    add(sums.pool_value[m], gate * token.pool[m], grad);
    add(grad_scaled, ds, unit(get(p, p.pool_key, b, m, h)));
  }
  for (std::int64_t d = 0; d < p.head_dim; ++d) {
    sums.temperature += p.position_scale[n] * grad_scaled[d] * (token.query[d] + token.embedding[d]);
  }
  add(sums.embedding, token.factor, grad_scaled);
  add(grad_query, token.factor, grad_scaled);
  put(p, p.grad_query, b, n, h, through_norm(get(p, p.query, b, n, h), grad_query));
}

}  // namespace

void aggregated_attention_forward(const AggregatedAttentionParams& p) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t n = 0; n < p.map(); ++n) {
      for (std::int64_t h = 0; h < p.num_heads; ++h) {
        Row out(p.head_dim, 0.0);
        const double gate = gate_of(p, b, n, h);
        if (gate != 0) add(out, gate, attend(p, b, n, h).head_out);
        put(p, p.out, b, n, h, out);
      }
    }
  }
}

void aggregated_attention_backward(const AggregatedAttentionParams& p) {
  const std::int64_t places = p.places(), dim = p.head_dim;
  const Row zero(dim, 0.0);
  std::vector<double> pool_bias(p.num_heads * p.map() * p.pooled, 0.0);
  for (std::int64_t h = 0; h < p.num_heads; ++h) {
    Sums sums;
    sums.embedding = zero;
    sums.local_bias.assign(places, 0);
    sums.token_bias.assign(places, 0);
    sums.tokens.assign(places, zero);
    for (std::int64_t b = 0; b < p.batch; ++b) {
      sums.key.assign(p.map(), zero);
      sums.value.assign(p.map(), zero);
      sums.pool_key.assign(p.pooled, zero);
      sums.pool_value.assign(p.pooled, zero);
      for (std::int64_t n = 0; n < p.map(); ++n) add_gradients(p, b, n, h, sums, pool_bias);
      for (std::int64_t n = 0; n < p.map(); ++n) {
        put(p, p.grad_key, b, n, h, through_norm(get(p, p.key, b, n, h), sums.key[n]));
        put(p, p.grad_value, b, n, h, sums.value[n]);
      }
      for (std::int64_t m = 0; m < p.pooled; ++m) {
        put(p, p.grad_pool_key, b, m, h, through_norm(get(p, p.pool_key, b, m, h), sums.pool_key[m]));
        put(p, p.grad_pool_value, b, m, h, sums.pool_value[m]);
      }
    }
    p.grad_temperature[h] = static_cast<float>(sums.temperature);
    for (std::int64_t d = 0; d < dim; ++d) p.grad_query_embedding[h * dim + d] = static_cast<float>(sums.embedding[d]);
    for (std::int64_t j = 0; j < places; ++j) {
      p.grad_local_bias[h * places + j] = static_cast<float>(sums.local_bias[j]);
      p.grad_token_bias[h * places + j] = static_cast<float>(sums.token_bias[j]);
      for (std::int64_t d = 0; d < dim; ++d) {
        p.grad_tokens[(h * dim + d) * places + j] = static_cast<float>(sums.tokens[j][d]);
      }
    }
  }
  for (std::size_t i = 0; i < pool_bias.size(); ++i) p.grad_pool_bias[i] = static_cast<float>(pool_bias[i]);
}

}  // namespace moh::kernels::reference
