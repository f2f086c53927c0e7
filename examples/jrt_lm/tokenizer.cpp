// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <queue>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "support/byte_order_mark.hpp"
#include "support/mapped_file.hpp"
#include "support/strict_json.hpp"

namespace jrt_lm {
namespace {

using nlohmann::json;
using TokenMap = std::unordered_map<std::string, std::int32_t>;
using Alphabet = std::map<std::string, unsigned char>;

[[noreturn]] void fail(const std::string& source, const std::string& what) {
  throw std::runtime_error(source + ": " + what);
}

/// In quotation marks, on one line and not too long, whatever is in it.
std::string shown(std::string_view text) {
  return json(text.substr(0, 100)).dump(-1, ' ', false, json::error_handler_t::replace);
}

/// GPT-2's alphabet: the character, in UTF-8, that stands for each byte. Printing characters of Latin-1 stand for
/// themselves, the other bytes are the characters from U+0100 on.
Alphabet byte_alphabet() {
  Alphabet alphabet;
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool prints = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const unsigned code = prints ? byte : next++;
    const auto last = static_cast<char>(code < 0x80 ? code : 0x80U | (code & 0x3FU));  // none is above U+0143
    alphabet.emplace(code < 0x80 ? std::string{last} : std::string{static_cast<char>(0xC0U | code >> 6U), last}, byte);
  }
  return alphabet;
}

/// The bytes that a token of the vocabulary stands for.
std::string bytes_of(const std::string& token, const Alphabet& alphabet) {
  std::string bytes;
  for (std::size_t i = 0; i < token.size();) {
    const std::string character = token.substr(i, static_cast<unsigned char>(token[i]) < 0x80 ? 1 : 2);
    const auto found = alphabet.find(character);
    if (found == alphabet.end()) {
      return token;
    }
    bytes += static_cast<char>(found->second);
    i += character.size();
  }
  return bytes;
}

/// GPT-2's pattern. Its \s is spelled out, since PCRE2's has U+180E too, which Unicode no longer counts as white space.
#define JRT_LM_SPACE R"(\p{Z}\x{9}-\x{D}\x{85})"
constexpr std::string_view pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{L}\p{N})" JRT_LM_SPACE
                                     "]+|[" JRT_LM_SPACE "]+(?![^" JRT_LM_SPACE "])|[" JRT_LM_SPACE "]+";
#undef JRT_LM_SPACE

struct Pcre2Delete {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

/// Cuts texts into the pieces that are encoded separately.
class Splitter {
 public:
  Splitter() {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, nullptr));
    if (!code_) {
      fail("PCRE2", "error " + std::to_string(error));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot, matching is slower
  }

  /// Calls `take` with every piece, in order.
  template <class Take>
  void for_each_piece(std::string_view text, const Take& take) const {
    const std::unique_ptr<pcre2_match_data, Pcre2Delete> data{pcre2_match_data_create(1, nullptr)};
    const auto match = [&](std::string_view part, std::uint32_t options) {
      const auto* const bytes = reinterpret_cast<PCRE2_SPTR>(part.data());
      return pcre2_match(code_.get(), bytes, part.size(), 0, options, data.get(), nullptr);
    };
    std::size_t valid = 0;  // where the valid UTF-8 ahead ends; to look again for each piece would take quadratic time
    for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end) {
      if (begin >= valid) {
        const int result = match(text.substr(begin), 0);
        const bool is_invalid = result <= PCRE2_ERROR_UTF8_ERR1 && result >= PCRE2_ERROR_UTF8_ERR21;
        valid = is_invalid ? begin + pcre2_get_startchar(data.get()) : text.size();
      }
      end = begin + 1;
      if (begin < valid) {
        const int result = match(text.substr(begin, valid - begin), PCRE2_NO_UTF_CHECK);
        if (result < 0) {  // out of memory: the pattern matches every character
          fail("PCRE2", "error " + std::to_string(result));
        }
        end = begin + pcre2_get_ovector_pointer(data.get())[1];
      }
      take(text.substr(begin, end - begin));
    }
  }

 private:
  std::unique_ptr<pcre2_code, Pcre2Delete> code_;
};

struct Merge {
  std::int32_t left, right, merged;
};

/// Two neighbours as one number.
std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32U | static_cast<std::uint32_t>(right);
}

}  // namespace

struct Tokenizer::Parts {
  class Piece;

  Parts(const std::string& vocab_name, std::string_view vocab, const std::string& merges_name,
        std::string_view merge_lines) {
    read_merges(merges_name, merge_lines, read_vocabulary(vocab_name, vocab), vocab_name);
  }
  TokenMap read_vocabulary(const std::string& source, std::string_view text);
  void read_merges(const std::string& source, std::string_view text, const TokenMap& token_of,
                   const std::string& vocab_name);

  Splitter splitter;
  std::unordered_map<std::int32_t, std::string> bytes;  // of every token: numbers may be far apart
  std::int64_t size = 0;
  std::array<std::int32_t, 256> byte_token{};
  std::vector<Merge> merges;                               // by rank
  std::unordered_map<std::uint64_t, std::size_t> rank_of;  // by key
};

TokenMap Tokenizer::Parts::read_vocabulary(const std::string& source, std::string_view text) {
  const json parsed = support::parse_strict_json(source + ": the vocabulary", text);
  if (!parsed.is_object()) {
    fail(source, "is " + support::brief(parsed) + ", but must be an object");
  }
  const Alphabet alphabet = byte_alphabet();
  TokenMap token_of;
  std::unordered_map<std::int32_t, const std::string*> name_of;
  for (const auto& [name, number] : parsed.items()) {
    if (!number.is_number_integer() || number < 0 || number >= max_numbers) {
      fail(source, "token " + shown(name) + " has the number " + number.dump().substr(0, 100) +
                       ", but must have an integer from 0 to " + std::to_string(max_numbers - 1));
    }
    const auto token = number.get<std::int32_t>();
    const auto [other, is_new] = name_of.emplace(token, &token_of.emplace(name, token).first->first);
    if (!is_new) {
      fail(source, "tokens " + shown(*other->second) + " and " + shown(name) + " both have the number " + number.dump());
    }
    bytes.emplace(token, bytes_of(name, alphabet));
    size = std::max(size, std::int64_t{token} + 1);
  }
  for (const auto& [character, byte] : alphabet) {
    if (!token_of.contains(character)) {
      fail(source, "has no token " + shown(character) + ", which stands for byte " + std::to_string(byte));
    }
    byte_token[byte] = token_of.at(character);
  }
  return token_of;
}

void Tokenizer::Parts::read_merges(const std::string& source, std::string_view text, const TokenMap& token_of,
                                   const std::string& vocab_name) {
  const std::string_view content = support::after_byte_order_mark(source + ":", text);
  for (std::size_t number = 1, begin = 0, end = 0; begin < content.size(); ++number, begin = end + 1) {
    end = std::min(content.find('\n', begin), content.size());
    std::string line(content.substr(begin, end - begin));
    if (line.ends_with('\r')) {
      line.pop_back();
    }
    if (number == 1 && line.starts_with("#version")) {
      continue;
    }
    const auto fail_here = [&](const std::string& what) {
      fail(source, "line " + std::to_string(number) + " is " + shown(line) + what);
    };
    const std::size_t space = line.find(' ');
    if (space == 0 || space >= line.size() - 1 || space != line.rfind(' ')) {
      fail_here(", but must be two tokens with a space between them");
    }
    const std::string left = line.substr(0, space);
    const std::string right = line.substr(space + 1);
    for (const std::string& name : {left, right, left + right}) {
      if (!token_of.contains(name)) {
        fail_here(", but " + shown(name) + " is not in the vocabulary, " + vocab_name);
      }
    }
    merges.push_back({token_of.at(left), token_of.at(right), token_of.at(left + right)});
    const auto [entry, is_new] = rank_of.emplace(key_of(merges.back().left, merges.back().right), merges.size() - 1);
    if (!is_new) {
      fail_here(", as line " + std::to_string(number + entry->second + 1 - merges.size()) + " was");
    }
  }
}

/// What merges work on: the tokens of a piece as a linked list, and in a queue the neighbours that can be merged, by rank
/// and from left to right. Neighbours stay in the queue when one of them is merged with another token, and are passed over
/// when their turn comes: so a merge costs O(log n), however long the piece. Used for many pieces, to allocate less.
class Tokenizer::Parts::Piece {
 public:
  explicit Piece(const Parts& parts) : parts_(&parts) {}

  void encode(std::string_view piece, std::vector<std::int32_t>& tokens) {
    links_.assign(1, {none, 0, 1});
    for (const char byte : piece) {
      links_.push_back({parts_->byte_token[static_cast<unsigned char>(byte)], links_.size() - 1, links_.size() + 1});
      enqueue(links_.size() - 2);
    }
    links_.push_back({none, links_.size() - 1, 0});
    while (!queue_.empty()) {
      const auto [rank, at] = queue_.top();
      queue_.pop();
      const Merge& merge = parts_->merges[rank];
      Link& left = links_[at];
      if (left.token == merge.left && links_[left.next].token == merge.right) {
        left.token = merge.merged;
        links_[left.next].token = none;
        left.next = links_[left.next].next;
        links_[left.next].previous = at;
        enqueue(left.previous);
        enqueue(at);
      }
    }
    for (std::size_t i = links_.front().next; i + 1 < links_.size(); i = links_[i].next) {
      tokens.push_back(links_[i].token);
    }
  }

 private:
  static constexpr std::int32_t none = -1;  // before the first, after the last, and of one merged into that before it
  struct Link {
    std::int32_t token;
    std::size_t previous, next;
  };
  using Candidate = std::pair<std::size_t, std::size_t>;  // rank, and index of the left neighbour

  void enqueue(std::size_t at) {
    const auto key = key_of(links_[at].token, links_[links_[at].next].token);
    if (const auto found = parts_->rank_of.find(key); found != parts_->rank_of.end()) {
      queue_.emplace(found->second, at);
    }
  }

  const Parts* parts_;
  std::vector<Link> links_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue_;
};

Tokenizer::Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

Tokenizer::Tokenizer(const std::string& vocab_path, const std::string& merges_path) {
  const support::MappedFile vocab(vocab_path);
  const support::MappedFile merges(merges_path);
  parts_ = std::make_shared<const Parts>(vocab_path, vocab.text(), merges_path, merges.text());
}

Tokenizer Tokenizer::from_text(const std::string& vocab_name, std::string_view vocab, const std::string& merges_name,
                               std::string_view merges) {
  return Tokenizer(std::make_shared<const Parts>(vocab_name, vocab, merges_name, merges));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  Parts::Piece piece(*parts_);
  parts_->splitter.for_each_piece(text, [&](std::string_view bytes) { piece.encode(bytes, tokens); });
  return tokens;
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (token < 0) {
      throw std::runtime_error("token " + std::to_string(token) + " is not in the vocabulary, which has " +
                               std::to_string(parts_->bytes.size()) + " tokens");
    }
    const auto found = parts_->bytes.find(token);
    text += found != parts_->bytes.end() ? found->second : "<|" + std::to_string(token) + "|>";
  }
  return text;
}

std::int64_t Tokenizer::size() const {
  return parts_->size;
}

}  // namespace jrt_lm
