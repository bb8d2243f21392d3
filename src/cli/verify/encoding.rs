//! The ways in which programs write one JSON value: what a body was before something on the way parsed it and wrote
//! it anew.
//!
//! It covers what common libraries do with white space, escapes and the order of members. It cannot bring back what
//! a parser threw away: numbers in another notation, members given twice.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use crate::webhook::event::{KINDS, Kind};

/// A JSON value whose members keep their order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    /// `null`, `true`, `false` and numbers, as they are written.
    Literal(String),
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// One way of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    layout: Layout,
    escapes: Escapes,
    order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Compact,
    Spaced,
    Indented(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// Only what JSON demands.
    Few,
    /// Go's `json.Marshal`: also `<`, `>`, `&` and the two line separators.
    Go,
    /// Everything beyond ASCII.
    Ascii,
    /// PHP's `json_encode`: everything beyond ASCII, and the slash.
    Php,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AsGiven,
    Sorted,
    /// As Pulumi sends the members of this kind.
    Pulumi(usize),
}

const LAYOUTS: [Layout; 5] = [
    Layout::Compact,
    Layout::Spaced,
    Layout::Indented("  "),
    Layout::Indented("    "),
    Layout::Indented("\t"),
];
const ESCAPES: [Escapes; 4] = [Escapes::Few, Escapes::Go, Escapes::Ascii, Escapes::Php];

impl Json {
    /// Reads a body that is one JSON value.
    pub(super) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The value written in every style that is known, the likely ones first.
    pub(super) fn styles(&self) -> impl Iterator<Item = (Style, Vec<u8>)> + '_ {
        let mut orders = vec![(Order::AsGiven, self.clone())];
        orders.extend(KINDS.iter().enumerate().filter_map(|(index, kind)| {
            let ordered = self.in_pulumis_order(kind)?;
            Some((Order::Pulumi(index), ordered))
        }));
        orders.push((Order::Sorted, self.sorted()));
        orders.into_iter().flat_map(|(order, value)| {
            LAYOUTS.into_iter().flat_map(move |layout| {
                let value = value.clone();
                ESCAPES.into_iter().map(move |escapes| {
                    let style = Style { layout, escapes, order };
                    (style, value.write(style))
                })
            })
        })
    }

    fn write(&self, style: Style) -> Vec<u8> {
        let mut out = String::new();
        self.write_to(&mut out, style, 0);
        out.into_bytes()
    }

    fn write_to(&self, out: &mut String, style: Style, depth: usize) {
        match self {
            Self::Literal(literal) => out.push_str(literal),
            Self::Text(text) => style.escapes.quote(out, text),
            Self::List(items) => {
                style.layout.enclose(out, ['[', ']'], depth, items, |out, item| {
                    item.write_to(out, style, depth + 1);
                });
            }
            Self::Object(members) => {
                style.layout.enclose(out, ['{', '}'], depth, members, |out, (name, value)| {
                    style.escapes.quote(out, name);
                    out.push_str(if style.layout == Layout::Compact { ":" } else { ": " });
                    value.write_to(out, style, depth + 1);
                });
            }
        }
    }

    fn sorted(&self) -> Self {
        match self {
            Self::Object(members) => {
                let mut members: Vec<_> =
                    members.iter().map(|(name, value)| (name.clone(), value.sorted())).collect();
                members.sort_by(|(a, _), (b, _)| a.cmp(b));
                Self::Object(members)
            }
            Self::List(items) => Self::List(items.iter().map(Self::sorted).collect()),
            other => other.clone(),
        }
    }

    /// The members in the order in which Pulumi writes those of this kind. `None` where it is not of this kind.
    fn in_pulumis_order(&self, kind: &Kind) -> Option<Self> {
        const PERSON: [&str; 3] = ["name", "githubLogin", "avatarUrl"];
        const REFERENCE: [&str; 3] = ["projectName", "environmentName", "revision"];

        let names: Vec<&str> = ["user", "organization"]
            .into_iter()
            .chain(kind.fields?.iter().map(|field| field.name()))
            .collect();
        let Self::Object(members) = self.arranged(&names)? else { return None };
        let arrange = |(name, value): (String, Self)| {
            let inner = match name.as_str() {
                "user" | "organization" => value.arranged(&PERSON),
                "importedEnvironmentReference" => value.arranged(&REFERENCE),
                _ => None,
            };
            (name, inner.unwrap_or(value))
        };
        Some(Self::Object(members.into_iter().map(arrange).collect()))
    }

    /// The members in the order of `names`; `None` where one has no place in it.
    fn arranged(&self, names: &[&str]) -> Option<Self> {
        let Self::Object(members) = self else { return None };
        let mut placed = members
            .iter()
            .map(|member| Some((names.iter().position(|name| *name == member.0)?, member)))
            .collect::<Option<Vec<_>>>()?;
        placed.sort_by_key(|(place, _)| *place);
        Some(Self::Object(placed.into_iter().map(|(_, member)| member.clone()).collect()))
    }
}

impl Layout {
    fn enclose<T>(
        self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: &[T],
        write: impl Fn(&mut String, &T),
    ) {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(if self == Self::Spaced { ", " } else { "," });
            }
            self.break_line(out, depth + 1);
            write(out, item);
        }
        if !items.is_empty() {
            self.break_line(out, depth);
        }
        out.push(close);
    }

    fn break_line(self, out: &mut String, depth: usize) {
        if let Self::Indented(step) = self {
            out.push('\n');
            out.extend(std::iter::repeat_n(step, depth));
        }
    }
}

impl Escapes {
    fn quote(self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '/' if self == Self::Php => out.push_str("\\/"),
                _ if self.spells_out(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(c),
            }
        }
        out.push('"');
    }

    const fn spells_out(self, c: char) -> bool {
        c < ' '
            || match self {
                Self::Few => false,
                Self::Go => matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'),
                Self::Ascii | Self::Php => !c.is_ascii(),
            }
    }
}

/// Follows the words "the signature fits it".
impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.layout {
            Layout::Compact => "as compact JSON",
            Layout::Spaced => "as JSON with a space after each comma and colon (Python's json.dumps)",
            Layout::Indented("\t") => "as JSON indented by tabs",
            Layout::Indented("  ") => "as JSON indented by two spaces",
            Layout::Indented(_) => "as JSON indented by four spaces",
        })?;
        f.write_str(match self.escapes {
            Escapes::Few => "",
            Escapes::Go => ", with <, > and & escaped (Go's json.Marshal)",
            Escapes::Ascii => ", with everything beyond ASCII escaped",
            Escapes::Php => ", with slashes and everything beyond ASCII escaped (PHP's json_encode)",
        })?;
        f.write_str(match self.order {
            Order::AsGiven => "",
            Order::Sorted => ", with its members sorted by name",
            Order::Pulumi(_) => ", with its members in Pulumi's order",
        })
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Literal("null".into()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Literal(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Literal(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Literal(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Literal(
            serde_json::Number::from_f64(value).map_or("null".into(), |number| number.to_string()),
        ))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = access.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::event::EVENTS;

    const SAMPLE: &str = r#"{"b":"é <&> 🍹 a/b","a":[1,-2.5,true,null],"c":{},"d":[]}"#;

    fn styled(layout: Layout, escapes: Escapes, order: Order) -> String {
        let json = Json::parse(SAMPLE.as_bytes()).unwrap();
        let json = if order == Order::Sorted { json.sorted() } else { json };
        String::from_utf8(json.write(Style { layout, escapes, order })).unwrap()
    }

    /// The expected texts are what the named programs print.
    #[test]
    fn programs_write_like_this() {
        use Order::{AsGiven, Sorted};
        assert_eq!(styled(Layout::Compact, Escapes::Few, AsGiven), SAMPLE);
        // Python: json.dumps(value)
        assert_eq!(
            styled(Layout::Spaced, Escapes::Ascii, AsGiven),
            r#"{"b": "\u00e9 <&> \ud83c\udf79 a/b", "a": [1, -2.5, true, null], "c": {}, "d": []}"#
        );
        // Python: json.dumps(value, ensure_ascii=False, sort_keys=True)
        assert_eq!(
            styled(Layout::Spaced, Escapes::Few, Sorted),
            r#"{"a": [1, -2.5, true, null], "b": "é <&> 🍹 a/b", "c": {}, "d": []}"#
        );
        // Go: json.Marshal
        assert_eq!(
            styled(Layout::Compact, Escapes::Go, Sorted),
            r#"{"a":[1,-2.5,true,null],"b":"é \u003c\u0026\u003e 🍹 a/b","c":{},"d":[]}"#
        );
        // PHP: json_encode
        assert_eq!(
            styled(Layout::Compact, Escapes::Php, AsGiven),
            r#"{"b":"\u00e9 <&> \ud83c\udf79 a\/b","a":[1,-2.5,true,null],"c":{},"d":[]}"#
        );
        // JavaScript: JSON.stringify(value, null, 2)
        assert_eq!(
            styled(Layout::Indented("  "), Escapes::Few, AsGiven),
            "{\n  \"b\": \"é <&> 🍹 a/b\",\n  \"a\": [\n    1,\n    -2.5,\n    true,\n    null\n  ],\n\
             \u{20} \"c\": {},\n  \"d\": []\n}"
        );
    }

    #[test]
    fn control_characters_stay_json() {
        let json = Json::Text("\u{0}\n\r\t\u{8}\u{c}\"\\\u{1f}".into());
        let style = Style { layout: Layout::Compact, escapes: Escapes::Few, order: Order::AsGiven };
        assert_eq!(json.write(style), br#""\u0000\n\r\t\b\f\"\\\u001f""#);
    }

    #[test]
    fn every_style_is_the_same_value() {
        let json = Json::parse(SAMPLE.as_bytes()).unwrap();
        let expected: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
        let mut seen = 0;
        for (style, bytes) in json.styles() {
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap(), expected, "{style}");
            seen += 1;
        }
        assert_eq!(seen, 2 * LAYOUTS.len() * ESCAPES.len());
    }

    #[test]
    fn pulumis_order_is_found_again() {
        let mut seen = 0;
        for event in EVENTS.iter().filter(|event| event.is_published()) {
            let body = event.sample_body();
            // Its members have no fixed order.
            if body.contains("resourceChanges") {
                continue;
            }
            let sorted = Json::parse(body.as_bytes()).unwrap().sorted();
            assert!(sorted.styles().any(|(_, bytes)| bytes == body.as_bytes()), "{}", event.name);
            seen += 1;
        }
        assert!(seen > 15, "{seen}");
    }
}
