// The part of GoogleTest's interface that the tests of kernels and operators use, for machines without GoogleTest
// (scripts/gpu_check). Same names, same meaning, same lines on stdout; main() is in ../main.cpp. Everything else is
// built with the real one.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace testing {

class Message {
 public:
  template <class T>
  Message& operator<<(const T& value) {
    if constexpr (std::is_same_v<T, Message>) {
      text_ << value.str();
    } else {
      text_ << value;
    }
    return *this;
  }
  std::string str() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

namespace small {

// Of the test that runs.
struct State {
  bool failed = false, fatal = false, skipped = false;
  std::vector<std::string> traces;
};
State& state();
void record_failure(const char* file, int line, bool fatal, const std::string& text);

struct TestCase {
  std::string name;
  std::function<void()> run;
};
// Called once before the first test; parametrised tests are known in full only then.
std::vector<TestCase> all_tests();
bool add_test(const char* suite, const char* name, std::function<void()> run);

struct Trace {
  explicit Trace(const Message& message) { state().traces.push_back(message.str()); }
  ~Trace() { state().traces.pop_back(); }
  Trace(const Trace&) = delete;
};
// `Failure(...) = Message() << ...`: what follows the macro is part of the message.
struct Failure {
  const char* file;
  int line;
  bool fatal;
  std::string text;
  void operator=(const Message& message) const { record_failure(file, line, fatal, text + message.str()); }
};
struct Skip {
  void operator=(const Message& message) const;
};

struct Result {
  bool ok;
  std::string text;
};
template <class T>
std::string show(const T& value) {
  if constexpr (requires(std::ostream& out) { out << value; }) {
    std::ostringstream out;
    out.precision(17);
    out << value;
    return out.str();
  } else {
    return "(an object)";
  }
}
template <class A, class B, class F>
Result compare(const char* a_text, const char* op, const char* b_text, const A& a, const B& b, const F& holds) {
  if (holds(a, b)) return {true, ""};
  return {false,
          std::string("expected ") + a_text + " " + op + " " + b_text + ", got " + show(a) + " and " + show(b) + "\n"};
}
Result truth(const char* text, bool value, bool wanted);
Result near(const char* a_text, const char* b_text, double a, double b, double tolerance);
Result same_double(const char* a_text, const char* b_text, double a, double b);
Result same_text(const char* a_text, const char* b_text, const char* a, const char* b);
template <class Exception>
Result throws(const char* text, const std::function<void()>& statement) {
  try {
    statement();
  } catch (const Exception&) {
    return {true, ""};
  } catch (...) {
    return {false, std::string("expected ") + text + ", got another exception\n"};
  }
  return {false, std::string("expected ") + text + ", nothing was thrown\n"};
}
Result throws_nothing(const std::function<void()>& statement);

}  // namespace small

class Test {
 public:
  virtual ~Test() = default;
  static bool HasFatalFailure() { return small::state().fatal; }
  void run() {
    SetUp();
    if (!small::state().fatal && !small::state().skipped) TestBody();
    TearDown();
  }

 protected:
  virtual void SetUp() {}
  virtual void TearDown() {}
  virtual void TestBody() = 0;
};

template <class T>
class TestWithParam : public Test {
 public:
  using ParamType = T;
  static const T& GetParam() { return *current(); }
  static const T*& current() {
    static const T* parameter = nullptr;
    return parameter;
  }
};

template <class T>
struct TestParamInfo {
  T param;
  std::size_t index;
};

inline std::vector<bool> Bool() { return {false, true}; }
template <class Container>
auto ValuesIn(const Container& values) {
  return std::vector<std::decay_t<decltype(*std::begin(values))>>(std::begin(values), std::end(values));
}

namespace small {

// The TEST_Ps of one fixture and the values that they run over.
template <class Fixture>
struct Parametrised {
  using Param = typename Fixture::ParamType;
  std::vector<std::pair<std::string, std::function<std::unique_ptr<Test>()>>> tests;
  std::vector<std::pair<std::string, Param>> values;  // suite name, value
  std::vector<std::string> names;

  static Parametrised& get() {
    static Parametrised all;
    return all;
  }
  std::vector<TestCase> expand() const {
    std::vector<TestCase> cases;
    for (std::size_t i = 0; i < values.size(); ++i) {
      for (const auto& [name, make] : tests) {
        cases.push_back({values[i].first + "." + name + "/" + names[i], [this, i, make = make] {
                           Fixture::current() = &values[i].second;
                           make()->run();
                         }});
      }
    }
    return cases;
  }
};
bool add_expansion(const void* fixture, std::function<std::vector<TestCase>()> expand);

template <class Fixture, class Class>
bool add_parametrised(const char* name) {
  auto& all = Parametrised<Fixture>::get();
  all.tests.emplace_back(name, [] { return std::unique_ptr<Test>(new Class); });
  return add_expansion(&all, [&all] { return all.expand(); });
}
template <class Fixture, class Values, class... Namer>
bool add_values(const char* prefix, const char* suite, const Values& values, const Namer&... namer) {
  auto& all = Parametrised<Fixture>::get();
  std::size_t index = 0;
  for (const auto& value : values) {
    const TestParamInfo<typename Fixture::ParamType> info{value, index};
    std::string name = std::to_string(index++);
    ((name = namer(info)), ...);
    all.values.emplace_back(std::string(prefix) + "/" + suite, info.param);
    all.names.push_back(name);
  }
  return true;
}

}  // namespace small
}  // namespace testing

#define MOH_TEST_JOIN(a, b) MOH_TEST_JOIN_(a, b)
#define MOH_TEST_JOIN_(a, b) a##b
#define MOH_TEST_CLASS(suite, name, base)     \
  class suite##_##name##_Test : public base { \
   public:                                    \
    void TestBody() override;                 \
  };
#define TEST(suite, name)                                                               \
  MOH_TEST_CLASS(suite, name, ::testing::Test)                                          \
  static const bool suite##_##name##_known =                                            \
      ::testing::small::add_test(#suite, #name, [] { suite##_##name##_Test().run(); }); \
  void suite##_##name##_Test::TestBody()
#define TEST_P(suite, name)                                                                                           \
  MOH_TEST_CLASS(suite, name, suite)                                                                                  \
  static const bool suite##_##name##_known = ::testing::small::add_parametrised<suite, suite##_##name##_Test>(#name); \
  void suite##_##name##_Test::TestBody()
#define INSTANTIATE_TEST_SUITE_P(prefix, suite, ...) \
  static const bool prefix##_##suite##_values = ::testing::small::add_values<suite>(#prefix, #suite, __VA_ARGS__)

#define SCOPED_TRACE(message) \
  const ::testing::small::Trace MOH_TEST_JOIN(moh_trace_, __LINE__)(::testing::Message() << (message))
#define GTEST_SKIP() return ::testing::small::Skip() = ::testing::Message()
#define FAIL() return ::testing::small::Failure{__FILE__, __LINE__, true, ""} = ::testing::Message()

#define MOH_TEST_EXPECT(...)                                                      \
  switch (0)                                                                      \
  case 0:                                                                         \
  default:                                                                        \
    if (const ::testing::small::Result moh_result = __VA_ARGS__; moh_result.ok) { \
    } else                                                                        \
      ::testing::small::Failure{__FILE__, __LINE__, false, moh_result.text} = ::testing::Message()
#define MOH_TEST_ASSERT(...)                                                      \
  switch (0)                                                                      \
  case 0:                                                                         \
  default:                                                                        \
    if (const ::testing::small::Result moh_result = __VA_ARGS__; moh_result.ok) { \
    } else                                                                        \
      return ::testing::small::Failure{__FILE__, __LINE__, true, moh_result.text} = ::testing::Message()

#define MOH_TEST_COMPARE(a, op, b) \
  ::testing::small::compare(#a, #op, #b, a, b, [](const auto& x, const auto& y) -> bool { return x op y; })
#define EXPECT_TRUE(value) MOH_TEST_EXPECT(::testing::small::truth(#value, static_cast<bool>(value), true))
#define EXPECT_FALSE(value) MOH_TEST_EXPECT(::testing::small::truth(#value, static_cast<bool>(value), false))
#define EXPECT_EQ(a, b) MOH_TEST_EXPECT(MOH_TEST_COMPARE(a, ==, b))
#define EXPECT_NE(a, b) MOH_TEST_EXPECT(MOH_TEST_COMPARE(a, !=, b))
#define EXPECT_LT(a, b) MOH_TEST_EXPECT(MOH_TEST_COMPARE(a, <, b))
#define EXPECT_LE(a, b) MOH_TEST_EXPECT(MOH_TEST_COMPARE(a, <=, b))
#define EXPECT_GT(a, b) MOH_TEST_EXPECT(MOH_TEST_COMPARE(a, >, b))
#define EXPECT_GE(a, b) MOH_TEST_EXPECT(MOH_TEST_COMPARE(a, >=, b))
#define EXPECT_NEAR(a, b, tolerance) MOH_TEST_EXPECT(::testing::small::near(#a, #b, a, b, tolerance))
#define EXPECT_DOUBLE_EQ(a, b) MOH_TEST_EXPECT(::testing::small::same_double(#a, #b, a, b))
#define EXPECT_STREQ(a, b) MOH_TEST_EXPECT(::testing::small::same_text(#a, #b, a, b))
#define EXPECT_THROW(statement, type) MOH_TEST_EXPECT(::testing::small::throws<type>(#type, [&] { statement; }))
#define EXPECT_NO_THROW(statement) MOH_TEST_EXPECT(::testing::small::throws_nothing([&] { statement; }))
#define ASSERT_TRUE(value) MOH_TEST_ASSERT(::testing::small::truth(#value, static_cast<bool>(value), true))
#define ASSERT_FALSE(value) MOH_TEST_ASSERT(::testing::small::truth(#value, static_cast<bool>(value), false))
#define ASSERT_EQ(a, b) MOH_TEST_ASSERT(MOH_TEST_COMPARE(a, ==, b))
#define ASSERT_NE(a, b) MOH_TEST_ASSERT(MOH_TEST_COMPARE(a, !=, b))
#define ASSERT_LE(a, b) MOH_TEST_ASSERT(MOH_TEST_COMPARE(a, <=, b))
#define ASSERT_GT(a, b) MOH_TEST_ASSERT(MOH_TEST_COMPARE(a, >, b))
#define ASSERT_NEAR(a, b, tolerance) MOH_TEST_ASSERT(::testing::small::near(#a, #b, a, b, tolerance))
