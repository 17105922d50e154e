#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

namespace moh::cli {
namespace {

constexpr int kLongestBar = 24, kShortestBar = 6, kUsualWidth = 80;
constexpr double kTerminalSeconds = 0.1, kPlainSeconds = 10.0, kActivityDelay = 0.5;

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

int drawn = 0;  // characters of the bar that stands on the terminal; several Progresses take turns there

// Asked anew for every line: the window may have been resized.
int terminal_width() {
  struct winsize size {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return kUsualWidth;
}

int code_points(const std::string& text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// The first `count` code points, the last of them an ellipsis if something is cut off.
std::string shortened(const std::string& text, int count) {
  if (code_points(text) <= count) return text;
  if (count <= 0) return "";
  std::size_t end = 0;
  for (int seen = 0; end < text.size(); ++end) {
    if ((text[end] & 0xC0) != 0x80 && ++seen == count) break;
  }
  return text.substr(0, end) + "…";
}

}  // namespace

std::optional<int> output_width() {
  struct winsize size {};
  if (isatty(STDOUT_FILENO) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
    return std::nullopt;
  return size.ws_col;
}

std::string with_commas(std::int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    digits.insert(static_cast<std::size_t>(at), ",");
  }
  return digits;
}

std::string with_unit(double value) {
  constexpr std::pair<double, const char*> kUnits[] = {{1e12, "trillion"}, {1e9, "billion"}, {1e6, "million"}};
  for (const auto& [size, name] : kUnits) {
    if (value >= size)
      return fmt::format("{:.{}f} {}", value / size, value >= 100 * size ? 0 : value >= 10 * size ? 1 : 2, name);
  }
  return with_commas(static_cast<std::int64_t>(value + 0.5));
}

std::string format_rate(double rate, const std::string& unit) {
  if (unit == "bytes") return fmt::format("{:.2f} GB/s", rate / 1e9);
  if (rate < 100) return fmt::format("{:.1f} {}/s", rate, unit);
  return fmt::format("{} {}/s", with_commas(static_cast<std::int64_t>(std::min(rate, 1e15) + 0.5)), unit);
}

std::string progress_line(const std::string& label, double done, const std::string& left, const std::string& rate,
                          const std::string& detail, int width) {
  const std::string percent = fmt::format(" {:3.0f} %", 100 * done);
  std::string tail = left.empty() ? "" : "  " + left + " left";
  if (!rate.empty()) tail += "  " + rate;
  const std::string behind = detail.empty() ? "" : "  " + detail;
  const int fixed = code_points(label + percent + tail), wanted = code_points(behind);
  const int bar = std::min(kLongestBar, width - fixed - wanted - 1);
  std::string line = label;
  if (bar >= kShortestBar) {
    const int filled = static_cast<int>(std::clamp(done, 0.0, 1.0) * bar);
    line += " ";
    for (int i = 0; i < bar; ++i) line += i < filled ? "█" : "░";
  }
  line += percent + tail;
  const int room = width - code_points(line);
  if (room > 8) line += shortened(behind, room);
  return shortened(line, width);
}

Progress::Progress(std::string label, std::string unit, double total, double delay)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      delay_(delay),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() { finish(); }

double Progress::seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

void Progress::update(double done, const std::string& detail, std::optional<double> seconds_left) {
  if (finished_ || ended_) return;
  done = std::clamp(done, 0.0, 1.0);
  const auto now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_).count(), elapsed = seconds();
  const bool first = last_done_ < 0, ends = done >= 1;
  ended_ = ends;
  if (elapsed < delay_) return;
  if (!ends && !(first && terminal_) && since < (terminal_ ? kTerminalSeconds : kPlainSeconds)) return;
  last_ = now;
  last_done_ = done;
  const double left = seconds_left.value_or(done > 0 ? elapsed / done - elapsed : -1);
  const std::string rate =
      unit_.empty() || done <= 0 || elapsed <= 0 ? "" : format_rate(done * total_ / elapsed, unit_);
  draw(done, rate, left >= 0 ? duration(left) : "", detail);
}

void Progress::draw(double done, const std::string& rate, const std::string& left, const std::string& detail) {
  if (terminal_) {
    clear_progress();
    const std::string line = progress_line(label_, done, left, rate, detail, terminal_width() - 1);
    fmt::print(stderr, "{}", line);
    drawn = code_points(line);
  } else {
    fmt::print(stderr, "{}: {:.0f} %, {} gone{}{}{}{}{}\n", label_, done * 100, duration(seconds()),
               done >= 1 || left.empty() ? "" : ", " + left + " left", rate.empty() ? "" : ", ", rate,
               detail.empty() ? "" : ", ", detail);
  }
  std::fflush(stderr);
}

// A window that became narrower has broken the line over several rows.
void clear_progress() {
  if (drawn == 0) return;
  const int rows_above = (drawn - 1) / terminal_width();
  fmt::print(stderr, "\r{}\x1b[J", rows_above > 0 ? fmt::format("\x1b[{}A", rows_above) : "");
  std::fflush(stderr);
  drawn = 0;
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  clear_progress();
}

void Progress::note(const std::string& text) {
  clear_progress();
  fmt::print(stderr, "{}\n", text);
  std::fflush(stderr);
}

void show_activities(const bool& quiet) {
  static const bool* silent = &quiet;
  static const std::thread::id main_thread = std::this_thread::get_id();
  set_activity_listener([](const Activity& activity) {
    static std::unique_ptr<Progress> shown;
    if (*silent || std::this_thread::get_id() != main_thread) return;
    if (!shown || shown->label() != activity.what) {
      shown = std::make_unique<Progress>(activity.what, activity.unit, activity.total, kActivityDelay);
    }
    shown->update(activity.total > 0 ? activity.done / activity.total : 1);
    if (activity.done >= activity.total) shown.reset();
  });
}

}  // namespace moh::cli
