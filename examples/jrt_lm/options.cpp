// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/options.hpp"

#include <getopt.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "support/byte_order_mark.hpp"
#include "support/processors.hpp"

namespace jrt_lm {

const char* const usage =
    R"(usage: jrt_lm FOLDER [options]                          config.json and the weights in the authors' layout, in
                                                        pytorch_model.bin or model.safetensors or shards of either
       jrt_lm --random-weights 360m|1.3b [options]     a published layout without its weights

Prompts; several are a batch, of any lengths:
  --tokens IDS           token ids with commas or blanks between them; may be repeated
  --tokens-file FILE     a prompt in each line
  --text TEXT            with --vocab and --merges; may be repeated
  --query IDS, --query-text TEXT
                         what follows each prompt (its context)
  --vocab FILE, --merges FILE
                         GPT-2's byte-pair tokenizer; answers are then printed as text too, a token without
                         text as <|NUMBER|>
Reading:
  --read-twice N         JRT-Prompt: the context is shown N times before the query
  --separator IDS        between two repetitions
  --prefix M             tokens of the encoder region; default: the model's. "half": of the context
  --short-prompt HOW     for prompts of fewer tokens: shorten (default), left-pad, read-twice, iterative
  --pad-token ID         of left-pad; default 220
Generation:
  --generate N           tokens for each prompt; default 16
  --top-k K              draw from the K likeliest; 0: from all; 1: the likeliest. Default 1, or 0 where --top-p or
                         --temperature is given
  --top-p P              draw from the likeliest that together have probability P
  --temperature T        logits are divided by T; 0: the likeliest token, as with --top-k 1
  --seed S               of the draws
  --stop ID              a sequence ends with this token
  --speculate T          steps of T tokens (2 to 16), the last one and guesses that are copied from the text: the same
                         tokens, sooner where an answer repeats its prompt. Not where tokens are drawn
Where:
  --device cpu|cuda, --type float64|float32|float16|bfloat16
                         default: cpu float32; on cuda bfloat16
  --threads N            of the CPU; default: all, or as many as a container may use
  --gpus N, --ranks N    a long prompt is read by GPUs 0 … N - 1, or by N groups of the CPU's threads, each with all
                         weights and a piece of the tokens (docs/distributed.md); the last one goes on
  --rank-seconds S       they have failed if they have not read a prompt by then; default: 600 on GPUs
  --separate-kernels     on a GPU: decode steps of separate kernels, even where one can do them, and no replayed prompts
Measuring, on random prompts:
  --measure N[,N...]     tokens of a prompt;  --batch B: prompts;  --repeats R: of which the median counts
Output:
  --json                 everything, for programs
  --quiet                no lines about loading and about long prefills
)";

namespace {

template <class Number>
Number number(const std::string& text, const std::string& option) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) {
    throw std::invalid_argument(option + " has the value '" + text + "', which is no " +
                                (std::is_integral_v<Number> ? "whole number" : "number") + " in range");
  }
  return value;
}

std::int64_t integer(const std::string& text, const std::string& option, std::int64_t least, std::int64_t most = 1 << 30) {
  const auto value = number<std::int64_t>(text, option);
  if (value < least || value > most) {
    throw std::invalid_argument(option + " is " + text + ", but must be from " + std::to_string(least) + " to " +
                                std::to_string(most));
  }
  return value;
}

template <class Value>
Value one_of(const std::string& text, const std::string& option, std::initializer_list<Value> values) {
  std::string names;
  for (const Value value : values) {
    if (text == name_of(value)) {
      return value;
    }
    names += std::string(names.empty() ? "" : ", ") + name_of(value);
  }
  throw std::invalid_argument(option + " is '" + text + "', but must be one of " + names);
}

std::vector<std::vector<std::int32_t>> read_prompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw std::invalid_argument(path + ": cannot be opened");
  }
  std::vector<std::vector<std::int32_t>> prompts;
  std::string line;
  const std::string subject = path + ":";
  for (int count = 1; std::getline(file, line); ++count) {
    if (count == 1) {
      line.erase(0, line.size() - support::after_byte_order_mark(subject, line).size());
    }
    prompts.push_back(parse_tokens(line, path + ", line " + std::to_string(count)));
  }
  if (prompts.empty()) {
    throw std::invalid_argument(path + ": has no lines, but each line is to be a prompt");
  }
  return prompts;
}

const std::string& filled(const std::string& text, const std::string& option) {
  if (text.empty()) {
    throw std::invalid_argument(option + " is empty");
  }
  return text;
}

/// Random prompts are made before any is read.
void check_measured(const Options& options) {
  constexpr std::int64_t most = INT32_MAX;
  for (const std::int64_t tokens : options.measure) {
    if (tokens > most / options.batch) {
      throw std::invalid_argument("--batch " + std::to_string(options.batch) + " and --measure " + std::to_string(tokens) +
                                  " are " + std::to_string(options.batch * tokens) +
                                  " tokens, but prompts are measured that have at most " + std::to_string(most) +
                                  " together, since all are in memory");
    }
  }
}

/// What an option does with its value.
struct Handler {
  const char* name;
  std::function<void(const std::string&)> take;
  bool has_value = true;
};

}  // namespace

std::vector<std::int32_t> parse_tokens(const std::string& text, const std::string& where) {
  std::vector<std::int32_t> tokens;
  constexpr const char* between = ", \t\r";
  for (auto first = text.find_first_not_of(between); first != std::string::npos;) {
    const auto end = std::min(text.find_first_of(between, first), text.size());
    tokens.push_back(number<std::int32_t>(text.substr(first, end - first), where));
    first = text.find_first_not_of(between, end);
  }
  if (tokens.empty()) {
    throw std::invalid_argument(where + " has 0 tokens, but a prompt needs at least 1");
  }
  return tokens;
}

Options parse_options(int argc, char** argv) {
  Options options;
  GenerationOptions& generation = options.generation;
  bool top_k_given = false;
  bool draws = false;
  bool type_given = false;
  bool gpus_given = false;
  options.model.threads = support::available_processors();
  const std::vector<Handler> handlers{
      {"help", [&](const std::string&) { options.help = true; }, false},
      {"json", [&](const std::string&) { options.json = true; }, false},
      {"quiet", [&](const std::string&) { options.quiet = true; }, false},
      {"separate-kernels", [&](const std::string&) { options.model.separate_kernels = true; }, false},
      {"random-weights", [&](const std::string& v) { options.random_weights = filled(v, "--random-weights"); }},
      {"tokens", [&](const std::string& v) { options.prompts.push_back(parse_tokens(v, "--tokens")); }},
      {"tokens-file",
       [&](const std::string& v) {
         for (auto& prompt : read_prompts(filled(v, "--tokens-file"))) {
           options.prompts.push_back(std::move(prompt));
         }
       }},
      {"text", [&](const std::string& v) { options.texts.push_back(v); }},
      {"query", [&](const std::string& v) { options.query = parse_tokens(v, "--query"); }},
      {"query-text", [&](const std::string& v) { options.query_text = v; }},
      {"vocab", [&](const std::string& v) { options.vocab = filled(v, "--vocab"); }},
      {"merges", [&](const std::string& v) { options.merges = filled(v, "--merges"); }},
      {"read-twice", [&](const std::string& v) { generation.reads = integer(v, "--read-twice", 1); }},
      {"separator", [&](const std::string& v) { generation.separator = parse_tokens(v, "--separator"); }},
      {"prefix",
       [&](const std::string& v) {
         options.half_prefix = v == "half";
         generation.encoder_tokens = options.half_prefix ? 0 : integer(v, "--prefix", 0);
         options.encoder_tokens_given = true;
       }},
      {"short-prompt",
       [&](const std::string& v) {
         using enum ShortPromptStrategy;
         generation.short_prompt = one_of(v, "--short-prompt", {shorten, left_pad, read_twice, iterative});
       }},
      {"pad-token",
       [&](const std::string& v) { generation.pad_token = static_cast<std::int32_t>(integer(v, "--pad-token", 0)); }},
      {"generate", [&](const std::string& v) { generation.new_tokens = integer(v, "--generate", 0); }},
      {"top-k",
       [&](const std::string& v) {
         generation.sampling.top_k = integer(v, "--top-k", 0);
         top_k_given = true;
       }},
      {"top-p",
       [&](const std::string& v) {
         generation.sampling.top_p = number<double>(v, "--top-p");
         draws = true;
       }},
      {"temperature",
       [&](const std::string& v) {
         generation.sampling.temperature = number<double>(v, "--temperature");
         draws = true;
       }},
      {"seed", [&](const std::string& v) { generation.sampling.seed = number<std::uint64_t>(v, "--seed"); }},
      {"stop", [&](const std::string& v) { generation.stop_token = static_cast<std::int32_t>(integer(v, "--stop", 0)); }},
      {"speculate", [&](const std::string& v) { generation.speculate = integer(v, "--speculate", 2, max_staged_tokens); }},
      {"device",
       [&](const std::string& v) {
         options.model.device = one_of(v, "--device", {DeviceKind::cpu, DeviceKind::cuda});
       }},
      {"type",
       [&](const std::string& v) {
         using enum NumberType;
         options.model.type = one_of(v, "--type", {float64, float32, float16, bfloat16});
         type_given = true;
       }},
      {"threads",
       [&](const std::string& v) { options.model.threads = static_cast<int>(integer(v, "--threads", 1, 1024)); }},
      {"ranks", [&](const std::string& v) { options.ranks = static_cast<int>(integer(v, "--ranks", 1, 64)); }},
      {"rank-seconds", [&](const std::string& v) { options.model.rank_seconds = number<double>(v, "--rank-seconds"); }},
      {"gpus",
       [&](const std::string& v) {
         options.ranks = static_cast<int>(integer(v, "--gpus", 1, 64));
         gpus_given = true;
       }},
      {"measure",
       [&](const std::string& v) {
         for (const std::int32_t tokens : parse_tokens(v, "--measure")) {
           options.measure.push_back(integer(std::to_string(tokens), "--measure", 1));
         }
       }},
      {"batch", [&](const std::string& v) { options.batch = integer(v, "--batch", 1, 1 << 20); }},
      {"repeats", [&](const std::string& v) { options.repeats = integer(v, "--repeats", 1); }},
  };
  std::vector<option> known;
  known.reserve(handlers.size() + 1);
  for (const Handler& handler : handlers) {
    known.push_back({handler.name, handler.has_value ? required_argument : no_argument, nullptr, 0});
  }
  known.push_back({});
  opterr = 0;  // messages are ours
  optind = 1;
  for (int index = -1;; index = -1) {
    const int result = getopt_long(argc, argv, ":", known.data(), &index);
    if (result == -1) {
      break;
    }
    if (result == ':') {
      throw std::invalid_argument(std::string(argv[optind - 1]) + " has no value, but needs one");
    }
    if (result != 0 || index < 0) {
      const std::string what = optopt != 0 ? std::string("-") + static_cast<char>(optopt) : argv[optind - 1];
      throw std::invalid_argument("'" + what + "' is not an option, or not a clear one (--help lists them)");
    }
    handlers[static_cast<std::size_t>(index)].take(optarg == nullptr ? "" : optarg);
  }
  for (; optind < argc; ++optind) {
    if (!options.model_folder.empty()) {
      throw std::invalid_argument(std::string("'") + argv[optind] + "' is a second model, but one is read: '" +
                                  options.model_folder + "'");
    }
    options.model_folder = argv[optind];
  }
  check_measured(options);
  if (draws && !top_k_given) {
    generation.sampling.top_k = 0;
  }
  if (generation.speculate != 0 && !generation.sampling.greedy()) {
    throw std::invalid_argument(
        "--speculate is " + std::to_string(generation.speculate) +
        ", but tokens are drawn (--top-k, --top-p, --temperature): speculation keeps the likeliest");
  }
  if (gpus_given && options.model.device == DeviceKind::cpu) {
    throw std::invalid_argument("--gpus is " + std::to_string(options.ranks) +
                                ", but --device is cpu: give --device cuda, or --ranks for the CPU");
  }
  if (!type_given) {
    options.model.type = options.model.device == DeviceKind::cpu ? NumberType::float32 : NumberType::bfloat16;
  }
  return options;
}

}  // namespace jrt_lm
