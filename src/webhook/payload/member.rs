//! The members of a payload, of whatever JSON type they turn out to have: one of the wrong type is found out, and is no
//! error while reading.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// Whether a member is there and has its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Absent,
    Fits,
    Wrong,
}

/// A member of the payload, of whatever type it turned out to have.
#[derive(Debug, Default)]
pub(super) enum Member<T> {
    #[default]
    Absent,
    Null,
    Is(T),
    Wrong,
}

impl<T> Member<T> {
    pub(super) const fn get(&self) -> Option<&T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Absent | Self::Null | Self::Wrong => None,
        }
    }

    /// Whether its key has been read.
    pub(super) const fn is_there(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    pub(super) fn state_where(&self, fits: impl Fn(&T) -> bool) -> State {
        match self {
            Self::Absent | Self::Null => State::Absent,
            Self::Is(value) if fits(value) => State::Fits,
            Self::Is(_) | Self::Wrong => State::Wrong,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state_where(|_| true)
    }
}

impl Member<Text<'_>> {
    pub(super) fn text(&self) -> Option<&str> {
        self.get().map(Text::as_str)
    }
}

/// A type that a member can have: takes the JSON values that are of it.
pub(super) trait Shape<'de>: Sized {
    fn of_text(_: Cow<'de, str>) -> Option<Self> {
        None
    }
    fn of_integer(_: Option<u64>) -> Option<Self> {
        None
    }
    fn of_flag(_: bool) -> Option<Self> {
        None
    }
    fn of_sequence<A: SeqAccess<'de>>(mut items: A) -> Result<Option<Self>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    fn of_object<A: MapAccess<'de>>(mut members: A) -> Result<Option<Self>, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// A text, borrowed from the body where it has no escapes.
#[derive(Debug)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Shape<'de> for Text<'a> {
    fn of_text(text: Cow<'de, str>) -> Option<Self> {
        Some(Self(text))
    }
}

/// A whole number; those below zero are of no use to anybody.
#[derive(Debug)]
pub(super) struct Integer(pub(super) Option<u64>);

impl Shape<'_> for Integer {
    fn of_integer(number: Option<u64>) -> Option<Self> {
        Some(Self(number))
    }
}

impl Shape<'_> for bool {
    fn of_flag(flag: bool) -> Option<Self> {
        Some(flag)
    }
}

/// A list of integers.
#[derive(Debug)]
pub(super) struct Integers;

impl<'de> Shape<'de> for Integers {
    fn of_sequence<A: SeqAccess<'de>>(mut items: A) -> Result<Option<Self>, A::Error> {
        let mut all = true;
        while let Some(item) = items.next_element::<Member<Integer>>()? {
            all &= item.get().is_some();
        }
        Ok(all.then_some(Self))
    }
}

/// An object whose values are integers, whatever its keys.
#[derive(Debug)]
pub(super) struct Counts;

impl<'de> Shape<'de> for Counts {
    fn of_object<A: MapAccess<'de>>(mut members: A) -> Result<Option<Self>, A::Error> {
        let mut all = true;
        while let Some((_, count)) = members.next_entry::<IgnoredAny, Member<Integer>>()? {
            all &= count.get().is_some();
        }
        Ok(all.then_some(Self))
    }
}

impl<'de, T: Shape<'de>> Deserialize<'de> for Member<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor(PhantomData))
    }
}

struct MemberVisitor<T>(PhantomData<T>);

impl<'de, T: Shape<'de>> Visitor<'de> for MemberVisitor<T> {
    type Value = Member<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(T::of_text(Cow::Borrowed(text)).map_or(Member::Wrong, Member::Is))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(T::of_text(Cow::Owned(text.to_owned())).map_or(Member::Wrong, Member::Is))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(T::of_integer(Some(number)).map_or(Member::Wrong, Member::Is))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(T::of_integer(u64::try_from(number).ok()).map_or(Member::Wrong, Member::Is))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Member::Wrong)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(T::of_flag(flag).map_or(Member::Wrong, Member::Is))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Member::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        Ok(T::of_sequence(items)?.map_or(Member::Wrong, Member::Is))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        Ok(T::of_object(members)?.map_or(Member::Wrong, Member::Is))
    }
}
