#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace moh::cli {
namespace {

constexpr int kBarWidth = 24;
constexpr double kTerminalSeconds = 0.1, kPlainSeconds = 10.0;

std::string duration(double seconds) {
  const int whole = static_cast<int>(seconds + 0.5);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(std::string label)
    : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) != 0), start_(Clock::now()), last_(start_) {}

Progress::~Progress() { finish(); }

void Progress::update(double done, const std::string& detail) {
  if (finished_) return;
  const auto now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_).count();
  const bool ended = done >= 1;
  if (last_done_ >= 0 && !ended && since < (terminal_ ? kTerminalSeconds : kPlainSeconds)) return;
  if (!terminal_ && last_done_ < 0 && !ended) {  // the first plain line comes after a while, if it takes that long
    last_done_ = done;
    return;
  }
  last_ = now;
  last_done_ = done;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const std::string left = done > 0 ? duration(elapsed / done - elapsed) : "?";
  if (terminal_) {
    const int filled = static_cast<int>(done * kBarWidth);
    std::string bar;
    for (int i = 0; i < kBarWidth; ++i) bar += i < filled ? "█" : "░";
    fmt::print(stderr, "\r\x1b[K{} {} {:3.0f} %  {} left  {}", label_, bar, done * 100, left, detail);
  } else {
    fmt::print(stderr, "{}: {:.0f} %, {} gone, {} left{}{}\n", label_, done * 100, duration(elapsed), left,
               detail.empty() ? "" : ", ", detail);
  }
  std::fflush(stderr);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (terminal_) fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
}

void Progress::note(const std::string& text) {
  if (terminal_) fmt::print(stderr, "\r\x1b[K");
  fmt::print(stderr, "{}\n", text);
  std::fflush(stderr);
}

}  // namespace moh::cli
