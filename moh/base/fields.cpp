// JSON reading with the checks that nlohmann leaves to its caller, and suggestions for misspelt names.
#include "moh/base/fields.h"

#include <cstddef>
#include <iterator>
#include <numeric>
#include <set>

namespace moh {
namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

// One printable line, whatever the damaged text held.
std::string one_line(std::string_view text, std::size_t max_length = 200) {
  std::string line;
  for (const char c : text.substr(0, max_length)) line += (c >= ' ' && c <= '~') ? c : '?';
  if (text.size() > max_length) line += "...";
  return line;
}

// Walks the text and leaves behind how far it came: a SAX handler is not told the position of a value.
class TrackedIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackedIterator(const char* at, const char** reached) : at_(at), reached_(reached) {}
  const char& operator*() const { return *at_; }
  TrackedIterator& operator++() {
    *reached_ = ++at_;
    return *this;
  }
  bool operator==(const TrackedIterator& other) const { return at_ == other.at_; }

 private:
  const char* at_;
  const char** reached_;
};

// Passes values on and refuses deep nesting, repeated keys and syntax errors.
class CheckingSax : public nlohmann::json_sax<Json> {
 public:
  CheckingSax(std::string_view text, const std::string& prefix, int max_depth, nlohmann::json_sax<Json>& next)
      : text_(text), reached_(text.data()), prefix_(prefix), max_depth_(max_depth), next_(next) {}

  void run() {
    const char* end = text_.data() + text_.size();
    const char* unused = end;
    // nlohmann takes a NUL for the end of the input and would ignore what follows.
    if (const std::size_t nul = text_.find('\0'); nul != std::string_view::npos) refuse(nul, "a NUL byte");
    Json::sax_parse(TrackedIterator(text_.data(), &reached_), TrackedIterator(end, &unused), this);
  }

  bool null() override { return next_.null(); }
  bool boolean(bool value) override { return next_.boolean(value); }
  bool number_integer(std::int64_t value) override { return next_.number_integer(value); }
  bool number_unsigned(std::uint64_t value) override { return next_.number_unsigned(value); }
  bool number_float(double value, const std::string& digits) override { return next_.number_float(value, digits); }
  bool string(std::string& value) override { return next_.string(value); }
  bool binary(Json::binary_t& value) override { return next_.binary(value); }
  bool start_object(std::size_t size) override {
    descend();
    return next_.start_object(size);
  }
  bool key(std::string& name) override {
    if (!keys_.back().insert(name).second) refuse(position(), "key `" + one_line(name) + "` appears twice");
    return next_.key(name);
  }
  bool end_object() override {
    keys_.pop_back();
    return next_.end_object();
  }
  bool start_array(std::size_t size) override {
    descend();
    return next_.start_array(size);
  }
  bool end_array() override {
    keys_.pop_back();
    return next_.end_array();
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception& error) override {
    std::string_view reason = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    reason.remove_prefix(std::min(reason.size(), reason.find("] ") + 2));
    if (constexpr std::string_view kWhere = "parse error at "; reason.starts_with(kWhere)) {
      fail(prefix_, one_line(reason.substr(kWhere.size())));
    }
    refuse(at, one_line(reason));
  }

 private:
  std::size_t position() const { return static_cast<std::size_t>(reached_ - text_.data()); }

  void descend() {
    keys_.emplace_back();
    if (static_cast<int>(keys_.size()) > max_depth_) {
      refuse(position(), "nested deeper than " + std::to_string(max_depth_) + " levels");
    }
  }

  [[noreturn]] void refuse(std::size_t at, const std::string& reason) const {
    const std::string_view before = text_.substr(0, at);
    const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    fail(prefix_, "line ", std::count(before.begin(), before.end(), '\n') + 1, ", column ", at - line_start + 1, ": ",
         reason);
  }

  std::string_view text_;
  const char* reached_;
  const std::string& prefix_;
  int max_depth_;
  nlohmann::json_sax<Json>& next_;
  std::vector<std::set<std::string>> keys_;  // one set per open object or array, the latter's stays empty
};

// Builds the tree. Json::operator[] searches its object for the key, which makes large objects quadratic; the keys are
// known to be new here, so they are appended to the vector underneath.
class TreeSax : public nlohmann::json_sax<Json> {
 public:
  Json root;

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(std::int64_t value) override { return add(value); }
  bool number_unsigned(std::uint64_t value) override { return add(value); }
  bool number_float(double value, const std::string&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(Json::binary_t&) override { return false; }
  bool key(std::string& name) override {
    key_ = std::move(name);
    return true;
  }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override { return false; }

 private:
  Json* append(Json value) {
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    if (open_.back()->is_array()) return &open_.back()->emplace_back(std::move(value));
    auto& members = static_cast<Json::object_t::Container&>(open_.back()->get_ref<Json::object_t&>());
    return &members.emplace_back(std::move(key_), std::move(value)).second;
  }
  bool add(Json value) {
    append(std::move(value));
    return true;
  }
  // The pointers stay valid: a container grows only while none of its children is open.
  bool open(Json container) {
    open_.push_back(append(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string key_;
  std::vector<Json*> open_;
};

}  // namespace

std::string nearest_name(std::string_view word, const std::vector<std::string>& known) {
  const std::size_t limit = std::max<std::size_t>(1, word.size() / 3);
  std::size_t best = limit + 1;
  std::string nearest;
  for (const std::string& name : known) {
    // The lengths alone rule most names out, and keep a huge key from costing anything.
    if (std::max(name.size(), word.size()) - std::min(name.size(), word.size()) >= best) continue;
    const std::size_t distance = edit_distance(word, name);
    if (distance >= best) continue;
    best = distance;
    nearest = name;
  }
  return nearest;
}

void scan_json(std::string_view text, const std::string& prefix, int max_depth, nlohmann::json_sax<Json>& sax) {
  CheckingSax(text, prefix, max_depth, sax).run();
}

Json parse_json(std::string_view text, const std::string& what, int max_depth) {
  TreeSax tree;
  scan_json(text, "[" + what + "] ", max_depth, tree);
  return std::move(tree.root);
}

}  // namespace moh
