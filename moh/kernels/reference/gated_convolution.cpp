#include "moh/kernels/reference/gated_convolution.h"

#include <vector>

#include "moh/kernels/reference/element.h"

namespace moh::kernels::reference {
namespace {

double get(const void* data, DType dtype, std::int64_t place) {
  return to_double(static_cast<const char*>(data) + place * size_of(dtype), dtype);
}
void put(void* data, DType dtype, std::int64_t place, double value) {
  from_double(static_cast<char*>(data) + place * size_of(dtype), dtype, value);
}

double normal_function(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double normal_density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * M_PI); }

// Calls visit(place, neighbour's token) for the places of token (y, x) that lie inside the map.
template <class Visit>
void for_each_place(const GatedConvolutionParams& p, std::int64_t y, std::int64_t x, const Visit& visit) {
  for (std::int64_t i = 0; i < 3; ++i) {
    for (std::int64_t j = 0; j < 3; ++j) {
      const std::int64_t row = y + i - 1, column = x + j - 1;
      if (row >= 0 && row < p.height && column >= 0 && column < p.width) visit(3 * i + j, row * p.width + column);
    }
  }
}

double convolved(const GatedConvolutionParams& p, std::int64_t b, std::int64_t n, std::int64_t c) {
  double z = p.bias[c];
  for_each_place(p, n / p.width, n % p.width, [&](std::int64_t k, std::int64_t other) {
    z += static_cast<double>(p.weight[k * p.channels + c]) *
         get(p.input, p.dtype, (b * p.map() + other) * 2 * p.channels + c);
  });
  return z;
}

template <class Visit>
void for_each_element(const GatedConvolutionParams& p, const Visit& visit) {
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t n = 0; n < p.map(); ++n) {
      for (std::int64_t c = 0; c < p.channels; ++c) visit(b, n, c);
    }
  }
}

}  // namespace

void gated_convolution_forward(const GatedConvolutionParams& p) {
  for_each_element(p, [&](std::int64_t b, std::int64_t n, std::int64_t c) {
    const std::int64_t token = b * p.map() + n;
    const double z = convolved(p, b, n, c), gate = get(p.input, p.dtype, (token * 2 + 1) * p.channels + c);
    put(p.out, p.dtype, token * p.channels + c, z * normal_function(z) * gate);
  });
}

void gated_convolution_backward(const GatedConvolutionParams& p) {
  std::vector<double> input(static_cast<std::size_t>(p.batch * p.map() * p.channels));
  std::vector<double> weight(static_cast<std::size_t>(9 * p.channels)), bias(static_cast<std::size_t>(p.channels));
  for_each_element(p, [&](std::int64_t b, std::int64_t n, std::int64_t c) {
    const std::int64_t token = b * p.map() + n;
    const double z = convolved(p, b, n, c), gate = get(p.input, p.dtype, (token * 2 + 1) * p.channels + c);
    const double grad = get(p.grad_out, p.dtype, token * p.channels + c);
    put(p.grad_input, p.dtype, (token * 2 + 1) * p.channels + c, grad * z * normal_function(z));
    const double grad_z = grad * gate * (normal_function(z) + z * normal_density(z));
    bias[c] += grad_z;
    for_each_place(p, n / p.width, n % p.width, [&](std::int64_t k, std::int64_t other) {
      weight[k * p.channels + c] += grad_z * get(p.input, p.dtype, (b * p.map() + other) * 2 * p.channels + c);
      input[(b * p.map() + other) * p.channels + c] += grad_z * p.weight[k * p.channels + c];
    });
  });
  for_each_element(p, [&](std::int64_t b, std::int64_t n, std::int64_t c) {
    const std::int64_t token = b * p.map() + n;
    put(p.grad_input, p.dtype, token * 2 * p.channels + c, input[token * p.channels + c]);
  });
  for (std::size_t i = 0; i < weight.size(); ++i) p.grad_weight[i] = static_cast<float>(weight[i]);
  for (std::size_t i = 0; i < bias.size(); ++i) p.grad_bias[i] = static_cast<float>(bias[i]);
}

}  // namespace moh::kernels::reference
