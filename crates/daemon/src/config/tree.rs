//! YAML text to a tree of values that know where they stand.
//!
//! A configuration is written by hand, so the tree is bounded (depth, number of values after
//! aliases are expanded), and what can only be a mistake is an error: a key given twice, a second
//! document, a tag of one's own.

use super::report::{Place, Report};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use std::borrow::Cow;
use std::collections::HashMap;

/// How deep lists and tables may nest; the deepest served key is at 5.
const MAX_DEPTH: usize = 32;
/// How many values there may be, aliases expanded.
const MAX_NODES: usize = 20_000;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value. What a scalar means depends on who asks, so it stays text.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A scalar; `plain` when it stood without quotes, and may be a number or a truth value.
    Scalar { text: String, plain: bool },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the text's order.
    Table(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Node {
    /// Whether it is `null`, or nothing at all, which means the same as leaving the key out.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Table(entries) => entries.iter().map(|e| 1 + e.node.size()).sum(),
        }
    }
}

/// The single document in `text`, or `None` with the reason reported.
pub(super) fn parse(text: &str, report: &mut Report) -> Option<Node> {
    // An editor of another system may have left a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        nodes: 0,
        report,
    };
    match builder.document() {
        Ok(root) => Some(root),
        Err((place, message)) => {
            report.error(place, message);
            None
        }
    }
}

/// Why there is no tree. Unlike a finding of [`Report`], nothing after it can be made sense of.
type Fatal = (Place, String);

struct Builder<'t, 'r> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    report: &'r mut Report,
}

impl<'t> Builder<'t, '_> {
    fn document(&mut self) -> Result<Node, Fatal> {
        let mut root = None;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::Nothing
                | Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
                _ if root.is_some() => {
                    return Err((place, "a second document begins here: expected one".into()));
                }
                event => root = Some(self.node(event, place, 0)?),
            }
        }
        root.ok_or_else(|| {
            let top = Place { line: 1, column: 1 };
            (top, "the file is empty: expected `config:`".into())
        })
    }

    fn next(&mut self) -> Result<(Event<'t>, Place), Fatal> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, place_of(&span))),
            Some(Err(error)) => Err(syntax_error(&error)),
            // The parser ends with StreamEnd, after which nobody asks on.
            None => Ok((Event::StreamEnd, Place { line: 1, column: 1 })),
        }
    }

    fn node(&mut self, event: Event<'t>, place: Place, depth: usize) -> Result<Node, Fatal> {
        if depth > MAX_DEPTH {
            return Err((place, format!("nested more than {MAX_DEPTH} deep")));
        }
        self.count(1, place)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let forced_text = text_tag(tag.as_ref(), place)?;
                let plain = style == ScalarStyle::Plain && !forced_text;
                let text = text.into_owned();
                (Value::Scalar { text, plain }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                text_tag(tag.as_ref(), place)?;
                (self.list(depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                text_tag(tag.as_ref(), place)?;
                (self.table(depth)?, anchor)
            }
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    return Err((place, "this alias refers to itself".into()));
                };
                self.count(target.size(), place)?;
                (target.value, 0)
            }
            _ => return Err((place, "expected a value".into())),
        };
        let node = Node { place, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fatal> {
        let mut items = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, place, depth + 1)?);
        }
    }

    fn table(&mut self, depth: usize) -> Result<Value, Fatal> {
        let mut entries = Vec::new();
        let mut first: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, key_place) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Table(entries));
            }
            let key = self.node(event, key_place, depth + 1)?;
            let Value::Scalar { text: key, .. } = key.value else {
                return Err((key_place, "expected a key, found a list or table".into()));
            };
            if key == "<<" {
                let text = "merge keys (<<) are not supported: write the keys out";
                return Err((key_place, text.into()));
            }
            let (event, value_place) = self.next()?;
            let node = self.node(event, value_place, depth + 1)?;
            if let Some(line) = first.get(&key) {
                self.report.error(
                    key_place,
                    format!("key {key:?} is given twice, first on line {line}"),
                );
                continue;
            }
            first.insert(key.clone(), key_place.line);
            entries.push(Entry {
                key,
                place: key_place,
                node,
            });
        }
    }

    fn count(&mut self, more: usize, place: Place) -> Result<(), Fatal> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            return Err((place, format!("more than {MAX_NODES} values")));
        }
        Ok(())
    }
}

/// Whether the tag forces text. The core schema's other tags say what the reader finds out anyway.
fn text_tag(tag: Option<&Cow<'_, Tag>>, place: Place) -> Result<bool, Fatal> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err((place, format!("unknown tag {tag}"))),
    }
}

fn place_of(span: &Span) -> Place {
    Place {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

fn syntax_error(error: &ScanError) -> Fatal {
    let place = Place {
        line: error.marker().line(),
        column: error.marker().col() + 1,
    };
    (place, format!("not valid YAML: {}", error.info()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigError;

    fn findings(text: &str) -> Vec<String> {
        let mut report = Report::new("f");
        let tree = parse(text, &mut report);
        match report.finish(tree) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Invalid(all)) => all.iter().map(ToString::to_string).collect(),
            Err(other) => vec![other.to_string()],
        }
    }

    #[test]
    fn places_count_from_one() {
        let mut report = Report::new("f");
        let root = parse("\u{feff}a: 1\nb:\n  - x: two\n", &mut report).unwrap();
        let Value::Table(entries) = &root.value else {
            panic!("{root:?}");
        };
        assert_eq!(entries[0].node.place, Place { line: 1, column: 4 });
        let Value::List(items) = &entries[1].node.value else {
            panic!("{root:?}");
        };
        assert_eq!(items[0].place, Place { line: 3, column: 5 });
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, want) in [
            (
                "a: 1\nb: 2\na: 3\n",
                "f:3:1: key \"a\" is given twice, first on line 1",
            ),
            ("", "f:1:1: the file is empty: expected `config:`"),
            (
                "a: 1\n---\nb: 2\n",
                "f:3:1: a second document begins here: expected one",
            ),
            ("a: !mine 1\n", "f:1:4: unknown tag !mine"),
            ("a: &x [*x]\n", "f:1:8: this alias refers to itself"),
            (
                "<<: 1\n",
                "f:1:1: merge keys (<<) are not supported: write the keys out",
            ),
            ("[a]: 1\n", "f:1:1: expected a key, found a list or table"),
        ] {
            assert_eq!(findings(text), [want], "{text:?}");
        }
        let broken = findings("a: [1\nb: 2\n");
        assert!(broken[0].starts_with("f:2:"), "{broken:?}");
        assert!(broken[0].contains("not valid YAML"), "{broken:?}");
    }

    #[test]
    fn depth_and_expansion_are_bounded() {
        let deep = format!("a: {}", "[".repeat(200));
        assert!(findings(&deep)[0].contains("deep"), "{:?}", findings(&deep));
        let level = |n: usize| {
            let items = match n {
                0 => vec!["x".to_owned(); 10],
                _ => vec![format!("*a{}", n - 1); 10],
            };
            format!("a{n}: &a{n} [{}]\n", items.join(", "))
        };
        let bomb: String = (0..9).map(level).collect();
        assert!(findings(&bomb)[0].contains("more than 20000 values"));
    }
}
