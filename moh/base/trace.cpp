#include "moh/base/trace.h"

#include <atomic>
#include <mutex>
#include <vector>

namespace moh::trace {
namespace {

constexpr std::size_t kMost = 1 << 18;  // spans; later ones are left out

struct Entry {
  const char* name;
  Lane lane;
  Clock::time_point begin, end;
};
std::atomic<bool> on{false};
std::mutex mutex;
std::vector<Entry> entries;

std::string microseconds(Clock::duration time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
}

}  // namespace

void start() { on = true; }
bool is_on() { return on.load(std::memory_order_relaxed); }

void add(const char* name, Lane lane, Clock::time_point begin, Clock::time_point end) {
  const std::lock_guard lock(mutex);
  if (entries.size() < kMost) entries.push_back({name, lane, begin, end});
}

std::string finish(int process) {
  on = false;
  const std::lock_guard lock(mutex);
  const std::string pid = std::to_string(process);
  std::string json = "{\"traceEvents\":[";
  for (const Lane lane : {Lane::kWork, Lane::kNetwork}) {
    json += "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":" + pid +
            ",\"tid\":" + std::to_string(static_cast<int>(lane)) + ",\"args\":{\"name\":\"" +
            (lane == Lane::kWork ? "work" : "network") + "\"}},\n";
  }
  for (const Entry& entry : entries) {
    json += "{\"ph\":\"X\",\"name\":\"" + std::string(entry.name) + "\",\"pid\":" + pid +
            ",\"tid\":" + std::to_string(static_cast<int>(entry.lane)) +
            ",\"ts\":" + microseconds(entry.begin.time_since_epoch()) +
            ",\"dur\":" + microseconds(entry.end - entry.begin) + "},\n";
  }
  entries.clear();
  json +=
      "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":" + pid + ",\"args\":{\"name\":\"process " + pid + "\"}}]}\n";
  return json;
}

}  // namespace moh::trace
