#include "moh/data/tokenize.h"

#include <fcntl.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <future>

#include "moh/base/error.h"
#include "moh/base/fields.h"
#include "moh/data/line_reader.h"
#include "moh/data/text_file.h"
#include "moh/io/files.h"
#include "moh/io/folder_walk.h"

namespace moh::data {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kChunkBytes = 4 << 20;  // text that a worker takes at a time

bool ends_with_any(const std::string& name, std::initializer_list<const char*> endings) {
  for (const char* ending : endings) {
    if (name.ends_with(ending)) return true;
  }
  return false;
}
bool is_json_lines(const std::string& name) {
  return ends_with_any(name, {".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson"});
}
bool is_input(const std::string& name) { return is_json_lines(name) || ends_with_any(name, {".txt", ".parquet"}); }

std::vector<std::string> files_of(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    MOH_CHECK(fs::exists(input), "[data] ", input, " does not exist");
    if (!fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    const auto found = io::files_in(input, /*deep=*/true, is_input);
    MOH_CHECK(!found.paths.empty(), "[data] folder ", input, " has no .txt, .jsonl, .jsonl.gz or .jsonl.zst");
    files.insert(files.end(), found.paths.begin(), found.paths.end());
  }
  MOH_CHECK(!files.empty(), "[data] nothing to tokenize");
  return files;
}

// The documents of all files, one after another.
class Documents {
 public:
  Documents(std::vector<std::string> files, std::string field) : files_(std::move(files)), field_(std::move(field)) {}

  // Where next() reads: `document` of `file`.
  std::size_t file() const { return file_; }
  std::int64_t document() const { return document_; }

  void skip_to(std::size_t file, std::int64_t document) {
    file_ = file;
    document_ = 0;
    lines_.reset();
    std::string ignored;
    while (document_ < document && next(ignored)) {
    }
  }

  bool next(std::string& text) {
    for (; file_ < files_.size(); ++file_, document_ = 0, lines_.reset()) {
      const std::string& path = files_[file_];
      if (!is_json_lines(path)) {
        if (document_ > 0) continue;
        MOH_CHECK(!path.ends_with(".parquet"), "[data] ", path,
                  " is a Parquet table, which needs Apache Arrow to read; write its text column as JSON lines first");
        text = read_text_file(path);
        ++document_;
        return true;
      }
      if (!lines_) {
        lines_ = std::make_unique<LineReader>(path);
        line_ = 0;
      }
      while (lines_->next(raw_)) {
        ++line_;
        if (raw_.find_first_not_of(" \t") == std::string::npos) continue;
        const Json json = Json::parse(raw_, nullptr, /*allow_exceptions=*/false);
        MOH_CHECK(json.is_object() && json.contains(field_) && json[field_].is_string(), "[data] ", path, ", line ",
                  line_, ": no JSON object with a text `", field_, "`; --field names another");
        text = json[field_].get<std::string>();
        ++document_;
        return true;
      }
    }
    return false;
  }

 private:
  std::vector<std::string> files_;
  std::string field_, raw_;
  std::size_t file_ = 0;
  std::int64_t document_ = 0, line_ = 0;
  std::unique_ptr<LineReader> lines_;
};

struct Chunk {
  std::vector<std::vector<std::int64_t>> ids;  // of each document
  std::size_t file;                            // where the documents behind them are
  std::int64_t document;
};

void sync_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  MOH_CHECK(file >= 0, "[data] cannot open ", path);
  const bool synced = ::fsync(file) == 0;
  ::close(file);
  MOH_CHECK(synced, "[data] cannot write ", path, "; is the disk full?");
}

class Writer {
 public:
  Writer(std::string folder, std::int64_t vocab_size, Json made_from)
      : folder_(std::move(folder)), wide_(vocab_size > 65536), note_(std::move(made_from)) {
    note_["ids"] = wide_ ? "uint32" : "uint16";
    note_["vocab_size"] = vocab_size;
  }

  // Where to go on; false: all is done.
  bool open(std::size_t& file, std::int64_t& document) {
    std::error_code error;
    fs::create_directories(folder_, error);
    MOH_CHECK(!error, "[data] cannot make folder ", folder_, ": ", error.message());
    const std::string path = folder_ + "/tokens.json";
    if (fs::exists(path)) {
      const Json before = parse_json(io::read_file(path, std::uint64_t{1} << 28), path);
      for (const auto& item : note_.items()) {
        MOH_CHECK(before.is_object() && before.value(item.key(), Json()) == item.value(), "[data] ", folder_,
                  " was made with another `", item.key(), "`; remove it or choose another --out");
      }
      try {
        tokens = before.at("tokens").get<std::int64_t>();
        documents = before.at("documents").get<std::int64_t>();
        file = before.at("next").at("file").get<std::size_t>();
        document = before.at("next").at("document").get<std::int64_t>();
        if (before.at("done").get<bool>()) return false;
      } catch (const nlohmann::json::exception& problem) {
        fail("[data] ", path, " is damaged: ", problem.what());
      }
    }
    ids_ = resume(folder_ + "/ids.bin", tokens * width());
    starts_ = resume(folder_ + "/documents.bin", documents * 8);
    return true;
  }

  void add(const std::vector<std::int64_t>& ids) {
    const auto start = static_cast<std::uint64_t>(tokens);
    starts_.write(reinterpret_cast<const char*>(&start), sizeof start);
    bytes_.clear();
    for (const std::int64_t id : ids) {
      const auto value = static_cast<std::uint32_t>(id);
      bytes_.append(reinterpret_cast<const char*>(&value), static_cast<std::size_t>(width()));  // little-endian
    }
    ids_.write(bytes_.data(), static_cast<std::streamsize>(bytes_.size()));
    tokens += static_cast<std::int64_t>(ids.size());
    ++documents;
    MOH_CHECK(ids_.good() && starts_.good(), "[data] cannot write into ", folder_, "; is the disk full?");
  }

  void commit(std::size_t file, std::int64_t document, bool done) {
    ids_.flush();
    starts_.flush();
    MOH_CHECK(ids_.good() && starts_.good(), "[data] cannot write into ", folder_, "; is the disk full?");
    sync_file(folder_ + "/ids.bin");
    sync_file(folder_ + "/documents.bin");
    note_["tokens"] = tokens;
    note_["documents"] = documents;
    note_["next"] = {{"file", file}, {"document", document}};
    note_["done"] = done;
    io::write_file(folder_ + "/tokens.json", note_.dump(2) + "\n");
  }

  std::int64_t tokens = 0, documents = 0;

 private:
  std::int64_t width() const { return wide_ ? 4 : 2; }

  // What was written after the last commit is written again.
  static std::ofstream resume(const std::string& path, std::int64_t bytes) {
    if (fs::exists(path)) {
      MOH_CHECK(static_cast<std::int64_t>(fs::file_size(path)) >= bytes, "[data] ", path,
                " has lost its end; remove its ", "folder and begin anew");
      fs::resize_file(path, static_cast<std::uintmax_t>(bytes));
    } else {
      MOH_CHECK(bytes == 0, "[data] ", path, " is missing");
    }
    std::ofstream out(path, std::ios::binary | std::ios::app);
    MOH_CHECK(out.good(), "[data] cannot write ", path);
    return out;
  }

  std::string folder_, bytes_;
  bool wide_;
  Json note_;
  std::ofstream ids_, starts_;
};

}  // namespace

TokenizeResult tokenize_documents(const text::Tokenizer& tokenizer, const std::string& tokenizer_name,
                                  const TokenizeOptions& options, const std::atomic<bool>& stop,
                                  const std::function<void(double, std::int64_t)>& progress) {
  const std::vector<std::string> files = files_of(options.inputs);
  Json made_from = Json::object(), listed = Json::array();
  for (const std::string& file : files) listed.push_back({{"file", file}, {"bytes", fs::file_size(file)}});
  made_from["inputs"] = listed;
  made_from["field"] = options.field;
  made_from["tokenizer"] = {{"folder", tokenizer_name}, {"kind", tokenizer.kind()}};
  Writer writer(options.out, tokenizer.vocab_size(), made_from);
  std::size_t file = 0;
  std::int64_t document = 0;
  if (!writer.open(file, document)) return {writer.tokens, writer.documents, true};
  Documents documents(files, options.field);
  documents.skip_to(file, document);

  const auto encode = [&tokenizer](std::vector<std::string> texts, Chunk chunk) {
    for (const std::string& text : texts) {
      std::vector<std::int64_t> ids;
      if (tokenizer.adds_bos() && tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
      const auto encoded = tokenizer.encode(text);
      ids.insert(ids.end(), encoded.begin(), encoded.end());
      if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
      chunk.ids.push_back(std::move(ids));
    }
    return chunk;
  };
  std::deque<std::future<Chunk>> working;
  bool more = true;
  std::int64_t committed = writer.tokens;
  while (more || !working.empty()) {
    while (more && !stop && static_cast<int>(working.size()) < std::max(1, options.workers)) {
      std::vector<std::string> texts;
      std::size_t bytes = 0;
      std::string text;
      while (bytes < kChunkBytes && (more = documents.next(text))) {
        bytes += text.size();
        texts.push_back(std::move(text));
      }
      if (texts.empty()) break;
      working.push_back(
          std::async(std::launch::async, encode, std::move(texts), Chunk{{}, documents.file(), documents.document()}));
    }
    if (working.empty()) break;
    const Chunk chunk = working.front().get();
    working.pop_front();
    for (const auto& ids : chunk.ids) writer.add(ids);
    file = chunk.file;
    document = chunk.document;
    if (progress) progress(static_cast<double>(file) / static_cast<double>(files.size()), writer.tokens);
    if (stop || writer.tokens - committed >= options.commit_tokens) {
      writer.commit(file, document, false);
      committed = writer.tokens;
      if (stop) return {writer.tokens, writer.documents, false};
    }
  }
  MOH_CHECK(writer.tokens > 0 || stop, "[data] there is no text in what was given");
  writer.commit(file, document, !stop);
  return {writer.tokens, writer.documents, !stop};
}

}  // namespace moh::data
