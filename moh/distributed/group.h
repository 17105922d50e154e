// Processes that work on one thing together, and the few things that they say to one another. Process 0 .. size - 1; a
// process that is alone has a group of one, in which all of this is nothing to do.
//
// Every call is one that all processes make, in the same order. Each takes at most the membership's time-out; what
// fails says which process is missing, and one process alone speaks for all (see claim_error).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moh/base/error.h"
#include "moh/distributed/membership.h"

namespace moh::distributed {

// An error that another process has told the user of.
class ToldElsewhere : public Error {
 public:
  using Error::Error;
};

// Something on its way; tensors concerned must not be touched before wait() returns.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

class Group {
 public:
  Group();  // of one
  // Meets the others. Errors: some do not come within the time-out, named.
  explicit Group(const Membership& membership);
  ~Group();  // all leave together
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return membership_.rank; }
  int size() const { return membership_.size; }
  bool alone() const { return membership_.size == 1; }
  // This process's part [first, second) of `count` things, whose sizes differ by one at most.
  std::pair<std::int64_t, std::int64_t> share(std::int64_t count) const {
    return {count * rank() / size(), count * (rank() + 1) / size()};
  }

  // Sums over the processes, in place: the same to the bit in all of them. `what` names it in errors.
  void sum(at::Tensor& values, const char* what) const;
  void sum(std::vector<double>& values, const char* what) const;
  // rows [size, n] contiguous: row i goes to process i. Into `received` [size, n]: row i comes from process i.
  std::unique_ptr<Pending> exchange(at::Tensor rows, at::Tensor received, const char* what) const;
  // mine [n] of every process, into all [size, n].
  std::unique_ptr<Pending> gather(at::Tensor mine, at::Tensor all, const char* what) const;
  void barrier(const char* what) const;

  // What process 0 finds; the others wait for it as long as it takes. `what` names it in errors.
  std::string from_first(const std::function<std::string()>& find, const char* what) const;

  // Says that this process ends with an error. True if it shall tell the user: the first that fails does. False:
  // another has, and everybody's message would be the same or a consequence.
  bool claim_error(const std::string& message) const;

  std::int64_t bytes_sent() const;  // of exchanges, gatherings and sums so far, by this process

 private:
  struct Impl;
  Membership membership_;
  std::unique_ptr<Impl> impl_;
};

// The group of one.
const Group& alone();

}  // namespace moh::distributed
