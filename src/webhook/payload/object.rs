//! Objects some of whose members are read: their keys are told apart here.
//!
//! The body goes on as it came, and the service reads it with a parser of its own. So a key that some parser takes for one
//! that is read here stands in its object once, and in these very letters: Go's `encoding/json`, .NET's and Java's
//! readers can be told to ignore the case of keys, or do so by default, and then the last one wins. Keys that nobody
//! takes for one of these are of no interest.

use serde::de::{Error, IgnoredAny, MapAccess};

use super::member::{Member, Shape};

/// What is wrong with a key, without a word of the body.
pub(super) const TWICE: &str = "a key given twice";
/// See [`TWICE`].
pub(super) const FOLDED: &str = "a key that differs only in case from one that is read";

/// Declares a struct of [`Member`]s with the keys that they have in JSON.
macro_rules! object {
    ($(#[$about:meta])* struct $name:ident<'a> { $($member:ident $key:literal: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        struct $name<'a> {
            $($member: Member<$type>,)*
        }

        impl<'de: 'a, 'a> Shape<'de> for $name<'a> {
            fn of_object<A: MapAccess<'de>>(mut members: A) -> Result<Option<Self>, A::Error> {
                #[expect(non_camel_case_types, reason = "a variant is named as the member that it stands for")]
                enum Key { $($member,)* Unknown, Folded }

                struct KeyVisitor;

                impl Visitor<'_> for KeyVisitor {
                    type Value = Key;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a key")
                    }

                    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                        Ok(match key {
                            $($key => Key::$member,)*
                            _ if object::is_folded(key, &[$($key),*]) => Key::Folded,
                            _ => Key::Unknown,
                        })
                    }
                }

                impl<'de> DeserializeSeed<'de> for KeyVisitor {
                    type Value = Key;

                    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
                        deserializer.deserialize_identifier(self)
                    }
                }

                let mut read = Self::default();
                while let Some(key) = members.next_key_seed(KeyVisitor)? {
                    match key {
                        $(Key::$member => object::read_once(&mut read.$member, &mut members)?,)*
                        Key::Unknown => object::pass_over(&mut members)?,
                        Key::Folded => return Err(A::Error::custom(object::FOLDED)),
                    }
                }
                Ok(Some(read))
            }
        }
    };
}
pub(super) use object;

pub(super) fn read_once<'de, T: Shape<'de>, A: MapAccess<'de>>(
    member: &mut Member<T>,
    members: &mut A,
) -> Result<(), A::Error> {
    if member.is_there() {
        return Err(A::Error::custom(TWICE));
    }
    *member = members.next_value()?;
    Ok(())
}

pub(super) fn pass_over<'de, A: MapAccess<'de>>(members: &mut A) -> Result<(), A::Error> {
    members.next_value::<IgnoredAny>().map(|_| ())
}

/// Whether a key, which is not among `names`, is one of them to a parser that is lax about keys: one that ignores case,
/// by ASCII or by Unicode, or one that takes U+0000 for the end of a text.
pub(super) fn is_folded(key: &str, names: &[&str]) -> bool {
    // Names are shorter than this, and no letter that folds to an ASCII one has more than three bytes.
    const LONGEST: usize = 30 * 3;
    let key = key.split_once('\0').map_or(key, |(key, _)| key);
    if key.is_ascii() {
        return names.iter().any(|name| key.eq_ignore_ascii_case(name));
    }
    let lower = |name: &&str| name.chars().map(folded).eq(key.chars().map(folded));
    key.len() <= LONGEST && names.iter().any(lower)
}

/// To lower case, and to the ASCII letter for those beyond ASCII that have one: by simple case folding (Go) U+017F is an s
/// and U+212A a k, and by upper or lower case (Java) U+0130 and U+0131 are an i.
const fn folded(letter: char) -> char {
    match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        '\u{130}' | '\u{131}' => 'i',
        _ => letter.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["organization", "kind", "isPreview"];

    #[test]
    fn keys_that_a_lax_parser_takes_for_one_that_is_read_are_found() {
        for key in [
            "Organization",
            "ORGANIZATION",
            "\u{212a}ind",
            "K\u{131}nd",
            "k\u{130}nd",
            "i\u{17f}Preview",
            "ispreview",
            "organization\0",
            "organization\0x",
            "KIND\0\0",
        ] {
            assert!(is_folded(key, &NAMES), "{key:?}");
        }
    }

    #[test]
    fn other_keys_are_not() {
        for key in [
            "",
            "\0",
            "\0organization",
            "organisation",
            "organization ",
            " organization",
            "organizations",
            "organizatio",
            "kin\u{fffd}",
            "k\u{ef}nd",
            "is_preview",
            "user",
            "name",
            &"organization".repeat(50),
        ] {
            assert!(!is_folded(key, &NAMES), "{key:?}");
        }
    }
}
