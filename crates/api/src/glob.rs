//! Shell globs over paths, and the exclude rules of a copy.
//!
//! The grammar of a segment is that of Go's `path.Match`, which SlicerVM's clients use: `*`, `?`,
//! `[a-z]`, `[^a-z]` and `\` before a character that stands for itself. `**` as a whole segment is
//! any number of segments. Paths are bytes, since names in a guest need not be UTF-8; `?` and
//! classes take a whole character where there is one, else a byte.

/// A pattern that is not a glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern {0:?}: a [ without its ], or a \\ at the end")]
pub struct GlobError(pub String);

/// What one place of a segment may be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Any number of characters.
    Star,
    /// Any character.
    One,
    /// This character.
    Char(u32),
    /// A character within (or, negated, without) these ranges.
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// `**`: any number of segments, none included.
    Any,
    Glob(Vec<Token>),
}

/// A glob over a `/`-separated path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    text: String,
    segments: Vec<Segment>,
}

impl Glob {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Self, GlobError> {
        let segments = text
            .split('/')
            .map(|segment| match segment {
                "**" => Some(Segment::Any),
                _ => tokens(segment).map(Segment::Glob),
            })
            .collect::<Option<_>>()
            .ok_or_else(|| GlobError(text.chars().take(64).collect()))?;
        Ok(Self {
            text: text.to_owned(),
            segments,
        })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole pattern matches the whole path. `*` doesn't cross `/`.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        wildcard(
            &self.segments,
            &names,
            |segment| *segment == Segment::Any,
            |segment, name| match segment {
                Segment::Any => true,
                Segment::Glob(tokens) => matches_name(tokens, name),
            },
        )
    }

    /// Whether it is a pattern of one segment and matches the path's last one.
    #[must_use]
    pub fn matches_name(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        self.segments.len() == 1 && self.matches(name)
    }
}

/// The rules by which files of a tree are left out of a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excludes(Vec<Glob>);

impl Excludes {
    /// Reads patterns. What surrounds their core is dropped: spaces, a leading `./` or `/`, a
    /// trailing `/`; and so are patterns of which nothing is left.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, GlobError> {
        patterns
            .into_iter()
            .map(core)
            .filter(|p| !p.is_empty())
            .map(Glob::new)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The patterns.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Glob::as_str)
    }

    /// Whether this path, relative to the tree's root, is left out: because a pattern matches all
    /// of it, or its last name, or a directory it is in.
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let ends = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at)
            .chain([path.len()]);
        ends.into_iter()
            .any(|end| self.0.iter().any(|glob| hits(glob, &path[..end])))
    }
}

fn hits(glob: &Glob, path: &[u8]) -> bool {
    glob.matches(path) || glob.matches_name(path)
}

/// A pattern without what surrounds it; of what is left, nothing more is dropped.
fn core(pattern: &str) -> &str {
    let mut rest = pattern;
    loop {
        let trimmed = rest.trim();
        let trimmed = trimmed
            .strip_prefix("./")
            .or_else(|| trimmed.strip_prefix('/'))
            .or_else(|| trimmed.strip_suffix('/'))
            .unwrap_or(trimmed);
        if trimmed.len() == rest.len() {
            return rest;
        }
        rest = trimmed;
    }
}

fn tokens(segment: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = segment.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' if tokens.last() == Some(&Token::Star) => continue,
            '*' => Token::Star,
            '?' => Token::One,
            '\\' => Token::Char(chars.next()?.into()),
            '[' => class(&mut chars)?,
            c => Token::Char(c.into()),
        });
    }
    Some(tokens)
}

/// What follows a `[`, up to its `]`.
fn class(chars: &mut std::str::Chars<'_>) -> Option<Token> {
    let mut rest = chars.clone();
    let negated = matches!(rest.next(), Some('^' | '!'));
    if negated {
        *chars = rest;
    }
    let mut ranges = Vec::new();
    loop {
        let literal = |chars: &mut std::str::Chars<'_>| match chars.next()? {
            '\\' => chars.next(),
            c => Some(c),
        };
        let mut rest = chars.clone();
        if rest.next()? == ']' && !ranges.is_empty() {
            *chars = rest;
            return Some(Token::Class { negated, ranges });
        }
        let first = literal(chars)?;
        let mut rest = chars.clone();
        let dash = rest.next() == Some('-');
        let last = match rest.clone().next() {
            Some(end) if dash && end != ']' => {
                *chars = rest;
                literal(chars)?
            }
            _ => first,
        };
        ranges.push((first.into(), last.into()));
    }
}

fn matches_name(tokens: &[Token], name: &[u8]) -> bool {
    wildcard(
        tokens,
        &characters(name),
        |token| *token == Token::Star,
        |token, c| match token {
            Token::Star | Token::One => true,
            Token::Char(wanted) => wanted == c,
            Token::Class { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(first, last)| (first..=last).contains(&c))
                    != *negated
            }
        },
    )
}

/// The characters of a name; a byte that is part of none counts as one of its own kind.
fn characters(name: &[u8]) -> Vec<u32> {
    const NO_CHAR: u32 = 0x11_0000;
    let mut characters = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        characters.extend(chunk.valid().chars().map(u32::from));
        characters.extend(chunk.invalid().iter().map(|b| NO_CHAR + u32::from(*b)));
    }
    characters
}

/// Matches a pattern with wildcards for any number of items, in time of at most the product of
/// both lengths: only the last wildcard that was met need ever be tried again.
fn wildcard<P, T>(
    pattern: &[P],
    items: &[T],
    is_wild: impl Fn(&P) -> bool,
    fits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut i) = (0, 0);
    // After which wildcard to go on, and from which item, when what follows doesn't fit.
    let mut retry: Option<(usize, usize)> = None;
    while i < items.len() {
        match pattern.get(p) {
            Some(wild) if is_wild(wild) => {
                p += 1;
                retry = Some((p, i));
            }
            Some(one) if fits(one, &items[i]) => {
                p += 1;
                i += 1;
            }
            _ => match retry {
                Some((after, from)) => {
                    p = after;
                    i = from + 1;
                    retry = Some((after, i));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(is_wild)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Glob::new(pattern).unwrap().matches(path.as_bytes())
    }

    #[test]
    fn globs() {
        for (pattern, path, yes) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a", "a/b", false),
            ("*", "a", true),
            ("*", "", true),
            ("*", "a/b", false),
            ("*.o", "main.o", true),
            ("*.o", "src/main.o", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "é", true),
            ("?", "", false),
            ("??", "é", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[\\]-a]", "^", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/x/y/c", false),
            ("**", "a/b", true),
            ("**/b", "b", true),
            ("**/b", "a/c/b", true),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("**/x/**/y", "1/x/2/x/3/y", true),
            ("a**b", "axxb", true),
            ("a**b", "a/b", false),
        ] {
            assert_eq!(matches(pattern, path), yes, "{pattern} on {path}");
        }
        assert!(Glob::new("?").unwrap().matches(b"\xff"));
        assert!(!Glob::new("\u{fffd}").unwrap().matches(b"\xff"));
    }

    #[test]
    fn broken_patterns_are_refused() {
        for pattern in ["[", "[a", "[]", "a[", "[a-", "\\", "x/[/y", "[^"] {
            assert!(Glob::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn what_is_excluded() {
        let excludes = Excludes::new([
            " ./node_modules/ ",
            "/build/*.log",
            "*.o",
            "docs/**/draft",
            "",
            "/",
        ])
        .unwrap();
        assert_eq!(
            excludes.patterns().collect::<Vec<_>>(),
            ["node_modules", "build/*.log", "*.o", "docs/**/draft"]
        );
        for (path, out) in [
            ("node_modules", true),
            ("a/b/node_modules", true),
            ("a/node_modules/x/y.js", true),
            ("node_modules2", false),
            ("build/x.log", true),
            ("a/build/x.log", false),
            ("build/sub/x.log", false),
            ("src/main.o", true),
            ("main.o/inside", true),
            ("docs/draft", true),
            ("docs/1/2/draft/3", true),
            ("draft", false),
            ("src/main.c", false),
        ] {
            assert_eq!(excludes.excludes(path.as_bytes()), out, "{path}");
        }
        assert!(!Excludes::default().excludes(b"anything"));
    }

    /// What the wildcard rule means, written as a definition.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|n| naive(rest, &text[n..])),
            Some(('?', rest)) => !text.is_empty() && naive(rest, &text[1..]),
            Some((c, rest)) => text.first() == Some(c) && naive(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assume!(pattern != "**");
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), naive(&chars(&pattern), &chars(&text)));
        }

        #[test]
        fn any_pattern_and_any_path(pattern in ".{0,40}", path in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(excludes) = Excludes::new([pattern.as_str()]) {
                let _ = excludes.excludes(&path);
            }
        }

        #[test]
        fn what_is_below_something_excluded_is(path in "[ab/.]{1,12}", below in "[ab]{1,3}", pattern in "[ab*/?]{1,8}") {
            let excludes = Excludes::new([pattern.as_str()]).unwrap();
            if excludes.excludes(path.as_bytes()) {
                let below = format!("{path}/{below}");
                prop_assert!(excludes.excludes(below.as_bytes()));
            }
        }

        #[test]
        fn a_quoted_name_matches_itself_alone(name in "[^/]{1,12}", other in "[^/]{1,12}") {
            let quoted: String = name.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(matches(&quoted, &name));
            prop_assert_eq!(matches(&quoted, &other), name == other);
        }
    }
}
