// The emulated instructions of AVX512-BF16 and AMX against their definition in 128-bit floating point, where every
// product and sum of them is exact before its one rounding, and against the CPU's own where it has them.
#pragma GCC diagnostic ignored "-Wpsabi"  // no vector leaves this file
#define MOH_ISA tiles_test
#define MOH_VECTOR_BYTES 64
#define MOH_PAIRS
#define MOH_TILES
#include "moh/kernels/cpu/tiles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"

#if defined(__x86_64__)
  #include <immintrin.h>
#endif

namespace {

using namespace moh::kernels::tiles_test;
__extension__ typedef __float128 Exact;

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
float without_subnormal(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0F, value) : value;
}
float number(std::uint32_t word, int which) {
  return without_subnormal(from_bits(which == 0 ? word << 16 : word & 0xffff0000U));
}
// a * b + c, rounded once.
float multiply_and_add(float a, float b, float c) {
  return without_subnormal(static_cast<float>(static_cast<Exact>(a) * static_cast<Exact>(b) + static_cast<Exact>(c)));
}
bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || bits_of(a) == bits_of(b); }

// Ordinary numbers; numbers so small that products and sums fall below the normal ones; any bits, with infinities and
// NaN.
enum class Kind { kOrdinary, kTiny, kAny };
std::uint32_t random_bits(Kind kind, std::mt19937& random) {
  const std::uint32_t bits = random();
  if (kind == Kind::kAny) return bits;
  const std::uint32_t exponent = kind == Kind::kOrdinary ? 118 + random() % 18 : 55 + random() % 18;
  return (bits & 0x807fffffU) | exponent << 23;
}
std::uint32_t random_word(Kind kind, std::mt19937& random) {
  return random_bits(kind, random) >> 16 | (random_bits(kind, random) & 0xffff0000U);
}
float random_sum(Kind kind, std::mt19937& random) {
  const std::uint32_t bits = random_bits(kind, random);
  return from_bits(kind == Kind::kTiny ? (bits & 0x807fffffU) | random() % 16 << 23 : bits);
}

TEST(Tiles, PairProductsAddTheSecondNumbersFirst) {
  std::mt19937 random(1);
  for (const Kind kind : {Kind::kOrdinary, Kind::kTiny, Kind::kAny}) {
    for (int i = 0; i < 20000; ++i) {
      const std::uint32_t a = random_word(kind, random), b = random_word(kind, random);
      const float sum = random_sum(kind, random);
      const float second = multiply_and_add(number(a, 1), number(b, 1), without_subnormal(sum));
      const float expected = multiply_and_add(number(a, 0), number(b, 0), second);
      ASSERT_TRUE(same(add_pair(sum, a, b), expected)) << sum << " " << std::hex << a << " " << b;
    }
  }
}

TEST(Tiles, RoundingToBf16IsToNearestEven) {
  std::mt19937 random(2);
  for (int i = 0; i < 100000; ++i) {
    const float value = from_bits(i < 50000 ? random() : random() & 0xffff8000U);  // half of these are ties
    const float got = from_bits(static_cast<std::uint32_t>(to_bf16_flushed(value)) << 16);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(got));
      continue;
    }
    const float flushed_value = without_subnormal(value);
    const float low = from_bits(bits_of(flushed_value) & 0xffff0000U);
    const float high = from_bits((bits_of(flushed_value) & 0xffff0000U) + 0x10000U);
    const Exact up = static_cast<Exact>(high) - static_cast<Exact>(flushed_value);
    const Exact down = static_cast<Exact>(flushed_value) - static_cast<Exact>(low);
    if (std::isinf(high) || std::isinf(value)) continue;  // where there is no distance
    const Exact distance_up = up < 0 ? -up : up, distance_down = down < 0 ? -down : down;
    const bool low_is_even = (bits_of(low) >> 16) % 2 == 0;
    const bool takes_low = distance_down < distance_up || (distance_down == distance_up && low_is_even);
    ASSERT_EQ(bits_of(got), bits_of(takes_low ? low : high)) << value;
  }
  Vec low, high;
  for (int i = 0; i < kWidth; ++i) {
    low[i] = static_cast<float>(i);
    high[i] = static_cast<float>(100 + i);
  }
  const BitVec in_order = to_pairs(low, high), joined = join_pairs(low, high);
  for (int i = 0; i < kWidth; ++i) {
    EXPECT_EQ(number(in_order[i], 0), 2 * i < kWidth ? low[2 * i] : high[2 * i - kWidth]);
    EXPECT_EQ(number(in_order[i], 1), 2 * i < kWidth ? low[2 * i + 1] : high[2 * i + 1 - kWidth]);
    EXPECT_EQ(number(joined[i], 0), low[i]);
    EXPECT_EQ(number(joined[i], 1), high[i]);
  }
}

struct Operands {
  alignas(64) std::uint32_t a[16][16], b[16][16];
  alignas(64) float c[16][16];
  Operands(Kind kind, std::mt19937& random) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) {
        a[i][j] = random_word(kind, random);
        b[i][j] = random_word(kind, random);
        c[i][j] = random_sum(kind, random);
      }
    }
  }
};

TEST(Tiles, ProductOfTilesSumsFirstAndSecondNumbersApart) {
  std::mt19937 random(3);
  for (const Kind kind : {Kind::kOrdinary, Kind::kTiny, Kind::kAny}) {
    for (int run = 0; run < 20; ++run) {
      const Operands in(kind, random);
      alignas(64) float got[16][16];
      {
        const Tiles tiles;
        load_tile<0>(in.c, 64);
        load_tile<4>(in.a, 64);
        load_tile<6>(in.b, 64);
        multiply_tiles<0, 4, 6>();
        store_tile<0>(got, 64);
      }
      for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
          float sums[2] = {};
          for (int k = 0; k < 16; ++k) {
            for (int which = 0; which < 2; ++which) {
              sums[which] = multiply_and_add(number(in.a[m][k], which), number(in.b[k][n], which), sums[which]);
            }
          }
          const float both = multiply_and_add(1, sums[0], sums[1]);
          ASSERT_TRUE(same(got[m][n], multiply_and_add(1, both, without_subnormal(in.c[m][n])))) << m << " " << n;
        }
      }
    }
  }
}

#if defined(__x86_64__)
[[gnu::target("avx512f,avx512bf16")]] void add_pairs_by_cpu(const std::uint32_t* a, const std::uint32_t* b, float* c) {
  _mm512_storeu_ps(
      c, _mm512_dpbf16_ps(_mm512_loadu_ps(c), (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b)));
}
[[gnu::target("avx512f,avx512bf16")]] void round_by_cpu(const float* from, std::uint16_t* to) {
  const auto rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
  std::memcpy(to, &rounded, sizeof(rounded));
}

TEST(Tiles, EmulationEqualsThisCpusAvx512Bf16) {
  if (!__builtin_cpu_supports("avx512bf16")) GTEST_SKIP() << "this CPU has no AVX512-BF16";
  std::mt19937 random(4);
  for (const Kind kind : {Kind::kOrdinary, Kind::kTiny, Kind::kAny}) {
    for (int run = 0; run < 200; ++run) {
      Operands in(kind, random);
      for (int row = 0; row < 16; ++row) {
        float by_cpu[16], wide[16];
        std::uint16_t rounded[16];
        std::memcpy(by_cpu, in.c[row], sizeof(by_cpu));
        std::memcpy(wide, in.c[row], sizeof(wide));
        add_pairs_by_cpu(in.a[row], in.b[row], by_cpu);
        round_by_cpu(wide, rounded);
        for (int i = 0; i < 16; ++i) {
          ASSERT_TRUE(same(add_pair(in.c[row][i], in.a[row][i], in.b[row][i]), by_cpu[i]));
          ASSERT_EQ(to_bf16_flushed(wide[i]), rounded[i]) << wide[i];
        }
      }
    }
  }
}

TEST(Tiles, EmulationEqualsThisCpusAmx) {
  bool available = false;
  for (const auto& backend : moh::kernels::backends()) {
    if (backend.name == std::string("amx")) available = backend.unavailable_reason().empty();
  }
  if (!available) GTEST_SKIP() << "this CPU has no AMX";
  std::mt19937 random(5);
  for (const Kind kind : {Kind::kOrdinary, Kind::kTiny, Kind::kAny}) {
    for (int run = 0; run < 50; ++run) {
      Operands in(kind, random);
      alignas(64) float by_cpu[16][16], emulated[16][16];
      alignas(64) std::uint8_t config[64] = {1};
      for (int tile = 0; tile < 3; ++tile) {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
      }
      asm volatile(
          "ldtilecfg %0\n\ttileloadd (%1,%4,1), %%tmm0\n\ttileloadd (%2,%4,1), %%tmm1\n\ttileloadd (%3,%4,1), %%tmm2\n\t"
          "tdpbf16ps %%tmm2, %%tmm1, %%tmm0\n\ttilestored %%tmm0, (%5,%4,1)\n\ttilerelease" ::"m"(config),
          "r"(in.c), "r"(in.a), "r"(in.b), "r"(std::int64_t{64}), "r"(by_cpu)
          : "memory");
      const Tiles tiles;
      load_tile<0>(in.c, 64);
      load_tile<4>(in.a, 64);
      load_tile<6>(in.b, 64);
      multiply_tiles<0, 4, 6>();
      store_tile<0>(emulated, 64);
      for (int i = 0; i < 256; ++i) ASSERT_TRUE(same(by_cpu[i / 16][i % 16], emulated[i / 16][i % 16]));
    }
  }
}
#endif

// In software for tests: never chosen by itself, and only for what it multiplies.
TEST(Tiles, EmulationRunsOnlyWhenAskedForByName) {
  moh::kernels::CallTraits call;
  call.dtype = moh::kernels::DType::kBFloat16;
  const auto* chosen = moh::kernels::choose_backend(call, nullptr, "auto");
  ASSERT_NE(chosen, nullptr);
  EXPECT_NE(std::string(chosen->name), std::string("emulated_amx"));
  EXPECT_STREQ(moh::kernels::choose_backend(call, nullptr, "emulated_amx")->name, "emulated_amx");
  call.dtype = moh::kernels::DType::kFloat32;
  EXPECT_THROW(moh::kernels::choose_backend(call, nullptr, "emulated_amx"), moh::Error);
}

}  // namespace
