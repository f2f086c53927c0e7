// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <initializer_list>
#include <type_traits>

#include "jrt/numeric.hpp"

/// Names of hybrid formats and their types, joined at compile time, as saved states record them.
namespace jrt::detail {

constexpr std::size_t text_length(const char* text) {
  std::size_t length = 0;
  while (text[length] != '\0') {
    ++length;
  }
  return length;
}

template <std::size_t size>
struct Text {
  char characters[size + 1] = {};

  constexpr Text(const char* first, const char* second) {
    char* to = characters;
    for (const char* part : {first, second}) {
      while (*part != '\0') {
        *to++ = *part++;
      }
    }
  }
};

/// Prefix of the name of a feature map.
inline constexpr char window_and[] = "window + ";

template <const char* first, class Format>
inline constexpr Text<text_length(first) + text_length(Format::name)> joined_name_text{first, Format::name};
template <const char* first, class Format>
inline constexpr const char* joined_names = joined_name_text<first, Format>.characters;

/// Name of an element type, short enough that two fit into a header of saved states.
template <Element T>
constexpr const char* short_name() {
  if constexpr (std::is_same_v<T, float>) {
    return "f32";
  } else if constexpr (std::is_same_v<T, double>) {
    return "f64";
  } else if constexpr (std::is_same_v<T, Half>) {
    return "f16";
  } else {
    return "bf16";
  }
}

template <Element A>
inline constexpr Text<text_length(short_name<A>()) + 1> scalar_and_comma{short_name<A>(), ","};
template <Element A, Element B>
inline constexpr Text<text_length(short_name<A>()) + 1 + text_length(short_name<B>())> joined_scalar_text{
    scalar_and_comma<A>.characters, short_name<B>()};
/// "f32,bf16"
template <Element A, Element B>
inline constexpr const char* joined_scalars = joined_scalar_text<A, B>.characters;

}  // namespace jrt::detail
