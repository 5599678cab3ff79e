#include "engine/text/jinja_lex.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/text.h"

namespace nibble::engine::jinja {
namespace {

constexpr size_t kMaxTokens = 100'000;

bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsNameChar(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsBlank(char c) { return c == ' ' || c == '\t'; }
bool IsWhite(char c) { return absl::ascii_isspace(static_cast<unsigned char>(c)); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {
    // Jinja leaves out one newline at the end of a template.
    if (source_.ends_with('\n')) source_.remove_suffix(1);
    if (source_.ends_with('\r')) source_.remove_suffix(1);
  }

  absl::StatusOr<std::vector<Token>> Run() {
    if (!IsValidUtf8(source_)) return TemplateError(line_, "the template is not UTF-8");
    while (pos_ < source_.size()) {
      const size_t open = FindOpen();
      EmitText(open);
      if (open == source_.size()) break;
      const char kind = source_[open + 1];
      Advance(open + 2);
      if (pos_ < source_.size() && (source_[pos_] == '-' || source_[pos_] == '+'))
        Advance(pos_ + 1);
      if (kind == '#') {
        RETURN_IF_ERROR(SkipComment());
      } else {
        RETURN_IF_ERROR(Tag(kind == '%'));
      }
      if (tokens_.size() > kMaxTokens) return TemplateError(line_, "the template is too long");
    }
    tokens_.push_back({Token::Type::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  size_t FindOpen() const {
    for (size_t i = pos_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' &&
          (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) {
        return i;
      }
    }
    return source_.size();
  }

  // The text up to the tag at `open`, less the white space the tags around it take away.
  void EmitText(size_t open) {
    std::string_view text = source_.substr(pos_, open - pos_);
    const bool at_line_start = pos_ == 0 || source_[pos_ - 1] == '\n';
    Advance(open);
    if (strip_next_) {
      while (!text.empty() && IsWhite(text.front())) text.remove_prefix(1);
    } else if (trim_newline_) {
      if (text.starts_with("\r\n")) text.remove_prefix(1);
      if (text.starts_with('\n')) text.remove_prefix(1);
    }
    const bool started_line = at_line_start || (trim_newline_ && text.data() != source_.data() &&
                                                *(text.data() - 1) == '\n');
    strip_next_ = trim_newline_ = false;
    if (open < source_.size()) {
      const char mark = open + 2 < source_.size() ? source_[open + 2] : ' ';
      if (mark == '-') {
        while (!text.empty() && IsWhite(text.back())) text.remove_suffix(1);
      } else if (source_[open + 1] != '{' && mark != '+') {
        // lstrip_blocks: blanks between the start of the line and the tag go.
        size_t end = text.size();
        while (end > 0 && IsBlank(text[end - 1])) --end;
        if (end > 0 ? text[end - 1] == '\n' : started_line) text = text.substr(0, end);
      }
    }
    if (!text.empty()) tokens_.push_back({Token::Type::kText, std::string(text), line_});
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string_view::npos) return TemplateError(line_, "a comment is not closed");
    strip_next_ = end > pos_ && source_[end - 1] == '-';
    trim_newline_ = true;
    Advance(end + 2);
    return absl::OkStatus();
  }

  absl::Status Tag(bool block) {
    using Type = Token::Type;
    tokens_.push_back({block ? Type::kTagBegin : Type::kOutputBegin, "", line_});
    int depth = 0;  // of brackets: "}}" may close two dictionaries
    for (;;) {
      while (pos_ < source_.size() && IsWhite(source_[pos_])) Advance(pos_ + 1);
      if (pos_ >= source_.size()) return TemplateError(line_, "a tag is not closed");
      const std::string_view rest = source_.substr(pos_);
      const std::string_view close = block ? "%}" : "}}";
      const bool marked =
          rest.size() > 2 && (rest[0] == '-' || rest[0] == '+') && rest.substr(1, 2) == close;
      if (depth == 0 && (marked || rest.starts_with(close))) {
        strip_next_ = marked && rest[0] == '-';
        trim_newline_ = block && !marked;
        Advance(pos_ + (marked ? 3 : 2));
        tokens_.push_back({block ? Type::kTagEnd : Type::kOutputEnd, "", line_});
        return absl::OkStatus();
      }
      if (rest[0] == '(' || rest[0] == '[' || rest[0] == '{') ++depth;
      if (rest[0] == ')' || rest[0] == ']' || rest[0] == '}') --depth;
      RETURN_IF_ERROR(Piece());
    }
  }

  absl::Status Piece() {
    using Type = Token::Type;
    const char c = source_[pos_];
    size_t end = pos_ + 1;
    if (IsNameStart(c)) {
      while (end < source_.size() && IsNameChar(source_[end])) ++end;
      return Emit(Type::kName, end);
    }
    if (IsDigit(c)) {
      while (end < source_.size() && IsDigit(source_[end])) ++end;
      const bool fraction =
          end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1]);
      if (fraction) {
        ++end;
        while (end < source_.size() && IsDigit(source_[end])) ++end;
      }
      return Emit(fraction ? Type::kFloat : Type::kInteger, end);
    }
    if (c == '\'' || c == '"') return String(c);
    for (const std::string_view two : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (source_.substr(pos_, 2) == two) return Emit(Type::kOperator, pos_ + 2);
    }
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos) {
      return TemplateError(line_, absl::StrCat("unexpected ", Quote(source_.substr(pos_, 1))));
    }
    return Emit(Type::kOperator, end);
  }

  absl::Status Emit(Token::Type type, size_t end) {
    tokens_.push_back({type, std::string(source_.substr(pos_, end - pos_)), line_});
    Advance(end);
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    const int line = line_;
    std::string text;
    size_t i = pos_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 >= source_.size()) {
        text += source_[i];
        continue;
      }
      const char c = source_[++i];
      const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
      if (digits > 0) {
        uint32_t code = 0;
        if (i + digits >= source_.size() || !Hex(source_.substr(i + 1, digits), code)) {
          return TemplateError(line, "a string has a bad escape");
        }
        AppendUtf8(text, code);
        i += digits;
        continue;
      }
      constexpr std::pair<char, char> kEscapes[] = {{'n', '\n'},  {'t', '\t'},  {'r', '\r'},
                                                    {'\\', '\\'}, {'\'', '\''}, {'"', '"'},
                                                    {'0', '\0'}};
      const auto* known = std::find_if(std::begin(kEscapes), std::end(kEscapes),
                                       [&](const auto& e) { return e.first == c; });
      if (known != std::end(kEscapes)) {
        text += known->second;
      } else {
        text += '\\';
        text += c;
      }
    }
    if (i >= source_.size()) return TemplateError(line, "a string is not closed");
    Advance(i + 1);
    tokens_.push_back({Token::Type::kString, std::move(text), line});
    return absl::OkStatus();
  }

  static bool Hex(std::string_view digits, uint32_t& code) {
    for (const char c : digits) {
      if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return false;
      code = code * 16 + static_cast<uint32_t>(IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
  }

  void Advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + pos_, source_.begin() + to, '\n'));
    pos_ = to;
  }

  std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool strip_next_ = false;    // the last tag ended with "-%}"
  bool trim_newline_ = false;  // or was a block, which takes one newline along
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status TemplateError(int line, std::string_view what) {
  return Error::Field(Reason::kChatTemplateInvalid, "data.chat_template",
                      absl::StrCat("(the model's own, line ", line, "): ", View(what)));
}

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) { return Lexer(source).Run(); }

}  // namespace nibble::engine::jinja
