// The oracle is CPython's random module; the numbers are what it prints.
#include "moh/eval/python_random.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/base/error_of.h"

namespace moh::eval {
namespace {

using Drawn = std::vector<std::size_t>;
using test::error_of;

TEST(PythonRandom, NumbersAreMersenneTwisters) {
  PythonRandom random(1234);
  for (const std::uint32_t expected : {4150886329u, 3342196574u, 1892932127u}) EXPECT_EQ(random.bits32(), expected);
  EXPECT_EQ(random.uniform(), 0.11685051774599753);
  EXPECT_EQ(random.uniform(), 0.09064360641670188);
  for (int i = 0; i < 2000; ++i) random.bits32();
  EXPECT_EQ(random.bits32(), 3135946024u);
  EXPECT_EQ(PythonRandom(0).bits32(), 3626764237u);
}

// One generator through all of them, on both sides of the sizes where Python changes its way of drawing.
TEST(PythonRandom, SamplesAsPythonDoes) {
  PythonRandom random(1234);
  EXPECT_EQ(random.sample(5, 5), (Drawn{3, 0, 4, 2, 1}));
  EXPECT_EQ(random.sample(21, 2), (Drawn{2, 3}));
  EXPECT_EQ(random.sample(22, 2), (Drawn{11, 7}));
  EXPECT_EQ(random.sample(7473, 5), (Drawn{142, 252, 6461, 129, 2835}));
  EXPECT_EQ(random.sample(7473, 6), (Drawn{5311, 5105, 3966, 5044, 3797, 1216}));
  EXPECT_EQ(random.sample(85, 6), (Drawn{11, 23, 14, 1, 64, 62}));
  EXPECT_EQ(random.sample(86, 6), (Drawn{31, 8, 85, 69, 59, 76}));
  EXPECT_EQ(random.sample(100, 20),
            (Drawn{86, 11, 65, 74, 5, 34, 71, 8, 82, 38, 61, 45, 31, 83, 25, 58, 67, 85, 2, 9}));
  EXPECT_EQ(random.sample(1, 1), (Drawn{0}));
  EXPECT_EQ(random.sample(300, 0), (Drawn{}));
  EXPECT_EQ(random.sample(1100, 40), (Drawn{683, 294,  968, 772,  342, 110, 156, 1016, 335, 154, 440, 295, 55,  709,
                                            227, 1084, 289, 625,  930, 81,  852, 566,  82,  363, 556, 316, 614, 951,
                                            84,  790,  715, 1015, 699, 958, 974, 92,   964, 348, 900, 1063}));
  for (const std::uint32_t expected : {854318u, 459142u, 310041u}) EXPECT_EQ(random.below(1000000), expected);
  EXPECT_NE(error_of([&] { random.sample(3, 4); }), "");
}

}  // namespace
}  // namespace moh::eval
