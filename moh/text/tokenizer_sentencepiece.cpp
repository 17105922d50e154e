// SentencePiece models through libsentencepiece, and their training.
#include "moh/text/tokenizer_sentencepiece.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/text/space_mark.h"
#include "moh/text/tokenizer.h"
#include "moh/text/tokenizer_added.h"
#include "moh/text/tokenizer_bpe.h"
#include "moh/text/tokenizer_pipeline.h"

// Exported by the library, declared only in a header that is not installed.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace moh::text {
namespace {

constexpr int kLogFatal = 3;  // of sentencepiece::logging; it writes everything below to stderr
constexpr double kReported = 1 << 20;  // bytes

std::string start_of_error(const std::string& path) { return "[tokenizer] " + path + ": "; }

// "src/trainer.cc(12) [x == y] Vocabulary size too high" without the place in SentencePiece's source.
std::string reason(const sentencepiece::util::Status& status) {
  const std::string_view text = status.message();
  const std::size_t end = text.rfind("] ");
  const std::string_view tail = end == std::string_view::npos ? text : text.substr(end + 2);
  return std::string(tail.empty() ? text : tail);
}

// ---- Checks of a model file that SentencePiece itself leaves out.

std::uint32_t read_u32(std::string_view bytes, std::size_t index) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i)
    value |= std::uint32_t{static_cast<unsigned char>(bytes[4 * index + i])} << (8 * i);
  return value;
}

// A map of normalisation rules is a double-array trie (darts-clone) and the texts its leaves point into. SentencePiece
// follows it without any bounds; this visits every place that some input could lead to. Empty: no rules.
bool charsmap_is_sound(std::string_view blob) {
  if (blob.empty()) return true;
  if (blob.size() < 4) return false;
  const std::size_t trie_bytes = read_u32(blob, 0);
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes >= blob.size() - 4) return false;
  const std::string_view trie = blob.substr(4, trie_bytes);
  const std::string_view texts = blob.substr(4 + trie_bytes);
  if (texts.back() != '\0') return false;

  const std::size_t num_units = trie_bytes / 4;
  const auto offset = [](std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & 0x200) >> 6); };
  std::vector<bool> seen(num_units);
  std::vector<std::size_t> open;
  const auto visit = [&](std::size_t base) {
    if (base >= num_units) return false;
    if (!seen[base]) open.push_back(base);
    seen[base] = true;
    return true;
  };
  if (!visit(offset(read_u32(trie, 0)))) return false;
  while (!open.empty()) {
    const std::size_t base = open.back();
    open.pop_back();
    for (std::size_t c = 0; c < 256; ++c) {
      const std::size_t at = base ^ c;
      if (at >= num_units) return false;
      const std::uint32_t unit = read_u32(trie, at);
      if ((unit & 0x800000ff) != c) continue;  // no child for this byte
      const std::size_t next = at ^ offset(unit);
      if (!visit(next)) return false;
      const bool has_leaf = (unit & 0x100) != 0;
      if (has_leaf && (read_u32(trie, next) & 0x7fffffff) >= texts.size()) return false;
    }
  }
  return true;
}

struct NoNumber {
  void operator()(std::uint64_t, std::uint64_t) const {}
};

// Calls visit(field, bytes) for each length-delimited field of a protobuf message and number(field, value) for each
// whole number; false when the message is damaged.
template <class Visit, class Number = NoNumber>
bool for_each_field(std::string_view message, const Visit& visit, const Number& number = {}) {
  const auto varint = [&](std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !message.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(message.front());
      message.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  };
  while (!message.empty()) {
    std::uint64_t key, size = 0;
    if (!varint(key)) return false;
    switch (key & 7) {
      case 0:
        if (!varint(size)) return false;
        number(key >> 3, size);
        size = 0;
        break;
      case 1:
        size = 8;
        break;
      case 2:
        if (!varint(size)) return false;
        break;
      case 5:
        size = 4;
        break;
      default:
        return false;
    }
    if (size > message.size()) return false;
    if ((key & 7) == 2 && !visit(key >> 3, message.substr(0, size))) return false;
    message.remove_prefix(size);
  }
  return true;
}

bool model_is_sound(std::string_view model) {
  constexpr std::uint64_t kNormalizerSpec = 3, kDenormalizerSpec = 5, kPrecompiledCharsmap = 2;
  return for_each_field(model, [](std::uint64_t field, std::string_view spec) {
    if (field != kNormalizerSpec && field != kDenormalizerSpec) return true;
    return for_each_field(spec, [](std::uint64_t inner, std::string_view bytes) {
      return inner != kPrecompiledCharsmap || charsmap_is_sound(bytes);
    });
  });
}

// Byte-pair encoding without rules of normalisation, each text with a space in front: what the words of a text are
// encoded to then does not depend on their neighbours, unless a piece reaches over a space.
bool encodes_words_alone(std::string_view model) {
  constexpr std::uint64_t kTrainerSpec = 2, kNormalizerSpec = 3, kModelType = 3, kBpe = 2, kSpaceAsSuffix = 24;
  constexpr std::uint64_t kPrecompiledCharsmap = 2, kAddDummyPrefix = 3, kEscapeWhitespaces = 5;
  bool is_bpe = false, has_rules = false, space_in_front = true;
  const auto skip = [](std::uint64_t, std::string_view) { return true; };
  for_each_field(model, [&](std::uint64_t field, std::string_view spec) {
    if (field == kTrainerSpec) {
      return for_each_field(spec, skip, [&](std::uint64_t inner, std::uint64_t value) {
        if (inner == kModelType) is_bpe = value == kBpe;
        if (inner == kSpaceAsSuffix && value != 0) space_in_front = false;
      });
    }
    if (field != kNormalizerSpec) return true;
    const auto rules = [&](std::uint64_t inner, std::string_view bytes) {
      has_rules = has_rules || (inner == kPrecompiledCharsmap && !bytes.empty());
      return true;
    };
    return for_each_field(spec, rules, [&](std::uint64_t inner, std::uint64_t value) {
      if ((inner == kAddDummyPrefix || inner == kEscapeWhitespaces) && value == 0) space_in_front = false;
    });
  });
  return is_bpe && !has_rules && space_in_front;
}

// The space mark after anything but space marks, or a space itself.
bool reaches_over_a_space(std::string_view piece) {
  if (piece.find(' ') != std::string_view::npos) return true;
  while (piece.starts_with(kSpaceMark)) piece.remove_prefix(kSpaceMark.size());
  return piece.find(kSpaceMark) != std::string_view::npos;
}

// ---- SentencePiece

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view model, const std::string& label, const SentencePieceOptions& options)
      : path_(label), options_(options) {
    const std::string prefix = start_of_error(label);
    MOH_CHECK(model_is_sound(model), prefix, "not a SentencePiece model, or damaged");
    sentencepiece::logging::SetMinLogLevel(kLogFatal);
    try {
      const auto status = processor_.LoadFromSerializedProto(model);
      MOH_CHECK(status.ok(), prefix, "not a SentencePiece model, or damaged: ", reason(status));
      fill_pieces(options.added);
      cuts_at_spaces_ = encodes_words_alone(model) && !some_piece_reaches_over_a_space();
      // A field that comes again replaces itself: normalizer_spec {add_dummy_prefix: 0, remove_extra_whitespaces: 0}.
      constexpr std::string_view kAsItStands("\x1a\x04\x18\x00\x20\x00", 6);
      MOH_CHECK(as_it_stands_.LoadFromSerializedProto(std::string(model) + std::string(kAsItStands)).ok(), prefix,
                "not a SentencePiece model, or damaged");
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      fail(prefix, "not a SentencePiece model, or damaged: ", error.what());
    }
  }

  // What comes after an added token is encoded as it stands, without the space that begins a text; with it by the older
  // rule (`legacy`).
  std::vector<std::int64_t> encode(std::string_view text, bool parse_special) const override {
    std::vector<std::int64_t> ids;
    std::size_t done = 0;
    for (;;) {
      const auto match = added_.find(text, done, parse_special);
      const std::string_view part = text.substr(done, (match ? match->begin : text.size()) - done);
      if (done == 0 && options_.add_prefix_space) {
        encode_words(processor_, part, /*keep_spaces=*/false, ids);
      } else if (options_.legacy && options_.add_prefix_space && !part.empty() && !part.starts_with(' ')) {
        encode_words(as_it_stands_, std::string(1, ' ').append(part), /*keep_spaces=*/true, ids);
      } else {
        encode_words(as_it_stands_, part, /*keep_spaces=*/true, ids);
      }
      if (!match) return ids;
      ids.push_back(match->id);
      done = match->end;
    }
  }

  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string text, piece;
    std::vector<int> own;
    const auto flush = [&] {
      if (own.empty()) return;
      const auto status = processor_.Decode(own, &piece);
      MOH_CHECK(status.ok(), start_of_error(path_), "cannot decode: ", reason(status));
      // The library takes the space from the front of each part; only that of the text is its own.
      if (!text.empty() && pieces_[static_cast<std::size_t>(own.front())].starts_with(' ')) text += ' ';
      text += piece;
      own.clear();
    };
    for (const std::int64_t id : ids) {
      MOH_CHECK(id >= 0, start_of_error(path_), "id ", id, " is less than 0");
      if (id < num_own_) {
        own.push_back(static_cast<int>(id));
      } else if (id < vocab_size() && !pieces_[static_cast<std::size_t>(id)].empty()) {
        flush();
        text += pieces_[static_cast<std::size_t>(id)];
      }
    }
    flush();
    return text;
  }

  std::string piece_bytes(std::int64_t id) const override {
    MOH_CHECK(id >= 0, start_of_error(path_), "id ", id, " is less than 0");
    return id < vocab_size() ? pieces_[static_cast<std::size_t>(id)] : "";
  }

  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(pieces_.size()); }
  std::int64_t bos_id() const override { return processor_.bos_id(); }
  std::int64_t eos_id() const override { return processor_.eos_id(); }
  bool adds_bos() const override { return bos_id() >= 0 && options_.adds_bos.value_or(true); }
  bool strips_leading_space() const override { return true; }
  std::string kind() const override { return "sentencepiece"; }

 private:
  // A text is cut at single spaces between ASCII characters, which `processor` puts back in front of each part or gets
  // there. It takes more than linear time, and words come again: five times as fast.
  void encode_words(const sentencepiece::SentencePieceProcessor& processor, std::string_view text, bool keep_spaces,
                    std::vector<std::int64_t>& ids) const {
    WordCache cache;
    std::vector<int> word_ids;
    ActivityCount done("tokenizing", static_cast<double>(text.size()), "bytes", kReported);
    const auto is_ascii = [](char c) { return c > ' ' && c < '\x7f'; };
    for (std::size_t begin = 0, end = 0; begin < text.size(); begin = keep_spaces ? end : end + 1) {
      end = cuts_at_spaces_ ? text.find(' ', begin + 1) : std::string_view::npos;
      while (end != std::string_view::npos &&
             !(end + 1 < text.size() && is_ascii(text[end - 1]) && is_ascii(text[end + 1])))
        end = text.find(' ', end + 1);
      end = std::min(end, text.size());
      const std::string_view word = text.substr(begin, end - begin);
      done.add(static_cast<double>(end + 1 - begin));
      std::size_t count = 0;
      if (const std::int32_t* known = cache.find(word, count)) {
        ids.insert(ids.end(), known, known + count);
        continue;
      }
      const auto status = processor.Encode(word, &word_ids);
      MOH_CHECK(status.ok(), start_of_error(path_), "cannot encode: ", reason(status));
      cache.insert(word, word_ids.data(), word_ids.size());
      ids.insert(ids.end(), word_ids.begin(), word_ids.end());
    }
    done.end();
  }

  bool some_piece_reaches_over_a_space() const {
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (!processor_.IsControl(id) && reaches_over_a_space(processor_.IdToPiece(id))) return true;
    }
    return false;
  }

  void fill_pieces(const std::vector<AddedToken>& added) {
    std::vector<AddedToken> special;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      std::string bytes;
      if (processor_.IsByte(id)) {
        bytes = static_cast<char>(std::stoi(processor_.IdToPiece(id).substr(3, 2), nullptr, 16));  // <0xNN>
      } else if (processor_.IsUnknown(id)) {
        const auto status = processor_.Decode(std::vector<int>{id}, &bytes);
        MOH_CHECK(status.ok(), start_of_error(path_), reason(status));
      } else if (!processor_.IsControl(id)) {
        bytes = spaces_for_marks(processor_.IdToPiece(id));
      }
      if (processor_.IsControl(id) || processor_.IsUnknown(id))
        special.push_back({.content = processor_.IdToPiece(id), .id = id, .special = true});
      pieces_.push_back(std::move(bytes));
    }
    num_own_ = static_cast<std::int64_t>(pieces_.size());
    for (const AddedToken& token : added) {
      const auto id = static_cast<std::size_t>(token.id);
      if (token.id < num_own_ && !token.special) continue;  // the model knows it
      if (id >= pieces_.size()) pieces_.resize(id + 1);
      if (token.id >= num_own_ && !token.special) pieces_[id] = token.content;
    }
    add_tokens(added, false, special);
    added_ = AddedTokens(std::move(special));
  }

  std::string path_;
  SentencePieceOptions options_;
  AddedTokens added_;         // and the model's control tokens
  std::int64_t num_own_ = 0;  // tokens of the model itself
  bool cuts_at_spaces_ = false;
  sentencepiece::SentencePieceProcessor processor_, as_it_stands_;  // the second without rules for spaces
  std::vector<std::string> pieces_;
};

// Hands out a text in lines, long ones cut at a space where possible: the trainer aborts the process on a word of more
// than 65535 characters, and skips long lines.
class LineIterator : public sentencepiece::SentenceIterator {
 public:
  static constexpr std::size_t kMaxBytes = 4096;

  explicit LineIterator(std::string_view text) : rest_(text) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    done_ = rest_.empty();
    if (done_) return;
    const std::string_view part = rest_.substr(0, kMaxBytes);
    std::size_t size = part.find('\n');
    std::size_t skip = 1;  // the newline, or the space that comes back as the word start of the next part
    if (size == std::string_view::npos) {
      if (rest_.size() <= kMaxBytes) {
        size = rest_.size();
      } else if (size = part.rfind(' '); size == std::string_view::npos || size == 0) {
        size = kMaxBytes;
        skip = 0;
        // Not inside a UTF-8 sequence.
        while (size > kMaxBytes - 4 && (rest_[size] & 0xc0) == 0x80) --size;
      }
    }
    line_ = rest_.substr(0, size);
    rest_.remove_prefix(std::min(size + skip, rest_.size()));
  }

 private:
  std::string_view rest_;
  std::string line_;
  bool done_ = false;
};

}  // namespace

std::shared_ptr<const Tokenizer> sentencepiece_tokenizer(std::string_view model, const std::string& label,
                                                         const SentencePieceOptions& options) {
  return std::make_shared<SentencePieceTokenizer>(model, label, options);
}

void train_tokenizer(const std::string& text_file, const std::string& folder, int vocab_size) {
  const std::string text = io::read_file(text_file);
  LineIterator lines(text);
  std::string model;
  try {
    const auto status = sentencepiece::SentencePieceTrainer::Train(
        {
            {"minloglevel", std::to_string(kLogFatal)},
            {"model_type", "bpe"},
            {"vocab_size", std::to_string(vocab_size)},
            {"byte_fallback", "true"},  // newlines too, which the trainer never sees
            {"character_coverage", "1.0"},
            {"normalization_rule_name", "identity"},
            {"split_digits", "true"},
            {"allow_whitespace_only_pieces", "true"},
            {"remove_extra_whitespaces", "false"},
            {"add_dummy_prefix", "true"},
            {"max_sentence_length", std::to_string(LineIterator::kMaxBytes)},
            {"unk_id", "0"},
            {"bos_id", "1"},
            {"eos_id", "2"},
            {"pad_id", "-1"},
        },
        &lines, &model);
    MOH_CHECK(status.ok(), start_of_error(text_file), "cannot train a tokenizer of ", vocab_size,
              " pieces: ", reason(status));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail(start_of_error(text_file), "cannot train a tokenizer: ", error.what());
  }
  io::write_file(folder + "/tokenizer.model", model);
}

}  // namespace moh::text
