// y = x W^T + b by weights of 8 or 4 bits, on CPUs. Rows of x are rounded to 8 bits first; then an item is a strip of
// outputs and a block of rows: the strip's weights stay in the cache while the rows pass by in tiles. A word of four
// numbers of a weight and one of x are multiplied and added by one instruction where the CPU has VNNI.
#include "moh/kernels/quantized_linear.h"

#include <math.h>

#include "moh/kernels/cpu/row_tiles.h"
#include "moh/kernels/cpu/simd.h"
#if defined(__SSE2__)
  #include <immintrin.h>
#endif

namespace moh::kernels::MOH_ISA {
namespace {

constexpr int64_t kTilesAnItem = 12;
constexpr int kTileRows = kWidth == 16 ? 8 : 4;
constexpr int64_t kGroups = kBlockInputs / 4;

// Four numbers of x as the other operand of dot4 takes them.
#if defined(__AVX512VNNI__)
constexpr int64_t kWords = 1;  // signed bytes
#else
constexpr int64_t kWords = 2;  // the even and the odd ones, of 16 bits
#endif

// sum[lane] += the four unsigned numbers of a lane's word times the four of x.
static inline IntVec dot4(IntVec sum, IntVec weight, const int32_t* x) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weight, _mm512_set1_epi32(*x));
#else
  const IntVec even = weight & 0x00ff00ff, odd = (IntVec)((BitVec)weight >> 8) & 0x00ff00ff;
  const IntVec x_even = x[0] + IntVec{}, x_odd = x[1] + IntVec{};
  #if MOH_VECTOR_BYTES == 64 && defined(__AVX512BW__)
  return sum + (IntVec)_mm512_madd_epi16((__m512i)even, (__m512i)x_even) +
         (IntVec)_mm512_madd_epi16((__m512i)odd, (__m512i)x_odd);
  #elif MOH_VECTOR_BYTES == 32 && defined(__AVX2__)
  return sum + (IntVec)_mm256_madd_epi16((__m256i)even, (__m256i)x_even) +
         (IntVec)_mm256_madd_epi16((__m256i)odd, (__m256i)x_odd);
  #elif MOH_VECTOR_BYTES == 16 && defined(__SSE2__)
  return sum + (IntVec)_mm_madd_epi16((__m128i)even, (__m128i)x_even) +
         (IntVec)_mm_madd_epi16((__m128i)odd, (__m128i)x_odd);
  #else
  return sum + (even & 0xffff) * ((x_even << 16) >> 16) + (even >> 16) * (x_even >> 16) +
         (odd & 0xffff) * ((x_odd << 16) >> 16) + (odd >> 16) * (x_odd >> 16);
  #endif
#endif
}

static inline Vec widen_halves(const uint8_t* from) {
#if MOH_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif MOH_VECTOR_BYTES == 32 && defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  return widen(reinterpret_cast<const _Float16*>(from));
#endif
}

static inline int32_t word_of(int low, int high) {
  return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffffU) | static_cast<uint32_t>(high) << 16);
}

// x rounded to 8 bits: a row's blocks of words, their scales, and their sums times the scales.
struct RoundedRows {
  int64_t blocks;
  Buffer<int32_t> words;
  Buffer<int32_t> sums;
  Buffer<float> scales;

  explicit RoundedRows(const QuantizedLinearParams& p)
      : blocks(blocks_of(p.inputs)),
        words(p.rows * blocks * kGroups * kWords),
        sums(p.rows * blocks),
        scales(p.rows * blocks) {
    for_each_item(p.parallel, p.rows, [&](int64_t r) { round_row(p, r); });
  }
  const int32_t* words_of(int64_t row) const { return words.data + row * blocks * kGroups * kWords; }

 private:
  void round_row(const QuantizedLinearParams& p, int64_t row) const {
    float numbers[kBlockInputs];
    int32_t q[kBlockInputs];
    const char* const from = static_cast<const char*>(p.x.data) + row * p.x.stride[0] * size_of(p.dtype);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kBlockInputs, size = min_of(kBlockInputs, p.inputs - first);
      read_row(numbers, from + first * p.x.stride[1] * size_of(p.dtype), p.x.stride[1], size, kBlockInputs, p.dtype,
               1.0F);
      Vec most = {}, sum = {};
      for (int64_t i = 0; i < kBlockInputs; i += kWidth) {
        const Vec magnitude = (Vec)((IntVec)load(numbers + i) & 0x7fffffff);
        most = max_of(magnitude, most);
        sum += magnitude;
      }
      const float largest = max_in(most), everything = sum_in(sum);
      const float factor = largest > 0 ? 127.0F / largest : 0.0F;
      // Where a number is infinite or NaN, so is the scale, and the numbers, which no integer says, are zeros; zeros
      // too where all are so small that the factor is infinite.
      const bool can_be_rounded = everything - everything == 0 && factor < INFINITY;
      if (!can_be_rounded) memset(numbers, 0, sizeof(numbers));
      IntVec total = {};
      for (int64_t i = 0; i < kBlockInputs; i += kWidth) {
        constexpr float kMagic = 12582912.0F;  // adding it rounds to nearest even
        const float by = can_be_rounded ? factor : 0.0F;
        const IntVec rounded = (IntVec)(load(numbers + i) * by + kMagic) - (IntVec)splat(kMagic);
        store(q + i, rounded);
        total += rounded;
      }
      int32_t all = 0;
      for (int i = 0; i < kWidth; ++i) all += total[i];
      const int64_t at = row * blocks + b;
      scales[at] = can_be_rounded ? largest / 127.0F : everything - everything;
      sums[at] = all;
      int32_t* const to = words.data + at * kGroups * kWords;
      for (int64_t g = 0; g < kGroups; ++g) {
        const int32_t* const four = q + 4 * g;
#if defined(__AVX512VNNI__)
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= (static_cast<uint32_t>(four[i]) & 255U) << 8 * i;
        to[g] = static_cast<int32_t>(word);
#else
        to[2 * g] = word_of(four[0], four[2]);
        to[2 * g + 1] = word_of(four[1], four[3]);
#endif
      }
    }
  }
};

// The kWidth outputs from `lane` on of a strip, for the rows of a tile.
template <int rows, WeightBlocks kind>
void strip_tile(const RoundedRows& x, const RowTiles::Tile& tile, const uint8_t* strip, int64_t lane,
                float (*results)[kStripOutputs]) {
  constexpr int64_t kHeader = kind == WeightBlocks::kQ4_1 ? 4 : 2;
  constexpr int32_t kOffset = kind == WeightBlocks::kQ8_0 ? 128 : kind == WeightBlocks::kQ4_0 ? 8 : 0;
  const int32_t* words[rows];
  const int32_t* sums[rows];
  const float* scales[rows];
  Vec sum[rows];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    words[i] = x.words_of(tile.first + i);
    sums[i] = x.sums.data + (tile.first + i) * x.blocks;
    scales[i] = x.scales.data + (tile.first + i) * x.blocks;
    sum[i] = Vec{};
  }
  const auto add_block = [&](int64_t b) {
    const uint8_t* const block = strip + b * kStripOutputs * block_bytes(kind);
    const uint8_t* const numbers = block + kStripOutputs * kHeader + 4 * lane;
    IntVec dot[rows];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) dot[i] = -kOffset * sums[i][b] + IntVec{};
    const auto add = [&](IntVec weight, int64_t group) {
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) dot[i] = dot4(dot[i], weight, words[i] + (b * kGroups + group) * kWords);
    };
    if constexpr (kind == WeightBlocks::kQ8_0) {
#pragma GCC unroll 8
      for (int64_t g = 0; g < kGroups; ++g) {
        add(load(reinterpret_cast<const int32_t*>(numbers + g * kStripOutputs * 4)), g);
      }
    } else {
#pragma GCC unroll 4
      for (int64_t g = 0; g < kGroups / 2; ++g) {
        const IntVec both = load(reinterpret_cast<const int32_t*>(numbers + g * kStripOutputs * 4));
        add(both & 0x0f0f0f0f, g);
        add((IntVec)((BitVec)both >> 4) & 0x0f0f0f0f, g + kGroups / 2);
      }
    }
    const Vec scale = widen_halves(block + 2 * lane);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) sum[i] += __builtin_convertvector(dot[i], Vec) * (scale * scales[i][b]);
    if constexpr (kind == WeightBlocks::kQ4_1) {
      const Vec minimum = widen_halves(block + 2 * (kStripOutputs + lane));
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) sum[i] += minimum * (scales[i][b] * static_cast<float>(sums[i][b]));
    }
  };
  for (int64_t n = 0; n < tile.count; ++n) {
    for (int64_t b = tile.ranges[n].begin; b < tile.ranges[n].end; ++b) add_block(b);
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) store(results[i] + lane, sum[i]);
}

template <WeightBlocks kind>
void strip_of_kind(const RoundedRows& x, const RowTiles::Tile& tile, const uint8_t* strip,
                   float (*results)[kStripOutputs]) {
  for (int64_t lane = 0; lane < kStripOutputs; lane += kWidth) {
    switch (tile.rows) {
      case 8:
        strip_tile<kTileRows, kind>(x, tile, strip, lane, results);
        break;
      case 4:
        strip_tile<4, kind>(x, tile, strip, lane, results);
        break;
      case 2:
        strip_tile<2, kind>(x, tile, strip, lane, results);
        break;
      default:
        strip_tile<1, kind>(x, tile, strip, lane, results);
    }
  }
}

void strip_rows(const QuantizedLinearParams& p, const RoundedRows& x, const RowTiles::Tile& tile, int64_t first,
                float (*results)[kStripOutputs]) {
  const auto* const strip = static_cast<const uint8_t*>(p.weight) + first * x.blocks * block_bytes(p.blocks);
  switch (p.blocks) {
    case WeightBlocks::kQ8_0:
      return strip_of_kind<WeightBlocks::kQ8_0>(x, tile, strip, results);
    case WeightBlocks::kQ4_0:
      return strip_of_kind<WeightBlocks::kQ4_0>(x, tile, strip, results);
    case WeightBlocks::kQ4_1:
      return strip_of_kind<WeightBlocks::kQ4_1>(x, tile, strip, results);
  }
}

void write_results(const QuantizedLinearParams& p, int64_t row, int64_t first, float* results) {
  const int64_t columns = min_of(kStripOutputs, p.outputs - first);
  if (p.bias != nullptr) {
    for (int64_t c = 0; c < columns; ++c) results[c] += p.bias[first + c];
  }
  clear_unused_outputs(p.heads, row, first, columns, results);
  const int64_t place = row * p.y.stride[0] + first * p.y.stride[1];
  write_row(static_cast<char*>(p.y.data) + place * size_of(p.dtype), p.y.stride[1], results, columns, p.dtype, 1.0F);
}

}  // namespace

void quantized_linear(const QuantizedLinearParams& p) {
  const RoundedRows x(p);
  const RowTiles tiles(p.rows, p.inputs, kBlockInputs, p.heads, [](int64_t left) {
    return left >= kTileRows ? kTileRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  });
  const int64_t strips = (p.outputs + kStripOutputs - 1) / kStripOutputs;
  const int64_t groups = (tiles.count + kTilesAnItem - 1) / kTilesAnItem;
  for_each_item(p.parallel, strips * groups, [&](int64_t item) {
    const int64_t first = item / groups * kStripOutputs, begin = item % groups * kTilesAnItem;
    float results[kTileRows][kStripOutputs];
    for (int64_t t = begin; t < min_of(begin + kTilesAnItem, tiles.count); ++t) {
      const RowTiles::Tile& tile = tiles.tiles[t];
      if (needs_outputs(p.heads, tile, first, min_of(first + kStripOutputs, p.outputs))) {
        strip_rows(p, x, tile, first, results);
      }
      for (int64_t i = 0; i < tile.rows; ++i) write_results(p, tile.first + i, first, results[i]);
    }
  });
}

}  // namespace moh::kernels::MOH_ISA
