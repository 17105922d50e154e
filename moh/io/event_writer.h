// TensorBoard scalar events: TFRecord framing (masked CRC-32C) around hand-encoded Event protobufs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace moh::io {

class EventWriter {
 public:
  // Opens FOLDER/events.out.tfevents.<seconds>.<host>.<pid> and writes the version record.
  explicit EventWriter(const std::string& folder);
  ~EventWriter();
  void scalar(const std::string& tag, double value, std::int64_t step);
  void flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::io
