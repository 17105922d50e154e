#include "moh/distributed/store.h"

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace moh::distributed {

struct StoreServer::Impl {
  c10::intrusive_ptr<c10d::TCPStore> store;
};

StoreServer::StoreServer() : impl_(std::make_unique<Impl>()) {
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.waitWorkers = false;
  impl_->store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}
StoreServer::~StoreServer() = default;

int StoreServer::port() const { return impl_->store->getPort(); }

}  // namespace moh::distributed
