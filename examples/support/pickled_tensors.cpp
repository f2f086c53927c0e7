// SPDX-License-Identifier: Apache-2.0
#include "support/pickled_tensors.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "support/strict_json.hpp"

namespace support {

namespace {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie in the file");

constexpr std::size_t max_pickled_values = 1'000'000;
constexpr std::size_t max_dimensions = 64;  // PyTorch's own

/// What a name stands for.
enum class Role { dictionary, tensor, old_tensor, parameter, parameter_with_state, storage };

struct KnownName {
  std::string_view name;
  Role role;
  std::string_view dtype{};
};

constexpr KnownName known_names[] = {
    {"collections.OrderedDict", Role::dictionary},
    {"torch._utils._rebuild_tensor_v2", Role::tensor},
    {"torch._utils._rebuild_tensor", Role::old_tensor},
    {"torch._utils._rebuild_parameter", Role::parameter},
    {"torch._utils._rebuild_parameter_with_state", Role::parameter_with_state},
    {"torch.DoubleStorage", Role::storage, "F64"},
    {"torch.FloatStorage", Role::storage, "F32"},
    {"torch.HalfStorage", Role::storage, "F16"},
    {"torch.BFloat16Storage", Role::storage, "BF16"},
    {"torch.LongStorage", Role::storage, "I64"},
    {"torch.IntStorage", Role::storage, "I32"},
    {"torch.ShortStorage", Role::storage, "I16"},
    {"torch.CharStorage", Role::storage, "I8"},
    {"torch.ByteStorage", Role::storage, "U8"},
    {"torch.BoolStorage", Role::storage, "BOOL"},
};

enum class Kind { none, boolean, integer, real, text, tuple, list, dictionary, name, storage, tensor };

const char* description(Kind kind) {
  constexpr const char* words[] = {"None",   "a truth value", "a whole number", "a number",  "a text",  "a tuple",
                                   "a list", "a dictionary",  "a name",         "a storage", "a tensor"};
  return words[static_cast<int>(kind)];
}

using Index = std::uint32_t;

/// A value on the machine's stack. Values refer to one another by their place in one array, so that a value that holds
/// itself does no harm.
struct Value {
  Kind kind = Kind::none;
  std::int64_t integer = 0;         // of an integer; of a storage its size; of a tensor its place in another array
  std::string_view text{};          // of a text; of a storage its key
  const KnownName* name = nullptr;  // of a name; of a storage that of its type
  std::vector<Index> items{};       // of a tuple or a list; of a dictionary keys and values in turn
};

class Machine {
 public:
  Machine(const std::string& source, std::span<const std::byte> bytes) : source_(source), bytes_(bytes) {}

  std::map<std::string, PickledTensor> run() {
    for (bool stopped = false; !stopped;) {
      opcode_at_ = at_;
      stopped = execute(static_cast<unsigned char>(take(1).front()));
    }
    return tensors_of(pop());
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(source_ + ", byte " + std::to_string(opcode_at_) + ": " + what);
  }

  // -- Bytes --

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) {
      fail("needs " + std::to_string(count) + " more bytes, but " + std::to_string(bytes_.size() - at_) + " are left");
    }
    const std::string_view taken(reinterpret_cast<const char*>(bytes_.data()) + at_, count);
    at_ += count;
    return taken;
  }
  template <class Number>
  Number number() {
    Number value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + at_, bytes_.size() - at_);
    const std::size_t size = rest.find('\n');
    if (size == std::string_view::npos) {
      fail("has a line without end");
    }
    return take(size + 1).substr(0, size);
  }
  /// Two's complement in as many bytes as it says.
  std::int64_t long_integer() {
    const auto size = number<std::uint8_t>();
    if (size > 8) {
      fail("has a whole number of " + std::to_string(size) + " bytes, but at most 8 are known");
    }
    const std::string_view bytes = take(size);
    std::uint64_t value = size > 0 && (static_cast<unsigned char>(bytes.back()) & 0x80) != 0 ? ~std::uint64_t{0} : 0;
    std::memcpy(&value, bytes.data(), size);
    return static_cast<std::int64_t>(value);
  }
  double big_endian_real() {
    std::string bytes(take(8));
    std::reverse(bytes.begin(), bytes.end());
    double value = 0;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

  // -- Values, the stack, the memo --

  Value& value(Index index) { return values_[index]; }
  Value& of_kind(Index index, Kind kind, const char* what) {
    if (value(index).kind != kind) {
      fail(std::string(what) + " is " + description(value(index).kind) + ", but must be " + description(kind));
    }
    return value(index);
  }
  void bound(std::size_t count, const char* what) const {
    if (count >= max_pickled_values) {
      fail(std::string("has more than ") + std::to_string(max_pickled_values) + " " + what);
    }
  }
  Value& push(Kind kind) {
    bound(values_.size(), "values");
    push(static_cast<Index>(values_.size()));
    Value& made = values_.emplace_back();
    made.kind = kind;
    return made;
  }
  void push(Index index) {
    bound(stack_.size(), "values on its stack");
    stack_.push_back(index);
  }
  void push_integer(std::int64_t integer) { push(Kind::integer).integer = integer; }
  void push_text(std::string_view text) { push(Kind::text).text = text; }
  Index top() {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
      fail("takes a value, but there is none");
    }
    return stack_.back();
  }
  Index pop() {
    const Index index = top();
    stack_.pop_back();
    return index;
  }
  /// All values above the last mark, which goes too.
  std::vector<Index> pop_to_mark() {
    if (marks_.empty()) {
      fail("takes all values above a mark, but there is none");
    }
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Index> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }
  std::vector<Index> pop_some(std::size_t count) {
    std::vector<Index> items(count);
    for (std::size_t i = count; i-- > 0;) {
      items[i] = pop();
    }
    return items;
  }
  void memoize(std::uint64_t key) {
    bound(memo_.size(), "values in its memo");
    memo_[key] = top();
  }
  void recall(std::uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) {
      fail("takes value " + std::to_string(key) + " from its memo, but there is none");
    }
    push(found->second);
  }

  // -- Opcodes --

  /// Executes one; true when it is the last.
  bool execute(unsigned char opcode) {
    switch (opcode) {
      case 0x80:  // PROTO
        if (const auto protocol = number<std::uint8_t>(); protocol < 2 || protocol > 5) {
          fail("has pickle protocol " + std::to_string(protocol) + ", but known are 2 to 5");
        }
        return false;
      case 0x95:  // FRAME: how much to read at a time
        static_cast<void>(number<std::uint64_t>());
        return false;
      case '.':  // STOP
        return true;
      case '(':  // MARK
        bound(marks_.size(), "marks");
        marks_.push_back(stack_.size());
        return false;
      case '0':  // POP
        pop();
        return false;
      case 'q':  // BINPUT
        memoize(number<std::uint8_t>());
        return false;
      case 'r':  // LONG_BINPUT
        memoize(number<std::uint32_t>());
        return false;
      case 0x94:  // MEMOIZE
        memoize(memo_.size());
        return false;
      case 'h':  // BINGET
        recall(number<std::uint8_t>());
        return false;
      case 'j':  // LONG_BINGET
        recall(number<std::uint32_t>());
        return false;
      default:
        if (!execute_constant(opcode) && !execute_container(opcode) && !execute_construction(opcode)) {
          fail("has the opcode " + in_quotes(std::string(1, static_cast<char>(opcode))) + " (" + std::to_string(opcode) +
               "), which no file of tensors needs");
        }
        return false;
    }
  }

  bool execute_constant(unsigned char opcode) {
    switch (opcode) {
      case 'N':  // NONE
        push(Kind::none);
        return true;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push(Kind::boolean).integer = opcode == 0x88 ? 1 : 0;
        return true;
      case 'J':  // BININT
        push_integer(number<std::int32_t>());
        return true;
      case 'K':  // BININT1
        push_integer(number<std::uint8_t>());
        return true;
      case 'M':  // BININT2
        push_integer(number<std::uint16_t>());
        return true;
      case 0x8a:  // LONG1
        push_integer(long_integer());
        return true;
      case 'G':  // BINFLOAT: no use is made of it
        static_cast<void>(big_endian_real());
        push(Kind::real);
        return true;
      case 'X':  // BINUNICODE
        push_text(take(number<std::uint32_t>()));
        return true;
      case 0x8c:  // SHORT_BINUNICODE
        push_text(take(number<std::uint8_t>()));
        return true;
      case 0x8d:  // BINUNICODE8
        push_text(take(number<std::uint64_t>()));
        return true;
      default:
        return false;
    }
  }

  bool execute_container(unsigned char opcode) {
    switch (opcode) {
      case '}':  // EMPTY_DICT
        push(Kind::dictionary);
        return true;
      case ']':  // EMPTY_LIST
        push(Kind::list);
        return true;
      case ')':  // EMPTY_TUPLE
        push(Kind::tuple);
        return true;
      case 't':  // TUPLE
        push_tuple(pop_to_mark());
        return true;
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        push_tuple(pop_some(opcode - 0x84U));
        return true;
      case 'a':  // APPEND
        extend(Kind::list, pop_some(1), 1);
        return true;
      case 'e':  // APPENDS
        extend(Kind::list, pop_to_mark(), 1);
        return true;
      case 's':  // SETITEM
        extend(Kind::dictionary, pop_some(2), 2);
        return true;
      case 'u':  // SETITEMS
        extend(Kind::dictionary, pop_to_mark(), 2);
        return true;
      default:
        return false;
    }
  }

  bool execute_construction(unsigned char opcode) {
    switch (opcode) {
      case 'c': {  // GLOBAL
        const std::string_view module = line();
        push_name(module, line());
        return true;
      }
      case 'i': {  // INST: a name that is called at once
        const std::string_view module = line();
        refuse(std::string(module) + "." + std::string(line()));
      }
      case 0x93: {  // STACK_GLOBAL
        const auto parts = pop_some(2);
        const std::string_view module = of_kind(parts[0], Kind::text, "a module").text;
        push_name(module, of_kind(parts[1], Kind::text, "a name in a module").text);
        return true;
      }
      case 'Q':  // BINPERSID
        push_storage(pop());
        return true;
      case 'R': {  // REDUCE
        const auto call = pop_some(2);
        const Value& callable = of_kind(call[0], Kind::name, "what is called");
        reduce(*callable.name, of_kind(call[1], Kind::tuple, "the arguments").items);
        return true;
      }
      case 'b':  // BUILD: attributes, such as the versions that state_dict() notes in a dictionary
        pop();
        if (const Kind kind = value(top()).kind; kind != Kind::dictionary) {
          fail(std::string("sets attributes of ") + description(kind) + ", but only a dictionary may have some");
        }
        return true;
      default:
        return false;
    }
  }

  void push_tuple(std::vector<Index> items) { push(Kind::tuple).items = std::move(items); }

  /// Appends to the container below, `width` values at a time.
  void extend(Kind kind, const std::vector<Index>& items, std::size_t width) {
    auto& all = of_kind(top(), kind, "what is added to").items;
    if (items.size() % width != 0) {
      fail("sets " + std::to_string(items.size()) + " values in a dictionary, but they must be keys and values in turn");
    }
    all.insert(all.end(), items.begin(), items.end());
  }

  [[noreturn]] void refuse(const std::string& name) const {
    fail("asks for " + in_quotes(name) +
         ", which is no part of a tensor, a storage or a dictionary; nothing was executed (torch.save(model.state_dict(), "
         "...) writes files without such names)");
  }

  void push_name(std::string_view module, std::string_view name) {
    const std::string full = std::string(module) + "." + std::string(name);
    const auto* const found = std::find_if(std::begin(known_names), std::end(known_names),
                                           [&](const KnownName& known) { return known.name == full; });
    if (found == std::end(known_names)) {
      refuse(full);
    }
    push(Kind::name).name = found;
  }

  /// ("storage", type, key, device, size)
  void push_storage(Index id) {
    const auto& parts = of_kind(id, Kind::tuple, "a persistent id").items;
    if (parts.size() != 5 || value(parts[0]).kind != Kind::text || value(parts[0]).text != "storage") {
      fail("has a persistent id that is not one of a storage");
    }
    const KnownName* const type = of_kind(parts[1], Kind::name, "a storage's type").name;
    if (type->role != Role::storage) {
      fail("has the storage type " + in_quotes(type->name) + ", which is none");
    }
    const std::string_view key = of_kind(parts[2], Kind::text, "a storage's key").text;
    const std::int64_t size = extent(parts[4], "a storage's size");
    Value& storage = push(Kind::storage);
    storage.name = type;
    storage.text = key;
    storage.integer = size;
  }

  std::int64_t extent(Index index, const char* what) {
    const std::int64_t integer = of_kind(index, Kind::integer, what).integer;
    if (integer < 0) {
      fail(std::string(what) + " is " + std::to_string(integer) + ", but must be at least 0");
    }
    return integer;
  }
  std::vector<std::int64_t> extents(Index index, const char* what) {
    std::vector<std::int64_t> all;
    const auto& items = of_kind(index, Kind::tuple, what).items;
    if (items.size() > max_dimensions) {
      fail(std::string(what) + " has " + std::to_string(items.size()) + " numbers, but at most " +
           std::to_string(max_dimensions) + " are possible");
    }
    all.reserve(items.size());
    for (const Index item : items) {
      all.push_back(extent(item, what));
    }
    return all;
  }

  void require_arguments(const KnownName& callable, std::size_t count, std::size_t least, std::size_t most) const {
    if (count < least || count > most) {
      fail(std::string(callable.name) + " has " + std::to_string(count) + " arguments, but must have " +
           std::to_string(least) + (least == most ? "" : " to " + std::to_string(most)));
    }
  }

  void reduce(const KnownName& callable, const std::vector<Index>& arguments) {
    switch (callable.role) {
      case Role::dictionary:
        require_arguments(callable, arguments.size(), 0, 0);
        push(Kind::dictionary);
        return;
      case Role::tensor:  // storage, offset, shape, strides, requires_grad, hooks, and since 2.1 metadata
        require_arguments(callable, arguments.size(), 6, 7);
        push_tensor(arguments);
        return;
      case Role::old_tensor:  // storage, offset, shape, strides
        require_arguments(callable, arguments.size(), 4, 4);
        push_tensor(arguments);
        return;
      case Role::parameter:  // tensor, requires_grad, hooks
        require_arguments(callable, arguments.size(), 3, 3);
        break;
      case Role::parameter_with_state:  // and attributes
        require_arguments(callable, arguments.size(), 4, 4);
        break;
      case Role::storage:
        fail("calls " + std::string(callable.name) + ", but a storage is asked for by its key");
    }
    static_cast<void>(of_kind(arguments[0], Kind::tensor, "what becomes a parameter"));
    push(arguments[0]);  // a place, not a value: values stay where they are
  }

  /// `arguments` are those of a value, which a push may move: nothing is pushed before they are read.
  void push_tensor(const std::vector<Index>& arguments) {
    const Value& storage = of_kind(arguments[0], Kind::storage, "a tensor's storage");
    PickledTensor tensor{storage.name->dtype,
                         storage.text,
                         storage.integer,
                         extent(arguments[1], "a tensor's offset"),
                         extents(arguments[2], "a tensor's shape"),
                         extents(arguments[3], "a tensor's strides")};
    if (tensor.shape.size() != tensor.strides.size()) {
      fail("has a tensor of " + std::to_string(tensor.shape.size()) + " dimensions with " +
           std::to_string(tensor.strides.size()) + " strides");
    }
    push(Kind::tensor).integer = std::ssize(tensors_);
    tensors_.push_back(std::move(tensor));
  }

  // -- The result --

  std::map<std::string, PickledTensor> tensors_of(Index index) {
    const auto* items = &of_kind(index, Kind::dictionary, "the pickle's value").items;
    for (std::size_t i = 0; i < items->size(); i += 2) {
      const Value& key = value((*items)[i]);
      const Value& inner = value((*items)[i + 1]);
      if (key.kind == Kind::text && key.text == "state_dict" && inner.kind == Kind::dictionary) {
        items = &inner.items;
        break;
      }
    }
    std::map<std::string, PickledTensor> tensors;
    for (std::size_t i = 0; i < items->size(); i += 2) {
      const std::string_view name = of_kind((*items)[i], Kind::text, "a tensor's name").text;
      const Value& entry = value((*items)[i + 1]);
      if (entry.kind != Kind::tensor) {
        fail("the entry " + in_quotes(name) + " is " + description(entry.kind) + ", but must be a tensor");
      }
      if (!tensors.emplace(name, tensors_[static_cast<std::size_t>(entry.integer)]).second) {
        fail("the entry " + in_quotes(name) + " is there twice");
      }
    }
    return tensors;
  }

  const std::string& source_;
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
  std::uint64_t opcode_at_ = 0;
  std::vector<Value> values_{};
  std::vector<PickledTensor> tensors_{};
  std::vector<Index> stack_{};
  std::vector<std::size_t> marks_{};
  std::unordered_map<std::uint64_t, Index> memo_{};
};

}  // namespace

std::map<std::string, PickledTensor> read_pickled_tensors(const std::string& source, std::span<const std::byte> bytes) {
  return Machine(source, bytes).run();
}

}  // namespace support
