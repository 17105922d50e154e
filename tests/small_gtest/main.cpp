// Runs the tests of small_gtest: prints GoogleTest's lines, --gtest_filter=a*:b*-c* chooses, status 1 if one failed.
#include <chrono>
#include <cstdio>
#include <exception>
#include <set>

#include "gtest/gtest.h"

namespace testing::small {
namespace {

struct Registry {
  std::vector<TestCase> tests;
  std::set<const void*> fixtures;
  std::vector<std::function<std::vector<TestCase>()>> expansions;
};
Registry& registry() {
  static Registry all;
  return all;
}

bool matches(const char* pattern, const char* name) {
  if (*pattern == '*') return matches(pattern + 1, name) || (*name != 0 && matches(pattern, name + 1));
  if (*pattern == 0 || *name == 0) return *pattern == *name;
  return (*pattern == '?' || *pattern == *name) && matches(pattern + 1, name + 1);
}

bool matches_one_of(const std::string& patterns, const std::string& name) {
  std::istringstream in(patterns);
  for (std::string pattern; std::getline(in, pattern, ':');) {
    if (matches(pattern.c_str(), name.c_str())) return true;
  }
  return false;
}

}  // namespace

State& state() {
  static State current;
  return current;
}

void record_failure(const char* file, int line, bool fatal, const std::string& text) {
  state().failed = true;
  state().fatal = state().fatal || fatal;
  std::printf("%s:%d: Failure\n%s\n", file, line, text.c_str());
  for (const std::string& trace : state().traces) std::printf("Trace: %s\n", trace.c_str());
}

void Skip::operator=(const Message& message) const {
  state().skipped = true;
  std::printf("Skipped: %s\n", message.str().c_str());
}

bool add_test(const char* suite, const char* name, std::function<void()> run) {
  registry().tests.push_back({std::string(suite) + "." + name, std::move(run)});
  return true;
}

bool add_expansion(const void* fixture, std::function<std::vector<TestCase>()> expand) {
  if (registry().fixtures.insert(fixture).second) registry().expansions.push_back(std::move(expand));
  return true;
}

std::vector<TestCase> all_tests() {
  std::vector<TestCase> all = registry().tests;
  for (const auto& expand : registry().expansions) {
    for (TestCase& test : expand()) all.push_back(std::move(test));
  }
  return all;
}

Result truth(const char* text, bool value, bool wanted) {
  if (value == wanted) return {true, ""};
  return {false, std::string("expected ") + (wanted ? "true: " : "false: ") + text + "\n"};
}

Result near(const char* a_text, const char* b_text, double a, double b, double tolerance) {
  if (a == b || std::fabs(a - b) <= tolerance) return {true, ""};  // false for NaN
  return {false, std::string(a_text) + " is " + show(a) + ", " + b_text + " is " + show(b) + ", more than " +
                     show(tolerance) + " apart\n"};
}

Result same_double(const char* a_text, const char* b_text, double a, double b) {
  constexpr double kFourUlps = 4 * 2.220446049250313e-16;
  return near(a_text, b_text, a, b, kFourUlps * std::fmax(std::fabs(a), std::fabs(b)));
}

Result same_text(const char* a_text, const char* b_text, const char* a, const char* b) {
  if (a == b || (a != nullptr && b != nullptr && std::strcmp(a, b) == 0)) return {true, ""};
  return {false, std::string(a_text) + " is " + (a == nullptr ? "NULL" : a) + ", " + b_text + " is " +
                     (b == nullptr ? "NULL" : b) + "\n"};
}

Result throws_nothing(const std::function<void()>& statement) {
  try {
    statement();
  } catch (const std::exception& error) {
    return {false, std::string("expected no exception, got: ") + error.what() + "\n"};
  } catch (...) {
    return {false, "expected no exception, got one\n"};
  }
  return {true, ""};
}

namespace {

void run_caught(const TestCase& test) {
  try {
    test.run();
  } catch (const std::exception& error) {
    record_failure(test.name.c_str(), 0, true, std::string("an exception ended the test: ") + error.what());
  } catch (...) {
    record_failure(test.name.c_str(), 0, true, "an exception ended the test");
  }
}

int run_all(const std::string& wanted, const std::string& unwanted) {
  int passed = 0;
  std::vector<std::string> failed, skipped;
  for (const TestCase& test : all_tests()) {
    if (!matches_one_of(wanted, test.name) || matches_one_of(unwanted, test.name)) continue;
    state() = State();
    std::printf("[ RUN      ] %s\n", test.name.c_str());
    std::fflush(stdout);
    const auto start = std::chrono::steady_clock::now();
    run_caught(test);
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
    const char* outcome = state().failed ? "[  FAILED  ]" : state().skipped ? "[  SKIPPED ]" : "[       OK ]";
    std::printf("%s %s (%lld ms)\n", outcome, test.name.c_str(), static_cast<long long>(ms.count()));
    std::fflush(stdout);
    if (state().failed) {
      failed.push_back(test.name);
    } else if (state().skipped) {
      skipped.push_back(test.name);
    } else {
      ++passed;
    }
  }
  std::printf("[==========] %zu tests ran.\n[  PASSED  ] %d tests.\n", passed + failed.size() + skipped.size(), passed);
  if (!skipped.empty()) std::printf("[  SKIPPED ] %zu tests.\n", skipped.size());
  for (const std::string& name : failed) std::printf("[  FAILED  ] %s\n", name.c_str());
  return failed.empty() ? 0 : 1;
}

}  // namespace
}  // namespace testing::small

int main(int argc, char** argv) {
  std::string wanted = "*", unwanted;
  const std::string flag = "--gtest_filter=";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind(flag, 0) != 0) {
      std::fprintf(stderr, "unknown argument `%s`; known: %sPATTERNS\n", argv[i], flag.c_str());
      return 2;
    }
    wanted = argument.substr(flag.size());
    if (const auto dash = wanted.find('-'); dash != std::string::npos) {
      unwanted = wanted.substr(dash + 1);
      wanted = dash == 0 ? "*" : wanted.substr(0, dash);
    }
  }
  return testing::small::run_all(wanted, unwanted);
}
