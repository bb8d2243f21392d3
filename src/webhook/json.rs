//! Reads JSON for [`super::payload`], and passes quickly over what nobody wants.
//!
//! Strings are most of a payload, and most of them are of no use here. serde_json looks at them byte by byte; this
//! reader finds their ends as fast as memory can be searched. It takes exactly what serde_json takes: structure is read
//! here, numbers and strings with escapes are given to serde_json. Depth costs no stack in what is passed over.

use std::fmt;

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};

/// What is wrong. Never says a word of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Error {
    /// It is not JSON.
    Syntax,
    /// It is JSON, and its reader does not want it.
    Unwanted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "wrong syntax",
            Self::Unwanted => "not what was expected",
        })
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Unwanted
    }
}

/// A place in a text.
#[derive(Debug)]
pub(super) struct Reader<'de> {
    text: &'de str,
    at: usize,
    /// There is no control character in the whole text, so that strings need not be searched for them.
    clean: bool,
}

/// A string as it is in the text.
enum Text<'de> {
    Plain(&'de str),
    /// With its quotes, and with escapes in it.
    Escaped(&'de str),
}

impl<'de> Reader<'de> {
    pub(super) fn new(text: &'de str) -> Self {
        Self { text, at: 0, clean: is_clean(text.as_bytes()) }
    }

    /// Line and column of the place, from 1; columns in bytes.
    pub(super) fn place(&self) -> (usize, usize) {
        let before = self.text.as_bytes().get(..self.at).unwrap_or_default();
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        (line, before.len() - memchr::memrchr(b'\n', before).map_or(0, |at| at + 1) + 1)
    }

    /// The end of the text.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.skip_space();
        if self.peek().is_none() { Ok(()) } else { Err(Error::Syntax) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn next(&mut self) -> Option<u8> {
        self.skip_space();
        self.peek()
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        if self.next() != Some(byte) {
            return Err(Error::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Result<(), Error> {
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(Error::Syntax);
        }
        self.at += word.len();
        Ok(())
    }

    fn string(&mut self) -> Result<Text<'de>, Error> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let length = memchr::memchr2(b'"', b'\\', rest).ok_or(Error::Syntax)?;
            let (plain, rest) = rest.split_at(length);
            if !self.clean && !is_clean(plain) {
                return Err(Error::Syntax);
            }
            self.at += length + 1;
            match rest {
                [b'"', ..] => break,
                [_, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.at += 1,
                [_, b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|byte| byte.is_ascii_hexdigit()) => {
                    self.at += 5;
                }
                _ => return Err(Error::Syntax),
            }
            escaped = true;
        }
        let (from, to) = if escaped { (start - 1, self.at) } else { (start, self.at - 1) };
        let text = self.text.get(from..to).ok_or(Error::Syntax)?;
        Ok(if escaped { Text::Escaped(text) } else { Text::Plain(text) })
    }

    /// All that can belong to a number.
    fn number(&mut self) -> &'de str {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// A key and the colon behind it.
    fn skip_key(&mut self) -> Result<(), Error> {
        self.skip_space();
        self.string()?;
        self.expect(b':')
    }

    fn skip_scalar(&mut self) -> Result<(), Error> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => serde_json::from_str::<de::IgnoredAny>(self.number()).map(drop).or(Err(Error::Syntax)),
        }
    }

    /// Passes over a value.
    fn skip(&mut self) -> Result<(), Error> {
        let mut open = Vec::new();
        loop {
            match self.next() {
                Some(bracket @ (b'{' | b'[')) => {
                    self.at += 1;
                    // Brackets lie two apart in ASCII.
                    if self.next() == Some(bracket + 2) {
                        self.at += 1;
                    } else {
                        open.push(bracket);
                        if bracket == b'{' {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                _ => self.skip_scalar()?,
            }
            loop {
                let Some(bracket) = open.last().copied() else { return Ok(()) };
                let next = self.next();
                self.at += 1;
                match next {
                    Some(b',') => {
                        if bracket == b'{' {
                            self.skip_key()?;
                        }
                        break;
                    }
                    Some(end) if end == bracket + 2 => drop(open.pop()),
                    _ => return Err(Error::Syntax),
                }
            }
        }
    }
}

/// Without control characters. The loop has no way out, so that the compiler takes many bytes at a time.
fn is_clean(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |clean, byte| clean & (*byte >= b' '))
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.next() {
            Some(b'"') => match self.string()? {
                Text::Plain(text) => visitor.visit_borrowed_str(text),
                Text::Escaped(text) => {
                    visitor.visit_string(serde_json::from_str(text).or(Err(Error::Syntax))?)
                }
            },
            Some(bracket @ (b'{' | b'[')) => {
                self.at += 1;
                let items = Items { reader: self, end: bracket + 2, first: true };
                if bracket == b'{' { visitor.visit_map(items) } else { visitor.visit_seq(items) }
            }
            Some(b't') => self.literal("true").and_then(|()| visitor.visit_bool(true)),
            Some(b'f') => self.literal("false").and_then(|()| visitor.visit_bool(false)),
            Some(b'n') => self.literal("null").and_then(|()| visitor.visit_unit()),
            _ => {
                let mut number = serde_json::Deserializer::from_str(self.number());
                let value = number.deserialize_any(visitor);
                value.and_then(|value| number.end().map(|()| value)).or(Err(Error::Syntax))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

/// What stands between two brackets.
struct Items<'r, 'de> {
    reader: &'r mut Reader<'de>,
    end: u8,
    first: bool,
}

impl Items<'_, '_> {
    /// Goes to the next item, if there is one, or else behind the bracket.
    fn more(&mut self) -> Result<bool, Error> {
        let first = std::mem::replace(&mut self.first, false);
        match self.reader.next() {
            Some(byte) if byte == self.end => {
                self.reader.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.reader.at += 1;
                Ok(true)
            }
            Some(_) if first => Ok(true),
            _ => Err(Error::Syntax),
        }
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if self.more()? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if !self.more()? {
            return Ok(None);
        }
        if self.reader.next() != Some(b'"') {
            return Err(Error::Syntax);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        self.reader.expect(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, de::IgnoredAny};
    use serde_json::Value;

    use super::*;

    fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Error> {
        let mut reader = Reader::new(text);
        let value = T::deserialize(&mut reader)?;
        reader.end().map(|()| value)
    }

    /// Reads and passes over exactly what serde_json does.
    fn agrees(text: &str) {
        assert_eq!(read::<Value>(text).ok(), serde_json::from_str::<Value>(text).ok(), "{text:?}");
        assert_eq!(
            read::<IgnoredAny>(text).is_ok(),
            serde_json::from_str::<IgnoredAny>(text).is_ok(),
            "{text:?}"
        );
    }

    #[test]
    fn it_takes_what_serde_json_takes() {
        for text in [
            "",
            " ",
            "{}",
            "[]",
            " [ ] ",
            "{ }",
            "[1]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1}",
            "{]",
            "[",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{a:1}",
            "{1:1}",
            "{\"a\" : [ {} , null ] }",
            "1",
            "-1",
            "-0",
            "01",
            "1.",
            ".1",
            "1e",
            "1e5",
            "1E+5",
            "-",
            "+1",
            "1-1",
            "1.5e-3",
            "18446744073709551616",
            "1e400",
            "[1e400]",
            "true",
            "tru",
            "truee",
            "nul",
            "false ",
            "\"\"",
            "\"a",
            "\"\u{1f}\"",
            "\"\u{7f}\"",
            "\"\\",
            "\"\\\"",
            "\"\\\"\"",
            "\"\\u00e9\"",
            "\"\\u00e\"",
            "\"\\ud800\"",
            "\"\\ud83d\\ude00\"",
            "\"\\x\"",
            "\"\\/\"",
            "\"é\\né\"",
            "{\"\\u0061\":\"b\\tc\"}",
            "1 2",
            "{}{}",
            "[[[[]],[]],{\"a\":{\"b\":[]}}]",
            "[\"]\"]",
            "\u{feff}1",
            "[1\u{b}]",
            "[truefalse]",
            "[1true]",
            "[\"a\"\"b\"]",
            "{\"a\"\"b\"}",
            "{\"a\":}",
            "{,}",
            "{:1}",
        ] {
            agrees(text);
        }
    }

    #[test]
    fn places_are_counted_from_one() {
        let mut reader = Reader::new("{\n \"a\": x}");
        assert!(IgnoredAny::deserialize(&mut reader).is_err());
        assert_eq!(reader.place(), (2, 7));
    }

    proptest! {
        #[test]
        fn it_takes_what_serde_json_takes_of_anything(
            text in "[{}\\[\\]\":,a\\\\u0-9 nulltruefs.eE+\\-\n\u{e9}\u{1}]{0,60}",
            any in any::<String>(),
        ) {
            agrees(&text);
            agrees(&any);
            agrees(&serde_json::to_string(&any).unwrap());
        }
    }
}
