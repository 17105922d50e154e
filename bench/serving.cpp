#include "bench/serving.h"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <cmath>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "moh/base/error.h"

namespace moh::bench {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

struct Job {
  std::vector<std::int64_t> prompt;
  std::int64_t max_tokens = 0, hang_up_after = 0;  // 0: it stays
  Clock::duration begin{};                         // after the start
};

struct Outcome {
  std::string text, error;
  std::int64_t tokens = 0;
  double first = 0, last = 0, whole = 0;  // milliseconds from the request on
  bool ended = false, hung_up = false;
};

std::vector<Job> make_jobs(const ServingOptions& options) {
  std::mt19937_64 random(options.seed);
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  std::vector<Job> jobs(static_cast<std::size_t>(options.requests));
  double at = 0;
  for (Job& job : jobs) {
    job.prompt.resize(static_cast<std::size_t>(between(options.shortest_prompt, options.longest_prompt)));
    for (std::int64_t& token : job.prompt) token = between(0, options.vocabulary - 1);
    job.max_tokens = between(options.shortest_reply, options.longest_reply);
    if (std::bernoulli_distribution(options.hang_up)(random)) job.hang_up_after = between(1, job.max_tokens);
    if (options.rate > 0) at += std::exponential_distribution<double>(options.rate)(random);
    job.begin = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(at));
  }
  return jobs;
}

// Takes the events of a stream that have come whole.
void take_events(std::string& body, std::size_t& done, const Clock::time_point start, Outcome& outcome) {
  for (std::size_t end; (end = body.find("\n\n", done)) != std::string::npos; done = end + 2) {
    const std::string event = body.substr(done, end - done);
    if (!event.starts_with("data: ") || event == "data: [DONE]") continue;
    const Json json = Json::parse(event.substr(6), nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() || json.contains("error")) {
      outcome.error = event.substr(0, 200);
      continue;
    }
    if (!json.contains("choices") || json["choices"].empty()) continue;
    const Json& choice = json["choices"][0];
    if (choice.contains("finish_reason") && !choice["finish_reason"].is_null()) outcome.ended = true;
    outcome.text += choice.value("text", "");
    const auto logprobs = choice.find("logprobs");
    if (logprobs == choice.end() || !logprobs->is_object()) continue;
    outcome.last = milliseconds(Clock::now() - start);
    if (outcome.tokens == 0) outcome.first = outcome.last;
    outcome.tokens += static_cast<std::int64_t>(logprobs->value("tokens", Json::array()).size());
  }
}

Outcome ask(const ServingOptions& options, const Job& job) {
  Outcome outcome;
  const auto start = Clock::now();
  try {
    asio::io_context context;
    tcp::socket socket(context);
    socket.connect({asio::ip::make_address(options.host), static_cast<unsigned short>(options.port)});
    socket.set_option(tcp::no_delay(true));
    Json body = {
        {"model", options.model}, {"prompt", job.prompt}, {"max_tokens", job.max_tokens},
        {"temperature", 0},       {"stream", true},       {"ignore_eos", true},
        {"logprobs", 0}};  // with them every token is an event of its own, whether or not it is a whole character
    if (options.activated) body["activated"] = *options.activated;
    http::request<http::string_body> request(http::verb::post, "/v1/completions", 11);
    request.set(http::field::host, options.host);
    request.set(http::field::content_type, "application/json");
    request.body() = body.dump();
    request.prepare_payload();
    http::write(socket, request);
    beast::flat_buffer buffer;
    http::response_parser<http::string_body> parser;
    parser.body_limit(std::uint64_t{1} << 30);
    http::read_header(socket, buffer, parser);
    std::size_t done = 0;
    while (!parser.is_done()) {
      http::read_some(socket, buffer, parser);
      if (parser.get().result() != http::status::ok) continue;
      take_events(parser.get().body(), done, start, outcome);
      if (job.hang_up_after > 0 && outcome.tokens >= job.hang_up_after) {
        outcome.hung_up = true;
        return outcome;
      }
    }
    if (parser.get().result() != http::status::ok) outcome.error = parser.get().body().substr(0, 200);
    if (outcome.error.empty() && !outcome.ended) outcome.error = "the stream ended without a finish_reason";
  } catch (const std::exception& error) {
    outcome.error = error.what();
  }
  outcome.whole = milliseconds(Clock::now() - start);
  return outcome;
}

Json distribution(std::vector<double> values) {
  if (values.empty()) return nullptr;
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += value;
  const auto quantile = [&](double q) {  // the smallest value that a share q does not exceed
    const auto rank = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size())));
    return values[std::max<std::size_t>(rank, 1) - 1];
  };
  return {{"mean", sum / static_cast<double>(values.size())},
          {"p50", quantile(0.5)},
          {"p90", quantile(0.9)},
          {"p99", quantile(0.99)}};
}

void check(const ServingOptions& options) {
  MOH_CHECK(options.requests > 0 && options.concurrency > 0, "[bench] --requests and --concurrency must be positive");
  MOH_CHECK(options.rate >= 0, "[bench] --rate must not be negative, got ", options.rate);
  MOH_CHECK(options.hang_up >= 0 && options.hang_up <= 1, "[bench] --hang-up must be in [0, 1], got ", options.hang_up);
  MOH_CHECK(0 < options.shortest_prompt && options.shortest_prompt <= options.longest_prompt,
            "[bench] the shortest prompt must have 1 to ", options.longest_prompt, " tokens, got ",
            options.shortest_prompt);
  MOH_CHECK(0 < options.shortest_reply && options.shortest_reply <= options.longest_reply,
            "[bench] the shortest reply must have 1 to ", options.longest_reply, " tokens, got ",
            options.shortest_reply);
}

}  // namespace

Json time_serving(const ServingOptions& options, const std::atomic<bool>& stop,
                  const std::function<void(std::int64_t)>& on_done) {
  check(options);
  const std::vector<Job> jobs = make_jobs(options);
  std::vector<Outcome> outcomes(jobs.size());
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::int64_t done = 0;
  const auto start = Clock::now();
  const auto client = [&] {
    for (std::size_t i; !stop && (i = next++) < jobs.size();) {
      while (!stop && Clock::now() < start + jobs[i].begin) {
        const Clock::duration left = start + jobs[i].begin - Clock::now();
        std::this_thread::sleep_for(std::min<Clock::duration>(left, std::chrono::milliseconds(100)));
      }
      outcomes[i] = ask(options, jobs[i]);
      const std::lock_guard lock(mutex);
      on_done(++done);
    }
  };
  std::vector<std::thread> clients;
  for (std::int64_t i = 0; i < std::min(options.concurrency, options.requests); ++i) clients.emplace_back(client);
  for (std::thread& each : clients) each.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();

  std::int64_t completed = 0, hung_up = 0, errors = 0, prompt_tokens = 0, generated = 0;
  std::vector<double> first, per_token, whole;
  Json result = Json::object();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const Outcome& outcome = outcomes[i];
    generated += outcome.tokens;
    if (outcome.tokens > 0) prompt_tokens += static_cast<std::int64_t>(jobs[i].prompt.size());
    if (!outcome.error.empty()) {
      if (errors++ == 0) result["first_error"] = outcome.error;
      continue;
    }
    if (outcome.tokens > 0) first.push_back(outcome.first);
    if (outcome.hung_up) {
      ++hung_up;
      continue;
    }
    if (!outcome.ended) continue;  // never asked
    ++completed;
    whole.push_back(outcome.whole);
    if (outcome.tokens > 1) {
      per_token.push_back((outcome.last - outcome.first) / static_cast<double>(outcome.tokens - 1));
    }
  }
  result["requests"] = jobs.size();
  result["completed"] = completed;
  result["hung_up"] = hung_up;
  result["errors"] = errors;
  result["seconds"] = seconds;
  result["prompt_tokens"] = prompt_tokens;
  result["generated_tokens"] = generated;
  result["requests_per_second"] = static_cast<double>(completed) / seconds;
  result["tokens_per_second"] = static_cast<double>(generated) / seconds;
  result["ttft_ms"] = distribution(first);
  result["time_per_token_ms"] = distribution(per_token);
  result["request_ms"] = distribution(whole);
  if (options.verify) {
    std::int64_t verified = 0, different = 0;
    for (std::size_t i = 0; i < jobs.size() && !stop; ++i) {
      if (!outcomes[i].ended) continue;
      const Outcome alone = ask(options, jobs[i]);
      ++verified;
      different += alone.text != outcomes[i].text || alone.tokens != outcomes[i].tokens;
    }
    result["verified"] = verified;
    result["different"] = different;
  }
  return result;
}

}  // namespace moh::bench
