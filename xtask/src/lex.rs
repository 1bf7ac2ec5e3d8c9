//! Just enough of Rust's lexical grammar to tell code from comments, strings and tests.
//!
//! Decides nothing about style. Not a parser: macros are seen as written, never expanded.

/// What a token is, as far as the checks care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word,
    Punctuation,
    Literal,
    Lifetime,
    Comment,
}

/// A piece of source with the line it starts on (from 1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) line: usize,
}

impl Token<'_> {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text && matches!(self.kind, Kind::Word | Kind::Punctuation)
    }
}

/// A file's code and, apart from it, its comments.
pub(crate) struct Lexed<'a> {
    pub(crate) code: Vec<Token<'a>>,
    pub(crate) comments: Vec<Token<'a>>,
    /// Parallel to `code`: whether the token belongs to an item that only tests see.
    pub(crate) in_test: Vec<bool>,
}

/// Splits `source`. Never fails: what is no token ends up as one-character punctuation.
pub(crate) fn lex(source: &str) -> Lexed<'_> {
    let bytes = source.as_bytes();
    let (mut code, mut comments) = (Vec::new(), Vec::new());
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        if bytes[at].is_ascii_whitespace() {
            line += usize::from(bytes[at] == b'\n');
            at += 1;
            continue;
        }
        let (kind, end) = token_end(source, at);
        let text = &source[at..end];
        let token = Token { kind, text, line };
        if kind == Kind::Comment {
            comments.push(token)
        } else {
            code.push(token)
        }
        line += text.bytes().filter(|byte| *byte == b'\n').count();
        at = end;
    }
    let in_test = mark_tests(&code);
    Lexed { code, comments, in_test }
}

fn token_end(source: &str, at: usize) -> (Kind, usize) {
    let bytes = source.as_bytes();
    let next = bytes.get(at + 1).copied().unwrap_or(0);
    match bytes[at] {
        b'/' if next == b'/' => (Kind::Comment, line_end(bytes, at)),
        b'/' if next == b'*' => (Kind::Comment, block_comment_end(bytes, at)),
        b'"' => (Kind::Literal, string_end(bytes, at + 1)),
        b'\'' => quote_end(source, at),
        b'r' | b'b' | b'c' => match prefixed_literal_end(bytes, at) {
            Some(end) => (Kind::Literal, end),
            None => (Kind::Word, word_end(bytes, at)),
        },
        byte if is_word_byte(byte) && !byte.is_ascii_digit() => (Kind::Word, word_end(bytes, at)),
        byte if byte.is_ascii_digit() => (Kind::Literal, number_end(bytes, at)),
        b':' if next == b':' => (Kind::Punctuation, at + 2),
        _ => (Kind::Punctuation, at + 1),
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || byte >= 0x80
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    // `r#type` is one word.
    let start = if bytes[at..].starts_with(b"r#") { at + 2 } else { at };
    bytes[start..].iter().position(|byte| !is_word_byte(*byte)).map_or(bytes.len(), |length| start + length)
}

fn number_end(bytes: &[u8], at: usize) -> usize {
    let mut end = word_end(bytes, at);
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = word_end(bytes, end + 1);
    }
    end
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut end, mut depth) = (at + 2, 1);
    while end < bytes.len() && depth > 0 {
        match &bytes[end..] {
            [b'/', b'*', ..] => (depth, end) = (depth + 1, end + 2),
            [b'*', b'/', ..] => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
    }
    end
}

fn string_end(bytes: &[u8], first: usize) -> usize {
    let mut end = first;
    while end < bytes.len() {
        match bytes[end] {
            b'\\' => end += 2,
            b'"' => return end + 1,
            _ => end += 1,
        }
    }
    bytes.len()
}

/// `'a'`, `'\n'` or the lifetime `'a`.
fn quote_end(source: &str, at: usize) -> (Kind, usize) {
    let bytes = source.as_bytes();
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes.get(at + 3..).unwrap_or(&[]).iter().position(|byte| *byte == b'\'');
        return (Kind::Literal, close.map_or(bytes.len(), |length| at + 4 + length));
    }
    let width = source[at + 1..].chars().next().map_or(0, char::len_utf8);
    if bytes.get(at + 1 + width) == Some(&b'\'') {
        return (Kind::Literal, at + 2 + width);
    }
    (Kind::Lifetime, word_end(bytes, at + 1))
}

/// `r"…"`, `r#"…"#`, `b"…"`, `br"…"`, `c"…"`, `b'…'`; `None` if the letters start a word.
fn prefixed_literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let letters = bytes[at..].iter().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let raw = bytes[at..at + letters].contains(&b'r');
    let after = at + letters;
    if letters > 2 {
        return None;
    }
    if raw {
        let hashes = bytes[after..].iter().take_while(|byte| **byte == b'#').count();
        let open = after + hashes;
        if bytes.get(open) != Some(&b'"') {
            return None;
        }
        let mut close = vec![b'"'];
        close.resize(1 + hashes, b'#');
        let body = &bytes[open + 1..];
        let length = body.windows(close.len()).position(|window| window == close).unwrap_or(body.len());
        return Some((open + 1 + length + close.len()).min(bytes.len()));
    }
    match bytes.get(after) {
        Some(b'"') => Some(string_end(bytes, after + 1)),
        Some(b'\'') if bytes[at] == b'b' && letters == 1 => {
            let body = if bytes.get(after + 1) == Some(&b'\\') { after + 3 } else { after + 2 };
            let close = bytes.get(body..)?.iter().position(|byte| *byte == b'\'')?;
            Some(body + close + 1)
        }
        _ => None,
    }
}

/// Index of the bracket that closes the one at `open`, or the last token.
pub(crate) fn closing(code: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in code.iter().enumerate().skip(open) {
        if token.is("(") || token.is("[") || token.is("{") {
            depth += 1;
        } else if token.is(")") || token.is("]") || token.is("}") {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return index;
            }
        }
    }
    code.len().saturating_sub(1)
}

/// Whether the attribute whose `[` is at `open` marks something that only tests see.
fn is_test_attribute(attribute: &[Token<'_>]) -> bool {
    let has = |word: &str| attribute.iter().any(|token| token.is(word));
    let path: Vec<&Token<'_>> =
        attribute.iter().take_while(|token| token.kind == Kind::Word || token.is("::")).collect();
    path.last().is_some_and(|token| token.is("test"))
        || (path.first().is_some_and(|token| token.is("cfg")) && has("test") && !has("not"))
}

fn mark_tests(code: &[Token<'_>]) -> Vec<bool> {
    let mut in_test = vec![false; code.len()];
    let mut index = 0;
    while index + 2 < code.len() {
        if !code[index].is("#") {
            index += 1;
            continue;
        }
        let whole_file = code[index + 1].is("!");
        let open = index + 1 + usize::from(whole_file);
        if !code[open].is("[") {
            index += 1;
            continue;
        }
        let close = closing(code, open);
        if !is_test_attribute(&code[open + 1..close]) {
            index = close + 1;
            continue;
        }
        let end = if whole_file { code.len() - 1 } else { item_end(code, close + 1) };
        in_test[index..=end].fill(true);
        index = end + 1;
    }
    in_test
}

/// Last token of the item that starts at `start` (further attributes included).
fn item_end(code: &[Token<'_>], start: usize) -> usize {
    let mut index = start;
    while index < code.len() {
        if code[index].is(";") {
            return index;
        }
        if code[index].is("(") || code[index].is("[") {
            index = closing(code, index);
        } else if code[index].is("{") {
            index = closing(code, index);
            // `use a::{b, c};` goes on after its braces.
            if !code.get(index + 1).is_some_and(|token| token.is(";")) {
                return index;
            }
        }
        index += 1;
    }
    code.len().saturating_sub(1)
}

/// A path such as `std::fs::File`, with the line of its last segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path<'a> {
    pub(crate) segments: Vec<&'a str>,
    pub(crate) line: usize,
    pub(crate) in_test: bool,
    /// It stands in a `use`.
    pub(crate) imported: bool,
}

/// Every path that the code mentions; the trees of `use` are unfolded (`use std::{fs, net}` gives two).
pub(crate) fn paths<'a>(lexed: &Lexed<'a>) -> Vec<Path<'a>> {
    let mut found = Vec::new();
    let mut index = 0;
    while index < lexed.code.len() {
        if lexed.code[index].is("use") && lexed.code[index].kind == Kind::Word {
            index = use_tree(lexed, index + 1, &[], &mut found);
        } else if lexed.code[index].kind == Kind::Word {
            let (segments, last) = segments(&lexed.code, index);
            found.push(Path {
                segments,
                line: lexed.code[last].line,
                in_test: lexed.in_test[index],
                imported: false,
            });
            index = last + 1;
        } else {
            index += 1;
        }
    }
    found
}

/// The words joined by `::` from `start`, and the index of the last of them.
fn segments<'a>(code: &[Token<'a>], start: usize) -> (Vec<&'a str>, usize) {
    let (mut words, mut last) = (vec![code[start].text], start);
    while code.get(last + 1).is_some_and(|token| token.is("::"))
        && code.get(last + 2).is_some_and(|token| token.kind == Kind::Word)
    {
        last += 2;
        words.push(code[last].text);
    }
    (words, last)
}

fn use_tree<'a>(lexed: &Lexed<'a>, start: usize, prefix: &[&'a str], found: &mut Vec<Path<'a>>) -> usize {
    let code = &lexed.code;
    let mut index = start;
    if code.get(index).is_some_and(|token| token.is("::")) {
        index += 1;
    }
    let mut path = prefix.to_vec();
    while index < code.len() {
        let token = &code[index];
        if token.is("{") {
            let close = closing(code, index);
            index += 1;
            while index < close {
                index = use_tree(lexed, index, &path, found);
                index += usize::from(index < close && code[index].is(","));
            }
            return close + 1;
        }
        if token.kind == Kind::Word && !token.is("as") {
            path.push(token.text);
            index += 1;
            if code.get(index).is_some_and(|token| token.is("::")) {
                index += 1;
                continue;
            }
        } else if token.is("*") {
            index += 1;
        }
        if path.len() > prefix.len() || token.is("*") {
            let (line, in_test) = (code[index - 1].line, lexed.in_test[start]);
            found.push(Path { segments: path, line, in_test, imported: true });
        }
        if code.get(index).is_some_and(|token| token.is("as")) {
            index += 2;
        }
        // Something that is no use tree (`impl Trait + use<'a>`): leave it to the caller.
        return index.max(start + 1);
    }
    index
}

/// A function with the lines of its first and last token.
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) first_line: usize,
    pub(crate) last_line: usize,
    /// It carries `#[test]`.
    pub(crate) is_test: bool,
}

/// Every named function, also inside macros and other functions.
pub(crate) fn functions<'a>(lexed: &Lexed<'a>) -> Vec<Function<'a>> {
    let code = &lexed.code;
    let mut found = Vec::new();
    let mut test_attribute = false;
    let mut index = 0;
    while index < code.len() {
        if code[index].is("#") && code.get(index + 1).is_some_and(|token| token.is("[")) {
            let close = closing(code, index + 1);
            let attribute = &code[index + 2..close];
            test_attribute |=
                is_test_attribute(attribute) && !attribute.first().is_some_and(|token| token.is("cfg"));
            index = close + 1;
            continue;
        }
        if code[index].is("fn") && code.get(index + 1).is_some_and(|token| token.kind == Kind::Word) {
            let end = item_end(code, index);
            found.push(Function {
                name: code[index + 1].text,
                first_line: code[index].line,
                last_line: code[end].line,
                is_test: std::mem::take(&mut test_attribute),
            });
        } else if code[index].is("{") || code[index].is("}") || code[index].is(";") {
            test_attribute = false;
        }
        index += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{functions, lex, paths};

    fn words(source: &str) -> Vec<String> {
        paths(&lex(source)).iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let source = r####"/* a /* nested */ b */ let c = "d \" e"; // f
            let g = r#"h " i"#; let j = b'k'; let l = '"'; let m = '\''; fn n<'o>() { br"p"; c"q"; }"####;
        assert_eq!(words(source), ["let", "c", "let", "g", "let", "j", "let", "l", "let", "m", "fn", "n"]);
    }

    #[test]
    fn use_trees_unfold() {
        let source = "use std::{fs::{self, File}, net as n, time::*}; use ::core::fmt; a::b(c);";
        let expected = ["std::fs::self", "std::fs::File", "std::net", "std::time", "core::fmt", "a::b", "c"];
        assert_eq!(words(source), expected);
    }

    #[test]
    fn tests_are_told_apart() {
        let source = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod t { use b::{c, d}; fn e() {} }\nfn f() {}\n\
                      #[cfg(not(test))]\nfn g() {}\n#[cfg(test)]\nuse h::{i, j};\nfn k() {}";
        let lexed = lex(source);
        let seen: Vec<(&str, bool)> = paths(&lexed)
            .iter()
            .map(|path| (*path.segments.last().unwrap(), path.in_test))
            .filter(|(word, _)| word.len() == 1)
            .collect();
        let expected = [
            ("a", false),
            ("x", true),
            ("t", true),
            ("c", true),
            ("d", true),
            ("e", true),
            ("f", false),
            ("g", false),
            ("i", true),
            ("j", true),
            ("k", false),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn functions_have_their_lines_and_whether_they_are_tests() {
        let source = "#[test]\nfn a() {\n    1;\n}\nfn b(c: [u8; 2]) -> u8 {\n0 }\ntrait T { fn d(); }\n\
                      proptest! { #[test]\n fn e(x in 0..1) {} }\n#[cfg(test)]\nfn f() {}";
        let lexed = lex(source);
        let seen: Vec<(&str, usize, usize, bool)> =
            functions(&lexed).iter().map(|f| (f.name, f.first_line, f.last_line, f.is_test)).collect();
        let expected = [
            ("a", 2, 4, true),
            ("b", 5, 6, false),
            ("d", 7, 7, false),
            ("e", 9, 9, true),
            ("f", 11, 11, false),
        ];
        assert_eq!(seen, expected);
    }
}
