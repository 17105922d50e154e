#include "moh/text/jinja_parser.h"

#include <algorithm>
#include <array>
#include <set>

#include "moh/text/jinja_lexer.h"

namespace moh::text::jinja {
namespace {

using Kind = Node::Kind;
constexpr int kMaxDepth = 400;

class Parser {
 public:
  Parser(std::vector<Token> tokens, int& line) : tokens_(std::move(tokens)), line_(line) {}

  std::vector<NodePtr> run() {
    std::vector<NodePtr> nodes = statements({});
    if (!at(Token::Kind::end)) fault("unexpected `", current().text, "`");
    return nodes;
  }

 private:
  // ---- Tokens

  const Token& current() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void advance() {
    if (at_ + 1 < tokens_.size()) ++at_;
    line_ = current().line;
  }
  bool at(Token::Kind kind) const { return current().kind == kind; }
  bool at_symbol(std::string_view symbol) const { return at(Token::Kind::symbol) && current().text == symbol; }
  bool at_name(std::string_view name) const { return at(Token::Kind::name) && current().text == name; }
  bool skip_symbol(std::string_view symbol) {
    if (!at_symbol(symbol)) return false;
    advance();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!at_name(name)) return false;
    advance();
    return true;
  }
  static std::string shown(const Token& token) {
    switch (token.kind) {
      case Token::Kind::end:
        return "the end of the template";
      case Token::Kind::data:
        return "text";
      case Token::Kind::print_begin:
        return "`{{`";
      case Token::Kind::print_end:
        return "`}}`";
      case Token::Kind::tag_begin:
        return "`{%`";
      case Token::Kind::tag_end:
        return "`%}`";
      default:
        return "`" + token.text.substr(0, 60) + "`";
    }
  }
  void expect_symbol(std::string_view symbol) {
    if (!skip_symbol(symbol)) fault("expected `", symbol, "`, got ", shown(current()));
  }
  std::string expect_name() {
    if (!at(Token::Kind::name)) fault("expected a name, got ", shown(current()));
    std::string name = current().text;
    advance();
    return name;
  }
  void expect_tag_end() {
    if (!at(Token::Kind::tag_end)) fault("expected `%}`, got ", shown(current()));
    advance();
  }

  // ---- Nodes

  NodePtr make(Kind kind, int line, std::string text = {}) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = line;
    node->text = std::move(text);
    return node;
  }
  template <class... Items>
  NodePtr make_with(Kind kind, int line, std::string text, Items... items) {
    NodePtr node = make(kind, line, std::move(text));
    (add(*node, std::move(items)), ...);
    return node;
  }
  void add(Node& node, NodePtr item) {
    if (item != nullptr) deepen(node, item->depth);
    node.items.push_back(std::move(item));
  }
  void deepen(Node& node, int depth) {
    node.depth = std::max(node.depth, depth + 1);
    if (node.depth > kMaxDepth) fault("the template is nested more than ", kMaxDepth, " deep");
  }
  struct Level {  // of the parser's own recursion
    explicit Level(int& depth) : depth(depth) {
      if (++depth > kMaxDepth) fault("the template is nested more than ", kMaxDepth, " deep");
    }
    ~Level() { --depth; }
    int& depth;
  };

  // ---- Statements

  // Until a tag that begins with one of `ends`, which is left at its name.
  std::vector<NodePtr> statements(std::initializer_list<std::string_view> ends) {
    const Level level(level_);
    std::vector<NodePtr> nodes;
    for (;;) {
      const int line = current().line;
      if (at(Token::Kind::data)) {
        nodes.push_back(make(Kind::output, line, current().text));
        advance();
      } else if (at(Token::Kind::print_begin)) {
        advance();
        nodes.push_back(make_with(Kind::print, line, "", expression_or_tuple()));
        if (!at(Token::Kind::print_end)) fault("expected `}}`, got ", shown(current()));
        advance();
      } else if (at(Token::Kind::tag_begin)) {
        advance();
        const bool ended = at(Token::Kind::name) && std::find(ends.begin(), ends.end(), current().text) != ends.end();
        if (ended) return nodes;
        nodes.push_back(statement());
      } else {
        if (ends.size() > 0) fault("expected {% ", *(ends.end() - 1), " %}, got ", shown(current()));
        return nodes;
      }
    }
  }

  void block(Node& node, std::initializer_list<std::string_view> ends) {
    expect_tag_end();
    node.blocks.push_back(statements(ends));
    for (const NodePtr& inner : node.blocks.back()) deepen(node, inner->depth);
  }
  void last_block(Node& node, std::string_view end) {
    block(node, {end});
    advance();
    expect_tag_end();
  }

  NodePtr statement() {
    const int line = current().line;
    const std::string tag = expect_name();
    if (tag == "if") return choice(line);
    if (tag == "for") return loop(line);
    if (tag == "set") return set(line);
    if (tag == "macro") return macro(line);
    if (tag == "call") return call_block(line);
    if (tag == "with") return with(line);
    if (tag == "filter") {
      NodePtr node = make(Kind::filter_block, line);
      NodePtr filter = named_filter(nullptr);
      while (skip_symbol("|")) filter = named_filter(std::move(filter));
      add(*node, std::move(filter));
      last_block(*node, "endfilter");
      return node;
    }
    if (tag == "generation") {
      NodePtr node = make(Kind::scope, line);
      last_block(*node, "endgeneration");
      return node;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fault("`", tag, "` outside of a loop");
      expect_tag_end();
      return make(tag == "break" ? Kind::break_loop : Kind::continue_loop, line);
    }
    constexpr std::array<std::string_view, 12> kElsewhere = {"block", "extends", "include",    "import",
                                                             "from",  "print",   "autoescape", "do",
                                                             "trans", "debug",   "raw",        "endraw"};
    const bool known = std::find(kElsewhere.begin(), kElsewhere.end(), tag) != kElsewhere.end();
    fault("tag `", tag.substr(0, 60), known ? "` is not supported" : "` is not known or not expected here");
  }

  NodePtr choice(int line) {
    NodePtr node = make(Kind::choice, line);
    add(*node, expression_or_tuple());
    for (;;) {
      block(*node, {"elif", "else", "endif"});
      if (skip_name("elif")) {
        add(*node, expression_or_tuple());
      } else if (skip_name("else")) {
        last_block(*node, "endif");
        return node;
      } else {
        advance();
        expect_tag_end();
        node->blocks.emplace_back();
        return node;
      }
    }
  }

  NodePtr loop(int line) {
    NodePtr node = make(Kind::loop, line);
    node->targets.push_back(target(false, {"in"}));
    if (!skip_name("in")) fault("expected `in`, got ", shown(current()));
    add(*node, expression_or_tuple(false));
    add(*node, skip_name("if") ? expression() : nullptr);
    if (at_name("recursive")) fault("recursive loops are not supported");
    ++loops_;
    block(*node, {"else", "endfor"});
    --loops_;
    if (skip_name("else")) {
      last_block(*node, "endfor");
    } else {
      advance();
      expect_tag_end();
      node->blocks.emplace_back();
    }
    return node;
  }

  // A name, or several with commas, perhaps in brackets; with `attributes` also `namespace.name`.
  NodePtr target(bool attributes, std::initializer_list<std::string_view> ends) {
    const Level level(level_);
    const int line = current().line;
    NodePtr first = one_target(attributes);
    if (!at_symbol(",")) return first;
    NodePtr tuple = make_with(Kind::tuple, line, "", std::move(first));
    const auto ended = [&] {
      return at_symbol("=") || at_symbol(")") || at(Token::Kind::tag_end) ||
             (at(Token::Kind::name) && std::find(ends.begin(), ends.end(), current().text) != ends.end());
    };
    while (skip_symbol(",") && !ended()) add(*tuple, one_target(attributes));
    return tuple;
  }
  NodePtr one_target(bool attributes) {
    const int line = current().line;
    if (skip_symbol("(")) {
      NodePtr inner = target(attributes, {});
      expect_symbol(")");
      return inner;
    }
    const std::string name = expect_name();
    constexpr std::array<std::string_view, 7> kConstants = {"true", "True", "false", "False", "none", "None", "loop"};
    if (std::find(kConstants.begin(), kConstants.end(), name) != kConstants.end())
      fault("cannot assign to `", name, "`");
    NodePtr node = make(Kind::name, line, name);
    if (!attributes || !skip_symbol(".")) return node;
    return make_with(Kind::attribute, line, expect_name(), std::move(node));
  }

  NodePtr set(int line) {
    NodePtr goal = target(true, {});
    NodePtr node;
    if (skip_symbol("=")) {
      node = make_with(Kind::set, line, "", expression_or_tuple());
      expect_tag_end();
    } else {
      node = make(Kind::set_block, line);
      NodePtr filter;
      while (skip_symbol("|")) filter = named_filter(std::move(filter));
      add(*node, std::move(filter));
      last_block(*node, "endset");
    }
    node->targets.push_back(std::move(goal));
    return node;
  }

  // "(a, b=1)"
  void parameters(Node& node) {
    expect_symbol("(");
    bool has_default = false;
    while (!skip_symbol(")")) {
      if (!node.texts.empty()) expect_symbol(",");
      node.texts.push_back(expect_name());
      if (skip_symbol("=")) {
        has_default = true;
        add(node, expression());
      } else if (has_default) {
        fault("parameter `", node.texts.back(), "` without a default value after one that has it");
      }
    }
  }

  // The body sees outer loops no more.
  void macro_body(Node& node, std::string_view end) {
    std::set<std::string> outer;
    outer.swap(names_);
    const int loops = std::exchange(loops_, 0);
    last_block(node, end);
    loops_ = loops;
    node.uses_varargs = names_.contains("varargs");
    node.uses_kwargs = names_.contains("kwargs");
    node.uses_caller = names_.contains("caller");
    names_.insert(outer.begin(), outer.end());
  }

  NodePtr macro(int line) {
    NodePtr node = make(Kind::macro, line, expect_name());
    parameters(*node);
    macro_body(*node, "endmacro");
    return node;
  }

  NodePtr call_block(int line) {
    NodePtr node = make(Kind::call_block, line);
    add(*node, nullptr);
    if (at_symbol("(")) parameters(*node);
    NodePtr call = expression();
    if (call->kind != Kind::call) fault("expected a call");
    deepen(*node, call->depth);
    node->items.front() = std::move(call);
    macro_body(*node, "endcall");
    return node;
  }

  NodePtr with(int line) {
    NodePtr node = make(Kind::with, line);
    while (!at(Token::Kind::tag_end)) {
      if (!node->targets.empty()) expect_symbol(",");
      node->targets.push_back(one_target(false));
      expect_symbol("=");
      add(*node, expression());
    }
    last_block(*node, "endwith");
    return node;
  }

  // ---- Expressions, from the loosest to the tightest binding

  NodePtr expression_or_tuple(bool with_condition = true) {
    const int line = current().line;
    NodePtr first = with_condition ? expression() : logical_or();
    if (!at_symbol(",")) return first;
    NodePtr tuple = make_with(Kind::tuple, line, "", std::move(first));
    while (skip_symbol(",")) {
      if (at(Token::Kind::tag_end) || at(Token::Kind::print_end) || at_symbol(")")) break;
      add(*tuple, with_condition ? expression() : logical_or());
    }
    return tuple;
  }

  NodePtr expression() {
    const Level level(level_);
    const int line = current().line;
    NodePtr value = logical_or();
    while (skip_name("if")) {
      NodePtr condition = logical_or();
      NodePtr otherwise = skip_name("else") ? expression() : nullptr;
      value = make_with(Kind::ternary, line, "", std::move(condition), std::move(value), std::move(otherwise));
    }
    return value;
  }

  NodePtr logical_or() {
    NodePtr left = logical_and();
    while (at_name("or")) {
      const int line = current().line;
      advance();
      left = make_with(Kind::logical, line, "or", std::move(left), logical_and());
    }
    return left;
  }
  NodePtr logical_and() {
    NodePtr left = negation();
    while (at_name("and")) {
      const int line = current().line;
      advance();
      left = make_with(Kind::logical, line, "and", std::move(left), negation());
    }
    return left;
  }
  NodePtr negation() {
    const Level level(level_);
    const int line = current().line;
    if (skip_name("not")) return make_with(Kind::negate, line, "not", negation());
    return comparison();
  }
  NodePtr comparison() {
    const int line = current().line;
    NodePtr left = sum();
    NodePtr node;
    for (;;) {
      std::string symbol;
      if (at(Token::Kind::symbol)) {
        for (const char* known : {"==", "!=", "<", "<=", ">", ">="})
          if (current().text == known) symbol = known;
        if (symbol.empty()) break;
        advance();
      } else if (skip_name("in")) {
        symbol = "in";
      } else if (at_name("not") && next().kind == Token::Kind::name && next().text == "in") {
        advance();
        advance();
        symbol = "not in";
      } else {
        break;
      }
      if (node == nullptr) node = make_with(Kind::compare, line, "", std::move(left));
      node->texts.push_back(symbol);
      add(*node, sum());
    }
    return node == nullptr ? std::move(left) : std::move(node);
  }

  template <class Operand>
  NodePtr binary(std::initializer_list<const char*> symbols, const Operand& operand) {
    NodePtr left = operand();
    for (;;) {
      const auto found =
          std::find_if(symbols.begin(), symbols.end(), [&](const char* symbol) { return at_symbol(symbol); });
      if (found == symbols.end()) return left;
      const int line = current().line;
      advance();
      left = make_with(Kind::binary, line, *found, std::move(left), operand());
    }
  }
  NodePtr sum() {
    return binary({"+", "-"}, [&] { return concatenation(); });
  }
  NodePtr concatenation() {
    return binary({"~"}, [&] { return product(); });
  }
  NodePtr product() {
    return binary({"*", "/", "//", "%"}, [&] { return power(); });
  }
  NodePtr power() {
    return binary({"**"}, [&] { return unary(true); });
  }

  NodePtr unary(bool with_filters) {
    const Level level(level_);
    const int line = current().line;
    NodePtr node;
    if (skip_symbol("-")) {
      node = make_with(Kind::negate, line, "-", unary(false));
    } else if (skip_symbol("+")) {
      node = make_with(Kind::negate, line, "+", unary(false));
    } else {
      node = primary();
    }
    node = postfix(std::move(node));
    return with_filters ? filters(std::move(node)) : std::move(node);
  }

  NodePtr primary() {
    const Level level(level_);
    const Token token = current();
    NodePtr node = make(Kind::constant, token.line);
    if (token.kind == Token::Kind::name) {
      advance();
      if (token.text == "true" || token.text == "True" || token.text == "false" || token.text == "False") {
        node->value = token.text == "true" || token.text == "True";
      } else if (token.text == "none" || token.text == "None") {
        node->value = None{};
      } else {
        node->kind = Kind::name;
        node->text = token.text;
        names_.insert(token.text);
      }
    } else if (token.kind == Token::Kind::string) {
      std::string text;
      for (; at(Token::Kind::string); advance()) text += current().text;
      node->value = Value(text);
    } else if (token.kind == Token::Kind::integer) {
      advance();
      node->value = token.integer;
    } else if (token.kind == Token::Kind::number) {
      advance();
      node->value = token.number;
    } else if (skip_symbol("(")) {
      if (skip_symbol(")")) {
        node->kind = Kind::tuple;
        return node;
      }
      node = expression_or_tuple();
      expect_symbol(")");
    } else if (skip_symbol("[")) {
      node->kind = Kind::list;
      while (!skip_symbol("]")) {
        if (!node->items.empty()) expect_symbol(",");
        if (skip_symbol("]")) break;
        add(*node, expression());
      }
    } else if (skip_symbol("{")) {
      node->kind = Kind::dict;
      while (!skip_symbol("}")) {
        if (!node->items.empty()) expect_symbol(",");
        if (skip_symbol("}")) break;
        add(*node, expression());
        expect_symbol(":");
        add(*node, expression());
      }
    } else {
      fault("unexpected ", shown(token));
    }
    return node;
  }

  NodePtr postfix(NodePtr node) {
    for (;;) {
      const int line = current().line;
      if (skip_symbol(".")) {
        if (at(Token::Kind::integer)) {
          NodePtr key = make(Kind::constant, line);
          key->value = current().integer;
          advance();
          node = make_with(Kind::subscript, line, "", std::move(node), std::move(key));
        } else {
          node = make_with(Kind::attribute, line, expect_name(), std::move(node));
        }
      } else if (skip_symbol("[")) {
        node = subscript(std::move(node), line);
      } else if (at_symbol("(")) {
        node = make_with(Kind::call, line, "", std::move(node));
        arguments(*node);
      } else {
        return node;
      }
    }
  }

  NodePtr subscript(NodePtr object, int line) {
    const auto part = [&]() -> NodePtr { return at_symbol(":") || at_symbol("]") ? nullptr : expression(); };
    NodePtr first = part();
    if (at_symbol("]") && first != nullptr) {
      advance();
      return make_with(Kind::subscript, line, "", std::move(object), std::move(first));
    }
    expect_symbol(":");
    NodePtr last = part(), step;
    if (skip_symbol(":")) step = part();
    expect_symbol("]");
    return make_with(Kind::slice, line, "", std::move(object), std::move(first), std::move(last), std::move(step));
  }

  void arguments(Node& node) {
    expect_symbol("(");
    bool first = true;
    while (!skip_symbol(")")) {
      if (!first) expect_symbol(",");
      if (skip_symbol(")")) break;
      first = false;
      if (at_symbol("*") || at_symbol("**")) fault("arguments from a list (*) or dictionary (**) are not supported");
      if (at(Token::Kind::name) && next().kind == Token::Kind::symbol && next().text == "=") {
        std::string name = expect_name();
        advance();
        NodePtr value = expression();
        deepen(node, value->depth);
        node.named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!node.named.empty()) fault("an argument without a name after one with a name");
        add(node, expression());
      }
    }
  }

  NodePtr filters(NodePtr node) {
    for (;;) {
      if (skip_symbol("|")) {
        node = named_filter(std::move(node));
      } else if (at_name("is")) {
        node = test(std::move(node));
      } else if (at_symbol("(")) {
        const int line = current().line;
        node = make_with(Kind::call, line, "", std::move(node));
        arguments(*node);
      } else {
        return node;
      }
    }
  }

  NodePtr named_filter(NodePtr input) {
    const int line = current().line;
    const std::string name = expect_name();
    if (!is_filter(name)) fault("filter `", name.substr(0, 60), "` is not supported");
    NodePtr node = make_with(Kind::filter, line, name, std::move(input));
    if (at_symbol("(")) arguments(*node);
    return node;
  }

  NodePtr test(NodePtr input) {
    const int line = current().line;
    advance();
    const bool negated = skip_name("not");
    const std::string name = expect_name();
    if (!is_test(name)) fault("test `", name.substr(0, 60), "` is not supported");
    NodePtr node = make_with(Kind::test, line, name, std::move(input));
    const bool has_argument = at(Token::Kind::string) || at(Token::Kind::integer) || at(Token::Kind::number) ||
                              at_symbol("[") || at_symbol("{") ||
                              (at(Token::Kind::name) && !at_name("else") && !at_name("or") && !at_name("and"));
    if (at_symbol("(")) {
      arguments(*node);
    } else if (has_argument) {
      if (at_name("is")) fault("tests cannot be chained with `is`");
      add(*node, postfix(primary()));
    }
    return negated ? make_with(Kind::negate, line, "not", std::move(node)) : std::move(node);
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int level_ = 0, loops_ = 0;
  std::set<std::string> names_;  // seen in the macro that is being read
  int& line_;
};

}  // namespace

std::vector<NodePtr> parse(std::string_view source, int& line) {
  std::vector<Token> tokens = tokens_of(source, line);
  line = 1;
  return Parser(std::move(tokens), line).run();
}

}  // namespace moh::text::jinja
