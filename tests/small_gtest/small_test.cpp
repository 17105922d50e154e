// The small test framework against itself: failures must be seen, or every test built with it would be worthless.
// Tests of the suite `Fails` must fail; tests/small_gtest/check.py counts outcomes.
#include <stdexcept>

#include "gtest/gtest.h"

namespace {

TEST(Fails, WhenNumbersDiffer) { EXPECT_EQ(1, 2) << "text"; }
TEST(Fails, WhenNotNear) { EXPECT_NEAR(1.0, 1.1, 0.05); }
TEST(Fails, ForNan) { EXPECT_NEAR(std::nan(""), 1.0, 1e9); }
TEST(Fails, ForNanInComparisons) { EXPECT_LE(std::nan(""), 1.0); }
TEST(Fails, WhenNothingIsThrown) { EXPECT_THROW(static_cast<void>(0), std::exception); }
TEST(Fails, WhenThrown) { throw std::runtime_error("thrown"); }
TEST(Fails, OnFail) { FAIL() << "text"; }

void assert_true(bool value) { ASSERT_TRUE(value); }
TEST(Fails, OfAFunctionAreFatal) {
  assert_true(true);
  EXPECT_FALSE(HasFatalFailure());
  assert_true(false);
  if (HasFatalFailure()) return;
  throw std::runtime_error("not reached");
}

TEST(Passes, WhenAllHolds) {
  EXPECT_TRUE(true);
  EXPECT_EQ(std::string("a"), "a");
  EXPECT_NE(1, 2);
  EXPECT_LT(1, 2);
  EXPECT_GE(2, 2);
  ASSERT_NEAR(1.0, 1.1, 0.2);
  EXPECT_DOUBLE_EQ(0.1 + 0.2, 0.3);
  EXPECT_STREQ("a", "a");
  EXPECT_THROW(throw std::runtime_error("a"), std::exception);
  EXPECT_NO_THROW(static_cast<void>(0));
  if (false)
    EXPECT_TRUE(false);
  else
    EXPECT_TRUE(true);
}

class Values : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (GetParam() == 2) GTEST_SKIP() << "two";
  }
};
TEST_P(Values, IsOne) { EXPECT_EQ(GetParam(), 1); }  // passes, is skipped, fails
const int kNumbers[] = {1, 2, 3};
INSTANTIATE_TEST_SUITE_P(Some, Values, testing::ValuesIn(kNumbers),
                         [](const auto& info) { return "number" + std::to_string(info.param); });

}  // namespace
