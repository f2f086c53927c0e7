// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdio>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "jrt/mixer/gated_convolution.hpp"
#include "jrt/mixer/hybrid_attention.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/mixer/window_attention.hpp"
#include "jrt/numeric.hpp"
#include "jrt/status.hpp"

/// From an operator that is known by names and numbers at run time, as a model's file has them, to one of those that a
/// program was compiled with.
namespace jrt {

/// An operator in names and numbers. Empty names and negative numbers are left out: of a request they match anything; in
/// the description of a compiled operator they do not apply to its kind.
struct OperatorDescription {
  std::string_view kind{};         ///< "linear", "window", "convolution", "hybrid"
  std::string_view element{};      ///< "float32", "float64", "float16", "bfloat16"
  int d = -1;                      ///< dimension of queries and keys
  int dv = -1;                     ///< dimension of values
  std::string_view feature_map{};  ///< FeatureMap::name; "taylor2" also requests "taylor2/symmetric", and so on
  std::string_view mask{};         ///< "prefix", "causal", "full"
  std::string_view normaliser{};   ///< "sum", "none"
  std::string_view state{};        ///< storage type of a linear state, named like `element`
  int left_window = -1;            ///< L
  std::string_view rotary{};       ///< "none", "halves"
  int kernel_width = -1;           ///< K
  std::string_view label{};        ///< `Config::label`, for configurations that differ in nothing else that is here
};

namespace detail {

template <class Config>
constexpr void describe_linear(OperatorDescription& operation) {
  using Mask = typename Config::Mask;
  operation.d = Config::FeatureMap::input_dim;
  operation.dv = Config::value_dim;
  operation.feature_map = Config::FeatureMap::name;
  operation.mask = Mask::reads_future ? "full" : Mask::reads_encoder ? "prefix" : "causal";
  operation.normaliser = Config::Normaliser::uses_denominator ? "sum" : "none";
  operation.state = element_name<typename Config::StateScalar>();
}

template <class Config>
constexpr void describe_window(OperatorDescription& operation) {
  operation.d = Config::head_dim;
  operation.dv = Config::value_dim;
  operation.left_window = Config::left_window;
  operation.rotary = Config::Rotary::rotates ? "halves" : "none";
}

/// `field(letters, one.field...)` for every field; in messages `letters` stand before its value.
template <class Field, class... Descriptions>
constexpr void for_fields(const Field& field, Descriptions&... one) {
  field("", one.kind...);
  field("", one.element...);
  field("d", one.d...);
  field("dv", one.dv...);
  field("", one.feature_map...);
  field("", one.mask...);
  field("normaliser=", one.normaliser...);
  field("state=", one.state...);
  field("L", one.left_window...);
  field("rotary=", one.rotary...);
  field("K", one.kernel_width...);
  field("label=", one.label...);
}

constexpr bool is_set(int number) {
  return number >= 0;
}
constexpr bool is_set(std::string_view name) {
  return !name.empty();
}

/// Whether a field has the value that is wanted of it.
constexpr bool is_as_wanted(int wanted, int value) {
  return !is_set(wanted) || wanted == value;
}
constexpr bool is_as_wanted(std::string_view wanted, std::string_view value) {
  return value.substr(0, wanted.size()) == wanted &&
         (!is_set(wanted) || value.size() == wanted.size() || value[wanted.size()] == '/');
}

constexpr bool is_as_wanted(const OperatorDescription& wanted, const OperatorDescription& compiled) {
  bool all = true;
  for_fields([&](const char* /*letters*/, const auto& a, const auto& b) { all = all && is_as_wanted(a, b); }, wanted,
             compiled);
  return all;
}

/// Whether two operators agree in the fields that are set in `shown`.
constexpr bool look_the_same(const OperatorDescription& a, const OperatorDescription& b, const OperatorDescription& shown) {
  bool same = true;
  for_fields([&](const char* /*letters*/, const auto& of_a, const auto& of_b,
                 const auto& is_shown) { same = same && (!is_set(is_shown) || of_a == of_b); },
             a, b, shown);
  return same;
}

/// The text of a message about operators.
class OperatorSentence {
 public:
  void add(std::string_view text) {
    for (std::size_t i = 0; i < text.size() && length_ + 1 < sizeof text_; ++i, ++length_) {
      text_[length_] = text[i];
    }
    text_[length_] = '\0';
  }
  void add(int number) {
    char digits[16];
    std::snprintf(digits, sizeof digits, "%d", number);
    add(std::string_view(digits));
  }
  /// Those of the operator's fields that are set in `shown`.
  void add(const OperatorDescription& operation, const OperatorDescription& shown) {
    const std::size_t begin = length_;
    for_fields(
        [&](const char* letters, const auto& value, const auto& is_shown) {
          if (is_set(value) && is_set(is_shown)) {
            add(length_ == begin ? "" : " ");
            add(letters);
            add(value);
          }
        },
        operation, shown);
  }
  /// The operators that are listed, each with the fields that are set in `shown` and once if these are the same; what there
  /// is no room for is counted.
  template <class Listed>
  void add_list(std::span<const OperatorDescription> operators, const OperatorDescription& shown, const Listed& listed) {
    constexpr std::size_t room_for_rest = 20;
    bool first = true;
    int left_out = 0;
    for (std::size_t i = 0; i < operators.size(); ++i) {
      bool is_new = listed(operators[i]);
      for (std::size_t j = 0; j < i; ++j) {
        is_new = is_new && !(listed(operators[j]) && look_the_same(operators[i], operators[j], shown));
      }
      if (!is_new) {
        continue;
      }
      const std::size_t before = length_;
      add(first ? " " : "; ");
      add(operators[i], shown);
      if (length_ + room_for_rest > sizeof text_) {
        length_ = before;
        ++left_out;
      } else {
        first = false;
      }
    }
    if (left_out > 0) {
      add(first ? " " : " and ");
      add(left_out);
      add(first ? "" : " more");
    }
    add(".");
  }

  [[nodiscard]] const char* c_str() const { return text_; }

 private:
  char text_[244] = {};
  std::size_t length_ = 0;
};

/// Why `wanted` leads to no operator, or, if `fitting` is more than 0, to more than one.
inline Status operator_refusal(const OperatorDescription& wanted, std::span<const OperatorDescription> compiled,
                               int fitting) {
  OperatorSentence sentence;
  sentence.add(fitting == 0 ? "dispatch: no compiled operator is '" : "dispatch: more than one compiled operator is '");
  sentence.add(wanted, wanted);
  OperatorDescription shown;
  if (fitting == 0) {
    // Operators of that kind, if there are any, in the words of the request.
    bool of_kind = false;
    for (const OperatorDescription& one : compiled) {
      of_kind = of_kind || is_as_wanted(wanted.kind, one.kind);
    }
    shown = wanted;
    shown.kind = "shown";
    sentence.add("', but only");
    sentence.add_list(compiled, shown,
                      [&](const OperatorDescription& one) { return !of_kind || is_as_wanted(wanted.kind, one.kind); });
  } else {
    // In what these differ.
    const OperatorDescription* first = nullptr;
    for (const OperatorDescription& one : compiled) {
      if (is_as_wanted(wanted, one)) {
        first = first == nullptr ? &one : first;
        for_fields(
            [](const char* /*letters*/, auto& differs, const auto& a, const auto& b) {
              if (a != b) {
                differs = is_set(a) ? a : b;
              }
            },
            shown, *first, one);
      }
    }
    sentence.add("'; say which:");
    sentence.add_list(compiled, shown, [&](const OperatorDescription& one) { return is_as_wanted(wanted, one); });
  }
  return Status::error(StatusCode::invalid_argument, "%s", sentence.c_str());
}

/// The index of the one operator that is as wanted.
inline Status find_operator(const OperatorDescription& wanted, std::span<const OperatorDescription> compiled, int& index) {
  int found = -1;
  int fitting = 0;
  for (std::size_t i = 0; i < compiled.size(); ++i) {
    if (is_as_wanted(wanted, compiled[i])) {
      found = static_cast<int>(i);
      ++fitting;
    }
  }
  if (fitting != 1) {
    return operator_refusal(wanted, compiled, fitting);
  }
  index = found;
  return {};
}

}  // namespace detail

/// The description of one operator: a configuration of linear attention, a window, a convolution, or both attentions.
template <class Config>
constexpr OperatorDescription describe_operator() {
  constexpr bool is_hybrid = HybridConfig<Config>;
  constexpr bool is_linear = AttentionConfig<Config>;
  constexpr bool is_window = WindowConfig<Config>;
  static_assert(is_hybrid || is_linear || is_window || ConvolutionConfig<Config>,
                "jrt dispatch: an operator is the configuration of a mixer; of a stack, list the mixers of its layers.");
  OperatorDescription operation;
  operation.element = element_name<typename Config::Element>();
  if constexpr (is_hybrid) {
    operation.kind = "hybrid";
    detail::describe_window<typename Config::Window>(operation);
    detail::describe_linear<typename Config::Linear>(operation);
  } else if constexpr (is_linear) {
    operation.kind = "linear";
    detail::describe_linear<Config>(operation);
  } else if constexpr (is_window) {
    operation.kind = "window";
    detail::describe_window<Config>(operation);
  } else {
    operation.kind = "convolution";
    operation.kernel_width = Config::kernel_width;
  }
  if constexpr (requires { Config::label; }) {
    operation.label = Config::label;
  }
  return operation;
}

/// The operators that a program was compiled with, as a type:
///
///     using Compiled = jrt::Operators<Causal16, Causal32, Window128>;
///     int which = 0;
///     jrt::Status status = Compiled::find({.kind = "linear", .element = "float32", .d = 16, .dv = 64}, which);   // once
///     status = Compiled::visit(which, [&]<class Config>(std::type_identity<Config>) { return decode<Config>(layer); });
///
/// `find` compares names, once. A visit is one call through a table of functions; within it the operator is a type. An
/// engine that wants no table either lets a visit return a pointer to its own function, `&decode<Config>`, and keeps that.
template <class... Configs>
struct Operators {
  static_assert(sizeof...(Configs) >= 1, "jrt::Operators: list at least one configuration.");

  static constexpr int count = static_cast<int>(sizeof...(Configs));
  static constexpr OperatorDescription described[sizeof...(Configs)] = {describe_operator<Configs>()...};

  /// Sets `index` to the position in the list of the one operator that is as wanted. Error `invalid_argument`, with
  /// `index` unchanged, if there is none, or more than one; the message names what was asked for and what there is.
  static Status find(const OperatorDescription& wanted, int& index) {
    return detail::find_operator(wanted, described, index);
  }

  /// Calls `function(std::type_identity<Config>())` with the operator at `index`, which `find` has set, and returns what it
  /// returns: of one type for all operators.
  template <class Function>
  static decltype(auto) visit(int index, Function&& function) {
    using First = std::tuple_element_t<0, std::tuple<Configs...>>;
    using Result = decltype(function(std::type_identity<First>()));
    using Entry = Result (*)(Function&);
    static constexpr Entry table[] = {&enter<Configs, Result, Function>...};
    return table[index](function);
  }

 private:
  template <class Config, class Result, class Function>
  static Result enter(Function& function) {
    return function(std::type_identity<Config>());
  }
};

}  // namespace jrt
