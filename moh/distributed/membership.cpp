#include "moh/distributed/membership.h"

#include <charconv>
#include <cstdlib>
#include <ctime>
#include <string_view>

#include "moh/base/error.h"
#include "moh/base/fields.h"
#include "moh/io/files.h"

namespace moh::distributed {
namespace {

std::string text_of(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int number_of(const char* name, int least, int most) {
  const std::string text = text_of(name);
  MOH_CHECK(!text.empty(), "[distributed] RANK and WORLD_SIZE are set, but ", name,
            " is not; start the processes by torchrun or by --processes N");
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  MOH_CHECK(error == std::errc() && end == text.data() + text.size() && value >= least && value <= most,
            "[distributed] ", name, " must be a number in ", least, "..", most, ", got `", text, "`");
  return value;
}

}  // namespace

std::optional<Membership> membership_from_environment() {
  if (text_of("RANK").empty() || text_of("WORLD_SIZE").empty()) return std::nullopt;
  Membership membership;
  membership.size = number_of("WORLD_SIZE", 1, 1 << 16);
  if (membership.size == 1) return std::nullopt;
  membership.rank = number_of("RANK", 0, membership.size - 1);
  membership.host = text_of("MASTER_ADDR");
  MOH_CHECK(!membership.host.empty(), "[distributed] RANK and WORLD_SIZE are set, but MASTER_ADDR is not");
  membership.port = number_of("MASTER_PORT", 1, 65535);
  membership.store_elsewhere = text_of("TORCHELASTIC_USE_AGENT_STORE") == "True";
  membership.attempt = restarts_from_environment();
  return membership;
}

int restarts_from_environment() {
  return text_of("TORCHELASTIC_RESTART_COUNT").empty() ? 0 : number_of("TORCHELASTIC_RESTART_COUNT", 0, 1 << 30);
}

void write_error_file(const std::string& message) {
  const std::string file = text_of("TORCHELASTIC_ERROR_FILE");
  if (file.empty()) return;
  Json error = Json::object();
  error["message"]["message"] = message;
  error["message"]["extraInfo"] = {{"py_callstack", "moh: error: " + message},
                                   {"timestamp", std::to_string(std::time(nullptr))}};
  try {
    io::write_file(file, error.dump(-1, ' ', false, Json::error_handler_t::replace));
  } catch (const std::exception&) {  // the message is on the screen already
  }
}

}  // namespace moh::distributed
