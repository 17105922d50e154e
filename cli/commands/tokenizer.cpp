// moh tokenizer encode|decode|train.
#include "moh/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/progress.h"
#include "moh/data/token_data.h"
#include "moh/io/checkpoint.h"
#include "moh/io/files.h"
#include "moh/io/npy.h"

namespace moh::cli {
namespace {

struct Options {
  std::string folder, file, out;
  int vocab_size = 512;
  bool bos = false, eos = false, parse_special = false;
};

int encode(const Context& context, const Options& options) {
  const auto tokenizer = text::load_tokenizer(options.folder);
  const std::string text = io::read_file(options.file);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::int64_t> ids = tokenizer->encode(text, options.parse_special);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  MOH_CHECK(!options.bos || tokenizer->bos_id() >= 0, "[tokenizer] ", options.folder, " has no BOS token");
  MOH_CHECK(!options.eos || tokenizer->eos_id() >= 0, "[tokenizer] ", options.folder, " has no EOS token");
  if (options.bos) ids.insert(ids.begin(), tokenizer->bos_id());
  if (options.eos) ids.push_back(tokenizer->eos_id());
  const auto count = static_cast<std::int64_t>(ids.size());
  if (tokenizer->vocab_size() <= 65536) {
    const std::vector<std::uint16_t> narrow(ids.begin(), ids.end());
    io::write_npy(options.out, "u2", {count}, std::as_bytes(std::span(narrow)));
  } else {
    const std::vector<std::uint32_t> wide(ids.begin(), ids.end());
    io::write_npy(options.out, "u4", {count}, std::as_bytes(std::span(wide)));
  }
  context.emit({{"tokens", count}, {"bytes", text.size()}, {"seconds", seconds}, {"out", options.out}});
  context.say(fmt::format("wrote {}: {} tokens", options.out, with_commas(count)));
  return 0;
}

int decode(const Context& context, const Options& options) {
  const auto tokenizer = text::load_tokenizer(options.folder);
  // Models pad their vocabulary: such ids are no mistake, and stand for nothing.
  std::int64_t vocab_size = tokenizer->vocab_size();
  if (std::filesystem::exists(options.folder + "/config.json")) {
    const Json config = io::load_config(options.folder);
    const auto found = config.find("vocab_size");
    if (found != config.end() && found->is_number_integer())
      vocab_size = std::max(vocab_size, found->get<std::int64_t>());
  }
  const auto stream = data::TokenStream::open(options.file, nullptr, vocab_size);
  std::vector<std::int64_t> ids(stream.size());
  for (std::int64_t i = 0; i < stream.size(); ++i) ids[i] = stream[i];
  const std::string text = tokenizer->decode(ids);
  if (!options.out.empty()) {
    io::write_file(options.out, text);
    context.say("wrote " + options.out);
  } else if (!context.json) {
    fmt::print("{}\n", text);
  }
  Json line = Json::object();
  line["tokens"] = stream.size();
  if (options.out.empty()) line["text"] = text;
  context.emit(line);
  return 0;
}

int train(const Context& context, const Options& options) {
  std::error_code error;
  std::filesystem::create_directories(options.folder, error);
  MOH_CHECK(!error, "[tokenizer] cannot make folder ", options.folder, ": ", error.message());
  text::train_tokenizer(options.file, options.folder, options.vocab_size);
  const auto tokenizer = text::load_tokenizer(options.folder);
  context.emit({{"tokens", tokenizer->vocab_size()}, {"out", options.folder}});
  context.say(fmt::format("wrote {}/tokenizer.model: {} pieces", options.folder, with_commas(tokenizer->vocab_size())));
  return 0;
}

const Registered registered{
    {"tokenizer", "encode, decode or train", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.require_subcommand(1);
       CLI::App* encode_app = app.add_subcommand("encode", "text file to .npy of token ids")->fallthrough();
       encode_app->add_option("folder", options->folder, "model folder")->required();
       encode_app->add_option("--file", options->file, "text file")->required();
       encode_app->add_option("--out", options->out, "ids.npy")->required();
       encode_app->add_flag("--bos", options->bos, "begin with the BOS token");
       encode_app->add_flag("--eos", options->eos, "end with the EOS token");
       encode_app->add_flag("--parse-special", options->parse_special,
                            "special tokens written in the text become those tokens (default: they are plain text)");
       CLI::App* decode_app = app.add_subcommand("decode", ".npy or .bin of token ids to text")->fallthrough();
       decode_app->add_option("folder", options->folder, "model folder")->required();
       decode_app->add_option("--file", options->file, ".npy or .bin")->required();
       decode_app->add_option("--out", options->out, "text file (default: standard output)");
       CLI::App* train_app = app.add_subcommand("train", "a SentencePiece BPE model from text")->fallthrough();
       train_app->add_option("folder", options->folder, "where tokenizer.model goes")->required();
       train_app->add_option("--file", options->file, "text file")->required();
       train_app->add_option("--vocab-size", options->vocab_size, "pieces");
       return [options, &context, encode_app, decode_app] {
         end_at_once_when_interrupted();
         return encode_app->parsed()   ? encode(context, *options)
                : decode_app->parsed() ? decode(context, *options)
                                       : train(context, *options);
       };
     }}};

}  // namespace
}  // namespace moh::cli
