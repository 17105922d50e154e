// The figures of one case: names and values in the order in which they were set. Subjects fill it, programs print it as
// one line of JSON. No library: scripts/gpu_check builds subjects where there is none.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace moh::bench {

class Row {
 public:
  using Value = std::variant<bool, std::int64_t, double, std::string>;

  // The value of a name, made where it is new: `row["tokens"] = 256`.
  class Place {
   public:
    explicit Place(Value& value) : value_(value) {}
    void operator=(bool value) { value_ = value; }
    void operator=(const std::string& value) { value_ = value; }
    void operator=(const char* value) { value_ = std::string(value); }
    template <std::integral T>
    void operator=(T value) {
      value_ = static_cast<std::int64_t>(value);
    }
    template <std::floating_point T>
    void operator=(T value) {
      value_ = static_cast<double>(value);
    }

   private:
    Value& value_;
  };
  Place operator[](const std::string& name);
  // Errors: an unknown name, another type.
  template <class T>
  const T& get(const std::string& name) const {
    return std::get<T>(at(name));
  }
  const Value& at(const std::string& name) const;
  const std::vector<std::pair<std::string, Value>>& values() const { return values_; }
  // One line; numbers to the last bit, null for those that JSON lacks.
  std::string json() const;

 private:
  std::vector<std::pair<std::string, Value>> values_;
};

}  // namespace moh::bench
