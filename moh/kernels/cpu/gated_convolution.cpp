// Fused gated convolution on CPUs (formula: moh/kernels/gated_convolution.h). A task is some rows of one picture's map.
// Vectors run over channels, which lie side by side; four neighbouring pixels share each weight that is loaded.
//
// Backward, with G = grad_out: d b = G z Phi(z), dz = G b (Phi(z) + z Phi'(z)), z computed anew;
//   d a[n] = sum of weight[i, j] dz over the places that saw n: the same convolution with the places in reverse;
//   d weight[i, j] = sum over n of dz[n] a[neighbour], d bias = sum of dz.
// The sums are kept per task and added in order: the same bits for any number of threads.
#include "moh/kernels/gated_convolution.h"

#include "moh/kernels/cpu/gelu.h"
#include "moh/kernels/cpu/product.h"
#include "moh/kernels/cpu/row_lists.h"

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int kPixels = 4;                           // neighbours in a row that are computed together
constexpr int64_t kChannelBlock = 512;               // of a pass over a map row: its weights fit into the L1 cache
constexpr int64_t kRowsAtOnce = 8;                   // map rows of a task
constexpr int64_t kPlaces = 9, kSums = kPlaces + 1;  // of the gradients: weights and bias

// `count` elements, at most a vector; zeros beyond.
template <class T>
Vec load_some(const T* from, int64_t count) {
  if (count >= kWidth) return widen(from);
  float values[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = widen_one(from[i]);
  return load(values);
}

inline void narrow(float* to, Vec value) { store(to, value); }
inline void narrow(uint16_t* to, Vec value) {
  const BitVec bits = (BitVec)value;
  const BitVec rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16, nan = (bits >> 16) | 0x40U;
  const BitVec result = (BitVec)((bits & 0x7fffffffU) > 0x7f800000U) ? nan : rounded;
  *reinterpret_cast<HalfVec*>(to) = __builtin_convertvector(result, HalfVec);
}
inline void narrow(_Float16* to, Vec value) {
  for (int i = 0; i < kWidth; ++i) to[i] = static_cast<_Float16>(value[i]);
}

template <class T>
void store_some(T* to, Vec value, int64_t count) {
  if (count >= kWidth) return narrow(to, value);
  T values[kWidth];
  narrow(values, value);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

// Weights and bias in rows of whole vectors.
struct Table {
  int64_t padded;
  Buffer<float> places;  // [10, padded]: the bias last
  Table(const GatedConvolutionParams& p, bool reversed) : padded(round_up(p.channels, kWidth)), places(kSums * padded) {
    memset(places.data, 0, static_cast<size_t>(kSums * padded) * sizeof(float));
    for (int64_t k = 0; k < kPlaces; ++k) {
      const float* const from = p.weight + (reversed ? kPlaces - 1 - k : k) * p.channels;
      memcpy(&places[k * padded], from, static_cast<size_t>(p.channels) * sizeof(float));
    }
    if (!reversed) memcpy(&places[kPlaces * padded], p.bias, static_cast<size_t>(p.channels) * sizeof(float));
  }
};

// One picture's map: row-major tokens, `stride` elements apart.
template <class T>
struct Map {
  const T* data;
  int64_t stride, height, width;
  // The pixels left of, at and right of x .. x + pixels - 1 in a row of the map; zeros outside.
  template <int pixels>
  void neighbours(int64_t row, int64_t x, int64_t channel, int64_t count, Vec (&values)[pixels + 2]) const {
    const T* const line = data + row * width * stride + channel;
#pragma GCC unroll 8
    for (int i = 0; i < pixels + 2; ++i) {
      const int64_t column = x - 1 + i;
      values[i] = column < 0 || column >= width ? Vec{} : load_some(line + column * stride, count);
    }
  }
};

// The convolution at `pixels` neighbours of one map row.
template <int pixels, class T>
inline void convolve(const Map<T>& map, const Table& table, int64_t y, int64_t x, int64_t channel, int64_t count,
                     Vec (&z)[pixels]) {
  const Vec bias = load(&table.places[kPlaces * table.padded + channel]);
#pragma GCC unroll 4
  for (int j = 0; j < pixels; ++j) z[j] = bias;
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t row = y + i - 1;
    if (row < 0 || row >= map.height) continue;
    Vec values[pixels + 2];
    map.template neighbours<pixels>(row, x, channel, count, values);
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const Vec weight = load(&table.places[(3 * i + j) * table.padded + channel]);
#pragma GCC unroll 4
      for (int k = 0; k < pixels; ++k) z[k] += values[k + j] * weight;
    }
  }
}

// Calls body.at<pixels>(y, x, channel, count) for everything in rows begin .. end.
template <class Body>
inline void for_each_tile(const GatedConvolutionParams& p, int64_t begin, int64_t end, const Body& body) {
  for (int64_t y = begin; y < end; ++y) {
    for (int64_t block = 0; block < p.channels; block += kChannelBlock) {
      const int64_t stop = min_of(p.channels, block + kChannelBlock);
      int64_t x = 0;
      for (; x + kPixels <= p.width; x += kPixels) {
        for (int64_t c = block; c < stop; c += kWidth) {
          body.template at<kPixels>(y, x, c, min_of(kWidth, p.channels - c));
        }
      }
      for (; x < p.width; ++x) {
        for (int64_t c = block; c < stop; c += kWidth) body.template at<1>(y, x, c, min_of(kWidth, p.channels - c));
      }
    }
  }
}

template <class T>
struct Forward {
  const GatedConvolutionParams& p;
  const Table& table;
  Map<T> map;
  T* out;
  template <int pixels>
  void at(int64_t y, int64_t x, int64_t channel, int64_t count) const {
    Vec z[pixels];
    convolve<pixels>(map, table, y, x, channel, count, z);
    for (int k = 0; k < pixels; ++k) {
      const int64_t n = y * p.width + x + k;
      const Vec gate = load_some(map.data + n * map.stride + p.channels + channel, count);
      store_some(out + n * p.channels + channel, z[k] * normal_of(z[k]).function * gate, count);
    }
  }
};

// dz; and of rows that are the task's own, the gradient of b and the task's part of the sums.
template <class T, bool own>
struct BackwardGates {
  const GatedConvolutionParams& p;
  const Table& table;
  Map<T> map;
  const T* grad_out;
  T* grad_input;
  float *grad_z, *sums;  // [tokens from `first` on, padded], [10, padded]
  int64_t first;
  template <int pixels>
  void at(int64_t y, int64_t x, int64_t channel, int64_t count) const {
    Vec z[pixels];
    convolve<pixels>(map, table, y, x, channel, count, z);
    Vec bias = load(sums + kPlaces * table.padded + channel);
    for (int k = 0; k < pixels; ++k) {
      const int64_t n = y * p.width + x + k;
      const Vec gate = load_some(map.data + n * map.stride + p.channels + channel, count);
      const Vec grad = load_some(grad_out + n * p.channels + channel, count);
      const Normal normal = normal_of(z[k]);
      if (own) store_some(grad_input + n * map.stride + p.channels + channel, grad * z[k] * normal.function, count);
      z[k] = grad * gate * (normal.function + z[k] * normal.density);
      store(grad_z + (n - first) * table.padded + channel, z[k]);
      bias += z[k];
    }
    if (!own) return;
    store(sums + kPlaces * table.padded + channel, bias);
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t row = y + i - 1;
      if (row < 0 || row >= map.height) continue;
      Vec values[pixels + 2];
      map.template neighbours<pixels>(row, x, channel, count, values);
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        float* const place = sums + (3 * i + j) * table.padded + channel;
        Vec sum = load(place);
#pragma GCC unroll 4
        for (int k = 0; k < pixels; ++k) sum += z[k] * values[k + j];
        store(place, sum);
      }
    }
  }
};

template <class T>
struct BackwardInput {
  const GatedConvolutionParams& p;
  const Table& reversed;
  Map<float> grad_z;  // from map row `first` on
  T* grad_input;
  int64_t first;
  template <int pixels>
  void at(int64_t y, int64_t x, int64_t channel, int64_t count) const {
    Vec sum[pixels];
    convolve<pixels>(grad_z, reversed, y - first, x, channel, kWidth, sum);
    for (int k = 0; k < pixels; ++k) {
      store_some(grad_input + (y * p.width + x + k) * 2 * p.channels + channel, sum[k], count);
    }
  }
};

template <class F>
void for_each_task(const GatedConvolutionParams& p, const F& run) {
  const int64_t per_picture = (p.height + kRowsAtOnce - 1) / kRowsAtOnce;
  for_each_item(p.parallel, p.batch * per_picture, [&](int64_t task) {
    const int64_t b = task / per_picture, begin = task % per_picture * kRowsAtOnce;
    run(task, b, begin, min_of(begin + kRowsAtOnce, p.height));
  });
}

template <class T>
Map<T> input_of(const GatedConvolutionParams& p, int64_t b) {
  return {static_cast<const T*>(p.input) + b * p.map() * 2 * p.channels, 2 * p.channels, p.height, p.width};
}

template <class T>
void forward(const GatedConvolutionParams& p) {
  const Table table(p, /*reversed=*/false);
  for_each_task(p, [&](int64_t, int64_t b, int64_t begin, int64_t end) {
    T* const out = static_cast<T*>(p.out) + b * p.map() * p.channels;
    for_each_tile(p, begin, end, Forward<T>{p, table, input_of<T>(p, b), out});
  });
}

template <class T>
void backward(const GatedConvolutionParams& p) {
  const Table table(p, /*reversed=*/false), reversed(p, /*reversed=*/true);
  const int64_t padded = table.padded, tasks = p.batch * ((p.height + kRowsAtOnce - 1) / kRowsAtOnce);
  const Buffer<float> sums(max_of(1, tasks) * kSums * padded);
  for_each_task(p, [&](int64_t task, int64_t b, int64_t begin, int64_t end) {
    // dz of the rows beside the task's own is computed twice rather than written and read by way of memory.
    const int64_t first = max_of(0, begin - 1), last = min_of(end + 1, p.height);
    const Buffer<float> grad_z((last - first) * p.width * padded);
    float* const mine = &sums[task * kSums * padded];
    memset(mine, 0, static_cast<size_t>(kSums * padded) * sizeof(float));
    const T* const grad_out = static_cast<const T*>(p.grad_out) + b * p.map() * p.channels;
    T* const grad_input = static_cast<T*>(p.grad_input) + b * p.map() * 2 * p.channels;
    const Map<T> map = input_of<T>(p, b);
    const int64_t token = first * p.width;
    const BackwardGates<T, false> beside = {p, table, map, grad_out, grad_input, grad_z.data, mine, token};
    for_each_tile(p, first, begin, beside);
    for_each_tile(p, begin, end, BackwardGates<T, true>{p, table, map, grad_out, grad_input, grad_z.data, mine, token});
    for_each_tile(p, end, last, beside);
    const Map<float> rows = {grad_z.data, padded, last - first, p.width};
    for_each_tile(p, begin, end, BackwardInput<T>{p, reversed, rows, grad_input, first});
  });
  for (int64_t k = 0; k < kSums; ++k) {
    float* const to = k < kPlaces ? p.grad_weight + k * p.channels : p.grad_bias;
    for (int64_t c = 0; c < p.channels; ++c) to[c] = 0;
    for (int64_t task = 0; task < tasks; ++task) {
      const float* const from = &sums[(task * kSums + k) * padded];
      for (int64_t c = 0; c < p.channels; ++c) to[c] += from[c];
    }
  }
}

}  // namespace

void gated_convolution_forward(const GatedConvolutionParams& p) {
  if (p.dtype == DType::kFloat32) return forward<float>(p);
  if (p.dtype == DType::kBFloat16) return forward<uint16_t>(p);
  forward<_Float16>(p);
}

void gated_convolution_backward(const GatedConvolutionParams& p) {
  if (p.dtype == DType::kFloat32) return backward<float>(p);
  if (p.dtype == DType::kBFloat16) return backward<uint16_t>(p);
  backward<_Float16>(p);
}

}  // namespace moh::kernels::MOH_ISA
