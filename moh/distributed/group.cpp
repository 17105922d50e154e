// The only file besides store.cpp that knows c10d, whose headers are heavy.
#define USE_C10D_GLOO  // without which torch's header is empty

#include "moh/distributed/group.h"

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <future>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "moh/base/trace.h"

namespace moh::distributed {
namespace {

using at::Tensor;
using Milliseconds = std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr const char* kError = "error";    // the message of the process that failed first
constexpr const char* kFailed = "failed";  // somebody's message did not get through: everybody says where they stand
constexpr Milliseconds kLook{200};         // how often the watcher looks
constexpr Milliseconds kRollCall{4000};    // how long the others have to answer

std::vector<std::uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
std::string answer_key(int rank) { return "answer/" + std::to_string(rank); }
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// The network that messages take: the interface that GLOO_SOCKET_IFNAME names, else the machine's own; processes that
// meet on the loopback stay there, whatever the machine's name resolves to.
std::shared_ptr<gloo::transport::Device> device_for(const std::string& host) {
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface != nullptr && *interface != '\0') {
    return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  }
  if (host == "localhost" || host.starts_with("127.")) {
    return c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1");
  }
  return c10d::ProcessGroupGloo::createDefaultDevice();
}

// A span from here to the moment at which it is done, whoever waits for it.
void trace_until_done(const c10::intrusive_ptr<c10d::Work>& work, const char* what) {
  if (!trace::is_on()) return;
  work->getFuture()->addCallback([what, begin = trace::Clock::now()](c10::ivalue::Future&) {
    if (trace::is_on()) trace::add(what, trace::Lane::kNetwork, begin, trace::Clock::now());
  });
}

std::string named(const std::vector<int>& ranks, int size) {
  std::string names = ranks.size() == 1 ? "process " : "processes ";
  for (std::size_t i = 0; i < ranks.size(); ++i) names += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return names + " of " + std::to_string(size);
}

}  // namespace

struct Group::Impl {
  Membership me;
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> gloo;
  std::atomic<std::int64_t> sent{0};
  std::int64_t found = 0;  // from_first so far
  bool store_is_gone = false;

  // A thread that answers, if somebody fails, whether this process waits for the others or they for it.
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;
  std::atomic<bool> waiting{false};
  std::thread watcher;

  c10::intrusive_ptr<c10d::Store> connect() const {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(me.port);
    options.isServer = me.rank == 0 && !me.store_elsewhere;
    options.waitWorkers = false;
    options.timeout = timeout();
    const auto base = c10::make_intrusive<c10d::TCPStore>(me.host, options);
    // Processes that were started again must not find what those before them left.
    return c10::make_intrusive<c10d::PrefixStore>("moh/" + std::to_string(me.attempt), base);
  }

  Milliseconds timeout() const { return Milliseconds(static_cast<std::int64_t>(me.timeout * 1000)); }

  void watch(const c10::intrusive_ptr<c10d::Store>& view) {
    try {
      for (;;) {
        {
          std::unique_lock lock(mutex);
          if (changed.wait_for(lock, kLook, [&] { return ended; })) return;
        }
        if (!view->check({kFailed})) continue;
        view->set(answer_key(me.rank), bytes_of(waiting ? "waiting" : "busy"));
        return;
      }
    } catch (const std::exception&) {  // the store is gone: whoever talks to it next says so
    }
  }

  // What a collective that failed means to the user.
  [[noreturn]] void broken(const char* what, const std::string& detail) {
    struct Answers {
      std::vector<int> missing;
      std::string told, unreachable;
    };
    const auto call = [this] {
      Answers answers;
      try {
        answers.missing = roll_call(answers.told);
      } catch (const std::exception& error) {
        answers.unreachable = first_line(error.what());
      }
      return answers;
    };
    // In a thread of its own: where the network itself is gone, the store may not answer for a quarter of an hour. This
    // process ends before that.
    auto task = std::make_shared<std::packaged_task<Answers()>>(call);
    auto future = task->get_future();
    std::thread([task] { (*task)(); }).detach();
    Answers answers;
    if (future.wait_for(2 * kRollCall) == std::future_status::ready) {
      answers = future.get();
    } else {
      answers.unreachable = "no answer";
    }
    if (!answers.told.empty()) throw ToldElsewhere("[distributed] another process failed: " + answers.told);
    if (!answers.unreachable.empty()) {
      store_is_gone = true;
      fail("[distributed] `", what, "` failed and ", me.store_elsewhere ? "the starting process" : "process 0",
           ", which keeps the store at ", me.host, ":", me.port, ", cannot be reached: ", answers.unreachable);
    }
    const auto& missing = answers.missing;
    if (missing.empty()) fail("[distributed] `", what, "` failed: ", detail);
    fail("[distributed] ", named(missing, me.size), missing.size() == 1 ? " is" : " are", " missing at `", what,
         "`: ended, stopped or busy with something else for more than ", me.timeout, " s");
  }

  // Processes that do not answer or do not wait for the others. `told`: the message of a process that has said why it
  // fails.
  std::vector<int> roll_call(std::string& told) {
    store->set(kFailed, bytes_of("1"));
    store->set(answer_key(me.rank), bytes_of("waiting"));
    const auto until = Clock::now() + kRollCall;
    std::vector<int> missing;
    for (;;) {
      if (store->check({kError})) {
        told = text_of(store->get(kError));
        return missing;
      }
      missing.clear();
      bool all_answered = true;
      for (int rank = 0; rank < me.size; ++rank) {
        const bool answered = store->check({answer_key(rank)});
        all_answered = all_answered && answered;
        if (!answered || text_of(store->get(answer_key(rank))) != "waiting") missing.push_back(rank);
      }
      // Those that answer do so at once; a process that just failed may still be about to say why.
      if (Clock::now() > until || (all_answered && Clock::now() > until - kRollCall / 2)) return missing;
      std::this_thread::sleep_for(kLook);
    }
  }

  template <class Call>
  void guarded(const char* what, Call&& call) {
    waiting = true;
    try {
      call();
    } catch (const std::exception& error) {
      broken(what, first_line(error.what()));
    }
    waiting = false;
  }
};

namespace {

class GlooPending : public Pending {
 public:
  explicit GlooPending(std::function<void()> wait) : wait_(std::move(wait)) {}
  void wait() override { wait_(); }

 private:
  std::function<void()> wait_;
};

class Nothing : public Pending {
 public:
  void wait() override {}
};

}  // namespace

Group::Group() = default;

Group::Group(const Membership& membership) : membership_(membership) {
  if (alone()) return;
  impl_ = std::make_unique<Impl>();
  Impl& impl = *impl_;
  impl.me = membership;
  const std::string place = membership.host + ":" + std::to_string(membership.port);
  try {
    impl.store = impl.connect();
    impl.store->setTimeout(impl.timeout());
  } catch (const std::exception& error) {
    fail("[distributed] process ", rank(), " of ", size(), " cannot reach the store at ", place, ": ",
         first_line(error.what()));
  }
  const auto presence = [](int rank) { return "here/" + std::to_string(rank); };
  try {
    impl.store->set(presence(rank()), bytes_of("1"));
    std::vector<std::string> all;
    for (int i = 0; i < size(); ++i) all.push_back(presence(i));
    impl.store->wait(all, impl.timeout());
  } catch (const std::exception&) {
    std::vector<int> missing;
    for (int i = 0; i < size(); ++i) {
      if (!impl.store->check({presence(i)})) missing.push_back(i);
    }
    fail("[distributed] ", named(missing, size()), " did not come to ", place, " within ", membership.timeout, " s");
  }
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(impl.timeout());
    options->devices.push_back(device_for(membership.host));
    impl.gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", impl.store),
                                                            rank(), size(), options);
  } catch (const std::exception& error) {
    impl.broken("meeting", first_line(error.what()));
  }
  impl.watcher = std::thread([&impl, view = impl.store->clone()] { impl.watch(view); });
}

Group::~Group() {
  if (!impl_) return;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->ended = true;
  }
  impl_->changed.notify_all();
  if (impl_->store_is_gone) {  // threads still wait for it; they end with the process
    impl_->watcher.detach();
    impl_.release();  // NOLINT: theirs
    return;
  }
  impl_->watcher.join();
}

void Group::sum(Tensor& values, const char* what) const {
  if (alone() || values.numel() == 0) return;
  const trace::Span span(what, trace::Lane::kNetwork);
  std::vector<Tensor> tensors = {values.contiguous()};
  impl_->guarded(what, [&] { impl_->gloo->allreduce(tensors)->wait(); });
  impl_->sent += static_cast<std::int64_t>(values.nbytes()) * 2 * (size() - 1) / size();
  if (!tensors[0].is_same(values)) values.copy_(tensors[0]);
}

void Group::sum(std::vector<double>& values, const char* what) const {
  if (alone()) return;
  Tensor view = at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kDouble);
  sum(view, what);
}

std::unique_ptr<Pending> Group::exchange(Tensor rows, Tensor received, const char* what) const {
  if (alone()) {
    received.copy_(rows);
    return std::make_unique<Nothing>();
  }
  std::vector<std::int64_t> equal;  // no counts: equal parts
  // As bytes: Gloo need not know the type to carry it.
  Tensor from = rows.view(at::kByte), to = received.view(at::kByte);
  c10::intrusive_ptr<c10d::Work> work;
  impl_->guarded(what, [&] { work = impl_->gloo->alltoall_base(to, from, equal, equal); });
  trace_until_done(work, what);
  impl_->sent += static_cast<std::int64_t>(rows.nbytes()) * (size() - 1) / size();
  return std::make_unique<GlooPending>(
      [this, work, rows, received, what] { impl_->guarded(what, [&] { work->wait(); }); });
}

std::unique_ptr<Pending> Group::gather(Tensor mine, Tensor all, const char* what) const {
  if (alone()) {
    all.copy_(mine.view_as(all));
    return std::make_unique<Nothing>();
  }
  Tensor from = mine.view(-1).view(at::kByte), to = all.view(-1).view(at::kByte);
  c10::intrusive_ptr<c10d::Work> work;
  impl_->guarded(what, [&] { work = impl_->gloo->_allgather_base(to, from); });
  trace_until_done(work, what);
  impl_->sent += static_cast<std::int64_t>(mine.nbytes()) * (size() - 1);
  return std::make_unique<GlooPending>([this, work, from, to, what] { impl_->guarded(what, [&] { work->wait(); }); });
}

void Group::barrier(const char* what) const {
  std::vector<double> nothing = {0};
  sum(nothing, what);
}

std::string Group::from_first(const std::function<std::string()>& find, const char* what) const {
  if (alone()) return find();
  const std::string key = "found/" + std::to_string(impl_->found++);
  if (rank() == 0) {
    const std::string text = find();
    impl_->guarded(what, [&] { impl_->store->set(key, bytes_of(text)); });
    return text;
  }
  std::string text;
  impl_->guarded(what, [&] {
    while (!impl_->store->check({key})) {
      if (impl_->store->check({kError}) || impl_->store->check({kFailed})) fail("process 0 did not find it");
      std::this_thread::sleep_for(kLook / 4);
    }
    text = text_of(impl_->store->get(key));
  });
  return text;
}

bool Group::claim_error(const std::string& message) const {
  if (alone() || impl_->store_is_gone) return true;
  try {
    const auto mine = bytes_of("process " + std::to_string(rank()) + ": " + message);
    return impl_->store->compareSet(kError, {}, mine) == mine;
  } catch (const std::exception&) {
    return true;  // better twice than never
  }
}

const Group& alone() {
  static const Group one;
  return one;
}

std::int64_t Group::bytes_sent() const { return impl_ ? impl_->sent.load() : 0; }

}  // namespace moh::distributed
