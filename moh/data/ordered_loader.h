// Makes items 0, 1, 2 ... (batches, pictures) on threads of its own, ahead of whoever takes them in that order. An item
// depends on its number alone, so the number of threads changes nothing but time. Torch-free.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace moh::data {

template <class Item>
class OrderedLoader {
 public:
  // `make(number)` runs on several threads at a time; at most `ahead` items are waiting or being made. With no threads
  // items are made when they are taken.
  OrderedLoader(std::function<Item(std::int64_t number)> make, std::int64_t first, int threads, std::int64_t ahead)
      : make_(std::move(make)), next_taken_(first), next_made_(first), ahead_(ahead < 1 ? 1 : ahead) {
    for (int i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~OrderedLoader() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  OrderedLoader(const OrderedLoader&) = delete;
  OrderedLoader& operator=(const OrderedLoader&) = delete;

  // The number of the item that take() returns next.
  std::int64_t next() const { return next_taken_; }

  // An exception that the item threw while it was made is thrown here.
  Item take() {
    const auto start = std::chrono::steady_clock::now();
    const auto count_time = [&] {
      waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    if (workers_.empty()) {
      Item item = make_(next_taken_);
      ++next_taken_;
      count_time();
      return item;
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_.contains(next_taken_); });
    Slot slot = std::move(ready_.at(next_taken_));
    ready_.erase(next_taken_);
    ++next_taken_;
    lock.unlock();
    changed_.notify_all();
    count_time();
    if (slot.error) std::rethrow_exception(slot.error);
    return std::move(slot.item);
  }

  // Seconds that take() has kept its callers waiting.
  double waited() const { return waited_; }

 private:
  struct Slot {
    Item item;
    std::exception_ptr error;
  };

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopped_ || next_made_ < next_taken_ + ahead_; });
      if (stopped_) return;
      const std::int64_t number = next_made_++;
      lock.unlock();
      Slot slot;
      try {
        slot.item = make_(number);
      } catch (...) {
        slot.error = std::current_exception();
      }
      lock.lock();
      ready_.emplace(number, std::move(slot));
      changed_.notify_all();
    }
  }

  std::function<Item(std::int64_t)> make_;
  std::int64_t next_taken_, next_made_, ahead_;
  bool stopped_ = false;
  double waited_ = 0;
  std::map<std::int64_t, Slot> ready_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> workers_;
};

}  // namespace moh::data
