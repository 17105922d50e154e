// The place where processes meet (c10d's TCPStore), kept by the process that starts them.
#pragma once

#include <memory>

namespace moh::distributed {

class StoreServer {
 public:
  StoreServer();  // on a port that is free
  ~StoreServer();
  int port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moh::distributed
