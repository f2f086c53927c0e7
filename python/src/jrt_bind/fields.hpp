// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "jrt/decode.hpp"
#include "jrt/numeric.hpp"
#include "jrt/policy/rotary.hpp"
#include "jrt/sequences.hpp"
#include "jrt/state.hpp"
#include "jrt/tensor_view.hpp"

/// The fields of argument structs, by name.
namespace jrt::bind {

/// Names of the arguments, as `Reader` takes them.
class NameList {
 public:
  template <class T>
  void operator()(const char* name, const TensorView<T>& /*view*/) {
    add(name, std::is_const_v<T> ? "tensor" : "output");
  }
  template <class Format>
  void operator()(const char* name, const StateSlots<Format>& /*states*/) {
    add(name, "states");
    add((std::string(name) + "_slots").c_str(), "array");
  }
  void operator()(const char* /*name*/, const Sequences& /*sequences*/) {
    for (const char* name :
         {"cu_seqlens", "cu_encoder_seqlens", "seq_lens", "prefix_lens", "left_pads", "first_positions"}) {
      add(name, "array");
    }
    add("max_tokens", "number");
  }
  template <class T>
  void operator()(const char* name, T* const& /*data*/) {
    add(name, Element<std::remove_const_t<T>> ? (std::is_const_v<T> ? "tensor" : "output") : "array");
  }
  template <class Config>
  void operator()(const char* name, const StagingView<Config>& /*staging*/) {
    add(name, "output");
  }
  template <class T>
  requires(std::is_arithmetic_v<T>) void operator()(const char* name, const T& /*number*/) { add(name, "number"); }
  template <class T>
  void map_array(const char* name, const T* const& /*data*/, std::initializer_list<std::int64_t> /*shape*/) {
    add(name, "array");
  }
  template <int d>
  void operator()(const char* name, const RotaryHalves<d>& /*rotary*/) {
    add((std::string(name) + "_base").c_str(), "number");
    add((std::string(name) + "_frequencies").c_str(), "array");
  }

  [[nodiscard]] const std::string& names() const { return names_; }

 private:
  void add(const char* name, const char* kind) { names_ += (names_.empty() ? "" : ",") + std::string(name) + ":" + kind; }

  std::string names_;
};

/// Run-time data of a feature map. An operator whose map has any specialises it, with
///
///     template <class Map, class Visitor>
///     static void visit(Map& map, Visitor& visitor) {
///       visitor("temperature", map.temperature);
///       visitor.map_array("table", map.table, {32, 16});
///     }
template <class Map>
struct MapData {
  template <class Visitor>
  static void visit(Map& /*map*/, Visitor& /*visitor*/) {}
};

/// Visits the fields of any mixer's argument struct, by name; a feature map's are those of its data.
template <class Args, class Visitor>
void visit_fields(Args& args, Visitor& visit) {
#define JRT_BIND_FIELD(field)               \
  if constexpr (requires { args.field; }) { \
    visit(#field, args.field);              \
  }
  JRT_BIND_FIELD(query)
  JRT_BIND_FIELD(key)
  JRT_BIND_FIELD(value)
  JRT_BIND_FIELD(key_encoder)
  JRT_BIND_FIELD(value_encoder)
  JRT_BIND_FIELD(input)
  JRT_BIND_FIELD(gate)
  JRT_BIND_FIELD(weight)
  JRT_BIND_FIELD(bias)
  JRT_BIND_FIELD(output)
  JRT_BIND_FIELD(denominators)
  JRT_BIND_FIELD(log_sum_exp)
  JRT_BIND_FIELD(sequences)
  JRT_BIND_FIELD(initial_state)
  JRT_BIND_FIELD(final_state)
  JRT_BIND_FIELD(has_initial_state)
  JRT_BIND_FIELD(source)
  JRT_BIND_FIELD(destination)
  JRT_BIND_FIELD(state)
  JRT_BIND_FIELD(staging)
  JRT_BIND_FIELD(already_staged)
  JRT_BIND_FIELD(accepted_tokens)
  JRT_BIND_FIELD(first_positions)
  JRT_BIND_FIELD(scale)
  JRT_BIND_FIELD(output_gradient)
  JRT_BIND_FIELD(final_state_gradient)
  JRT_BIND_FIELD(query_gradient)
  JRT_BIND_FIELD(key_gradient)
  JRT_BIND_FIELD(value_gradient)
  JRT_BIND_FIELD(key_encoder_gradient)
  JRT_BIND_FIELD(value_encoder_gradient)
  JRT_BIND_FIELD(input_gradient)
  JRT_BIND_FIELD(gate_gradient)
  JRT_BIND_FIELD(weight_gradient)
  JRT_BIND_FIELD(bias_gradient)
  JRT_BIND_FIELD(initial_state_gradient)
#undef JRT_BIND_FIELD
  if constexpr (requires { args.feature_map; }) {
    MapData<std::remove_cvref_t<decltype(args.feature_map)>>::visit(args.feature_map, visit);
  }
  if constexpr (requires { visit("rotary", args.rotary); }) {
    visit("rotary", args.rotary);
  }
}

}  // namespace jrt::bind
