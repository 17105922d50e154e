#include "moh/base/cores.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace moh {
namespace {

class Cgroup : public ::testing::Test {
 protected:
  Cgroup() : root_(std::filesystem::temp_directory_path() / ("moh_cgroup_" + std::to_string(getpid()))) {}
  ~Cgroup() override { std::filesystem::remove_all(root_); }
  void write(const std::string& file, const std::string& text) {
    const auto path = root_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::optional<double> quota(const std::string& groups) { return cgroup_cpu_quota(groups, root_.string()); }
  std::filesystem::path root_;
};

TEST_F(Cgroup, VersionTwoTakesTheLeastLimitOnTheWayUp) {
  EXPECT_FALSE(quota("0::/a/b\n").has_value());
  write("a/b/cpu.max", "max 100000\n");
  EXPECT_FALSE(quota("0::/a/b\n").has_value());
  write("a/cpu.max", "250000 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 2.5);
  write("a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 0.5);
  EXPECT_EQ(quota("0::/a\n"), 2.5);
}

TEST_F(Cgroup, InsideAContainerTheMountPointHoldsTheLimit) {
  write("cpu.max", "300000 100000\n");
  EXPECT_EQ(quota("0::/\n"), 3);
  EXPECT_EQ(quota("0::/host/path/that/is/not/here\n"), 3);
}

TEST_F(Cgroup, VersionOneNamesQuotaAndPeriodApart) {
  const std::string groups = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n";
  write("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "-1\n");
  write("cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
  EXPECT_FALSE(quota(groups).has_value());
  write("cpu,cpuacct/docker/x/cpu.cfs_quota_us", "150000\n");
  EXPECT_EQ(quota(groups), 1.5);
  write("cpu/cpu.cfs_quota_us", "100000\n");
  write("cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("4:cpu,cpuacct:/\n"), 1);
}

TEST_F(Cgroup, DamagedTextIsNoLimit) {
  for (const char* text : {"", "x", "x y", "-5 100000", "100000 0", "nan nan"}) {
    write("cpu.max", text);
    EXPECT_FALSE(quota("0::/\n").has_value()) << text;
  }
  EXPECT_FALSE(quota("no colons\n:\n").has_value());
}

TEST(Cores, FollowTheAffinityMask) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  EXPECT_GE(available_cores(), 1);
  EXPECT_LE(available_cores(), CPU_COUNT(&before));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before)) {
      CPU_SET(cpu, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(available_cores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

}  // namespace
}  // namespace moh
