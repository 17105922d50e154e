#include "moh/serve/engine.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <span>

#include "moh/base/error.h"
#include "moh/models/llama_routing.h"
#include "moh/ops/packed_linear.h"

namespace moh::serve {
namespace {

using at::Tensor;

std::int64_t pages_for(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

struct Running {
  std::int64_t number = 0;
  Request request;
  text::Sampler sampler;
  std::vector<std::int64_t> tokens;  // the prompt and what was generated
  std::int64_t computed = 0;         // of them, in the cache
  std::int64_t told = 0;             // of the prompt, with echo
  std::size_t variant = 0;           // share of the heads
  std::vector<std::int32_t> pages;
  std::int64_t kept = 0;  // pages that others can find

  // Error: sampling options out of range.
  explicit Running(Request own_request)
      : request(std::move(own_request)), sampler(request.sampling, request.prompt), tokens(request.prompt) {}

  std::int64_t prompt_size() const { return static_cast<std::int64_t>(request.prompt.size()); }
  std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t generated() const { return size() - prompt_size(); }
  bool wants_prompt_logits() const { return request.echo && request.top_logprobs >= 0; }
  // The end of the chunk that comes next: of a prompt the next multiple of kPageTokens, then token by token.
  std::int64_t chunk_end() const {
    if (computed >= prompt_size()) return computed + 1;
    return std::min(prompt_size(), (computed / kPageTokens + 1) * kPageTokens);
  }
};
using RunningPtr = std::unique_ptr<Running>;

// Rows first .. end - 1 of a sequence's tokens in one forward pass.
struct Entry {
  Running* sequence;
  std::int64_t first, end;
};

struct LogitRow {
  Running* sequence;
  std::int64_t token;  // the logits are those of the token behind this one
};

std::vector<TokenLogprob> best_of(const Tensor& logprobs, std::int64_t count) {
  std::vector<TokenLogprob> best;
  if (count <= 0) return best;
  const double* const values = logprobs.const_data_ptr<double>();
  std::vector<std::int64_t> order(static_cast<std::size_t>(logprobs.numel()));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  const auto end = order.begin() + std::min<std::int64_t>(count, logprobs.numel());
  std::partial_sort(order.begin(), end, order.end(), [&](std::int64_t a, std::int64_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
  for (auto id = order.begin(); id != end; ++id) best.push_back({*id, values[*id]});
  return best;
}

// Of a row of a forward pass, as Token has them.
std::vector<std::string> heads_of_row(const std::vector<ops::Routing>& layers, std::int64_t row) {
  std::vector<std::string> heads;
  for (const ops::Routing& layer : layers) {
    const Tensor used = layer.gates[0][row].ne(0).contiguous();
    const bool* const flags = used.const_data_ptr<bool>();
    std::string& line = heads.emplace_back();
    for (std::int64_t head = 0; head < used.numel(); ++head) line += flags[head] ? '1' : '0';
  }
  return heads;
}

}  // namespace

struct Engine::Impl {
  models::Llama& model;
  const models::LlamaConfig config;  // as served; the model's own changes with the share of heads that a pass uses
  EngineOptions options;
  PagePool pool;
  std::vector<Tensor> layers;  // [P, Hkv, kPageTokens, 2 D] each
  std::vector<double> shares;  // by variant; the first is the model's own
  std::vector<std::optional<models::MohConfig>> variants;

  std::vector<RunningPtr> running;  // the oldest first
  std::deque<RunningPtr> waiting;

  std::mutex mutex;  // of what follows
  std::vector<RunningPtr> arrived;
  std::vector<std::int64_t> cancelled;
  std::int64_t next_number = 1;
  EngineState counts;

  Impl(models::Llama& served, const EngineOptions& wanted)
      : model(served),
        config(served.config()),
        options(wanted),
        pool(std::max<std::int64_t>(1, pages_for(wanted.cache_tokens))) {
    MOH_CHECK(model.device().is_cpu(), "[serve] the engine runs models on the CPU, this one is on ", model.device());
    MOH_CHECK(options.max_sequences > 0, "[serve] max_sequences must be positive, got ", options.max_sequences);
    options.step_tokens = std::max(options.step_tokens, kPageTokens);
    if (!model.is_packed()) model.pack_weights();
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      layers.push_back(at::zeros({pool.size(), config.num_key_value_heads, kPageTokens, 2 * config.head_dim},
                                 at::TensorOptions(model.dtype())));
    }
    shares.push_back(config.activated_share());
    variants.push_back(config.moh);
  }

  // With the mutex held: another thread may be computing.
  std::size_t variant_of(const std::optional<double>& activated) {
    if (!activated || *activated == shares[0]) return 0;
    for (std::size_t i = 0; i < shares.size(); ++i) {
      if (shares[i] == *activated) return i;
    }
    constexpr std::size_t kMostVariants = 64;
    MOH_CHECK(shares.size() < kMostVariants, "[serve] too many different shares of heads were asked for");
    models::LlamaConfig changed = config;
    models::set_activated_share(changed, *activated);
    shares.push_back(*activated);
    variants.push_back(changed.moh);
    return shares.size() - 1;
  }

  void check(const Request& request) const {
    const auto prompt = static_cast<std::int64_t>(request.prompt.size());
    MOH_CHECK(prompt > 0, "[serve] the prompt is empty and the model has no BOS token to start from");
    MOH_CHECK(request.max_tokens >= 0, "[serve] max_tokens must be at least 0, got ", request.max_tokens);
    const std::int64_t room = std::min(config.max_position_embeddings, pool.size() * kPageTokens);
    MOH_CHECK(prompt + (request.max_tokens > 0 ? 1 : 0) <= room, "[serve] the prompt has ", prompt,
              " tokens, the model's context and the cache have room for ", room);
    for (const std::int64_t id : request.prompt) {
      MOH_CHECK(id >= 0 && id < config.vocab_size, "[serve] prompt token ", id,
                " is outside the model's vocabulary of ", config.vocab_size);
    }
    MOH_CHECK(!request.activated || config.moh, "[serve] the model is dense, all its heads are always active");
    MOH_CHECK(!request.activated || (*request.activated > 0 && *request.activated <= 1),
              "[serve] activated must be in (0, 1], got ", *request.activated);
  }

  void release_pages(Running& sequence) {
    for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) pool.release(*page);
    sequence.pages.clear();
    sequence.kept = 0;
    sequence.computed = 0;
  }

  void finish(Running* sequence, Finish how, const std::string& error = "") {
    release_pages(*sequence);
    const auto is_it = [&](const RunningPtr& each) { return each.get() == sequence; };
    RunningPtr ended;
    if (const auto at = std::find_if(running.begin(), running.end(), is_it); at != running.end()) {
      ended = std::move(*at);
      running.erase(at);
    } else if (const auto at = std::find_if(waiting.begin(), waiting.end(), is_it); at != waiting.end()) {
      ended = std::move(*at);
      waiting.erase(at);
    }
    if (ended && ended->request.on_finish) ended->request.on_finish(how, error);
  }

  Running* find(std::int64_t number) {
    for (const RunningPtr& each : running) {
      if (each->number == number) return each.get();
    }
    for (const RunningPtr& each : waiting) {
      if (each->number == number) return each.get();
    }
    return nullptr;
  }

  void take_arrivals() {
    std::vector<RunningPtr> now;
    std::vector<std::int64_t> gone;
    {
      const std::lock_guard lock(mutex);
      now.swap(arrived);
      gone.swap(cancelled);
    }
    for (RunningPtr& each : now) waiting.push_back(std::move(each));
    for (const std::int64_t number : gone) {
      if (Running* const sequence = find(number)) finish(sequence, Finish::kCancelled);
    }
  }

  // What of the prompt's beginning is in the cache already; one token at least is computed, for its logits.
  void find_prefix(Running& sequence) {
    if (sequence.wants_prompt_logits()) return;
    while ((sequence.kept + 1) * kPageTokens < sequence.prompt_size()) {
      const auto begin = sequence.tokens.begin() + sequence.kept * kPageTokens;
      const std::int32_t page = pool.find(sequence.pages.empty() ? -1 : sequence.pages.back(),
                                          static_cast<std::int64_t>(sequence.variant), {begin, begin + kPageTokens});
      if (page < 0) break;
      sequence.pages.push_back(page);
      ++sequence.kept;
    }
    sequence.computed = sequence.kept * kPageTokens;
    const std::lock_guard lock(mutex);
    counts.cached_tokens += sequence.computed;
  }

  // The youngest gives up its pages and waits to be computed again. False: it was `sequence` itself.
  bool preempt_for(const Running* sequence) {
    RunningPtr youngest = std::move(running.back());
    running.pop_back();
    const bool other = youngest.get() != sequence;
    release_pages(*youngest);
    waiting.push_front(std::move(youngest));
    const std::lock_guard lock(mutex);
    ++counts.preemptions;
    return other;
  }

  // Pages for the tokens before `end`. False: the sequence itself had to give way.
  bool make_room(Running* sequence, std::int64_t end) {
    while (static_cast<std::int64_t>(sequence->pages.size()) < pages_for(end)) {
      if (const std::int32_t page = pool.take(); page >= 0) {
        sequence->pages.push_back(page);
      } else if (!preempt_for(sequence)) {
        return false;
      }
    }
    return true;
  }

  // What the next step computes: the oldest sequences first, a token of each that is decoding and chunks of prompts as
  // far as they fit.
  std::vector<Entry> plan() {
    std::vector<Entry> entries;
    std::int64_t left = options.step_tokens;
    const auto add = [&](Running* sequence) {
      bool in_step = false;
      while (sequence->computed < sequence->size()) {
        const std::int64_t first = sequence->computed, end = sequence->chunk_end();
        if (in_step ? end - first > left : end - first > left && !entries.empty()) return true;
        if (!make_room(sequence, end)) {  // what it had in this step goes with its pages
          std::erase_if(entries, [&](const Entry& entry) { return entry.sequence == sequence; });
          return false;
        }
        entries.push_back({sequence, first, end});
        in_step = true;
        left -= end - first;
        sequence->computed = end;
      }
      return true;
    };
    for (std::size_t i = 0; i < running.size(); ++i) {
      if (left <= 0 || !add(running[i].get())) break;
    }
    while (left > 0 && !waiting.empty() && static_cast<std::int64_t>(running.size()) < options.max_sequences) {
      Running* const sequence = waiting.front().get();
      // No page is taken from those who run for one who comes: it waits until there is room for all of its tokens.
      find_prefix(*sequence);
      if (!running.empty() && pages_for(sequence->size() + 1) - static_cast<std::int64_t>(sequence->pages.size()) >
                                  pool.size() - pool.used()) {
        release_pages(*sequence);
        break;
      }
      running.push_back(std::move(waiting.front()));
      waiting.pop_front();
      if (!add(sequence)) break;
    }
    return entries;
  }

  void compute(std::size_t variant, const std::vector<Entry>& entries) {
    std::vector<std::int64_t> ids, positions, slots, list, wanted;
    std::vector<LogitRow> logit_rows;
    std::int64_t most_pages = 1;
    for (const Entry& entry : entries) most_pages = std::max(most_pages, pages_for(entry.end));
    const auto count = static_cast<std::int64_t>(entries.size());
    const Tensor pages = at::zeros({count, most_pages}, at::TensorOptions(at::kInt));
    for (std::int64_t n = 0; n < count; ++n) {
      const Entry& entry = entries[static_cast<std::size_t>(n)];
      const Running& sequence = *entry.sequence;
      list.insert(list.end(), {static_cast<std::int64_t>(ids.size()), entry.end - entry.first, entry.end});
      std::copy_n(sequence.pages.begin(), pages_for(entry.end),
                  pages.mutable_data_ptr<std::int32_t>() + n * most_pages);
      for (std::int64_t t = entry.first; t < entry.end; ++t) {
        const bool of_prompt = t + 1 < sequence.prompt_size();
        if (t + 1 == sequence.size() || (of_prompt && sequence.wants_prompt_logits())) {
          wanted.push_back(static_cast<std::int64_t>(ids.size()));
          logit_rows.push_back({entry.sequence, t});
        }
        ids.push_back(sequence.tokens[t]);
        positions.push_back(t);
        slots.push_back(sequence.pages[t / kPageTokens] * kPageTokens + t % kPageTokens);
      }
    }
    const auto longs = [](const std::vector<std::int64_t>& values) {
      return at::tensor(values, at::TensorOptions(at::kLong));
    };
    const models::PagedKeys keys = {
        .pools = &layers, .sequences = longs(list).view({count, 3}), .pages = pages, .slots = longs(slots)};
    {
      const std::lock_guard lock(mutex);
      model.mutable_config().moh = variants[variant];
    }
    const models::LlamaOutput output = model.forward({.ids = longs(ids).unsqueeze(0),
                                                      .position_ids = longs(positions),
                                                      .paged = &keys,
                                                      .logit_rows = longs(wanted)});
    const Tensor logits = output.logits.squeeze(0);
    for (const Entry& entry : entries) keep_pages(*entry.sequence);
    for (std::size_t i = 0; i < logit_rows.size(); ++i) {
      use_logits(logit_rows[i], logits[static_cast<std::int64_t>(i)],
                 [&] { return heads_of_row(output.routing, wanted[i]); });
    }
  }

  // Whole pages of the prompt can be found by others from now on.
  void keep_pages(Running& sequence) {
    const std::int64_t whole = std::min(sequence.computed, sequence.prompt_size()) / kPageTokens;
    for (; sequence.kept < whole; ++sequence.kept) {
      const auto begin = sequence.tokens.begin() + sequence.kept * kPageTokens;
      std::int32_t& page = sequence.pages[sequence.kept];
      page = pool.keep(sequence.kept == 0 ? -1 : sequence.pages[sequence.kept - 1],
                       static_cast<std::int64_t>(sequence.variant), {begin, begin + kPageTokens}, page);
    }
  }

  Token described(const Running& sequence, std::int64_t id, const Tensor& logprobs) const {
    Token token;
    token.id = id;
    if (sequence.request.top_logprobs >= 0) {
      token.logprob = logprobs.const_data_ptr<double>()[id];
      token.top = best_of(logprobs, sequence.request.top_logprobs);
    }
    return token;
  }

  // The tokens of the prompt before `end`, as far as its owner was not told of them.
  bool tell_prompt(Running& sequence, std::int64_t end, const Tensor& logprobs) {
    for (; sequence.request.echo && sequence.told < end; ++sequence.told) {
      Token token;
      const std::int64_t id = sequence.tokens[sequence.told];
      if (sequence.told > 0 && logprobs.defined()) token = described(sequence, id, logprobs);
      token.id = id;
      token.of_prompt = true;
      if (sequence.request.on_token && !sequence.request.on_token(token)) return false;
    }
    return true;
  }

  void use_logits(const LogitRow& row, const Tensor& logits, const std::function<std::vector<std::string>()>& heads) {
    Running* const sequence = find_running(row.sequence);
    if (sequence == nullptr) return;  // ended by an earlier row
    Request& request = sequence->request;
    try {
      Tensor logprobs;
      if (request.top_logprobs >= 0) logprobs = at::log_softmax(logits.to(at::kDouble), -1).contiguous();
      if (row.token + 1 < sequence->prompt_size()) {
        // Logits of the prompt's token row.token + 1: the first has none.
        if (!tell_prompt(*sequence, 1, {}) || !tell_prompt(*sequence, row.token + 2, logprobs)) {
          finish(sequence, Finish::kStop);
        }
        return;
      }
      if (!tell_prompt(*sequence, sequence->prompt_size(), {})) return finish(sequence, Finish::kStop);
      if (sequence->generated() >= request.max_tokens) return finish(sequence, Finish::kLength);
      const Tensor row_logits = logits.to(at::kFloat).contiguous();
      const std::int64_t id = sequence->sampler(
          std::span<const float>(row_logits.const_data_ptr<float>(), static_cast<std::size_t>(row_logits.numel())));
      {
        const std::lock_guard lock(mutex);
        ++counts.generated_tokens;
      }
      if (std::find(request.end_ids.begin(), request.end_ids.end(), id) != request.end_ids.end()) {
        return finish(sequence, Finish::kStop);
      }
      Token token = described(*sequence, id, logprobs);
      if (request.tell_heads) token.heads = heads();
      if (request.on_token && !request.on_token(token)) return finish(sequence, Finish::kStop);
      sequence->tokens.push_back(id);
      const std::int64_t room = std::min(config.max_position_embeddings, pool.size() * kPageTokens);
      if (sequence->generated() >= request.max_tokens || sequence->size() >= room) finish(sequence, Finish::kLength);
    } catch (const std::exception& error) {  // this request's fault alone: NaN logits
      finish(sequence, Finish::kError, error.what());
    }
  }

  Running* find_running(const Running* wanted) const {
    for (const RunningPtr& each : running) {
      if (each.get() == wanted) return each.get();
    }
    return nullptr;
  }

  void publish() {
    const std::lock_guard lock(mutex);
    counts.waiting = static_cast<std::int64_t>(waiting.size());
    counts.running = static_cast<std::int64_t>(running.size());
    counts.pages = pool.size();
    counts.used_pages = pool.used();
    counts.kept_pages = pool.kept();
  }

  bool step() {
    const c10::InferenceMode no_gradients;
    const ops::RowwiseProducts row_by_row;
    take_arrivals();
    const std::vector<Entry> entries = plan();
    std::map<std::size_t, std::vector<Entry>> by_variant;
    std::int64_t prompt_tokens = 0;
    for (const Entry& entry : entries) {
      by_variant[entry.sequence->variant].push_back(entry);
      prompt_tokens += std::max<std::int64_t>(0, std::min(entry.end, entry.sequence->prompt_size()) - entry.first);
    }
    {
      const std::lock_guard lock(mutex);
      counts.prompt_tokens += prompt_tokens;
      counts.steps += entries.empty() ? 0 : 1;
    }
    for (const auto& [variant, group] : by_variant) compute(variant, group);
    publish();
    const std::lock_guard lock(mutex);
    return !running.empty() || !waiting.empty() || !arrived.empty() || !cancelled.empty();
  }
};

Engine::Engine(models::Llama& model, const EngineOptions& options) : impl_(std::make_unique<Impl>(model, options)) {
  impl_->publish();
}
Engine::~Engine() = default;

std::int64_t Engine::submit(Request request) {
  impl_->check(request);
  auto sequence = std::make_unique<Running>(std::move(request));
  const std::lock_guard lock(impl_->mutex);
  sequence->variant = impl_->variant_of(sequence->request.activated);
  sequence->number = impl_->next_number++;
  impl_->arrived.push_back(std::move(sequence));
  ++impl_->counts.waiting;
  return impl_->next_number - 1;
}

void Engine::cancel(std::int64_t number) {
  const std::lock_guard lock(impl_->mutex);
  impl_->cancelled.push_back(number);
}

bool Engine::step() { return impl_->step(); }

EngineState Engine::state() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

}  // namespace moh::serve
