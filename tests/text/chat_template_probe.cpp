// For chat_template_test.py: each line of standard input is {"template": ..., "variables": {...}}, each line of
// standard output what the template makes of them, {"text": ...} or {"error": ...}.
#include <iostream>
#include <string>

#include "moh/text/chat_template.h"

int main() {
  using moh::Json;
  for (std::string line; std::getline(std::cin, line);) {
    Json answer = Json::object();
    try {
      const Json input = moh::parse_json(line, "stdin");
      const moh::text::ChatTemplate chat(input["template"].get<std::string>(), "test");
      answer["text"] = chat.render(input["variables"]);
    } catch (const moh::Error& error) {
      answer["error"] = error.what();
    }
    std::cout << answer.dump(-1, ' ', true, Json::error_handler_t::replace) << "\n";
  }
}
